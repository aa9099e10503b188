//! Programs one after the other, each reading what the one before it writes.

use std::borrow::Borrow;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::time::Duration;

use nix::libc;

use super::child::Child;
use super::command::{Command, End, Overflow};
use super::output::{Collected, Parts, collect};
use super::pipes::{ChildStderr, ChildStdin, ChildStdout};
use crate::command::Ended;
use crate::stdio::Stdio;

/// Programs of which each reads what the one before it writes, as `a | b | c` in a shell, and all in one
/// process group. Made by [`Command::pipe`].
///
/// A part's own stdio counts where nothing is piped: the stdin of the first, the stdout of the last, the
/// stderr of each.
#[derive(Debug, Clone)]
pub struct Pipeline {
    parts: Vec<Command>,
}

/// A pipeline that runs. A drop ends all parts, as that of a [`Child`].
#[derive(Debug)]
pub struct Running {
    /// The stdin of the first, if that is piped and was not taken.
    pub stdin: Option<ChildStdin>,
    /// The stdout of the last, if that is piped and was not taken.
    pub stdout: Option<ChildStdout>,
    /// The parts in their order.
    pub parts: Vec<Child>,
    /// What all wrote to stderr, if that is collected.
    stderr: Option<ChildStderr>,
}

/// What a pipeline wrote and how each part ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PipelineOutput {
    /// How each part ended, in their order.
    pub statuses: Vec<ExitStatus>,
    /// The stdout of the last, as far as [`ended`](Self::ended) says.
    pub stdout: Vec<u8>,
    /// The stderr of all parts of which nothing but a pipe was said, in the order of arrival.
    pub stderr: Vec<u8>,
    /// Whether that is all.
    pub ended: Ended,
}

impl PipelineOutput {
    /// Whether every part did, not only the last. One that had more to write than the next one would read
    /// ends by SIGPIPE, which is no success: `yes | head -1`.
    #[must_use]
    pub fn success(&self) -> bool {
        self.statuses.iter().all(ExitStatus::success)
    }
}

impl Command {
    /// This program and one that reads what it writes.
    ///
    /// ```no_run
    /// # async fn example() -> std::io::Result<()> {
    /// use hatchery_spawn::process::Command;
    ///
    /// let count = Command::new("ls").arg("/etc").pipe(Command::new("wc").arg("-l")).output().await?;
    /// assert!(count.success());
    /// # Ok(()) }
    /// ```
    pub fn pipe(&self, next: impl Borrow<Self>) -> Pipeline {
        Pipeline { parts: vec![self.clone(), next.borrow().clone()] }
    }
}

impl Pipeline {
    /// One more program, which reads what the last one writes.
    #[must_use]
    pub fn pipe(mut self, next: impl Borrow<Command>) -> Self {
        self.parts.push(next.borrow().clone());
        self
    }

    /// See [`Command::timeout`]: it ends all parts. Default: that of the last part.
    #[must_use]
    pub fn timeout(mut self, most: Duration) -> Self {
        self.parts.last_mut().map(|last| last.timeout(most));
        self
    }

    /// See [`Command::max_output`]: [`Overflow::End`] ends all parts. Default: that of the last part.
    #[must_use]
    pub fn max_output(mut self, bytes: usize, then: Overflow) -> Self {
        self.parts.last_mut().map(|last| last.max_output(bytes, then));
        self
    }

    /// Starts all parts, the first one first.
    ///
    /// They are in one process group, that of the first part. What ends before the next one starts is in none
    /// any more: then that one leads the group.
    ///
    /// # Errors
    /// As [`Command::spawn`], of the first part that could not be started; those before it are ended.
    /// `InvalidInput` if a part says itself in which group or session it is, or shall have the terminal.
    pub fn spawn(&self) -> io::Result<Running> {
        self.start(&[End::Inherit, End::Inherit, End::Inherit], None)
    }

