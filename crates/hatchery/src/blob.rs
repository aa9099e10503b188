//! Large blobs that are written into shared memory to begin with.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use hatchery_proto::{Blob, Sealed};
use hatchery_spawn::SealableMemory;

/// Shared memory to write a large [`Blob`] into. When that is sent to an actor in another process,
/// the memory is passed on, and mapped there: no byte of it is copied, however many actors get it.
///
/// ```
/// # fn main() -> Result<(), hatchery::BlobError> {
/// let mut table = hatchery::BlobBuffer::zeroed(64 << 20)?;
/// table[..4].copy_from_slice(b"head");
/// let table: hatchery::Blob = table.seal()?;    // nobody can change it any more
/// # assert_eq!(&table[..5], b"head\0");
/// # Ok(()) }
/// ```
///
/// Worth it from about 1 MiB on, when the blob goes to several actors or isn't read as a whole: new
/// pages cost more than a socket's copies, for who writes as for who reads each of them. Counts for
/// limits and credit like any blob (`Config::max_frame_bytes` is 16 MiB unless it is raised). Holds
/// one fd, as long as the blob lives; on the receiving side only one of 16 MiB or more does, so that
/// it can be passed on as it came.
pub struct BlobBuffer(Option<SealableMemory>);

/// There is no shared memory to be had.
#[derive(Debug, thiserror::Error)]
#[error("{what} shared memory for a blob of {length} bytes: {source}")]
pub struct BlobError {
    what: &'static str,
    length: usize,
    source: io::Error,
}

impl BlobBuffer {
    /// So many zeros. All of it is there when this returns, so writing can't fail.
    ///
    /// # Errors
    /// No memory, no fd, or not allowed to this process (`RLIMIT_FSIZE`).
    pub fn zeroed(length: usize) -> Result<Self, BlobError> {
        let memory = NonZeroUsize::new(length).map(SealableMemory::zeroed).transpose();
        memory.map(Self).map_err(|source| BlobError { what: "making", length, source })
    }

    /// Ends the writing: from now on nobody can change it, in no process.
    ///
    /// # Errors
    /// The kernel itself is still at it, say for a read of a file right into the buffer.
    pub fn seal(self) -> Result<Blob, BlobError> {
        let length = self.len();
        let sealed = self.0.map(SealableMemory::seal).transpose();
        let sealed = sealed.map_err(|source| BlobError { what: "sealing", length, source })?;
        Ok(sealed.map_or_else(Blob::default, |(bytes, file)| {
            Sealed { bytes, file: Arc::new(file) }.into()
        }))
    }
}

impl fmt::Debug for BlobBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobBuffer({} bytes)", self.len())
    }
}

impl Deref for BlobBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl DerefMut for BlobBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}
