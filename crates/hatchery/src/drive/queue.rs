//! What waits to be written to a connection, in which order, and how much of it goes at once.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use hatchery_proto::{FrameError, Lane, Part, Sealed, Wakers, Way, frame};
use nix::errno::Errno;
use serde::Serialize;

use super::framed::{self, Framed};
use super::item::copy_small;
use super::socket::Socket;

/// What became of a frame.
pub(super) enum Added {
    /// It was appended; so long is it.
    Inline(usize),
    /// It has large pieces, which are not to be copied.
    Large(Framed),
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Let go of when the other side has settled, whoever still holds a portal to it (C10).
    pub(super) socket: Option<Arc<Socket>>,
    /// Whole frames, the first of which may be out in part, in pieces.
    current: VecDeque<Bytes>,
    /// What goes with the first byte of those, which is not out yet.
    file: Option<Sealed>,
    /// How many bytes files have that are queued.
    held: usize,
    /// How many files went since the other side had read everything.
    under_way: usize,
    pub(super) control: BytesMut,
    /// Whole frames each, in pieces.
    data: VecDeque<Parcel>,
    /// The end of `data`, still growing.
    pub(super) tail: BytesMut,
    pub(super) queued: usize,
    pub(super) closed: bool,
    /// Senders that wait for the queue to shrink.
    pub(super) waiting: Wakers,
    /// When something was written last.
    pub(super) written: Option<Instant>,
    /// Where large parts go, if the other end is in this process. What is handed over there is in
    /// the order of the frames in the data lane.
    pub(super) lane: Option<Arc<Lane>>,
}

/// What stays together in the queue.
#[derive(Debug, Default)]
pub(super) struct Parcel {
    pieces: Vec<Bytes>,
    /// What goes with its first byte.
    file: Option<Sealed>,
}

impl Queue {
    pub(super) fn new(socket: Arc<Socket>) -> Self {
        Self { socket: Some(socket), ..Self::default() }
    }

    /// Appends a frame that may overtake; says how long it is.
    pub(super) fn add_control(
        &mut self,
        message: &impl Serialize,
        limit: usize,
    ) -> Result<usize, FrameError> {
        let before = self.control.len();
        frame::encode(message, limit, &mut self.control)?;
        Ok(self.control.len() - before)
    }

    /// Appends one that keeps its place, and hands over what lies beside it; one with large pieces is
    /// given back.
    pub(super) fn add_data(
        &mut self,
        message: &impl Serialize,
        way: Way,
        limit: usize,
    ) -> Result<Added, FrameError> {
        let before = self.tail.len();
        let mut parts = frame::encode_apart(message, way, limit, &mut self.tail)?;
        copy_small(&mut parts, &mut self.tail);
        if !parts.follow.is_empty() || (way == Way::Across && !parts.beside.is_empty()) {
            let mut pieces = vec![self.tail.split_off(before).freeze()];
            pieces.extend(parts.follow);
            return Ok(Added::Large(Framed { length: 0, pieces, beside: parts.beside }));
        }
        self.hand_over(parts.beside);
        Ok(Added::Inline(self.tail.len() - before))
    }

    /// Appends a large frame, after the files that belong to it.
    pub(super) fn append(&mut self, framed: Framed) {
        self.seal_tail();
        let total = framed.total();
        self.hand_over(framed.beside);
        self.queued += total;
        self.data.push_back(Parcel { pieces: framed.pieces, file: None });
    }

    /// Hands over what lies beside the next frame: as it is to a thread, else each file with a frame
    /// of its own.
    pub(super) fn hand_over(&mut self, beside: Vec<Part>) {
        if let Some(lane) = &self.lane {
            // The reader is gone and the end of the channel about to be noticed. Whoever sends has
            // another share of what is dropped here, for it may be a value of a user's.
            drop(lane.push(beside));
            return;
        }
        for part in beside {
            if let Part::File(sealed) = part {
                let pieces = vec![frame::file_frame()];
                self.queued += pieces[0].len();
                self.held += sealed.bytes.len();
                self.data.push_back(Parcel { pieces, file: Some(sealed) });
            }
        }
    }

    /// Whether there is as much as `limit`, files included.
    pub(super) fn is_full(&self, limit: usize) -> bool {
        self.queued + self.held >= limit
    }

    /// Whether there is less than `limit` and nobody need ask who takes values; or it is closed.
    pub(super) fn has_room(&self, limit: usize) -> bool {
        self.closed || (!self.is_full(limit) && self.lane.is_none() && self.waiting.is_empty())
    }

