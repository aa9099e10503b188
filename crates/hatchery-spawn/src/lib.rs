//! Children that leave nothing behind: processes from a forkserver, by exec, or threads.
//!
//! The promise to people who only want children: a child dies with the process that started it,
//! whatever ends that; leaves no zombie and no orphan; holds exactly the fds it was given; its
//! exact status reaches every waiter; dropping it kills it.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use hatchery_spawn::Command;
//!
//! let output = Command::new("ls").arg("/").output().await?;
//! assert!(output.status.success());
//! # Ok(()) }
//! ```
//!
//! No call in `main` is needed: a constructor in this crate makes every image that links it able
//! to be a forkserver. Linux only, 5.4 or newer.
#![deny(unsafe_code)]

mod backend;
mod child;
mod command;
mod confine;
mod error;
mod exit;
mod forkserver;
#[doc(hidden)]
pub mod fuzz;
mod grip;
mod held;
mod identity;
mod image;
mod kept;
mod ledger;
pub mod leftovers;
mod maps;
#[doc(hidden)]
pub mod notice;
mod own_image;
mod own_thread;
mod prelude;
pub mod process;
mod reaper;
mod relay;
pub mod signals;
mod spec;
mod stdio;
mod sys;
mod terminal;
mod thread;
mod usage;

pub use backend::{Backend, Spawning};
pub use child::{BirthFailure, Child, ChildHandle, ChildId, Halt};
pub use command::{Command, CommandError, Ended, Holder, Output};
pub use confine::{Access, Cgroup, Confinement, Instruction, SyscallFilter};
pub use error::{ImageError, PreloadError, PreloadFailure, SignalError, SpawnError, WaitError};
pub use exit::Exit;
pub use forkserver::rights::Right;
pub use forkserver::wire::Left;
pub use forkserver::{Bounds, Exec, Fork, Forkserver};
pub use image::{ActorMain, Birth, BirthKind, Main, Preload};
pub use inventory;
#[doc(hidden)]
pub use kept::Kept;
pub use ledger::{Abandoned, Ledger};
pub use own_thread::OwnThread;
pub use prelude::Step;
pub use reaper::{Reaper, ReaperError, reap_orphans};
pub use relay::write_stderr;
pub use spec::{Resource, Spec};
pub use stdio::{Relay, Stdio};
pub use sys::exit::{at_exit, exit_now};
#[doc(hidden)]
pub use sys::memfd::{SealableMemory, map_sealed, sealed_copy};
pub use sys::memory::SharedWords;
pub use sys::overflow::guard_stack;
#[doc(hidden)]
pub use sys::owner::claim;
pub use sys::owner::is_copy;
pub use sys::pidfd::Pidfd;
#[doc(hidden)]
pub use sys::process::{fork_copy, fork_floor};
#[doc(hidden)]
pub use sys::scm_rights::{Incoming, receive_into, send_with};
#[doc(hidden)]
pub use sys::socket::{unread, watch};
pub use thread::Threads;
pub use usage::Usage;

/// How many threads this process has.
///
/// # Errors
/// `/proc` can't be read.
pub fn thread_count() -> std::io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}
