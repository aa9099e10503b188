//! What goes wrong between peers, before there is a connection.

use std::io;
use std::time::Duration;

use hatchery_proto::{ActorPath, HandshakeError, Reason};

use super::OpenError;

/// A peer that could not be introduced or reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The actor that would be introduced goes down.
    #[error("this actor goes down and lets no peers in any more: {0}")]
    Closing(Reason),
    /// Nobody listens there any more: the actor has ended, or is about to. Ask its spawner.
    #[error("peer `{path}` is gone")]
    Gone {
        /// Whose introduction it was.
        path: ActorPath,
    },
    /// The actor does not let us in.
    #[error("peer `{path}` refused: {cause}")]
    Refused {
        /// Whose introduction it was.
        path: ActorPath,
        /// Why.
        cause: HandshakeError,
    },
    /// Whoever listens there is no actor of hatchery.
    #[error("what answered for peer `{path}` does not speak our protocol")]
    Stranger {
        /// Whose introduction it was.
        path: ActorPath,
    },
    /// It is there, but does not answer: stopped, stuck in a loop that never awaits, or its queue
    /// is full.
    #[error("peer `{path}` did not answer within {waited:?}")]
    Handshake {
        /// Whose introduction it was.
        path: ActorPath,
        /// `Config::handshake`.
        waited: Duration,
    },
    /// The runtime of this process could not be opened.
    #[error("for peers: {0}")]
    Open(OpenError),
    /// The operating system refused.
    #[error("{call} for a peer: {cause}")]
    System {
        /// The call.
        call: &'static str,
        /// What it said.
        cause: io::Error,
    },
}

impl From<OpenError> for PeerError {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}
