//! Any program, through the forkserver, with an API close to `tokio::process::Command`.

pub(crate) mod holders;
pub(crate) mod output;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::backend::Backend as _;
use crate::child::Child;
use crate::error::{SpawnError, WaitError};
use crate::exit::Exit;
use crate::forkserver::{Bounds, Forkserver};
use crate::spec::Spec;
use crate::stdio::Stdio;
use crate::sys::owner;
pub use output::{Ended, Holder, Output};

/// A program to start. Its process dies with this one, leaves no zombie, inherits no fd, and does
/// not die with the thread that started it.
///
/// Differences from `tokio::process::Command`: a dropped child is always killed, or
/// [asked to end](Self::stop_signal) first; so is what the program leaves behind, when it ends, unless
/// it is told to [keep](Self::keep_strays) that; builder methods
/// take and give the value; stdin is `/dev/null` unless told otherwise; there is one variable more,
/// unless all are cleared. As there, the rest is this process's at the moment of the start, with the
/// changes made here: variables, directory, umask, limits, priorities (C18).
#[derive(Debug)]
pub struct Command {
    pub(crate) spec: Spec,
    server: Option<Forkserver>,
    stdin_set: bool,
    stdout_set: bool,
    stderr_set: bool,
    drain: Option<Duration>,
}

/// A program that could not be run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// It could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Its status is lost.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// Its output could not be read.
    #[error("reading the output of a program: {0}")]
    Read(io::Error),
    /// It wanted a terminal that it doesn't have, and would have stood still for ever; it is killed.
    /// Give it another stdin, or the terminal.
    #[error(
        "running `{name}`: stopped by {}: it is not in the foreground of its terminal",
        signal_name(*signal)
    )]
    Stopped {
        /// The child's name.
        name: String,
        /// SIGTTIN: it would read. SIGTTOU: it would write or change its settings.
        signal: i32,
    },
}

fn signal_name(signal: i32) -> &'static str {
    nix::sys::signal::Signal::try_from(signal).map_or("a signal", |signal| signal.as_str())
}

