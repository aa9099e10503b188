//! Encoded values, whose large blobs lie beside them.
//!
//! In the encoded value stands a number in the place of each large [`Blob`](crate::Blob). The blobs
//! themselves follow their message in the same frame, written from where they are and read as a
//! part of the buffer they came in. Two actors in one process need not even copy them through a
//! socket: there they are handed over in a [`Lane`](crate::Lane) beside it, in the same order. So a value is
//! checked, limited and answered in the same way on every backend.

use std::cell::RefCell;
use std::fmt;

use bytes::{Bytes, BytesMut};
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::ser::{Error as _, SerializeTuple as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::blob;
use crate::frame::{self, FrameError};
use crate::lane::Source;

/// A value as MessagePack, but for the large blobs in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    bytes: Bytes,
    /// Behind a pointer, and there if there is one: most values have none, and many wait in queues.
    #[allow(clippy::box_collection, reason = "one word is what it costs those that have none")]
    beside: Option<Box<Vec<Bytes>>>,
}

impl Encoded {
    /// Encodes a value; blobs of 16 KiB and more are shared and not copied.
    ///
    /// # Errors
    /// [`FrameError::Encode`].
    pub fn of(value: &impl Serialize) -> Result<Self, FrameError> {
        let mut buffer = BytesMut::new();
        match blob::write(value, &mut buffer) {
            (Ok(()), blobs) => Ok(Self::with(buffer.freeze(), blobs)),
            (Err(error), _) => Err(FrameError::Encode(error.to_string())),
        }
    }

    /// What was encoded, and the blobs that belong to it.
    pub(crate) fn with(bytes: Bytes, beside: Vec<Bytes>) -> Self {
        Self { bytes, beside: (!beside.is_empty()).then(|| Box::new(beside)) }
    }

    fn beside(&self) -> &[Bytes] {
        self.beside.as_deref().map_or(&[], Vec::as_slice)
    }

    /// How long it is, blobs included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() + self.beside().iter().map(Bytes::len).sum::<usize>()
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
        blob::beside(self.beside(), || frame::decode(&self.bytes))
    }
}

impl From<Bytes> for Encoded {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, beside: None }
    }
}

/// A stream's credit counts bytes, and so much more is held for each small message that waits.
const _: () = assert!(size_of::<Encoded>() <= 40);

thread_local! {
    /// What lies beside the message that is being encoded, if it may.
    static LEAVING: RefCell<Option<Vec<Bytes>>> = const { RefCell::new(None) };
    /// Where the blobs of the message are that is being decoded.
    static COMING: RefCell<Option<Source>> = const { RefCell::new(None) };
}

/// Encodes a message whose values may lie in part beside it; gives back those parts. Nothing of a
/// user's runs in between: values are encoded already.
pub(crate) fn leaving<T>(encode: impl FnOnce() -> T) -> (T, Vec<Bytes>) {
    LEAVING.set(Some(Vec::new()));
    let encoded = encode();
    (encoded, LEAVING.take().unwrap_or_default())
}

/// Decodes such a message.
pub(crate) fn coming<T>(source: Source, decode: impl FnOnce() -> T) -> T {
    COMING.set(Some(source));
    let decoded = decode();
    COMING.set(None);
    decoded
}

impl Serialize for Encoded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let beside = self.beside();
        if beside.is_empty() {
            return serializer.serialize_bytes(&self.bytes);
        }
        let blobs = beside.iter().cloned();
        let taken = LEAVING.with_borrow_mut(|all| all.as_mut().map(|all| all.extend(blobs)));
        if taken.is_none() {
            return Err(S::Error::custom("a value in two parts where there is room for one"));
        }
        let mut both = serializer.serialize_tuple(2)?;
        both.serialize_element(&self.bytes)?;
        both.serialize_element(&beside.iter().map(Bytes::len).collect::<Vec<_>>())?;
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
        Ok(Bytes::copy_from_slice(bytes).into())
    }

    fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Encoded, E> {
        Ok(Bytes::from(bytes).into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut both: A) -> Result<Encoded, A::Error> {
        let half = || A::Error::custom("half of an encoded value");
        let bytes: Bytes = both.next_element()?.ok_or_else(half)?;
        let lengths: Vec<usize> = both.next_element()?.ok_or_else(half)?;
        let source = COMING.with_borrow(Clone::clone);
        let beside = source.and_then(|source| source.take(&lengths));
        let beside = beside.ok_or_else(|| A::Error::custom("a value without its blobs"))?;
        Ok(Encoded::with(bytes, beside))
    }
}
