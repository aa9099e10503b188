//! Files of memory that are written once, sealed, and mapped by whoever they are passed to. See
//! memfd_create(2), fcntl(2) on seals, mmap(2).

use std::io::{self, Write as _};
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut, RangeInclusive};
use std::os::fd::{AsFd as _, OwnedFd};
use std::ptr::NonNull;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::libc::c_void;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::fstat;

/// Memory that can be written until it is sealed. Private to this process until then.
#[derive(Debug)]
pub struct SealableMemory {
    mapping: Mapping,
    file: OwnedFd,
}

impl SealableMemory {
    /// So many zeros. All of it is there: writing to it can't fail any more.
    ///
    /// # Errors
    /// What memfd_create, fallocate or mmap say; `EFBIG` if this process may not write files of that
    /// size; `ENOMEM` if the machine has not as much to give.
    pub fn zeroed(length: NonZeroUsize) -> io::Result<Self> {
        let file = new_file(length)?;
        allocate(&file, length.get())?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let mapping = Mapping::new(&file, length, protection)?;
        Ok(Self { mapping, file })
    }

    /// Makes it unchangeable for good. Gives back the bytes, and the file to pass on.
    ///
    /// # Errors
    /// What fcntl or mmap say: `EBUSY` if the kernel itself is still reading or writing it for
    /// somebody.
    pub fn seal(self) -> io::Result<(Bytes, OwnedFd)> {
        let (length, file) = (self.mapping.length, self.file);
        drop(self.mapping);
        seal(&file)?;
        let mapping = Mapping::new(&file, length, ProtFlags::PROT_READ)?;
        Ok((Bytes::from_owner(SealedMapping(mapping)), file))
    }
}

impl Deref for SealableMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.mapping.bytes()
    }
}

impl DerefMut for SealableMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        let (start, length) = (self.mapping.start.as_ptr().cast(), self.mapping.length.get());
        // SAFETY: the mapping is that long and writable, and lives as long as `self`, which is
        // borrowed mutably. Nobody else has the file: it is this process's own and close-on-exec,
        // and its number is not given out before it is sealed.
        unsafe { std::slice::from_raw_parts_mut(start, length) }
    }
}

/// A sealed file with a copy of these bytes.
///
/// # Errors
/// What memfd_create, write or fcntl say; `EFBIG` as above.
pub fn sealed_copy(bytes: &[u8]) -> io::Result<OwnedFd> {
    let length = NonZeroUsize::new(bytes.len()).ok_or(Errno::EINVAL)?;
    let mut file = std::fs::File::from(new_file(length)?);
    file.write_all(bytes)?;
    seal(file.as_fd())?;
    Ok(file.into())
}

/// Maps a file that came from somebody else, if nobody can change it any more.
///
/// # Errors
/// `InvalidData`: it is no memory file, is not sealed, has holes, or is not as long as it may be;
/// nobody should have sent it. Or what mmap says: there is no room for it here.
pub fn map_sealed(file: &OwnedFd, lengths: RangeInclusive<usize>) -> io::Result<Bytes> {
    let refused = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).map_err(|_| refused("no memory file"))?;
    if !SealFlag::from_bits_retain(seals).contains(all_seals()) {
        return Err(refused("a memory file that can still be changed"));
    }
    let status = fstat(file)?;
    let length = usize::try_from(status.st_size).ok().filter(|length| lengths.contains(length));
    let length = length.and_then(NonZeroUsize::new);
    let length = length.ok_or_else(|| refused("a memory file of a length that none may have"))?;
    // What is read first in a hole is allocated then; where there is nothing left that is SIGBUS.
    if status.st_blocks.saturating_mul(512) < status.st_size {
        return Err(refused("a memory file with holes"));
    }
    let mapping = Mapping::new(file, length, ProtFlags::PROT_READ)?;
    Ok(Bytes::from_owner(SealedMapping(mapping)))
}

