//! How messages come into a connection's queue: whole or not at all, and never by waiting.

use std::sync::MutexGuard;

use hatchery_proto::stream::Denied;
use hatchery_proto::{CallId, Encoded, FrameError, Part, Way};
use serde::Serialize;

use super::framed::{self, Framed};
use super::item::Item;
use super::queue::{Added, Queue};
use super::writer::{ItemError, Outbox, Priority, PushError};
use crate::copied::is_copy;
use crate::lock::lock;

impl Outbox {
    /// Has all that belongs to a value, and not to us, run before any lock is taken: the encoding of
    /// shared values, and the making of files. A panic of theirs is the caller's.
    pub(crate) fn settled(&self, value: Encoded) -> Result<Encoded, FrameError> {
        if value.has_parts() { value.settled(|part| self.settle(part)) } else { Ok(value) }
    }

    fn settle(&self, part: Part) -> Result<Part, String> {
        let part = part.settled(self.way)?;
        Ok(if self.way == Way::Inside { part } else { framed::filed(part, self.files_from) })
    }

    /// Encodes a message of a stream. Runs the code of whoever sends it.
    pub(crate) fn item<T>(&self, call: CallId, value: T) -> Result<Item, FrameError>
    where
        T: Serialize + Send + 'static,
    {
        let way = (self.way, self.moves_from());
        Item::new(call, value, way, |part| self.settle(part), self.max_frame)
    }

    /// Takes one frame, whole or not at all. Never waits; any thread. Its values are settled.
    pub(crate) fn push(
        &self,
        priority: Priority,
        message: &impl Serialize,
    ) -> Result<(), PushError> {
        let mut queue = self.open()?;
        let idle = queue.queued == 0;
        let added = match priority {
            Priority::Control => queue.add_control(message, self.max_frame).map(Added::Inline),
            Priority::Data => queue.add_data(message, self.way, self.max_frame),
        };
        match added.map_err(PushError::Frame)? {
            Added::Inline(length) => queue.queued += length,
            Added::Large(framed) => return self.append(queue, framed),
        }
        let written = if idle { queue.write_once() } else { Ok(0) };
        self.after(queue, written)
    }

    /// Takes one frame of the data lane, as one of several that are under way: in a burst it may
    /// wait for those that are pushed before the writer task's next turn, and go out with them.
    pub(crate) fn gather(&self, message: &impl Serialize) -> Result<(), PushError> {
        let mut queue = self.open()?;
        let (idle, start) = (queue.queued == 0, queue.tail.len());
        match queue.add_data(message, self.way, self.max_frame).map_err(PushError::Frame)? {
            Added::Large(framed) => return self.append(queue, framed),
            Added::Inline(_) => {}
        }
        if idle && !queue.is_busy() {
            queue.queued += queue.tail.len() - start;
            let written = queue.write_once();
            return self.after(queue, written);
        }
        self.work.notify_one();
        self.taken(queue, start)
    }

    /// Takes one message of a stream if `admit` agrees to its length. It may stay queued until
    /// [`Outbox::flush_soon`], or until there is enough to be worth a system call.
    pub(crate) fn push_item(
        &self,
        mut item: Item,
        admit: impl FnOnce(usize) -> Result<(), Denied>,
    ) -> Result<(), ItemError> {
        let mut queue = self.open().map_err(ItemError::Push)?;
        if let Err(denied) = admit(item.length) {
            drop(queue);
            return Err(ItemError::Denied(denied, item.framed()));
        }
        item.copy_small();
        let goes_alone = !item.parts.follow.is_empty()
            || (!item.parts.beside.is_empty() && self.way == Way::Across)
            || item.frame.len() >= BATCH;
        if goes_alone {
            return self.append(queue, item.framed()).map_err(ItemError::Push);
        }
        let start = queue.tail.len();
        queue.tail.extend_from_slice(&item.frame);
        queue.hand_over(std::mem::take(&mut item.parts.beside));
        self.taken(queue, start).map_err(ItemError::Push)
    }

    /// The same for one that had to wait.
    pub(crate) fn push_framed(&self, framed: &Framed) -> Result<(), PushError> {
        let mut queue = self.open()?;
        if framed.total() >= BATCH || !framed.beside.is_empty() {
            return self.append(queue, framed.clone());
        }
        let start = queue.tail.len();
        framed.pieces.iter().for_each(|piece| queue.tail.extend_from_slice(piece));
        self.taken(queue, start)
    }

    fn open(&self) -> Result<MutexGuard<'_, Queue>, PushError> {
        // What a copy writes would come out of its owner's mouth.
        if is_copy() {
            return Err(PushError::Closed);
        }
        let queue = lock(&self.state);
        if queue.closed { Err(PushError::Closed) } else { Ok(queue) }
    }

    /// Queues a large frame as it is, after those before it.
    fn append(&self, mut queue: MutexGuard<'_, Queue>, framed: Framed) -> Result<(), PushError> {
        let idle = queue.queued == 0;
        queue.append(framed);
        let written = if idle { queue.write_once() } else { Ok(0) };
        self.after(queue, written)
    }

    fn taken(&self, mut queue: MutexGuard<'_, Queue>, start: usize) -> Result<(), PushError> {
        queue.queued += queue.tail.len() - start;
        if queue.tail.len() < BATCH {
            return Ok(());
        }
        let written = if queue.queued == queue.tail.len() {
            queue.write_once()
        } else {
            queue.seal_tail();
            Ok(0)
        };
        self.after(queue, written)
    }
}

/// Messages of streams are written together from about this many bytes on.
const BATCH: usize = 32 * 1024;
