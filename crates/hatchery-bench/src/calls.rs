//! A call's round trip beside bare Unix-socket ping-pong of as many bytes.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use hatchery::Portal;
use tokio::task::JoinSet;

use crate::cli::Extent;
use crate::figures::{Samples, Turns, float};
use crate::payload::Block;
use crate::report::{Goal, Row, Unit};
use crate::sockets::{self, Bare};
use crate::way::Way;
use crate::worker::Mode;
use crate::{Outcome, proc, tree};

#[hatchery::function]
pub(crate) async fn echo(block: Block) -> Block {
    block
}

pub(crate) fn measure(extent: Extent) -> Outcome {
    for way in Way::all() {
        way.place().here()?;
        tree::on_tokio(alone(extent, way))?.tell(way);
        for flight in [8, 64] {
            tree::on_tokio(many(extent, way, flight))?;
        }
    }
    Ok(())
}

/// One at a time, beside both kinds of sockets.
#[derive(Default)]
struct Alone {
    tokio: Turns,
    blocking: Turns,
    /// Processor time of both sides for one.
    burnt: Turns,
}

impl Alone {
    fn tell(&self, way: Way) {
        let row = |what: &str| Row::new("calls", format!("{what}, {}", way.name()), Unit::Seconds);
        let latency = || row("round trip of 64 bytes").size(1);
        let beside_tokio = latency().beside("tokio socket", &self.tokio);
        if way == Way::Spinning { beside_tokio } else { beside_tokio.goal(Goal::RatioAtMost(1.3)) }
            .tell();
        latency().beside(blocking(way).1, &self.blocking).tell();
        row("CPU time of a round trip, both sides").beside(blocking(way).1, &self.burnt).tell();
    }
}

/// The floor of blocking calls.
fn blocking(way: Way) -> (Mode, &'static str) {
    match way {
        Way::OneCore | Way::TwoCores => (Mode::BlockingPong, "blocking socket"),
        Way::Spinning => (Mode::SpinningPong, "blocking socket, spinning"),
    }
}

async fn alone(extent: Extent, way: Way) -> Outcome<Alone> {
    let mut bare = Bare::start(Mode::Pong, way.place())?;
    let (mut socket, mut child) = sockets::start(blocking(way).0, way.place())?;
    socket.set_nonblocking(way == Way::Spinning)?;
    let count = extent.pick(100, 1000);
    let all = way.with_actor(async |actor| {
        let pid = actor.pid().ok_or("an actor without a process")?;
        let mut all = Alone::default();
        for turn in 0..=extent.pick(2, 9) {
            let mut samples = [Samples::default(), Samples::default(), Samples::default()];
            let mut bytes = [7; 64];
            for _ in 0..count {
                let began = Instant::now();
                bare.round_trip(&mut bytes).await?;
                samples[0].span(began.elapsed());
            }
            let clock = Burnt::start(child.id());
            for _ in 0..count {
                let began = Instant::now();
                blocking_round_trip(way, &mut socket, &mut bytes)?;
                samples[1].span(began.elapsed());
            }
            let floor = clock.stop(count);
            let clock = Burnt::start(pid);
            for _ in 0..count {
                let began = Instant::now();
                actor.call(echo(Block(bytes))).await?;
                samples[2].span(began.elapsed());
            }
            let burnt = clock.stop(count);
            // The first warms all up.
            if turn > 0 {
                all.tokio.turn(&samples[0], &samples[2]);
                all.blocking.turn(&samples[1], &samples[2]);
                all.burnt.turn(&floor, &burnt);
            }
        }
        Ok(all)
    });
    let all = all.await?;
    bare.end()?;
    drop(socket);
    child.wait()?;
    Ok(all)
}

fn blocking_round_trip(way: Way, socket: &mut UnixStream, bytes: &mut [u8; 64]) -> Outcome {
    socket.write_all(bytes)?;
    if way != Way::Spinning {
        return Ok(socket.read_exact(bytes)?);
    }
    match sockets::spin_and_read(socket, bytes)? {
        64 => Ok(()),
        read => Err(format!("{read} of 64 bytes").into()),
    }
}

/// Processor time of this process and another one.
struct Burnt {
    other: u32,
    before: f64,
}

impl Burnt {
    fn start(other: u32) -> Self {
        Self { other, before: Self::now(other) }
    }

    fn now(other: u32) -> f64 {
        proc::run_time(std::process::id()) + proc::run_time(other)
    }

    /// Of each of so many.
    fn stop(self, count: usize) -> Samples {
        Samples::one((Self::now(self.other) - self.before) / float(count as u64))
    }
}

/// Several at once: their latency, and how many a second. The floor carries as many bytes each
/// way, in as few system calls as can be.
async fn many(extent: Extent, way: Way, flight: usize) -> Outcome {
    let mut bare = Bare::start(Mode::Pong, way.place())?;
    let rounds = extent.pick(20, 200);
    let (rates, latencies) = way
        .with_actor(async |actor| {
            let (mut rates, mut latencies) = (Turns::default(), Turns::default());
            let mut bytes = vec![7; 64 * flight];
            for turn in 0..=extent.pick(2, 9) {
                let mut floor = Samples::default();
                let all = Instant::now();
                for _ in 0..rounds {
                    let began = Instant::now();
                    bare.round_trip(&mut bytes).await?;
                    floor.span(began.elapsed());
                }
                let count = float((rounds * flight) as u64);
                let floor_rate = count / all.elapsed().as_secs_f64();
                let all = Instant::now();
                let ours = in_flight(&actor, flight, rounds).await?;
                let rate = count / all.elapsed().as_secs_f64();
                // The first warms both up.
                if turn > 0 {
                    rates.turn(&Samples::one(floor_rate), &Samples::one(rate));
                    latencies.turn(&floor, &ours);
                }
            }
            Ok((rates, latencies))
        })
        .await?;
    bare.end()?;
    let row = |what: &str, unit| {
        Row::new("calls", format!("{what}, {flight} in flight, {}", way.name()), unit)
    };
    row("latency", Unit::Seconds)
        .size(flight as u64)
        .beside("tokio socket, one batch", &latencies)
        .tell();
    let rate = row("calls", Unit::PerSecond).beside("tokio socket, batches", &rates);
    if flight == 64 { rate.goal(Goal::AtLeast(250_000.0)) } else { rate }.tell();
    Ok(())
}

/// Latencies of that many callers, each calling again as soon as it has its answer.
pub(crate) async fn in_flight(actor: &Portal, flight: usize, rounds: usize) -> Outcome<Samples> {
    let mut callers = JoinSet::new();
    for _ in 0..flight {
        let actor = actor.clone();
        callers.spawn(async move {
            let mut samples = Samples::default();
            for _ in 0..rounds {
                let began = Instant::now();
                actor.call(echo(Block([7; 64]))).await?;
                samples.span(began.elapsed());
            }
            Outcome::Ok(samples)
        });
    }
    let mut samples = Samples::default();
    while let Some(done) = callers.join_next().await {
        samples.append(&done??);
    }
    Ok(samples)
}
