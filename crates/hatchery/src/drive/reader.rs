//! The one way into a connection: bytes come in, whole messages go to one handler.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hatchery_proto::frame::{self, Frame};
use hatchery_proto::{CallId, Decoder, Encoded, FrameError, Lane, Part};
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
    /// A file whose frame is not whole yet; there may have been no fd for it.
    file: Option<Option<OwnedFd>>,
    /// Who wrote first, where the socket tells; nobody else may.
    writer: Option<i32>,
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
        Self { socket, decoder, spin, lent: 0, lane: None, inside: false, file: None, writer: None }
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

    /// The same, which looks for messages that long before it sleeps.
    pub(crate) fn with_spin(mut self, busy_poll: Duration) -> Self {
        let is_of_use = !busy_poll.is_zero() && !is_on_one_cpu();
        self.spin = if is_of_use { busy_poll } else { Duration::ZERO };
        self
    }

    /// The next message. Ended by the peer's closing, which the kernel guarantees when it dies,
    /// or by `Outbox::break_channel`.
    ///
    /// Cancel safe: bytes that were read stay in the decoder.
    pub(crate) async fn next<M: DeserializeOwned>(&mut self) -> Result<Received<M>, Ended> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(Ended::Malformed)? {
                match self.whole(frame).map_err(Ended::Malformed)? {
                    Some(received) => return Ok(received),
                    // Of the next one.
                    None => continue,
                }
            }
            if std::mem::take(&mut self.lent) >= LENT {
                // Who got them may be done with them after its turn; then the same memory is used
                // again, rather than new pages for every read.
                tokio::task::yield_now().await;
            }
            match self.socket.receive(self.decoder.buffer_mut(), self.spin).await {
                Ok(Incoming { bytes: 0, .. }) | Err(_) => return Err(Ended::Closed),
                Ok(Incoming { bytes, fds, lost, sender }) => {
                    if let Some(sender) = sender
                        && *self.writer.get_or_insert(sender) != sender
                    {
                        return Err(Ended::violation("another process speaks in its actor's name"));
                    }
                    self.decoder.read(bytes);
                    if lost || !fds.is_empty() {
                        self.file(fds, lost)?;
                    }
                }
            }
        }
    }

    /// A file has come; the frame that it goes with comes with it. One at a time, so none can pile
    /// up (C15).
    fn file(&mut self, fds: Vec<OwnedFd>, lost: bool) -> Result<(), Ended> {
        let file = match (fds.len(), lost) {
            (1, false) => fds.into_iter().next(),
            (0, true) => None,
            (_, _) => return Err(Ended::violation("more than one fd at once")),
        };
        if self.inside || self.file.replace(file).is_some() {
            return Err(Ended::violation("an fd that nobody asked for"));
        }
        Ok(())
    }

    /// Puts a part where its message looks for it.
    fn beside(&mut self, part: Part) -> Result<(), FrameError> {
        let lane = self.lane.get_or_insert_default();
        drop(lane.push([part]));
        // One message's at the most, and those of another that it waits for.
        let limit = 2 * self.decoder.limit();
        match lane.waiting_bytes() {
            length if length > limit || self.inside => Err(FrameError::TooLarge { length, limit }),
            _ => Ok(()),
        }
    }

    /// A frame, and what was handed over beside it: in order, so also if nobody wants it.
    fn whole<M: DeserializeOwned>(
        &mut self,
        frame: Bytes,
    ) -> Result<Option<Received<M>>, FrameError> {
        self.lent += frame.len();
        let lane = self.lane.as_ref();
        match Frame::new(frame, lane)? {
            Frame::Item { call, value } => {
                let (length, limit) = (value.len(), self.decoder.limit());
                if length > limit {
                    return Err(FrameError::TooLarge { length, limit });
                }
                Ok(Some(Received::Item(call, value)))
            }
            Frame::Message(message) => {
                frame::decode_message(&message, lane).map(Received::Message).map(Some)
            }
            Frame::Part(bytes) => self.beside(Part::Bytes(bytes)).map(|()| None),
            Frame::File => {
                let part = match self.file.take() {
                    Some(Some(file)) => framed::arrived(file, self.decoder.limit()),
                    Some(None) => Ok(framed::no_fd()),
                    None => Err(io::Error::other("the frame of a file without it")),
                };
                let part = part.map_err(|error| FrameError::Decode(error.to_string()))?;
                self.beside(part).map(|()| None)
            }
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

impl Drop for Inbox {
    /// What was handed over and not read is dropped here, by whoever was to read it, and not by a
    /// supervisor that has other things to do.
    fn drop(&mut self) {
        if let Some(lane) = &self.lane {
            lane.close();
        }
    }
}

/// Whether this process may use one CPU only: whoever looks there keeps others from answering.
fn is_on_one_cpu() -> bool {
    std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1)
}

/// So many bytes are worth waiting for.
const LENT: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// C10: what was handed over and not read goes with its reader, and not with who holds the other
    /// end, a supervisor as it may be; nor does anything wait there afterwards.
    #[test]
    fn what_was_not_read_goes_with_its_reader() {
        let lane = Arc::new(Lane::default());
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let inbox = Inbox::new(Arc::new(Socket::new(ours).unwrap()), 1 << 16);
            let inbox = inbox.with_lane(Some(lane.clone()));
            lane.push([Part::Bytes(Bytes::from_static(b"unread"))]);
            drop(inbox);
        });
        assert_eq!(lane.pop(), None);
        assert_eq!(lane.push([Part::Bytes(Bytes::from_static(b"late"))]).len(), 1);
    }
}
