//! Where the blobs of a message are when it has come.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Where blobs wait whose messages are under way between two ends inside one process. First in,
/// first out, as the messages are.
#[derive(Debug, Default)]
pub struct Lane(Mutex<VecDeque<Bytes>>);

impl Lane {
    /// Hands over what lies beside a message that is about to be sent.
    pub fn push(&self, blobs: impl IntoIterator<Item = Bytes>) {
        self.waiting().extend(blobs);
    }

    /// Takes the next one; `None`: nobody has handed it over, and the message is no good.
    pub fn pop(&self) -> Option<Bytes> {
        self.waiting().pop_front()
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Bytes>> {
        // A queue of bytes is whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a message's blobs are.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// Beside the socket.
    Lane(Arc<Lane>),
    /// At the end of its frame.
    Tail(Bytes),
}

impl Source {
    pub(crate) fn of(frame: &Bytes, lane: Option<&Arc<Lane>>) -> Self {
        lane.map_or_else(|| Self::Tail(frame.clone()), |lane| Self::Lane(lane.clone()))
    }

    /// Takes what belongs to a value; `None`: it is not there.
    pub(crate) fn take(self, lengths: &[usize]) -> Option<Vec<Bytes>> {
        match self {
            Self::Lane(lane) => {
                let popped: Option<Vec<_>> = lengths.iter().map(|_| lane.pop()).collect();
                popped.filter(|blobs| blobs.iter().map(Bytes::len).eq(lengths.iter().copied()))
            }
            Self::Tail(frame) => {
                let mut rest = frame.slice(frame.len().checked_sub(sum(lengths)?)?..);
                Some(lengths.iter().map(|length| rest.split_to(*length)).collect())
            }
        }
    }
}

fn sum(lengths: &[usize]) -> Option<usize> {
    lengths.iter().try_fold(0_usize, |all, length| all.checked_add(*length))
}
