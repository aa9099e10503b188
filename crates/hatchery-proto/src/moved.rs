//! Values that move from thread to thread of one process as they are, as a whole.
//!
//! Where a [`Shared`](crate::Shared) value is a part of a message that its sender has chosen, this is
//! all of an argument list, a reply or a message, and nobody but its receiver has it afterwards. It is
//! counted like the encoded value: by the same code, so that both are equally long.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::{Bytes, BytesMut};
use serde::Serialize;

use crate::blob::{self, Numbering};
use crate::frame::FrameError;
use crate::part::{Handed, NUMBER, Part};
use crate::shared;
use crate::value;

/// A value on its way, and how long it would be if it was encoded.
pub(crate) struct Moved<T> {
    value: Mutex<Option<T>>,
    length: usize,
    /// For who wants another type.
    encoded: OnceLock<Bytes>,
}

/// How many there are, for who looks for what was left behind (C10).
static ON_THEIR_WAY: AtomicUsize = AtomicUsize::new(0);

/// How many values this process holds that were moved and that nobody has taken yet.
#[must_use]
pub fn on_their_way() -> usize {
    ON_THEIR_WAY.load(Ordering::Relaxed)
}

impl<T: Serialize + Send + 'static> Moved<T> {
    /// One that was measured.
    pub(crate) fn part(value: T, length: usize) -> Part {
        ON_THEIR_WAY.fetch_add(1, Ordering::Relaxed);
        let (value, encoded) = (Mutex::new(Some(value)), OnceLock::new());
        Part::Value(Arc::new(Self { value, length, encoded }))
    }
}

impl<T> Moved<T> {
    fn take(&self) -> Option<T> {
        let taken = self.value.lock().unwrap_or_else(PoisonError::into_inner).take();
        if taken.is_some() {
            ON_THEIR_WAY.fetch_sub(1, Ordering::Relaxed);
        }
        taken
    }
}

impl<T: Serialize + Send + 'static> Handed for Moved<T> {
    fn length(&self) -> Result<usize, String> {
        Ok(self.length)
    }

    fn encode(&self) -> Result<Bytes, String> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let value = value.as_ref().ok_or(TAKEN)?;
        value::to_bytes(value).map_err(|error| error.to_string())
    }

    fn encoded(&self) -> Result<&[u8], String> {
        // Encoded anew, so that what was taken is not found here.
        let encoded = self.encode()?;
        Ok(self.encoded.get_or_init(|| encoded))
    }
}

impl<T> Drop for Moved<T> {
    /// What nobody has taken is dropped by whoever lets go of it last, which may be a supervisor at
    /// work: a panic of its destructor is told by the panic hook and goes no further.
    fn drop(&mut self) {
        if let Some(value) = self.take() {
            let _told = catch_unwind(AssertUnwindSafe(|| drop(value)));
        }
    }
}

/// What has come.
pub(crate) enum Taken<'a, T> {
    /// The same value.
    Value(T),
    /// What it is for who wants another type.
    Encoded(&'a [u8]),
}

/// Takes a value that has come: the same, if it is of the type that is wanted; else to be decoded.
pub(crate) fn take<T: 'static>(value: &dyn Handed) -> Result<Taken<'_, T>, FrameError> {
    let any: &dyn Any = value;
    match any.downcast_ref::<Moved<T>>() {
        Some(moved) => {
            moved.take().map(Taken::Value).ok_or_else(|| FrameError::Decode(TAKEN.to_owned()))
        }
        None => value.encoded().map(Taken::Encoded).map_err(FrameError::Decode),
    }
}

/// What a value came to that may move.
pub(crate) enum Measured {
    /// It was written; these are its large parts.
    Written(Vec<Part>),
    /// It is so long, and nothing of it was written.
    Long(usize),
}

/// Appends a value of less than `from` bytes, its parts included, as [`blob::write`] does; a longer
/// one is only counted. Either runs its `Serialize` once.
pub(crate) fn measure(
    value: &impl Serialize,
    from: usize,
    buffer: &mut BytesMut,
) -> Result<Measured, value::Error> {
    let start = buffer.len();
    let short = Numbering::new(buffer);
    let mut writer = Measuring { short, from, length: 0, failed: None };
    let written = value::write(value, &mut writer);
    let Measuring { short, length, failed, .. } = writer;
    if let Some(why) = failed {
        return Err(value::Error(why));
    }
    written?;
    if length < from {
        return Ok(Measured::Written(short.parts));
    }
    drop(short);
    buffer.truncate(start);
    Ok(Measured::Long(length))
}

/// Writes as long as that is short, and counts on.
struct Measuring<'a> {
    short: Numbering<'a>,
    from: usize,
    length: usize,
    /// Why a part has no length.
    failed: Option<String>,
}

impl Measuring<'_> {
    fn plain(&mut self, bytes: &[u8]) {
        self.length += bytes.len();
        if self.length < self.from {
            self.short.buffer.extend_from_slice(bytes);
        }
    }

    /// A part, in whose place a number stands, or would stand.
    fn part(&mut self, part: Part, stands: &[u8]) -> io::Result<()> {
        let is_value = matches!(part, Part::Value(_));
        let length = match &part {
            // Before the mark is answered: counting writes marks as well.
            Part::Value(value) => value.length().map_err(|why| {
                self.failed = Some(why);
                io::Error::from(io::ErrorKind::InvalidData)
            })?,
            Part::Bytes(_) | Part::File(_) | Part::Lost { .. } => part.length(),
        };
        if self.length < self.from {
            if self.short.number(part, stands.len()).is_none() {
                self.plain(stands);
                return Ok(());
            }
        } else if is_value {
            shared::taken();
        }
        self.length += length + NUMBER - blob::head_of(stands.len());
        Ok(())
    }
}

impl io::Write for Measuring<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match blob::offered(bytes) {
            Some(part) => self.part(part, bytes)?,
            None => self.plain(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const TAKEN: &str = "the value has been taken already: what was moved can be had once";
