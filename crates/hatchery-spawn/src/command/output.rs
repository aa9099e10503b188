//! What a program wrote: read to the end of its pipes, or for a while after its own end.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::time::Duration;

use nix::libc;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::time::timeout;

pub use super::holders::Holder;
use super::{CommandError, holders};
use crate::child::Child;
use crate::exit::Exit;
use crate::forkserver::manner::Note;
use crate::forkserver::wire::Left;

/// What a program wrote and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// How it ended.
    pub status: Exit,
    /// Its stdout, as far as [`ended`](Self::ended) says.
    pub stdout: Vec<u8>,
    /// Its stderr, likewise.
    pub stderr: Vec<u8>,
    /// Whether that is all.
    pub ended: Ended,
    /// Processes that it had started and that could not be ended:
    /// [`ChildHandle::left_behind`](crate::ChildHandle::left_behind).
    pub left_behind: Vec<Left>,
}

/// Whether an output is all that there was.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// It is: both pipes came to their end.
    Exited,
    /// It is not: its [time](crate::process::Command::timeout) was over, and it was ended.
    TimedOut,
    /// It is not: it wrote more than was to be [kept](crate::process::Command::max_output).
    Truncated,
    /// It is not sure to be: the program has ended, and [`Command::drain`](super::Command::drain) later
    /// somebody still held one of its pipes.
    Incomplete {
        /// Who held one, as far as could be seen: processes of other users can't be looked at, nor more
        /// than a second's worth. Those that the program left in its group or under its
        /// mark have been killed since.
        held_by: Vec<Holder>,
    },
}

/// Waits for its end; a stop that nobody would end is an error.
pub(crate) async fn to_its_end(child: &Child) -> Result<Exit, CommandError> {
    child.close_stdin();
    let handle = child.handle();
    let stands_still = |note: &Note| matches!(note, Note::Stopped(libc::SIGTTIN | libc::SIGTTOU));
    tokio::select! {
        biased;
        exit = handle.wait() => Ok(exit?),
        note = handle.noted(stands_still) => match note {
            Note::Stopped(signal) => {
                Err(CommandError::Stopped { name: handle.name().to_owned(), signal })
            }
            Note::Runs | Note::Ended => Ok(handle.wait().await?),
        },
    }
}

pub(crate) async fn collect(mut child: Child) -> Result<Output, CommandError> {
    child.close_stdin();
    let mut stdout = Pipe::new(child.take_stdout()).map_err(CommandError::Read)?;
    let mut stderr = Pipe::new(child.take_stderr()).map_err(CommandError::Read)?;
    let handle = child.handle();
    let is_whole = {
        let mut reading = pin!(async { tokio::try_join!(stdout.read(), stderr.read()) });
        let ended = async {
            // Its status comes after the end of what it left.
            tokio::select! {
                exit = to_its_end(&child) => exit.map(drop),
                _ended = handle.noted(|note| *note == Note::Ended) => Ok(()),
            }
        };
        tokio::select! {
            read = &mut reading => Some(read),
            ended = ended => {
                ended?;
                match child.drain {
                    Some(drain) => timeout(drain, reading).await.ok(),
                    None => Some(reading.await),
                }
            }
        }
    };
    let ended = match is_whole {
        Some(read) => read.map(|_| Ended::Exited).map_err(CommandError::Read)?,
        // While those are there that will be killed for it.
        None => {
            let held_by = holders::of([stdout.fd(), stderr.fd()], child.server()).await;
            Ended::Incomplete { held_by }
        }
    };
    handle.settle();
    let status = to_its_end(&child).await?;
    let (stdout, stderr) = (stdout.bytes, stderr.bytes);
    Ok(Output { status, stdout, stderr, ended, left_behind: handle.left_behind() })
}

/// A pipe and what came out of it until now.
struct Pipe {
    pipe: Option<pipe::Receiver>,
    bytes: Vec<u8>,
}

impl Pipe {
    fn new(pipe: Option<OwnedFd>) -> io::Result<Self> {
        let pipe = pipe.map(pipe::Receiver::from_owned_fd).transpose()?;
        Ok(Self { pipe, bytes: Vec::new() })
    }

    async fn read(&mut self) -> io::Result<()> {
        if let Some(pipe) = &mut self.pipe {
            pipe.read_to_end(&mut self.bytes).await?;
        }
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(|pipe| pipe.as_fd())
    }
}

/// How long pipes are read after the end of the program, if nothing else is asked for. A filter that has
/// lost its writer needs milliseconds, and so does one on a busy machine nearly always.
pub(crate) const DRAIN: Duration = Duration::from_millis(500);
/// How much later the forkserver ends what is left by itself: looking at who holds the pipes has a bound.
pub(crate) const SLACK: Duration = Duration::from_secs(3);
