//! Encoded values, whose large parts lie beside them.
//!
//! In the encoded value stands a number in the place of each large [`Blob`](crate::Blob) and of each
//! [`Shared`](crate::Shared) value. These themselves follow their message in the same frame, written
//! from where they are and read as a part of the buffer they came in; or they go beside the socket,
//! in the same order, and wait for their message in a [`Lane`](crate::Lane): as they are to a thread
//! of this process, as files to another one. So a value is checked, limited and answered in the same
//! way on every backend.

use std::cell::RefCell;
use std::fmt;

use bytes::{Bytes, BytesMut};
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::ser::{Error as _, SerializeTuple as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::blob;
use crate::frame::FrameError;
use crate::lane::Source;
use crate::moved::{self, Measured, Moved, Taken};
use crate::part::{Extent, Part, Parts, Way};
use crate::value;

/// A value as bytes, see [`crate::value`], but for the large parts of it; or one that moves as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    bytes: Bytes,
    /// Behind a pointer, and there if there is one: most values have none, and many wait in queues.
    #[allow(clippy::box_collection, reason = "one word is what it costs those that have none")]
    beside: Option<Box<Vec<Part>>>,
}

impl Encoded {
    /// Encodes a value; blobs of 16 KiB and more, and shared values, are shared and not copied.
    ///
    /// # Errors
    /// [`FrameError::Encode`].
    pub fn of(value: &impl Serialize) -> Result<Self, FrameError> {
        let mut buffer = BytesMut::new();
        match blob::write(value, &mut buffer) {
            (Ok(()), parts) => Ok(Self::with(buffer.freeze(), parts)),
            (Err(error), _) => Err(FrameError::Encode(error.to_string())),
        }
    }

    /// A value that moves as it is to a thread of this process if it has `from` bytes or more, and
    /// is encoded otherwise. It counts with its encoded length: its `Serialize` runs once in any
    /// case.
    ///
    /// # Errors
    /// [`FrameError::Encode`], as for a value that is encoded.
    pub fn moved<T>(value: T, from: usize) -> Result<Self, FrameError>
    where
        T: Serialize + Send + 'static,
    {
        let mut buffer = BytesMut::new();
        match moved::measure(&value, from, &mut buffer) {
            Ok(Measured::Written(parts)) => Ok(Self::with(buffer.freeze(), parts)),
            Ok(Measured::Long(length)) => Ok(Self::whole(Moved::part(value, length))),
            Err(error) => Err(FrameError::Encode(error.to_string())),
        }
    }

    /// A value that is one part and nothing else.
    pub(crate) fn whole(part: Part) -> Self {
        Self::with(Bytes::new(), vec![part])
    }

    /// That part, if it is one.
    fn as_whole(&self) -> Option<&Part> {
        match self.beside() {
            [part] if self.bytes.is_empty() => Some(part),
            _ => None,
        }
    }

    /// What was encoded, and the parts that belong to it.
    pub(crate) fn with(bytes: Bytes, beside: Vec<Part>) -> Self {
        Self { bytes, beside: (!beside.is_empty()).then(|| Box::new(beside)) }
    }

    fn beside(&self) -> &[Part] {
        self.beside.as_deref().map_or(&[], Vec::as_slice)
    }

    /// How long it is, all its parts included.
    #[must_use]
    pub fn len(&self) -> usize {
        // What is lost is as long as somebody says.
        self.beside().iter().map(Part::length).fold(self.bytes.len(), usize::saturating_add)
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same, which keeps no large buffer for a part of less than `small` bytes. Very small ones
    /// share pieces of `chunk`: a few messages in a row need one piece of memory, and none at all
    /// while those before them are read in time.
    #[must_use]
    pub fn detached(mut self, small: usize, chunk: &mut BytesMut) -> Self {
        let mut copy = |bytes: &mut Bytes| {
            if !bytes.is_empty() && bytes.len() <= CHUNK / 4 {
                if chunk.capacity() < bytes.len() {
                    chunk.reserve(CHUNK);
                }
                chunk.extend_from_slice(bytes);
                *bytes = chunk.split().freeze();
            } else if bytes.len() < small {
                *bytes = Bytes::copy_from_slice(bytes);
            }
        };
        copy(&mut self.bytes);
        for part in self.beside.iter_mut().flat_map(|parts| parts.iter_mut()) {
            if let Part::Bytes(bytes) = part {
                copy(bytes);
            }
        }
        self
    }

    /// Whether parts of it lie beside.
    #[must_use]
    pub fn has_parts(&self) -> bool {
        self.beside.is_some()
    }

    /// The same, with `settle` applied to each part; see [`Part::settled`].
    ///
    /// # Errors
    /// [`FrameError::Encode`]: what `settle` says.
    pub fn settled(
        mut self,
        mut settle: impl FnMut(Part) -> Result<Part, String>,
    ) -> Result<Self, FrameError> {
        if let Some(parts) = self.beside.take() {
            let parts: Result<Vec<_>, _> = parts.into_iter().map(&mut settle).collect();
            self.beside = Some(Box::new(parts.map_err(FrameError::Encode)?));
        }
        // What was to move, and is encoded for another process after all.
        if let Some(Part::Bytes(bytes)) = self.as_whole() {
            return Ok(bytes.clone().into());
        }
        Ok(self)
    }

    /// Decodes the value; large blobs in it share this memory. One that was moved is taken, once.
    ///
    /// # Errors
    /// [`FrameError::Decode`] says what was found in the place of what.
    pub fn decode<T: DeserializeOwned + 'static>(&self) -> Result<T, FrameError> {
        let (encoded, beside) = if self.bytes.is_empty() {
            match self.take()? {
                Taken::Value(value) => return Ok(value),
                // In there nothing lies beside: it was encoded for itself.
                Taken::Encoded(encoded) => (encoded, &[][..]),
            }
        } else {
            (&self.bytes[..], self.beside())
        };
        // In one place, so that it is compiled into this.
        blob::beside(beside, || value::from_bytes(encoded))
    }

