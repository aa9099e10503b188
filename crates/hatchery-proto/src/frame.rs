//! Bytes to frames and back: a length of four bytes, big endian, then MessagePack.
//!
//! A message of a stream has a shorter form: a byte that no MessagePack value begins with, the
//! number of its context, and the value; so it is encoded once, straight into the outgoing buffer.
//! Its large [`Blob`](crate::Blob)s stay where they are: such a frame goes out in several pieces.

use std::io;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::blob;
use crate::encoded::{self, Encoded, Lane, Source};
use crate::id::CallId;

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
    let encoded = rmp_serde::encode::write(&mut (&mut *buffer).writer(), message);
    seal(start, encoded, 0, limit, buffer).map(drop)
}

/// Where the large blobs of a message go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blobs {
    /// At the end of its frame, whose length they are part of.
    Follow,
    /// Into the [`Lane`] beside the socket, for the other end is in this process.
    Beside,
}

/// The same, but for the large blobs of [`Encoded`] values, which are given back to go where `blobs`
/// says. They count for the limit in any case.
///
/// # Errors
/// As [`encode`].
pub fn encode_apart(
    message: &impl Serialize,
    blobs: Blobs,
    limit: usize,
    buffer: &mut BytesMut,
) -> Result<Vec<Bytes>, FrameError> {
    let start = buffer.len();
    buffer.put_u32(0);
    let (encoded, parts) =
        encoded::leaving(|| rmp_serde::encode::write(&mut (&mut *buffer).writer(), message));
    let inline = buffer.len() - start - HEAD;
    seal(start, encoded, total(&parts), limit, buffer)?;
    if blobs == Blobs::Beside {
        let head = u32::try_from(inline).unwrap_or(u32::MAX).to_be_bytes();
        buffer[start..start + HEAD].copy_from_slice(&head);
    }
    Ok(parts)
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
        value: Bytes,
        /// How many blobs were handed over beside it.
        blobs: usize,
    },
}

impl Frame {
    /// Tells the two kinds apart.
    ///
    /// # Errors
    /// [`FrameError::Decode`]: a stream's message without its context.
    pub fn new(mut frame: Bytes) -> Result<Self, FrameError> {
        if frame.first() != Some(&ITEM) {
            return Ok(Self::Message(frame));
        }
        if frame.len() < ITEM_HEAD {
            return Err(FrameError::Decode("a stream's message without its context".to_owned()));
        }
        frame.advance(1);
        let number = frame.get_u64();
        let call = CallId::new(number & !APART);
        let blobs = if number & APART == 0 { 0 } else { count(&mut frame)? };
        Ok(Self::Item { call, value: frame, blobs })
    }
}

/// How many blobs a frame says that it has beside it: one form for each message, so never none.
fn count(frame: &mut Bytes) -> Result<usize, FrameError> {
    match frame.try_get_u32() {
        Ok(count @ 1..) => Ok(count as usize),
        Ok(0) => Err(FrameError::Decode("no blobs beside a message".to_owned())),
        Err(error) => Err(FrameError::Decode(error.to_string())),
    }
}

/// Puts together what came in a stream's message and what was handed over beside it.
///
/// # Errors
/// [`FrameError::Decode`]: there is no lane, or not enough in it.
pub fn join(value: Bytes, blobs: usize, lane: Option<&Arc<Lane>>) -> Result<Encoded, FrameError> {
    match lane {
        _ if blobs == 0 => Ok(value.into()),
        Some(lane) => Encoded::taken(value, blobs, lane),
        None => Err(FrameError::Decode("blobs beside a message of a socket".to_owned())),
    }
}

/// A stream's message that was encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// How many bytes its value has, blobs included.
    pub length: usize,
    /// The blobs that were left out of the buffer, and the places in it where they belong.
    pub blobs: Vec<(usize, Bytes)>,
}

/// Appends the frame of a stream's message, but for its large blobs. On an error the buffer is as
/// it was.
///
/// # Errors
/// [`FrameError::Encode`] or [`FrameError::TooLarge`].
pub fn encode_item(
    call: CallId,
    value: &impl Serialize,
    limit: usize,
    buffer: &mut BytesMut,
) -> Result<Item, FrameError> {
    let start = buffer.len();
    buffer.put_u32(0);
    buffer.put_u8(ITEM);
    buffer.put_u64(call.number());
    let mut writer = Sharing { buffer, blobs: Vec::new() };
    let encoded = rmp_serde::encode::write(&mut writer, value);
    let Sharing { buffer, blobs } = writer;
    let beside = blobs.iter().map(|(_, blob)| blob.len()).sum();
    let length = seal(start, encoded, beside, limit, buffer)? - ITEM_HEAD;
    Ok(Item { length, blobs })
}

