//! How messages come into a connection's queue: whole or not at all, and never by waiting.

use std::sync::MutexGuard;

use hatchery_proto::stream::Denied;
use hatchery_proto::{CallId, FrameError, Way, frame};
use serde::Serialize;

use super::framed::Framed;
use super::queue::{Added, Parcel, Queue};
use super::writer::{ItemError, Outbox, Priority, PushError};
use crate::lock::lock;

impl Outbox {
    /// Takes one frame, whole or not at all. Never waits; any thread.
    pub(crate) fn push(
        &self,
        priority: Priority,
        message: &impl Serialize,
    ) -> Result<(), PushError> {
        let mut queue = self.open()?;
        let idle = queue.queued == 0;
        let added = match priority {
            Priority::Control => queue.add_control(message, self.max_frame).map(Added::Inline),
            Priority::Data => {
                let way = self.way(&queue);
                queue.add_data(message, way, self.max_frame)
            }
        };
        match added.map_err(PushError::Frame)? {
            Added::Inline(length) => queue.queued += length,
            Added::Large(framed) => return self.append_message(queue, framed, message),
        }
        let written = if idle { queue.write_once() } else { Ok(()) };
        self.after(queue, written)
    }

    /// Takes one frame of the data lane, as one of several that are under way: in a burst it may
    /// wait for those that are pushed before the writer task's next turn, and go out with them.
    pub(crate) fn gather(&self, message: &impl Serialize) -> Result<(), PushError> {
        let mut queue = self.open()?;
        let (idle, start) = (queue.queued == 0, queue.tail.len());
        let way = self.way(&queue);
        let added = queue.add_data(message, way, self.max_frame).map_err(PushError::Frame)?;
        if let Added::Large(framed) = added {
            return self.append_message(queue, framed, message);
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
        call: CallId,
        value: &impl Serialize,
        admit: impl FnOnce(usize) -> Result<(), Denied>,
    ) -> Result<(), ItemError> {
        let mut queue = self.open().map_err(ItemError::Push)?;
        let failed = |error| ItemError::Push(PushError::Frame(error));
        let (start, way) = (queue.tail.len(), self.way(&queue));
        let item = frame::encode_item(call, value, way, self.max_frame, &mut queue.tail);
        let frame::Item { length, parts } = item.map_err(failed)?;
        let parts = queue.copy_small(parts);
        if parts.follow.is_empty() && (parts.beside.is_empty() || way == Way::Inside) {
            return match admit(length) {
                Ok(()) => {
                    queue.hand_over(parts.beside);
                    self.taken(queue, start).map_err(ItemError::Push)
                }
                Err(denied) => {
                    Err(ItemError::Denied(denied, queue.take_back(start, length, parts)))
                }
            };
        }
        let framed = queue.take_back(start, length, parts);
        let again = |queue: &mut Queue| {
            let start = queue.tail.len();
            let item =
                frame::encode_item(call, value, Way::ACROSS, self.max_frame, &mut queue.tail)?;
            Ok(queue.take_back(start, item.length, item.parts))
        };
        let (queue, framed) = self.filed(queue, framed, again).map_err(ItemError::Push)?;
        match admit(length) {
            Ok(()) => self.append(queue, framed).map_err(ItemError::Push),
            Err(denied) => Err(ItemError::Denied(denied, framed)),
        }
    }

    /// The same for a message that is encoded already.
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
        let queue = lock(&self.state);
        if queue.closed { Err(PushError::Closed) } else { Ok(queue) }
    }

    /// Queues a large frame, encoding it once more if its parts can't be put into files.
    fn append_message(
        &self,
        queue: MutexGuard<'_, Queue>,
        framed: Framed,
        message: &impl Serialize,
    ) -> Result<(), PushError> {
        let again = |queue: &mut Queue| {
            let start = queue.tail.len();
            let parts = frame::encode_apart(message, Way::ACROSS, self.max_frame, &mut queue.tail)?;
            Ok(queue.take_back(start, 0, parts))
        };
        let (queue, framed) = self.filed(queue, framed, again)?;
        self.append(queue, framed)
    }

    /// Puts what is to go as a file into one. That takes time, so nobody is kept waiting for the
    /// queue meanwhile. Where there is no file to be had, the frame is made `again` without.
    fn filed<'a>(
        &'a self,
        queue: MutexGuard<'a, Queue>,
        framed: Framed,
        again: impl FnOnce(&mut Queue) -> Result<Framed, FrameError>,
    ) -> Result<(MutexGuard<'a, Queue>, Framed), PushError> {
        if queue.lane.is_some() || !framed.wants_files() {
            return Ok((queue, framed));
        }
        drop(queue);
        let filed = framed.with_files();
        let mut queue = self.open()?;
        let framed = match filed {
            Ok(framed) => framed,
            Err(error) => {
                tracing::debug!(%error, "a blob goes through its socket, for it can't be a file");
                again(&mut queue).map_err(PushError::Frame)?
            }
        };
        Ok((queue, framed))
    }

    /// Queues a large frame as it is, after those before it.
    fn append(&self, mut queue: MutexGuard<'_, Queue>, framed: Framed) -> Result<(), PushError> {
        let idle = queue.queued == 0;
        queue.queued += framed.total();
        queue.seal_tail();
        let files = queue.hand_over(framed.beside);
        queue.data.push_back(Parcel { pieces: framed.pieces, files });
        let written = if idle { queue.write_once() } else { Ok(()) };
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
            Ok(())
        };
        self.after(queue, written)
    }
}

/// Messages of streams are written together from about this many bytes on.
const BATCH: usize = 32 * 1024;
