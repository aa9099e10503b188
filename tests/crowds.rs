//! Scenarios 3, 4, 12, 16 and 24 at full size: a thousand actors, ten thousand calls.
//!
//! The bounds only catch hangs; what it costs is measured by the benchmarks.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::try_join_all;
use hatchery::{Backend, Config, Error, Nursery, OneShot, Runtime, Stdio, nursery};
use hatchery_testkit::isolate;
use hatchery_tests::{BACKENDS, BUDGET, PROCESSES, each, here, many_fds, within};
use tokio::sync::Notify;

#[hatchery::function]
async fn add(a: u64, b: u64) -> u64 {
    a + b
}

/// Every path of the tree below this actor, its own first.
#[hatchery::function]
async fn paths(below: u32, breadth: u32) -> Result<Vec<String>, Error> {
    let mut all = vec![hatchery::path().to_string()];
    if below > 0 {
        all.extend(nursery(async |n| paths_of(&n, below, breadth).await).await?);
    }
    Ok(all)
}

async fn paths_of(n: &Nursery, levels: u32, breadth: u32) -> hatchery::Result<Vec<String>> {
    let runs: Vec<_> =
        (0..breadth).map(|i| n.run(&format!("a{i}"), paths(levels - 1, breadth))).collect();
    Ok(try_join_all(runs.into_iter().map(OneShot::into_future)).await?.concat())
}

/// Answers when that many have asked.
#[hatchery::function]
async fn together(number: u64, count: u64) -> u64 {
    static HERE: AtomicU64 = AtomicU64::new(0);
    static ALL: Notify = Notify::const_new();
    let all = ALL.notified();
    if HERE.fetch_add(1, Ordering::SeqCst) + 1 == count {
        ALL.notify_waiters();
    } else {
        all.await;
    }
    number
}

#[hatchery::function]
async fn memory() -> u64 {
    resident()
}

/// Bytes of memory of this process that no file stands for.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Starts that many actors, as many at once as the runtime lets, and calls each once.
async fn crowd(runtime: &Runtime, count: u64) {
    let done = runtime.nursery(async |n| {
        let called = (0..count).map(async |i| {
            let actor = n.start(&format!("a{i}")).await?;
            Ok::<_, Error>(actor.call(add(i, 1)).await?)
        });
        try_join_all(called).await
    });
    let expected: Vec<u64> = (1..=count).collect();
    assert_eq!(done.await.unwrap(), expected);
}

/// Scenario 3, C10: a thousand actors in one nursery are called once and go.
#[test]
fn a_thousand_actors_are_called_and_go() {
    each(LONG, here!(), &BACKENDS, &roomy(), async |runtime| {
        crowd(&runtime, 1_000).await;
        runtime.close().await;
    });
}

/// Scenario 4: every actor of T(4,3) answers with its path; they are all there, once.
#[test]
fn every_actor_of_four_levels_by_three_answers_once() {
    each(LONG, here!(), &BACKENDS, &roomy(), async |runtime| {
        let mut all = runtime.nursery(async |n| paths_of(&n, 4, 3).await).await.unwrap();
        assert_eq!(all.len(), 3 + 9 + 27 + 81);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 3 + 9 + 27 + 81);
        assert!(all.contains(&"root/a0/a1/a2/a0".to_owned()), "{all:?}");
        runtime.close().await;
    });
}

/// Scenario 12, H17: sixteen threads allocate and log without pause while a thousand actors start.
#[test]
fn a_thousand_starts_work_while_threads_allocate_and_log() {
    each(LONG, here!(), &PROCESSES, &roomy(), async |runtime| {
        let stop = Arc::new(AtomicBool::new(false));
        let busy: Vec<_> = (0..16)
            .map(|i| {
                let stop = stop.clone();
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        // Under the allocator's locks, and under the output's with nothing to say.
                        let text = "x".repeat(1 << (i % 12));
                        print!("{}", &text[..0]);
                    }
                })
            })
            .collect();
        crowd(&runtime, 1_000).await;
        stop.store(true, Ordering::Relaxed);
        for thread in busy {
            thread.join().unwrap();
        }
        runtime.close().await;
    });
}

/// Scenario 16, C10: open and close, a thousand times; counts stay exact and memory flat.
#[test]
fn a_thousand_runtimes_one_after_the_other_leave_nothing() {
    isolate::run_test(here!(), LONG * 3, || {
        for backend in BACKENDS {
            within(LONG, backend.clone(), Config::default(), async |runtime| {
                runtime.close().await;
                a_thousand_times(&backend).await;
            });
        }
    });
}

async fn a_thousand_times(backend: &Backend) {
    let mut before = 0;
    for round in 0..1_000 {
        if round == 100 {
            before = resident();
        }
        let runtime = Runtime::builder().backend(backend.clone()).signals(false);
        let runtime = runtime.stdio(Stdio::Null).open().unwrap();
        let sum = runtime.nursery(async |n| Ok(n.start("a").await?.call(add(1, 1)).await?));
        assert_eq!(sum.await.unwrap(), 2);
        runtime.close().await;
    }
    let grown = resident().saturating_sub(before);
    // 1 KiB a round would be a leak; allocators keep some pages now and then.
    assert!(grown < 900 << 10, "{grown} bytes more after 900 rounds by {}", backend.name());
}

