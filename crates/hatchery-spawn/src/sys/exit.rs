//! Leaving a process, and what to do when it leaves. See _exit(2), atexit(3).

use nix::libc;

/// Ends the process at once: no destructor, no exit hook, nothing flushed that could block.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: always sound; it doesn't return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Calls `hook` when the process leaves through `exit` or by returning from `main`, on the thread
/// that leaves, while the other threads still run.
pub fn at_exit(hook: fn()) {
    use std::sync::Mutex;
    static HOOKS: Mutex<Vec<fn()>> = Mutex::new(Vec::new());
    extern "C" fn run() {
        let hooks = std::mem::take(&mut *HOOKS.lock().unwrap_or_else(|error| error.into_inner()));
        for hook in hooks {
            // A panic must not unwind into libc.
            let _panicked = std::panic::catch_unwind(hook);
        }
    }
    let mut hooks = HOOKS.lock().unwrap_or_else(|error| error.into_inner());
    if hooks.is_empty() {
        // SAFETY: `run` is a plain function that lives as long as the process and doesn't unwind.
        unsafe { libc::atexit(run) };
    }
    hooks.push(hook);
}
