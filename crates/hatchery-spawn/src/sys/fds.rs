//! Fds by number: for the one place where numbers are what matters, the slots of a new child.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

/// Duplicates `fd` to a number of at least `lowest`, close-on-exec.
pub(crate) fn lift(fd: RawFd, lowest: RawFd) -> Result<RawFd, Errno> {
    // SAFETY: only numbers are passed; the new fd is the child's, placed by `place` below.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, lowest) })
}

/// Duplicates `from` to exactly `to`, which is overwritten.
pub(crate) fn place(from: RawFd, to: RawFd, close_on_exec: bool) -> Result<(), Errno> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: only numbers are passed. Whatever owned `to` is never used again: the child
    // diverges from its parent's code and drops none of the owners.
    Errno::result(unsafe { libc::dup3(from, to, flags) }).map(drop)
}

/// Takes over an fd that was put at a known number for us.
pub(crate) fn adopt(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: only asks whether the number is open.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: it is open, it was placed there by our own prelude for this purpose, and each slot
    // is adopted once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Marks an fd close-on-exec.
pub(crate) fn close_on_exec(fd: RawFd) {
    // SAFETY: only changes a flag; a closed number gives EBADF.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Closes a number whose owner is never used again.
pub(crate) fn close(fd: RawFd) {
    // SAFETY: see above; the caller is a child that diverged from the owner's code.
    unsafe { libc::close(fd) };
}

/// Stdin, stdout or stderr of this process.
pub(crate) fn stdio(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: 0 to 2 are never closed by this process; std keeps them open for its whole life.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// The shared socket to the forkserver, which this process keeps open for its whole life.
pub(crate) fn shared(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the prelude put it there and nothing ever takes it over or closes it.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// What the prelude has placed in a slot, until the exec or the end of the process.
pub(crate) fn in_slot(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the prelude put it there and nothing takes it over or closes it before the exec.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
