//! The one way out of a connection: frames go in whole, bytes go out in order.
//!
//! A frame is written at once when nothing is queued, by whoever pushes it and without waiting;
//! what the socket doesn't take is left to the writer task. So a user's future never holds half a
//! frame: a push is not an await point and can't be dropped in the middle (H23). Control frames
//! overtake queued data at the next frame border (H22).
//!
//! Lock order: `state` is the innermost lock of this crate; nothing is called while it is held.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use hatchery_proto::FrameError;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};
use serde::Serialize;
use std::os::fd::AsRawFd;
use tokio::net::UnixStream;
use tokio::sync::Notify;

/// Which queue a frame joins when it can't be written at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Cancels, acknowledgements, endings: before any queued data.
    Control,
    /// Calls and replies.
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

/// The sending half of one connection.
#[derive(Debug)]
pub(crate) struct Outbox {
    stream: Arc<UnixStream>,
    state: Mutex<Queue>,
    /// Rung when something is queued; the writer task waits on it.
    work: Notify,
    /// Rung when the queue shrinks below `limit`; senders of data wait on it.
    room: Notify,
    max_frame: usize,
    limit: usize,
}

#[derive(Debug, Default)]
struct Queue {
    /// The frame whose first bytes may be out already.
    current: Bytes,
    control: VecDeque<Bytes>,
    data: VecDeque<Bytes>,
    queued: usize,
    scratch: BytesMut,
    closed: bool,
}

impl Outbox {
    pub(crate) fn new(stream: Arc<UnixStream>, max_frame: usize, limit: usize) -> Self {
        let state = Mutex::new(Queue::default());
        Self { stream, state, work: Notify::new(), room: Notify::new(), max_frame, limit }
    }

    /// Takes one frame, whole or not at all. Never waits; any thread.
    pub(crate) fn push(&self, lane: Lane, message: &impl Serialize) -> Result<(), PushError> {
        let mut queue = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.closed {
            return Err(PushError::Closed);
        }
        let Queue { scratch, .. } = &mut *queue;
        hatchery_proto::frame::encode(message, self.max_frame, scratch)
            .map_err(PushError::Frame)?;
        if queue.queued == 0 {
            let sent = match self.send(&queue.scratch) {
                Ok(sent) => sent,
                Err(Errno::EAGAIN | Errno::EINTR) => 0,
                Err(_) => {
                    queue.close();
                    return Err(PushError::Closed);
                }
            };
            queue.scratch.advance(sent);
            if queue.scratch.is_empty() {
                queue.scratch.clear();
                return Ok(());
            }
            queue.current = queue.scratch.split().freeze();
            queue.queued = queue.current.len();
        } else {
            let frame = queue.scratch.split().freeze();
            queue.queued += frame.len();
            match lane {
                Lane::Control => queue.control.push_back(frame),
                Lane::Data => queue.data.push_back(frame),
            }
        }
        drop(queue);
        self.work.notify_one();
        Ok(())
    }

    /// Waits until data may be pushed without growing the queue over its limit. Ended by the
    /// writer task, or by the closing of the connection. Cancel safe: nothing is queued here.
    pub(crate) async fn room(&self) {
        loop {
            let rung = self.room.notified();
            tokio::pin!(rung);
            rung.as_mut().enable();
            {
                let queue = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if queue.closed || queue.queued < self.limit {
                    return;
                }
            }
            rung.await;
        }
    }

    /// Waits until everything is written, at most `bound`; says whether it was.
    pub(crate) async fn flush(&self, bound: Duration) -> bool {
        tokio::time::timeout(bound, self.write_all()).await.is_ok()
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner).close();
        // Already gone is as good as broken.
        let _gone = shutdown(self.stream.as_raw_fd(), Shutdown::Both);
        self.room.notify_waiters();
        self.work.notify_one();
    }

    async fn write_all(&self) -> io::Result<()> {
        loop {
            match self.write_some() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.writable().await?;
                    // `try_io` clears tokio's memory of readiness when the socket is full.
                    let tried = self
                        .stream
                        .try_io(tokio::io::Interest::WRITABLE, || self.write_some().map(drop));
                    if let Err(error) = tried
                        && error.kind() != io::ErrorKind::WouldBlock
                    {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes once; `Ok(true)` when nothing is left.
    fn write_some(&self) -> io::Result<bool> {
        let mut queue = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if queue.current.is_empty() && !queue.advance() {
            return Ok(true);
        }
        match self.send(&queue.current) {
            Ok(sent) => {
                queue.current.advance(sent);
                queue.queued -= sent;
                let roomy = queue.queued < self.limit;
                let done = queue.queued == 0;
                drop(queue);
                if roomy {
                    self.room.notify_waiters();
                }
                Ok(done)
            }
            Err(Errno::EINTR) => Ok(false),
            Err(Errno::EAGAIN) => Err(io::ErrorKind::WouldBlock.into()),
            Err(errno) => {
                queue.close();
                drop(queue);
                self.room.notify_waiters();
                Err(errno.into())
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.stream.as_raw_fd(), bytes, flags)
    }
}

impl Queue {
    /// Puts the next frames into `current`, control first, small ones together; says whether
    /// there was one.
    fn advance(&mut self) -> bool {
        let Some(first) = self.control.pop_front().or_else(|| self.data.pop_front()) else {
            return false;
        };
        if first.len() >= BATCH {
            self.current = first;
            return true;
        }
        let mut batch = BytesMut::from(&first[..]);
        while batch.len() < BATCH {
            let Some(next) = self.control.pop_front().or_else(|| self.data.pop_front()) else {
                break;
            };
            batch.extend_from_slice(&next);
        }
        self.current = batch.freeze();
        true
    }

    fn close(&mut self) {
        *self = Self { closed: true, ..Self::default() };
    }
}

/// Small frames are written together up to about this many bytes.
const BATCH: usize = 32 * 1024;
