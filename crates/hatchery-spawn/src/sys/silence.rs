//! Blocking all signals of another thread. See sigreturn(2): a handler's return sets the mask that
//! its context holds.

use std::ffi::{c_int, c_void};

use nix::errno::Errno;
use nix::libc;

/// Asks another thread of this process to block all signals from here on. It does so when it next
/// runs; one that has blocked the signal that asks has very likely blocked all.
pub(crate) fn silence(thread: i32) -> Result<(), Errno> {
    // SAFETY: all-zero is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = block_all as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    let signal = libc::SIGRTMAX();
    // SAFETY: the action is whole, its handler does only what is safe in one.
    Errno::result(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) })?;
    let process = nix::unistd::getpid().as_raw();
    // SAFETY: only numbers are passed.
    let told = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) };
    Errno::result(told).map(drop)
}

extern "C" fn block_all(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel has put a context there, which is this handler's to change.
    let mask = unsafe { &raw mut (*context).uc_sigmask }.cast::<u64>();
    // SAFETY: as above; the kernel's own mask is 64 bits long, whatever libc's type is.
    unsafe { mask.write(u64::MAX) };
}
