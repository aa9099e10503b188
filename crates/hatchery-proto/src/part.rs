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
    /// It has come, and this process could not take it: why.
    Lost(Arc<str>),
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

    /// As MessagePack.
    ///
    /// # Errors
    /// The same.
    fn encode(&self) -> Result<Bytes, String>;
}

impl Part {
    /// How many bytes it counts for; `None`: it is not known, for it is lost.
    pub(crate) fn length(&self) -> Option<usize> {
        match self {
            Self::Bytes(bytes) | Self::File(Sealed { bytes, .. }) => Some(bytes.len()),
            Self::Value(value) => value.length().ok(),
            Self::Lost(_) => None,
        }
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::File(sealed) => write!(f, "{} bytes in a file", sealed.bytes.len()),
            Self::Value(_) => f.write_str("a value"),
            Self::Lost(why) => write!(f, "lost: {why}"),
        }
    }
}

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Value(one), Self::Value(other)) => Arc::ptr_eq(one, other),
            (Self::Lost(one), Self::Lost(other)) => one == other,
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
    Across {
        /// Bytes from this length on are to be put into such a file as well.
        files_from: usize,
    },
}

impl Way {
    /// To another process, and nothing is put into a file for it.
    pub const ACROSS: Self = Self::Across { files_from: usize::MAX };
}

/// The large parts of a message, sorted by the way they go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    /// To be handed over before the frame is out. To another process as files, in this order; what
    /// is [`Part::Bytes`] must be put into one first.
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
        let part = match (part, way) {
            (Part::Value(value), Way::Across { .. }) => Part::Bytes(value.encode()?),
            (part, _) => part,
        };
        let length = match &part {
            Part::Value(value) => value.length()?,
            Part::Bytes(bytes) | Part::File(Sealed { bytes, .. }) => bytes.len(),
            Part::Lost(why) => return Err(why.to_string()),
        };
        let beside = match (&part, way) {
            (_, Way::Inside) => true,
            _ if self.beside.len() >= MAX_FILES => false,
            (Part::File(_), _) => true,
            (_, Way::Across { files_from }) => length >= files_from,
        };
        match part {
            part if beside => self.beside.push(part),
            Part::Bytes(bytes) | Part::File(Sealed { bytes, .. }) => self.follow.push(bytes),
            Part::Value(_) | Part::Lost(_) => {}
        }
        Ok(Extent { length, beside })
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
}

/// The lengths of all, as far as numbers go.
pub(crate) fn total(extents: &[Extent]) -> usize {
    extents.iter().fold(0, |all, extent| all.saturating_add(extent.length))
}

const BESIDE: u64 = 1 << 63;
/// The most files that go with one message; what is left follows it.
pub const MAX_FILES: usize = 16;
