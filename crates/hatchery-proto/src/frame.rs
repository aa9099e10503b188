//! Bytes to frames and back: a length of four bytes, big endian, then MessagePack.
//!
//! A message of a stream has a shorter form: a byte that no MessagePack value begins with, the
//! number of its context, and the value; so it is encoded once, straight into the outgoing buffer.
//!
//! Large parts, of streams' messages and of others, stay where they are: they follow their message in
//! its frame, which goes out in several pieces, or go beside the socket; see [`Way`].

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::blob;
use crate::encoded::{self, Encoded};
use crate::id::CallId;
use crate::lane::{Lane, Source};
use crate::moved::{self, Measured, Moved};
use crate::part::{self, Extent, Part, Parts, Way};
use crate::value;

/// Why bytes are no frame, or a message can't become one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Over the limit; nothing was allocated for it.
    #[error("a frame of {length} bytes, over the limit of {limit}")]
    TooLarge {
        /// Its length, as announced or as encoded.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// An empty frame means nothing.
    #[error("an empty frame")]
    Empty,
    /// The value has no MessagePack form.
    #[error("encoding: {0}")]
    Encode(String),
    /// The bytes are not the value they should be.
    #[error("decoding: {0}")]
    Decode(String),
}

/// Cuts a stream of bytes into frames. The length is checked before anything is allocated (C15).
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    limit: usize,
    chunk: usize,
}

impl Decoder {
    /// A decoder that takes frames of up to `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), limit, chunk: READ_CHUNK }
    }

    /// Changes the limit for the frames to come.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// The most bytes that a frame and all that belongs to it may have.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Where to append what was read. Has room for at least 8 KiB, and for more of a large frame
    /// that has begun or on a connection that is busy.
    pub fn buffer_mut(&mut self) -> &mut BytesMut {
        let missing = self.buffer.first_chunk::<HEAD>().map_or(0, |head| {
            let length = (u32::from_be_bytes(*head) as usize).min(self.limit);
            (HEAD + length).saturating_sub(self.buffer.len())
        });
        // No more than as much again as has come: an announced length alone buys nothing (C15).
        let earned = self.buffer.len().clamp(self.chunk, MAX_RESERVE.max(self.chunk));
        self.buffer.reserve(missing.clamp(self.chunk, earned));
        &mut self.buffer
    }

    /// That many bytes were appended. A connection that fills its buffer gets a larger one.
    pub fn read(&mut self, bytes: usize) {
        if bytes >= self.chunk {
            self.chunk = (self.chunk * 2).min(MAX_CHUNK);
        } else if bytes * 4 < self.chunk {
            self.chunk = (self.chunk / 2).max(READ_CHUNK);
        }
    }

    /// The next whole frame, without its length; `None` until more bytes have come.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] or [`FrameError::Empty`]: the stream is beyond repair.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(head) = self.buffer.first_chunk::<HEAD>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length > self.limit {
            return Err(FrameError::TooLarge { length, limit: self.limit });
        }
        if length == 0 {
            return Err(FrameError::Empty);
        }
        if self.buffer.len() < HEAD + length {
            return Ok(None);
        }
        self.buffer.advance(HEAD);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

/// Appends one frame to `buffer`; on an error the buffer is as it was.
///
/// # Errors
/// [`FrameError::Encode`] or [`FrameError::TooLarge`].
pub fn encode(
    message: &impl Serialize,
    limit: usize,
    buffer: &mut BytesMut,
) -> Result<(), FrameError> {
    let start = buffer.len();
    buffer.put_u32(0);
    let encoded = write_message(message, buffer);
    seal(start, encoded, 0, limit, buffer).map(drop)
}

