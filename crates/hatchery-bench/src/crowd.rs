//! Many actors up, called, down; the cost of one as their number grows, flat and nested.

use std::time::{Duration, Instant};

use hatchery::{Config, Nursery, Portal, Runtime, Stdio};
use tokio::task::JoinSet;

use crate::cli::Extent;
use crate::figures::{Samples, Turns, float};
use crate::floors::Forks;
use crate::pin::Place;
use crate::report::{Goal, Row, Unit};
use crate::{Outcome, proc, tree};

mod nested;

#[hatchery::function]
async fn touch(x: u64) -> u64 {
    x
}

pub(crate) fn measure(extent: Extent) -> Outcome {
    proc::raise_fd_limit();
    let sizes: &[(u32, usize)] =
        extent.pick(&[(10, 1), (100, 1)], &[(10, 9), (100, 9), (1000, 5), (5000, 3), (10_000, 3)]);
    for pages in [Pages::Small, Pages::Huge] {
        flat(sizes, pages)?;
    }
    nested::measure(extent)
}

/// What the forkserver's code lies on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pages {
    Small,
    Huge,
}

/// All actors in one nursery.
fn flat(sizes: &[(u32, usize)], pages: Pages) -> Outcome {
    let mut forks = Forks::start(Place::Two)?;
    for &(size, turns) in sizes {
        let mut crowd = Crowd::default();
        let warm = usize::from(u64::from(size) <= WARMED);
        for turn in 0..turns + warm {
            let floor = floor(&mut forks, size)?;
            let lap = tree::on_tokio(lap(size, pages))?;
            // The first warms both up, where that is cheap.
            if turn >= warm {
                crowd.turn(floor, &lap);
            }
        }
        crowd.tell(size, pages, &forks);
    }
    forks.end()
}

/// What so many forks take, one after the other: with a runtime and a message, and bare. Of more
/// than a thousand, a thousand are measured.
fn floor(forks: &mut Forks, size: u32) -> Outcome<[Samples; 2]> {
    let count = size.min(1000);
    let all = f64::from(size) / f64::from(count);
    let all = |samples: &Samples| Samples::one(samples.sum() * all);
    Ok([all(&forks.with_tokio(count as usize)?), all(&forks.bare(count as usize)?)])
}

/// One crowd, once.
pub(crate) struct Lap {
    pub(crate) up: Duration,
    pub(crate) called: Duration,
    pub(crate) down: Duration,
    private: Samples,
    pss: Samples,
    fds: Samples,
}

pub(crate) async fn lap(size: u32, pages: Pages) -> Outcome<Lap> {
    // Who is slow shall be told as slow, and not be killed for it.
    let config = Config::with_budget(Duration::from_secs(20));
    let runtime = Runtime::builder().config(config).stdio(Stdio::Null).signals(false);
    let runtime = runtime.huge_pages(pages == Pages::Huge).open()?;
    let before = proc::own_fds();
    let began = Instant::now();
    let (mut upped, mut called, mut looked) = (began, began, began);
    let [mut private, mut pss, mut fds] = <[Samples; 3]>::default();
    runtime
        .nursery(async |n| {
            let actors = up(&n, size).await?;
            upped = Instant::now();
            call(&actors).await?;
            called = Instant::now();
            let more = proc::own_fds().zip(before).map(|(now, before)| now.saturating_sub(before));
            more.into_iter().for_each(|more| fds.push(float(more)));
            for pid in actors.iter().take(50).filter_map(Portal::pid) {
                proc::private(pid).into_iter().for_each(|bytes| private.push(bytes));
                proc::pss(pid).into_iter().for_each(|bytes| pss.push(bytes));
            }
            looked = Instant::now();
            Ok(())
        })
        .await?;
    let down = looked.elapsed();
    runtime.close().await;
    Ok(Lap { up: upped - began, called: called - upped, down, private, pss, fds })
}

/// What several turns of one size cost.
#[derive(Default)]
struct Crowd {
    up: Turns,
    called: Samples,
    down: Turns,
    all: Samples,
    private: Samples,
    pss: Samples,
    fds: Samples,
}

impl Crowd {
    fn turn(&mut self, [with_tokio, bare]: [Samples; 2], lap: &Lap) {
        self.up.turn(&with_tokio, &Samples::of(lap.up));
        self.called.span(lap.called);
        self.down.turn(&bare, &Samples::of(lap.down));
        self.all.span(lap.up + lap.called + lap.down);
        self.private.append(&lap.private);
        self.pss.append(&lap.pss);
        self.fds.append(&lap.fds);
    }

    fn tell(&self, size: u32, pages: Pages, forks: &Forks) {
        let pages = if pages == Pages::Huge { ", huge pages" } else { "" };
        let row = |what: &str, unit, goals: &[(u32, f64)]| {
            let what = format!("{size} actors{pages}: {what}");
            let row = Row::new("crowd", what, unit).size(size.into());
            let goal = goals.iter().find(|(at, _)| *at == size);
            goal.map_or(row.clone(), |&(_, most)| row.goal(Goal::AtMost(most)))
        };
        let up = row("up", Unit::Seconds, &[(10_000, 5.0)]).note(forks.size());
        up.beside("as many × fork + tokio + one message", &self.up).tell();
        let called = row("each called once", Unit::Seconds, &[(10_000, 1.0)]);
        called.alone(&self.called).tell();
        let down = row("down", Unit::Seconds, &[(1000, 0.2), (10_000, 2.0)]);
        down.beside("as many × fork + _exit + waitid", &self.down).tell();
        row("up, called, down", Unit::Seconds, &[(1000, 0.6)]).alone(&self.all).tell();
        let private = row("private memory of one", Unit::Bytes, &[(10_000, 150.0 * 1024.0)]);
        private.alone(&self.private).tell();
        row("proportional memory of one", Unit::Bytes, &[]).alone(&self.pss).tell();
        row("fds in the root", Unit::Count, &[(10_000, 10_100.0)]).alone(&self.fds).tell();
    }
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

/// So many actors at most have a turn that only warms up: more take seconds.
const WARMED: u64 = 1100;
