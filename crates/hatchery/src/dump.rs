//! What a whole tree is doing right now, and who holds it up: for the end of a bound.
//!
//! It is read from `/proc` and from what each process has written down in its own memory, so it
//! needs no help of those it shows: also an actor that is stopped, spins, or waits for a lock is
//! shown. It needs the right to look: the same user, or root.
//!
//! A bound of the crate's own that is hit, where nothing should ever hit it (a process that SIGKILL did
//! not end, nurseries that outlast the budget at the end of a runtime), tells of it through `tracing`
//! at the level ERROR, with the dump in the field `dump`.
//!
//! Reading races with processes that come and go; what can't be read is left empty.

mod blame;
mod process;
mod sockets;
mod text;

use std::path::PathBuf;

use hatchery_proto::board::{self, Board};
use hatchery_proto::culprit::Culprit;
use serde::{Deserialize, Serialize};

pub use hatchery_proto::board as boards;
pub use hatchery_proto::culprit;
pub use process::{Fd, Process, Signals, Socket, Thread};

/// A tree, its processes, and the likely culprit of a hang.
///
/// It shows itself as text; with a serialiser of your choice it is data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// When it was taken, in nanoseconds of the machine's monotonic clock.
    pub at: u64,
    /// Who seems to hold the others up, if somebody waits for somebody.
    pub culprit: Option<Culprit>,
    /// The process that was asked for, with everything below it.
    pub process: Process,
}

impl Dump {
    /// What `pid` and everything below it is doing; `None` if there is no such process.
    ///
    /// All actors of a tree are children of its forkserver, and that is the root's: ask for the
    /// root, or for any actor with [`Dump::of_tree`].
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self::by(Process::of(pid)?, crate::board::now()))
    }

    /// What is to be said of processes that were looked at.
    #[doc(hidden)]
    #[must_use]
    pub fn by(process: Process, at: u64) -> Self {
        let culprit = blame::culprit(&process, at);
        Self { at, culprit, process }
    }

    /// The same for the whole tree that `pid` is part of.
    #[must_use]
    pub fn of_tree(pid: u32) -> Option<Self> {
        Self::of(process::root_of(pid))
    }
}

/// The tree of this process as text, for an event that tells of a bound that was hit. Takes its time.
pub(crate) fn of_this_tree() -> String {
    Dump::of_tree(std::process::id()).map_or_else(String::new, |dump| dump.to_string())
}

/// What a process has written down, if it has an actor.
fn board_of(pid: u32) -> Option<Board> {
    let path = fd_of(pid)?;
    // What changes while it is read is read again.
    let mut best: Option<Board> = None;
    for _ in 0..TRIES {
        let first = words(&path)?;
        let second = words(&path)?;
        let read = board::read(&first, &second).ok()?;
        let blurred = read.blurred;
        if best.as_ref().is_none_or(|best| blurred < best.blurred) {
            best = Some(read);
        }
        if blurred == 0 {
            break;
        }
    }
    best
}

/// Where the board of a process is.
fn fd_of(pid: u32) -> Option<PathBuf> {
    let name = format!("/memfd:{}", board::NAME.to_str().ok()?);
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    fds.flatten().map(|fd| fd.path()).find(|fd| {
        let leads_to = std::fs::read_link(fd).unwrap_or_default();
        leads_to.to_str().is_some_and(|target| target.starts_with(&name))
    })
}

/// As much of a board as was ever written to.
fn words(path: &std::path::Path) -> Option<Vec<u64>> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::open(path).ok()?;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).ok()?;
    let length =
        board::used(header.as_chunks::<8>().0.iter().map(word).collect::<Vec<_>>().as_slice());
    let mut bytes = vec![0; length * 8];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(bytes.as_chunks::<8>().0.iter().map(word).collect())
}

fn word(bytes: &[u8; 8]) -> u64 {
    u64::from_ne_bytes(*bytes)
}

const TRIES: usize = 5;