/// The same, but for the large parts of [`Encoded`] values, which are given back sorted by the way
/// they go. They count for the limit in any case.
///
/// # Errors
/// As [`encode`].
pub fn encode_apart(
    message: &impl Serialize,
    way: Way,
    limit: usize,
    buffer: &mut BytesMut,
) -> Result<Parts, FrameError> {
    let start = buffer.len();
    buffer.put_u32(0);
    let (encoded, parts) = encoded::leaving(way, || write_message(message, buffer));
    seal_apart(start, encoded, &parts, limit, buffer)?;
    Ok(parts)
}

fn write_message(message: &impl Serialize, buffer: &mut BytesMut) -> Result<(), value::Error> {
    let written = rmp_serde::encode::write(&mut buffer.writer(), message);
    written.map_err(|error| value::Error(error.to_string()))
}

/// What a frame holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A message between the runtimes of two actors; see [`decode`].
    Message(Bytes),
    /// One message of a stream.
    Item {
        /// Of which context.
        call: CallId,
        /// The encoded value.
        value: Encoded,
    },
    /// A part of the next message, which was to come as a file and could not.
    Part(Bytes),
    /// A part of the next message has come as a file, with this frame's first byte.
    File,
}

impl Frame {
    /// Tells the two kinds apart, and takes the parts of a stream's message, which follow it or wait
    /// in the lane beside its socket.
    ///
    /// # Errors
    /// [`FrameError::Decode`]: a stream's message without its context, or without its parts.
    pub fn new(mut frame: Bytes, lane: Option<&Arc<Lane>>) -> Result<Self, FrameError> {
        if frame.first() != Some(&ITEM) {
            return Ok(Self::Message(frame));
        }
        if frame.len() < ITEM_HEAD {
            return Err(FrameError::Decode("a stream's message without its context".to_owned()));
        }
        frame.advance(1);
        let number = frame.get_u64();
        match (number, frame.is_empty()) {
            (PART, false) => return Ok(Self::Part(frame)),
            (FILE, true) => return Ok(Self::File),
            (PART | FILE, _) => {
                return Err(FrameError::Decode("a part of a message without it".to_owned()));
            }
            (_, _) => {}
        }
        let call = CallId::new(number & !APART);
        let value = if number & APART == 0 { frame.into() } else { together(frame, lane)? };
        Ok(Self::Item { call, value })
    }
}

/// Reads the extents of a value's parts, one form for each message, so at least one; and takes them.
/// None at all: the length of a value follows that has moved as it is.
#[cold]
fn together(mut frame: Bytes, lane: Option<&Arc<Lane>>) -> Result<Encoded, FrameError> {
    let cut = || FrameError::Decode("a stream's message without its parts".to_owned());
    let count = frame.try_get_u32().map_err(|_| cut())? as usize;
    if count == 0 {
        return whole(frame, lane).ok_or_else(cut);
    }
    // Nothing is allocated for what has not come (C15).
    if count > frame.len() / size_of::<u64>() {
        return Err(cut());
    }
    let extents: Vec<_> = (0..count).map(|_| Extent::of_wire(frame.get_u64())).collect();
    let (parts, inside) = Source::of(&frame, lane).take(&extents).ok_or_else(cut)?;
    frame.truncate(frame.len() - inside);
    if !Extent::can_be(&extents, frame.len()) {
        return Err(cut());
    }
    Ok(Encoded::with(frame, parts))
}

/// Reads the length of a value that has moved, and takes it.
fn whole(mut frame: Bytes, lane: Option<&Arc<Lane>>) -> Option<Encoded> {
    let length = frame.try_get_u64().ok()?;
    frame.is_empty().then(|| Source::of(&frame, lane).take_whole(length))?
}

/// The frame that a file goes with, whose message is the next one.
#[must_use]
pub fn file_frame() -> Bytes {
    beside_frame(FILE, 0)
}

/// The head of a frame of `length` more bytes, which are that part of the next message.
#[must_use]
pub fn part_head(length: usize) -> Bytes {
    beside_frame(PART, length)
}

