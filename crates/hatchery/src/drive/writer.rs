//! The one way out of a connection: frames go in whole, bytes go out in order.
//!
//! A frame is written at once when nothing is queued, by whoever pushes it and without waiting;
//! what the socket doesn't take is left to the writer task. So a user's future never holds half a
//! frame: a push is not an await point and can't be dropped in the middle (H23). Control frames
//! overtake queued data at the next frame border (H22). Messages of streams are gathered and
//! written together.
//!
//! Lock order: `state` is the innermost lock of this crate; nothing is called while it is held.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use hatchery_proto::frame::Blobs;
use hatchery_proto::stream::Denied;
use hatchery_proto::{CallId, FrameError, Lane, frame};
use nix::errno::Errno;
use serde::Serialize;
use tokio::sync::Notify;

use super::socket::{Second, Socket};
use crate::lock::lock;

/// Which queue a frame joins when it can't be written at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Cancels, acknowledgements, endings: before any queued data.
    Control,
    /// Calls, replies, and all that must keep its place among a stream's messages.
    Data,
}

/// Why a frame was not taken. Nothing of it was written.
#[derive(Debug)]
pub(crate) enum PushError {
    /// It can't be encoded or is over the limit; the connection lives.
    Frame(FrameError),
    /// The connection is gone.
    Closed,
}

/// Why a stream's message was not taken.
#[derive(Debug)]
pub(crate) enum ItemError {
    /// As for any frame.
    Push(PushError),
    /// The stream has no room for it; here it is, encoded.
    Denied(Denied, Framed),
}

/// A stream's message that waits for room, encoded.
#[derive(Debug)]
pub(crate) struct Framed {
    /// How many bytes its value has.
    pub(crate) length: usize,
    /// Its whole frame.
    pieces: Vec<Bytes>,
    /// What is handed over beside it.
    beside: Vec<Bytes>,
}

/// What became of a frame.
enum Added {
    /// It was appended; so long is it.
    Inline(usize),
    /// It has large pieces, which are not to be copied.
    Large(Framed),
}

impl Framed {
    /// One that is never sent: its connection is closed.
    pub(crate) fn nothing() -> Self {
        Self { length: 0, pieces: Vec::new(), beside: Vec::new() }
    }

    fn total(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }
}

/// The sending half of one connection.
#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<Queue>,
    /// Rung when something is queued; the writer task waits on it.
    work: Notify,
    /// Rung when nobody will push any more.
    left: Notify,
    max_frame: usize,
    limit: usize,
}

#[derive(Debug, Default)]
struct Queue {
    /// Let go of when the other side has settled, whoever still holds a portal to it (C10).
    socket: Option<Arc<Socket>>,
    /// Whole frames, the first of which may be out in part, in pieces.
    current: VecDeque<Bytes>,
    control: BytesMut,
    /// Whole frames each, in pieces.
    data: VecDeque<Vec<Bytes>>,
    /// The end of `data`, still growing.
    tail: BytesMut,
    queued: usize,
    closed: bool,
    /// Senders that wait for the queue to shrink.
    waiting: Vec<Waker>,
    /// When something was written last.
    written: Option<Instant>,
    /// Where large blobs go, if the other end is in this process. What is handed over there is in
    /// the order of the frames in the data lane.
    lane: Option<Arc<Lane>>,
}

impl Outbox {
    pub(crate) fn new(socket: Arc<Socket>, max_frame: usize, limit: usize) -> Self {
        let state = Mutex::new(Queue { socket: Some(socket), ..Queue::default() });
        let (work, left) = (Notify::new(), Notify::new());
        Self { state, work, left, max_frame, limit }
    }

    /// The same for a connection inside this process, which has a lane beside its socket.
    pub(crate) fn with_lane(self, lane: Option<Arc<Lane>>) -> Self {
        lock(&self.state).lane = lane;
        self
    }

