//! Bytes that are carried from actor to actor without being copied on the way.
//!
//! Serde hands bytes over as a borrowed slice, which must be copied to outlive the call. A blob
//! leaves a hint beside it while it is serialized. The one writer that knows of it, if what it is
//! given is the hinted slice, takes a share of the memory and writes a number; the number leads to
//! the blob again when the value is decoded. A format that knows nothing of this copies.

use std::any::Any;
use std::cell::RefCell;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::io;
use std::ops::Deref;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::part::{Part, Sealed};
use crate::shared::{self, MARK};

/// Bytes for messages, arguments and replies: encoded as bytes, cheap to clone, and from 16 KiB on
/// neither copied when they are sent nor when they are received: only the kernel copies. Between an
/// actor and a thread of its process nobody does: both have the same memory. The same holds between
/// processes for a blob that was written into shared memory to begin with (`hatchery::BlobBuffer`).
///
/// A blob that was received shares the memory it came in, of which up to 256 KiB live as long as
/// it: `Vec::from` copies out what is to be kept for long.
#[derive(Clone, Default)]
pub struct Blob {
    bytes: Bytes,
    /// The file that they are the whole of.
    file: Option<Arc<dyn Any + Send + Sync>>,
}

impl Blob {
    /// The bytes, still shared.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    fn part(&self) -> Part {
        let bytes = self.bytes.clone();
        match &self.file {
            Some(file) => Part::File(Sealed { bytes, file: file.clone() }),
            None => Part::Bytes(bytes),
        }
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.len())
    }
}

impl PartialEq for Blob {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl Eq for Blob {}

impl Hash for Blob {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self[..].hash(state);
    }
}

impl PartialOrd for Blob {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Blob {
    fn cmp(&self, other: &Self) -> Ordering {
        self[..].cmp(&other[..])
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<Bytes> for Blob {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, file: None }
    }
}

impl From<Sealed> for Blob {
    fn from(Sealed { bytes, file }: Sealed) -> Self {
        Self { bytes, file: Some(file) }
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<Blob> for Bytes {
    fn from(blob: Blob) -> Self {
        blob.bytes
    }
}

impl From<Blob> for Vec<u8> {
    fn from(blob: Blob) -> Self {
        blob.bytes.into()
    }
}

thread_local! {
    /// What is being serialized, and could lie beside.
    static OFFERED: RefCell<Option<Part>> = const { RefCell::new(None) };
    /// What lies beside the value that is being decoded.
    static BESIDE: RefCell<Vec<Part>> = const { RefCell::new(Vec::new()) };
}

/// Serializes something that a writer may take a share of.
pub(crate) fn offer<T>(part: Part, serialize: impl FnOnce() -> T) -> T {
    OFFERED.set(Some(part));
    let serialized = serialize();
    OFFERED.set(None);
    serialized
}

/// The part behind a slice that is being written, if it is one.
#[inline]
fn offered(slice: &[u8]) -> Option<Part> {
    let may_be = slice.len() >= LARGE || std::ptr::addr_eq(slice.as_ptr(), MARK.as_ptr());
    if may_be { take_offered(slice) } else { None }
}

#[cold]
fn take_offered(slice: &[u8]) -> Option<Part> {
    let offered = OFFERED.take()?;
    let stands = match &offered {
        Part::Bytes(bytes) | Part::File(Sealed { bytes, .. }) => bytes,
        Part::Value(_) => &MARK[..],
        Part::Lost(_) => return None,
    };
    std::ptr::eq(stands, slice).then_some(offered)
}

/// Appends a value as MessagePack, with a number in the place of each large part; gives back the
/// parts.
pub(crate) fn write(
    value: &impl Serialize,
    buffer: &mut BytesMut,
) -> (Result<(), rmp_serde::encode::Error>, Vec<Part>) {
    let mut writer = Numbering { buffer, parts: Vec::new() };
    let written = rmp_serde::encode::write(&mut writer, value);
    (written, writer.parts)
}

/// Writes into a buffer, but for large parts, which it keeps a share of.
struct Numbering<'a> {
    buffer: &'a mut BytesMut,
    parts: Vec<Part>,
}

impl Numbering<'_> {
    /// Puts a part's number where `length` bytes were about to be: after their marker and length,
    /// which stand in the buffer already.
    fn number(&mut self, part: Part, length: usize) -> Option<()> {
        let length = u32::try_from(length).ok()?.to_be_bytes();
        let number = u32::try_from(self.parts.len()).ok()?;
        let head: &[u8] = match &length {
            [0, 0, 0, low] => &[BIN_8, *low],
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
        if matches!(part, Part::Value(_)) {
            shared::taken();
        }
        self.parts.push(part);
        Some(())
    }
}

impl io::Write for Numbering<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if offered(bytes).and_then(|part| self.number(part, bytes.len())).is_none() {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Decodes what was written so.
pub(crate) fn beside<T>(parts: &[Part], decode: impl FnOnce() -> T) -> T {
    /// Puts back what was there before, also when a user's code panics.
    struct Before(Vec<Part>);
    impl Drop for Before {
        fn drop(&mut self) {
            BESIDE.set(std::mem::take(&mut self.0));
        }
    }
    if parts.is_empty() {
        return decode();
    }
    let _before = Before(BESIDE.replace(parts.to_vec()));
    decode()
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.len() < LARGE {
            return serializer.serialize_bytes(self);
        }
        offer(self.part(), || serializer.serialize_bytes(self))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_byte_buf(BytesOrNumber)? {
            Found::Copied(bytes) => Ok(bytes.into()),
            Found::Beside(Part::Bytes(bytes)) => Ok(bytes.into()),
            Found::Beside(Part::File(sealed)) => Ok(sealed.into()),
            Found::Beside(Part::Value(_)) => Err(D::Error::custom("a value in the place of bytes")),
            Found::Beside(Part::Lost(why)) => Err(D::Error::custom(why)),
        }
    }
}

/// What lies beside in the place of a mark; `None`: it was the mark itself.
pub(crate) struct Beside(pub(crate) Option<Part>);

impl<'de> Deserialize<'de> for Beside {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_byte_buf(BytesOrNumber)? {
            Found::Copied(_) => Ok(Self(None)),
            Found::Beside(part) => Ok(Self(Some(part))),
        }
    }
}

enum Found {
    Copied(Vec<u8>),
    Beside(Part),
}

struct BytesOrNumber;

impl<'de> Visitor<'de> for BytesOrNumber {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Found, E> {
        Ok(Found::Copied(bytes.to_vec()))
    }

    fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Found, E> {
        Ok(Found::Copied(bytes))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Found, E> {
        let part = BESIDE.with_borrow(|all| all.get(usize::try_from(number).ok()?).cloned());
        part.map(Found::Beside).ok_or_else(|| E::invalid_type(Unexpected::Unsigned(number), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<Found, A::Error> {
        let mut all = Vec::with_capacity(bytes.size_hint().unwrap_or(0).min(LARGE));
        while let Some(byte) = bytes.next_element()? {
            all.push(byte);
        }
        Ok(Found::Copied(all))
    }
}

/// A copy of less costs less than sharing.
pub(crate) const LARGE: usize = 16 * 1024;
/// MessagePack's markers of bytes with a length of one, two and four bytes, and of a number of four.
const BIN_8: u8 = 0xC4;
const BIN_16: u8 = 0xC5;
const BIN_32: u8 = 0xC6;
const UINT_32: u8 = 0xCE;
