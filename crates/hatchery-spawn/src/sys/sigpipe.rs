//! Writing to a pipe whose reader may be gone, in a process that dies of that. See signal(7),
//! sigtimedwait(2).
//!
//! What a write brings about goes to the thread that wrote: it stays pending there for as long as it
//! is blocked, and disturbs nobody else.

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};

/// Blocks SIGPIPE on the calling thread, for the rest of its life.
pub(crate) fn block() {
    // No thread is refused a known signal; without it only a program that dies of one would.
    let _refused = only().thread_block();
}

/// Does `write` without a SIGPIPE for it: one that it brings about is swallowed, one that was pending
/// before stays.
pub(crate) fn without<T>(write: impl FnOnce() -> T) -> T {
    let was_pending = is_pending();
    let before = only().thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let written = write();
    if !was_pending && is_pending() {
        take();
    }
    if let Ok(before) = before {
        let _refused = before.thread_set_mask();
    }
    written
}

fn only() -> SigSet {
    SigSet::from(Signal::SIGPIPE)
}

fn is_pending() -> bool {
    // SAFETY: a sigset_t is plain data, for which all-zero is a value.
    let mut pending: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours to be written to.
    let asked = unsafe { libc::sigpending(&raw mut pending) };
    // SAFETY: it is a set, and only read.
    asked == 0 && unsafe { libc::sigismember(&raw const pending, libc::SIGPIPE) } == 1
}

/// Takes a pending SIGPIPE without waiting for one.
fn take() {
    let (set, now) = (only(), libc::timespec { tv_sec: 0, tv_nsec: 0 });
    let set: &libc::sigset_t = set.as_ref();
    // SAFETY: both are borrowed for the call and only read; who took it is of no interest.
    unsafe { libc::sigtimedwait(set, std::ptr::null_mut(), &raw const now) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a write brought about is gone, and the mask is as it was.
    #[test]
    fn a_write_to_nobody_leaves_nothing_pending() {
        let before = SigSet::thread_get_mask().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let written = without(|| nix::unistd::write(&writer, b"x"));
        assert_eq!(written, Err(nix::errno::Errno::EPIPE));
        assert!(!is_pending());
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }

    /// What somebody else has sent before is his.
    #[test]
    fn what_was_pending_before_stays() {
        block();
        nix::sys::signal::raise(Signal::SIGPIPE).unwrap();
        without(|| ());
        assert!(is_pending());
        take();
        assert!(!is_pending());
    }
}
