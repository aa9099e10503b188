//! A program that runs, and that a thread waits for.

use std::io;
use std::process::ExitStatus;

use super::super::Output;
use super::super::block::{block_on, drive};
use super::super::child as asynchronous;
use super::pipes::{ChildStderr, ChildStdin, ChildStdout};
use crate::child::ChildHandle;
use crate::usage::Usage;

/// A running program, as `std::process::Child` has it. A drop ends it (SIGKILL, or its stop signal first),
/// unless [`Command::kill_on_drop`](super::Command::kill_on_drop) says no; nobody has to wait for it.
#[derive(Debug)]
pub struct Child {
    /// Its stdin, if that is piped and was not taken.
    pub stdin: Option<ChildStdin>,
    /// Its stdout, if that is piped and was not taken.
    pub stdout: Option<ChildStdout>,
    /// Its stderr, if that is piped and was not taken.
    pub stderr: Option<ChildStderr>,
    child: asynchronous::Child,
    pid: u32,
}

impl Child {
    /// Its process id. After its end was told the number may be another's.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// See [`process::Child::handle`](super::super::Child::handle).
    #[must_use]
    pub fn handle(&self) -> ChildHandle {
        self.child.handle()
    }

    /// See [`process::Child::usage`](super::super::Child::usage).
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        self.child.usage()
    }

    /// Sends SIGKILL, and does not wait. One that has ended is no error, as std has it.
    ///
    /// # Errors
    /// What the system says.
    pub fn kill(&mut self) -> io::Result<()> {
        if self.try_wait().is_ok_and(|status| status.is_some()) {
            return Ok(());
        }
        self.child.start_kill()
    }

    /// Sends its stop signal, and after its grace SIGKILL; SIGKILL at once if it has none. Does not wait.
    /// One that has ended is no error.
    ///
    /// # Errors
    /// What the system says.
    pub fn stop(&mut self) -> io::Result<()> {
        if self.try_wait().is_ok_and(|status| status.is_some()) {
            return Ok(());
        }
        self.child.stop()
    }

    /// Closes its stdin, if that was not taken, and waits until it has ended, with all that it has left
    /// behind. Called again it gives the same status.
    ///
    /// # Errors
    /// As [`process::Child::wait`](super::super::Child::wait).
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        drop(self.stdin.take());
        block_on(self.child.wait())
    }

    /// Its status, if it has ended. Its stdin stays open.
    ///
    /// # Errors
    /// The status is lost.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Closes its stdin, waits for its end, and collects what it writes to those of its outputs that are
    /// piped and were not taken. Both are read at once.
    ///
    /// # Errors
    /// As [`wait`](Self::wait), or what a read says.
    pub fn wait_with_output(mut self) -> io::Result<Output> {
        drop(self.stdin.take());
        self.child.stdout = self.stdout.take().map(Into::into);
        self.child.stderr = self.stderr.take().map(Into::into);
        drive(self.child.wait_with_output())
    }
}

/// Fails as [`into_owned_fd`](super::super::ChildStdin::into_owned_fd) of its ends does, and then drops it.
impl TryFrom<asynchronous::Child> for Child {
    type Error = io::Error;

    fn try_from(mut child: asynchronous::Child) -> io::Result<Self> {
        let stdin = child.stdin.take().map(TryInto::try_into).transpose()?;
        let stdout = child.stdout.take().map(TryInto::try_into).transpose()?;
        let stderr = child.stderr.take().map(TryInto::try_into).transpose()?;
        let pid = child.pid();
        Ok(Self { stdin, stdout, stderr, child, pid })
    }
}
