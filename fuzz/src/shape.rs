//! What a value looks like, its numbers and texts aside.

use std::fmt::{self, Debug, Display, Write};

/// The shape of how a decoder took its input: two inputs of one shape went the same way.
pub(crate) fn of(value: &impl Debug) -> u64 {
    let mut shape = Shape::default();
    // A shape takes any text.
    let _infallible = write!(shape, "{value:?}");
    shape.hash
}

/// The same of an error, by its words.
pub(crate) fn of_error(error: &impl Display) -> u64 {
    // What comes after its first words are the input's own.
    let mut shape = Shape { length: LONGEST - FIRST_WORDS, ..Shape::default() };
    let _infallible = write!(shape, "{error}");
    !shape.hash
}

/// Adds the shape of what came next.
pub(crate) fn and(before: u64, next: u64) -> u64 {
    (before.rotate_left(7) ^ next).wrapping_mul(PRIME)
}

/// FNV-1a over names and punctuation, up to a length that ends the growth of lists.
#[derive(Debug)]
struct Shape {
    hash: u64,
    length: usize,
    /// What ends the text that it is in.
    text: Option<u8>,
    escaped: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, length: 0, text: None, escaped: false }
    }
}

impl Write for Shape {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let is_escaped = self.escaped;
            self.escaped = byte == b'\\' && !is_escaped;
            match self.text {
                Some(end) if byte == end && !is_escaped => self.text = None,
                Some(_) => continue,
                None if matches!(byte, b'"' | b'`') => self.text = Some(byte),
                None => {}
            }
            if byte.is_ascii_digit() || self.length >= LONGEST {
                continue;
            }
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(PRIME);
            self.length += 1;
        }
        Ok(())
    }
}

const PRIME: u64 = 0x0100_0000_01b3;
const LONGEST: usize = 160;
const FIRST_WORDS: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_knows_kinds_and_no_values() {
        assert_eq!(of(&Some(1)), of(&Some(77)));
        assert_eq!(of(&"one"), of(&"a\"nother"));
        assert_eq!(of_error(&"expected `a`"), of_error(&"expected `b`"));
        assert_ne!(of(&Some(1)), of(&None::<i32>));
        assert_ne!(of(&[1]), of(&[1, 2]));
    }
}
