//! Watching one side of a socket, and reading from it into a buffer without clearing that first.
//! See epoll_ctl(2), recv(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use bytes::{BufMut, BytesMut};
use nix::errno::Errno;
use nix::libc;
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

/// Appends to `buffer` what has come, at most as much as it has spare room for, and says how much
/// that was; 0 at the end of the stream. Never blocks: `WouldBlock` if nothing has come.
///
/// # Errors
/// What recv(2) says; the buffer is as it was.
pub fn receive_into(socket: BorrowedFd<'_>, buffer: &mut BytesMut) -> io::Result<usize> {
    let spare = buffer.spare_capacity_mut();
    loop {
        let (start, room) = (spare.as_mut_ptr().cast(), spare.len());
        // SAFETY: the kernel writes at most `room` bytes from `start` on, which is memory that is
        // borrowed mutably here and may be uninitialised.
        let read = unsafe { libc::recv(socket.as_raw_fd(), start, room, libc::MSG_DONTWAIT) };
        match Errno::result(read) {
            Ok(read) => {
                let read = read.cast_unsigned();
                // SAFETY: the kernel has initialised that many bytes of the spare room.
                unsafe { buffer.advance_mut(read) };
                return Ok(read);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
