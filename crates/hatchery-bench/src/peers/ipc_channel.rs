//! `ipc-channel`: this program again, met through a one-shot server; blocking on both sides.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use ipc_channel::ipc::{self, IpcOneShotServer, IpcReceiver, IpcSender};

use super::Work;
use crate::Outcome;
use crate::figures::Samples;
use crate::payload::Block;
use crate::pin;

/// What the other side hands over: where to ask, and where answers come.
type Ends = (IpcSender<Block>, IpcReceiver<Block>);

pub(super) fn take(work: Work, count: usize) -> Outcome<Samples> {
    match work {
        Work::Starts => starts(count),
        Work::Calls => calls(count),
        Work::Rate => Err("one channel carries one answer at a time".into()),
    }
}

fn starts(count: usize) -> Outcome<Samples> {
    let mut samples = Samples::default();
    for _ in 0..count {
        let began = Instant::now();
        let (ends, mut child) = start()?;
        round_trip(&ends)?;
        samples.span(began.elapsed());
        drop(ends);
        child.wait()?;
    }
    Ok(samples)
}

fn calls(count: usize) -> Outcome<Samples> {
    let (ends, mut child) = start()?;
    let mut samples = Samples::default();
    for _ in 0..count {
        let began = Instant::now();
        round_trip(&ends)?;
        samples.span(began.elapsed());
    }
    drop(ends);
    child.wait()?;
    Ok(samples)
}

fn start() -> Outcome<(Ends, Child)> {
    let (server, name) = IpcOneShotServer::<Ends>::new()?;
    let mut command = Command::new("/proc/self/exe");
    let (variable, cores) = pin::told();
    command.args(["ipc-echo", &name]).env(variable, cores).stdin(Stdio::null());
    let child = command.spawn()?;
    let (_, ends) = server.accept()?;
    Ok((ends, child))
}

fn round_trip((ask, answers): &Ends) -> Outcome {
    ask.send(Block([7; 64]))?;
    answers.recv()?;
    Ok(())
}

/// The other side.
pub(crate) fn echo(server: String) -> Outcome {
    let (ask, asked) = ipc::channel()?;
    let (answer, answers) = ipc::channel()?;
    IpcSender::<Ends>::connect(server)?.send((ask, answers))?;
    while let Ok(block) = asked.recv() {
        answer.send(block)?;
    }
    Ok(())
}
