//! What is to be started, said once and started as often as wanted.

mod who;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use super::block::block_on;
use super::child::Child;
use super::output::{Bounds, Output};
use super::pty::{Pty, unread};
use crate::command::Command as Once;
use crate::confine::{Confinement, User};
use crate::spec::Resource;
use crate::stdio::{Relay, Stdio};
use crate::sys::pty;

/// A program to start, as `tokio::process::Command` has it: the same names, `&mut self`, any number of
/// starts. What differs is listed in the [module](super).
///
/// The rest of a child's state is this process's at the moment of the start: variables, directory, umask,
/// limits, priorities (C18).
#[derive(Debug, Clone)]
pub struct Command {
    program: OsString,
    args: Vec<OsString>,
    arg0: Option<OsString>,
    who: User,
    session: bool,
    group: Option<i32>,
    pty: Option<(u16, u16)>,
    env: BTreeMap<OsString, Option<OsString>>,
    env_clear: bool,
    current_dir: Option<PathBuf>,
    stdio: [Option<End>; 3],
    fds: Vec<(RawFd, Arc<OwnedFd>)>,
    umask: Option<u32>,
    nice: Option<i32>,
    limits: Vec<(Resource, u64, u64)>,
    confine: Confinement,
    stop_signal: Option<i32>,
    grace: Option<Duration>,
    drain: Option<Duration>,
    keep_strays: bool,
    detach: bool,
    foreground: bool,
    kill_on_drop: bool,
    bounds: Bounds,
}

/// What becomes of a program that writes more than [`Command::max_output`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// It goes on, and the rest of what it writes is read and thrown away.
    Truncate,
    /// It is ended, as by [`Command::timeout`].
    End,
}

/// A [`Stdio`] that can be given more than once.
#[derive(Debug, Clone)]
pub(super) enum End {
    Null,
    Inherit,
    Piped,
    Relay(Relay),
    Fd(Arc<OwnedFd>),
}

