//! Calls that are cut short: how soon the other side knows (scenarios 21 and 25).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hatchery::{CallError, Portal};
use hatchery_testkit::fault;
use tokio::sync::oneshot;

use crate::cli::Extent;
use crate::figures::Samples;
use crate::report::{Goal, Row, Unit};
use crate::way::Way;
use crate::{Outcome, tree};

/// How many calls are being served.
static SERVED: AtomicU64 = AtomicU64::new(0);

struct Served;

impl Drop for Served {
    fn drop(&mut self) {
        SERVED.fetch_sub(1, Ordering::Relaxed);
    }
}

#[hatchery::function]
async fn stay() {
    SERVED.fetch_add(1, Ordering::Relaxed);
    let _until_it_is_dropped = Served;
    std::future::pending().await
}

#[hatchery::function]
async fn served() -> u64 {
    SERVED.load(Ordering::Relaxed)
}

pub(crate) fn measure(extent: Extent) -> Outcome {
    for way in Way::all() {
        way.stand_before()?;
        tree::on_tokio(in_turn(extent, way))?;
    }
    Ok(())
}

async fn in_turn(extent: Extent, way: Way) -> Outcome {
    let (mut killed, mut dropped) = (Samples::default(), Samples::default());
    for turn in 0..=extent.pick(5, 200) {
        let (kill, drop) = (one(way, true).await?, one(way, false).await?);
        // The first warms both up.
        if turn > 0 {
            killed.span(kill);
            dropped.span(drop);
        }
    }
    let row = |what: &str, samples: &Samples| {
        let what = format!("{what}, {}", way.name());
        let row = Row::new("errors", what, Unit::Seconds).alone(samples);
        row.goal(Goal::P99AtMost(50e-3)).tell();
    };
    row("SIGKILL in a call, to the caller's error", &killed);
    row("a call dropped, to its destructor on the other side", &dropped);
    Ok(())
}

/// One actor that is killed in a call, or whose call is dropped. In a task of its own: with the
/// actor goes the nursery's body.
async fn one(way: Way, kill: bool) -> Outcome<Duration> {
    way.stand_before()?;
    let runtime = way.runtime().open()?;
    let (tell, told) = oneshot::channel();
    let _killed = runtime
        .nursery(async |n| {
            let actor = n.start("a").await?;
            actor.call(tree::stand(way.place())).await?;
            way.place().here().map_err(|errno| tree::told(errno.into()))?;
            let cut = tokio::spawn(async move {
                let took = cut(&actor, kill).await.map_err(|error| error.to_string());
                // Who asks waits until it is told.
                drop(tell.send(took));
            });
            cut.await?;
            Ok(())
        })
        .await;
    let took = told.await?;
    runtime.close().await;
    Ok(took?)
}

async fn cut(actor: &Portal, kill: bool) -> hatchery::Result<Duration> {
    let pid = actor.pid().ok_or_else(|| hatchery::Error::msg("an actor without a process"))?;
    let mut call = actor.call(stay()).into_future();
    tokio::select! {
        _ended = &mut call => return Err(hatchery::Error::msg("it should have stayed")),
        served = until_served(actor) => served?,
    }
    let began = Instant::now();
    if kill {
        fault::sigkill(pid)?;
        return match call.await {
            Err(CallError::Died(_)) => Ok(began.elapsed()),
            other => Err(hatchery::Error::msg(format!("{other:?}"))),
        };
    }
    drop(call);
    // Asking costs a round trip, which is part of what is told.
    while actor.call(served()).await? > 0 {}
    Ok(began.elapsed())
}

async fn until_served(actor: &Portal) -> hatchery::Result<()> {
    while actor.call(served()).await? == 0 {}
    Ok(())
}
