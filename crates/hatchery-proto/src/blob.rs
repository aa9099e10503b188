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
use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes for messages, arguments and replies: encoded as bytes, cheap to clone, and from 16 KiB on
/// neither copied when they are sent nor when they are received: only the kernel copies. Between an
/// actor and a thread of its process nobody does: both have the same memory.
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
    /// The blobs that were left out of what is being serialized, for they stay in this process.
    static LEFT_OUT: RefCell<Option<Vec<Bytes>>> = const { RefCell::new(None) };
    /// Those of what is being decoded.
    static BESIDE: RefCell<Vec<Bytes>> = const { RefCell::new(Vec::new()) };
}

/// The blob behind a slice that is being written, if it is one and large enough.
pub(crate) fn offered(slice: &[u8]) -> Option<Bytes> {
    if slice.len() < SHARED {
        return None;
    }
    let offered = OFFERED.take()?;
    (offered.as_ptr() == slice.as_ptr() && offered.len() == slice.len()).then_some(offered)
}

/// Serializes with the number of each large blob in its place; gives back the blobs.
pub(crate) fn apart<T>(serialize: impl FnOnce() -> T) -> (T, Vec<Bytes>) {
    /// As below.
    struct Before(Option<Vec<Bytes>>);
    impl Drop for Before {
        fn drop(&mut self) {
            LEFT_OUT.set(self.0.take());
        }
    }
    let _before = Before(LEFT_OUT.replace(Some(Vec::new())));
    let serialized = serialize();
    (serialized, LEFT_OUT.take().unwrap_or_default())
}

/// Decodes what was serialized so.
pub(crate) fn beside<T>(blobs: &[Bytes], decode: impl FnOnce() -> T) -> T {
    /// As below.
    struct Before(Vec<Bytes>);
    impl Drop for Before {
        fn drop(&mut self) {
            BESIDE.set(std::mem::take(&mut self.0));
        }
    }
    if blobs.is_empty() {
        return decode();
    }
    let _before = Before(BESIDE.replace(blobs.to_vec()));
    decode()
}

/// Leaves a blob out, if it may be; its number among them.
fn leave_out(blob: &Bytes) -> Option<u64> {
    LEFT_OUT.with_borrow_mut(|all| {
        let all = all.as_mut()?;
        all.push(blob.clone());
        u64::try_from(all.len() - 1).ok()
    })
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
            if let Some(number) = leave_out(&self.0) {
                return serializer.serialize_u64(number);
            }
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

    fn visit_u64<E: Error>(self, number: u64) -> Result<Blob, E> {
        let blob = BESIDE.with_borrow(|all| all.get(usize::try_from(number).ok()?).cloned());
        blob.map(Blob).ok_or_else(|| E::invalid_type(Unexpected::Unsigned(number), &self))
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
pub(crate) const SHARED: usize = 16 * 1024;
