//! Watching one side of a socket. See epoll_ctl(2).

use std::io;
use std::os::unix::net::UnixStream;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a socket with the calling task's runtime, for `interest` alone.
///
/// # Errors
/// What epoll_ctl(2) says; the socket is closed.
pub fn watch(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: a stream owns its fd: that is open and the same until the stream is dropped, which
    // the registration does after taking it out of the epoll.
    let watched = unsafe { AsyncFd::register_with_interest(stream, interest) };
    watched.map_err(io::Error::from)
}
