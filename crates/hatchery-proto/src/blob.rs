//! Bytes that are carried from actor to actor without being copied on the way.
//!
//! Serde hands bytes over as a borrowed slice, which must be copied to outlive the call. A blob
//! leaves a hint beside it while it is serialized. The one writer that knows of it, if what it is
//! given is the hinted slice, takes a share of the memory and writes a number; the number leads to
//! the blob again when the value is decoded. A format that knows nothing of this copies.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::ops::Deref;

use bytes::{BufMut as _, Bytes, BytesMut};
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
    /// Those that belong to what is being decoded.
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

/// Appends a value as MessagePack, with a number in the place of each large blob; gives back the
/// blobs.
pub(crate) fn write(
    value: &impl Serialize,
    buffer: &mut BytesMut,
) -> (Result<(), rmp_serde::encode::Error>, Vec<Bytes>) {
    let mut writer = Numbering { buffer, blobs: Vec::new() };
    let written = rmp_serde::encode::write(&mut writer, value);
    (written, writer.blobs)
}

/// Writes into a buffer, but for large blobs, which it keeps a share of.
struct Numbering<'a> {
    buffer: &'a mut BytesMut,
    blobs: Vec<Bytes>,
}

impl Numbering<'_> {
    /// Puts a blob's number where its bytes were about to be: after their marker and length, which
    /// stand in the buffer already.
    fn number(&mut self, blob: &Bytes) -> Option<()> {
        let length = u32::try_from(blob.len()).ok()?;
        let number = u32::try_from(self.blobs.len()).ok()?;
        let bytes = length.to_be_bytes();
        let head: &[u8] = match &bytes {
            [0, 0, high, low] => &[BIN_16, *high, *low],
            [a, b, c, d] => &[BIN_32, *a, *b, *c, *d],
        };
        let before = self.buffer.len().checked_sub(head.len())?;
        if self.buffer[before..] != *head {
            return None;
        }
        self.buffer.truncate(before);
        self.buffer.put_u8(UINT_32);
        self.buffer.put_u32(number);
        self.blobs.push(blob.clone());
        Some(())
    }
}

impl io::Write for Numbering<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if offered(bytes).and_then(|blob| self.number(&blob)).is_none() {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Decodes what was written so.
pub(crate) fn beside<T>(blobs: &[Bytes], decode: impl FnOnce() -> T) -> T {
    /// Puts back what was there before, also when a user's code panics.
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
/// MessagePack's markers of bytes with a length of two and four bytes, and of a number of four.
const BIN_16: u8 = 0xC5;
const BIN_32: u8 = 0xC6;
const UINT_32: u8 = 0xCE;
