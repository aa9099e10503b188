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
    let count = extent.pick(15, 100);
    for backend in [Backend::Forkserver, Backend::Thread] {
        let runtime = Way::OneCore.runtime().backend(backend.clone());
        let turns = in_turn(extent, runtime, count, |count| forks.with_tokio(count));
        let row = row(&backend).beside(FORK, &tree::on_tokio(turns)?).note(forks.size());
        if matches!(backend, Backend::Forkserver) { row.goal(Goal::RatioAtMost(2.0)) } else { row }
            .tell();
    }
    let runtime = Way::OneCore.runtime().huge_pages(true);
    let turns = in_turn(extent, runtime, count, |count| forks.with_tokio(count));
    let huge = Row::new("starts", "start to first reply, forkserver, huge pages", Unit::Seconds);
    let huge = huge.beside(FORK, &tree::on_tokio(turns)?).note(forks.size());
    huge.goal(Goal::RatioAtMost(2.0)).tell();
    let runtime = Way::OneCore.runtime().backend(Backend::Exec);
    let turns = in_turn(extent, runtime, extent.pick(5, 20), floors::new_images);
    row(&Backend::Exec).beside("new image to first message", &tree::on_tokio(turns)?).tell();
    two_floors(extent, &mut forks)?;
    forks.end()?;
    two_cores(extent)
}

fn row(backend: &Backend) -> Row {
    Row::new("starts", format!("start to first reply, {}", backend.name()), Unit::Seconds)
}

/// What a runtime and a message cost, beside the fork alone.
fn two_floors(extent: Extent, forks: &mut Forks) -> Outcome {
    let mut turns = Turns::default();
    for turn in 0..=extent.pick(2, 10) {
        let bare = forks.bare(extent.pick(15, 100))?;
        let with_tokio = forks.with_tokio(extent.pick(15, 100))?;
        // The first warms both up.
        if turn > 0 {
            turns.turn(&bare, &with_tokio);
        }
    }
    Row::new("starts", format!("floor: {FORK}"), Unit::Seconds)
        .beside("fork + _exit + waitid", &turns)
        .note(forks.size())
        .tell();
    Ok(())
}

/// The same while both may use every core.
fn two_cores(extent: Extent) -> Outcome {
    pin::anywhere()?;
    let mut forks = Forks::start(Place::Two)?;
    for way in Way::all().into_iter().filter(|way| way.place() == Place::Two) {
        let count = extent.pick(15, 100);
        let turns = in_turn(extent, way.runtime(), count, |count| forks.with_tokio(count));
        let what = format!("start to first reply, forkserver, {}", way.name());
        Row::new("starts", what, Unit::Seconds).beside(FORK, &tree::on_tokio(turns)?).tell();
    }
    forks.end()
}

async fn in_turn(
    extent: Extent,
    runtime: Builder,
    count: usize,
    mut floor: impl FnMut(usize) -> Outcome<Samples>,
) -> Outcome<Turns> {
    let runtime = runtime.open()?;
    let mut turns = Turns::default();
    runtime
        .nursery(async |n| {
            for turn in 0..=extent.pick(2, 10) {
                let floor = floor(count).map_err(tree::told)?;
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

/// What a start can't be less than.
const FORK: &str = "fork + tokio + one message";