impl Command {
    /// Starts `program`, found by `PATH` if it has no slash. Its stdin, stdout and stderr are this
    /// process's, unless told otherwise.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            arg0: None,
            who: User::default(),
            session: false,
            group: None,
            pty: None,
            env: BTreeMap::new(),
            env_clear: false,
            current_dir: None,
            stdio: [None, None, None],
            fds: Vec::new(),
            umask: None,
            nice: None,
            limits: Vec::new(),
            confine: Confinement::default(),
            stop_signal: None,
            grace: None,
            drain: None,
            keep_strays: false,
            detach: false,
            foreground: false,
            kill_on_drop: true,
            bounds: Bounds::default(),
        }
    }

    /// One more argument.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    pub fn args(&mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable. All others are this process's at the moment of the start.
    pub fn env(&mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.env.insert(key.as_ref().to_owned(), Some(value.as_ref().to_owned()));
        self
    }

    /// Sets variables.
    pub fn envs(
        &mut self,
        vars: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    ) -> &mut Self {
        for (key, value) in vars {
            self.env(key, value);
        }
        self
    }

    /// Removes a variable.
    pub fn env_remove(&mut self, key: impl AsRef<OsStr>) -> &mut Self {
        if self.env_clear {
            self.env.remove(key.as_ref());
        } else {
            self.env.insert(key.as_ref().to_owned(), None);
        }
        self
    }

    /// Removes all variables, those set before included. What such a program leaves behind carries no mark
    /// of hatchery and is found only in its process group.
    pub fn env_clear(&mut self) -> &mut Self {
        self.env.clear();
        self.env_clear = true;
        self
    }

    /// Where it starts; a relative path is seen from this process's directory at the moment of the start.
    pub fn current_dir(&mut self, path: impl AsRef<Path>) -> &mut Self {
        self.current_dir = Some(path.as_ref().to_owned());
        self
    }

    /// What it reads.
    pub fn stdin(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.end(0, stdio.into())
    }

    /// Where its stdout goes.
    pub fn stdout(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.end(1, stdio.into())
    }

    /// Where its stderr goes.
    pub fn stderr(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.end(2, stdio.into())
    }

    fn end(&mut self, number: usize, stdio: Stdio) -> &mut Self {
        self.stdio[number] = Some(End::of(stdio));
        self
    }

    /// Puts an fd at that number in the program; 0, 1 and 2 are stdin, stdout and stderr. See
    /// [`hatchery_spawn::Command::fd`](crate::Command::fd). It stays open here as long as this command.
    pub fn fd(&mut self, number: RawFd, fd: impl Into<OwnedFd>) -> &mut Self {
        let fd = Stdio::Fd(fd.into());
        match number {
            0 => self.stdin(fd),
            1 => self.stdout(fd),
            2 => self.stderr(fd),
            _ => {
                if let End::Fd(fd) = End::of(fd) {
                    self.fds.retain(|(at, _)| *at != number);
                    self.fds.push((number, fd));
                }
                self
            }
        }
    }

    /// Its umask, 0 to 0o777. Default: this process's at the moment of the start.
    pub fn umask(&mut self, umask: u32) -> &mut Self {
        self.umask = Some(umask);
        self
    }

    /// Its nice value, -20 to 19. Default: that of the thread that starts it.
    pub fn nice(&mut self, nice: i32) -> &mut Self {
        self.nice = Some(nice);
        self
    }

    /// Limits a resource. Default: this process's limits at the moment of the start.
    pub fn limit(&mut self, resource: Resource, soft: u64, hard: u64) -> &mut Self {
        self.limits.push((resource, soft, hard));
        self
    }

    /// Bounds what it may do, and all that it starts. Default: nothing is bounded.
    pub fn confine(&mut self, confinement: Confinement) -> &mut Self {
        self.confine = confinement;
        self
    }

    /// Whether a dropped [`Child`] is ended. Default: yes. With `false` it runs on, without a zombie at its
    /// end, until this process or the actor that started it has ended (C3).
    pub fn kill_on_drop(&mut self, yes: bool) -> &mut Self {
        self.kill_on_drop = yes;
        self
    }

    /// The signal that asks it to end before SIGKILL does. See
    /// [`hatchery_spawn::Command::stop_signal`](crate::Command::stop_signal).
    pub fn stop_signal(&mut self, signal: i32) -> &mut Self {
        self.stop_signal = Some(signal);
        self
    }

    /// How long it may take to end after its stop signal. See
    /// [`hatchery_spawn::Command::grace`](crate::Command::grace).
    pub fn grace(&mut self, most: Duration) -> &mut Self {
        self.grace = Some(most);
        self
    }

    /// How long what it leaves in its process group may go on after its end. See
    /// [`hatchery_spawn::Command::drain`](crate::Command::drain).
    pub fn drain(&mut self, most: Duration) -> &mut Self {
        self.drain = Some(most);
        self
    }

    /// What it leaves behind is not ended with it. See
    /// [`hatchery_spawn::Command::keep_strays`](crate::Command::keep_strays).
    pub fn keep_strays(&mut self) -> &mut Self {
        self.keep_strays = true;
        self
    }

    /// Leaves it running on purpose, out of the tree. See
    /// [`hatchery_spawn::Command::detach`](crate::Command::detach).
    pub fn detach(&mut self) -> &mut Self {
        self.detach = true;
        self
    }

    /// Gives it the terminal while it runs. See
    /// [`hatchery_spawn::Command::foreground`](crate::Command::foreground).
    pub fn foreground(&mut self) -> &mut Self {
        self.foreground = true;
        self
    }

    /// How long [`status`](Self::status) and [`output`](Self::output) let it run. Then it is ended, by its
    /// stop signal and grace if it has one, and all that it has started with it: `status` fails with
    /// [`io::ErrorKind::TimedOut`], `output` gives what was read with [`Ended::TimedOut`].
    ///
    /// [`Ended::TimedOut`]: crate::Ended::TimedOut
    pub fn timeout(&mut self, most: Duration) -> &mut Self {
        self.bounds.timeout = Some(most);
        self
    }

    /// How many bytes [`output`](Self::output) keeps of stdout, and of stderr, and what becomes of a program
    /// that writes more. [`Output::ended`] says so. Default: all.
    pub fn max_output(&mut self, bytes: usize, then: Overflow) -> &mut Self {
        self.bounds.output = Some((bytes, then));
        self
    }

    /// The program.
    #[must_use]
    pub fn get_program(&self) -> &OsStr {
        &self.program
    }

    /// Its arguments, without the program.
    pub fn get_args(&self) -> impl ExactSizeIterator<Item = &OsStr> {
        self.args.iter().map(OsString::as_os_str)
    }

    /// The variables that are set, and with `None` those that are removed.
    pub fn get_envs(&self) -> impl ExactSizeIterator<Item = (&OsStr, Option<&OsStr>)> {
        self.env.iter().map(|(key, value)| (key.as_os_str(), value.as_deref()))
    }

    /// Where it starts, if that was said.
    #[must_use]
    pub fn get_current_dir(&self) -> Option<&Path> {
        self.current_dir.as_deref()
    }

    /// Whether a dropped [`Child`] is ended.
    #[must_use]
    pub fn get_kill_on_drop(&self) -> bool {
        self.kill_on_drop
    }

    /// Starts it, and returns when it is that program and no copy of ours any more. The thread is blocked
    /// meanwhile, as by tokio's: for well under a millisecond, at the first start of a process a few.
    ///
    /// # Errors
    /// With the kind and errno of what failed: `NotFound` if there is no such program, `WouldBlock` at a
    /// limit of processes; see [`SpawnError`](crate::SpawnError).
    pub fn spawn(&mut self) -> io::Result<Child> {
        self.start([End::Inherit, End::Inherit, End::Inherit])
    }

    /// Starts it at this call, and waits for its end. What is piped of its stdio is closed; what it writes to a
    /// [terminal of its own](Self::pty) is thrown away.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn) and [`Child::wait`]; `TimedOut` after its [`timeout`](Self::timeout).
    ///
    /// # Cancel safety
    /// Dropping the future ends the program, unless [`kill_on_drop`](Self::kill_on_drop) says no.
    pub fn status(&mut self) -> impl Future<Output = io::Result<ExitStatus>> + use<> {
        let (child, bounds) = (self.spawn(), self.bounds);
        async move {
            let mut child = child?;
            drop((child.stdin.take(), child.stdout.take(), child.stderr.take()));
            let pty = child.pty.take();
            unread(pty, async {
                let Some(most) = bounds.timeout else { return child.wait().await };
                if let Ok(status) = tokio::time::timeout(most, child.wait()).await {
                    return status;
                }
                child.stop()?;
                child.wait().await?;
                let what = format!("`{}` did not end within {most:?}", child.name());
                Err(io::Error::new(io::ErrorKind::TimedOut, what))
            })
            .await
        }
    }

    /// Starts it at this call, waits for its end, and collects what it writes: stdout and stderr are pipes,
    /// whatever was said before. Stdin is this process's, or closed if it is piped.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn) and [`Child::wait`]. A time-out and too much output are none: what was read
    /// is told with [`Output::ended`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the program, unless [`kill_on_drop`](Self::kill_on_drop) says no; what was
    /// read is lost.
    pub fn output(&mut self) -> impl Future<Output = io::Result<Output>> + use<> {
        self.stdout(Stdio::Piped).stderr(Stdio::Piped);
        let child = self.spawn();
        async move { child?.wait_with_output().await }
    }

    /// Whether it says itself in which group or session it is.
    pub(super) fn has_place(&self) -> bool {
        self.session || self.group.is_some() || self.pty.is_some() || self.detach || self.foreground
    }

    /// Whether its stderr is for whoever collects what it writes.
    pub(super) fn leaves_stderr(&self) -> bool {
        matches!(self.stdio[2], None | Some(End::Piped))
    }

    pub(super) fn has_timeout(&self) -> bool {
        self.bounds.timeout.is_some()
    }

    /// `unset`: where its stdio goes if nothing was said.
    pub(super) fn start(&mut self, unset: [End; 3]) -> io::Result<Child> {
        let name = Path::new(&self.program).file_name().unwrap_or(&self.program);
        let name = name.to_string_lossy().into_owned();
        let (mut unset, mut ours) = (unset, None);
        if let Some((rows, columns)) = self.pty {
            let (pty, theirs) = pty::open()?;
            pty::resize(&pty, rows, columns)?;
            let theirs = End::of(Stdio::Fd(theirs));
            unset = [theirs.clone(), theirs.clone(), theirs];
            ours = Some(Pty::new(pty));
        }
        let started = block_on(self.once(unset)?.spawn())?;
        let mut child = Child::new(started, name, self.kill_on_drop, self.bounds);
        child.pty = ours;
        Ok(child)
    }

    /// One start of it.
    fn once(&self, unset: [End; 3]) -> io::Result<Once> {
        let mut once = Once::new(&self.program).args(&self.args);
        if self.env_clear {
            once = once.env_clear();
        }
        for (key, value) in &self.env {
            once = match value {
                Some(value) => once.env(key, value),
                None => once.env_remove(key),
            };
        }
        for (number, fd) in &self.fds {
            once = once.fd(*number, fd.try_clone()?);
        }
        let mut ends = self.stdio.iter().zip(&unset).map(|(said, unset)| {
            let end = said.as_ref().unwrap_or(unset);
            end.stdio()
        });
        if let (Some(stdin), Some(stdout), Some(stderr)) = (ends.next(), ends.next(), ends.next()) {
            once = once.stdin(stdin?).stdout(stdout?).stderr(stderr?);
        }
        Ok(self.treated(once))
    }

    /// How it is treated, beside what it is.
    fn treated(&self, mut once: Once) -> Once {
        once.spec.current_dir.clone_from(&self.current_dir);
        (once.spec.umask, once.spec.nice) = (self.umask, self.nice);
        once.spec.limits.clone_from(&self.limits);
        once.spec.confine = self.confine.clone();
        // After a user that the confinement asks for, which may then lack the right to it.
        once.spec.confine.users.extend((self.who != User::default()).then(|| self.who.clone()));
        once.spec.arg0.clone_from(&self.arg0);
        once.spec.manner.session = self.session || self.pty.is_some();
        (once.spec.manner.terminal, once.spec.manner.group) = (self.pty.is_some(), self.group);
        if let Some(signal) = self.stop_signal {
            once = once.stop_signal(signal);
        }
        if let Some(grace) = self.grace {
            once = once.grace(grace);
        }
        if let Some(drain) = self.drain {
            once = once.drain(drain);
        }
        if self.keep_strays {
            once = once.keep_strays();
        }
        if self.detach {
            once = once.detach();
        }
        if self.foreground {
            once = once.foreground();
        }
        once
    }
}