impl Command {
    /// Starts `program`, found by `PATH` if it has no slash. Default stdio: stdin from
    /// `/dev/null`, stdout and stderr to ours.
    #[must_use]
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            spec: Spec::program(program),
            server: None,
            stdin_set: false,
            stdout_set: false,
            stderr_set: false,
            drain: None,
        }
    }

    /// Starts it through this forkserver. Default: one that all commands of this process share,
    /// which lives as long as the process.
    #[must_use]
    pub fn on(mut self, server: &Forkserver) -> Self {
        self.server = Some(server.clone());
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.spec = self.spec.arg(arg);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        for arg in args {
            self.spec = self.spec.arg(arg);
        }
        self
    }

    /// Sets a variable; see [`Spec::env`].
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.spec = self.spec.env(key, value);
        self
    }

    /// Sets variables.
    #[must_use]
    pub fn envs(
        mut self,
        vars: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    ) -> Self {
        for (key, value) in vars {
            self = self.env(key, value);
        }
        self
    }

    /// Removes a variable.
    #[must_use]
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.spec = self.spec.env_remove(key);
        self
    }

    /// Removes all variables, those set before included; see [`Spec::env_clear`].
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.spec = self.spec.env_clear();
        self
    }

    /// Where it starts; see [`Spec::current_dir`].
    #[must_use]
    pub fn current_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.spec = self.spec.current_dir(path);
        self
    }

    /// Its umask; see [`Spec::umask`].
    #[must_use]
    pub fn umask(mut self, umask: u32) -> Self {
        self.spec = self.spec.umask(umask);
        self
    }

    /// Its nice value; see [`Spec::nice`].
    #[must_use]
    pub fn nice(mut self, nice: i32) -> Self {
        self.spec = self.spec.nice(nice);
        self
    }

    /// What it reads.
    #[must_use]
    pub fn stdin(mut self, stdio: Stdio) -> Self {
        self.spec = self.spec.stdin(stdio);
        self.stdin_set = true;
        self
    }

    /// Where its stdout goes.
    #[must_use]
    pub fn stdout(mut self, stdio: Stdio) -> Self {
        self.spec = self.spec.stdout(stdio);
        self.stdout_set = true;
        self
    }

    /// Where its stderr goes.
    #[must_use]
    pub fn stderr(mut self, stdio: Stdio) -> Self {
        self.spec = self.spec.stderr(stdio);
        self.stderr_set = true;
        self
    }

    /// How long what it leaves in its process group may go on after its end, for example to write what
    /// is still in a pipe: `tee` in `exec > >(tee log)`. Then it gets SIGKILL. Default: not at all, and
    /// 0.5 s for [`output`](Self::output).
    ///
    /// The status is told when all of these have ended, at the latest after this time; if an output is
    /// piped and nobody reads it to its end, 3 s later.
    #[must_use]
    pub fn drain(mut self, most: Duration) -> Self {
        self.drain = Some(most);
        self
    }

    /// What it leaves behind is not ended with it: neither what stays in its process group nor what
    /// carries its mark. It goes on until whoever started the program has ended, an actor or this process;
    /// then it is killed. [`output`](Self::output) reads until all of these have closed its pipes, as
    /// tokio's does, unless [`drain`](Self::drain) says how long.
    #[must_use]
    pub fn keep_strays(mut self) -> Self {
        self.spec.manner.keep_strays = true;
        self
    }

    /// Puts an fd at that number in the program, and nothing at the numbers between. Ours keeps its number
    /// and its close-on-exec flag; the program's has none, so that it keeps it over its own exec.
    /// What is said last of a number counts; 0, 1 and 2 are stdin, stdout and stderr.
    ///
    /// For a jobserver, whose `MAKEFLAGS` name the numbers:
    ///
    /// ```no_run
    /// # fn example() -> std::io::Result<()> {
    /// # let (reader, writer) = std::io::pipe()?;
    /// let make = hatchery_spawn::Command::new("make")
    ///     .env("MAKEFLAGS", "-j --jobserver-auth=8,9")
    ///     .fd(8, reader)
    ///     .fd(9, writer);
    /// # Ok(()) }
    /// ```
    ///
    /// [`spawn`](Self::spawn) fails with `EBADF` if the number is negative or above this process's hard
    /// limit of open files.
    #[must_use]
    pub fn fd(mut self, number: RawFd, fd: impl Into<OwnedFd>) -> Self {
        let fd = fd.into();
        match number {
            0 => self.stdin(Stdio::Fd(fd)),
            1 => self.stdout(Stdio::Fd(fd)),
            2 => self.stderr(Stdio::Fd(fd)),
            _ => {
                self.spec.placed.retain(|(at, _)| *at != number);
                self.spec.placed.push((number, fd));
                self
            }
        }
    }

    /// Leaves it running on purpose: a drop of its [`Child`], the end of the actor that started it, of
    /// this process and of the forkserver are none of its own. It has a session of its own, so no
    /// terminal, and not the variable by which hatchery finds what belongs to a tree. What it starts is
    /// left alone too, if that stays in its session or keeps the variable `HATCHERY_DETACHED`, which it has
    /// unless its environment is [cleared](Self::env_clear).
    ///
    /// What is given up: nobody ends it, not `hatchery reap` either, and what it leaves behind is not
    /// ended with it; its status is known only as long as its forkserver lives, afterwards init reaps
    /// it. A pipe of its stdio breaks when this process ends: give it files, or null.
    /// [`stop_signal`](Self::stop_signal), [`drain`](Self::drain) and
    /// [`keep_strays`](Self::keep_strays) mean nothing to it; [`ChildHandle::kill`] ends it.
    ///
    /// [`spawn`](Self::spawn) fails with `EINVAL` together with [`foreground`](Self::foreground), and with
    /// `EPERM` in an actor that is confined: it would leave its bounds.
    ///
    /// [`ChildHandle::kill`]: crate::ChildHandle::kill
    #[must_use]
    pub fn detach(mut self) -> Self {
        self.spec.manner.detach = true;
        self
    }

    /// Gives it the terminal of this process's session while it runs, as a shell does with a job: it
    /// may read and set it, and Ctrl-C and Ctrl-Z that are typed reach it and not this process. Its stdin
    /// is ours, unless [`stdin`](Self::stdin) says something else.
    ///
    /// The forkserver takes the terminal back when the program has ended or stopped, however that came;
    /// after a stop or a death by signal it is set as it was before. SIGCONT by
    /// [`ChildHandle::signal`] gives it to the program again. If the forkserver was killed, this
    /// process takes the terminal back.
    ///
    /// Without this a program that reads from the terminal (`head -c 3`), or sets it (`stty -echo`),
    /// is stopped by SIGTTIN or SIGTTOU, for it is not in the foreground: see
    /// [`Child::wait_halted`](crate::Child::wait_halted) and [`CommandError::Stopped`].
    ///
    /// [`spawn`](Self::spawn) fails with `ENXIO` if there is no terminal, with `EBUSY` if it is not this
    /// process's at that moment (a job in the background, or another program has it), with `ENOTTY` if
    /// this process has left the session that its forkserver was started in.
    ///
    /// [`ChildHandle::signal`]: crate::ChildHandle::signal
    #[must_use]
    pub fn foreground(mut self) -> Self {
        self.spec.manner.foreground = true;
        self
    }

    /// Asks it to end, before it is killed: by this signal to its process group, which is followed by
    /// SIGCONT, and after its [`grace`](Self::grace) by SIGKILL. Default: SIGKILL at once; SIGTERM if
    /// only a grace was asked for.
    ///
    /// The forkserver sees to it, also if this process was killed: when the [`Child`] is dropped, when
    /// the actor that started it has ended, when the forkserver is closed, and when this process has
    /// ended in whatever way. A SIGKILL of the forkserver itself leaves no time to anybody.
    ///
    /// [`spawn`](Self::spawn) fails with `EINVAL` if there is no such signal.
    #[must_use]
    pub fn stop_signal(mut self, signal: i32) -> Self {
        let (_, grace) = self.spec.manner.stop.unwrap_or((0, nanoseconds(GRACE)));
        // There is none of number 0: it is refused.
        self.spec.manner.stop = Some((u8::try_from(signal).unwrap_or(0), grace));
        self
    }

    /// How long it may take to end after its [`stop_signal`](Self::stop_signal). Default: 3 s, if there is
    /// one.
    ///
    /// It is never longer than a bound that is there for everybody: after the end of its actor or of this
    /// process [`Bounds::orphan_grace`], 0.5 s by default (C3), and in a close of the forkserver
    /// [`Bounds::close`] too. Who needs longer then raises these.
    #[must_use]
    pub fn grace(mut self, most: Duration) -> Self {
        let (signal, _) = self.spec.manner.stop.unwrap_or((SIGTERM, 0));
        self.spec.manner.stop = Some((signal, nanoseconds(most)));
        self
    }

    /// Starts it, and waits until it is that program and no copy of ours any more.
    ///
    /// # Errors
    /// [`SpawnError::Step`] with `NotFound` if there is no such program, or whatever else failed.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the request; a child that appears all the same is killed.
    pub async fn spawn(self) -> Result<Child, SpawnError> {
        let server = self.server.clone().map_or_else(server, Ok)?;
        let default = (!self.spec.manner.keep_strays).then_some(output::DRAIN);
        let (drain, pid) = (self.drain.or(default), server.pid());
        let mut child = server.exec().spawn(self.into_spec()).await?;
        child.drain = drain;
        child.server = pid;
        Ok(child)
    }

    fn into_spec(mut self) -> Spec {
        let mut spec = self.spec;
        if spec.manner.foreground && !self.stdin_set {
            spec = spec.stdin(Stdio::Inherit);
        }
        if spec.manner.keep_strays || spec.manner.detach {
            // They have all the time that there is.
            self.drain = None;
        }
        spec.manner.linger = self.drain.map_or(0, nanoseconds);
        if spec.manner.linger > 0 && spec.has_piped_output() {
            // Whoever reads gives the word; this is for one that stands still.
            spec.manner.linger = spec.manner.linger.saturating_add(nanoseconds(output::SLACK));
        }
        spec
    }

    /// Runs it to its end, and closes what of its stdio is piped: what it would read is at its end, what
    /// it writes goes nowhere. What it has started and what could not be ended is told by
    /// [`output`](Self::output), and by [`ChildHandle::left_behind`](crate::ChildHandle::left_behind).
    ///
    /// # Errors
    /// [`CommandError`].
    ///
    /// # Cancel safety
    /// Dropping the future kills it.
    pub async fn status(self) -> Result<Exit, CommandError> {
        let mut child = self.spawn().await?;
        drop((child.take_stdout(), child.take_stderr()));
        output::to_its_end(&child).await
    }

    /// Runs it to its end and collects what it writes. A piped stdin is closed.
    ///
    /// Its end is that of the program itself. What it has left behind and holds its pipes may write for
    /// [`drain`](Self::drain) more, 0.5 s by default; then it is ended as everything that is left, and
    /// [`Output::ended`] says that there may have been more, and who held the pipes. So `(sleep 1; echo
    /// late) & echo hi` gives `hi` after 0.5 s, where tokio's would give both after 1 s, and would
    /// wait for ever for a daemon that keeps its stdout.
    ///
    /// # Errors
    /// [`CommandError`].
    ///
    /// # Cancel safety
    /// Dropping the future kills it; what was read is lost.
    pub async fn output(mut self) -> Result<Output, CommandError> {
        if !self.stdout_set {
            self = self.stdout(Stdio::Piped);
        }
        if !self.stderr_set {
            self = self.stderr(Stdio::Piped);
        }
        if !self.spec.manner.keep_strays {
            self.drain.get_or_insert(output::DRAIN);
        }
        self.spawn().await?.wait_with_output().await
    }
}

