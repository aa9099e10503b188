//! Values that threads of one process hand over as they are.
//!
//! A shared value is encoded in two halves: a mark, and the value. The one writer that knows the
//! mark, by the place it is written from, takes a share of the value and leaves the second half
//! empty. A format that knows nothing of this has an empty mark and the value.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::de::{DeserializeOwned, Error, IgnoredAny, SeqAccess, Visitor};
use serde::ser::SerializeTuple as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::blob::{self, Found};
use crate::part::{Handed, Part};
use crate::value;

/// A value in messages, arguments and replies which a spawner and its thread actors hand over to each
/// other as it is: not copied, not written and read again, and shared with whoever else has a clone
/// of it. For an actor in another process, and on connections between peers, it is encoded like any
/// value.
///
/// It counts for limits and credit with its encoded length on every backend: its `Serialize` runs
/// once, to count. What its `Serialize`
/// leaves out, say by `#[serde(skip)]`, is there after a hand-over and is not in another process:
/// share only what is equal to its decoded copy.
pub struct Shared<T>(Arc<Held<T>>);

struct Held<T> {
    value: T,
    /// Counted once.
    length: OnceLock<usize>,
}

impl<T> Shared<T> {
    /// Shares a value.
    pub fn new(value: T) -> Self {
        Self(Arc::new(Held { value, length: OnceLock::new() }))
    }

    /// The value, if nobody else has it any more.
    ///
    /// # Errors
    /// Gives back what is still shared.
    pub fn into_inner(self) -> Result<T, Self> {
        Arc::try_unwrap(self.0).map(|held| held.value).map_err(Self)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shared").field(&self.0.value).finish()
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.value == other.0.value
    }
}

impl<T: Eq> Eq for Shared<T> {}

impl<T: Serialize + Send + Sync + 'static> Handed for Held<T> {
    fn length(&self) -> Result<usize, String> {
        if let Some(length) = self.length.get() {
            return Ok(*length);
        }
        let mut count = Count(0);
        value::write(&self.value, &mut count).map_err(|error| error.to_string())?;
        Ok(*self.length.get_or_init(|| count.0))
    }

    fn encode(&self) -> Result<Bytes, String> {
        value::to_bytes(&self.value).map_err(|error| error.to_string())
    }
}

/// Counts what it is given.
struct Count(usize);

impl io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is written in the first half. Its address is what the writer knows.
pub(crate) static MARK: [u8; 1] = [0];

thread_local! {
    /// The writer has taken the value whose mark was just written.
    static TAKEN: Cell<bool> = const { Cell::new(false) };
}

/// The writer has taken it.
pub(crate) fn taken() {
    TAKEN.set(true);
}

impl<T: Serialize + Send + Sync + 'static> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut halves = serializer.serialize_tuple(2)?;
        halves.serialize_element(&Mark(&self.0))?;
        if TAKEN.take() {
            halves.serialize_element(&())?;
        } else {
            halves.serialize_element(&self.0.value)?;
        }
        halves.end()
    }
}

struct Mark<'a, T>(&'a Arc<Held<T>>);

impl<T: Serialize + Send + Sync + 'static> Serialize for Mark<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        TAKEN.set(false);
        blob::offer(Part::Value(self.0.clone()), || serializer.serialize_bytes(&MARK))
    }
}

impl<'de, T: DeserializeOwned + Serialize + Send + Sync + 'static> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_tuple(2, Halves(PhantomData))
    }
}

struct Halves<T>(PhantomData<T>);

impl<'de, T> Visitor<'de> for Halves<T>
where
    T: DeserializeOwned + Serialize + Send + Sync + 'static,
{
    type Value = Shared<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a shared value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut halves: A) -> Result<Shared<T>, A::Error> {
        let half = || A::Error::custom("half of a shared value");
        match halves.next_element::<Found>()?.ok_or_else(half)? {
            Found::Copied(_) => Ok(Shared::new(halves.next_element()?.ok_or_else(half)?)),
            Found::Beside(number, part) => {
                halves.next_element::<IgnoredAny>()?.ok_or_else(half)?;
                found(number, part).map_err(A::Error::custom)
            }
        }
    }
}

/// The value behind the mark: the same, if it was handed over, and of the same type; else decoded.
fn found<T>(number: u32, part: Part) -> Result<Shared<T>, String>
where
    T: DeserializeOwned + Serialize + Send + Sync + 'static,
{
    if let Part::Value(value) = &part {
        let any: Arc<dyn Any + Send + Sync> = value.clone();
        if let Ok(held) = any.downcast::<Held<T>>() {
            return Ok(Shared(held));
        }
    }
    if !blob::may_be_decoded(number) {
        return Err("one part is wanted as too many types".to_owned());
    }
    // In there nothing lies beside: it was encoded for itself.
    let encoded = match part {
        Part::Value(value) => value.encode()?,
        Part::Bytes(bytes) => bytes,
        Part::File(sealed) => sealed.bytes,
        Part::Lost { why, .. } => return Err(why.to_string()),
    };
    let decoded = blob::beside(&[], || value::from_bytes(&encoded));
    let shared = Shared::new(decoded.map_err(|error| error.to_string())?);
    blob::decoded(number, Part::Value(shared.0.clone()));
    Ok(shared)
}