fn beside_frame(number: u64, length: usize) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD + ITEM_HEAD);
    frame.put_u32(u32::try_from(ITEM_HEAD + length).unwrap_or(u32::MAX));
    frame.put_u8(ITEM);
    frame.put_u64(number);
    frame.freeze()
}

/// A stream's message whose frame was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// How many bytes its value has, all parts included.
    pub length: usize,
    /// Its large parts.
    pub parts: Parts,
}

/// Appends the frame of a stream's message, but for its large parts, to each of which `settle` is
/// applied first. On an error the buffer is as it was.
///
/// # Errors
/// [`FrameError::Encode`] or [`FrameError::TooLarge`].
pub fn encode_item(
    call: CallId,
    value: &impl Serialize,
    way: Way,
    settle: impl FnMut(Part) -> Result<Part, String>,
    limit: usize,
    buffer: &mut BytesMut,
) -> Result<Item, FrameError> {
    let start = begin_item(call, buffer);
    let (encoded, found) = blob::write(value, buffer);
    let length = buffer.len() - start - HEAD - ITEM_HEAD;
    if !found.is_empty() {
        return encode_parts(start, encoded, found.into_iter().map(settle), way, limit, buffer);
    }
    seal(start, encoded, 0, limit, buffer)?;
    Ok(Item { length, parts: Parts::default() })
}

/// The same for a connection inside this process, where a value of `from` bytes and more moves as it
/// is. It counts as if it was encoded, and its `Serialize` runs once in any case.
///
/// # Errors
/// As [`encode_item`].
pub fn move_item<T>(
    call: CallId,
    value: T,
    from: usize,
    settle: impl FnMut(Part) -> Result<Part, String>,
    limit: usize,
    buffer: &mut BytesMut,
) -> Result<Item, FrameError>
where
    T: Serialize + Send + 'static,
{
    let start = begin_item(call, buffer);
    let (encoded, found) = match moved::measure(&value, from, buffer) {
        Ok(Measured::Long(length)) => {
            announce_whole(start, length, limit, buffer)?;
            let parts = Parts { beside: vec![Moved::part(value, length)], follow: Vec::new() };
            return Ok(Item { length, parts });
        }
        Ok(Measured::Written(found)) => (Ok(()), found),
        Err(error) => (Err(error), Vec::new()),
    };
    let length = buffer.len() - start - HEAD - ITEM_HEAD;
    if !found.is_empty() {
        let found = found.into_iter().map(settle);
        return encode_parts(start, encoded, found, Way::Inside, limit, buffer);
    }
    seal(start, encoded, 0, limit, buffer)?;
    Ok(Item { length, parts: Parts::default() })
}

fn begin_item(call: CallId, buffer: &mut BytesMut) -> usize {
    let start = buffer.len();
    buffer.put_u32(0);
    buffer.put_u8(ITEM);
    buffer.put_u64(call.number());
    start
}

/// The rest of it for a value that moves: as long as it would be in a frame.
fn announce_whole(
    start: usize,
    value: usize,
    limit: usize,
    buffer: &mut BytesMut,
) -> Result<(), FrameError> {
    let length = ITEM_HEAD.saturating_add(value);
    if length > limit {
        buffer.truncate(start);
        return Err(FrameError::TooLarge { length, limit });
    }
    buffer[start + HEAD + 1] |= IS_APART;
    buffer.put_u32(0);
    buffer.put_u64(value as u64);
    write_length(start, buffer.len() - start - HEAD, buffer);
    Ok(())
}

/// The rest of it for a value that has parts.
#[cold]
fn encode_parts(
    start: usize,
    encoded: Result<(), value::Error>,
    found: impl Iterator<Item = Result<Part, String>>,
    way: Way,
    limit: usize,
    buffer: &mut BytesMut,
) -> Result<Item, FrameError> {
    let mut length = buffer.len() - start - HEAD - ITEM_HEAD;
    let mut parts = Parts::default();
    let extents: Result<Vec<_>, _> = found.map(|part| parts.add(part?, way)).collect();
    let extents = extents.map_err(value::Error);
    let announced = encoded.and(extents).map(|extents| {
        announce(start, &extents, buffer);
        length = length.saturating_add(part::total(&extents));
    });
    seal_apart(start, announced, &parts, limit, buffer)?;
    Ok(Item { length, parts })
}

