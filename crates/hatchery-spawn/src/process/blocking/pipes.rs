//! The ends of a program's pipes that a thread reads and writes.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::super::pipes as asynchronous;
use crate::stdio::Stdio;

/// Its stdin: the program reads what is written here, and the end of it when this is dropped.
#[derive(Debug)]
pub struct ChildStdin(File);

/// Its stdout. A program waits when nobody reads and the pipe is full: 64 KiB.
#[derive(Debug)]
pub struct ChildStdout(File);

/// Its stderr. A program waits when nobody reads and the pipe is full: 64 KiB.
#[derive(Debug)]
pub struct ChildStderr(File);

macro_rules! writes {
    ($name:ty) => {
        impl Write for $name {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                (&self.0).write(bytes)
            }

            fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
                (&self.0).write_vectored(pieces)
            }

            fn flush(&mut self) -> io::Result<()> {
                // What was written is in the pipe.
                Ok(())
            }
        }
    };
}

writes!(ChildStdin);
writes!(&ChildStdin);

macro_rules! end {
    ($name:ident) => {
        impl From<OwnedFd> for $name {
            fn from(fd: OwnedFd) -> Self {
                Self(fd.into())
            }
        }

        impl From<$name> for OwnedFd {
            fn from(end: $name) -> Self {
                end.0.into()
            }
        }

        /// For another program's stdio.
        impl From<$name> for Stdio {
            fn from(end: $name) -> Self {
                Self::Fd(end.0.into())
            }
        }

        impl AsFd for $name {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.0.as_fd()
            }
        }

        impl AsRawFd for $name {
            fn as_raw_fd(&self) -> RawFd {
                self.0.as_raw_fd()
            }
        }

        /// Fails as [`into_owned_fd`](crate::process::ChildStdout::into_owned_fd) does.
        impl TryFrom<asynchronous::$name> for $name {
            type Error = io::Error;

            fn try_from(end: asynchronous::$name) -> io::Result<Self> {
                Ok(Self(end.into_owned_fd()?.into()))
            }
        }

        impl From<$name> for asynchronous::$name {
            fn from(end: $name) -> Self {
                Self::new(end.0.into())
            }
        }
    };
}

end!(ChildStdin);
end!(ChildStdout);
end!(ChildStderr);

macro_rules! reads {
    ($name:ident) => {
        impl Read for $name {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                (&self.0).read(buffer)
            }

            fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
                (&self.0).read_vectored(buffers)
            }

            fn read_to_end(&mut self, all: &mut Vec<u8>) -> io::Result<usize> {
                (&self.0).read_to_end(all)
            }
        }
    };
}

reads!(ChildStdout);
reads!(ChildStderr);
