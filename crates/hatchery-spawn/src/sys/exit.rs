//! Leaving a process, and what to do when it leaves. See _exit(2), on_exit(3), atexit(3).

use std::sync::Mutex;

use nix::libc;

use crate::sys::owner::is_copy;

/// Ends the process at once: no destructor, no exit hook, nothing flushed that could block.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: always sound; it doesn't return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Calls `hook` when the process leaves through `exit` or by returning from `main`, on the thread
/// that leaves, while the other threads still run. It is told the status that the process leaves
/// with, or 1 where libc doesn't tell it.
pub fn at_exit(hook: fn(i32)) {
    let mut hooks = HOOKS.lock().unwrap_or_else(|error| error.into_inner());
    if hooks.is_empty() {
        register();
    }
    hooks.push(hook);
}

fn run(status: i32) {
    // Nothing of the tree is a copy's, and the lock may be held by a thread that it has not.
    if is_copy() {
        return;
    }
    let hooks = std::mem::take(&mut *HOOKS.lock().unwrap_or_else(|error| error.into_inner()));
    // The last one first, as libc does it.
    for hook in hooks.into_iter().rev() {
        // A panic must not unwind into libc.
        let _panicked = std::panic::catch_unwind(|| hook(status));
    }
}

#[cfg(target_env = "gnu")]
fn register() {
    use std::ffi::{c_int, c_void};
    extern "C" fn leaving(status: c_int, _: *mut c_void) {
        run(status);
    }
    type Hook = extern "C" fn(c_int, *mut c_void);
    unsafe extern "C" {
        fn on_exit(hook: Hook, argument: *mut c_void) -> c_int;
    }
    // SAFETY: `leaving` has the type that glibc documents, lives as long as the process, doesn't
    // unwind, and doesn't look at its argument.
    unsafe { on_exit(leaving, std::ptr::null_mut()) };
}

#[cfg(not(target_env = "gnu"))]
fn register() {
    extern "C" fn leaving() {
        run(1);
    }
    // SAFETY: `leaving` is a plain function that lives as long as the process and doesn't unwind.
    unsafe { libc::atexit(leaving) };
}

static HOOKS: Mutex<Vec<fn(i32)>> = Mutex::new(Vec::new());
