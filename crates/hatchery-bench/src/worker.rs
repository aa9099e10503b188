//! What the other side of a floor does, until its socket is closed.

use std::io::{Read as _, Write as _};

use clap::ValueEnum;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::pin::{self, Place};
use crate::{Outcome, floors, sockets};

/// The kinds of other sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Answers with what it reads, on tokio.
    Pong,
    /// The same with blocking calls.
    BlockingPong,
    /// The same, looking for bytes before it sleeps.
    SpinningPong,
    /// Reads as many bytes as were announced, then answers with one; on tokio.
    Drain,
    /// Forks when it is asked to, and says how long it took.
    Fork,
    /// Says one byte, as an image that has just been started.
    Hello,
}

impl Mode {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What this process was started for, if that is one of these. Looked at before the command
    /// line is parsed: a process that forks shall be small.
    pub(crate) fn told() -> Option<(Self, Place)> {
        let mut arguments = std::env::args().skip(1);
        let mut next = || arguments.next();
        (next()? == WORKER).then_some(())?;
        let mode = Self::from_str(&next()?, false).ok()?;
        Some((mode, Place::from_str(&next()?, false).ok()?))
    }

    pub(crate) fn run(self, place: Place) -> Outcome {
        match (self, place) {
            // Its children are the other side.
            (Self::Fork, Place::Two) => pin::anywhere()?,
            _ => place.there()?,
        }
        match self {
            Self::Pong => on_tokio(pong),
            Self::BlockingPong => blocking_pong(),
            Self::SpinningPong => spinning_pong(),
            Self::Drain => on_tokio(drain),
            Self::Fork => floors::serve_forks(),
            Self::Hello => on_tokio(hello),
        }
    }
}

fn on_tokio(body: impl AsyncFnOnce(UnixStream) -> Outcome) -> Outcome {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio.block_on(async {
        let socket = sockets::given()?;
        socket.set_nonblocking(true)?;
        body(UnixStream::from_std(socket)?).await
    })
}

async fn pong(mut socket: UnixStream) -> Outcome {
    let mut bytes = vec![0; BUFFER];
    loop {
        match socket.read(&mut bytes).await? {
            0 => return Ok(()),
            read => socket.write_all(&bytes[..read]).await?,
        }
    }
}

fn blocking_pong() -> Outcome {
    let mut socket = sockets::given()?;
    let mut bytes = vec![0; BUFFER];
    loop {
        match socket.read(&mut bytes)? {
            0 => return Ok(()),
            read => socket.write_all(&bytes[..read])?,
        }
    }
}

fn spinning_pong() -> Outcome {
    let mut socket = sockets::given()?;
    socket.set_nonblocking(true)?;
    let mut bytes = vec![0; BUFFER];
    loop {
        match sockets::spin_and_read(&mut socket, &mut bytes)? {
            0 => return Ok(()),
            read => socket.write_all(&bytes[..read])?,
        }
    }
}

async fn drain(mut socket: UnixStream) -> Outcome {
    let mut bytes = vec![0; BUFFER];
    while let Ok(mut missing) = socket.read_u64().await {
        while missing > 0 {
            let most = bytes.len().min(usize::try_from(missing).unwrap_or(usize::MAX));
            match socket.read(&mut bytes[..most]).await? {
                0 => return Ok(()),
                read => missing -= read as u64,
            }
        }
        socket.write_u8(1).await?;
    }
    Ok(())
}

async fn hello(mut socket: UnixStream) -> Outcome {
    Ok(socket.write_all(b"x").await?)
}

/// The first argument of such a process.
pub(crate) const WORKER: &str = "worker";

/// What is read at once: as much as hatchery's own reader takes.
const BUFFER: usize = 64 * 1024;
