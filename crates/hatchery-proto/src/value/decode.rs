//! The reading side. Nothing is allocated for what has not come (C15).

use serde::de::value::{BorrowedBytesDeserializer, SeqDeserializer};
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IntoDeserializer as _, MapAccess,
    SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::encode::A_FEW;
use super::key::{Key, Name, Variant};
use super::{Error, marker};

/// Reads one value, which is all there is.
pub(super) fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Error> {
    let mut decoder = Decoder { rest: bytes, names: Vec::new(), depth: MAX_NESTING };
    let value = T::deserialize(&mut decoder)?;
    match decoder.rest.len() {
        0 => Ok(value),
        more => Err(Error::custom(format_args!("{more} bytes after the value"))),
    }
}

/// Reads from bytes.
pub(super) struct Decoder<'de> {
    rest: &'de [u8],
    names: Vec<&'de str>,
    /// How many levels it may still go down.
    depth: usize,
}

impl<'de> Decoder<'de> {
    fn peek(&self) -> Result<u8, Error> {
        self.rest.first().copied().ok_or_else(cut)
    }

    fn byte(&mut self) -> Result<u8, Error> {
        let (first, rest) = self.rest.split_first().ok_or_else(cut)?;
        self.rest = rest;
        Ok(*first)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (first, rest) = self.rest.split_first_chunk().ok_or_else(cut)?;
        self.rest = rest;
        Ok(*first)
    }

