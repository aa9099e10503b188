//! The ends of a program's pipes that this process has.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe::{Receiver, Sender};

use crate::stdio::Stdio;

/// A pipe that a runtime watches from the first read or write on: to start a program, none is needed.
#[derive(Debug)]
enum Pipe<T> {
    Unwatched(OwnedFd),
    Watched(T),
}

impl<T: Unpin> Pipe<T> {
    fn watched(&mut self, watch: fn(OwnedFd) -> io::Result<T>) -> io::Result<Pin<&mut T>> {
        if let Self::Unwatched(fd) = self {
            // A copy, as what can't be watched is closed.
            *self = Self::Watched(watch(fd.try_clone()?)?);
        }
        match self {
            Self::Watched(pipe) => Ok(Pin::new(pipe)),
            Self::Unwatched(_) => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// As another program has it: a read or a write waits.
    fn into_owned_fd(self, unwatch: fn(T) -> io::Result<OwnedFd>) -> io::Result<OwnedFd> {
        match self {
            Self::Unwatched(fd) => Ok(fd),
            Self::Watched(pipe) => unwatch(pipe),
        }
    }
}

impl<T: AsFd> AsFd for Pipe<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unwatched(fd) => fd.as_fd(),
            Self::Watched(pipe) => pipe.as_fd(),
        }
    }
}

/// Its stdin: the program reads what is written here, and the end of it when this is dropped.
#[derive(Debug)]
pub struct ChildStdin(Pipe<Sender>);

/// Its stdout. A program waits when nobody reads and the pipe is full: 64 KiB.
#[derive(Debug)]
pub struct ChildStdout(Pipe<Receiver>);

/// Its stderr. A program waits when nobody reads and the pipe is full: 64 KiB.
#[derive(Debug)]
pub struct ChildStderr(Pipe<Receiver>);

impl AsyncWrite for ChildStdin {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.0.watched(Sender::from_owned_fd) {
            Ok(pipe) => pipe.poll_write(cx, bytes),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.0.watched(Sender::from_owned_fd) {
            Ok(pipe) => pipe.poll_write_vectored(cx, pieces),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written is in the pipe.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // As tokio's: the program sees the end when this is dropped.
        Poll::Ready(Ok(()))
    }
}

macro_rules! output {
    ($name:ident) => {
        impl $name {
            pub(super) fn new(fd: OwnedFd) -> Self {
                Self(Pipe::Unwatched(fd))
            }

            /// The fd alone; a read of it waits, as another program expects it.
            ///
            /// # Errors
            /// What fcntl(2) says.
            pub fn into_owned_fd(self) -> io::Result<OwnedFd> {
                self.0.into_owned_fd(Receiver::into_blocking_fd)
            }
        }

        impl AsyncRead for $name {
            fn poll_read(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.0.watched(Receiver::from_owned_fd) {
                    Ok(pipe) => pipe.poll_read(cx, buffer),
                    Err(error) => Poll::Ready(Err(error)),
                }
            }
        }
    };
}

output!(ChildStdout);
output!(ChildStderr);

impl ChildStdin {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self(Pipe::Unwatched(fd))
    }

    /// The fd alone; a write to it waits, as another program expects it.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub fn into_owned_fd(self) -> io::Result<OwnedFd> {
        self.0.into_owned_fd(Sender::into_blocking_fd)
    }
}

macro_rules! fd {
    ($name:ident) => {
        impl AsFd for $name {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.0.as_fd()
            }
        }

        impl AsRawFd for $name {
            fn as_raw_fd(&self) -> RawFd {
                self.0.as_fd().as_raw_fd()
            }
        }

        /// For another program's stdio.
        impl TryFrom<$name> for Stdio {
            type Error = io::Error;

            fn try_from(end: $name) -> io::Result<Self> {
                end.into_owned_fd().map(Self::Fd)
            }
        }
    };
}

fd!(ChildStdin);
fd!(ChildStdout);
fd!(ChildStderr);
