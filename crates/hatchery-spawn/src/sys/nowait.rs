//! Writing without waiting to an output whose mode others share. See pwritev2(2), `RWF_NOWAIT`:
//! pipes know it since Linux 6.4, before that it is `EOPNOTSUPP`.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;

/// Writes as much as there is room for; `EAGAIN` if there is none.
pub(crate) fn write(output: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    let piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: one piece of memory that is borrowed for the call and only read; an offset of -1
    // means the fd's own position, as in writev.
    let written =
        unsafe { libc::pwritev2(output.as_raw_fd(), &raw const piece, 1, -1, libc::RWF_NOWAIT) };
    Ok(Errno::result(written)?.cast_unsigned())
}

/// The same output once more, to be written to without waiting: its mode is nobody else's. Not to be
/// kept, as the reader's end comes when the last one is closed.
pub(crate) fn reopen(output: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/thread-self/fd/{}", output.as_raw_fd());
    open(&*path, OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())
}
