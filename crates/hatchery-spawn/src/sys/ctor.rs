//! The constructor that runs before `main`, so that the program's image can be a forkserver or an
//! exec'd actor without a call in the user's `main`.

use std::ffi::{c_char, c_int};

use crate::image;
use crate::sys::title;

#[used]
// SAFETY: the section holds pointers to functions of exactly this type, which glibc calls once,
// on the only thread there is, with the arguments of `main`.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = before_main;

extern "C" fn before_main(argc: c_int, argv: *const *const c_char, _: *const *const c_char) {
    if argc > 0 && !argv.is_null() {
        // SAFETY: argc is positive, so argv[0] exists and is a C string.
        let first = unsafe { *argv };
        title::remember(first);
    }
    image::before_main();
}