/// What a program has from its stop signal to SIGKILL, if nothing else is asked for: as much as a tree's
/// whole teardown.
const GRACE: Duration = Duration::from_secs(3);
const SIGTERM: u8 = 15;

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// The forkserver of all commands of this process; a new one if it was lost.
fn server() -> Result<Forkserver, SpawnError> {
    static SERVER: Mutex<Option<Forkserver>> = Mutex::new(None);
    // Before the lock, which may be held by a thread that a copy has not.
    if !owner::claim() {
        return Err(SpawnError::Copied { name: "forkserver".to_owned() });
    }
    if let Some(inherited) = Forkserver::inherited()? {
        return Ok(inherited);
    }
    let mut server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = server.as_ref().filter(|server| !server.is_lost()) {
        return Ok(server.clone());
    }
    let started = Forkserver::start(Bounds::default())?;
    *server = Some(started.clone());
    Ok(started)
}

/// So that `?` works where `tokio::process::Command` was used before.
///
/// What the system said stays as it was, with its kind and its errno, and with the words that std and tokio
/// have for it: the child's name is lost. Anything else is kept whole inside.
impl From<SpawnError> for io::Error {
    fn from(error: SpawnError) -> Self {
        if let Some(errno) = error.io_error().and_then(Self::raw_os_error) {
            return Self::from_raw_os_error(errno);
        }
        let is_right = matches!(error, SpawnError::Rights { .. });
        let other = if is_right { io::ErrorKind::PermissionDenied } else { io::ErrorKind::Other };
        let kind = error.io_error().map_or(other, Self::kind);
        Self::new(kind, error)
    }
}

/// So that `?` works where `tokio::process::Command` was used before.
impl From<CommandError> for io::Error {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Spawn(error) => error.into(),
            CommandError::Wait(error) => Self::other(error),
            CommandError::Read(error) => error,
            stopped @ CommandError::Stopped { .. } => Self::other(stopped),
        }
    }
}
