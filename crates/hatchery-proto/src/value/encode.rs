//! The writing side.

use std::io;

use serde::ser::{
    Error as _, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant,
    SerializeTuple, SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use super::{Error, marker};

/// Writes one value.
pub(super) struct Encoder<'w, W> {
    to: &'w mut W,
    /// What is not written yet, so that single bytes are not single writes.
    stage: [u8; STAGE],
    staged: usize,
    names: Names,
    /// How many `Some` the next thing is in. They are written if that is nothing.
    somes: u32,
}

/// The names that were written, told apart by where they stand in the program.
#[derive(Default)]
struct Names {
    all: Vec<Written>,
    /// The one that was written last.
    last: usize,
}

struct Written {
    name: &'static str,
    /// Which one followed it the last time: fields come in the same order each time.
    next: usize,
}

impl Names {
    /// The number of a name, and whether it is a new one.
    fn number(&mut self, name: &'static str) -> (usize, bool) {
        let is = |written: &Written| std::ptr::eq(written.name, name);
        let guess = self.all.get(self.last).map_or(0, |last| last.next);
        let found = if self.all.get(guess).is_some_and(is) {
            Some(guess)
        } else {
            self.all.iter().position(is)
        };
        let number = found.unwrap_or(self.all.len());
        if found.is_none() {
            if self.all.is_empty() {
                self.all.reserve_exact(A_FEW);
            }
            self.all.push(Written { name, next: 0 });
        }
        self.all[self.last].next = number;
        self.last = number;
        (number, found.is_none())
    }
}

impl<'w, W: io::Write> Encoder<'w, W> {
    pub(super) fn new(to: &'w mut W) -> Self {
        Self { to, stage: [0; STAGE], staged: 0, names: Names::default(), somes: 0 }
    }

    /// Writes what is staged. To be called when the value has been serialized.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        match std::mem::take(&mut self.staged) {
            0 => Ok(()),
            staged => Ok(self.to.write_all(&self.stage[..staged])?),
        }
    }

    #[inline]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) -> Result<(), Error> {
        if self.staged > STAGE - N {
            self.finish()?;
        }
        self.stage[self.staged..][..N].copy_from_slice(&bytes);
        self.staged += N;
        Ok(())
    }

    /// The same for any number of bytes.
    fn put_all(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.len() > STAGE - self.staged {
            self.finish()?;
        }
        match self.stage[self.staged..].get_mut(..bytes.len()) {
            Some(stage) => {
                stage.copy_from_slice(bytes);
                self.staged += bytes.len();
                Ok(())
            }
            None => Ok(self.to.write_all(bytes)?),
        }
    }

    /// Writes the head of something that isn't nothing.
    #[inline]
    fn head<const N: usize>(&mut self, bytes: [u8; N]) -> Result<(), Error> {
        self.somes = 0;
        self.put(bytes)
    }

    fn nothing(&mut self) -> Result<(), Error> {
        for _ in 0..std::mem::take(&mut self.somes) {
            self.put([marker::SOME])?;
        }
        self.put([marker::NIL])
    }

    #[inline]
    fn unsigned(&mut self, value: u64) -> Result<(), Error> {
        let [.., e, f, g, h] = value.to_be_bytes();
        match value {
            0..=0x7F => self.head([h]),
            0x80..=0xFF => self.head([marker::U8, h]),
            0x100..=0xFFFF => self.head([marker::U16, g, h]),
            0x1_0000..=0xFFFF_FFFF => self.head([marker::U32, e, f, g, h]),
            _ => self.wide(marker::U64, value.to_be_bytes()),
        }
    }

    fn signed(&mut self, value: i64) -> Result<(), Error> {
        let [.., e, f, g, h] = value.to_be_bytes();
        match value {
            0.. => self.unsigned(value.unsigned_abs()),
            -32..0 => self.head([h]),
            -0x80..-32 => self.head([marker::I8, h]),
            -0x8000..-0x80 => self.head([marker::I16, g, h]),
            -0x8000_0000..-0x8000 => self.head([marker::I32, e, f, g, h]),
            _ => self.wide(marker::I64, value.to_be_bytes()),
        }
    }

    fn wide<const N: usize>(&mut self, marker: u8, bytes: [u8; N]) -> Result<(), Error> {
        self.head([marker])?;
        self.put(bytes)
    }

    /// The head of `length` things, in the shortest of up to four forms.
    fn counted(
        &mut self,
        length: usize,
        fixed: Option<(u8, usize)>,
        [by_8, by_16, by_32]: [Option<u8>; 3],
    ) -> Result<(), Error> {
        let length = u32::try_from(length).map_err(|_| Error::custom("over 4,294,967,295 long"))?;
        let [a, b, c, d] = length.to_be_bytes();
        match (length, fixed, by_8, by_16, by_32) {
            (_, Some((marker, most)), ..) if length as usize <= most => self.head([marker | d]),
            (0..=0xFF, _, Some(marker), ..) => self.head([marker, d]),
            (0..=0xFFFF, _, _, Some(marker), _) => self.head([marker, c, d]),
            (_, _, _, _, Some(marker)) => self.head([marker, a, b, c, d]),
            (_, _, _, _, None) => Err(Error::custom("a length without a form")),
        }
    }

    fn array(&mut self, length: usize) -> Result<(), Error> {
        let (fixed, forms) = ((marker::ARRAY, 15), [marker::ARRAY_16, marker::ARRAY_32]);
        self.counted(length, Some(fixed), [None, Some(forms[0]), Some(forms[1])])
    }

    fn name(&mut self, name: &'static str) -> Result<(), Error> {
        let (number, is_new) = self.names.number(name);
        self.number(number + 1)?;
        if is_new {
            self.number(name.len())?;
            self.put_all(name.as_bytes())?;
        }
        Ok(())
    }

    /// Seven bits a byte, the lowest first; all but the last have the eighth.
    #[inline]
    fn number(&mut self, number: usize) -> Result<(), Error> {
        match number {
            0..=0x7F => self.put([number as u8]),
            _ => self.long_number(number),
        }
    }

    fn long_number(&mut self, mut number: usize) -> Result<(), Error> {
        let (mut bytes, mut length) = ([0; 10], 0);
        loop {
            let low = (number & 0x7F) as u8;
            number >>= 7;
            bytes[length] = if number == 0 { low } else { low | 0x80 };
            length += 1;
            if number == 0 {
                return self.put_all(&bytes[..length]);
            }
        }
    }

    /// The name of a variant that has something.
    fn variant(&mut self, variant: &'static str) -> Result<(), Error> {
        self.head([marker::MAP | 1, marker::NAME])?;
        self.name(variant)
    }
}

