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
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::part::{Part, Sealed};
use crate::shared::{self, MARK};
use crate::value;

/// Bytes for messages, arguments and replies: encoded as bytes, cheap to clone, and from 16 KiB on
/// neither copied when they are sent nor when they are received: only the kernel copies. Between an
/// actor and a thread of its process nobody does: both have the same memory. The same holds between
/// processes for a blob that was written into shared memory to begin with (`hatchery::BlobBuffer`).
///
/// A blob that was received shares the memory it came in, of which up to as much again lives as long
/// as it: `Vec::from` copies out what is to be kept for long.
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
    /// What lies beside the value that is being decoded, and how often each was decoded.
    static BESIDE: RefCell<Vec<(Part, u8)>> = const { RefCell::new(Vec::new()) };
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
pub(crate) fn offered(slice: &[u8]) -> Option<Part> {
    let may_be = slice.len() >= LARGE || std::ptr::addr_eq(slice.as_ptr(), MARK.as_ptr());
    if may_be { take_offered(slice) } else { None }
}

#[cold]
fn take_offered(slice: &[u8]) -> Option<Part> {
    let offered = OFFERED.take()?;
    let stands = match &offered {
        Part::Bytes(bytes) | Part::File(Sealed { bytes, .. }) => bytes,
        Part::Value(_) => &MARK[..],
        Part::Lost { .. } => return None,
    };
    std::ptr::eq(stands, slice).then_some(offered)
}

/// Appends a value, with a number in the place of each large part; gives back the
/// parts. The number is of a type of its own, so that nothing else can be taken for it.
pub(crate) fn write(
    value: &impl Serialize,
    buffer: &mut BytesMut,
) -> (Result<(), value::Error>, Vec<Part>) {
    let mut writer = Numbering::new(buffer);
    let written = value::write(value, &mut writer);
    (written, writer.parts)
}

/// Writes into a buffer, but for large parts, which it keeps a share of.
pub(crate) struct Numbering<'a> {
    pub(crate) buffer: &'a mut BytesMut,
    pub(crate) parts: Vec<Part>,
}

impl<'a> Numbering<'a> {
    pub(crate) fn new(buffer: &'a mut BytesMut) -> Self {
        Self { buffer, parts: Vec::new() }
    }

    /// Puts a part's number where `length` bytes were about to be: after their marker and length,
    /// which stand in the buffer already.
    pub(crate) fn number(&mut self, part: Part, length: usize) -> Option<()> {
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
        self.buffer.put_u8(FIXED_EXT_4);
        self.buffer.put_i8(BESIDE_EXT);
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

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        // It takes all that it is given.
        self.write(bytes).map(drop)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long the head is of so many bytes: their marker and length.
pub(crate) fn head_of(length: usize) -> usize {
    match length {
        0..=0xFF => 2,
        0x100..=0xFFFF => 3,
        _ => 5,
    }
}

/// Decodes what was written so.
pub(crate) fn beside<T>(parts: &[Part], decode: impl FnOnce() -> T) -> T {
    /// Puts back what was there before, also when a user's code panics.
    struct Before(Vec<(Part, u8)>);
    impl Drop for Before {
        fn drop(&mut self) {
            BESIDE.set(std::mem::take(&mut self.0));
        }
    }
    if parts.is_empty() && BESIDE.with_borrow(Vec::is_empty) {
        return decode();
    }
    let parts = parts.iter().map(|part| (part.clone(), 0)).collect();
    let _before = Before(BESIDE.replace(parts));
    decode()
}

fn is_anything_beside() -> bool {
    !BESIDE.with_borrow(Vec::is_empty)
}

fn numbered(number: u32) -> Option<Part> {
    let number = usize::try_from(number).ok()?;
    BESIDE.with_borrow(|all| all.get(number).map(|(part, _)| part.clone()))
}

/// Whether a part may be decoded once more. A hostile message can name it a million times, as two
/// types in turn.
pub(crate) fn may_be_decoded(number: u32) -> bool {
    entry(number, |(_, times)| {
        *times = times.saturating_add(1);
        *times <= MAX_DECODED
    })
    .unwrap_or(false)
}

/// What was decoded from a part takes its place, so that who names it again shares it.
pub(crate) fn decoded(number: u32, value: Part) {
    entry(number, |(part, _)| *part = value);
}

fn entry<T>(number: u32, act: impl FnOnce(&mut (Part, u8)) -> T) -> Option<T> {
    BESIDE.with_borrow_mut(|all| all.get_mut(usize::try_from(number).ok()?).map(act))
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
        match Found::deserialize(deserializer)? {
            Found::Copied(bytes) => Ok(bytes.into()),
            Found::Beside(_, Part::Bytes(bytes)) => Ok(bytes.into()),
            Found::Beside(_, Part::File(sealed)) => Ok(sealed.into()),
            Found::Beside(_, Part::Value(_)) => {
                Err(D::Error::custom("a value in the place of bytes"))
            }
            Found::Beside(_, Part::Lost { why, .. }) => Err(D::Error::custom(why)),
        }
    }
}

/// Bytes, or what lies beside in their place, with its number.
pub(crate) enum Found {
    Copied(Vec<u8>),
    Beside(u32, Part),
}

impl<'de> Deserialize<'de> for Found {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Where serde keeps a value to try several types on it, it only gives a number back to who
        // takes anything; and formats that know no "anything" have no numbers.
        if is_anything_beside() {
            deserializer.deserialize_any(BytesOrNumber)
        } else {
            deserializer.deserialize_byte_buf(BytesOrNumber)
        }
    }
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

    fn visit_newtype_struct<D: Deserializer<'de>>(self, ours: D) -> Result<Found, D::Error> {
        let (kind, number) = <(i8, Number)>::deserialize(ours)?;
        let part = (kind == BESIDE_EXT).then(|| numbered(number.0)).flatten();
        let part = part.ok_or_else(|| D::Error::custom("a blob that is not there"))?;
        Ok(Found::Beside(number.0, part))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<Found, A::Error> {
        let mut all = Vec::with_capacity(bytes.size_hint().unwrap_or(0).min(LARGE));
        while let Some(byte) = bytes.next_element()? {
            all.push(byte);
        }
        Ok(Found::Copied(all))
    }
}

/// Four bytes.
struct Number(u32);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(FourBytes)
    }
}

struct FourBytes;

impl Visitor<'_> for FourBytes {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the number of a blob")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Number, E> {
        let bytes = bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))?;
        Ok(Number(u32::from_be_bytes(bytes)))
    }
}

/// A copy of less costs less than sharing.
pub(crate) const LARGE: usize = 16 * 1024;
/// MessagePack's markers of bytes with a length of one, two and four bytes.
const BIN_8: u8 = 0xC4;
const BIN_16: u8 = 0xC5;
const BIN_32: u8 = 0xC6;
/// A type of ours, with four bytes.
const FIXED_EXT_4: u8 = 0xD6;
const BESIDE_EXT: i8 = 0x68;
/// A part that is wanted as more types than this is no honest one.
const MAX_DECODED: u8 = 16;
