//! The one way into a connection: bytes come in, whole messages go to one handler.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hatchery_proto::frame::{self, Frame};
use hatchery_proto::{CallId, Config, Decoder, Encoded, FrameError, Lane, MAX_FILES};
use hatchery_spawn::Incoming;
use serde::de::DeserializeOwned;

use super::framed;
use super::socket::Socket;

/// The receiving half of one connection. Owned by one task.
#[derive(Debug)]
pub(crate) struct Inbox {
    socket: Arc<Socket>,
    decoder: Decoder,
    /// How long it looks before it sleeps.
    spin: Duration,
    /// How many bytes of its buffer were handed out since it was filled last.
    lent: usize,
    /// Where large parts wait for their messages, once there were any.
    lane: Option<Arc<Lane>>,
    /// The other end is in this process, and puts them there.
    inside: bool,
}

/// What has come.
#[derive(Debug)]
pub(crate) enum Received<M> {
    /// From runtime to runtime.
    Message(M),
    /// For a stream.
    Item(CallId, Encoded),
}

/// Why nothing more will come.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The other side closed, died, or the channel was broken here: all one event.
    Closed,
    /// What came is no message, or not now; the connection must end (C15).
    Malformed(FrameError),
}

impl Ended {
    /// A well-formed message that breaks the rules.
    pub(crate) fn violation(error: impl std::fmt::Display) -> Self {
        Self::Malformed(FrameError::Decode(error.to_string()))
    }
}

impl Inbox {
    pub(crate) fn new(socket: Arc<Socket>, max_frame: usize) -> Self {
        let (decoder, spin) = (Decoder::new(max_frame), Duration::ZERO);
        Self { socket, decoder, spin, lent: 0, lane: None, inside: false }
    }

    /// The same with another limit for the frames to come.
    pub(crate) fn with_limit(mut self, max_frame: usize) -> Self {
        self.decoder.set_limit(max_frame);
        self
    }

    /// The same with the lane that the other end, if it is in this process, hands large parts over in.
    pub(crate) fn with_lane(mut self, lane: Option<Arc<Lane>>) -> Self {
        self.inside = lane.is_some();
        self.lane = lane;
        self
    }

    /// The same, which looks for messages as long as the configuration says before it sleeps.
    pub(crate) fn with_spin(mut self, config: &Config) -> Self {
        self.spin = if config.busy_poll.is_zero() || is_on_one_cpu() {
            Duration::ZERO
        } else {
            config.busy_poll
        };
        self
    }

    /// The next message. Ended by the peer's closing, which the kernel guarantees when it dies,
    /// or by `Outbox::break_channel`.
    ///
    /// Cancel safe: bytes that were read stay in the decoder.
    pub(crate) async fn next<M: DeserializeOwned>(&mut self) -> Result<Received<M>, Ended> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(Ended::Malformed)? {
                return self.whole(frame).map_err(Ended::Malformed);
            }
            if std::mem::take(&mut self.lent) >= LENT {
                // Who got them may be done with them after its turn; then the same memory is used
                // again, rather than new pages for every read.
                tokio::task::yield_now().await;
            }
            match self.socket.receive(self.decoder.buffer_mut(), self.spin).await {
                Ok(Incoming { bytes: 0, .. }) | Err(_) => return Err(Ended::Closed),
                Ok(Incoming { bytes, fds, lost }) => {
                    self.decoder.read(bytes);
                    if lost || !fds.is_empty() {
                        self.file(fds, lost)?;
                    }
                }
            }
        }
    }

    /// What came as a file waits for its message. One comes at a time, and all of a message with its
    /// first bytes: so none can pile up (C15).
    fn file(&mut self, fds: Vec<OwnedFd>, lost: bool) -> Result<(), Ended> {
        if self.inside || fds.len() + usize::from(lost) > 1 {
            return Err(Ended::violation("an fd that nobody asked for"));
        }
        let part = match fds.into_iter().next() {
            Some(fd) => framed::arrived(fd, self.decoder.limit()).map_err(Ended::violation)?,
            None => framed::no_fd(),
        };
        let lane = self.lane.get_or_insert_default();
        lane.push([part]);
        if lane.waiting_parts() > 2 * MAX_FILES {
            return Err(Ended::violation("more files than a message can have"));
        }
        Ok(())
    }

    /// A frame, and what was handed over beside it: in order, so also if nobody wants it.
    fn whole<M: DeserializeOwned>(&mut self, frame: Bytes) -> Result<Received<M>, FrameError> {
        self.lent += frame.len();
        let lane = self.lane.as_ref();
        match Frame::new(frame, lane)? {
            Frame::Item { call, value } => Ok(Received::Item(call, value)),
            Frame::Message(message) => frame::decode_message(&message, lane).map(Received::Message),
        }
    }

    /// The next message where no stream can be open yet.
    pub(crate) async fn first<M: DeserializeOwned>(&mut self) -> Result<M, Ended> {
        match self.next().await? {
            Received::Message(message) => Ok(message),
            Received::Item(call, _) => Err(Ended::violation(format!("a message of {call}"))),
        }
    }
}

/// Whether this process may use one CPU only: whoever looks there keeps others from answering.
fn is_on_one_cpu() -> bool {
    std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1)
}

/// So many bytes are worth waiting for.
const LENT: usize = 32 * 1024;