impl End {
    pub(super) fn of(stdio: Stdio) -> Self {
        match stdio {
            Stdio::Null => Self::Null,
            Stdio::Inherit => Self::Inherit,
            Stdio::Piped => Self::Piped,
            Stdio::Relay(relay) => Self::Relay(relay),
            Stdio::Fd(fd) => Self::Fd(Arc::new(fd)),
        }
    }

    fn stdio(&self) -> io::Result<Stdio> {
        Ok(match self {
            Self::Null => Stdio::Null,
            Self::Inherit => Stdio::Inherit,
            Self::Piped => Stdio::Piped,
            Self::Relay(relay) => Stdio::Relay(relay.clone()),
            Self::Fd(fd) => Stdio::Fd(fd.try_clone()?),
        })
    }
}

/// What can be read of std's command: the program, its arguments, its variables, its directory. Its stdio,
/// ids, groups and code before exec can't, and are left out; so can't be `env_clear`, of which nothing is seen.
impl From<std::process::Command> for Command {
    fn from(std: std::process::Command) -> Self {
        let mut command = Self::new(std.get_program());
        command.args(std.get_args());
        for (key, value) in std.get_envs() {
            command.env.insert(key.to_owned(), value.map(OsStr::to_owned));
        }
        command.current_dir = std.get_current_dir().map(Path::to_owned);
        command
    }
}
