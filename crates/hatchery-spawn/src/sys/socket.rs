//! Watching one side of a socket, and what was sent over it. See epoll_ctl(2), unix(7).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a socket with the calling task's runtime, for `interest` alone.
///
/// # Errors
/// The socket, and what epoll_ctl(2) says.
pub fn watch(
    stream: Arc<UnixStream>,
    interest: Interest,
) -> Result<AsyncFd<Arc<UnixStream>>, (Arc<UnixStream>, io::Error)> {
    // SAFETY: a stream owns its fd: that is open and the same until the last one drops the stream. The
    // registration has one of them, which it drops after taking the fd out of the epoll.
    let watched = unsafe { AsyncFd::register_with_interest(stream, interest) };
    watched.map_err(|refused| refused.into_parts())
}

/// How much of what was sent the other side has not read; 0 if that is nothing.
///
/// # Errors
/// What ioctl(2) says.
pub fn unread(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: this request writes one int, and that is what it is given.
    let asked = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    Errno::result(asked)?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}
