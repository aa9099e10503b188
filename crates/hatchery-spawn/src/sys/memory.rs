//! Memory that other processes of the same user can read where `/proc/PID/fd` shows it. See
//! memfd_create(2), mmap(2).

use std::cell::RefCell;
use std::ffi::CStr;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use nix::sys::resource::{Resource, getrlimit};

/// Words of shared memory, all zero at first. Pages that nobody has written to cost nothing.
#[derive(Debug)]
pub struct SharedWords {
    first: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: it owns its mapping, and what it leads to are atomics.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Makes `count` words, and the fd by which others find them. Who opens that can only read.
    ///
    /// # Errors
    /// What memfd_create, ftruncate or mmap say; `EFBIG` if this process may not write files of
    /// that size, as the kernel would end it by SIGXFSZ.
    pub fn new(name: &CStr, count: NonZeroUsize) -> io::Result<(Self, OwnedFd)> {
        let bytes = count.checked_mul(WORD).ok_or(nix::errno::Errno::EOVERFLOW)?;
        let length = bytes.get() as u64;
        if getrlimit(Resource::RLIMIT_FSIZE)?.0 < length {
            return Err(nix::errno::Errno::EFBIG.into());
        }
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&fd, length.cast_signed())?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; no memory of ours is hidden.
        let first = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, &fd, 0) }?;
        let words = Self { first: first.cast(), count: count.get() };
        // A file that somebody cuts would end us by SIGBUS. Older kernels don't know the second.
        let size = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        let all = size | SealFlag::from_bits_retain(libc::F_SEAL_FUTURE_WRITE);
        fcntl(&fd, FcntlArg::F_ADD_SEALS(all))
            .or_else(|_| fcntl(&fd, FcntlArg::F_ADD_SEALS(size)))?;
        Ok((words, fd))
    }
}

/// Words that a process of one thread shares with those that it forks, until they let go of them, and
/// with nobody else. All zero at first.
#[derive(Debug)]
pub(crate) struct InheritedWords(RefCell<Option<SharedWords>>);

impl InheritedWords {
    /// Makes `count` of them.
    ///
    /// # Errors
    /// What mmap says.
    pub(crate) fn new(count: NonZeroUsize) -> io::Result<Self> {
        let bytes = count.checked_mul(WORD).ok_or(nix::errno::Errno::EOVERFLOW)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; no memory of ours is hidden.
        let first = unsafe { mmap_anonymous(None, bytes, protection, MapFlags::MAP_SHARED) }?;
        let words = SharedWords { first: first.cast(), count: count.get() };
        Ok(Self(RefCell::new(Some(words))))
    }

    /// What `look` says of a word, which is there and was not let go of.
    pub(crate) fn with<T>(&self, at: usize, look: impl FnOnce(&AtomicU64) -> T) -> Option<T> {
        self.0.borrow().as_ref()?.get(at).map(look)
    }

    /// From here on this process has none of them; the others keep theirs.
    pub(crate) fn let_go(&self) {
        self.0.take();
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is that long, is aligned to a page, lives as long as `self`, can't be
        // cut, and any bytes are valid atomics, whoever else writes them.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: it is our own mapping of that length; what borrowed from it is gone.
        let _unmapped = unsafe { munmap(self.first.cast(), self.count * WORD.get()) };
    }
}

const WORD: NonZeroUsize = NonZeroUsize::new(size_of::<AtomicU64>()).expect("a word has bytes");

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsRawFd as _;
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn others_read_what_is_written_and_can_neither_write_nor_cut() {
        let (words, fd) = SharedWords::new(c"words", NonZeroUsize::new(1024).unwrap()).unwrap();
        words[1023].store(7, Ordering::Relaxed);
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let mut read = Vec::new();
        std::fs::File::open(&path).unwrap().read_to_end(&mut read).unwrap();
        assert_eq!((read.len(), &read[8184..]), (8192, &7_u64.to_ne_bytes()[..]));
        let other = std::fs::File::options().write(true).open(&path);
        let written = other.and_then(|mut other| other.set_len(0).and_then(|()| other.write(b"x")));
        assert!(written.is_err());
    }
}
