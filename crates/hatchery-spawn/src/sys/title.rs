//! What `ps` shows as a process's arguments: the memory of `argv`, overwritten. And what `argv` is for
//! everybody inside: the root's own, copied elsewhere before that.

use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Remembers where the arguments are. Called once, before `main`.
pub(crate) fn remember(count: usize, arguments: *mut *const c_char) {
    COUNT.store(count, Ordering::Relaxed);
    ARGUMENTS.store(arguments, Ordering::Relaxed);
}

/// The last argument of an image of ours that shows a title: room for it, which nobody inside sees.
pub(crate) const ROOM: &CStr = c"                                                                                                ";

/// Makes the memory of the arguments free for titles. Whoever asks for the arguments, std and libc too,
/// finds what they were, without [`ROOM`]. Only in the constructor of an image that we have executed.
pub(crate) fn claim() {
    let (count, arguments) = (COUNT.swap(0, Ordering::Relaxed), ARGUMENTS.load(Ordering::Relaxed));
    if arguments.is_null() {
        return;
    }
    let mut area: Option<(*const c_char, usize)> = None;
    for at in 0..count {
        // SAFETY: `at` is below the count that libc gave us with the array.
        let place = unsafe { arguments.add(at) };
        // SAFETY: as above.
        let argument = unsafe { *place };
        let follows = area.is_none_or(|(first, length)| argument.addr() == first.addr() + length);
        if argument.is_null() || !follows {
            // Not one behind the other, as the kernel lays them.
            break;
        }
        // SAFETY: arguments are C strings that live for ever.
        let text = unsafe { CStr::from_ptr(argument) };
        let (first, length) = area.unwrap_or((argument, 0));
        area = Some((first, length + text.to_bytes_with_nul().len()));
        let shown = if at + 1 == count && text == ROOM {
            // Who reads them stops there.
            std::ptr::null()
        } else {
            Box::leak(text.to_owned().into_boxed_c_str()).as_ptr()
        };
        // SAFETY: the array is this process's own memory and writable, and this is its only thread.
        unsafe { place.write(shown) };
    }
    if let Some((first, length)) = area {
        FIRST.store(first.cast_mut(), Ordering::Relaxed);
        // The last null stays.
        LENGTH.store(length - 1, Ordering::Relaxed);
    }
}

/// Shows `title`, as much of it as fits. Where nothing was claimed it does nothing.
pub(crate) fn set(title: &str) {
    let (first, length) = (FIRST.load(Ordering::Relaxed), LENGTH.load(Ordering::Relaxed));
    if first.is_null() {
        return;
    }
    let shown = &title.as_bytes()[..title.len().min(length)];
    for at in 0..length {
        let byte = shown.get(at).copied().unwrap_or(0);
        // SAFETY: `at` is inside the strings that libc gave us, which lie one behind the other.
        let place = unsafe { first.add(at) };
        // SAFETY: it is writable memory of this process that nobody reads any more, and only
        // single-threaded processes of ours call this.
        unsafe { place.cast::<u8>().write(byte) };
    }
}

static COUNT: AtomicUsize = AtomicUsize::new(0);
static ARGUMENTS: AtomicPtr<*const c_char> = AtomicPtr::new(std::ptr::null_mut());
static FIRST: AtomicPtr<c_char> = AtomicPtr::new(std::ptr::null_mut());
static LENGTH: AtomicUsize = AtomicUsize::new(0);
