//! One small error for each thing one can do with children. Each prints one line: what was attempted, with
//! what, and the cause; `source` has nothing that the line has.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::forkserver::rights::Right;
use crate::prelude::Step;

/// No child came of it; nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// A call failed in this process or in the forkserver. `EAGAIN`, `EMFILE`, `ENFILE` and
    /// `ENOMEM` are limits: a later spawn may succeed.
    #[error("spawning `{name}`: {call}: {cause}")]
    Call {
        /// The child's name.
        name: String,
        /// The system call, or what stands for it.
        call: String,
        /// What it said.
        cause: io::Error,
    },
    /// A step between fork and main failed in the child.
    #[error("spawning `{name}`: step `{}`: {cause}", step.name())]
    Step {
        /// The child's name.
        name: String,
        /// Which step.
        step: Step,
        /// What it said.
        cause: io::Error,
    },
    /// The child would have had a right that its spawner has not (C17). Nothing was forked; the right
    /// says what to do.
    #[error("spawning `{name}`: {right}")]
    Rights {
        /// The child's name.
        name: String,
        /// Which right.
        right: Right,
    },
    /// This program was given rights by its exec that whoever started it may not have (`AT_SECURE`:
    /// a set-user-id or set-group-id bit, file capabilities, or different real and effective ids). It
    /// then trusts nothing in its environment, and can't be its own forkserver. Threads work; so do
    /// ambient capabilities in place of those of the file.
    #[error(
        "spawning `{name}`: this program's file gives it rights (set-user-id, set-group-id or file \
         capabilities), so it can't be a forkserver; use ambient capabilities, or threads"
    )]
    Raised {
        /// The child's name.
        name: String,
    },
    /// The forkserver is gone or could not start; a new one can be started.
    #[error("spawning `{name}`: the forkserver is gone ({why})")]
    ServerGone {
        /// The child's name.
        name: String,
        /// Why, as far as is known.
        why: String,
    },
    /// The program has threads that began before `main`, of a library or a preloaded profiler: a fork
    /// would lack them and keep their locks for ever. [`Forkserver::exec`](crate::Forkserver::exec) and
    /// [`Command`](crate::Command) work with them.
    #[error(
        "spawning `{name}`: threads that began before `main` rule out a fork without exec ({threads}): \
         start it by exec, or without the library that begins them"
    )]
    Threaded {
        /// The child's name.
        name: String,
        /// Their names and numbers, and the files whose code they run, as far as that is known.
        threads: String,
    },
    /// There is no program that a forkserver could be started from.
    #[error("spawning `{name}`: starting a forkserver from this program: {cause}")]
    Image {
        /// The child's name.
        name: String,
        /// Why not, and what to do.
        cause: Box<ImageError>,
    },
    /// A preload of the program did not end well; no child can be started. See
    /// [`Preload`](crate::Preload).
    #[error("spawning `{name}`: the program could not be warmed up: {cause}")]
    Preload {
        /// The child's name.
        name: String,
        /// Which preload, and what it did.
        cause: Box<PreloadError>,
    },
    /// The forkserver did not answer in time; should it do so later, the child is killed.
    #[error("spawning `{name}`: no answer from the forkserver after {waited:?}")]
    Unanswered {
        /// The child's name.
        name: String,
        /// How long.
        waited: Duration,
    },
    /// It was forked, and after [`Bounds::exec`](crate::Bounds) had neither become what was asked for
    /// nor failed to: the program may lie on a disk that is slow. It is killed.
    #[error("spawning `{name}`: after {waited:?} it was still on its way to being that program")]
    StillStarting {
        /// The child's name.
        name: String,
        /// How long.
        waited: Duration,
    },
    /// Arguments, environment and payload together are too long to send.
    #[error("spawning `{name}`: a request of {length} bytes, over the limit of {limit}")]
    TooLarge {
        /// The child's name.
        name: String,
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// This backend can't do what the spec asks for.
    #[error("spawning `{name}`: the {backend} backend can't do {what}")]
    Unsupported {
        /// The child's name.
        name: String,
        /// Which backend.
        backend: &'static str,
        /// What.
        what: &'static str,
    },
    /// This process is a copy, made by a fork, of one that uses hatchery. Only that one may start
    /// anything, and a program that the copy executes; see [`is_copy`](crate::is_copy).
    #[error(
        "spawning `{name}`: this process is a copy, made by fork, of the one that hatchery serves"
    )]
    Copied {
        /// The child's name.
        name: String,
    },
    /// This image was linked without the constructor that makes it a forkserver.
    #[error(
        "spawning `{name}`: this program's image has no constructor section, so it can't be a forkserver"
    )]
    NoConstructor {
        /// The child's name.
        name: String,
    },
}

