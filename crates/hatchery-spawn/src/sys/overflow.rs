//! The stack-overflow message of a Rust program, for an actor whose `main` is never reached.
//!
//! std installs its handler on the way to `main`; an actor runs before that. This one says the
//! same and aborts likewise. See sigaltstack(2). Threads that the actor starts have no alternate
//! stack: they end in a bare SIGSEGV.

use std::ffi::c_int;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::libc;

/// Installs the handler for the calling thread, which is the only one.
pub(crate) fn install() -> Result<(), Errno> {
    const SIZE: usize = 64 * 1024;
    // Not zeroed: sixteen page faults for a stack that is never used.
    let memory = std::mem::ManuallyDrop::new(Vec::<u8>::with_capacity(SIZE)).as_mut_ptr();
    let stack = libc::stack_t { ss_sp: memory.cast(), ss_flags: 0, ss_size: SIZE };
    // SAFETY: the memory is leaked, so it outlives the thread; nobody else writes to it.
    Errno::result(unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) })?;
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: all-zero is a valid sigaction: no flags, empty mask, default handler.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        action.sa_sigaction = handler as *const () as usize;
        // SAFETY: `handler` has the type that SA_SIGINFO asks for and only makes safe calls.
        Errno::result(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) })?;
    }
    let marker = 0_u8;
    STACK_TOP.store(&raw const marker as usize, Ordering::Relaxed);
    Ok(())
}

static STACK_TOP: AtomicUsize = AtomicUsize::new(0);

extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo.
    let info = unsafe { &*info };
    // SAFETY: for these two signals it has a fault address.
    let address = unsafe { info.si_addr() } as usize;
    let top = STACK_TOP.load(Ordering::Relaxed);
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: async-signal-safe on Linux; the struct is ours.
    unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit) };
    let size = usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX).min(1 << 30);
    // The fault lies around the far end of the stack: within a MiB of where it had to stop growing.
    let end = top.saturating_sub(size);
    if address < top && address.abs_diff(end) < 1 << 20 {
        let text = b"\nthread 'main' has overflowed its stack\nfatal runtime error: stack overflow, aborting\n";
        // SAFETY: async-signal-safe; the text is static.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
        // SAFETY: async-signal-safe; ends the process.
        unsafe { libc::abort() }
    }
    // Not ours: take the default and let the same instruction fault again.
    // SAFETY: async-signal-safe.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}
