//! What waits to be written to a connection, in which order, and how much of it goes at once.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use hatchery_proto::{FrameError, Lane, Part, Parts, Way, frame};
use nix::errno::Errno;
use serde::Serialize;

use super::framed::{self, Framed};
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
    pub(super) current: VecDeque<Bytes>,
    /// Files that go with the next bytes, one a byte.
    pub(super) files: VecDeque<Arc<OwnedFd>>,
    /// More files are on their way to somebody than the kernel wants.
    pub(super) crowded: bool,
    pub(super) control: BytesMut,
    /// Whole frames each, in pieces.
    pub(super) data: VecDeque<Parcel>,
    /// The end of `data`, still growing.
    pub(super) tail: BytesMut,
    pub(super) queued: usize,
    pub(super) closed: bool,
    /// Senders that wait for the queue to shrink.
    pub(super) waiting: Vec<Waker>,
    /// When something was written last.
    pub(super) written: Option<Instant>,
    /// Where large parts go, if the other end is in this process. What is handed over there is in
    /// the order of the frames in the data lane.
    pub(super) lane: Option<Arc<Lane>>,
}

/// What stays together in the queue.
#[derive(Debug, Default)]
pub(super) struct Parcel {
    pub(super) pieces: Vec<Bytes>,
    /// What goes with its first bytes.
    pub(super) files: Vec<Arc<OwnedFd>>,
}

impl Queue {
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
        let parts = frame::encode_apart(message, way, limit, &mut self.tail)?;
        let parts = self.copy_small(parts);
        if !parts.follow.is_empty() || (way != Way::Inside && !parts.beside.is_empty()) {
            return Ok(Added::Large(self.take_back(before, 0, parts)));
        }
        self.hand_over(parts.beside);
        Ok(Added::Inline(self.tail.len() - before))
    }

    /// Appends what follows the last frame if copying it costs less than a piece of its own.
    pub(super) fn copy_small(&mut self, mut parts: Parts) -> Parts {
        let total: usize = parts.follow.iter().map(Bytes::len).sum();
        if total < SMALL {
            parts.follow.drain(..).for_each(|part| self.tail.extend_from_slice(&part));
        }
        parts
    }

    /// The last frame, which begins at `before`, with its parts.
    pub(super) fn take_back(&mut self, before: usize, length: usize, parts: Parts) -> Framed {
        let mut pieces = vec![self.tail.split_off(before).freeze()];
        pieces.extend(parts.follow);
        Framed { length, pieces, beside: parts.beside }
    }

    /// Hands over what lies beside a frame, before that can be out; gives back what is to go with
    /// its first bytes.
    pub(super) fn hand_over(&self, beside: Vec<Part>) -> Vec<Arc<OwnedFd>> {
        match &self.lane {
            Some(lane) => {
                lane.push(beside);
                Vec::new()
            }
            None => beside.into_iter().filter_map(framed::file).collect(),
        }
    }

    /// Those who need wait no longer for the queue to be below `limit`.
    pub(super) fn released(&mut self, limit: usize) -> Vec<Waker> {
        if self.closed || self.queued < limit {
            std::mem::take(&mut self.waiting)
        } else {
            Vec::new()
        }
    }

    /// Whether something was written a moment ago, so that more may follow.
    pub(super) fn is_busy(&self) -> bool {
        self.written.is_some_and(|written| written.elapsed() < BURST)
    }

    /// Puts the next whole frames into `current`.
    pub(super) fn advance(&mut self) {
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
    pub(super) fn seal_tail(&mut self) {
        if !self.tail.is_empty() {
            let sealed = self.tail.split().freeze();
            self.data.push_back(Parcel { pieces: vec![sealed], files: Vec::new() });
        }
    }

    /// Sends some of what is current.
    pub(super) fn send(&mut self) -> Result<usize, Errno> {
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
    pub(super) fn send_file(&mut self, socket: &Socket) -> Result<usize, Errno> {
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
    pub(super) fn drop_written(&mut self, mut sent: usize) {
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

    /// One system call's worth: what has begun, else control, else data. A full socket is no
    /// error; a broken one closes the self.
    pub(super) fn write_once(&mut self) -> Result<(), Errno> {
        if self.current.is_empty() {
            self.advance();
        }
        let sent = match self.send() {
            Ok(sent) => sent,
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::ETOOMANYREFS) => {
                self.crowded = true;
                return Ok(());
            }
            Err(errno) => {
                self.close();
                return Err(errno);
            }
        };
        self.queued -= sent;
        self.drop_written(sent);
        self.written = Some(Instant::now());
        Ok(())
    }
}

/// Pieces that follow a frame and are less than this together are copied.
const SMALL: usize = 16 * 1024;
/// What one system call takes.
const MAX_PIECES: usize = 64;
/// Who sends again within this time is in a burst: gathering costs it nothing.
const BURST: Duration = Duration::from_micros(30);
