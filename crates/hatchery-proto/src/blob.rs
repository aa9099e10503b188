//! Bytes that are carried from actor to actor without being copied on the way.
//!
//! Serde hands bytes over as a borrowed slice, which must be copied to outlive the call. A blob
//! leaves a hint beside it: while a message is encoded, the blob whose slice comes next; while one
//! is decoded, the frame that it is decoded from. Whoever finds that the slice is the hinted one
//! takes a share of the memory in place of a copy. A format that knows nothing of this copies.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes for messages, arguments and replies: encoded as bytes, cheap to clone, and in a stream's
/// message of 16 KiB or more neither copied when it is sent nor when it is received.
///
/// A blob that was received shares the memory it came in, of which up to 256 KiB live as long as
/// it: `Vec::from` copies out what is to be kept for long.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Blob(Bytes);

impl Blob {
    /// The bytes, still shared.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Bytes> for Blob {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<Blob> for Bytes {
    fn from(blob: Blob) -> Self {
        blob.0
    }
}

impl From<Blob> for Vec<u8> {
    fn from(blob: Blob) -> Self {
        blob.0.into()
    }
}

thread_local! {
    /// The blob that is being serialized.
    static OFFERED: RefCell<Option<Bytes>> = const { RefCell::new(None) };
    /// The frame that is being decoded.
    static SOURCE: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// The blob behind a slice that is being written, if it is one and large enough.
pub(crate) fn offered(slice: &[u8]) -> Option<Bytes> {
    if slice.len() < SHARED {
        return None;
    }
    let offered = OFFERED.take()?;
    (offered.as_ptr() == slice.as_ptr() && offered.len() == slice.len()).then_some(offered)
}

/// Decodes with `source` as what the slices are part of.
pub(crate) fn decoding<T>(source: &Bytes, decode: impl FnOnce(&[u8]) -> T) -> T {
    /// Puts back what was there before, also when a user's code panics.
    struct Before(Option<Bytes>);
    impl Drop for Before {
        fn drop(&mut self) {
            SOURCE.set(self.0.take());
        }
    }
    let _before = Before(SOURCE.replace(Some(source.clone())));
    decode(source)
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.len() >= SHARED {
            OFFERED.set(Some(self.0.clone()));
        }
        let done = serializer.serialize_bytes(&self.0);
        OFFERED.set(None);
        done
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_byte_buf(Copies)
    }
}

struct Copies;

impl<'de> Visitor<'de> for Copies {
    type Value = Blob;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Blob, E> {
        Ok(Blob(Bytes::copy_from_slice(bytes)))
    }

    fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Blob, E> {
        let shared = SOURCE.with_borrow(|source| {
            let source = source.as_ref().filter(|_| bytes.len() >= SHARED)?;
            let (whole, part) = (source.as_ptr_range(), bytes.as_ptr_range());
            let inside = whole.start <= part.start && part.end <= whole.end;
            inside.then(|| source.slice_ref(bytes))
        });
        Ok(Blob(shared.unwrap_or_else(|| Bytes::copy_from_slice(bytes))))
    }

    fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
        Ok(bytes.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<Blob, A::Error> {
        let mut all = Vec::with_capacity(bytes.size_hint().unwrap_or(0).min(SHARED));
        while let Some(byte) = bytes.next_element()? {
            all.push(byte);
        }
        Ok(all.into())
    }
}

/// A copy of less costs less than sharing.
const SHARED: usize = 16 * 1024;
