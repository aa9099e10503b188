//! How users' values are written: what arrives is what was sent (C20).
//!
//! MessagePack in most, and self-describing, so that a wrong type is an error and not a wrong value. It
//! departs from MessagePack where that, or its common way with serde, would lose something:
//!
//! - Fields of structs and variants stand with their names, so that whatever `serde` attributes leave
//!   out, rename or flatten is found again. A name is written once in a value, and is a number from then
//!   on: a thousand structs pay for their names once.
//! - `Some` of what is written as nothing (`None`, `()`) has a mark, which also passes through the buffer
//!   that serde keeps for untagged and internally tagged enums.
//! - Both sides say that they are human readable, as that buffer always does.
//! - Sequences and maps of unknown length have an end; ones that lie about theirs are errors.
//! - Whole numbers of 128 bits are written as such only if they don't fit 64.
//!
//! Both ends of a connection are one build, so this form is nobody else's; the messages between runtimes
//! around the values ([`ToChild`](crate::ToChild), [`ToParent`](crate::ToParent)) are plain MessagePack
//! without names: their types have no attributes that leave something out.

use std::fmt;
use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::frame::FrameError;

mod decode;
mod encode;
mod key;

/// A value as bytes, whatever would lie beside it included.
///
/// # Errors
/// [`FrameError::Encode`]: what its `Serialize` says, or that it lies about a length.
pub fn to_bytes(value: &impl Serialize) -> Result<Bytes, FrameError> {
    let mut buffer = BytesMut::new();
    write(value, &mut (&mut buffer).writer()).map_err(|error| FrameError::Encode(error.0))?;
    Ok(buffer.freeze())
}

/// The value in those bytes; nesting is bounded.
///
/// # Errors
/// [`FrameError::Decode`] says what was found in the place of what.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    decode::read(bytes).map_err(|error| FrameError::Decode(error.0))
}

/// Writes a value. What `writer` is given as one slice of bytes of a user's comes alone, right after its
/// marker and length.
pub(crate) fn write(value: &impl Serialize, writer: &mut impl io::Write) -> Result<(), Error> {
    let mut encoder = encode::Encoder::new(writer);
    value.serialize(&mut encoder)?;
    encoder.finish()
}

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Error(pub(crate) String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl serde::ser::Error for Error {
    #[cold]
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self(what.to_string())
    }
}

impl serde::de::Error for Error {
    #[cold]
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self(what.to_string())
    }
}

impl From<io::Error> for Error {
    #[cold]
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// The first bytes of what is written. All but the upper-case comments are MessagePack's.
mod marker {
    pub(super) const MAP: u8 = 0x80;
    pub(super) const ARRAY: u8 = 0x90;
    pub(super) const TEXT: u8 = 0xA0;
    pub(super) const NIL: u8 = 0xC0;
    /// OURS: `Some` of what follows, which is nil or another of these.
    pub(super) const SOME: u8 = 0xC1;
    pub(super) const FALSE: u8 = 0xC2;
    pub(super) const TRUE: u8 = 0xC3;
    pub(super) const BYTES_8: u8 = 0xC4;
    pub(super) const BYTES_16: u8 = 0xC5;
    pub(super) const BYTES_32: u8 = 0xC6;
    /// OURS: a name of a variant, as a number or for the first time.
    pub(super) const NAME: u8 = 0xC7;
    /// OURS: 16 bytes.
    pub(super) const U128: u8 = 0xC8;
    /// OURS: 16 bytes.
    pub(super) const I128: u8 = 0xC9;
    pub(super) const F32: u8 = 0xCA;
    pub(super) const F64: u8 = 0xCB;
    pub(super) const U8: u8 = 0xCC;
    pub(super) const U16: u8 = 0xCD;
    pub(super) const U32: u8 = 0xCE;
    pub(super) const U64: u8 = 0xCF;
    pub(super) const I8: u8 = 0xD0;
    pub(super) const I16: u8 = 0xD1;
    pub(super) const I32: u8 = 0xD2;
    pub(super) const I64: u8 = 0xD3;
    /// OURS: fields follow, each a name and a value, until a 0 in the place of a name.
    pub(super) const FIELDS: u8 = 0xD4;
    /// OURS: elements follow until an end.
    pub(super) const OPEN_ARRAY: u8 = 0xD5;
    /// A type and four bytes: what lies beside the value.
    pub(super) const BESIDE: u8 = 0xD6;
    /// OURS: the end of an open array or map.
    pub(super) const END: u8 = 0xD7;
    /// OURS: keys and values follow until an end.
    pub(super) const OPEN_MAP: u8 = 0xD8;
    pub(super) const TEXT_8: u8 = 0xD9;
    pub(super) const TEXT_16: u8 = 0xDA;
    pub(super) const TEXT_32: u8 = 0xDB;
    pub(super) const ARRAY_16: u8 = 0xDC;
    pub(super) const ARRAY_32: u8 = 0xDD;
    pub(super) const MAP_16: u8 = 0xDE;
    pub(super) const MAP_32: u8 = 0xDF;
    pub(super) const NEGATIVE: u8 = 0xE0;
}
