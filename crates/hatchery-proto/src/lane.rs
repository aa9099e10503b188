//! Where the large parts of a message are when it has come.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::encoded::Encoded;
use crate::part::{Extent, Part};
use crate::wakers::Wakers;

/// Where parts wait whose messages are under way: between two ends inside one process, or those that
/// came as files. First in, first out, as the messages are.
///
/// Parts may be values of users, whose destructors are theirs: none is run while a lock is held here.
#[derive(Debug, Default)]
pub struct Lane(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    parts: VecDeque<Part>,
    /// How long the values are among them.
    values: usize,
    /// Nobody takes any more.
    closed: bool,
    /// Who waits for fewer values.
    senders: Wakers,
    /// Of how many bytes one of those wants less.
    wanted: usize,
}

impl Waiting {
    fn released(&mut self) -> Vec<Waker> {
        self.wanted = 0;
        self.senders.take()
    }
}

impl Lane {
    /// Hands over what lies beside a message that is about to come. Gives back what nobody takes any
    /// more.
    pub fn push(&self, parts: impl IntoIterator<Item = Part>) -> Vec<Part> {
        let mut waiting = self.waiting();
        if waiting.closed {
            drop(waiting);
            return parts.into_iter().collect();
        }
        for part in parts {
            waiting.values = waiting.values.saturating_add(value_length(&part));
            waiting.parts.push_back(part);
        }
        Vec::new()
    }

    /// Takes the next one; `None`: nobody has handed it over, and the message is no good.
    pub fn pop(&self) -> Option<Part> {
        let mut waiting = self.waiting();
        let part = waiting.parts.pop_front()?;
        waiting.values = waiting.values.saturating_sub(value_length(&part));
        let is_room = waiting.values < waiting.wanted;
        let released = if is_room { waiting.released() } else { Vec::new() };
        drop(waiting);
        released.into_iter().for_each(Waker::wake);
        Some(part)
    }

    /// Whoever takes is gone: drops what waits, here and now, and takes nothing from now on.
    pub fn close(&self) {
        let mut waiting = self.waiting();
        waiting.closed = true;
        waiting.values = 0;
        let (unread, released) = (std::mem::take(&mut waiting.parts), waiting.released());
        drop(waiting);
        released.into_iter().for_each(Waker::wake);
        drop(unread);
    }

    /// Ready when values of less than `limit` bytes wait. Ended by who takes them, or closes the
    /// lane.
    pub fn poll_room(&self, limit: usize, cx: &Context<'_>) -> Poll<()> {
        let mut waiting = self.waiting();
        if waiting.values < limit || waiting.closed {
            return Poll::Ready(());
        }
        waiting.wanted = waiting.wanted.max(limit);
        waiting.senders.add(cx.waker());
        Poll::Pending
    }

    /// Those who wait for that, to be woken for another reason.
    #[must_use]
    pub fn senders(&self) -> Vec<Waker> {
        self.waiting().released()
    }

    /// How many bytes wait.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.waiting().parts.iter().map(Part::length).sum()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // A queue is whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Known without running anything: whatever is handed over was settled.
fn value_length(part: &Part) -> usize {
    if matches!(part, Part::Value(_)) { part.length() } else { 0 }
}

/// Where a message's parts are.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Beside the socket, if anything has come there.
    lane: Option<Arc<Lane>>,
    /// At the end of its frame.
    frame: Bytes,
}

impl Source {
    pub(crate) fn of(frame: &Bytes, lane: Option<&Arc<Lane>>) -> Self {
        Self { lane: lane.cloned(), frame: frame.clone() }
    }

    /// Takes what belongs to a value, and says how much of the frame that was; `None`: it is not
    /// there, or is not what was announced.
    pub(crate) fn take(self, extents: &[Extent]) -> Option<(Vec<Part>, usize)> {
        let inside = extents.iter().filter(|extent| !extent.beside);
        let length = inside.map(|extent| extent.length).try_fold(0_usize, usize::checked_add)?;
        let mut rest = self.frame.slice(self.frame.len().checked_sub(length)?..);
        let mut next = |extent: &Extent| match (&self.lane, extent.beside) {
            (_, false) => Some(Part::Bytes(rest.split_to(extent.length))),
            (Some(lane), true) => match lane.pop()? {
                Part::Lost { why, .. } => Some(Part::Lost { why, length: extent.length }),
                part @ (Part::Bytes(_) | Part::File(_) | Part::Value(_)) => {
                    (part.length() == extent.length).then_some(part)
                }
            },
            (None, true) => None,
        };
        let parts: Option<Vec<_>> = extents.iter().map(&mut next).collect();
        Some((parts?, length))
    }

    /// Takes a value that has moved as it is, of that length; `None`: it is not there. Only from
    /// inside of this process can one come: what comes as a file is none.
    pub(crate) fn take_whole(self, length: u64) -> Option<Encoded> {
        let extent = Extent { length: usize::try_from(length).ok()?, beside: true };
        let (parts, _) = self.take(&[extent])?;
        let whole = parts.into_iter().next().filter(|part| matches!(part, Part::Value(_)));
        whole.map(Encoded::whole)
    }
}
