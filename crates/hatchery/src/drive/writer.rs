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
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use hatchery_proto::stream::Denied;
use hatchery_proto::{CallId, Config, FrameError, Lane, Part, Parts, Way, frame};
use nix::errno::Errno;
use serde::Serialize;
use tokio::sync::Notify;

use super::framed::Framed;
use super::socket::{FULL_TABLE_PAUSE, Second, Socket};
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

/// What became of a frame.
enum Added {
    /// It was appended; so long is it.
    Inline(usize),
    /// It has large pieces, which are not to be copied.
    Large(Framed),
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
    /// Where the other end is, if it is not in this process.
    across: Way,
}

#[derive(Debug, Default)]
struct Queue {
    /// Let go of when the other side has settled, whoever still holds a portal to it (C10).
    socket: Option<Arc<Socket>>,
    /// Whole frames, the first of which may be out in part, in pieces.
    current: VecDeque<Bytes>,
    /// Files that go with the next bytes, one a byte.
    files: VecDeque<Arc<OwnedFd>>,
    /// More files are on their way to somebody than the kernel wants.
    crowded: bool,
    control: BytesMut,
    /// Whole frames each, in pieces.
    data: VecDeque<Parcel>,
    /// The end of `data`, still growing.
    tail: BytesMut,
    queued: usize,
    closed: bool,
    /// Senders that wait for the queue to shrink.
    waiting: Vec<Waker>,
    /// When something was written last.
    written: Option<Instant>,
    /// Where large parts go, if the other end is in this process. What is handed over there is in
    /// the order of the frames in the data lane.
    lane: Option<Arc<Lane>>,
}

/// What stays together in the queue.
#[derive(Debug, Default)]
struct Parcel {
    pieces: Vec<Bytes>,
    /// What goes with its first bytes.
    files: Vec<Arc<OwnedFd>>,
}

impl Outbox {
    pub(crate) fn new(socket: Arc<Socket>, config: &Config) -> Self {
        let state = Mutex::new(Queue { socket: Some(socket), ..Queue::default() });
        let (work, left) = (Notify::new(), Notify::new());
        let across = Way::Across { files_from: config.memfd_from_bytes.unwrap_or(usize::MAX) };
        let (max_frame, limit) = (config.max_frame_bytes, config.outbox_bytes);
        Self { state, work, left, max_frame, limit, across }
    }

    /// Where the other end is.
    fn way(&self, queue: &Queue) -> Way {
        if queue.lane.is_some() { Way::Inside } else { self.across }
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
        let written = if idle { self.write_once(&mut queue) } else { Ok(()) };
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
        let written = if idle { self.write_once(&mut queue) } else { Ok(()) };
        self.after(queue, written)
    }

    fn taken(&self, mut queue: MutexGuard<'_, Queue>, start: usize) -> Result<(), PushError> {
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
        mut queue: MutexGuard<'_, Queue>,
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
                // Whoever reads, here or elsewhere, makes room for more files.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    tokio::time::sleep(FULL_TABLE_PAUSE).await;
                }
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
        let crowded = std::mem::take(&mut queue.crowded);
        let waiting = if queue.closed || queue.queued < self.limit {
            std::mem::take(&mut queue.waiting)
        } else {
            Vec::new()
        };
        drop(queue);
        waiting.into_iter().for_each(Waker::wake);
        written.map_err(io::Error::from)?;
        match (stuck, crowded) {
            (false, _) => Ok(done),
            (true, false) => Err(io::ErrorKind::WouldBlock.into()),
            (true, true) => Err(io::ErrorKind::ResourceBusy.into()),
        }
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
            Err(Errno::ETOOMANYREFS) => {
                queue.crowded = true;
                return Ok(());
            }
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

    /// Appends one that keeps its place, and hands over what lies beside it; one with large pieces is
    /// given back.
    fn add_data(
        &mut self,
        message: &impl Serialize,
        way: Way,
        limit: usize,
    ) -> Result<Added, FrameError> {
        let before = self.tail.len();
        let parts = frame::encode_apart(message, way, limit, &mut self.tail)?;
        let parts = self.copy_small(parts);
        if !parts.follow.is_empty() || (way != Way::Inside && !parts.beside.is_empty()) {
            return Ok(Added::Large(self.take_back(before, 0, parts)));
        }
        self.hand_over(parts.beside);
        Ok(Added::Inline(self.tail.len() - before))
    }

    /// Appends what follows the last frame if copying it costs less than a piece of its own.
    fn copy_small(&mut self, mut parts: Parts) -> Parts {
        let total: usize = parts.follow.iter().map(Bytes::len).sum();
        if total < SMALL {
            parts.follow.drain(..).for_each(|part| self.tail.extend_from_slice(&part));
        }
        parts
    }

    /// The last frame, which begins at `before`, with its parts.
    fn take_back(&mut self, before: usize, length: usize, parts: Parts) -> Framed {
        let mut pieces = vec![self.tail.split_off(before).freeze()];
        pieces.extend(parts.follow);
        Framed { length, pieces, beside: parts.beside }
    }

    /// Hands over what lies beside a frame, before that can be out; gives back what is to go with
    /// its first bytes.
    fn hand_over(&self, beside: Vec<Part>) -> Vec<Arc<OwnedFd>> {
        match &self.lane {
            Some(lane) => {
                lane.push(beside);
                Vec::new()
            }
            None => beside.into_iter().filter_map(super::framed::file).collect(),
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
            self.current.extend(sealed.pieces);
            self.files.extend(sealed.files);
        } else {
            self.current.push_back(self.tail.split().freeze());
        }
    }

    /// What comes later is not to be put before what is queued behind this.
    fn seal_tail(&mut self) {
        if !self.tail.is_empty() {
            let sealed = self.tail.split().freeze();
            self.data.push_back(Parcel { pieces: vec![sealed], files: Vec::new() });
        }
    }

    /// Sends some of what is current.
    fn send(&mut self) -> Result<usize, Errno> {
        let Some(socket) = self.socket.clone() else { return Err(Errno::EPIPE) };
        if !self.files.is_empty() {
            return self.send_file(&socket);
        }
        if let (Some(only), 1) = (self.current.front(), self.current.len()) {
            return socket.send(only);
        }
        let pieces = self.current.iter().take(MAX_PIECES);
        let pieces: Vec<_> = pieces.map(|piece| IoSlice::new(piece)).collect();
        socket.send_pieces(&pieces)
    }

    /// Sends the next file, with one byte if more files follow.
    fn send_file(&mut self, socket: &Socket) -> Result<usize, Errno> {
        let Some(file) = self.files.front() else { return Ok(0) };
        let pieces = self.current.iter().take(MAX_PIECES);
        let mut pieces: Vec<&[u8]> = pieces.map(|piece| &piece[..]).collect();
        if self.files.len() > 1 {
            pieces = pieces.first().map(|first| &first[..1]).into_iter().collect();
        }
        let pieces: Vec<_> = pieces.into_iter().map(IoSlice::new).collect();
        let sent = socket.send_with(&pieces, file)?;
        self.files.pop_front();
        Ok(sent)
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

/// Pieces that follow a frame and are less than this together are copied.
const SMALL: usize = 16 * 1024;
/// What one system call takes.
const MAX_PIECES: usize = 64;
/// Messages of streams are written together from about this many bytes on.
const BATCH: usize = 32 * 1024;
/// Who sends again within this time is in a burst: gathering costs it nothing.
const BURST: Duration = Duration::from_micros(30);
