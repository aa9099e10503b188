//! Trees T(depth, breadth) up, called, down: clean, and with every leaf in error.

use std::time::{Duration, Instant};

use hatchery::{Error, Fault, FaultKind, Nursery, Runtime, Stdio};
use tokio::task::JoinSet;

use crate::cli::Extent;
use crate::figures::Samples;
use crate::report::{Row, Unit};
use crate::{Outcome, tree};

/// Says one, or fails.
#[hatchery::function]
async fn leaf(fail: bool) -> Result<u64, Error> {
    if fail { Err(Error::msg(RAISED)) } else { Ok(1) }
}

/// Has that many levels below it come up and called; says how many leaves answered.
#[hatchery::function]
async fn branch(depth: u32, breadth: u32, fail: bool) -> Result<u64, Error> {
    Ok(hatchery::nursery(async |n| level(&n, depth, breadth, fail).await).await?)
}

async fn level(n: &Nursery, depth: u32, breadth: u32, fail: bool) -> hatchery::Result<u64> {
    let mut below = JoinSet::new();
    for actor in super::up(n, breadth).await? {
        below.spawn(async move {
            let answer = match depth {
                1 => actor.call(leaf(fail)).await?,
                _ => actor.call(branch(depth - 1, breadth, fail)).await?,
            };
            Ok::<u64, Error>(answer)
        });
    }
    let (mut leaves, mut raised) = (0, Vec::new());
    while let Some(done) = below.join_next().await {
        match done? {
            Ok(count) => leaves += count,
            // All below shall have failed before this one does.
            Err(error) if is_raised(error.fault()) => raised.push(error),
            // One that didn't start, say: goes up in place of those that were raised.
            Err(other) => return Err(other),
        }
    }
    match raised.pop() {
        None => Ok(leaves),
        Some(error) if raised.len() + 1 == breadth as usize => Err(error),
        Some(_) => Err(Error::msg(format!("of {breadth} not all failed"))),
    }
}

/// Whether nothing else is at the bottom of a fault than what leaves raised.
fn is_raised(fault: &Fault) -> bool {
    if fault.below.is_empty() {
        return fault.kind == FaultKind::Failed && fault.message == RAISED;
    }
    fault.below.iter().all(is_raised)
}

pub(super) fn measure(extent: Extent) -> Outcome {
    let shapes: &[(u32, u32, usize)] = extent.pick(
        &[(2, 3, 1), (3, 2, 1)],
        &[(2, 10, 5), (2, 32, 3), (2, 70, 3), (3, 16, 3), (5, 5, 3)],
    );
    for &(depth, breadth, turns) in shapes {
        let actors: u64 = (1..=depth).map(|level| u64::from(breadth).pow(level)).sum();
        for (fail, how) in
            [(false, "up, called, down"), (true, "up, called, every leaf fails, down")]
        {
            let mut all = Samples::default();
            let warm = usize::from(actors <= super::WARMED);
            for turn in 0..turns + warm {
                let span = tree::on_tokio(one(depth, breadth, fail))?;
                // The first warms it up, where that is cheap.
                if turn >= warm {
                    all.span(span);
                }
            }
            let what = format!("T({depth},{breadth}), {actors} actors: {how}");
            Row::new("crowd", what, Unit::Seconds).size(actors).alone(&all).tell();
        }
    }
    Ok(())
}

async fn one(depth: u32, breadth: u32, fail: bool) -> Outcome<Duration> {
    let runtime = Runtime::builder().stdio(Stdio::Null).signals(false).open()?;
    let began = Instant::now();
    let ended = runtime.nursery(async |n| level(&n, depth, breadth, fail).await).await;
    let all = began.elapsed();
    runtime.close().await;
    match ended {
        Ok(leaves) if !fail && leaves == u64::from(breadth).pow(depth) => Ok(all),
        Ok(leaves) => Err(format!("{leaves} leaves of T({depth},{breadth}) ended well").into()),
        Err(error) if fail && is_raised(error.fault()) => Ok(all),
        Err(error) => Err(error.into()),
    }
}

const RAISED: &str = "as it was told";
