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
}

/// Puts bytes of `from` and more into a file that can be passed on. This copies them; where there is
/// no file to be had, they go through the socket.
pub(crate) fn filed(part: Part, from: usize) -> Part {
    let Part::Bytes(bytes) = part else { return part };
    if bytes.len() < from {
        return Part::Bytes(bytes);
    }
    match sealed_copy(&bytes) {
        Ok(file) => Part::File(Sealed { bytes, file: Arc::new(file) }),
        Err(error) => {
            tracing::debug!(%error, "a blob goes through its socket, for it can't be a file");
            Part::Bytes(bytes)
        }
    }
}

/// The file of a part that is in one.
pub(crate) fn passable(sealed: &Sealed) -> Option<Arc<OwnedFd>> {
    sealed.file.clone().downcast().ok()
}

/// What came as a file. A large one keeps that, so that it can be passed on; of the others there may
/// be more than a process can have open.
///
/// # Errors
/// The file is none that may come: not sealed, over `limit` bytes, or less than is worth a file.
pub(crate) fn arrived(file: OwnedFd, limit: usize) -> io::Result<Part> {
    match map_sealed(&file, WORTH_A_FILE..=limit) {
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
    // Its message says how long it is.
    Part::Lost { why: why.into(), length: 0 }
}

/// Less is copied with its message.
const WORTH_A_FILE: usize = 16 * 1024;
/// At 1,024 fds that is 16 GiB: who has that much has a higher limit.
const PASSED_ON: usize = 16 << 20;
