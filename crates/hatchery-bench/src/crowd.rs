//! Many actors up, called, down; the cost of one as their number grows, flat and nested.

use std::time::{Duration, Instant};

use hatchery::{Nursery, Portal, Runtime, Stdio};
use tokio::task::JoinSet;

use crate::cli::Extent;
use crate::figures::{Samples, float};
use crate::report::{Goal, Row, Unit};
use crate::{Outcome, proc, tree};

#[hatchery::function]
async fn touch(x: u64) -> u64 {
    x
}

/// Starts `breadth` actors below this one, calls each, and takes them down again; in error, it has
/// one of them fail.
#[hatchery::function]
async fn branch(breadth: u32, fail: bool) -> Result<(), hatchery::Error> {
    hatchery::nursery(async |n| {
        let actors = up(&n, breadth).await?;
        call(&actors).await?;
        if fail { Err(hatchery::Error::msg("as it was told")) } else { Ok(()) }
    })
    .await?;
    Ok(())
}

pub(crate) fn measure(extent: Extent) -> Outcome {
    proc::raise_fd_limit();
    let sizes: &[(u32, usize)] =
        extent.pick(&[(10, 1), (100, 1)], &[(10, 9), (100, 9), (1000, 5), (5000, 3), (10_000, 3)]);
    for &(size, turns) in sizes {
        let mut crowd = Crowd::default();
        for _ in 0..turns {
            tree::on_tokio(crowd.turn(size))?;
        }
        crowd.tell(size);
    }
    let sizes: &[(u32, usize)] = extent.pick(&[(10, 1)], &[(100, 5), (1000, 3), (4900, 3)]);
    for &(size, turns) in sizes {
        let breadth = (1..).find(|b| b * b + b >= size).unwrap_or(1);
        let nested = breadth * breadth + breadth;
        for (fail, how) in
            [(false, "up, called, down"), (true, "up, called, every branch fails, down")]
        {
            let mut all = Samples::default();
            for _ in 0..turns {
                all.span(tree::on_tokio(two_levels(breadth, fail))?);
            }
            let what = format!("T(2,{breadth}), {nested} actors: {how}");
            Row::new("crowd", what, Unit::Seconds).size(nested.into()).alone(&all).tell();
        }
    }
    Ok(())
}

/// What several turns of one size cost.
#[derive(Default)]
struct Crowd {
    up: Samples,
    called: Samples,
    down: Samples,
    all: Samples,
    private: Samples,
    pss: Samples,
    fds: Samples,
}

impl Crowd {
    async fn turn(&mut self, size: u32) -> Outcome {
        let runtime = Runtime::builder().stdio(Stdio::Null).signals(false).open()?;
        let fds = proc::own_fds();
        let began = Instant::now();
        let (mut upped, mut called, mut looked) = (began, began, began);
        runtime
            .nursery(async |n| {
                let actors = up(&n, size).await?;
                upped = Instant::now();
                call(&actors).await?;
                called = Instant::now();
                self.fds.push(float(proc::own_fds().saturating_sub(fds)));
                for pid in actors.iter().take(50).filter_map(Portal::pid) {
                    proc::private(pid).into_iter().for_each(|bytes| self.private.push(bytes));
                    proc::pss(pid).into_iter().for_each(|bytes| self.pss.push(bytes));
                }
                looked = Instant::now();
                Ok(())
            })
            .await?;
        let down = looked.elapsed();
        runtime.close().await;
        self.up.span(upped - began);
        self.called.span(called - upped);
        self.down.span(down);
        self.all.span((called - began) + down);
        Ok(())
    }

    fn tell(&self, size: u32) {
        let row = |what: &str, unit, samples: &Samples, goals: &[(u32, f64)]| {
            let row = Row::new("crowd", format!("{size} actors: {what}"), unit);
            let row = row.size(size.into()).alone(samples);
            let goal = goals.iter().find(|(at, _)| *at == size);
            goal.map_or(row.clone(), |&(_, most)| row.goal(Goal::AtMost(most))).tell();
        };
        row("up", Unit::Seconds, &self.up, &[(10_000, 5.0)]);
        row("each called once", Unit::Seconds, &self.called, &[(10_000, 1.0)]);
        row("down", Unit::Seconds, &self.down, &[(1000, 0.2), (10_000, 2.0)]);
        row("up, called, down", Unit::Seconds, &self.all, &[(1000, 0.6)]);
        row("private memory of one", Unit::Bytes, &self.private, &[(10_000, 150.0 * 1024.0)]);
        row("proportional memory of one", Unit::Bytes, &self.pss, &[]);
        row("fds in the root", Unit::Count, &self.fds, &[(10_000, 10_100.0)]);
    }
}

async fn two_levels(breadth: u32, fail: bool) -> Outcome<Duration> {
    let runtime = Runtime::builder().stdio(Stdio::Null).signals(false).open()?;
    let began = Instant::now();
    let ended = runtime
        .nursery(async |n| {
            let actors = up(&n, breadth).await?;
            let mut branches = JoinSet::new();
            for actor in actors {
                branches.spawn(async move { actor.call(branch(breadth, fail)).await });
            }
            while let Some(done) = branches.join_next().await {
                // Those that are told to fail shall all have done so before the root ends.
                let done = done?;
                if !fail {
                    done?;
                }
            }
            Ok(())
        })
        .await;
    let all = began.elapsed();
    runtime.close().await;
    ended?;
    Ok(all)
}

/// Starts actors side by side.
pub(crate) async fn up(n: &Nursery, size: u32) -> hatchery::Result<Vec<Portal>> {
    let mut starts = JoinSet::new();
    for i in 0..size {
        let n = n.clone();
        starts.spawn(async move { n.start(&format!("a{i}")).await });
    }
    let mut actors = Vec::new();
    while let Some(started) = starts.join_next().await {
        actors.push(started??);
    }
    Ok(actors)
}

/// Calls each once, side by side.
pub(crate) async fn call(actors: &[Portal]) -> hatchery::Result<()> {
    let mut calls = JoinSet::new();
    for actor in actors {
        let actor = actor.clone();
        calls.spawn(async move { actor.call(touch(7)).await });
    }
    while let Some(called) = calls.join_next().await {
        called??;
    }
    Ok(())
}
