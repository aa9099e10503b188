//! The program's code on huge pages, so that a fork copies an entry for each 2 MiB of it, and its
//! child doesn't fault it in again by 64 KiB. See madvise(2), mremap(2), proc_pid_maps(5).

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;

use nix::sys::mman::{
    MRemapFlags, MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, mprotect, mremap, munmap,
};

/// Moves what of this program's code fills whole huge pages onto such. The process must have one
/// thread. Where it can't be done, nothing has changed.
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
    let code = code_in(&maps, move_code as *const () as usize)
        .map(|code| code.start.next_multiple_of(HUGE)..code.end / HUGE * HUGE)
        .filter(|whole| whole.start < whole.end)
        .ok_or_else(|| call("huge pages")(io::Error::other("the code fills none")))?;
    let place = Place::new(code.len()).map_err(call("mmap"))?;
    let before = huge_bytes().map_err(call("open(/proc/self/smaps_rollup)"))?;
    place.fill(&code).map_err(call("madvise(MADV_HUGEPAGE)"))?;
    let after = huge_bytes().map_err(call("open(/proc/self/smaps_rollup)"))?;
    if after.saturating_sub(before) < code.len() {
        return Err(call("huge pages")(io::Error::other("the system gives none")));
    }
    place.take_over(&code)
}

/// The mapping that an address lies in.
fn code_in(maps: &str, address: usize) -> Option<Range<usize>> {
    maps.lines().find_map(|line| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        let range = number(from)?..number(to)?;
        range.contains(&address).then_some(range)
    })
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
        // SAFETY: the code is mapped and readable, for it runs, and nobody writes to it; the other
        // side is ours, as long, and lies elsewhere.
        unsafe {
            std::ptr::copy_nonoverlapping(code_bytes, self.first.as_ptr().cast(), code.len());
        }
        Ok(())
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
        assert_eq!(code_in(maps, 0x3000), Some(0x3000..0x7f_fe00));
        assert_eq!(code_in(maps, 0x2fff), Some(0x1000..0x3000));
        assert_eq!(code_in(maps, 0x7f_fe00), None);
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

    fn code_of_this() -> Option<Range<usize>> {
        code_in(
            &std::fs::read_to_string("/proc/self/maps").unwrap(),
            move_code as *const () as usize,
        )
    }
}
