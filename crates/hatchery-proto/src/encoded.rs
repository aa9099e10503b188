//! Encoded values, whose large blobs may lie beside them.
//!
//! Two actors in one process need not copy bytes through a socket: what is encoded goes there, and
//! its large [`Blob`](crate::Blob)s are handed over in a [`Lane`] beside it, in the same order. In
//! the encoded value stands the number of each in their place. So a value is checked, limited and
//! answered in the same way on every backend, and on a thread the bytes in it are never copied.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::ser::{Error as _, SerializeTuple as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::blob;
use crate::frame::{self, FrameError};

/// A value as MessagePack, but for the large blobs in it if it stays in this process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    bytes: Bytes,
    beside: Vec<Bytes>,
    way: Way,
}

/// How a value travels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Way {
    /// Through a socket, whole.
    #[default]
    Whole,
    /// Inside this process: blobs of 16 KiB and more are shared and not copied.
    Apart,
}

/// Where blobs wait whose messages are under way between two ends inside one process. First in,
/// first out, as the messages are.
#[derive(Debug, Default)]
pub struct Lane(Mutex<VecDeque<Bytes>>);

impl Encoded {
    /// Encodes a value.
    ///
    /// # Errors
    /// [`FrameError::Encode`].
    pub fn of(value: &impl Serialize, way: Way) -> Result<Self, FrameError> {
        let write = || {
            let bytes = rmp_serde::to_vec(value);
            bytes.map(Bytes::from).map_err(|error| FrameError::Encode(error.to_string()))
        };
        let (bytes, beside) = match way {
            Way::Whole => (write(), Vec::new()),
            Way::Apart => blob::apart(write),
        };
        Ok(Self { bytes: bytes?, beside, way })
    }

    /// Takes from a lane what belongs to a message that has come.
    pub(crate) fn taken(bytes: Bytes, count: usize, lane: &Lane) -> Result<Self, FrameError> {
        let missing =
            || FrameError::Decode("a blob was not handed over beside its message".to_owned());
        let beside =
            (0..count).map(|_| lane.pop().ok_or_else(missing)).collect::<Result<_, _>>()?;
        Ok(Self { bytes, beside, way: Way::Apart })
    }

    /// The way it came, by which its answer goes.
    #[must_use]
    pub fn way(&self) -> Way {
        self.way
    }

    /// How long it is, blobs included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() + self.beside.iter().map(Bytes::len).sum::<usize>()
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same, which keeps no large buffer for a part of less than `small` bytes.
    #[must_use]
    pub fn detached(mut self, small: usize) -> Self {
        if self.bytes.len() < small {
            self.bytes = Bytes::copy_from_slice(&self.bytes);
        }
        self
    }

    /// Decodes the value; large blobs in it share this memory.
    ///
    /// # Errors
    /// [`FrameError::Decode`] says what was found in the place of what.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        blob::beside(&self.beside, || frame::decode_shared(&self.bytes))
    }
}

impl From<Bytes> for Encoded {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, beside: Vec::new(), way: Way::Whole }
    }
}

impl Lane {
    /// Hands over what lies beside a message that is about to be sent.
    pub fn push(&self, blobs: impl IntoIterator<Item = Bytes>) {
        self.waiting().extend(blobs);
    }

    /// Takes the next one; `None`: nobody has handed it over, and the message is no good.
    pub fn pop(&self) -> Option<Bytes> {
        self.waiting().pop_front()
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Bytes>> {
        // A queue of bytes is whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

thread_local! {
    /// What lies beside the message that is being encoded, if it may.
    static LEAVING: RefCell<Option<Vec<Bytes>>> = const { RefCell::new(None) };
    /// Where the blobs of the message are that is being decoded.
    static COMING: RefCell<Option<Arc<Lane>>> = const { RefCell::new(None) };
}

/// Encodes a message whose values may lie in part beside it; gives back those parts. Nothing of a
/// user's runs in between: values are encoded already.
pub(crate) fn leaving<T>(encode: impl FnOnce() -> T) -> (T, Vec<Bytes>) {
    LEAVING.set(Some(Vec::new()));
    let encoded = encode();
    (encoded, LEAVING.take().unwrap_or_default())
}

/// Decodes such a message.
pub(crate) fn coming<T>(lane: &Arc<Lane>, decode: impl FnOnce() -> T) -> T {
    COMING.set(Some(lane.clone()));
    let decoded = decode();
    COMING.set(None);
    decoded
}

impl Serialize for Encoded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.beside.is_empty() {
            return serializer.serialize_bytes(&self.bytes);
        }
        let blobs = self.beside.iter().cloned();
        let taken = LEAVING.with_borrow_mut(|all| all.as_mut().map(|all| all.extend(blobs)));
        if taken.is_none() {
            return Err(S::Error::custom("a value in two parts for a socket"));
        }
        let mut both = serializer.serialize_tuple(2)?;
        both.serialize_element(&self.bytes)?;
        both.serialize_element(&self.beside.len())?;
        both.end()
    }
}

impl<'de> Deserialize<'de> for Encoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_byte_buf(OneOrTwo)
    }
}

struct OneOrTwo;

impl<'de> Visitor<'de> for OneOrTwo {
    type Value = Encoded;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an encoded value")
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Encoded, E> {
        self.visit_byte_buf(bytes.to_vec())
    }

    fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Encoded, E> {
        let inside = COMING.with_borrow(Option::is_some);
        let way = if inside { Way::Apart } else { Way::Whole };
        Ok(Encoded { bytes: bytes.into(), beside: Vec::new(), way })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut both: A) -> Result<Encoded, A::Error> {
        let half = || A::Error::custom("half of an encoded value");
        let bytes: Bytes = both.next_element()?.ok_or_else(half)?;
        let count: usize = both.next_element()?.ok_or_else(half)?;
        let lane = COMING.with_borrow(Clone::clone);
        let lane = lane.ok_or_else(|| A::Error::custom("blobs beside a message of a socket"))?;
        Encoded::taken(bytes, count, &lane).map_err(A::Error::custom)
    }
}