    /// Takes one frame, whole or not at all. Never waits; any thread.
    pub(crate) fn push(
        &self,
        priority: Priority,
        message: &impl Serialize,
    ) -> Result<(), PushError> {
        let mut queue = lock(&self.state);
        if queue.closed {
            return Err(PushError::Closed);
        }
        let idle = queue.queued == 0;
        let added = match priority {
            Priority::Control => queue.add_control(message, self.max_frame).map(Added::Inline),
            Priority::Data => queue.add_data(message, self.max_frame),
        };
        match added.map_err(PushError::Frame)? {
            Added::Inline(length) => queue.queued += length,
            Added::Large(framed) => return self.append(queue, &framed),
        }
        let written = if idle { self.write_once(&mut queue) } else { Ok(()) };
        self.after(queue, written)
    }

    /// Takes one frame of the data lane, as one of several that are under way: in a burst it may
    /// wait for those that are pushed before the writer task's next turn, and go out with them.
    pub(crate) fn gather(&self, message: &impl Serialize) -> Result<(), PushError> {
        let mut queue = lock(&self.state);
        if queue.closed {
            return Err(PushError::Closed);
        }
        let (idle, start) = (queue.queued == 0, queue.tail.len());
        let added = queue.add_data(message, self.max_frame).map_err(PushError::Frame)?;
        if let Added::Large(framed) = added {
            return self.append(queue, &framed);
        }
        if idle && !queue.is_busy() {
            queue.queued += queue.tail.len() - start;
            let written = self.write_once(&mut queue);
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
        let mut queue = lock(&self.state);
        if queue.closed {
            return Err(ItemError::Push(PushError::Closed));
        }
        let start = queue.tail.len();
        let (length, large) = queue
            .add_item(call, value, self.max_frame)
            .map_err(|error| ItemError::Push(PushError::Frame(error)))?;
        let admitted = admit(length);
        let framed = match large {
            None if admitted.is_ok() => return self.taken(queue, start).map_err(ItemError::Push),
            None => queue.take_back(start, length, Vec::new()),
            Some(framed) => framed,
        };
        match admitted {
            Ok(()) => self.append(queue, &framed).map_err(ItemError::Push),
            Err(denied) => Err(ItemError::Denied(denied, framed)),
        }
    }

    /// The same for a message that is encoded already.
    pub(crate) fn push_framed(&self, framed: &Framed) -> Result<(), PushError> {
        let mut queue = lock(&self.state);
        if queue.closed {
            return Err(PushError::Closed);
        }
        if framed.total() >= BATCH || !framed.beside.is_empty() {
            return self.append(queue, framed);
        }
        let start = queue.tail.len();
        framed.pieces.iter().for_each(|piece| queue.tail.extend_from_slice(piece));
        self.taken(queue, start)
    }

    /// Queues a large frame as it is, after those before it.
    fn append(
        &self,
        mut queue: std::sync::MutexGuard<'_, Queue>,
        framed: &Framed,
    ) -> Result<(), PushError> {
        let idle = queue.queued == 0;
        queue.queued += framed.total();
        queue.seal_tail();
        queue.data.push_back(framed.pieces.clone());
        queue.hand_over(framed.beside.iter().cloned());
        let written = if idle { self.write_once(&mut queue) } else { Ok(()) };
        self.after(queue, written)
    }

    fn taken(
        &self,
        mut queue: std::sync::MutexGuard<'_, Queue>,
        start: usize,
    ) -> Result<(), PushError> {
        queue.queued += queue.tail.len() - start;
        if queue.tail.len() < BATCH {
            return Ok(());
        }
        let written = if queue.queued == queue.tail.len() {
            self.write_once(&mut queue)
        } else {
            queue.seal_tail();
            Ok(())
        };
        self.after(queue, written)
    }

    /// Sees to it that what is queued goes out: now, unless something was written a moment ago;
    /// then the writer task takes it together with what the caller adds before it next waits.
    pub(crate) fn flush_soon(&self) {
        let mut queue = lock(&self.state);
        if queue.queued == 0 {
            return;
        }
        let written = if queue.is_busy() { Ok(()) } else { self.write_once(&mut queue) };
        // A closed connection is told to everybody by its reader.
        let _closed = self.after(queue, written);
    }

    /// Wakes the writer task if something is left.
    fn after(
        &self,
        mut queue: std::sync::MutexGuard<'_, Queue>,
        written: Result<(), Errno>,
    ) -> Result<(), PushError> {
        let left = queue.queued > 0;
        let waiting = if queue.closed || queue.queued < self.limit {
            std::mem::take(&mut queue.waiting)
        } else {
            Vec::new()
        };
        drop(queue);
        waiting.into_iter().for_each(Waker::wake);
        if left {
            self.work.notify_one();
        }
        written.map_err(|_| PushError::Closed)
    }

    /// Ready when data may be pushed without growing the queue over its limit, or the connection
    /// is closed. Ended by the writer task, or by the closing of the connection.
    pub(crate) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let mut queue = lock(&self.state);
        if queue.closed || queue.queued < self.limit {
            return Poll::Ready(());
        }
        if !queue.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            queue.waiting.push(cx.waker().clone());
        }
        drop(queue);
        self.work.notify_one();
        Poll::Pending
    }

    /// Waits for that. Cancel safe: nothing is queued here.
    pub(crate) async fn room(&self) {
        std::future::poll_fn(|cx| self.poll_room(cx)).await;
    }

    /// Waits until everything is written, at most `bound`; says whether it was.
    pub(crate) async fn flush(&self, bound: Duration) -> bool {
        tokio::time::timeout(bound, self.write_all()).await.is_ok()
    }

    /// Nobody will push any more: who owns the connection writes what is left and ends it.
    pub(crate) fn leave(&self) {
        self.left.notify_one();
    }

    /// Waits until everybody has left. Cancel safe.
    pub(crate) async fn all_left(&self) {
        self.left.notified().await;
    }

    /// The writer task: writes what pushes had to leave behind, until the connection closes.
    pub(crate) async fn write_out(self: Arc<Self>) {
        loop {
            self.work.notified().await;
            if self.write_all().await.is_err() {
                return;
            }
        }
    }

    /// Ends the connection in both directions; what was received can still be read (C12).
    pub(crate) fn break_channel(&self) {
        let mut queue = lock(&self.state);
        queue.close();
        if let Some(socket) = &queue.socket {
            socket.shut();
        }
        let _told = self.after(queue, Ok(()));
        self.work.notify_one();
    }

    /// The same, and our half of the fd is closed: the other side has settled. What is still to be
    /// read is the reader's, with its own half.
    pub(crate) fn release(&self) {
        self.break_channel();
        let mut queue = lock(&self.state);
        let gone = (queue.socket.take(), queue.lane.take());
        drop(queue);
        drop(gone);
    }

    async fn write_all(&self) -> io::Result<()> {
        let mut second = Second::default();
        loop {
            match self.write_some() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let socket = lock(&self.state).socket.clone();
                    socket.ok_or(io::ErrorKind::BrokenPipe)?.room(&mut second).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes once; `Ok(true)` when nothing is left.
    fn write_some(&self) -> io::Result<bool> {
        let mut queue = lock(&self.state);
        if queue.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if queue.queued == 0 {
            return Ok(true);
        }
        let before = queue.queued;
        let written = self.write_once(&mut queue);
        let (stuck, done) = (queue.queued == before, queue.queued == 0);
        let waiting = if queue.closed || queue.queued < self.limit {
            std::mem::take(&mut queue.waiting)
        } else {
            Vec::new()
        };
        drop(queue);
        waiting.into_iter().for_each(Waker::wake);
        written.map_err(io::Error::from)?;
        if stuck { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(done) }
    }

    /// One system call's worth: what has begun, else control, else data. A full socket is no
    /// error; a broken one closes the queue.
    fn write_once(&self, queue: &mut Queue) -> Result<(), Errno> {
        if queue.current.is_empty() {
            queue.advance();
        }
        let sent = match queue.send() {
            Ok(sent) => sent,
            Err(Errno::EAGAIN) => return Ok(()),
            Err(errno) => {
                queue.close();
                return Err(errno);
            }
        };
        queue.queued -= sent;
        queue.drop_written(sent);
        queue.written = Some(Instant::now());
        Ok(())
    }
}

impl Queue {
    /// Appends a frame that may overtake; says how long it is.
    fn add_control(&mut self, message: &impl Serialize, limit: usize) -> Result<usize, FrameError> {
        let before = self.control.len();
        frame::encode(message, limit, &mut self.control)?;
        Ok(self.control.len() - before)
    }

    /// Appends one that keeps its place, and hands over what lies beside it; one that is followed by
    /// blobs is given back.
    fn add_data(&mut self, message: &impl Serialize, limit: usize) -> Result<Added, FrameError> {
        let before = self.tail.len();
        let blobs = frame::encode_apart(message, self.way(), limit, &mut self.tail)?;
        if self.way() == Blobs::Follow && !blobs.is_empty() {
            return Ok(Added::Large(self.take_back(before, 0, blobs)));
        }
        self.hand_over(blobs);
        Ok(Added::Inline(self.tail.len() - before))
    }

    /// Appends a stream's message, unless it has large blobs: then it is given back. And its length.
    fn add_item(
        &mut self,
        call: CallId,
        value: &impl Serialize,
        limit: usize,
    ) -> Result<(usize, Option<Framed>), FrameError> {
        let (before, way) = (self.tail.len(), self.way());
        let frame::Item { length, blobs } =
            frame::encode_item(call, value, way, limit, &mut self.tail)?;
        let large = (!blobs.is_empty()).then(|| self.take_back(before, length, blobs));
        Ok((length, large))
    }

    /// Where large blobs go here.
    fn way(&self) -> Blobs {
        if self.lane.is_some() { Blobs::Beside } else { Blobs::Follow }
    }

    /// The last frame, which begins at `before`, with its blobs in their place.
    fn take_back(&mut self, before: usize, length: usize, blobs: Vec<Bytes>) -> Framed {
        let mut pieces = vec![self.tail.split_off(before).freeze()];
        match self.way() {
            Blobs::Beside => Framed { length, pieces, beside: blobs },
            Blobs::Follow => {
                pieces.extend(blobs);
                Framed { length, pieces, beside: Vec::new() }
            }
        }
    }

    /// Before the frame can be out.
    fn hand_over(&self, blobs: impl IntoIterator<Item = Bytes>) {
        if let Some(lane) = &self.lane {
            lane.push(blobs);
        }
    }

    /// Whether something was written a moment ago, so that more may follow.
    fn is_busy(&self) -> bool {
        self.written.is_some_and(|written| written.elapsed() < BURST)
    }

    /// Puts the next whole frames into `current`.
    fn advance(&mut self) {
        if !self.control.is_empty() {
            self.current.push_back(self.control.split().freeze());
        } else if let Some(sealed) = self.data.pop_front() {
            self.current.extend(sealed);
        } else {
            self.current.push_back(self.tail.split().freeze());
        }
    }

    /// What comes later is not to be put before what is queued behind this.
    fn seal_tail(&mut self) {
        if !self.tail.is_empty() {
            let sealed = self.tail.split().freeze();
            self.data.push_back(vec![sealed]);
        }
    }

    /// Sends some of what is current.
    fn send(&self) -> Result<usize, Errno> {
        let Some(socket) = &self.socket else { return Err(Errno::EPIPE) };
        if let (Some(only), 1) = (self.current.front(), self.current.len()) {
            return socket.send(only);
        }
        let pieces = self.current.iter().take(MAX_PIECES);
        let pieces: Vec<_> = pieces.map(|piece| IoSlice::new(piece)).collect();
        socket.send_pieces(&pieces)
    }

    /// Forgets what is out, so that the buffers behind it may be used again.
    fn drop_written(&mut self, mut sent: usize) {
        while let Some(first) = self.current.front_mut() {
            if first.len() > sent {
                return first.advance(sent);
            }
            sent -= first.len();
            self.current.pop_front();
        }
    }

    fn close(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        let (socket, lane) = (self.socket.take(), self.lane.take());
        *self = Self { closed: true, waiting, socket, lane, ..Self::default() };
    }
}

/// What one system call takes.
const MAX_PIECES: usize = 64;
/// Messages of streams are written together from about this many bytes on.
const BATCH: usize = 32 * 1024;
/// Who sends again within this time is in a burst: gathering costs it nothing.
const BURST: Duration = Duration::from_micros(30);