    /// Starts all parts at this call, and waits for all of their ends. What is piped of their stdio is closed.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn) and [`Child::wait`]; `TimedOut` after its [`timeout`](Self::timeout).
    ///
    /// # Cancel safety
    /// Dropping the future ends all parts.
    pub fn status(&self) -> impl Future<Output = io::Result<Vec<ExitStatus>>> + use<> {
        let running = self.spawn();
        async move {
            let mut running = running?;
            drop(running.stdout.take());
            running.close_errors();
            let bounds = running.parts.last().map(Child::bounds).unwrap_or_default();
            let Some(most) = bounds.timeout else { return running.wait().await };
            if let Ok(statuses) = tokio::time::timeout(most, running.wait()).await {
                return statuses;
            }
            let parts = running.as_parts();
            parts.stop()?;
            parts.statuses().await?;
            let what = format!("a pipeline did not end within {most:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, what))
        }
    }

    /// Starts all parts at this call, waits for all of their ends, and collects what the last one writes to
    /// stdout, and what all write to stderr, but for those whose stderr was said to go elsewhere.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn) and [`Child::wait`]. A time-out and too much output are none.
    ///
    /// # Cancel safety
    /// Dropping the future ends all parts; what was read is lost.
    pub fn output(&self) -> impl Future<Output = io::Result<PipelineOutput>> + use<> {
        let running = io::pipe().and_then(|(reader, writer)| {
            let mut running =
                self.start(&[End::Inherit, End::Piped, End::Inherit], Some(writer.into()))?;
            running.stderr = Some(ChildStderr::new(reader.into()));
            Ok(running)
        });
        async move { running?.wait_with_output().await }
    }

    /// `unset`: where the ends of the whole go if nothing was said.
    fn start(&self, unset: &[End; 3], stderr: Option<OwnedFd>) -> io::Result<Running> {
        if self.parts.iter().any(Command::has_place) {
            let what = "a part of a pipeline has no group, session or terminal of its own";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let mut parts: Vec<Child> = Vec::new();
        let (mut leader, mut input) = (0, None);
        for (index, part) in self.parts.iter().enumerate() {
            let mut part = part.clone();
            let unset = unset.clone();
            if let Some(input) = input.take() {
                part.stdin(Stdio::Fd(input));
            }
            if index + 1 < self.parts.len() {
                let (reader, writer) = io::pipe()?;
                part.stdout(writer);
                input = Some(OwnedFd::from(reader));
            } else if matches!(unset[1], End::Piped) {
                part.stdout(Stdio::Piped);
            }
            if let Some(stderr) = stderr.as_ref().filter(|_| part.leaves_stderr()) {
                part.stderr(Stdio::Fd(stderr.try_clone()?));
            }
            let started = match part.process_group(leader).start(unset.clone()) {
                // All that were in there are gone by now.
                Err(error) if leader != 0 && error.raw_os_error() == Some(libc::EPERM) => {
                    leader = 0;
                    part.process_group(0).start(unset)
                }
                started => started,
            }?;
            if leader == 0 {
                leader = started.pid().cast_signed();
            }
            parts.push(started);
        }
        let stdin = parts.first_mut().and_then(|first| first.stdin.take());
        let stdout = parts.last_mut().and_then(|last| last.stdout.take());
        Ok(Running { stdin, stdout, parts, stderr: None })
    }
}

impl Running {
    /// Closes what is piped of the parts' stderr and was not taken: nobody can read it any more.
    fn close_errors(&mut self) {
        self.parts.iter_mut().for_each(|part| drop(part.stderr.take()));
    }

    fn as_parts(&self) -> Parts<'_> {
        Parts(self.parts.iter().map(Child::owned).collect())
    }

    /// Closes the stdin of the first, if that was not taken, and waits until all have ended. Their statuses
    /// are in their order. Called again it gives the same.
    ///
    /// # Errors
    /// As [`Child::wait`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn wait(&mut self) -> io::Result<Vec<ExitStatus>> {
        drop(self.stdin.take());
        let mut statuses = Vec::new();
        for part in &mut self.parts {
            statuses.push(part.wait().await?);
        }
        Ok(statuses)
    }

    /// Closes the stdin of the first, if that was not taken, waits until all have ended, and collects the stdout
    /// and the stderr of the last, if they are piped and were not taken. A piped stderr of another part that was
    /// not taken is closed.
    ///
    /// # Errors
    /// As [`Child::wait`], or what a read says.
    ///
    /// # Cancel safety
    /// Dropping the future ends all parts.
    pub async fn wait_with_output(mut self) -> io::Result<PipelineOutput> {
        drop(self.stdin.take());
        let last = self.parts.last_mut();
        let own = last.and_then(|last| last.stderr.take());
        self.close_errors();
        let outputs = (self.stdout.take(), self.stderr.take().or(own));
        let bounds = self.parts.last().map(Child::bounds).unwrap_or_default();
        let collected = collect(self.as_parts(), outputs, bounds).await?;
        let Collected { statuses, stdout, stderr, ended } = collected;
        Ok(PipelineOutput { statuses, stdout, stderr, ended })
    }

    /// Sends all parts their stop signals, and after their grace SIGKILL; SIGKILL at once to those that have
    /// none. Does not wait. Those that have ended are no error.
    ///
    /// # Errors
    /// What the system says.
    pub fn stop(&mut self) -> io::Result<()> {
        self.as_parts().stop()
    }
}
