//! The one way into a connection: bytes come in, whole messages go to one handler.

use std::io;
use std::sync::Arc;

use hatchery_proto::{Decoder, FrameError};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// The receiving half of one connection. Owned by one task.
#[derive(Debug)]
pub(crate) struct Inbox {
    stream: Arc<UnixStream>,
    decoder: Decoder,
}

/// Why nothing more will come.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The other side closed, died, or the channel was broken here: all one event.
    Closed,
    /// What came is no message; the connection must end (C15).
    Malformed(FrameError),
}

impl Inbox {
    pub(crate) fn new(stream: Arc<UnixStream>, max_frame: usize) -> Self {
        Self { stream, decoder: Decoder::new(max_frame) }
    }

    /// The same with another limit for the frames to come.
    pub(crate) fn with_limit(mut self, max_frame: usize) -> Self {
        self.decoder.set_limit(max_frame);
        self
    }

    /// The next message. Ended by the peer's closing, which the kernel guarantees when it dies,
    /// or by `Outbox::break_channel`.
    ///
    /// Cancel safe: bytes that were read stay in the decoder.
    pub(crate) async fn next<M: DeserializeOwned>(&mut self) -> Result<M, Ended> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(Ended::Malformed)? {
                return hatchery_proto::frame::decode(&frame).map_err(Ended::Malformed);
            }
            match self.stream.try_read_buf(self.decoder.buffer_mut()) {
                Ok(0) => return Err(Ended::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.stream.readable().await.is_err() {
                        return Err(Ended::Closed);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Ended::Closed),
            }
        }
    }
}