/// Puts the extents of a value's parts before it.
fn announce(start: usize, extents: &[Extent], buffer: &mut BytesMut) {
    buffer[start + HEAD + 1] |= IS_APART;
    let value = buffer.split_off(start + HEAD + ITEM_HEAD);
    buffer.put_u32(u32::try_from(extents.len()).unwrap_or(u32::MAX));
    for extent in extents {
        buffer.put_u64(extent.to_wire());
    }
    buffer.extend_from_slice(&value);
}

/// As [`seal`] for a frame with parts, which are in its length only if they follow it.
fn seal_apart(
    start: usize,
    encoded: Result<(), value::Error>,
    parts: &Parts,
    limit: usize,
    buffer: &mut BytesMut,
) -> Result<(), FrameError> {
    let beside: usize = parts.beside.iter().map(Part::length).sum();
    let follow: usize = parts.follow.iter().map(Bytes::len).sum();
    let length = seal(start, encoded, beside + follow, limit, buffer)?;
    write_length(start, length - beside, buffer);
    Ok(())
}

/// Puts the length before what was appended since `start`, or takes it off again; `beside` bytes
/// of it are elsewhere.
fn seal(
    start: usize,
    encoded: Result<(), value::Error>,
    beside: usize,
    limit: usize,
    buffer: &mut BytesMut,
) -> Result<usize, FrameError> {
    let length = buffer.len() - start - HEAD + beside;
    let error = match encoded {
        Err(error) => Some(FrameError::Encode(error.to_string())),
        Ok(()) if length > limit => Some(FrameError::TooLarge { length, limit }),
        Ok(()) => None,
    };
    if let Some(error) = error {
        buffer.truncate(start);
        return Err(error);
    }
    write_length(start, length, buffer);
    Ok(length)
}

fn write_length(start: usize, length: usize, buffer: &mut BytesMut) {
    let head = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    buffer[start..start + HEAD].copy_from_slice(&head);
}

/// Decodes a message; nesting is bounded. Users' values in it have a form of their own, [`crate::value`].
///
/// # Errors
/// [`FrameError::Decode`] says what was found in the place of what.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(MAX_NESTING);
    T::deserialize(&mut deserializer).map_err(|error| FrameError::Decode(error.to_string()))
}

/// The same for a message, with the parts that follow it, or that the lane beside its socket holds.
///
/// # Errors
/// As [`decode`].
pub fn decode_message<T: DeserializeOwned>(
    message: &Bytes,
    lane: Option<&Arc<Lane>>,
) -> Result<T, FrameError> {
    let source = Source::of(message, lane);
    encoded::coming(source, || decode(message))
}

/// In the number of a context: parts lie beside the message.
const APART: u64 = 1 << 63;
/// The same in the first byte of that number, which is never that large.
const IS_APART: u8 = (APART >> 56) as u8;
/// In the place of a context's number, which is never that large: what belongs to the next message.
const PART: u64 = 1 << 62;
const FILE: u64 = PART | 1;
const HEAD: usize = 4;
/// The byte that MessagePack never uses.
const ITEM: u8 = 0xC1;
/// That byte and the number of the context.
const ITEM_HEAD: usize = 9;
const READ_CHUNK: usize = 8 * 1024;
/// About what a socket holds: more never comes at once.
const MAX_CHUNK: usize = 256 * 1024;
/// How much is taken at once for a frame of which a part has come.
const MAX_RESERVE: usize = 1 << 20;
/// Deep enough for a fault of the deepest tree, shallow enough for any stack.
const MAX_NESTING: usize = 256;