    /// Ready when there is less than `limit`, values included that nobody has taken yet, or the
    /// queue is closed.
    pub(super) fn poll_room(&mut self, limit: usize, cx: &Context<'_>) -> Poll<()> {
        if self.closed {
            return Poll::Ready(());
        }
        if !self.is_full(limit) {
            let left = limit - self.queued - self.held;
            return self.lane.as_ref().map_or(Poll::Ready(()), |lane| lane.poll_room(left, cx));
        }
        self.waiting.add(cx.waker());
        Poll::Pending
    }

    /// Those who need wait no longer for the queue to be below `limit`.
    pub(super) fn released(&mut self, limit: usize) -> Vec<Waker> {
        if !self.closed && self.is_full(limit) {
            return Vec::new();
        }
        let mut released = self.waiting.take();
        if let Some(lane) = self.lane.as_ref().filter(|_| self.closed) {
            released.extend(lane.senders());
        }
        released
    }

    /// Whether something was written a moment ago, so that more may follow.
    pub(super) fn is_busy(&self) -> bool {
        self.written.is_some_and(|written| written.elapsed() < BURST)
    }

    /// Puts the next whole frames into `current`.
    fn advance(&mut self) {
        if !self.control.is_empty() {
            self.current.push_back(self.control.split().freeze());
        } else if let Some(sealed) = self.data.pop_front() {
            self.current.extend(sealed.pieces);
            self.file = sealed.file;
        } else {
            self.current.push_back(self.tail.split().freeze());
        }
    }

    /// What comes later is not to be put before what is queued behind this.
    pub(super) fn seal_tail(&mut self) {
        if !self.tail.is_empty() {
            let sealed = self.tail.split().freeze();
            self.data.push_back(Parcel { pieces: vec![sealed], file: None });
        }
    }

    /// Sends some of what is current.
    fn send(&mut self) -> Result<usize, Errno> {
        let Some(socket) = self.socket.clone() else { return Err(Errno::EPIPE) };
        if let Some(sealed) = self.file.take() {
            match self.send_file(&socket, &sealed) {
                Err(Errno::ETOOMANYREFS) => self.send_as_bytes(sealed),
                Err(Errno::EAGAIN) => {
                    self.file = Some(sealed);
                    return Err(Errno::EAGAIN);
                }
                sent => return sent,
            }
        }
        if let (Some(only), 1) = (self.current.front(), self.current.len()) {
            return socket.send(only);
        }
        let pieces = self.current.iter().take(MAX_PIECES);
        let pieces: Vec<_> = pieces.map(|piece| IoSlice::new(piece)).collect();
        socket.send_pieces(&pieces)
    }

    /// Sends a file. How many can be on their way is limited for a user, not for a process: so that
    /// who doesn't read uses up little of that, there are few for each connection.
    fn send_file(&mut self, socket: &Socket, sealed: &Sealed) -> Result<usize, Errno> {
        if self.under_way >= MAX_UNDER_WAY && socket.is_read_out() {
            self.under_way = 0;
        }
        let (Some(frame), Some(file)) = (self.current.front(), framed::passable(sealed)) else {
            return Err(Errno::ETOOMANYREFS);
        };
        if self.under_way >= MAX_UNDER_WAY {
            return Err(Errno::ETOOMANYREFS);
        }
        let sent = socket.send_with(&[IoSlice::new(frame)], &file)?;
        self.under_way += 1;
        self.held -= sealed.bytes.len();
        Ok(sent)
    }

    /// What can't go as a file is written in its place.
    fn send_as_bytes(&mut self, sealed: Sealed) {
        let length = sealed.bytes.len();
        let head = frame::part_head(length);
        self.held -= length;
        self.queued -= self.current.iter().map(Bytes::len).sum::<usize>();
        self.queued += head.len() + length;
        self.current.clear();
        self.current.extend([head, sealed.bytes]);
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

    pub(super) fn close(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        let (socket, lane) = (self.socket.take(), self.lane.take());
        *self = Self { closed: true, waiting, socket, lane, ..Self::default() };
    }

    /// One system call's worth: what has begun, else control, else data; says how much. A full socket
    /// is no error; a broken one closes the queue.
    pub(super) fn write_once(&mut self) -> Result<usize, Errno> {
        if self.current.is_empty() {
            self.advance();
        }
        let sent = match self.send() {
            Ok(sent) => sent,
            Err(Errno::EAGAIN) => return Ok(0),
            Err(errno) => {
                self.close();
                return Err(errno);
            }
        };
        self.queued -= sent;
        self.drop_written(sent);
        self.written = Some(Instant::now());
        Ok(sent)
    }
}

/// How many files may wait for one reader.
const MAX_UNDER_WAY: usize = 32;
/// What one system call takes.
const MAX_PIECES: usize = 64;
/// Who sends again within this time is in a burst: gathering costs it nothing.
const BURST: Duration = Duration::from_micros(30);
