//! From the start of an actor to its first reply, beside what the kernel asks for a process.

use std::time::{Duration, Instant};

use hatchery::{Backend, Builder, Nursery, Runtime, Stdio};

use crate::calls::echo;
use crate::cli::Extent;
use crate::figures::{Samples, Turns};
use crate::floors::{self, Forks};
use crate::payload::Block;
use crate::pin::{self, Place};
use crate::report::{Goal, Row, Unit};
use crate::way::Way;
use crate::{Outcome, tree};

pub(crate) fn measure(extent: Extent) -> Outcome {
    Place::One.here()?;
    let mut forks = Forks::start(Place::One)?;
    for backend in [Backend::Forkserver, Backend::Exec, Backend::Thread] {
        let slow = matches!(backend, Backend::Exec);
        let count = if slow { extent.pick(5, 20) } else { extent.pick(15, 100) };
        let runtime = Way::OneCore.runtime().backend(backend.clone());
        let turns = tree::on_tokio(in_turn(extent, runtime, count, &mut forks))?;
        let row =
            Row::new("starts", format!("start to first reply, {}", backend.name()), Unit::Seconds);
        let row = row.beside("fork + tokio + one message", &turns);
        if matches!(backend, Backend::Forkserver) { row.goal(Goal::RatioAtMost(2.0)) } else { row }
            .tell();
    }
    let count = extent.pick(15, 500);
    let bare = forks.bare(count)?;
    Row::new("starts", "floor: fork + _exit + waitid", Unit::Seconds).alone(&bare).tell();
    let images = floors::new_images(extent.pick(5, 100))?;
    Row::new("starts", "floor: new image to first message", Unit::Seconds).alone(&images).tell();
    forks.end()?;
    two_cores(extent)
}

/// The same while both may use every core.
fn two_cores(extent: Extent) -> Outcome {
    pin::anywhere()?;
    let mut forks = Forks::start(Place::Two)?;
    for way in Way::all().into_iter().filter(|way| way.place() == Place::Two) {
        let turns = in_turn(extent, way.runtime(), extent.pick(15, 100), &mut forks);
        let what = format!("start to first reply, forkserver, {}", way.name());
        Row::new("starts", what, Unit::Seconds)
            .beside("fork + tokio + one message", &tree::on_tokio(turns)?)
            .tell();
    }
    forks.end()
}

async fn in_turn(
    extent: Extent,
    runtime: Builder,
    count: usize,
    forks: &mut Forks,
) -> Outcome<Turns> {
    let runtime = runtime.open()?;
    let mut turns = Turns::default();
    runtime
        .nursery(async |n| {
            for turn in 0..=extent.pick(2, 10) {
                let floor = forks.with_tokio(count).map_err(tree::told)?;
                let mut ours = Samples::default();
                for i in 0..count {
                    ours.span(one(&n, &format!("a{turn}-{i}")).await?);
                }
                // The first warms both up.
                if turn > 0 {
                    turns.turn(&floor, &ours);
                }
            }
            Ok(())
        })
        .await?;
    runtime.close().await;
    Ok(turns)
}

/// Starts, asks and ends that many in a runtime of their own; `first` happens when it is open.
pub(crate) async fn some(count: usize, first: impl FnOnce() -> Outcome) -> Outcome<Samples> {
    some_in(Runtime::builder().stdio(Stdio::Null).signals(false), count, first).await
}

/// The same in such a runtime.
pub(crate) async fn some_in(
    runtime: Builder,
    count: usize,
    first: impl FnOnce() -> Outcome,
) -> Outcome<Samples> {
    let runtime = runtime.open()?;
    first()?;
    let mut samples = Samples::default();
    runtime
        .nursery(async |n| {
            for i in 0..count {
                samples.span(one(&n, &format!("a{i}")).await?);
            }
            Ok(())
        })
        .await?;
    runtime.close().await;
    Ok(samples)
}

/// From the start of one actor to its first reply; then it goes.
pub(crate) async fn one(n: &Nursery, name: &str) -> hatchery::Result<Duration> {
    let began = Instant::now();
    let worker = n.start(name).await?;
    worker.call(echo(Block([7; 64]))).await?;
    let span = began.elapsed();
    worker.cancel();
    worker.settled().await;
    Ok(span)
}
