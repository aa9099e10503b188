//! Signal dispositions. See sigaction(2), signal-safety(7).

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use nix::errno::Errno;
use nix::libc;

use crate::sys::owner::is_copy;

/// Whether `signal` is ignored at present.
pub(crate) fn is_ignored(signal: i32) -> bool {
    // SAFETY: all-zero is a valid sigaction.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is set, and `now` is ours to be written to.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut now) };
    asked == 0 && now.sa_sigaction == libc::SIG_IGN
}

/// From now on SIGTERM shuts down the reading side of `socket`, so that its reader wakes up.
pub(crate) fn shutdown_on_terminate(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    CHANNEL.store(socket.as_raw_fd(), Ordering::SeqCst);
    set(libc::SIGTERM, terminating as *const () as usize, libc::SA_RESTART)
}

/// Whether SIGTERM has come.
pub(crate) fn terminated() -> bool {
    TERMINATED.load(Ordering::SeqCst)
}

/// Every signal gets its default, whatever was inherited; SIGPIPE is ignored if `own`, as in any
/// Rust program.
pub(crate) fn reset_all() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is always a valid handler; numbers that can't be set give EINVAL.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// A signal gets its default if it is ignored.
pub(crate) fn unignore(signal: i32) {
    if is_ignored(signal) {
        // SAFETY: SIG_DFL is always a valid handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Ignores a signal.
pub(crate) fn ignore(signal: i32) {
    // SAFETY: SIG_IGN is always a valid handler.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Ignores SIGPIPE, as std does on the way to `main`.
pub(crate) fn ignore_sigpipe() {
    ignore(libc::SIGPIPE);
}

fn set(signal: i32, handler: usize, flags: c_int) -> Result<(), Errno> {
    // SAFETY: all-zero is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_flags = flags;
    action.sa_sigaction = handler;
    // SAFETY: the handler below takes one int and makes async-signal-safe calls only.
    let result = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    Errno::result(result).map(drop)
}

extern "C" fn terminating(signal: c_int) {
    // The channel is the other's too: to shut it would end that one.
    if is_copy() {
        return by_default(signal);
    }
    TERMINATED.store(true, Ordering::SeqCst);
    let errno = Errno::last_raw();
    // SAFETY: async-signal-safe; a closed number gives an error that nobody needs.
    unsafe { libc::shutdown(CHANNEL.load(Ordering::SeqCst), libc::SHUT_RD) };
    Errno::set_raw(errno);
}

/// A signal for a copy of this process, where nobody looks at what is counted: it does what it does by
/// default, when the handler has returned. Async-signal-safe.
fn by_default(signal: c_int) {
    let errno = Errno::last_raw();
    // SAFETY: async-signal-safe; SIG_DFL is always a valid handler.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: async-signal-safe; it is blocked until the handler has returned.
    unsafe { libc::raise(signal) };
    Errno::set_raw(errno);
}

static CHANNEL: AtomicI32 = AtomicI32::new(-1);
static TERMINATED: AtomicBool = AtomicBool::new(false);
