//! A stream's message on its way into the queue: encoded where no lock is held, for that runs the
//! `Serialize` of whoever sends it.

use std::cell::Cell;

use bytes::{Bytes, BytesMut};
use hatchery_proto::{CallId, FrameError, Part, Parts, Way, frame};
use serde::Serialize;

use super::framed::Framed;

thread_local! {
    /// What the last message was encoded in.
    static SCRATCH: Cell<Option<BytesMut>> = const { Cell::new(None) };
}

/// One message's frame, and its large parts.
#[derive(Debug)]
pub(crate) struct Item {
    pub(super) frame: BytesMut,
    pub(super) parts: Parts,
    /// How many bytes its value has.
    pub(super) length: usize,
}

impl Item {
    /// Encodes a message, or moves it as it is if it has that many bytes or more; `settle` is
    /// applied to each of its large parts.
    pub(super) fn new<T>(
        call: CallId,
        value: T,
        (way, moves_from): (Way, Option<usize>),
        settle: impl FnMut(Part) -> Result<Part, String>,
        limit: usize,
    ) -> Result<Self, FrameError>
    where
        T: Serialize + Send + 'static,
    {
        let mut frame = SCRATCH.take().unwrap_or_default();
        let encoded = match moves_from {
            Some(from) => frame::move_item(call, value, from, settle, limit, &mut frame),
            None => frame::encode_item(call, &value, way, settle, limit, &mut frame),
        };
        let mut item = Self { frame, parts: Parts::default(), length: 0 };
        let frame::Item { length, parts } = encoded?;
        (item.parts, item.length) = (parts, length);
        Ok(item)
    }

    /// Shares of what is handed over, for who must not drop it where the message is dropped.
    pub(super) fn shares(&self) -> Vec<Part> {
        self.parts.beside.clone()
    }

    /// The bytes that follow, if they are few, become a part of the frame.
    pub(super) fn copy_small(&mut self) {
        copy_small(&mut self.parts, &mut self.frame);
    }

    /// The same as pieces of their own.
    pub(super) fn framed(mut self) -> Framed {
        let mut pieces = vec![self.frame.split().freeze()];
        let Parts { beside, follow } = std::mem::take(&mut self.parts);
        pieces.extend(follow);
        Framed { length: self.length, pieces, beside }
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        let mut frame = std::mem::take(&mut self.frame);
        if frame.capacity() <= KEPT {
            frame.clear();
            SCRATCH.set(Some(frame));
        }
    }
}

/// Appends what follows a frame if copying it costs less than a piece of its own.
pub(super) fn copy_small(parts: &mut Parts, frame: &mut BytesMut) {
    let total: usize = parts.follow.iter().map(Bytes::len).sum();
    if total < SMALL {
        parts.follow.drain(..).for_each(|part| frame.extend_from_slice(&part));
    }
}

/// Pieces that follow a frame and are less than this together are copied.
const SMALL: usize = 16 * 1024;
/// No thread holds on to a larger buffer than this.
const KEPT: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use hatchery_proto::board::Kind;
    use hatchery_proto::stream::{Policy, Terms};
    use hatchery_proto::{ActorPath, Config, Encoded, Lane};
    use serde::Serializer;

    use super::*;
    use crate::board::Mark;
    use crate::drive::pipe::{Pipe, Side};
    use crate::drive::socket::Socket;
    use crate::drive::writer::Outbox;

    /// Its destructor looks at the context that it was sent in, as a user's may.
    struct Looks(Arc<Pipe>, mpsc::Sender<u64>);

    impl Drop for Looks {
        fn drop(&mut self) {
            self.1.send(self.0.stats().sent).unwrap();
        }
    }

    impl Serialize for Looks {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_unit()
        }
    }

    /// A context that is open, on a connection inside this process.
    fn open(lane: &Arc<Lane>) -> (Arc<Pipe>, Arc<Outbox>) {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let config = Config { move_from_bytes: Some(0), ..Config::default() };
        let outbox = Outbox::new(Arc::new(Socket::new(ours).unwrap()), &config);
        let outbox = Arc::new(outbox.with_lane(Some(lane.clone())));
        let line = Mark::new(&Arc::default()).enter(Kind::Context, 0, "root/a", "f");
        let terms = Terms { credit: config.stream_credit, policy: Policy::default() };
        let (call, peer) = (CallId::new(1), ActorPath::root());
        let pipe = Pipe::new(Side::Opener, call, peer, outbox.clone(), terms, line);
        pipe.started(Encoded::of(&()).unwrap()).unwrap();
        (pipe, outbox)
    }

    /// C14: a message that nobody takes any more is dropped after the locks of whoever sends it, both
    /// when its reader is gone and when the connection is closed, which the context doesn't know yet.
    #[test]
    fn a_message_that_nobody_takes_is_dropped_without_locks() {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = tokio.enter();
        for is_closed in [false, true] {
            let lane = Arc::new(Lane::default());
            let (pipe, outbox) = open(&lane);
            if is_closed {
                outbox.break_channel()
            } else {
                lane.close()
            }
            let (dropped, told) = mpsc::channel();
            let sending = pipe.clone();
            std::thread::spawn(move || drop(pipe.try_send(Looks(sending, dropped))));
            // Only a hang takes this long.
            let sent = told.recv_timeout(Duration::from_secs(10)).expect("it could look");
            assert_eq!(sent, u64::from(!is_closed));
        }
    }
}