/// Scenario 24: ten thousand calls are in flight at once to one actor, all are answered, each with
/// its own reply, and neither side holds more memory than they need.
#[test]
fn ten_thousand_calls_in_flight_are_all_answered() {
    each(LONG, here!(), &BACKENDS, &roomy(), async |runtime| {
        const COUNT: u64 = 10_000;
        let done = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            let before = (resident(), worker.call(memory()).await?);
            let calls = (0..COUNT).map(|i| worker.call(together(i, COUNT)).into_future());
            let replies = try_join_all(calls).await?;
            assert!(replies.into_iter().eq(0..COUNT));
            let after = (resident(), worker.call(memory()).await?);
            // 4 KiB a call on either side; a thread's are the same memory.
            for (before, after) in [(before.0, after.0), (before.1, after.1)] {
                let grown = after.saturating_sub(before);
                assert!(grown < COUNT * 4096 * 2, "{grown} bytes more");
            }
            Ok(())
        });
        done.await.unwrap();
        runtime.close().await;
    });
}

/// Starts as many actors at once as the shape's first level has, each of which does the same for the rest
/// of it, and stays when all are up, and says how many.
#[hatchery::function]
async fn settle(shape: Vec<u64>) -> Result<u64, Error> {
    let (tell, told) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let held = nursery(async |n| {
            let all = settle_below(&n, &shape).await?;
            // Who asked has gone if the tree comes down meanwhile.
            tell.send(all).map_err(|_| Error::msg("nobody waits"))?;
            std::future::pending::<hatchery::Result<()>>().await
        });
        drop(held.await);
    });
    told.await.map_err(|_| Error::msg("it came down while it grew"))
}

async fn settle_below(n: &Nursery, shape: &[u64]) -> hatchery::Result<u64> {
    let Some((breadth, rest)) = shape.split_first() else { return Ok(0) };
    let all = (0..*breadth).map(async |i| {
        let actor = n.start(&format!("a{i}")).await?;
        let below = if rest.is_empty() { 0 } else { actor.call(settle(rest.to_vec())).await? };
        Ok::<_, Error>(1 + below)
    });
    Ok(try_join_all(all).await?.into_iter().sum())
}

/// Grows a tree of two levels at once on one processor, which a thread spins on beside it.
fn crowd_of_nurseries(backend: &Backend, [above, below]: [u64; 2], handshake: Duration) {
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    let this = nix::unistd::Pid::from_raw(0);
    let own = sched_getaffinity(this).unwrap();
    let first = (0..CpuSet::count()).find(|cpu| own.is_set(*cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    // Inherited by all that comes of this thread.
    sched_setaffinity(this, &one).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let spinning = std::thread::spawn({
        let stop = stop.clone();
        move || while !stop.load(Ordering::Relaxed) {}
    });
    let config = Config { handshake, ..Config::with_budget(LONG) };
    within(LONG * 4, backend.clone(), config, async |runtime| {
        let begun = std::time::Instant::now();
        let all = runtime.nursery(async |n| {
            let all = settle_below(&n, &[above, below]).await?;
            println!("{all} actors up after {:?}", begun.elapsed());
            Ok(all)
        });
        let all = all.await.unwrap_or_else(|error| panic!("{}", error.render()));
        assert_eq!(all, above * (below + 1));
        runtime.close().await;
    });
    stop.store(true, Ordering::Relaxed);
    spinning.join().unwrap();
}

/// C16: starts that the tree itself holds up are no silence. All of a crowd of nurseries start
/// actors at once, where each birth has to wait for its turn, with a bound that a fifth of them would
/// need if they were all born at once.
#[test]
fn a_crowd_of_nurseries_starves_none_of_its_own() {
    isolate::run_test(here!(), LONG, || {
        many_fds();
        crowd_of_nurseries(&Backend::Forkserver, [30, 30], Duration::from_secs(1));
    });
}

/// The same at full size, by hand: ten thousand actors, with the default bound.
#[test]
#[ignore = "takes the machine for a minute or more"]
fn ten_thousand_actors_of_a_hundred_nurseries_come_up() {
    isolate::run_test(here!(), LONG * 4, || {
        many_fds();
        crowd_of_nurseries(&Backend::Forkserver, [100, 100], Config::default().handshake);
    });
}

/// A thousand nurseries that start at once, by hand, with the default bound.
#[test]
#[ignore = "takes the machine for a minute or more"]
fn a_thousand_nurseries_that_start_at_once_come_up() {
    isolate::run_test(here!(), LONG * 4, || {
        many_fds();
        crowd_of_nurseries(&Backend::Forkserver, [1_000, 4], Config::default().handshake);
    });
}

/// A thousand actors on two cores that others use too may need a while to go.
fn roomy() -> Config {
    Config { handshake: LONG, ..Config::with_budget(BUDGET * 10) }
}

const LONG: Duration = Duration::from_secs(150);
