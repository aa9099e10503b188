//! The other side of a floor: this program again, with a bare Unix socket for its stdin.

use std::io::{ErrorKind, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::pin::Place;
use crate::way::SPIN;
use crate::worker::{Mode, WORKER};
use crate::{Outcome, pin};

/// A floor's process and the socket to it.
pub(crate) struct Bare {
    pub(crate) socket: UnixStream,
    child: Child,
}

impl Bare {
    /// Starts it; needs a tokio runtime.
    pub(crate) fn start(mode: Mode, place: Place) -> Outcome<Self> {
        let (ours, child) = start(mode, place)?;
        ours.set_nonblocking(true)?;
        Ok(Self { socket: UnixStream::from_std(ours)?, child })
    }

    /// Writes the bytes and reads as many.
    pub(crate) async fn round_trip(&mut self, bytes: &mut [u8]) -> Outcome {
        self.socket.write_all(bytes).await?;
        self.socket.read_exact(bytes).await?;
        Ok(())
    }

    /// Sends a batch as often as it takes for `count` of them, and waits until all was read.
    pub(crate) async fn one_way(&mut self, batch: &[u8], count: u64) -> Outcome {
        self.socket.write_u64(batch.len() as u64 * count).await?;
        for _ in 0..count {
            self.socket.write_all(batch).await?;
        }
        self.socket.read_u8().await?;
        Ok(())
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it.
    pub(crate) fn end(mut self) -> Outcome {
        drop(self.socket);
        self.child.wait()?;
        Ok(())
    }
}

/// A blocking socket to a new process.
pub(crate) fn start(mode: Mode, place: Place) -> Outcome<(std::os::unix::net::UnixStream, Child)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let mut command = Command::new("/proc/self/exe");
    let (variable, cores) = pin::told();
    command.arg(WORKER).arg(mode.name()).arg(place.argument()).env(variable, cores);
    let child = command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
    Ok((ours, child))
}

/// Looks for bytes on a socket that doesn't block for [`SPIN`] before it sleeps.
pub(crate) fn spin_and_read(
    socket: &mut std::os::unix::net::UnixStream,
    bytes: &mut [u8],
) -> Outcome<usize> {
    let mut until = Instant::now() + SPIN;
    loop {
        match socket.read(bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            done => return Ok(done?),
        }
        if Instant::now() < until {
            std::hint::spin_loop();
            continue;
        }
        poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        until = Instant::now() + SPIN;
    }
}

/// The socket that a worker was given.
pub(crate) fn given() -> Outcome<std::os::unix::net::UnixStream> {
    let stdin = std::io::stdin();
    Ok(std::os::fd::AsFd::as_fd(&stdin).try_clone_to_owned()?.into())
}
