//! The program's code on huge pages, so that a fork copies an entry for each 2 MiB of it, and its
//! child doesn't fault it in again by 64 KiB. See madvise(2), mremap(2), proc_pid_maps(5).

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::ptr::NonNull;

use nix::sys::mman::{
    MRemapFlags, MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, mprotect, mremap, munmap,
};

/// Moves what of this program's code fills whole huge pages onto such. The process must have one
/// thread. Where it can't be done, nothing has changed; but a kernel that has no memory left for its own
/// books in the very last step leaves a hole, and ends the process.
///
/// # Errors
/// Which step failed, and why: no whole huge page in the code, no free one, a policy against code in
/// memory that is no file's.
pub(crate) fn move_code() -> Result<(), (&'static str, io::Error)> {
    let call = |name| move |error| (name, error);
    if !cfg!(target_arch = "x86_64") {
        return Err(call("huge pages")(io::ErrorKind::Unsupported.into()));
    }
    match crate::thread_count() {
        Ok(1) => {}
        Ok(_) => return Err(call("huge pages")(io::Error::other("there are other threads"))),
        Err(error) => return Err(call("open(/proc/self/task)")(error)),
    }
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(call("open(/proc/self/maps)"))?;
    let mapping = code_in(&maps, move_code as *const () as usize)
        .ok_or_else(|| call("huge pages")(io::Error::other("the code can't be read")))?;
    let code = mapping.code.start.next_multiple_of(HUGE)..mapping.code.end / HUGE * HUGE;
    if code.is_empty() {
        return Err(call("huge pages")(io::Error::other("the code fills none")));
    }
    let place = Place::new(code.len()).map_err(call("mmap"))?;
    let before = huge_bytes().map_err(call("open(/proc/self/smaps_rollup)"))?;
    place.fill(&code).map_err(call("madvise(MADV_HUGEPAGE)"))?;
    mapping.is_of_file(&place, &code).map_err(call("read(/proc/self/exe)"))?;
    let after = huge_bytes().map_err(call("open(/proc/self/smaps_rollup)"))?;
    if after.saturating_sub(before) < code.len() {
        return Err(call("huge pages")(io::Error::other("the system gives none")));
    }
    place.take_over(&code)
}

/// Code as a file has it.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    code: Range<usize>,
    offset: usize,
}

/// The mapping that an address lies in, which can be read and run.
fn code_in(maps: &str, address: usize) -> Option<Mapping> {
    maps.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (from, to) = words.next()?.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        let code = number(from)?..number(to)?;
        let (access, offset) = (words.next()?, number(words.next()?)?);
        let is_it = code.contains(&address) && access.starts_with("r-x");
        is_it.then_some(Mapping { code, offset })
    })
}

impl Mapping {
    /// An error unless `place` holds what the program's file has there. Where a tracer has put a
    /// breakpoint the kernel knows it by its place in a file: in other memory it would end whoever
    /// comes by.
    fn is_of_file(&self, place: &Place, code: &Range<usize>) -> io::Result<()> {
        let program = File::open("/proc/self/exe")?;
        let at = (self.offset + code.start - self.code.start) as u64;
        let mut bytes = vec![0; HUGE];
        for (chunk, at) in place.filled(code.len()).chunks(HUGE).zip((at..).step_by(HUGE)) {
            let bytes = &mut bytes[..chunk.len()];
            program.read_exact_at(bytes, at)?;
            if chunk != bytes {
                let what = "the code in memory is not the file's: a probe in it, or a library?";
                return Err(io::Error::other(what));
            }
        }
        Ok(())
    }
}

/// How much of this process lies on huge pages of no file.
fn huge_bytes() -> io::Result<usize> {
    let all = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = all.lines().find_map(|line| line.strip_prefix("AnonHugePages:"));
    let kib: Option<usize> = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
    Ok(kib.unwrap_or(0) * 1024)
}

/// Memory where the code is put together before it takes its place.
struct Place {
    all: NonNull<c_void>,
    length: NonZeroUsize,
    /// Where the first huge page begins.
    first: NonNull<c_void>,
}