    /// Takes what has moved; nothing is found in nothing.
    #[cold]
    #[inline(never)]
    fn take<T: 'static>(&self) -> Result<Taken<'_, T>, FrameError> {
        match self.as_whole() {
            Some(Part::Value(value)) => moved::take(&**value),
            _ => Ok(Taken::Encoded(&[])),
        }
    }
}

impl From<Bytes> for Encoded {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, beside: None }
    }
}

/// What very small messages share.
const CHUNK: usize = 2048;
/// A stream's credit counts bytes, and so much more is held for each small message that waits.
const _: () = assert!(size_of::<Encoded>() <= 40);

thread_local! {
    /// What lies beside the message that is being encoded, if it may, and the way it goes.
    static LEAVING: RefCell<Option<(Way, Parts)>> = const { RefCell::new(None) };
    /// Where the parts of the message are that is being decoded.
    static COMING: RefCell<Option<Source>> = const { RefCell::new(None) };
}

/// Encodes a message whose values may lie in part beside it; gives back those parts. If they are
/// settled, nothing of a user's runs in between: values are encoded already.
pub(crate) fn leaving<T>(way: Way, encode: impl FnOnce() -> T) -> (T, Parts) {
    /// Puts back what was there before, also when a user's code panics.
    struct Before(Option<(Way, Parts)>);
    impl Drop for Before {
        fn drop(&mut self) {
            LEAVING.set(self.0.take());
        }
    }
    let _before = Before(LEAVING.replace(Some((way, Parts::default()))));
    let encoded = encode();
    let parts = LEAVING.take().map(|(_, parts)| parts).unwrap_or_default();
    (encoded, parts)
}

/// Adds parts to what lies beside; `None`: there is no room for any.
fn leave(parts: &[Part]) -> Option<Result<Vec<Extent>, String>> {
    let (way, mut all) = LEAVING.take()?;
    let added = parts.iter().map(|part| all.add(part.clone(), way)).collect();
    LEAVING.set(Some((way, all)));
    Some(added)
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
        let left = leave(beside)
            .ok_or_else(|| S::Error::custom("a value in two parts where there is room for one"))?;
        if self.as_whole().is_some() {
            return match left.map_err(S::Error::custom)?[..] {
                // As long as the head of so many bytes: it counts the same on every backend.
                [Extent { length, beside: true }] => serializer.serialize_u64(length as u64),
                _ => Err(S::Error::custom("a value that was to move, on a way where it can't")),
            };
        }
        let mut both = serializer.serialize_tuple(2)?;
        both.serialize_element(&self.bytes)?;
        both.serialize_element(&left.map_err(S::Error::custom)?)?;
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

    fn visit_u64<E: serde::de::Error>(self, length: u64) -> Result<Encoded, E> {
        let source = COMING.with_borrow(Clone::clone);
        source
            .and_then(|source| source.take_whole(length))
            .ok_or_else(|| E::custom("a value that was to move, and is not there"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut both: A) -> Result<Encoded, A::Error> {
        let half = || A::Error::custom("half of an encoded value");
        let bytes: Bytes = both.next_element()?.ok_or_else(half)?;
        let extents: Vec<Extent> = both.next_element()?.ok_or_else(half)?;
        if !Extent::can_be(&extents, bytes.len()) {
            return Err(A::Error::custom("parts that the value doesn't have"));
        }
        let source = COMING.with_borrow(Clone::clone);
        let taken = source.and_then(|source| source.take(&extents));
        let (parts, _) = taken.ok_or_else(|| A::Error::custom("a value without its parts"))?;
        Ok(Encoded::with(bytes, parts))
    }
}