    fn slice(&mut self, length: usize) -> Result<&'de [u8], Error> {
        let (first, rest) = self.rest.split_at_checked(length).ok_or_else(cut)?;
        self.rest = rest;
        Ok(first)
    }

    fn text(&mut self, length: usize) -> Result<&'de str, Error> {
        std::str::from_utf8(self.slice(length)?).map_err(Error::custom)
    }

    /// A length of so many bytes.
    fn length(&mut self, bytes: u8) -> Result<usize, Error> {
        Ok(match bytes {
            1 => self.byte()?.into(),
            2 => u16::from_be_bytes(self.array()?).into(),
            _ => u32::from_be_bytes(self.array()?) as usize,
        })
    }

    fn number(&mut self) -> Result<usize, Error> {
        let mut number = 0;
        for shift in (0..usize::BITS).step_by(7) {
            let byte = self.byte()?;
            number |= usize::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Error::custom("a number without an end"))
    }

    /// A name, or the end of the fields.
    fn name(&mut self) -> Result<Option<&'de str>, Error> {
        let Some(number) = self.number()?.checked_sub(1) else { return Ok(None) };
        if number == self.names.len() {
            let length = self.number()?;
            let name = self.text(length)?;
            if self.names.is_empty() {
                self.names.reserve_exact(A_FEW);
            }
            self.names.push(name);
        }
        let name = self.names.get(number).ok_or_else(|| Error::custom("an unknown name"))?;
        Ok(Some(name))
    }

    fn variant_name(&mut self) -> Result<&'de str, Error> {
        self.name()?.ok_or_else(|| Error::custom("a variant without a name"))
    }

    /// Whether a number without a sign comes next.
    pub(super) fn is_unsigned(&self) -> Result<bool, Error> {
        Ok(matches!(self.peek()?, 0..marker::MAP | marker::U8..=marker::U64))
    }

    /// Goes down one level.
    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        let deeper = self.depth.checked_sub(1);
        self.depth = deeper.ok_or_else(|| Error::custom("nested too deeply"))?;
        let value = read(self)?;
        self.depth += 1;
        Ok(value)
    }

    /// Whatever comes next. `seq` says that a sequence is wanted, also in the place of bytes.
    fn any<V: Visitor<'de>>(&mut self, visitor: V, seq: bool) -> Result<V::Value, Error> {
        let marker = self.byte()?;
        let low = usize::from(marker);
        match marker {
            0..marker::MAP => visitor.visit_u64(marker.into()),
            marker::MAP..marker::ARRAY => self.map(Left::Counted(low & 0xF), visitor),
            marker::ARRAY..marker::TEXT => self.seq(Left::Counted(low & 0xF), visitor),
            marker::TEXT..marker::NIL => visitor.visit_borrowed_str(self.text(low & 0x1F)?),
            marker::NIL => visitor.visit_unit(),
            marker::SOME => self.nested(|decoder| visitor.visit_some(decoder)),
            marker::FALSE => visitor.visit_bool(false),
            marker::TRUE => visitor.visit_bool(true),
            marker::BYTES_8 | marker::BYTES_16 | marker::BYTES_32 => {
                let length = self.length(1 << (marker - marker::BYTES_8))?;
                let bytes = self.slice(length)?;
                if !seq {
                    return visitor.visit_borrowed_bytes(bytes);
                }
                let mut all = SeqDeserializer::<_, Error>::new(bytes.iter().copied());
                let value = visitor.visit_seq(&mut all)?;
                all.end()?;
                Ok(value)
            }
            marker::NAME => visitor.visit_borrowed_str(self.variant_name()?),
            marker::U128 => visitor.visit_u128(u128::from_be_bytes(self.array()?)),
            marker::I128 => visitor.visit_i128(i128::from_be_bytes(self.array()?)),
            marker::F32 => visitor.visit_f32(f32::from_be_bytes(self.array()?)),
            marker::F64 => visitor.visit_f64(f64::from_be_bytes(self.array()?)),
            marker::U8..=marker::I64 => self.integer(marker, visitor),
            marker::FIELDS => self.map(Left::Fields, visitor),
            marker::OPEN_ARRAY => self.seq(Left::Open, visitor),
            marker::BESIDE => {
                let [kind, number @ ..] = self.slice(5)? else { return Err(cut()) };
                visitor.visit_newtype_struct(Beside { kind: *kind as i8, number })
            }
            marker::END => Err(Error::custom("an end of nothing")),
            marker::OPEN_MAP => self.map(Left::Open, visitor),
            marker::TEXT_8 | marker::TEXT_16 | marker::TEXT_32 => {
                let length = self.length(1 << (marker - marker::TEXT_8))?;
                visitor.visit_borrowed_str(self.text(length)?)
            }
            marker::ARRAY_16 | marker::ARRAY_32 => {
                let length = self.length(2 << (marker - marker::ARRAY_16))?;
                self.seq(Left::Counted(length), visitor)
            }
            marker::MAP_16 | marker::MAP_32 => {
                let length = self.length(2 << (marker - marker::MAP_16))?;
                self.map(Left::Counted(length), visitor)
            }
            marker::NEGATIVE.. => visitor.visit_i64((marker as i8).into()),
        }
    }

    fn integer<V: Visitor<'de>>(&mut self, marker: u8, visitor: V) -> Result<V::Value, Error> {
        match marker {
            marker::U8 => visitor.visit_u64(self.byte()?.into()),
            marker::U16 => visitor.visit_u64(u16::from_be_bytes(self.array()?).into()),
            marker::U32 => visitor.visit_u64(u32::from_be_bytes(self.array()?).into()),
            marker::U64 => visitor.visit_u64(u64::from_be_bytes(self.array()?)),
            marker::I8 => visitor.visit_i64(i8::from_be_bytes(self.array()?).into()),
            marker::I16 => visitor.visit_i64(i16::from_be_bytes(self.array()?).into()),
            marker::I32 => visitor.visit_i64(i32::from_be_bytes(self.array()?).into()),
            _ => visitor.visit_i64(i64::from_be_bytes(self.array()?)),
        }
    }

    fn seq<V: Visitor<'de>>(&mut self, left: Left, visitor: V) -> Result<V::Value, Error> {
        self.nested(|decoder| {
            let mut all = Many { decoder, left, over: false };
            let value = visitor.visit_seq(&mut all)?;
            all.finish()?;
            Ok(value)
        })
    }

    fn map<V: Visitor<'de>>(&mut self, left: Left, visitor: V) -> Result<V::Value, Error> {
        self.nested(|decoder| {
            let mut all = Many { decoder, left, over: false };
            let value = visitor.visit_map(&mut all)?;
            all.finish()?;
            Ok(value)
        })
    }

    /// An enum's one variant that has something: a map with one key.
    fn variant<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        let left = match self.byte()? {
            marker if marker == marker::MAP | 1 => Left::Counted(1),
            marker::FIELDS => Left::Fields,
            marker::OPEN_MAP => Left::Open,
            _ => return Err(Error::custom("an enum is a name, or a map with one key")),
        };
        self.nested(|decoder| {
            let mut all = Many { decoder, left, over: false };
            if !all.goes_on()? {
                return Err(Error::custom("an enum without a variant"));
            }
            let name = match left {
                Left::Fields => all.decoder.field()?,
                Left::Counted(_) | Left::Open => all.decoder.key()?,
            };
            let value = visitor.visit_enum(Variant::with(name, &mut *all.decoder))?;
            all.finish()?;
            Ok(value)
        })
    }

    fn field(&mut self) -> Result<&'de str, Error> {
        self.variant_name()
    }

    /// A key that names a variant.
    fn key(&mut self) -> Result<&'de str, Error> {
        if self.peek()? == marker::NAME {
            self.byte()?;
            return self.variant_name();
        }
        <&str>::deserialize(self)
    }
}

