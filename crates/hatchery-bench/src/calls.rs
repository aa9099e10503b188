//! A call's round trip beside bare Unix-socket ping-pong of as many bytes.

use std::io::{Read as _, Write as _};
use std::time::Instant;

use hatchery::Portal;
use tokio::task::JoinSet;

use crate::cli::Extent;
use crate::figures::{Samples, Turns, float};
use crate::payload::Block;
use crate::pin::Place;
use crate::report::{Goal, Row, Unit};
use crate::sockets::{self, Bare};
use crate::worker::Mode;
use crate::{Outcome, tree};

#[hatchery::function]
pub(crate) async fn echo(block: Block) -> Block {
    block
}

pub(crate) fn measure(extent: Extent) -> Outcome {
    Place::One.here()?;
    for place in Place::all() {
        let (tokio, blocking) = tree::on_tokio(alone(extent, place))?;
        let row = || {
            Row::new("calls", format!("round trip of 64 bytes, {}", place.name()), Unit::Seconds)
                .size(1)
        };
        row().beside("tokio socket", &tokio).goal(Goal::RatioAtMost(1.3)).tell();
        row().beside("blocking socket", &blocking).tell();
        for flight in [8, 64] {
            tree::on_tokio(many(extent, place, flight))?;
        }
    }
    Ok(())
}

/// One at a time, beside both kinds of sockets.
async fn alone(extent: Extent, place: Place) -> Outcome<(Turns, Turns)> {
    let mut bare = Bare::start(Mode::Pong, place)?;
    let (mut blocking, mut child) = sockets::start(Mode::BlockingPong, place)?;
    let count = extent.pick(100, 1000);
    let turns = tree::with_actor(place, async |actor| {
        let mut turns = (Turns::default(), Turns::default());
        let mut bytes = [7; 64];
        for turn in 0..=extent.pick(2, 9) {
            let mut samples = [Samples::default(), Samples::default(), Samples::default()];
            for _ in 0..count {
                let began = Instant::now();
                bare.round_trip(&mut bytes).await?;
                samples[0].span(began.elapsed());
            }
            for _ in 0..count {
                let began = Instant::now();
                blocking.write_all(&bytes)?;
                blocking.read_exact(&mut bytes)?;
                samples[1].span(began.elapsed());
            }
            for _ in 0..count {
                let began = Instant::now();
                actor.call(echo(Block(bytes))).await?;
                samples[2].span(began.elapsed());
            }
            // The first warms all up.
            if turn > 0 {
                turns.0.turn(&samples[0], &samples[2]);
                turns.1.turn(&samples[1], &samples[2]);
            }
        }
        Ok(turns)
    })
    .await?;
    bare.end()?;
    drop(blocking);
    child.wait()?;
    Ok(turns)
}

/// Several at once: their latency, and how many a second. The floor carries as many bytes each
/// way, in as few system calls as can be.
async fn many(extent: Extent, place: Place, flight: usize) -> Outcome {
    let mut bare = Bare::start(Mode::Pong, place)?;
    let rounds = extent.pick(20, 200);
    let (rates, latencies) = tree::with_actor(place, async |actor| {
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
        Row::new("calls", format!("{what}, {flight} in flight, {}", place.name()), unit)
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
