//! Whose this memory is: the process's that uses hatchery, or a copy's that a fork has made of it.
//! See madvise(2) on `MADV_WIPEONFORK`, fork(2).
//!
//! The kernel wipes one page in every process that a fork makes, whoever forks and by which call, so
//! that to ask is to read a word. Where it can't do that, the number of the process is compared, which
//! is a system call each time. What shares its parent's memory until it execs (vfork, `posix_spawn`) is
//! no copy, and runs none of our code.

use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use nix::libc;

/// Nobody's until the first [`claim`].
struct Owner {
    /// In a page that the kernel wipes: 1 for the owner, 0 for a copy. Never unmapped.
    word: AtomicPtr<AtomicU32>,
    /// The owner's number, where there is no such page.
    pid: AtomicU32,
}

static OWNER: Owner = Owner::new();

/// Makes this process the owner, unless a process was that before; says whether it is this one.
///
/// For everything that makes what only its owner may use. A process that has not used hatchery when it
/// forks has made no copy: both may.
#[must_use]
pub fn claim() -> bool {
    OWNER.claim(wiped_page)
}

/// Makes this process the owner, whosever copy it is: for one that the forkserver has forked.
pub(crate) fn adopt() {
    OWNER.adopt();
}

/// Whether this process is a copy, made by a fork, of the one that uses hatchery.
///
/// The copy has all the memory of the other, and shares its sockets and its epolls with it; but not its
/// threads, so that locks may be held by nobody. So it must touch nothing of all that: whatever it does
/// with hatchery is a typed error, or nothing. A program that it executes is no copy any more.
///
/// Costs a nanosecond; async-signal-safe; takes no lock.
#[must_use]
#[inline]
pub fn is_copy() -> bool {
    OWNER.is_copy()
}

impl Owner {
    const fn new() -> Self {
        let (word, pid) = (AtomicPtr::new(std::ptr::null_mut()), AtomicU32::new(0));
        Self { word, pid }
    }

    /// What the page says, if there is one.
    #[inline]
    fn word(&self) -> Option<&AtomicU32> {
        let word = self.word.load(Ordering::Acquire);
        // SAFETY: it is null, or leads to a mapping that is never unmapped, is aligned to a page, and
        // holds an atomic whatever its bytes are.
        unsafe { word.as_ref() }
    }

    #[inline]
    fn is_copy(&self) -> bool {
        match self.word() {
            Some(word) => word.load(Ordering::Relaxed) == 0,
            None => self.is_copy_by_number(),
        }
    }

    fn is_copy_by_number(&self) -> bool {
        let owner = self.pid.load(Ordering::Relaxed);
        owner != 0 && owner != std::process::id()
    }

    /// Waits for nobody: who comes second finds what the first has made.
    fn claim(&self, page: impl FnOnce() -> Option<*mut AtomicU32>) -> bool {
        if self.word().is_none() && self.pid.load(Ordering::Relaxed) == 0 {
            match page() {
                Some(page) => {
                    // SAFETY: it was mapped a moment ago, and nobody else knows it.
                    unsafe { &*page }.store(1, Ordering::Relaxed);
                    let none = std::ptr::null_mut();
                    let (set, failed) = (Ordering::Release, Ordering::Relaxed);
                    if self.word.compare_exchange(none, page, set, failed).is_err() {
                        // SAFETY: as above, and it is not used again.
                        unsafe { libc::munmap(page.cast(), PAGE) };
                    }
                }
                None => {
                    let own = std::process::id();
                    let order = Ordering::Relaxed;
                    // Somebody else's claim is as good.
                    let _taken = self.pid.compare_exchange(0, own, order, order);
                }
            }
        }
        !self.is_copy()
    }

    fn adopt(&self) {
        match self.word() {
            Some(word) => word.store(1, Ordering::Relaxed),
            None if self.pid.load(Ordering::Relaxed) != 0 => {
                self.pid.store(std::process::id(), Ordering::Relaxed);
            }
            None => {}
        }
    }
}

/// A page that is empty in every copy of this process; `None` if the kernel has no such.
fn wiped_page() -> Option<*mut AtomicU32> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice; no memory of ours is hidden.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the page is our own, and nothing is in it.
    if unsafe { libc::madvise(page, PAGE, libc::MADV_WIPEONFORK) } != 0 {
        // SAFETY: as above; it is not used again.
        unsafe { libc::munmap(page, PAGE) };
        return None;
    }
    Some(page.cast())
}

/// Rounded up by the kernel where pages are larger.
const PAGE: usize = 4096;

#[cfg(test)]
mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;

    use super::*;
    use crate::sys::process::fork_copy;

    /// C19: a copy knows that it is one, however the fork came about, until it is made an owner; one of
    /// a process that has not claimed anything is none.
    #[test]
    fn a_copy_knows_that_it_is_one_with_and_without_the_kernels_help() {
        for page in [wiped_page, || None] {
            let owner = Owner::new();
            assert!(!owner.is_copy(), "nobody has claimed it");
            assert_eq!(in_a_copy(|| owner.is_copy()), 0);
            assert!(owner.claim(page) && owner.claim(page) && !owner.is_copy());
            assert_eq!(in_a_copy(|| owner.is_copy() && !owner.claim(page)), 1);
            let adopted = in_a_copy(|| {
                owner.adopt();
                !owner.is_copy() && owner.claim(page)
            });
            assert_eq!(adopted, 1);
            assert!(!owner.is_copy());
        }
    }

    /// What a copy answers, as its status.
    fn in_a_copy(ask: impl FnOnce() -> bool) -> i32 {
        match fork_copy().unwrap() {
            None => crate::sys::exit::exit_now(i32::from(ask())),
            Some(pid) => {
                let ended = waitpid(Pid::from_raw(pid.cast_signed()), None).unwrap();
                let WaitStatus::Exited(_, status) = ended else { panic!("{ended:?}") };
                status
            }
        }
    }
}