/// Elements, or keys and values, of which so many were announced.
pub(super) struct Many<'a, 'w, W> {
    encoder: &'a mut Encoder<'w, W>,
    /// `None`: they go on until an end.
    left: Option<usize>,
}

impl<W: io::Write> Many<'_, '_, W> {
    fn one(&mut self, value: &(impl Serialize + ?Sized)) -> Result<(), Error> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1).ok_or_else(Self::lies)?;
        }
        value.serialize(&mut *self.encoder)
    }

    fn end(self) -> Result<(), Error> {
        match self.left {
            None => self.encoder.head([marker::END]),
            Some(0) => Ok(()),
            Some(_) => Err(Self::lies()),
        }
    }

    #[cold]
    fn lies() -> Error {
        Error::custom("its `Serialize` announced another number of elements than it gave")
    }
}

/// Fields of a struct, each with its name.
pub(super) struct Fields<'a, 'w, W>(&'a mut Encoder<'w, W>);

impl<W: io::Write> Fields<'_, '_, W> {
    fn one(&mut self, name: &'static str, value: &(impl Serialize + ?Sized)) -> Result<(), Error> {
        self.0.name(name)?;
        value.serialize(&mut *self.0)
    }

    fn end(self) -> Result<(), Error> {
        self.0.number(0)
    }
}

