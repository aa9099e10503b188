//! The constructor that runs before `main`, so that the program's image can be a forkserver or an
//! exec'd actor without a call in the user's `main`.

use std::ffi::{CStr, c_char, c_int};

use crate::forkserver::environment;
use crate::image;
use crate::sys::{environ, title};

#[used]
// SAFETY: the section holds pointers to functions of exactly this type, which glibc calls once,
// on the only thread there is, with the arguments of `main`.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = before_main;

extern "C" fn before_main(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    if argc > 0 && !argv.is_null() {
        title::remember(argc.unsigned_abs() as usize, argv.cast_mut());
    }
    if !envp.is_null() {
        environ::remember(envp.cast_mut());
    }
    environment::remember_odd(entries(envp).map(CStr::to_bytes));
    image::before_main();
}

/// The variables that libc was given, one after the other.
fn entries(mut at: *const *const c_char) -> impl Iterator<Item = &'static CStr> {
    std::iter::from_fn(move || {
        // SAFETY: it is null, or leads into an array that ends with null, which is not passed.
        let entry = unsafe { at.as_ref() }.filter(|entry| !entry.is_null())?;
        // SAFETY: as above.
        at = unsafe { at.add(1) };
        // SAFETY: it is a C string that lives for ever.
        Some(unsafe { CStr::from_ptr(*entry) })
    })
}
