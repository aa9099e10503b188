//! The shape of `std::process`, with what hatchery promises: `use hatchery_spawn::process::blocking::*` in
//! place of `use std::process::*`. No runtime is needed, and a thread that drives one may call it too: it is
//! blocked as by std's.
//!
//! ```no_run
//! use hatchery_spawn::process::blocking::{Command, Stdio};
//! use std::io::Write as _;
//!
//! # fn example() -> std::io::Result<()> {
//! let mut child = Command::new("sort").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
//! child.stdin.take().expect("it is piped").write_all(b"two\none\n")?;
//! assert_eq!(child.wait_with_output()?.stdout, b"one\ntwo\n");
//! # Ok(()) }
//! ```
//!
//! What differs from std is what differs from tokio: see the [table](super). Time-outs, a most of output,
//! stop signals and all else of [`process::Command`](super::Command) are here too. Any number of threads may
//! start programs at once, and a program does not die with the thread that started it.

mod child;
mod command;
mod pipes;

pub use std::process::{ExitCode, ExitStatus, Termination, abort, exit, id};

pub use child::Child;
pub use command::{Command, Pipeline};
pub use pipes::{ChildStderr, ChildStdin, ChildStdout};

pub use super::{Ended, Holder, Output, Overflow, PipelineOutput, Stdio, Usage};
