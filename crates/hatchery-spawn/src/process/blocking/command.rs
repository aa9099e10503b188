//! What is to be started, and waited for by a thread.

use std::borrow::Borrow;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use super::super::block::{block_on, drive};
use super::super::command as asynchronous;
use super::super::pipeline as asynchronous_pipeline;
use super::child::Child;
use crate::confine::Confinement;
use crate::spec::Resource;
use crate::stdio::Stdio;
use asynchronous::{End, Overflow};
use asynchronous_pipeline::PipelineOutput;

/// A program to start, as `std::process::Command` has it: the same names, `&mut self`, any number of starts.
/// Each method is that of [`process::Command`](super::super::Command), without `await`.
#[derive(Debug, Clone)]
pub struct Command(asynchronous::Command);

macro_rules! as_there {
    ($($name:ident($($arg:ident: $kind:ty),*);)*) => {
        impl Command {
            $(
                #[doc = concat!(
                    "See [`process::Command::", stringify!($name),
                    "`](super::super::Command::", stringify!($name), ")."
                )]
                pub fn $name(&mut self, $($arg: $kind),*) -> &mut Self {
                    self.0.$name($($arg),*);
                    self
                }
            )*
        }
    };
}

as_there! {
    arg(arg: impl AsRef<OsStr>);
    args(args: impl IntoIterator<Item = impl AsRef<OsStr>>);
    arg0(arg: impl AsRef<OsStr>);
    env(key: impl AsRef<OsStr>, value: impl AsRef<OsStr>);
    envs(vars: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>);
    env_remove(key: impl AsRef<OsStr>);
    env_clear();
    current_dir(path: impl AsRef<Path>);
    stdin(stdio: impl Into<Stdio>);
    stdout(stdio: impl Into<Stdio>);
    stderr(stdio: impl Into<Stdio>);
    fd(number: RawFd, fd: impl Into<OwnedFd>);
    uid(id: u32);
    gid(id: u32);
    groups(groups: &[u32]);
    process_group(pgroup: i32);
    setsid(yes: bool);
    umask(umask: u32);
    nice(nice: i32);
    limit(resource: Resource, soft: u64, hard: u64);
    confine(confinement: Confinement);
    kill_on_drop(yes: bool);
    stop_signal(signal: i32);
    grace(most: Duration);
    drain(most: Duration);
    keep_strays();
    detach();
    foreground();
    timeout(most: Duration);
    max_output(bytes: usize, then: Overflow);
}

impl Command {
    /// See [`process::Command::new`](super::super::Command::new).
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self(asynchronous::Command::new(program))
    }

    /// The program.
    #[must_use]
    pub fn get_program(&self) -> &OsStr {
        self.0.get_program()
    }

    /// Its arguments, without the program.
    pub fn get_args(&self) -> impl ExactSizeIterator<Item = &OsStr> {
        self.0.get_args()
    }

    /// The variables that are set, and with `None` those that are removed.
    pub fn get_envs(&self) -> impl ExactSizeIterator<Item = (&OsStr, Option<&OsStr>)> {
        self.0.get_envs()
    }

    /// Where it starts, if that was said.
    #[must_use]
    pub fn get_current_dir(&self) -> Option<&Path> {
        self.0.get_current_dir()
    }

    /// Starts it. Stdio that was not said is this process's.
    ///
    /// # Errors
    /// As [`process::Command::spawn`](super::super::Command::spawn).
    pub fn spawn(&mut self) -> io::Result<Child> {
        self.0.spawn()?.try_into()
    }

    /// Starts it and waits for its end. What is piped of its stdio is closed.
    ///
    /// # Errors
    /// As [`process::Command::status`](super::super::Command::status).
    pub fn status(&mut self) -> io::Result<ExitStatus> {
        let (is_bounded, status) = (self.0.has_timeout(), self.0.status());
        if is_bounded { drive(status) } else { block_on(status) }
    }

    /// Starts it, waits for its end, and collects what it writes: of stdio that was not said, stdin is
    /// `/dev/null`, stdout and stderr are pipes, as std has it.
    ///
    /// # Errors
    /// As [`process::Command::output`](super::super::Command::output).
    pub fn output(&mut self) -> io::Result<super::Output> {
        let child = self.0.start([End::Null, End::Piped, End::Piped])?;
        drive(child.wait_with_output())
    }
}

impl From<asynchronous::Command> for Command {
    fn from(command: asynchronous::Command) -> Self {
        Self(command)
    }
}

impl From<Command> for asynchronous::Command {
    fn from(command: Command) -> Self {
        command.0
    }
}

/// As far as std's command can be read; see
/// [`process::Command`](super::super::Command#impl-From<Command>-for-Command).
impl From<std::process::Command> for Command {
    fn from(std: std::process::Command) -> Self {
        Self(std.into())
    }
}

/// A pipeline that a thread waits for; see [`process::Pipeline`](super::super::Pipeline). Made by
/// [`Command::pipe`].
#[derive(Debug, Clone)]
pub struct Pipeline(asynchronous_pipeline::Pipeline);

impl Command {
    /// This program and one that reads what it writes; see
    /// [`process::Command::pipe`](super::super::Command::pipe).
    pub fn pipe(&self, next: impl Borrow<Self>) -> Pipeline {
        Pipeline(self.0.pipe(&next.borrow().0))
    }
}

impl Pipeline {
    /// One more program, which reads what the last one writes.
    #[must_use]
    pub fn pipe(self, next: impl Borrow<Command>) -> Self {
        Self(self.0.pipe(&next.borrow().0))
    }

    /// See [`process::Pipeline::timeout`](super::super::Pipeline::timeout).
    #[must_use]
    pub fn timeout(self, most: Duration) -> Self {
        Self(self.0.timeout(most))
    }

    /// See [`process::Pipeline::max_output`](super::super::Pipeline::max_output).
    #[must_use]
    pub fn max_output(self, bytes: usize, then: Overflow) -> Self {
        Self(self.0.max_output(bytes, then))
    }

    /// Starts all parts and waits for all of their ends.
    ///
    /// # Errors
    /// As [`process::Pipeline::status`](super::super::Pipeline::status).
    pub fn status(&self) -> io::Result<Vec<ExitStatus>> {
        drive(self.0.status())
    }

    /// Starts all parts, waits for all of their ends, and collects what they write. The stdin of the first is
    /// this process's, unless it says something else.
    ///
    /// # Errors
    /// As [`process::Pipeline::output`](super::super::Pipeline::output).
    pub fn output(&self) -> io::Result<PipelineOutput> {
        drive(self.0.output())
    }
}
