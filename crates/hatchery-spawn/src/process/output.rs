//! What a program wrote until its end, inside the bounds that were asked for.

use std::future::pending;
use std::io;
use std::os::fd::BorrowedFd;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;

use super::command::Overflow;
use super::pipes::{ChildStderr, ChildStdout};
use crate::child::{Child as Owned, ChildHandle};
use crate::command::output::to_its_end;
use crate::command::{Ended, holders};
use crate::forkserver::manner::Note;
use crate::usage::Usage;

/// What a program wrote and how it ended, as `std::process::Output`, and whether that is all.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its stdout, as far as [`ended`](Self::ended) says.
    pub stdout: Vec<u8>,
    /// Its stderr, likewise.
    pub stderr: Vec<u8>,
    /// Whether that is all.
    pub ended: Ended,
    /// What it has used; `None` if that is not known.
    pub usage: Option<Usage>,
}

/// Its exit status and what it wrote; whether that was all is lost.
impl From<Output> for std::process::Output {
    fn from(output: Output) -> Self {
        let Output { status, stdout, stderr, .. } = output;
        Self { status, stdout, stderr }
    }
}

/// How long a program may run, and how much of what it writes is kept.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bounds {
    pub(super) timeout: Option<Duration>,
    pub(super) output: Option<(usize, Overflow)>,
}

/// The parts of what runs together: one program, or a pipeline.
pub(super) struct Parts<'a>(pub(super) Vec<&'a Owned>);

impl Parts<'_> {
    /// Each to its end; what it left in its group may go on. Dropping it loses nothing.
    async fn end(&self) -> io::Result<()> {
        for part in &self.0 {
            let handle = part.handle();
            // Its status comes after the end of what it left.
            tokio::select! {
                exit = to_its_end(part) => exit.map(drop)?,
                _ended = handle.noted(|note| *note == Note::Ended) => {}
            }
        }
        Ok(())
    }

    pub(super) fn stop(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|part| stop(&part.handle()))
    }

    /// The statuses of all, in their order.
    pub(super) async fn statuses(&self) -> io::Result<Vec<ExitStatus>> {
        let mut statuses = Vec::new();
        for part in &self.0 {
            statuses.push(to_its_end(part).await?.into());
        }
        Ok(statuses)
    }
}

/// What all parts wrote, and how they ended.
pub(super) struct Collected {
    pub(super) statuses: Vec<ExitStatus>,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) ended: Ended,
}

/// Reads both to their ends, or as far as the bounds go. Ended by the programs' ends and the drain of the
/// last, or by its time-out.
pub(super) async fn collect(
    parts: Parts<'_>,
    (stdout, stderr): (Option<ChildStdout>, Option<ChildStderr>),
    bounds: Bounds,
) -> io::Result<Collected> {
    let (mut stdout, mut stderr) = (Kept::new(stdout, bounds), Kept::new(stderr, bounds));
    let end = read(&parts, (&mut stdout, &mut stderr), bounds).await?;
    let server = parts.0.last().map_or(0, |last| last.server());
    let ended = match end {
        End::TimedOut => Ended::TimedOut,
        End::Whole if stdout.is_cut || stderr.is_cut => Ended::Truncated,
        End::Whole => Ended::Exited,
        End::Drained => {
            // While those are there that will be killed for it.
            let ends = [stdout.fd(), stderr.fd()];
            Ended::Incomplete { held_by: holders::of(ends, server).await }
        }
    };
    parts.0.iter().for_each(|part| part.handle().settle());
    let statuses = parts.statuses().await?;
    Ok(Collected { statuses, stdout: stdout.bytes, stderr: stderr.bytes, ended })
}

/// What ended the reading.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The ends of both.
    Whole,
    /// The program has ended, and somebody else held one of them until the drain was over.
    Drained,
    TimedOut,
}

async fn read(
    parts: &Parts<'_>,
    (stdout, stderr): (&mut Kept<ChildStdout>, &mut Kept<ChildStderr>),
    bounds: Bounds,
) -> io::Result<End> {
    let mut timer = pin!(async {
        match bounds.timeout {
            Some(most) => tokio::time::sleep(most).await,
            None => pending().await,
        }
    });
    let mut reading = pin!(async { tokio::try_join!(stdout.read(parts), stderr.read(parts)) });
    let mut ending = pin!(parts.end());
    let drain = parts.0.last().and_then(|last| last.drain);
    let (mut is_read, mut is_late) = (false, false);
    loop {
        tokio::select! {
            biased;
            read = &mut reading, if !is_read => {
                read?;
                is_read = true;
            }
            ended = &mut ending => {
                ended?;
                break;
            }
            () = &mut timer, if !is_late => {
                is_late = true;
                parts.stop()?;
            }
        }
    }
    if !is_read {
        let rest = async {
            match drain {
                Some(drain) => {
                    timeout(drain, reading).await.map_or(Ok(false), |read| read.map(|_| true))
                }
                None => reading.await.map(|_| true),
            }
        };
        tokio::select! {
            biased;
            read = rest => is_read = read?,
            // With strays that are kept there may be no other end.
            () = &mut timer, if !is_late => is_late = true,
        }
    }
    Ok(match (is_late, is_read) {
        (true, _) => End::TimedOut,
        (false, true) => End::Whole,
        (false, false) => End::Drained,
    })
}

/// An output, and what is kept of it.
struct Kept<T> {
    pipe: Option<T>,
    bytes: Vec<u8>,
    most: Option<(usize, Overflow)>,
    is_cut: bool,
}

impl<T> Kept<T> {
    fn new(pipe: Option<T>, bounds: Bounds) -> Self {
        Self { pipe, bytes: Vec::new(), most: bounds.output, is_cut: false }
    }
}

impl<T: AsyncRead + Unpin> Kept<T> {
    /// To its end. What comes after the most is read too: else its writer would wait for ever.
    async fn read(&mut self, parts: &Parts<'_>) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        let Some((most, then)) = self.most else {
            return pipe.read_to_end(&mut self.bytes).await.map(drop);
        };
        let kept = u64::try_from(most).unwrap_or(u64::MAX);
        (&mut *pipe).take(kept).read_to_end(&mut self.bytes).await?;
        let mut rest = [0; 4096];
        while pipe.read(&mut rest).await? > 0 {
            if !self.is_cut && then == Overflow::End {
                parts.stop()?;
            }
            self.is_cut = true;
        }
        Ok(())
    }
}

impl<T: std::os::fd::AsFd> Kept<T> {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(|pipe| pipe.as_fd())
    }
}

fn stop(handle: &ChildHandle) -> io::Result<()> {
    handle.stop().map_err(super::child::refused)
}
