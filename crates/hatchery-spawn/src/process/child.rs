//! A program that runs.

use std::io;
use std::process::ExitStatus;

use super::output::{Bounds, Collected, Output, Parts, collect};
use super::pipes::{ChildStderr, ChildStdin, ChildStdout};
use super::pty::{Pty, unread};
use crate::child::{Child as Owned, ChildHandle, ChildId};
use crate::command::output::to_its_end;
use crate::error::SignalError;
use crate::usage::Usage;

/// A running program, as `tokio::process::Child` has it. A drop ends it (SIGKILL, or its stop signal first),
/// unless [`Command::kill_on_drop`](super::Command::kill_on_drop) says no; nobody has to wait for it.
#[derive(Debug)]
pub struct Child {
    /// Its stdin, if that is piped and was not taken.
    pub stdin: Option<ChildStdin>,
    /// Its stdout, if that is piped and was not taken.
    pub stdout: Option<ChildStdout>,
    /// Its stderr, if that is piped and was not taken.
    pub stderr: Option<ChildStderr>,
    /// Our side of its terminal, if it has one of its own and that was not taken. See
    /// [`Command::pty`](super::Command::pty).
    pub pty: Option<Pty>,
    owned: Owned,
    name: String,
    /// Its status was told.
    told: Option<ExitStatus>,
    bounds: Bounds,
}

impl Child {
    pub(super) fn new(mut owned: Owned, name: String, kill: bool, bounds: Bounds) -> Self {
        owned.goes_on = !kill;
        let stdin = owned.take_stdin().map(ChildStdin::new);
        let (stdout, stderr) = (owned.take_stdout(), owned.take_stderr());
        let (stdout, stderr) = (stdout.map(ChildStdout::new), stderr.map(ChildStderr::new));
        Self { stdin, stdout, stderr, pty: None, owned, name, told: None, bounds }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn owned(&self) -> &Owned {
        &self.owned
    }

    pub(super) fn bounds(&self) -> Bounds {
        self.bounds
    }

    pub(super) fn pid(&self) -> u32 {
        match self.owned.id() {
            ChildId::Process(pid) => pid,
            ChildId::Thread(_) => 0,
        }
    }

    /// Its process id; `None` when its status was told, for then the number may be another's.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        match self.owned.id() {
            ChildId::Process(pid) if self.told.is_none() => Some(pid),
            ChildId::Process(_) | ChildId::Thread(_) => None,
        }
    }

    /// The child without the right to its life, to be cloned: waits for its end, sends it any signal.
    #[must_use]
    pub fn handle(&self) -> ChildHandle {
        self.owned.handle()
    }

    /// What it has used, when it has ended: processor time and peak memory, with those of its own children
    /// that it has waited for.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        self.owned.handle().usage()
    }

    /// Sends SIGKILL, and does not wait. What the program has started in its group, or what carries its mark,
    /// ends with it.
    ///
    /// # Errors
    /// `InvalidInput` if its status was told. What the system says.
    pub fn start_kill(&mut self) -> io::Result<()> {
        self.check_runs()?;
        self.owned.kill().map_err(refused)
    }

    /// Sends its stop signal, and after its grace SIGKILL; SIGKILL at once if it has none. Does not wait.
    ///
    /// # Errors
    /// As [`start_kill`](Self::start_kill).
    pub fn stop(&mut self) -> io::Result<()> {
        self.check_runs()?;
        self.owned.handle().stop().map_err(refused)
    }

    fn check_runs(&self) -> io::Result<()> {
        match self.told {
            None => Ok(()),
            Some(status) => {
                let what = format!("`{}` can't be killed: it has ended ({status})", self.name);
                Err(io::Error::new(io::ErrorKind::InvalidInput, what))
            }
        }
    }

    /// Sends SIGKILL and waits for its end.
    ///
    /// # Errors
    /// As [`start_kill`](Self::start_kill) and [`wait`](Self::wait).
    pub async fn kill(&mut self) -> io::Result<()> {
        self.start_kill()?;
        self.wait().await.map(drop)
    }

    /// Closes its stdin, if that was not taken, and waits until it has ended, with all that it has left
    /// behind. Called again it gives the same status.
    ///
    /// # Errors
    /// The status is lost: the forkserver was killed, and the program with it. Or the program stands still
    /// and nobody would let it go on: it wants a terminal that it has not.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        drop(self.stdin.take());
        if let Some(status) = self.told {
            return Ok(status);
        }
        let status = to_its_end(&self.owned).await?.into();
        self.told = Some(status);
        Ok(status)
    }

    /// Its status, if it has ended. Its stdin stays open.
    ///
    /// # Errors
    /// The status is lost.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.told.is_none() {
            let exit = self.owned.try_wait().map_err(io::Error::other)?;
            self.told = exit.map(Into::into);
        }
        Ok(self.told)
    }

    /// Closes its stdin, waits for its end, and collects what it writes to those of its outputs that are
    /// piped and were not taken. What it writes to a terminal of its own that was not taken is thrown away.
    ///
    /// # Errors
    /// As [`wait`](Self::wait), or what a read says.
    ///
    /// # Cancel safety
    /// Dropping the future drops the child.
    pub async fn wait_with_output(mut self) -> io::Result<Output> {
        drop(self.stdin.take());
        let outputs = (self.stdout.take(), self.stderr.take());
        let pty = self.pty.take();
        let collected =
            unread(pty, collect(Parts(vec![&self.owned]), outputs, self.bounds)).await?;
        let Collected { mut statuses, stdout, stderr, ended } = collected;
        let status = statuses.pop().unwrap_or_default();
        Ok(Output { status, stdout, stderr, ended, usage: self.usage() })
    }
}

pub(super) fn refused(error: SignalError) -> io::Error {
    match error {
        SignalError::System { cause, .. } => cause,
        other @ (SignalError::Thread { .. } | SignalError::Copied { .. }) => {
            io::Error::other(other)
        }
    }
}
