//! A connected stream socket of which the runtime watches the reading side alone.
//!
//! A peer that reads makes our end writable, and an epoll that was asked for that wakes us up each
//! time: one wake-up for every message sent, for nothing. So writing is tried, and only while the
//! socket is full a second fd of it is watched for room.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use hatchery_spawn::{Incoming, Kept, receive_into, send_with, unread, watch};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    MsgFlags, Shutdown, getsockopt, send, sendmsg, setsockopt, shutdown, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use super::home::Place;
use crate::copied::is_copy;

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Socket {
    /// In the runtime of whoever made it.
    watched: Kept<Watched>,
    /// The same fd in the runtime that has taken its reader over, if one has.
    away: OnceLock<Kept<Watched>>,
    /// Where it was made.
    place: Arc<Place>,
    /// Whether it was full already, and has got a larger buffer.
    large: AtomicBool,
}

type Watched = AsyncFd<Arc<UnixStream>>;

type Ready<'a> = AsyncFdReadyGuard<'a, Arc<UnixStream>>;

/// A second fd of a socket, there while that is full; and whether it is watched away from home.
#[derive(Debug, Default)]
pub(crate) struct Second(Option<(Kept<Watched>, bool)>);

impl Socket {
    /// Registers it with the runtime of the calling task.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        Self::adopt(stream).map_err(|(_, error)| error)
    }

    /// The same; on an error the stream is given back, so that its other end can be told.
    pub(crate) fn adopt(stream: UnixStream) -> Result<Self, (UnixStream, io::Error)> {
        if let Err(error) = stream.set_nonblocking(true) {
            return Err((stream, error));
        }
        let watched = watch(Arc::new(stream), Interest::READABLE).map_err(|(stream, error)| {
            let stream =
                Arc::into_inner(stream).expect("a stream that is not watched has one owner");
            (stream, error)
        })?;
        let (watched, away, place) = (Kept::new(watched), OnceLock::new(), Place::here());
        Ok(Self { watched, away, place, large: AtomicBool::new(false) })
    }

    /// Where it was made.
    pub(crate) fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// The registration in the runtime of whoever polls.
    fn watched_here(&self) -> io::Result<&Watched> {
        if !self.place.is_away() {
            return Ok(&self.watched);
        }
        if let Some(watched) = self.away.get() {
            return Ok(watched);
        }
        // Its reader alone asks, so nobody else sets it meanwhile.
        let stream = self.watched.get_ref().clone();
        let watched = watch(stream, Interest::READABLE).map_err(|(_, error)| error)?;
        Ok(self.away.get_or_init(|| Kept::new(watched)))
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready<'_>>> {
        match self.watched_here() {
            Ok(watched) => watched.poll_read_ready(cx),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// A connection that tokio has made or accepted.
    pub(crate) fn of_tokio(stream: tokio::net::UnixStream) -> io::Result<Self> {
        Self::new(stream.into_std()?)
    }

    /// Sends what there is room for; `EAGAIN` if there is none. Any thread.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match send(self.watched.as_raw_fd(), bytes, flags) {
                Err(Errno::EINTR) => {}
                sent => return sent,
            }
        }
    }

    /// The same for several pieces, one after the other.
    pub(crate) fn send_pieces(&self, pieces: &[IoSlice<'_>]) -> Result<usize, Errno> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match sendmsg::<()>(self.watched.as_raw_fd(), pieces, &[], flags, None) {
                Err(Errno::EINTR) => {}
                sent => return sent,
            }
        }
    }

    /// The same, with a file.
    pub(crate) fn send_with(&self, pieces: &[IoSlice<'_>], file: &OwnedFd) -> Result<usize, Errno> {
        loop {
            match send_with(self.watched.get_ref().as_fd(), pieces, file.as_fd()) {
                Err(Errno::EINTR) => {}
                sent => return sent,
            }
        }
    }

    /// Appends what has come to the spare room of `buffer`; no bytes at the end. Ended by the peer's
    /// sending or closing, or by [`Socket::shut`].
    ///
    /// Cancel safe: nothing is read that is not in the buffer.
    pub(crate) async fn receive(
        &self,
        buffer: &mut BytesMut,
        spin: Duration,
    ) -> io::Result<Incoming> {
        loop {
            let mut ready = self.readable(spin).await?;
            if is_copy() {
                // What comes is for the owner.
                return std::future::pending().await;
            }
            let room = buffer.capacity() - buffer.len();
            match receive_into(self.watched.get_ref().as_fd(), buffer) {
                Ok(incoming) => {
                    // Less than there was room for: that was all, and more is a new event. But after
                    // bytes that a file came with there may be more.
                    if incoming.bytes < room && incoming.fds.is_empty() && !incoming.lost {
                        ready.clear_ready();
                    }
                    return Ok(incoming);
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits for something to read; for the first `spin` without sleeping, while other tasks of
    /// the runtime have their turns.
    async fn readable(&self, spin: Duration) -> io::Result<Ready<'_>> {
        if !spin.is_zero() {
            let until = Instant::now() + spin;
            while Instant::now() < until {
                tokio::select! {
                    biased;
                    ready = poll_fn(|cx| self.poll_readable(cx)) => return ready,
                    // In its turn the runtime asks the kernel for events.
                    () = tokio::task::yield_now() => {}
                }
            }
        }
        poll_fn(|cx| self.poll_readable(cx)).await
    }

    /// Waits for room after a send found none. Ended by the peer's reading or closing, or by
    /// [`Socket::shut`].
    pub(crate) async fn room(&self, second: &mut Second) -> io::Result<()> {
        if !self.large.swap(true, Ordering::Relaxed) {
            self.enlarge();
            return Ok(());
        }
        let roomy = poll_fn(|cx| match self.second_here(second) {
            Some(watched) => watched.poll_write_ready(cx).map(|ready| {
                ready?.clear_ready();
                io::Result::Ok(true)
            }),
            None => Poll::Ready(Ok(false)),
        });
        if !roomy.await? {
            // No fd to spare: look again in a moment.
            tokio::time::sleep(FULL_TABLE_PAUSE).await;
        }
        Ok(())
    }

    /// The second fd, watched in the runtime of whoever polls.
    fn second_here<'a>(&self, second: &'a mut Second) -> Option<&'a Watched> {
        let is_away = self.place.is_away();
        if second.0.as_ref().is_none_or(|(_, was_away)| *was_away != is_away) {
            let copy = self.watched.get_ref().try_clone().map(Arc::new);
            let watched = copy.ok().and_then(|copy| watch(copy, Interest::WRITABLE).ok());
            second.0 = watched.map(|watched| (Kept::new(watched), is_away));
        }
        second.0.as_ref().map(|(watched, _)| &**watched)
    }

    /// Whether something has come that nobody has read yet.
    pub(crate) fn is_unread(&self) -> bool {
        let mut fds = [PollFd::new(self.watched.get_ref().as_fd(), PollFlags::POLLIN)];
        let came = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0);
        came && fds[0].revents().is_some_and(|events| events == PollFlags::POLLIN)
    }

    /// Whether the other side has read everything that was sent.
    pub(crate) fn is_read_out(&self) -> bool {
        unread(self.watched.get_ref().as_fd()).is_ok_and(|bytes| bytes == 0)
    }

    /// Doubles its buffer: it tells of room when three quarters are empty, and of the usual 208 KiB
    /// what is left is read before the writer has woken up.
    fn enlarge(&self) {
        let stream = self.watched.get_ref();
        let usual = getsockopt(stream, sockopt::SndBuf);
        // The kernel takes it times two, and as much as the machine's limit allows.
        let _as_it_was = usual.and_then(|usual| setsockopt(stream, sockopt::SndBuf, &usual));
    }

    /// Ends it in both directions; what was received can still be read.
    pub(crate) fn shut(&self) {
        // Already gone is as good as broken.
        let _gone = shutdown(self.watched.as_raw_fd(), Shutdown::Both);
    }
}

/// How long a full socket is left alone when no fd is free to watch it.
const FULL_TABLE_PAUSE: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use hatchery_spawn::{Pidfd, claim, exit_now, fork_copy};

    use super::*;

    /// C19: a copy that drops a socket leaves it in the epoll that it has in common with its owner.
    #[test]
    fn a_socket_that_a_copy_drops_is_watched_all_the_same() {
        assert!(claim());
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let socket = Socket::new(ours).unwrap();
            let Some(copy) = fork_copy().unwrap() else {
                drop(socket);
                exit_now(0)
            };
            assert!(Pidfd::open(copy).unwrap().wait_dead(Duration::from_secs(60)));
            nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(copy.cast_signed()), None).unwrap();
            theirs.write_all(b"heard").unwrap();
            let mut buffer = BytesMut::with_capacity(16);
            let read = socket.receive(&mut buffer, Duration::ZERO);
            let read = tokio::time::timeout(Duration::from_secs(60), read).await;
            assert_eq!(read.expect("nobody watches it").unwrap().bytes, 5);
        });
    }
}
