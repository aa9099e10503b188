//! Closing every fd above a number, or between two. See close_range(2), Linux 5.9.

use std::fs;

use nix::errno::Errno;
use nix::libc;

/// Closes all fds from `first` on.
pub(crate) fn close_from(first: u32) -> Result<(), Errno> {
    close_between(first, u32::MAX)
}

/// Closes all fds from `first` to `last`.
pub(crate) fn close_between(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: only numbers are passed. What is closed belongs to a parent's copy of the table
    // that this process never uses again: the caller diverges and drops none of its owners.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    match Errno::result(result) {
        Ok(_) => Ok(()),
        // Older kernel, or a filter that doesn't know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => close_listed(first, last),
        Err(errno) => Err(errno),
    }
}

/// The same by what `/proc` lists: slower, but never up to a limit that may be a million.
fn close_listed(first: u32, last: u32) -> Result<(), Errno> {
    let open = fs::read_dir("/proc/self/fd")
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    // Listed to the end first: the list is an fd itself, and is closed by then.
    let listed: Vec<u32> =
        open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in listed.into_iter().filter(|fd| (first..=last).contains(fd)) {
        // SAFETY: as in `close_between`; the list's own number is EBADF by now, which is fine.
        unsafe { libc::close(fd.cast_signed()) };
    }
    Ok(())
}
