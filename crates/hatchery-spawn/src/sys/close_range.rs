//! Closing every fd above a number. See close_range(2), Linux 5.9.

use nix::errno::Errno;
use nix::libc;

/// Closes all fds from `first` on. Without the call, `known` are closed instead: a process that
/// knows all its fds has no others.
pub(crate) fn close_from(first: u32, known: &[i32]) -> Result<(), Errno> {
    // SAFETY: only numbers are passed. What is closed belongs to a parent's copy of the table
    // that this process never uses again: the caller diverges and drops none of its owners.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    match Errno::result(result) {
        Ok(_) => Ok(()),
        // Older kernel, or a filter that doesn't know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => {
            for &fd in known.iter().filter(|&&fd| fd.cast_unsigned() >= first) {
                // SAFETY: as above; a number that is closed already is EBADF, which is fine.
                unsafe { libc::close(fd) };
            }
            Ok(())
        }
        Err(errno) => Err(errno),
    }
}