/// An empty file that may grow to `length`.
fn new_file(length: NonZeroUsize) -> io::Result<OwnedFd> {
    // The kernel would end us by SIGXFSZ.
    if getrlimit(Resource::RLIMIT_FSIZE)?.0 < length.get() as u64 {
        return Err(Errno::EFBIG.into());
    }
    // The kernel refuses none of this: it takes page after page, and then ends somebody.
    if length.get() >= LARGE && length.get() as u64 > available() {
        return Err(Errno::ENOMEM.into());
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    Ok(memfd_create(c"hatchery-blob", flags)?)
}

/// How many bytes the machine can give without taking them from anybody. See proc_meminfo(5).
fn available() -> u64 {
    // Who may not look finds out otherwise.
    let all = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = all.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.map_or(u64::MAX, |kibibytes| kibibytes.saturating_mul(1024))
}

/// In pieces, because some kernels undo all of one that a signal interrupts.
fn allocate(file: &OwnedFd, length: usize) -> Result<(), Errno> {
    for start in (0..length).step_by(LARGE) {
        let piece = signed(LARGE.min(length - start))?;
        while let Err(errno) = fallocate(file, FallocateFlags::empty(), signed(start)?, piece) {
            if errno != Errno::EINTR {
                return Err(errno);
            }
        }
    }
    Ok(())
}

fn signed(length: usize) -> Result<i64, Errno> {
    i64::try_from(length).map_err(|_| Errno::EFBIG)
}

fn seal(file: impl std::os::fd::AsFd) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_ADD_SEALS(all_seals())).map(drop)
}

fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL
}

/// From here on it is worth asking first.
const LARGE: usize = 16 << 20;

/// A whole file in memory.
#[derive(Debug)]
struct Mapping {
    start: NonNull<c_void>,
    length: NonZeroUsize,
}

// SAFETY: it owns what it leads to, which is plain bytes.
unsafe impl Send for Mapping {}
// SAFETY: as above; who writes to it has it borrowed mutably.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &OwnedFd, length: NonZeroUsize, protection: ProtFlags) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice; no memory of ours is hidden.
        let start = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self { start, length })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is that long and readable and lives as long as `self`. Its file is as
        // long and has no holes: it is this process's own, or was looked at after it was sealed
        // against being cut, so no access ends in SIGBUS. It does not change while this is borrowed: it is sealed against writes, or only
        // written through a mutable borrow.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length.get()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is our own mapping of that length; what borrowed from it is gone.
        let _unmapped = unsafe { munmap(self.start, self.length.get()) };
    }
}

/// One that can't change.
struct SealedMapping(Mapping);

impl AsRef<[u8]> for SealedMapping {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    const ANY: RangeInclusive<usize> = 0..=usize::MAX;

    fn of(length: usize) -> NonZeroUsize {
        NonZeroUsize::new(length).unwrap()
    }

    #[test]
    fn what_was_sealed_is_read_by_others_and_changed_by_nobody() {
        let mut memory = SealableMemory::zeroed(of(10_000)).unwrap();
        assert!(memory.iter().all(|byte| *byte == 0));
        memory[9_999] = 7;
        let (bytes, file) = memory.seal().unwrap();
        let there = map_sealed(&file, ANY).unwrap();
        assert_eq!((bytes.len(), bytes[9_999]), (10_000, 7));
        assert_eq!(bytes, there);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let other = std::fs::File::options().write(true).open(path).unwrap();
        assert!(other.set_len(0).is_err());
        assert!((&other).write(b"x").is_err());
        drop((file, bytes));
        assert_eq!(there[9_999], 7, "the mapping outlives the file's number");
    }

    #[test]
    fn more_than_the_machine_has_is_refused_before_a_page_of_it_is_taken() {
        for length in [usize::MAX >> 2, usize::try_from(available()).unwrap() + LARGE] {
            let refused = SealableMemory::zeroed(of(length)).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(Errno::ENOMEM as i32));
        }
    }

    #[test]
    fn a_copy_is_sealed_and_the_same() {
        let file = sealed_copy(b"some bytes").unwrap();
        assert!(map_sealed(&file, 0..=9).is_err() && map_sealed(&file, 11..=20).is_err());
        assert_eq!(&map_sealed(&file, ANY).unwrap()[..], b"some bytes");
    }

    #[test]
    fn what_is_not_sealed_is_refused() {
        let memory = SealableMemory::zeroed(of(1)).unwrap();
        let open = memory.file.try_clone().unwrap();
        let pipe = io::pipe().unwrap().0.into();
        let empty = memfd_create(c"empty", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        seal(&empty).unwrap();
        let plain: OwnedFd = std::fs::File::open("/proc/self/exe").unwrap().into();
        let holes = memfd_create(c"holes", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        nix::unistd::ftruncate(&holes, 1 << 20).unwrap();
        seal(&holes).unwrap();
        for file in [open, pipe, empty, plain, holes] {
            let refused = map_sealed(&file, ANY).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{refused}");
        }
    }
}
