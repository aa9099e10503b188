//! The stack-overflow message of a Rust program, for an actor whose `main` is never reached.
//!
//! std installs its handler on the way to `main`; an actor runs before that. This one says the
//! same and aborts likewise. See sigaltstack(2). A handler can't run on the stack that has
//! overflowed, so each thread needs one of its own: see [`guard_stack`].

use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::libc;

/// Installs the handler for the calling thread, which is the only one.
pub(crate) fn install() -> Result<(), Errno> {
    // Leaked: the main thread has it to its end.
    let _leaked = std::mem::ManuallyDrop::new(Alternate::install()?);
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: all-zero is a valid sigaction: no flags, empty mask, default handler.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        action.sa_sigaction = handler as *const () as usize;
        // SAFETY: `handler` has the type that SA_SIGINFO asks for and only makes safe calls.
        Errno::result(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) })?;
    }
    let marker = 0_u8;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is ours.
    Errno::result(unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit) })?;
    let size = usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX).min(1 << 30);
    // Where it has to stop growing is known to a MiB: arguments and environment lie above.
    END.set(((&raw const marker as usize).saturating_sub(size), 1 << 20));
    IS_MAIN.set(true);
    INSTALLED.store(true, Ordering::Relaxed);
    Ok(())
}

/// Has an overflow of the calling thread's stack told by a message and SIGABRT, as in any Rust
/// program, and not by a bare SIGSEGV.
///
/// For a thread that an actor with a process of its own has started by `std::thread`: std arms its
/// threads only where `main` was reached. In any other process, and the second time, it does
/// nothing; where there is no memory for it, neither.
pub fn guard_stack() {
    if !INSTALLED.load(Ordering::Relaxed) || END.get() != (0, 0) {
        return;
    }
    let Some(end) = end_of_stack() else { return };
    if let Ok(alternate) = Alternate::install() {
        ALTERNATE.with(|slot| slot.replace(Some(alternate)));
        END.set(end);
    }
}

/// The lowest address of the calling thread's stack, and how far around it a fault means that it
/// was too small.
fn end_of_stack() -> Option<(usize, usize)> {
    // SAFETY: all-zero is what an attribute object may be before it is filled.
    let mut attributes: libc::pthread_attr_t = unsafe { std::mem::zeroed() };
    // SAFETY: it has no conditions.
    let this = unsafe { libc::pthread_self() };
    // SAFETY: the calling thread lives, and the object is ours.
    if unsafe { libc::pthread_getattr_np(this, &raw mut attributes) } != 0 {
        return None;
    }
    let (mut lowest, mut size, mut guard) = (std::ptr::null_mut(), 0, 0);
    let filled = &raw const attributes;
    // SAFETY: the object was filled by the call above; the rest is ours.
    let stack = unsafe { libc::pthread_attr_getstack(filled, &raw mut lowest, &raw mut size) };
    // SAFETY: as above.
    let border = unsafe { libc::pthread_attr_getguardsize(filled, &raw mut guard) };
    // SAFETY: it was filled, and is not used again.
    unsafe { libc::pthread_attr_destroy(&raw mut attributes) };
    // Some libcs count the guard to the stack, others don't: a fault on either side of the border.
    (stack == 0 && border == 0).then_some((lowest as usize, guard.max(PAGE)))
}

/// An alternate stack of the thread that made it.
struct Alternate {
    /// Never read; the kernel has the address.
    _memory: Vec<u8>,
}

impl Alternate {
    fn install() -> Result<Self, Errno> {
        // Not zeroed: sixteen page faults for a stack that is never used.
        let mut memory = Vec::<u8>::with_capacity(SIZE);
        let stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: SIZE };
        // SAFETY: the memory lives until `drop` has taken it back; nobody else writes to it.
        Errno::result(unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) })?;
        Ok(Self { _memory: memory })
    }
}

impl Drop for Alternate {
    fn drop(&mut self) {
        END.set((0, 0));
        let none =
            libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: the thread's own, at its end; no handler runs on it now, as this does.
        let taken = unsafe { libc::sigaltstack(&raw const none, std::ptr::null_mut()) };
        debug_assert_eq!(taken, 0);
    }
}

thread_local! {
    /// Around which address, and how far around, a fault means an overflow. Without a destructor,
    /// so that the handler may look at it.
    static END: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    static IS_MAIN: Cell<bool> = const { Cell::new(false) };
    /// Dropped with the thread.
    static ALTERNATE: RefCell<Option<Alternate>> = const { RefCell::new(None) };
}

static INSTALLED: AtomicBool = AtomicBool::new(false);

extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo.
    let info = unsafe { &*info };
    // SAFETY: for these two signals it has a fault address.
    let address = unsafe { info.si_addr() } as usize;
    let (end, around) = END.get();
    let is_fault = info.si_code > 0;
    if is_fault && around != 0 && address.abs_diff(end) < around {
        say_overflow();
    }
    // Not ours: take the default and let the same instruction fault again. What somebody sent would
    // not come again by itself.
    // SAFETY: async-signal-safe.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    if !is_fault {
        // SAFETY: async-signal-safe; it comes when this returns.
        unsafe { libc::raise(signal) };
    }
}

/// Says what std would say, and aborts. Async-signal-safe.
fn say_overflow() -> ! {
    let mut name = [0_u8; 16];
    if IS_MAIN.get() {
        name[..4].copy_from_slice(b"main");
    } else {
        // SAFETY: a bare system call that writes sixteen bytes, with a NUL among them.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    }
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    for text in [&b"\nthread '"[..], name, AFTER] {
        // SAFETY: async-signal-safe; the text is on this stack or static.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    }
    // SAFETY: async-signal-safe; ends the process.
    unsafe { libc::abort() }
}

const AFTER: &[u8] = b"' has overflowed its stack\nfatal runtime error: stack overflow, aborting\n";
/// Of an alternate stack: the handler needs a few hundred bytes, the kernel up to 11 KiB for
/// registers.
const SIZE: usize = 64 * 1024;
const PAGE: usize = 4096;