/// Takes the frame that begins at `start` out of `buffer`, its blobs put in.
pub fn cut(buffer: &mut BytesMut, start: usize, blobs: Vec<(usize, Bytes)>) -> Vec<Bytes> {
    let mut frame = buffer.split_off(start).freeze();
    let (mut pieces, mut done) = (Vec::with_capacity(blobs.len() * 2 + 1), start);
    for (place, blob) in blobs {
        pieces.push(frame.split_to(place - done));
        pieces.push(blob);
        done = place;
    }
    if !frame.is_empty() {
        pieces.push(frame);
    }
    pieces
}

/// A stream's message for a connection inside this process: its frame, and the blobs that are to
/// be handed over beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apart {
    /// How many bytes its value has, blobs included.
    pub length: usize,
    /// The whole frame; empty if it was appended to the buffer, for it has no large blobs.
    pub frame: Bytes,
    /// Those.
    pub blobs: Vec<Bytes>,
}

/// Appends the frame of a stream's message, or gives it back if it has large blobs. On an error the
/// buffer is as it was.
///
/// # Errors
/// [`FrameError::Encode`] or [`FrameError::TooLarge`].
pub fn encode_item_apart(
    call: CallId,
    value: &impl Serialize,
    limit: usize,
    buffer: &mut BytesMut,
) -> Result<Apart, FrameError> {
    let start = buffer.len();
    let (item, blobs) = blob::apart(|| encode_item(call, value, limit, buffer));
    let inline = item?.length;
    let length = inline + total(&blobs);
    if blobs.is_empty() {
        return Ok(Apart { length, frame: Bytes::new(), blobs });
    }
    let plain = buffer.split_off(start);
    if ITEM_HEAD + length > limit {
        return Err(FrameError::TooLarge { length: ITEM_HEAD + length, limit });
    }
    let mut frame = BytesMut::with_capacity(HEAD + ITEM_HEAD + 4 + inline);
    frame.put_u32(u32::try_from(ITEM_HEAD + 4 + inline).unwrap_or(u32::MAX));
    frame.put_u8(ITEM);
    frame.put_u64(call.number() | APART);
    frame.put_u32(u32::try_from(blobs.len()).unwrap_or(u32::MAX));
    frame.put_slice(&plain[HEAD + ITEM_HEAD..]);
    Ok(Apart { length, frame: frame.freeze(), blobs })
}

fn total(blobs: &[Bytes]) -> usize {
    blobs.iter().map(Bytes::len).sum()
}

/// Writes into a buffer, but for large blobs, which it keeps a share of.
struct Sharing<'a> {
    buffer: &'a mut BytesMut,
    blobs: Vec<(usize, Bytes)>,
}

impl io::Write for Sharing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match blob::offered(bytes) {
            Some(blob) => self.blobs.push((self.buffer.len(), blob)),
            None => self.buffer.extend_from_slice(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Appends the frame of a stream's message whose value is encoded already.
///
/// # Errors
/// [`FrameError::TooLarge`].
pub fn put_item(
    call: CallId,
    value: &[u8],
    limit: usize,
    buffer: &mut BytesMut,
) -> Result<(), FrameError> {
    let start = buffer.len();
    buffer.put_u32(0);
    buffer.put_u8(ITEM);
    buffer.put_u64(call.number());
    buffer.extend_from_slice(value);
    seal(start, Ok(()), 0, limit, buffer).map(drop)
}

/// Puts the length before what was appended since `start`, or takes it off again; `beside` bytes
/// of it are elsewhere.
fn seal(
    start: usize,
    encoded: Result<(), rmp_serde::encode::Error>,
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
    let head = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    buffer[start..start + HEAD].copy_from_slice(&head);
    Ok(length)
}

/// Decodes one value; nesting is bounded.
///
/// # Errors
/// [`FrameError::Decode`] says what was found in the place of what.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(MAX_NESTING);
    T::deserialize(&mut deserializer).map_err(|error| FrameError::Decode(error.to_string()))
}

/// The same for a message, with the blobs that follow it, or that the lane beside its socket holds.
///
/// # Errors
/// As [`decode`].
pub fn decode_message<T: DeserializeOwned>(
    message: &Bytes,
    lane: Option<&Arc<Lane>>,
) -> Result<T, FrameError> {
    let source = match lane {
        Some(lane) => Source::Lane(lane.clone()),
        // None that follow are in there.
        None if message.len() < blob::SHARED => return decode(message),
        None => Source::Tail(message.clone()),
    };
    encoded::coming(source, || decode(message))
}

/// The same, whose large [`Blob`](crate::Blob)s share the memory of `bytes`.
///
/// # Errors
/// As [`decode`].
pub fn decode_shared<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, FrameError> {
    blob::decoding(bytes, decode)
}

/// In the number of a context: blobs lie beside the message.
const APART: u64 = 1 << 63;
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
