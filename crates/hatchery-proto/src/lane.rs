//! Where the large parts of a message are when it has come.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::part::{Extent, Part};

/// Where parts wait whose messages are under way: between two ends inside one process, or those that
/// came as files. First in, first out, as the messages are.
#[derive(Debug, Default)]
pub struct Lane(Mutex<VecDeque<Part>>);

impl Lane {
    /// Hands over what lies beside a message that is about to come.
    pub fn push(&self, parts: impl IntoIterator<Item = Part>) {
        self.waiting().extend(parts);
    }

    /// Takes the next one; `None`: nobody has handed it over, and the message is no good.
    pub fn pop(&self) -> Option<Part> {
        self.waiting().pop_front()
    }

    /// How many bytes wait.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.waiting().iter().map(Part::length).sum()
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Part>> {
        // A queue is whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
}
