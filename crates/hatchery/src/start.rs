//! Options of one actor, and their defaults.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hatchery_proto::{ActorPath, DefaultBackend, DefaultStdio, Hello};
use hatchery_spawn::{Confinement, Relay, Resource, Spec};

use crate::actor;
use crate::current::Actor;

/// How an actor is brought to life. Semantics are the same on all (C14); only threads can't be
/// killed (C5).
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Backend {
    /// A process forked from the tree's forkserver: thread-like prices.
    #[default]
    Forkserver,
    /// A process with a fresh image, for programs that can't live with a fork.
    Exec,
    /// A dedicated thread of this process.
    Thread,
    /// Any other backend. Actors below it use the runtime's default.
    Custom(Arc<dyn hatchery_spawn::Backend>),
}

impl Backend {
    /// `forkserver`, `exec`, `thread`, or what a custom one calls itself.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Forkserver => "forkserver",
            Self::Exec => "exec",
            Self::Thread => "thread",
            Self::Custom(backend) => backend.name(),
        }
    }

    /// The backend of that name, if it is one of ours.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "forkserver" => Some(Self::Forkserver),
            "exec" => Some(Self::Exec),
            "thread" => Some(Self::Thread),
            _ => None,
        }
    }
}

/// Where an actor with a process of its own writes. Threads write where their process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Stdio {
    /// Whole lines to the spawner's own, with the actor's path before them; never blocks the tree,
    /// and errors quote the last lines of stderr (C8).
    #[default]
    Relay,
    /// Nowhere.
    Null,
    /// The spawner's own fd. If that is a pipe that nobody drains, the actor blocks on it.
    Inherit,
    /// A pipe whose other end the spawner takes with [`Portal::take_stdout`] or
    /// [`Portal::take_stderr`]. For processes that are started, not run: a thread has no output of
    /// its own, and a one-shot actor no portal.
    ///
    /// The kernel keeps what is not yet read, 64 KiB as a rule; then the actor's write waits for the
    /// reader. That holds up this one actor, and its teardown by force ends it inside the budget
    /// (C2, C8). Once the reading end is closed, the actor's writes fail with `EPIPE`, and its
    /// `println!` panics. Errors quote no lines: the reader has them.
    ///
    /// [`Portal::take_stdout`]: crate::Portal::take_stdout
    /// [`Portal::take_stderr`]: crate::Portal::take_stderr
    Piped,
}

impl Stdio {
    fn told(self) -> DefaultStdio {
        match self {
            Self::Relay => DefaultStdio::Relay,
            Self::Null => DefaultStdio::Null,
            Self::Inherit => DefaultStdio::Inherit,
            Self::Piped => DefaultStdio::Piped,
        }
    }

    /// As the backend has it; our end of a pipe goes to `ours`.
    fn of(
        self,
        path: &ActorPath,
        keep: usize,
        ours: &mut Option<OwnedFd>,
    ) -> io::Result<hatchery_spawn::Stdio> {
        Ok(match self {
            Self::Relay => hatchery_spawn::Stdio::Relay(Relay::new(path.as_str()).keep(keep)),
            Self::Null => hatchery_spawn::Stdio::Null,
            Self::Inherit => hatchery_spawn::Stdio::Inherit,
            Self::Piped => {
                // Made here and not by the backend: an actor may answer before its child is known.
                let (read, write) = io::pipe()?;
                *ours = Some(read.into());
                hatchery_spawn::Stdio::Fd(write.into())
            }
        })
    }
}

/// What holds for actors that don't say otherwise. Travels down the tree.
#[derive(Debug, Clone, Default)]
pub(crate) struct Defaults {
    pub(crate) backend: Backend,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
}

