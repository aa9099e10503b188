//! From the start of an actor to its first reply, beside fork + tokio runtime + one message.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use hatchery::{Backend, Runtime, Stdio};
use tokio::io::AsyncWriteExt as _;

use crate::pin;
use crate::table::{Samples, Table};

#[hatchery::function]
async fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

pub(crate) fn measure(table: &mut Table, count: usize) -> Result<(), Box<dyn Error>> {
    let mut floor = floor(count)?;
    for (backend, goal) in
        [(Backend::Forkserver, "≤ 2.5"), (Backend::Exec, "-"), (Backend::Thread, "-")]
    {
        let count = if matches!(backend, Backend::Exec) { count / 5 } else { count };
        let name = format!("start to first reply, {}, one core", backend.name());
        let mut ours = pinned(backend, count)?;
        table.ratio(&name, &mut floor, &mut ours, goal);
    }
    Ok(())
}

/// The floor's own process: forks, and prints each sample in nanoseconds.
pub(crate) fn fork_floor(count: usize) -> Result<(), Box<dyn Error>> {
    pin::to_one_core()?;
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        let (mut ours, pid) = hatchery_spawn::fork_floor(one_message)?;
        ours.read_exact(&mut [0])?;
        samples.push(began.elapsed());
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid.cast_signed()), None)?;
    }
    let mut out = std::io::stdout().lock();
    for sample in samples {
        writeln!(out, "{}", sample.as_nanos())?;
    }
    Ok(())
}

fn one_message(socket: UnixStream) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        let nonblocking = socket.set_nonblocking(true);
        if let (Ok(()), Ok(mut socket)) = (nonblocking, tokio::net::UnixStream::from_std(socket)) {
            // The reader is the benchmark itself.
            let _written = socket.write_all(b"x").await;
        }
    });
}

fn floor(count: usize) -> Result<Samples, Box<dyn Error>> {
    let mut command = Command::new("/proc/self/exe");
    let output = command.arg("fork-floor").arg(count.to_string()).output()?;
    let mut samples = Samples::default();
    for line in String::from_utf8(output.stdout)?.lines() {
        samples.push(Duration::from_nanos(line.parse()?));
    }
    Ok(samples)
}

/// On a thread of its own, so that only it and what it starts is pinned.
fn pinned(backend: Backend, count: usize) -> Result<Samples, Box<dyn Error>> {
    let measured = std::thread::spawn(move || -> Result<Samples, String> {
        pin::to_one_core().map_err(|error| error.to_string())?;
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let tokio = tokio.map_err(|error| error.to_string())?;
        tokio.block_on(starts(backend, count)).map_err(|error| error.to_string())
    });
    Ok(measured.join().map_err(|_| "the benchmark panicked")??)
}

async fn starts(backend: Backend, count: usize) -> Result<Samples, Box<dyn Error>> {
    let runtime = Runtime::builder().backend(backend).stdio(Stdio::Null).signals(false).open()?;
    let mut samples = Samples::default();
    runtime
        .nursery(async |n| {
            for i in 0..count {
                let began = Instant::now();
                let worker = n.start(&format!("a{i}")).await?;
                worker.call(echo(vec![0; 64])).await?;
                samples.push(began.elapsed());
                worker.cancel();
                worker.settled().await;
            }
            Ok(())
        })
        .await?;
    runtime.close().await;
    Ok(samples)
}
