//! What lies beside the encoded value of a message, and which way each of it goes.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One large part of a message.
#[derive(Clone)]
pub enum Part {
    /// Bytes, shared with whoever else has them.
    Bytes(Bytes),
    /// Bytes in a sealed file of memory, which another process can map.
    File(Sealed),
    /// A value that a thread of this process takes as it is.
    Value(Arc<dyn Handed>),
    /// It has come, and this process could not take it.
    Lost {
        /// Why not.
        why: Arc<str>,
        /// How many bytes it counts for all the same.
        length: usize,
    },
}

/// Bytes that nobody can change any more, and the file that they are the whole of.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// The file, mapped.
    pub bytes: Bytes,
    /// A memory file, sealed against writes and changes of its size. What it is to the operating
    /// system is not known here.
    pub file: Arc<dyn Any + Send + Sync>,
}

/// A value that can be handed over as it is, or be encoded for who has another memory.
pub trait Handed: Any + Send + Sync {
    /// How long it is when it is encoded.
    ///
    /// # Errors
    /// It has no encoded form: why.
    fn length(&self) -> Result<usize, String>;

    /// As bytes, see [`crate::value`].
    ///
    /// # Errors
    /// The same.
    fn encode(&self) -> Result<Bytes, String>;

    /// The same of one that is all of a message, kept with it.
    ///
    /// # Errors
    /// The same, and that it is a part of one.
    fn encoded(&self) -> Result<&[u8], String> {
        Err("a part of a message in the place of one".to_owned())
    }
}

impl Part {
    /// How many bytes it counts for.
    #[must_use]
    pub fn length(&self) -> usize {
        match self {
            Self::Bytes(bytes) | Self::File(Sealed { bytes, .. }) => bytes.len(),
            Self::Value(value) => value.length().unwrap_or_default(),
            Self::Lost { length, .. } => *length,
        }
    }

    /// Has a value's own code run, so that none of it does when its message is written: whether it
    /// has an encoded form is known then, and for another process it is there.
    ///
    /// # Errors
    /// It has none: why.
    pub fn settled(self, way: Way) -> Result<Self, String> {
        match (&self, way) {
            (Self::Value(value), Way::Inside) => value.length().map(|_| self),
            (Self::Value(value), Way::Across) => value.encode().map(Self::Bytes),
            (Self::Bytes(_) | Self::File(_) | Self::Lost { .. }, _) => Ok(self),
        }
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::File(sealed) => write!(f, "{} bytes in a file", sealed.bytes.len()),
            Self::Value(_) => f.write_str("a value"),
            Self::Lost { why, .. } => write!(f, "lost: {why}"),
        }
    }
}

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Value(one), Self::Value(other)) => Arc::ptr_eq(one, other),
            (Self::Lost { why: one, .. }, Self::Lost { why: other, .. }) => one == other,
            (
                Self::Bytes(one) | Self::File(Sealed { bytes: one, .. }),
                Self::Bytes(other) | Self::File(Sealed { bytes: other, .. }),
            ) => one == other,
            _ => false,
        }
    }
}

impl Eq for Part {}

/// Where the other end of a connection is, which decides what goes beside its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In this process: everything is handed over as it is, in a [`Lane`](crate::Lane).
    Inside,
    /// In another one: sealed files are passed on, the rest follows its message in its frame.
    Across,
}

/// The large parts of a message, sorted by the way they go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    /// To be handed over before the frame is out, in this order; to another process as files.
    pub beside: Vec<Part>,
    /// To be written after the frame, whose length they are part of.
    pub follow: Vec<Bytes>,
}

impl Parts {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.beside.is_empty() && self.follow.is_empty()
    }

    /// Adds one; says how long it is and which way it goes.
    pub(crate) fn add(&mut self, part: Part, way: Way) -> Result<Extent, String> {
        let extent = |beside, length| Extent { length, beside };
        let part = part.settled(way)?;
        let length = part.length();
        match (part, way) {
            (Part::Lost { why, .. }, _) => Err(why.to_string()),
            (part, Way::Inside) | (part @ (Part::File(_) | Part::Value(_)), Way::Across) => {
                self.beside.push(part);
                Ok(extent(true, length))
            }
            (Part::Bytes(bytes), Way::Across) => {
                self.follow.push(bytes);
                Ok(extent(false, length))
            }
        }
    }
}

/// How long a part is, and where. As long itself on each way, for the limits are the same on each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent {
    pub(crate) length: usize,
    /// Not in its frame.
    pub(crate) beside: bool,
}

impl Extent {
    /// As one number.
    pub(crate) fn to_wire(self) -> u64 {
        self.length as u64 | if self.beside { BESIDE } else { 0 }
    }

    pub(crate) fn of_wire(number: u64) -> Self {
        let length = usize::try_from(number & !BESIDE).unwrap_or(usize::MAX);
        Self { length, beside: number & BESIDE != 0 }
    }

    /// Whether these can belong to an encoded value of so many bytes: each has its number in it, and
    /// none is empty. Otherwise parts would cost nothing (C15).
    pub(crate) fn can_be(extents: &[Self], value: usize) -> bool {
        extents.len() <= value / NUMBER && extents.iter().all(|extent| extent.length > 0)
    }
}

/// The lengths of all, as far as numbers go.
pub(crate) fn total(extents: &[Extent]) -> usize {
    extents.iter().fold(0, |all, extent| all.saturating_add(extent.length))
}

const BESIDE: u64 = 1 << 63;
/// How many bytes of a value a part's number takes.
pub(crate) const NUMBER: usize = 6;
