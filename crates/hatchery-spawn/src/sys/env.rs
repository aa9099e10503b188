//! Changing the environment, where only one thread exists.

use std::ffi::{CString, OsStr};

use nix::errno::Errno;
use nix::libc;

/// Sets a variable. Only between fork and main, or in a constructor.
pub(crate) fn set(key: &OsStr, value: &OsStr) {
    // SAFETY: the callers run while their process has a single thread, so nobody reads meanwhile.
    unsafe { std::env::set_var(key, value) };
}

/// Sets a variable for good: cheaper than [`set`] where it was set before, because nobody keeps
/// books of who owns the text. Only between fork and main, or in a constructor.
pub(crate) fn put(key: &str, value: &str) -> Result<(), Errno> {
    let text = CString::new(format!("{key}={value}")).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the text is leaked, so it outlives its place in the environment; and as in `set`.
    Errno::result(unsafe { libc::putenv(text.into_raw()) }).map(drop)
}

/// Removes a variable. Only between fork and main, or in a constructor.
pub(crate) fn remove(key: &OsStr) {
    // SAFETY: as in `set`.
    unsafe { std::env::remove_var(key) };
}
