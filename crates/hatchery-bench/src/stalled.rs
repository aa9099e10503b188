//! What streams hold that nobody reads: beside their credit.

use std::sync::Mutex;

use hatchery::{Blob, Callee, Error, Nothing, Portal, Watch};
use tokio::task::JoinSet;

use crate::cli::Extent;
use crate::figures::{Samples, Turns, float};
use crate::pin::Place;
use crate::report::{Goal, Row, Unit};
use crate::{Outcome, payload, proc, tree};

/// The stalled streams of this actor.
static STALLED: Mutex<Vec<Watch>> = Mutex::new(Vec::new());

/// Starts, and never reads.
#[hatchery::context]
async fn stall(callee: Callee<Blob, Nothing>) -> Result<(), Error> {
    if let Ok(mut stalled) = STALLED.lock() {
        stalled.push(callee.watch());
    }
    let _stream = callee.started(())?;
    std::future::pending().await
}

/// What they hold, as the credit counts it.
#[hatchery::function]
async fn held() -> u64 {
    STALLED.lock().map_or(0, |stalled| stalled.iter().map(|one| one.stats().held).sum())
}

pub(crate) fn measure(extent: Extent) -> Outcome {
    for size in [64, 4096] {
        for &streams in extent.pick(&[1, 20][..], &[1, 100, 1000]) {
            tree::on_tokio(tree::with_actor(Place::One, async |actor| {
                one(size, streams, &actor).await
            }))?;
        }
    }
    Ok(())
}

async fn one(size: usize, streams: u64, actor: &Portal) -> Outcome {
    let credit = float(hatchery::Config::default().stream_credit * streams);
    let pid = actor.pid().ok_or("an actor without a process")?;
    let memory = |pid| proc::private(pid).ok_or("no smaps_rollup");
    // What all streams of a connection share is bought by the first.
    let _first = fill(size, 1, actor).await?;
    let before = (held_by(actor).await?, memory(pid)?, memory(std::process::id())?);
    let _more = fill(size, streams, actor).await?;
    let after = (held_by(actor).await?, memory(pid)?, memory(std::process::id())?);
    let row = |what: &str, bytes: f64| {
        let mut turns = Turns::default();
        turns.turn(&Samples::one(credit), &Samples::one(bytes));
        Row::new("stalled", format!("{streams} streams of {size} bytes: {what}"), Unit::Bytes)
            .size(streams)
            .beside("credit", &turns)
            .goal(Goal::RatioAtMost(1.0))
    };
    row("held, as counted", float(after.0 - before.0)).tell();
    row("reader's memory", after.1 - before.1).tell();
    row("writer's memory", after.2 - before.2).tell();
    Ok(())
}

/// Opens that many and writes until every writer waits, and all that was sent has come.
async fn fill(size: usize, streams: u64, actor: &Portal) -> Outcome<JoinSet<()>> {
    let mut writers = JoinSet::new();
    let mut watches = Vec::new();
    for _ in 0..streams {
        let mut context = actor.context(stall()).handle().await?;
        watches.push(context.watch());
        let message = payload::bytes(size);
        writers.spawn(async move { while context.send(message.clone()).await.is_ok() {} });
    }
    loop {
        let held = held_by(actor).await?;
        let stalled = watches.iter().all(|watch| watch.stats().waited > 0);
        if stalled && held == held_by(actor).await? {
            return Ok(writers);
        }
    }
}

async fn held_by(actor: &Portal) -> Outcome<u64> {
    Ok(actor.call(held()).await?)
}
