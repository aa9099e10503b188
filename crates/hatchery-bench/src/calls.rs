//! A call's round trip beside a bare tokio Unix-socket ping-pong of the same bytes.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio as StdStdio};
use std::time::Instant;

use hatchery::{Runtime, Stdio};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::pin;
use crate::table::{Samples, Table};

#[hatchery::function]
async fn echo(bytes: [u64; 8]) -> [u64; 8] {
    bytes
}

pub(crate) fn measure(table: &mut Table, count: usize) -> Result<(), Box<dyn Error>> {
    for (place, pinned, goal) in [("one core", true, "≤ 1.5"), ("unpinned", false, "≤ 1.5")] {
        let measured = std::thread::spawn(move || -> Result<_, String> {
            if pinned {
                pin::to_one_core().map_err(|error| error.to_string())?;
            }
            let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let tokio = tokio.map_err(|error| error.to_string())?;
            tokio.block_on(both(count)).map_err(|error| error.to_string())
        });
        let (mut floor, mut ours) = measured.join().map_err(|_| "the benchmark panicked")??;
        table.ratio(&format!("call of 64 bytes, {place}"), &mut floor, &mut ours, goal);
    }
    Ok(())
}

/// Answers 64 bytes with the same, until its stdin is closed.
pub(crate) fn pong() -> Result<(), Box<dyn Error>> {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio.block_on(async {
        let socket: OwnedFd = std::io::stdin().lock().as_fd_clone()?;
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let mut socket = UnixStream::from_std(socket)?;
        let mut bytes = [0; 64];
        while socket.read_exact(&mut bytes).await.is_ok() {
            socket.write_all(&bytes).await?;
        }
        Ok(())
    })
}

trait AsFdClone {
    fn as_fd_clone(&self) -> std::io::Result<OwnedFd>;
}

impl AsFdClone for std::io::StdinLock<'_> {
    fn as_fd_clone(&self) -> std::io::Result<OwnedFd> {
        std::os::fd::AsFd::as_fd(self).try_clone_to_owned()
    }
}

/// Interleaved, a block of each in turn, so that both see the same machine.
async fn both(count: usize) -> Result<(Samples, Samples), Box<dyn Error>> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = Command::new("/proc/self/exe");
    let mut child = command.arg("pong").stdin(StdStdio::from(OwnedFd::from(theirs))).spawn()?;
    let mut socket = UnixStream::from_std(ours)?;
    let runtime = Runtime::builder().stdio(Stdio::Null).signals(false).open()?;
    let (mut floor, mut calls) = (Samples::default(), Samples::default());
    let mut bytes = [7; 64];
    runtime
        .nursery(async |n| {
            let worker = n.start("echo").await?;
            for _ in 0..10 {
                for _ in 0..count / 10 {
                    let began = Instant::now();
                    socket.write_all(&bytes).await?;
                    socket.read_exact(&mut bytes).await?;
                    floor.push(began.elapsed());
                }
                for _ in 0..count / 10 {
                    let began = Instant::now();
                    worker.call(echo([7; 8])).await?;
                    calls.push(began.elapsed());
                }
            }
            Ok(())
        })
        .await?;
    runtime.close().await;
    drop(socket);
    child.wait()?;
    Ok((floor, calls))
}
