//! What people would use instead, at the same work: a start until its first reply of 64 bytes, and
//! round trips of 64 bytes. A peer that is not there is missing, never zero.

use std::process::{Command, Stdio};

use crate::calls::echo;
use crate::cli::Extent;
use crate::figures::Samples;
use crate::payload::Block;
use crate::pin::Place;
use crate::report::{Row, Unit};
use crate::{Outcome, starts, tree};

/// What a peer can be measured at.
#[derive(Default)]
pub(crate) struct Peer {
    pub(crate) starts: Option<Samples>,
    pub(crate) calls: Option<Samples>,
    pub(crate) note: String,
}

impl Peer {
    pub(crate) fn missing(why: &str) -> Self {
        Self { note: format!("missing: {why}"), ..Self::default() }
    }

    fn tell(&self, name: &str) {
        for (what, samples) in
            [("start to first reply", &self.starts), ("round trip of 64 bytes", &self.calls)]
        {
            let row = Row::new("peers", format!("{what}: {name}"), Unit::Seconds);
            match samples {
                Some(samples) => row.alone(samples).note(&*self.note).tell(),
                None if self.note.is_empty() => {}
                None => row.note(&*self.note).tell(),
            }
        }
    }
}

pub(crate) fn measure(extent: Extent) -> Outcome {
    Place::One.here()?;
    // In turn, so that all see the same machine.
    let mut all: Vec<(&str, Peer)> = Vec::new();
    for _ in 0..extent.pick(1, 5) {
        for (name, peer) in
            [("hatchery", ours(extent)?), ("python multiprocessing, forkserver", python(extent)?)]
                .into_iter()
                .chain(registry())
        {
            match all.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => known.add(&peer),
                None => all.push((name, peer)),
            }
        }
    }
    for (name, peer) in all {
        peer.tell(name);
    }
    Ok(())
}

impl Peer {
    fn add(&mut self, more: &Self) {
        for (own, more) in [(&mut self.starts, &more.starts), (&mut self.calls, &more.calls)] {
            if let (Some(own), Some(more)) = (own, more) {
                own.append(more);
            }
        }
    }
}

fn ours(extent: Extent) -> Outcome<Peer> {
    let starts = tree::on_tokio(starts::some(extent.pick(10, 100), || Ok(())))?;
    let calls = tree::on_tokio(tree::with_actor(Place::One, async |actor| {
        let mut samples = Samples::default();
        for _ in 0..extent.pick(100, 2000) {
            let began = std::time::Instant::now();
            actor.call(echo(Block([7; 64]))).await?;
            samples.span(began.elapsed());
        }
        Ok(samples)
    }))?;
    Ok(Peer { starts: Some(starts), calls: Some(calls), note: String::new() })
}

/// Python measures itself and prints seconds, a start or a round trip a line.
fn python(extent: Extent) -> Outcome<Peer> {
    let dir = std::env::temp_dir();
    let file = dir.join(format!("hatchery-bench-{}.py", std::process::id()));
    std::fs::write(&file, PYTHON)?;
    let counts = [extent.pick(5, 30), extent.pick(100, 2000)].map(|count: u32| count.to_string());
    let output = Command::new("python3").arg(&file).args(counts).stdin(Stdio::null()).output();
    std::fs::remove_file(&file)?;
    let Ok(output) = output else { return Ok(Peer::missing("there is no python3")) };
    if !output.status.success() {
        return Ok(Peer::missing("python3 failed"));
    }
    let (mut starts, mut calls) = (Samples::default(), Samples::default());
    for line in String::from_utf8(output.stdout)?.lines() {
        match line.split_once(' ') {
            Some(("start", span)) => starts.push(span.parse()?),
            Some(("call", span)) => calls.push(span.parse()?),
            _ => return Err(format!("python said `{line}`").into()),
        }
    }
    Ok(Peer { starts: Some(starts), calls: Some(calls), note: String::new() })
}

const PYTHON: &str = r#"
import multiprocessing, sys, time

def echo(pipe):
    while True:
        try:
            pipe.send_bytes(pipe.recv_bytes())
        except EOFError:
            return

def main(starts, calls):
    how = multiprocessing.get_context("forkserver")
    message = b"7" * 64
    for i in range(starts + 1):
        began = time.perf_counter()
        ours, theirs = how.Pipe()
        child = how.Process(target=echo, args=(theirs,))
        child.start()
        theirs.close()
        ours.send_bytes(message)
        ours.recv_bytes()
        if i > 0:
            print("start", time.perf_counter() - began)
        if i == starts:
            for _ in range(calls):
                began = time.perf_counter()
                ours.send_bytes(message)
                ours.recv_bytes()
                print("call", time.perf_counter() - began)
        ours.close()
        child.join()

if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
"#;

/// Those of the registry.
fn registry() -> Vec<(&'static str, Peer)> {
    let names = ["tokio::process", "procspawn", "ipc-channel", "ractor", "kameo"];
    names.map(|name| (name, Peer::missing("not built in"))).into()
}
