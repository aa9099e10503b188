//! A message that is encoded, with all that goes with it, and is not in the queue yet.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use hatchery_proto::{Part, Sealed};
use hatchery_spawn::{map_sealed, sealed_copy};

/// One frame, in pieces, and what is handed over beside it.
#[derive(Debug, Clone)]
pub(crate) struct Framed {
    /// How many bytes the value of a stream's message has.
    pub(crate) length: usize,
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) beside: Vec<Part>,
}

impl Framed {
    /// One that is never sent: its connection is closed.
    pub(crate) fn nothing() -> Self {
        Self { length: 0, pieces: Vec::new(), beside: Vec::new() }
    }

    /// How many bytes go through the socket.
    pub(crate) fn total(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// Whether there are bytes that are to go as a file, and are in none.
    pub(crate) fn wants_files(&self) -> bool {
        self.beside.iter().any(|part| matches!(part, Part::Bytes(_)))
    }

    /// The same with those in files. This copies them.
    pub(crate) fn with_files(mut self) -> io::Result<Self> {
        for part in &mut self.beside {
            if let Part::Bytes(bytes) = part {
                let file = sealed_copy(bytes)?;
                *part = Part::File(Sealed { bytes: bytes.clone(), file: Arc::new(file) });
            }
        }
        Ok(self)
    }
}

/// The file of a part that is in one.
pub(crate) fn file(part: Part) -> Option<Arc<OwnedFd>> {
    match part {
        Part::File(sealed) => sealed.file.downcast().ok(),
        Part::Bytes(_) | Part::Value(_) | Part::Lost(_) => None,
    }
}

/// What came as a file. A large one keeps that, so that it can be passed on; of the others there may
/// be more than a process can have open.
///
/// # Errors
/// The file is none that may come: not sealed, or over `limit` bytes.
pub(crate) fn arrived(file: OwnedFd, limit: usize) -> io::Result<Part> {
    match map_sealed(&file) {
        Ok(bytes) if bytes.len() > limit => {
            let what = format!("a file of {} bytes, over the limit of {limit}", bytes.len());
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
        Ok(bytes) if bytes.len() >= PASSED_ON => {
            Ok(Part::File(Sealed { bytes, file: Arc::new(file) }))
        }
        Ok(bytes) => Ok(Part::Bytes(bytes)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(error),
        Err(error) => Ok(lost(&format!("a blob came as a file, which can't be mapped: {error}"))),
    }
}

/// What came and is gone, for there was no fd for it.
pub(crate) fn no_fd() -> Part {
    lost("a blob came as a file, and this process has no fd left for it: see RLIMIT_NOFILE")
}

fn lost(why: &str) -> Part {
    Part::Lost(why.into())
}

/// At 1,024 fds that is 16 GiB: who has that much has a higher limit.
const PASSED_ON: usize = 16 << 20;