impl Defaults {
    /// As told in the handshake.
    pub(crate) fn of(hello: &Hello) -> Self {
        let stdio = match hello.stdio {
            DefaultStdio::Relay => Stdio::Relay,
            DefaultStdio::Null => Stdio::Null,
            DefaultStdio::Inherit => Stdio::Inherit,
            DefaultStdio::Piped => Stdio::Piped,
        };
        let backend = match hello.backend {
            DefaultBackend::Forkserver => Backend::Forkserver,
            DefaultBackend::Exec => Backend::Exec,
            DefaultBackend::Thread => Backend::Thread,
        };
        Self { backend, stdout: stdio, stderr: stdio }
    }

    /// To be told in the handshake.
    pub(crate) fn told(&self) -> (DefaultBackend, DefaultStdio) {
        let backend = match self.backend {
            Backend::Forkserver => DefaultBackend::Forkserver,
            Backend::Exec => DefaultBackend::Exec,
            Backend::Thread => DefaultBackend::Thread,
            // It is a value of this process: those below have the default one.
            Backend::Custom(_) => return (DefaultBackend::Forkserver, self.stderr.told()),
        };
        (backend, self.stderr.told())
    }
}

/// What one actor shall be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) name: String,
    pub(crate) backend: Option<Backend>,
    pub(crate) stdout: Option<Stdio>,
    pub(crate) stderr: Option<Stdio>,
    pub(crate) limits: Vec<(Resource, u64, u64)>,
    pub(crate) confine: Confinement,
    pub(crate) stack_size: Option<usize>,
    pub(crate) env: Vec<(OsString, Option<OsString>)>,
    pub(crate) env_clear: bool,
    pub(crate) current_dir: Option<PathBuf>,
    pub(crate) umask: Option<u32>,
    pub(crate) nice: Option<i32>,
    pub(crate) busy_poll: Option<Duration>,
}

/// Our ends of an actor's piped outputs, until somebody takes them or the actor has settled.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

impl Options {
    fn outputs(&self, defaults: &Defaults) -> (Stdio, Stdio) {
        (self.stdout.unwrap_or(defaults.stdout), self.stderr.unwrap_or(defaults.stderr))
    }

    /// Whether an output goes through a pipe that somebody must take.
    pub(crate) fn is_piped(&self, defaults: &Defaults) -> bool {
        let (stdout, stderr) = self.outputs(defaults);
        stdout == Stdio::Piped || stderr == Stdio::Piped
    }

    /// What the backend is asked for, and what stays here of it.
    pub(crate) fn spec(
        &self,
        actor: &Actor,
        path: &ActorPath,
        channel: OwnedFd,
    ) -> io::Result<(Spec, Pipes)> {
        let runtime = &actor.runtime;
        let keep = runtime.config.stderr_tail_lines;
        let (stdout, stderr) = self.outputs(&runtime.defaults);
        let mut pipes = Pipes::default();
        let mut spec = Spec::main(actor::MAIN)
            .name(path.name())
            .path(path.as_str())
            .payload(runtime.token())
            .stdout(stdout.of(path, keep, &mut pipes.stdout)?)
            .stderr(stderr.of(path, keep, &mut pipes.stderr)?)
            .channel(channel)
            .answers(true)
            .confine(self.confine.clone());
        for (resource, soft, hard) in &self.limits {
            spec = spec.limit(*resource, *soft, *hard);
        }
        let spec = match self.stack_size {
            Some(bytes) => spec.stack_size(bytes),
            None => spec,
        };
        Ok((self.with_state(spec), pipes))
    }

    /// What it shall not have from its spawner.
    fn with_state(&self, mut spec: Spec) -> Spec {
        if self.env_clear {
            spec = spec.env_clear();
        }
        for (key, value) in &self.env {
            spec = match value {
                Some(value) => spec.env(key, value),
                None => spec.env_remove(key),
            };
        }
        if let Some(path) = &self.current_dir {
            spec = spec.current_dir(path);
        }
        if let Some(umask) = self.umask {
            spec = spec.umask(umask);
        }
        if let Some(nice) = self.nice {
            spec = spec.nice(nice);
        }
        spec
    }
}
