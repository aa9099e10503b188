//! The shape of `tokio::process`, with what hatchery promises: `use hatchery_spawn::process::*` in place of
//! `use tokio::process::*`, and no child leaks, turns zombie, inherits an fd, or dies with a thread.
//!
//! ```no_run
//! use hatchery_spawn::process::{Command, Stdio};
//! use tokio::io::{AsyncBufReadExt as _, BufReader};
//!
//! # async fn example() -> std::io::Result<()> {
//! let mut child = Command::new("cat").arg("/etc/hosts").stdout(Stdio::piped()).spawn()?;
//! let stdout = child.stdout.take().expect("it is piped");
//! let mut lines = BufReader::new(stdout).lines();
//! while let Some(line) = lines.next_line().await? {
//!     println!("{line}");
//! }
//! assert!(child.wait().await?.success());
//! # Ok(()) }
//! ```
//!
//! [`blocking`] is the same in the shape of `std::process`. The names are here and not at the crate's root,
//! whose `Command`, `Child` and `Output` are those of the typed builder.
//!
//! # What differs from tokio
//!
//! | | tokio | here | as in tokio |
//! | --- | --- | --- | --- |
//! | a dropped [`Child`] | runs on | gets SIGKILL, or its [stop signal](Command::stop_signal) first | [`kill_on_drop(false)`](Command::kill_on_drop) |
//! | the end of this process | children run on | takes all of them with it | [`detach`](Command::detach) |
//! | what a program leaves in the background | runs on | ends with it | [`keep_strays`](Command::keep_strays) |
//! | process group | this process's | its own: Ctrl-C reaches this process alone | [`foreground`](Command::foreground), for a program that needs the terminal |
//! | fds without close-on-exec | inherited | none but stdin, stdout, stderr | [`fd`](Command::fd), one by one |
//! | variables | this process's | one more, `HATCHERY_ACTOR` | [`env_clear`](Command::env_clear) removes it too |
//! | `output` of a program whose pipe somebody keeps open | waits for ever | returns 0.5 s after the program's end, and says so in [`Output::ended`] | [`keep_strays`](Command::keep_strays), or a longer [`drain`](Command::drain) |
//! | [`Stdio`] | `std::process::Stdio` | its own type: std's can't be read | |
//! | `pre_exec` | any code between fork and exec | there is none: see below | |
//! | [`uid`](Command::uid) without the right to it | fails in the child | refused before there is one | |
//!
//! In place of `pre_exec`: [`umask`](Command::umask), [`nice`](Command::nice), [`limit`](Command::limit),
//! [`confine`](Command::confine) (seccomp, landlock, namespaces, cgroups), [`fd`](Command::fd),
//! [`foreground`](Command::foreground), [`setsid`](Command::setsid), [`groups`](Command::groups). A death with
//! its parent, a closed table of fds and signals at their defaults need nothing: they are always so.
//!
//! `docs/processes.md` of the repository says the same at length.
//!
//! Don't use it where a child is to outlive its parent as a rule, or where `pre_exec` runs code of your own.

mod block;
pub mod blocking;
mod child;
mod command;
mod lines;
mod output;
mod pipeline;
mod pipes;
mod pty;

pub use child::Child;
pub use command::{Command, Overflow};
pub use lines::{Line, Lines, Origin};
pub use output::Output;
pub use pipeline::{Pipeline, PipelineOutput, Running};
pub use pipes::{ChildStderr, ChildStdin, ChildStdout};
pub use pty::Pty;

pub use crate::command::{Ended, Holder};
pub use crate::stdio::Stdio;
pub use crate::usage::Usage;
