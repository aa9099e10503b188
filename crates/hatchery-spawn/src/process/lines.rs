//! What a program writes, line by line and as it comes.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tokio::io::{AsyncRead, ReadBuf};

use super::child::Child;
use super::pipes::{ChildStderr, ChildStdout};

/// The lines of both outputs of a program, in the order in which they arrive; made by [`Child::lines`].
///
/// Each output's own lines are in their order. Of two that wait at once, one in each pipe, nobody can know
/// which was written first: then the outputs take turns.
///
/// A [`Stream`]; [`next_line`](Self::next_line) needs no other crate. It ends when both outputs have, and
/// after an error.
#[derive(Debug)]
pub struct Lines {
    stdout: Source<ChildStdout>,
    stderr: Source<ChildStderr>,
    /// Whose turn it is.
    next: Origin,
}

/// A line, without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Line {
    /// Where it was written to.
    pub origin: Origin,
    /// What was written, whatever that is. A line of more than 1 MiB comes in pieces of that size.
    pub bytes: Vec<u8>,
}

/// Where a line was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Its stdout.
    Stdout,
    /// Its stderr.
    Stderr,
}

impl Line {
    /// As text; what is none is replaced.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }
}

impl Child {
    /// The lines of those of its outputs that are piped and were not taken. Its end is waited for with
    /// [`wait`](Self::wait), afterwards or meanwhile.
    pub fn lines(&mut self) -> Lines {
        let (stdout, stderr) = (Source::new(self.stdout.take()), Source::new(self.stderr.take()));
        Lines { stdout, stderr, next: Origin::Stdout }
    }
}

impl Lines {
    /// The next line; `None` after the last.
    ///
    /// # Errors
    /// What a read says. None follows.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn next_line(&mut self) -> io::Result<Option<Line>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await.transpose()
    }

    fn poll_one(&mut self, origin: Origin, cx: &mut Context<'_>) -> Poll<Option<io::Result<Line>>> {
        let bytes = match origin {
            Origin::Stdout => ready!(self.stdout.poll(cx)),
            Origin::Stderr => ready!(self.stderr.poll(cx)),
        };
        Poll::Ready(bytes.map(|bytes| Ok(Line { origin, bytes: bytes? })))
    }
}

impl Stream for Lines {
    type Item = io::Result<Line>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let (first, second) = match self.next {
            Origin::Stdout => (Origin::Stdout, Origin::Stderr),
            Origin::Stderr => (Origin::Stderr, Origin::Stdout),
        };
        let (line, next) = match self.poll_one(first, cx) {
            Poll::Ready(Some(line)) => (line, second),
            one @ (Poll::Ready(None) | Poll::Pending) => match (one, self.poll_one(second, cx)) {
                (_, Poll::Ready(Some(line))) => (line, first),
                (Poll::Ready(None), Poll::Ready(None)) => return Poll::Ready(None),
                (_, _) => return Poll::Pending,
            },
        };
        self.next = next;
        if line.is_err() {
            // Nothing comes after it.
            (self.stdout, self.stderr) = (Source::new(None), Source::new(None));
        }
        Poll::Ready(Some(line))
    }
}

/// An output, and what came out of it that was not told.
#[derive(Debug)]
struct Source<T> {
    pipe: Option<T>,
    bytes: Vec<u8>,
    /// How far there is no end of a line.
    searched: usize,
}

impl<T: AsyncRead + Unpin> Source<T> {
    fn new(pipe: Option<T>) -> Self {
        Self { pipe, bytes: Vec::new(), searched: 0 }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Vec<u8>>>> {
        loop {
            if let Some(line) = self.take() {
                return Poll::Ready(Some(Ok(line)));
            }
            let Some(pipe) = &mut self.pipe else {
                self.searched = 0;
                let rest = std::mem::take(&mut self.bytes);
                return Poll::Ready((!rest.is_empty()).then_some(Ok(rest)));
            };
            let mut room = [0; 8192];
            let mut buffer = ReadBuf::new(&mut room);
            match ready!(Pin::new(pipe).poll_read(cx, &mut buffer)) {
                Ok(()) if buffer.filled().is_empty() => self.pipe = None,
                Ok(()) => self.bytes.extend_from_slice(buffer.filled()),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// A whole line, or as much as is told at once.
    fn take(&mut self) -> Option<Vec<u8>> {
        let end = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n');
        let Some(end) = end.map(|end| self.searched + end).filter(|end| *end <= LONGEST) else {
            self.searched = self.bytes.len();
            if self.bytes.len() <= LONGEST {
                return None;
            }
            self.searched = 0;
            return Some(self.bytes.drain(..LONGEST).collect());
        };
        self.searched = 0;
        let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
        line.pop();
        Some(line)
    }
}

/// The longest piece of a line that is told at once, in bytes.
const LONGEST: usize = 1 << 20;