impl Place {
    /// Room for `length` bytes, a multiple of a huge page.
    fn new(length: usize) -> io::Result<Self> {
        let length = NonZeroUsize::new(length + HUGE).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; no memory of ours is hidden.
        let all = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }?;
        let skipped = all.as_ptr().addr().next_multiple_of(HUGE) - all.as_ptr().addr();
        // SAFETY: less than one huge page further, of at least two.
        let first = unsafe { all.byte_add(skipped) };
        Ok(Self { all, length, first })
    }

    fn fill(&self, code: &Range<usize>) -> io::Result<()> {
        // SAFETY: advice about memory that is ours, from its first huge page on as long as the code,
        // for which `new` made room.
        unsafe { madvise(self.first, code.len(), MmapAdvise::MADV_HUGEPAGE) }?;
        let code_bytes = std::ptr::with_exposed_provenance::<u8>(code.start);
        // SAFETY: the code is mapped and readable, as the kernel says, and nobody in here writes to
        // it; the other side is ours, as long, and lies elsewhere.
        unsafe {
            std::ptr::copy_nonoverlapping(code_bytes, self.first.as_ptr().cast(), code.len());
        }
        Ok(())
    }

    /// Its first `length` bytes, which [`Place::fill`] has written.
    fn filled(&self, length: usize) -> &[u8] {
        // SAFETY: our own memory, with room for a code of that length, borrowed as long as this is;
        // fresh memory is zero, so all of it is initialised.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr().cast(), length) }
    }

    /// Becomes the code.
    fn take_over(self, code: &Range<usize>) -> Result<(), (&'static str, io::Error)> {
        let run = ProtFlags::PROT_READ | ProtFlags::PROT_EXEC;
        // SAFETY: the memory is ours, and nothing is written to it any more.
        unsafe { mprotect(self.first, code.len(), run) }
            .map_err(|errno| ("mprotect(PROT_EXEC)", errno.into()))?;
        let flags = MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED;
        let there = NonNull::new(std::ptr::with_exposed_provenance_mut::<c_void>(code.start));
        // SAFETY: what lies there is replaced, within one call, by memory with the same bytes that
        // may be read and run as that could. No other thread is there to run it meanwhile, and this
        // one is in the kernel.
        unsafe { mremap(self.first, code.len(), code.len(), flags, there) }
            .map_err(|errno| ("mremap", errno.into()))?;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // SAFETY: our own mapping and nobody's borrow; where the code has left a hole nothing has been
        // mapped since, as the only thread came straight from there.
        let _unmapped = unsafe { munmap(self.all, self.length.get()) };
    }
}

/// Of x86-64, and of others with pages of 4 KiB.
const HUGE: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mapping_of_an_address_is_found() {
        let maps = "1000-3000 r--p 00000000 fe:00 1 /bin/a b\n\
                    3000-7ffe00 r-xp 00002000 fe:00 1 /bin/a b\n\
                    nonsense\n\
                    800000-900000 rw-p 00000000 00:00 0 \n";
        let found = Mapping { code: 0x3000..0x7f_fe00, offset: 0x2000 };
        assert_eq!(code_in(maps, 0x3000), Some(found));
        assert_eq!((code_in(maps, 0x2fff), code_in(maps, 0x7f_fe00)), (None, None));
        assert_eq!(code_in(&maps.replace("r-xp", "--xp"), 0x3000), None);
    }

    /// As a breakpoint changes it.
    #[test]
    fn code_that_somebody_has_changed_is_not_the_files() {
        let mapping = code_of_this().unwrap();
        let code = mapping.code.start..mapping.code.start + 64 * 1024;
        let place = Place::new(code.len()).unwrap();
        place.fill(&code).unwrap();
        mapping.is_of_file(&place, &code).unwrap();
        let byte = place.filled(code.len())[1000];
        let changed = place.first.as_ptr().cast::<u8>().wrapping_add(1000);
        // SAFETY: a byte of our own memory, which nobody borrows.
        unsafe { changed.write(!byte) };
        let error = mapping.is_of_file(&place, &code).unwrap_err();
        assert!(error.to_string().contains("not the file's"), "{error}");
    }

    /// A process with other threads, as this one, is left as it is.
    #[test]
    fn code_that_others_may_run_stays() {
        let (before, other) = (code_of_this(), std::thread::spawn(std::thread::park));
        let (step, error) = move_code().unwrap_err();
        assert_eq!((step, error.to_string().as_str()), ("huge pages", "there are other threads"));
        assert_eq!(code_of_this(), before);
        other.thread().unpark();
        other.join().unwrap();
    }

    fn code_of_this() -> Option<Mapping> {
        code_in(
            &std::fs::read_to_string("/proc/self/maps").unwrap(),
            move_code as *const () as usize,
        )
    }
}
