//! Where a child's stdio goes. Nothing here ever blocks its writer for long (C8).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// One of a child's three.
#[derive(Debug)]
pub enum Stdio {
    /// `/dev/null`.
    Null,
    /// The spawner's own. A pipe that nobody drains will block the child.
    Inherit,
    /// A pipe whose other end the spawner takes from the [`Child`](crate::Child).
    Piped,
    /// Line by line to the spawner's own, with a prefix; the last lines are kept for errors.
    Relay(Relay),
    /// This fd.
    Fd(OwnedFd),
}

impl Stdio {
    /// [`Stdio::Null`], as std has it.
    #[must_use]
    pub fn null() -> Self {
        Self::Null
    }

    /// [`Stdio::Inherit`], as std has it.
    #[must_use]
    pub fn inherit() -> Self {
        Self::Inherit
    }

    /// [`Stdio::Piped`], as std has it.
    #[must_use]
    pub fn piped() -> Self {
        Self::Piped
    }
}

impl From<OwnedFd> for Stdio {
    fn from(fd: OwnedFd) -> Self {
        Self::Fd(fd)
    }
}

impl From<File> for Stdio {
    fn from(file: File) -> Self {
        Self::Fd(file.into())
    }
}

impl From<PipeReader> for Stdio {
    fn from(end: PipeReader) -> Self {
        Self::Fd(end.into())
    }
}

impl From<PipeWriter> for Stdio {
    fn from(end: PipeWriter) -> Self {
        Self::Fd(end.into())
    }
}

macro_rules! of_std {
    ($($end:ident)*) => {
        $(
            /// The end of a pipe of std's own child.
            impl From<std::process::$end> for Stdio {
                fn from(end: std::process::$end) -> Self {
                    Self::Fd(end.into())
                }
            }
        )*
    };
}

of_std!(ChildStdin ChildStdout ChildStderr);

/// How lines are passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    pub(crate) prefix: String,
    pub(crate) keep: usize,
}

impl Relay {
    /// Lines are passed on as `[prefix] line`. Lines that come from further below, and so begin
    /// with `[prefix/`, are passed on as they are.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), keep: 20 }
    }

    /// How many of the last lines are kept. Default: 20.
    #[must_use]
    pub fn keep(mut self, lines: usize) -> Self {
        self.keep = lines;
        self
    }
}

/// The last lines of a relayed output.
#[derive(Debug)]
pub(crate) struct Tail {
    lines: Mutex<VecDeque<String>>,
    keep: usize,
    ended: watch::Sender<bool>,
}

impl Tail {
    pub(crate) fn new(keep: usize) -> Self {
        let (ended, _) = watch::channel(false);
        Self { lines: Mutex::default(), keep, ended }
    }

    pub(crate) fn push(&self, line: &[u8]) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if self.keep > 0 {
            if lines.len() >= self.keep {
                lines.pop_front();
            }
            let shown = &line[..line.len().min(MAX_KEPT)];
            lines.push_back(String::from_utf8_lossy(shown).into_owned());
        }
    }

    pub(crate) fn end(&self) {
        self.ended.send_replace(true);
    }

    /// The lines, after the writer has closed or `bound` is over: a stray may hold the pipe.
    pub(crate) async fn lines(&self, bound: Duration) -> Vec<String> {
        let mut ended = self.ended.subscribe();
        // Either way, what is there is what there is.
        let _bounded = tokio::time::timeout(bound, ended.wait_for(|ended| *ended)).await;
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// A kept line is cut to this many bytes.
const MAX_KEPT: usize = 1024;
