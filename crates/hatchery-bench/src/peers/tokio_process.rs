//! `tokio::process`: this program again, with a Unix socket for its stdin and tokio on both sides.
#![allow(clippy::disallowed_types, reason = "it is what is measured")]

use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::Work;
use crate::figures::Samples;
use crate::pin::{self, Place};
use crate::worker::Mode;
use crate::{Outcome, tree};

pub(super) fn take(work: Work, count: usize) -> Outcome<Samples> {
    tree::on_tokio(async {
        match work {
            Work::Starts => starts(count).await,
            Work::Calls => calls(count).await,
            Work::Rate => Err("one socket carries one answer at a time".into()),
        }
    })
}

async fn starts(count: usize) -> Outcome<Samples> {
    let mut samples = Samples::default();
    for _ in 0..count {
        let began = Instant::now();
        let (mut socket, mut child) = start()?;
        round_trip(&mut socket).await?;
        samples.span(began.elapsed());
        drop(socket);
        child.wait().await?;
    }
    Ok(samples)
}

async fn calls(count: usize) -> Outcome<Samples> {
    let (mut socket, mut child) = start()?;
    let mut samples = Samples::default();
    for _ in 0..count {
        let began = Instant::now();
        round_trip(&mut socket).await?;
        samples.span(began.elapsed());
    }
    drop(socket);
    child.wait().await?;
    Ok(samples)
}

fn start() -> Outcome<(UnixStream, Child)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = Command::new("/proc/self/exe");
    let (variable, cores) = pin::told();
    command.args(["worker", &Mode::Pong.name(), Place::One.argument()]).env(variable, cores);
    let child = command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
    Ok((UnixStream::from_std(ours)?, child))
}

async fn round_trip(socket: &mut UnixStream) -> Outcome {
    let mut bytes = [7; 64];
    socket.write_all(&bytes).await?;
    socket.read_exact(&mut bytes).await?;
    Ok(())
}
