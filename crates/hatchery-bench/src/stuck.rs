//! Taking actors down when some of them don't answer any more.

use std::sync::mpsc;
use std::time::Instant;

use hatchery::{Runtime, Stdio};
use tokio::task::JoinSet;

use crate::Outcome;
use crate::cli::Extent;
use crate::figures::Samples;
use crate::report::{Goal, Row, Unit};
use crate::tree;

/// Says that it has begun, then blocks its actor's only thread for ever.
#[hatchery::context]
async fn block(
    callee: hatchery::Callee<hatchery::Nothing, hatchery::Nothing>,
) -> Result<(), hatchery::Error> {
    let _stream = callee.started(())?;
    // The greeting is on its way before the thread blocks.
    tokio::task::yield_now().await;
    let (_held, never) = mpsc::channel::<()>();
    Ok(never.recv()?)
}

pub(crate) fn measure(extent: Extent) -> Outcome {
    let actors = extent.pick(5, 50);
    for stuck in extent.pick(&[0, 1][..], &[0, 1, 25]) {
        let mut samples = Samples::default();
        for _ in 0..extent.pick(1, 5) {
            samples.push(tree::on_tokio(one(actors, *stuck))?);
        }
        Row::new("stuck", format!("down: {actors} actors, {stuck} of them blocked"), Unit::Seconds)
            .size(*stuck as u64)
            .alone(&samples)
            .goal(Goal::AtMost(if *stuck == 0 { 0.2 } else { 3.0 }))
            .tell();
    }
    Ok(())
}

/// Seconds from the end of the body to the return of the nursery.
async fn one(actors: usize, stuck: usize) -> Outcome<f64> {
    let runtime = Runtime::builder().stdio(Stdio::Null).signals(false).open()?;
    let mut began = Instant::now();
    let ended = runtime
        .nursery(async |n| {
            let mut blocked = JoinSet::new();
            for i in 0..actors {
                let actor = n.start(&format!("a{i}")).await?;
                if i < stuck {
                    let context = actor.context(block()).handle().await?;
                    blocked.spawn(async move { context.watch().over().await });
                }
            }
            began = Instant::now();
            Ok(())
        })
        .await;
    let down = began.elapsed();
    runtime.close().await;
    // That some had to be killed is no error of a body that ended well, or is told as one.
    if stuck == 0 {
        ended?;
    }
    Ok(down.as_secs_f64())
}