#[cold]
fn cut() -> Error {
    Error::custom("it ends in the middle")
}

/// How much more of a sequence or map there is.
#[derive(Debug, Clone, Copy)]
enum Left {
    Counted(usize),
    /// Until a 0 in the place of a name.
    Fields,
    /// Until an end.
    Open,
}

/// What reads a sequence or a map.
struct Many<'a, 'de> {
    decoder: &'a mut Decoder<'de>,
    left: Left,
    over: bool,
}

impl<'de> Many<'_, 'de> {
    /// Whether there is another one; the end, if it is there, is read.
    fn goes_on(&mut self) -> Result<bool, Error> {
        let ends = match &mut self.left {
            _ if self.over => true,
            Left::Counted(0) => true,
            Left::Counted(left) => {
                *left -= 1;
                false
            }
            Left::Fields => self.decoder.peek()? == 0,
            Left::Open => self.decoder.peek()? == marker::END,
        };
        if ends && !self.over {
            self.over = true;
            if !matches!(self.left, Left::Counted(_)) {
                self.decoder.byte()?;
            }
        }
        Ok(!ends)
    }

    /// That all of it was taken.
    fn finish(mut self) -> Result<(), Error> {
        if self.goes_on()? {
            return Err(Error::custom("more elements than the type takes"));
        }
        Ok(())
    }

    fn hint(&self) -> Option<usize> {
        match self.left {
            Left::Counted(left) => Some(left.min(self.decoder.rest.len())),
            Left::Fields | Left::Open => None,
        }
    }
}

impl<'de> SeqAccess<'de> for &mut Many<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if self.goes_on()? { seed.deserialize(&mut *self.decoder).map(Some) } else { Ok(None) }
    }

    fn size_hint(&self) -> Option<usize> {
        self.hint()
    }
}

impl<'de> MapAccess<'de> for &mut Many<'_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        if !self.goes_on()? {
            return Ok(None);
        }
        match self.left {
            Left::Fields => seed.deserialize(Name(self.decoder.field()?)).map(Some),
            Left::Counted(_) | Left::Open => seed.deserialize(Key(&mut *self.decoder)).map(Some),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(&mut *self.decoder)
    }

    fn size_hint(&self) -> Option<usize> {
        self.hint()
    }
}

/// Where a number is wanted one is there, as a rule, and mostly a small one.
macro_rules! numbers {
    ($($name:ident)*) => {$(
        #[inline]
        fn $name<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match *self.rest {
                [number @ 0..marker::MAP, ref rest @ ..] | [marker::U8, number, ref rest @ ..] => {
                    self.rest = rest;
                    visitor.visit_u64(number.into())
                }
                [number @ marker::U8..=marker::I64, ref rest @ ..] => {
                    self.rest = rest;
                    self.integer(number, visitor)
                }
                _ => self.any(visitor, false),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Decoder<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.any(visitor, false)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek()? {
            marker::NIL => {
                self.byte()?;
                visitor.visit_none()
            }
            marker::SOME => {
                self.byte()?;
                self.nested(|decoder| visitor.visit_some(decoder))
            }
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        // Where a type says `Some` and takes it without.
        while self.peek()? == marker::SOME {
            self.byte()?;
        }
        self.any(visitor, false)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.any(visitor, true)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.any(visitor, true)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.any(visitor, true)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.peek()? {
            marker::NAME | marker::TEXT..marker::NIL | marker::TEXT_8..=marker::TEXT_32 => {
                visitor.visit_enum(Variant::alone(self.key()?))
            }
            _ => self.variant(visitor),
        }
    }

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    forward_to_deserialize_any! {
        bool i128 u128 f32 f64 char str string bytes byte_buf map struct identifier ignored_any
    }
}

/// The number of what lies beside the value.
struct Beside<'de> {
    kind: i8,
    number: &'de [u8],
}

impl<'de> Deserializer<'de> for Beside<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Halves { kind: Some(self.kind), number: Some(self.number) })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct Halves<'de> {
    kind: Option<i8>,
    number: Option<&'de [u8]>,
}

impl<'de> SeqAccess<'de> for Halves<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if let Some(kind) = self.kind.take() {
            return seed.deserialize(kind.into_deserializer()).map(Some);
        }
        let number = self.number.take();
        number.map(|bytes| seed.deserialize(BorrowedBytesDeserializer::new(bytes))).transpose()
    }
}

/// As deep as JSON's reader goes twice over, and shallow enough for any stack.
const MAX_NESTING: usize = 256;