impl<'a, 'w, W: io::Write> Serializer for &'a mut Encoder<'w, W> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Many<'a, 'w, W>;
    type SerializeTuple = Many<'a, 'w, W>;
    type SerializeTupleStruct = Many<'a, 'w, W>;
    type SerializeTupleVariant = Many<'a, 'w, W>;
    type SerializeMap = Many<'a, 'w, W>;
    type SerializeStruct = Fields<'a, 'w, W>;
    type SerializeStructVariant = Fields<'a, 'w, W>;

    fn serialize_bool(self, value: bool) -> Result<(), Error> {
        self.head([if value { marker::TRUE } else { marker::FALSE }])
    }

    fn serialize_i8(self, value: i8) -> Result<(), Error> {
        self.signed(value.into())
    }

    fn serialize_i16(self, value: i16) -> Result<(), Error> {
        self.signed(value.into())
    }

    fn serialize_i32(self, value: i32) -> Result<(), Error> {
        self.signed(value.into())
    }

    fn serialize_i64(self, value: i64) -> Result<(), Error> {
        self.signed(value)
    }

    fn serialize_i128(self, value: i128) -> Result<(), Error> {
        match (u64::try_from(value), i64::try_from(value)) {
            (Ok(value), _) => self.unsigned(value),
            (_, Ok(value)) => self.signed(value),
            _ => self.wide(marker::I128, value.to_be_bytes()),
        }
    }

    fn serialize_u8(self, value: u8) -> Result<(), Error> {
        self.unsigned(value.into())
    }

    fn serialize_u16(self, value: u16) -> Result<(), Error> {
        self.unsigned(value.into())
    }

    fn serialize_u32(self, value: u32) -> Result<(), Error> {
        self.unsigned(value.into())
    }

    fn serialize_u64(self, value: u64) -> Result<(), Error> {
        self.unsigned(value)
    }

    fn serialize_u128(self, value: u128) -> Result<(), Error> {
        match u64::try_from(value) {
            Ok(value) => self.unsigned(value),
            Err(_) => self.wide(marker::U128, value.to_be_bytes()),
        }
    }

    fn serialize_f32(self, value: f32) -> Result<(), Error> {
        self.wide(marker::F32, value.to_bits().to_be_bytes())
    }

    fn serialize_f64(self, value: f64) -> Result<(), Error> {
        self.wide(marker::F64, value.to_bits().to_be_bytes())
    }

    fn serialize_char(self, value: char) -> Result<(), Error> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<(), Error> {
        let forms = [marker::TEXT_8, marker::TEXT_16, marker::TEXT_32].map(Some);
        self.counted(value.len(), Some((marker::TEXT, 31)), forms)?;
        self.put_all(value.as_bytes())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Error> {
        let forms = [marker::BYTES_8, marker::BYTES_16, marker::BYTES_32].map(Some);
        self.counted(value.len(), None, forms)?;
        // Alone, and as the slice that it is: the writer may know it.
        self.finish()?;
        Ok(self.to.write_all(value)?)
    }

    fn serialize_none(self) -> Result<(), Error> {
        self.nothing()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.somes += 1;
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Error> {
        self.nothing()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        self.nothing()
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), Error> {
        self.head([marker::NAME])?;
        self.name(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.variant(variant)?;
        value.serialize(self)
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Many<'a, 'w, W>, Error> {
        match length {
            Some(length) => self.array(length)?,
            None => self.head([marker::OPEN_ARRAY])?,
        }
        Ok(Many { encoder: self, left: length })
    }

    fn serialize_tuple(self, length: usize) -> Result<Many<'a, 'w, W>, Error> {
        self.serialize_seq(Some(length))
    }

    fn serialize_tuple_struct(
        self,
        _: &'static str,
        length: usize,
    ) -> Result<Many<'a, 'w, W>, Error> {
        self.serialize_seq(Some(length))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Many<'a, 'w, W>, Error> {
        self.variant(variant)?;
        self.serialize_seq(Some(length))
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Many<'a, 'w, W>, Error> {
        let forms = [None, Some(marker::MAP_16), Some(marker::MAP_32)];
        match length {
            Some(length) => self.counted(length, Some((marker::MAP, 15)), forms)?,
            None => self.head([marker::OPEN_MAP])?,
        }
        let left = length.map(|length| length.saturating_mul(2));
        Ok(Many { encoder: self, left })
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields<'a, 'w, W>, Error> {
        self.head([marker::FIELDS])?;
        Ok(Fields(self))
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Fields<'a, 'w, W>, Error> {
        self.variant(variant)?;
        self.serialize_struct(name, length)
    }
}

/// The traits differ in names alone.
macro_rules! many {
    ($($of:ident $one:ident),*) => {$(
        impl<W: io::Write> $of for Many<'_, '_, W> {
            type Ok = ();
            type Error = Error;

            fn $one<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                self.one(value)
            }

            fn end(self) -> Result<(), Error> {
                self.end()
            }
        }
    )*};
}

many!(
    SerializeSeq serialize_element,
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field
);

impl<W: io::Write> SerializeMap for Many<'_, '_, W> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.one(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.one(value)
    }

    fn end(self) -> Result<(), Error> {
        self.end()
    }
}

macro_rules! fields {
    ($($of:ident),*) => {$(
        impl<W: io::Write> $of for Fields<'_, '_, W> {
            type Ok = ();
            type Error = Error;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), Error> {
                self.one(name, value)
            }

            fn end(self) -> Result<(), Error> {
                self.end()
            }
        }
    )*};
}

fields!(SerializeStruct, SerializeStructVariant);

/// How many names most values have at most.
pub(super) const A_FEW: usize = 8;

/// Names, numbers and short texts of a value that are written together.
const STAGE: usize = 64;
