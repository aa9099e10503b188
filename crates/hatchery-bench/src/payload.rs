//! What is sent: values that are as many bytes on the wire as they claim, but for their head.

use std::fmt;

use hatchery::Blob;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// 64 bytes, as a small struct of a user would be: no allocation to read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block(pub(crate) [u8; 64]);

impl Serialize for Block {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes64;
        impl Visitor<'_> for Bytes64 {
            type Value = Block;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("64 bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Block, E> {
                let array = bytes.try_into();
                array.map(Block).map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }
        deserializer.deserialize_bytes(Bytes64)
    }
}

/// Whole frames of a stream's messages of that many bytes, as hatchery writes them: a length, a
/// mark, the context's number, MessagePack's head, the bytes. At least `least` bytes of them.
pub(crate) fn frames(size: usize, least: usize) -> (Vec<u8>, usize) {
    let head = 4
        + 9
        + match size {
            0..=0xFF => 2,
            0x100..=0xFFFF => 3,
            _ => 5,
        };
    let one = head + size;
    let count = least.div_ceil(one).max(1);
    (vec![7; one * count], count)
}

/// Bytes that are no struct.
pub(crate) fn bytes(size: usize) -> Blob {
    Blob::from(vec![7; size])
}
