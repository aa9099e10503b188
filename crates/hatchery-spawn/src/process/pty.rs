//! A terminal of a program's own.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::sys::pty;

/// Our side of a program's own terminal: what it writes is read here, what is written here it reads as typed,
/// byte for byte. The end comes when nobody has the other side open any more; a drop hangs it up, which is
/// SIGHUP to the program.
///
/// A terminal is not a pipe: until the program says otherwise it echoes what is typed, makes `\r\n` of `\n`,
/// and of byte 3 a SIGINT. A program that writes waits when nobody reads, after a few KiB.
#[derive(Debug)]
pub struct Pty(Side);

/// Watched by a runtime from the first read or write on.
#[derive(Debug)]
enum Side {
    Unwatched(OwnedFd),
    Watched(AsyncFd<OwnedFd>),
}

impl Pty {
    pub(super) fn new(ours: OwnedFd) -> Self {
        Self(Side::Unwatched(ours))
    }

    /// Sets how many rows and columns of characters it has. Its foreground is told by SIGWINCH.
    ///
    /// # Errors
    /// What ioctl(2) says.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        pty::resize(self, rows, columns)
    }

    /// Throws away what the program writes, without an end.
    async fn discard(mut self) -> Infallible {
        // An error is the end of it, as the hang-up is.
        let _ended = tokio::io::copy(&mut self, &mut tokio::io::sink()).await;
        let _open = self;
        pending().await
    }

    fn watched(&mut self) -> io::Result<&AsyncFd<OwnedFd>> {
        if let Side::Unwatched(fd) = &self.0 {
            // A copy, as what can't be watched is closed.
            let fd = fd.try_clone()?;
            let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
            fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            self.0 = Side::Watched(pty::watch(fd)?);
        }
        match &self.0 {
            Side::Watched(fd) => Ok(fd),
            Side::Unwatched(_) => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// Runs a wait for a program. If nobody can read its terminal any more, that holds up neither.
pub(super) async fn unread<T>(pty: Option<Pty>, wait: impl Future<Output = T>) -> T {
    let Some(pty) = pty else { return wait.await };
    tokio::select! {
        done = wait => done,
        never = pty.discard() => match never {},
    }
}

impl AsyncRead for Pty {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let fd = self.watched()?;
        loop {
            let mut ready = ready!(fd.poll_read_ready(cx))?;
            let read =
                ready.try_io(|fd| match nix::unistd::read(fd, buffer.initialize_unfilled()) {
                    // Nobody has the other side any more.
                    Err(Errno::EIO) => Ok(0),
                    read => Ok(read?),
                });
            if let Ok(read) = read {
                buffer.advance(read?);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Pty {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let fd = self.watched()?;
        loop {
            let mut ready = ready!(fd.poll_write_ready(cx))?;
            if let Ok(written) = ready.try_io(|fd| Ok(nix::unistd::write(fd, bytes)?)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsFd for Pty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Side::Unwatched(fd) => fd.as_fd(),
            Side::Watched(fd) => fd.get_ref().as_fd(),
        }
    }
}

impl AsRawFd for Pty {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
