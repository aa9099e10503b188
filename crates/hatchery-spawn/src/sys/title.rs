//! What `ps` shows as a process's arguments: the memory of `argv`, overwritten.

use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Remembers where the first argument lies. Called once, before `main`.
pub(crate) fn remember(first: *const c_char) {
    // SAFETY: the caller got it from libc as argv[0], a C string that lives for ever.
    let length = unsafe { CStr::from_ptr(first) }.count_bytes();
    LENGTH.store(length, Ordering::Relaxed);
    FIRST.store(first.cast_mut(), Ordering::Relaxed);
}

/// Shows `title`, as much of it as fits.
pub(crate) fn set(title: &str) {
    let (first, length) = (FIRST.load(Ordering::Relaxed), LENGTH.load(Ordering::Relaxed));
    if first.is_null() {
        return;
    }
    let shown = &title.as_bytes()[..title.len().min(length)];
    for at in 0..length {
        let byte = shown.get(at).copied().unwrap_or(0);
        // SAFETY: `at` is inside the string that libc gave us.
        let place = unsafe { first.add(at) };
        // SAFETY: it is writable memory of this process, and only single-threaded processes of
        // ours call this.
        unsafe { place.cast::<u8>().write(byte) };
    }
}

static FIRST: AtomicPtr<c_char> = AtomicPtr::new(std::ptr::null_mut());
static LENGTH: AtomicUsize = AtomicUsize::new(0);