impl SpawnError {
    /// The system's error, if that is what it was.
    #[must_use]
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            Self::Call { cause, .. } | Self::Step { cause, .. } => Some(cause),
            Self::ServerGone { .. }
            | Self::Threaded { .. }
            | Self::Image { .. }
            | Self::Preload { .. }
            | Self::Unanswered { .. }
            | Self::StillStarting { .. }
            | Self::TooLarge { .. }
            | Self::Unsupported { .. }
            | Self::Copied { .. }
            | Self::Rights { .. }
            | Self::Raised { .. }
            | Self::NoConstructor { .. } => None,
        }
    }
}

/// No program that a forkserver, or an exec'd actor, could be started from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// This code is in a shared library; executing the program that has loaded it would run that
    /// program's own `main` once more. Name a program of your own that uses the same version of this
    /// crate: [`Bounds::image`](crate::Bounds::image). If the library is one that the program was
    /// linked with, and not one that it has loaded, name the program itself.
    #[error(
        "this code is in the library {}, loaded by {}, which can't be a forkserver: name a program \
         that can, by `image`",
        library.display(),
        program.display()
    )]
    SharedLibrary {
        /// The library.
        library: PathBuf,
        /// The program that runs.
        program: PathBuf,
    },
    /// The program was started through a loader, or under an emulator, and its file is gone.
    #[error(
        "the program {} was started by {} and its file was deleted or replaced: restore it, or start \
         the program without the other",
        path.display(),
        loader.display()
    )]
    Deleted {
        /// Where the program's file was.
        path: PathBuf,
        /// What was executed in its place.
        loader: PathBuf,
    },
    /// The program that was named can't be read.
    #[error("the program {} that was named by `image` can't be read: {cause}", path.display())]
    Unreadable {
        /// Which program.
        path: PathBuf,
        /// What was said.
        cause: io::Error,
    },
    /// The program that was named is none that can be a forkserver: it does not use this version of
    /// this crate. It was not executed.
    #[error(
        "the program {} that was named by `image` does not use hatchery-spawn {}, so it can't be a \
         forkserver",
        path.display(),
        env!("CARGO_PKG_VERSION")
    )]
    Stranger {
        /// Which program.
        path: PathBuf,
    },
}

/// A preload that did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("preload `{preload}` {failure}")]
pub struct PreloadError {
    /// The name that it was given to [`preload!`](crate::preload!) with.
    pub preload: String,
    /// What it did instead.
    pub failure: PreloadFailure,
}

/// What a preload did instead of coming to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PreloadFailure {
    /// It panicked.
    #[error("panicked: {message}")]
    Panicked {
        /// The panic's message, at most 1,024 characters of it.
        message: String,
    },
    /// It left a thread running; a fork would lack that thread, and keep its locks for ever.
    #[error("left a thread running: {thread}")]
    LeftThread {
        /// The thread's name and number, and the file whose code it runs, as far as that is known.
        thread: String,
    },
    /// The program's preloads took longer than they may: raise [`Bounds::warm_up`](crate::Bounds::warm_up).
    #[error("was under way when the {bound:?} were over that all preloads have together")]
    TookTooLong {
        /// The bound.
        bound: Duration,
    },
    /// It ended the forkserver's process.
    #[error("ended the process that it ran in")]
    Ended,
}

/// The status of a child is lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// This process is a copy, made by a fork, of the child's owner, who alone is told.
    #[error("waiting for `{name}`: this process is a copy, made by fork, of its owner")]
    Copied {
        /// The child's name.
        name: String,
    },
    /// The forkserver died first; the kernel has killed the child, and nobody has its status.
    #[error("waiting for `{name}`: the forkserver is gone, and the child with it")]
    ServerGone {
        /// The child's name.
        name: String,
    },
    /// The child is dead, and whoever waited was told to do without its status: see
    /// [`ChildHandle::forgo_status`](crate::ChildHandle::forgo_status).
    #[error("waiting for `{name}`: it is dead, and the forkserver has not said how it ended")]
    Unreported {
        /// The child's name.
        name: String,
    },
}

/// A signal that was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignalError {
    /// This process is a copy, made by a fork, of the child's owner, who alone may.
    #[error("signalling `{name}`: this process is a copy, made by fork, of its owner")]
    Copied {
        /// The child's name.
        name: String,
    },
    /// A thread takes no signals.
    #[error("`{name}` is a thread and takes no signals")]
    Thread {
        /// The child's name.
        name: String,
    },
    /// The system refused.
    #[error("signalling `{name}`: {cause}")]
    System {
        /// The child's name.
        name: String,
        /// What it said.
        cause: io::Error,
    },
}
