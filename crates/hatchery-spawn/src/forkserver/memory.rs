//! Requests that are too long for a message: in sealed memory, whose fd is sent in their place.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Memory that holds these bytes and can't be changed any more.
pub(crate) fn write(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"hatchery-request", flags)?);
    file.write_all(bytes)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals()))?;
    Ok(file.into())
}

/// What such memory holds. Anything else is refused unread: a file may block whoever reads it, and
/// may be another one when it is read again (C15).
pub(crate) fn read(memory: &OwnedFd, most: usize) -> io::Result<Vec<u8>> {
    let found = SealFlag::from_bits_retain(fcntl(memory, FcntlArg::F_GET_SEALS)?);
    if !found.contains(seals()) {
        return Err(Errno::EPERM.into());
    }
    let file = File::from(memory.try_clone()?);
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    if length > most {
        return Err(Errno::EMSGSIZE.into());
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_memory_is_read_and_nothing_else() {
        let bytes = vec![7; 300_000];
        let memory = write(&bytes).expect("memory");
        assert_eq!(read(&memory, 300_000).expect("readable"), bytes);
        assert!(read(&memory, 299_999).is_err(), "too long");
        assert!(File::from(memory).set_len(1).is_err(), "sealed");
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let unsealed = memfd_create(c"unsealed", flags).expect("memory");
        assert!(read(&unsealed, 10).is_err());
        let file = File::open("/proc/self/exe").expect("a file");
        assert!(read(&file.into(), usize::MAX).is_err());
        let (pipe, _writer) = io::pipe().expect("a pipe");
        assert!(read(&pipe.into(), 10).is_err());
    }
}
