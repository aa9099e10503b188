//! Changing the environment, where only one thread exists.

use std::ffi::OsStr;

/// Removes a variable. Only in a constructor.
pub(crate) fn remove(key: &OsStr) {
    // SAFETY: the callers run while their process has a single thread, so nobody reads meanwhile.
    unsafe { std::env::remove_var(key) };
}
