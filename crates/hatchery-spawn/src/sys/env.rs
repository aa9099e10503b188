//! Changing the environment, where only one thread exists.

use std::ffi::OsStr;

/// Sets a variable. Only between fork and main, or in a constructor.
pub(crate) fn set(key: &OsStr, value: &OsStr) {
    // SAFETY: the callers run while their process has a single thread, so nobody reads meanwhile.
    unsafe { std::env::set_var(key, value) };
}

/// Removes a variable. Only between fork and main, or in a constructor.
pub(crate) fn remove(key: &OsStr) {
    // SAFETY: as in `set`.
    unsafe { std::env::remove_var(key) };
}
