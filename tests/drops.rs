//! Scenarios 18, 25, 26 and 45, H23, H24: futures that are dropped at each of their await points,
//! and cancels that race with answers.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hatchery::{CallError, Config, Error, FaultKind, Portal, Runtime, nursery};
use hatchery_testkit::await_points::drop_at_each;
use hatchery_testkit::fault::children_of;
use hatchery_tests::{BACKENDS, ROOMY, each, for_each, here};

#[hatchery::function]
async fn add(a: u64, b: u64) -> u64 {
    a + b
}

#[hatchery::function]
async fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

/// How many calls of [`held`] began, and how many of them were dropped unfinished.
static BEGUN: AtomicU64 = AtomicU64::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);

struct Held;

impl Drop for Held {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, Ordering::SeqCst);
    }
}

#[hatchery::function]
async fn held() -> u64 {
    BEGUN.fetch_add(1, Ordering::SeqCst);
    let _held = Held;
    std::future::pending().await
}

#[hatchery::function]
async fn begun_and_dropped() -> (u64, u64) {
    (BEGUN.load(Ordering::SeqCst), DROPPED.load(Ordering::SeqCst))
}

/// Waits until all calls of [`held`] that began were dropped, and at least so many began. Ended by
/// that, or by the scenario's bound.
async fn all_dropped(worker: &Portal, least: u64) -> hatchery::Result<()> {
    loop {
        let (begun, dropped) = worker.call(begun_and_dropped()).await?;
        if begun == dropped && begun >= least {
            return Ok(());
        }
    }
}

/// Starts an actor below, has it answer, and is done.
#[hatchery::function]
async fn delegate(a: u64) -> Result<u64, Error> {
    Ok(nursery(async |n| Ok(n.start("below").await?.call(add(a, 1)).await?)).await?)
}

/// Waits until so many actors of this process are left. Ended by that, or by the scenario's bound.
async fn are_left(runtime: &Runtime, count: usize) {
    let is_actor = |task: &std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        // Those of a runtime and of the harness have none of these names.
        let name = name.trim();
        ["once", "worker", "below"].contains(&name)
            || name.strip_prefix('a').is_some_and(|number| number.parse::<u64>().is_ok())
    };
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().flatten().filter(is_actor);
    let processes = || runtime.forkserver_pid().map_or(0, |server| children_of(server).len());
    while threads().count() + processes() != count {
        // Whoever has gone for good sends nothing.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Answers after that many rounds of its runtime.
#[hatchery::function]
async fn answer_after(rounds: u64) -> u64 {
    for _ in 0..rounds {
        tokio::task::yield_now().await;
    }
    rounds
}

/// Scenario 18, C1: a start that is dropped at any of its await points leaves nothing, and the
/// nursery works on.
#[test]
fn a_start_that_is_dropped_at_any_await_point_leaves_nothing() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let number = AtomicU64::new(0);
            let mut points = 0;
            for _ in 0..10 {
                // A thread's handshake may be there before the first look at it.
                points += drop_at_each(
                    || n.actor(&format!("a{}", number.fetch_add(1, Ordering::Relaxed))).start(),
                    async |_| {},
                )
                .await;
            }
            assert!(points > 0, "a start waits for a handshake");
            // By their own drop, and not by the nursery's end; those that were up serve until then.
            are_left(&runtime, 10).await;
            Ok(n.start("after").await?.call(add(1, 1)).await?)
        });
        assert_eq!(done.await.unwrap(), 2);
        runtime.close().await;
    });
}

/// C1: a nursery that is dropped at any of its await points comes down in the background, with all
/// that is below; the next one doesn't notice.
#[test]
fn a_nursery_that_is_dropped_at_any_await_point_leaves_nothing() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let points = drop_at_each(
            || {
                runtime.nursery(async |n| {
                    let once = n.run("once", delegate(1));
                    let worker = n.start("worker").await?;
                    Ok(worker.call(add(1, 1)).await? + once.await?)
                })
            },
            async |_| {},
        );
        assert!(points.await > 2);
        // By their own drop, and not by the runtime's end.
        are_left(&runtime, 0).await;
        let sum = runtime.nursery(async |n| Ok(n.start("a").await?.call(add(1, 1)).await?));
        assert_eq!(sum.await.unwrap(), 2);
        runtime.close().await;
    });
}

/// Scenario 25, H23: a call that is dropped at any of its await points tears nothing: the actor
/// answers the next one. Small ones, and ones that don't fit into a socket at once.
#[test]
fn a_call_that_is_dropped_at_any_await_point_disturbs_nobody() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            // The larger one is more than a socket holds; the small one may be answered by a thread
            // before it was looked at twice.
            let mut all = 0;
            for size in [10, 600 << 10] {
                let points = drop_at_each(
                    || worker.call(echo(vec![7; size])).into_future(),
                    async |point| {
                        let number = u64::try_from(point).unwrap();
                        assert_eq!(worker.call(add(number, 1)).await.unwrap(), number + 1);
                    },
                );
                all += points.await;
            }
            assert!(all > 0, "a call waits for its answer");
            Ok(worker.call(add(1, 1)).await?)
        });
        assert_eq!(done.await.unwrap(), 2);
        runtime.close().await;
    });
}

/// Waits that are dropped lose nothing: whoever waits next hears the same.
#[test]
fn a_wait_that_is_dropped_at_any_await_point_loses_nothing() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            let points = drop_at_each(|| worker.settled(), async |_| worker.cancel());
            assert!(points.await > 0, "it was alive");
            worker.settled().await;
            Ok(())
        });
        done.await.unwrap();
        runtime.close().await;
    });
}

/// Scenarios 25 and 26: a call that is dropped, or whose deadline passes, is an error on this side
/// and dropped on the other, without a further word; the actor lives.
#[test]
fn a_dropped_or_late_call_is_dropped_on_the_other_side_too() {
    for_each(here!(), &BACKENDS, async |runtime| {
        // Threads share these with the ones before.
        BEGUN.store(0, Ordering::SeqCst);
        DROPPED.store(0, Ordering::SeqCst);
        let done = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            let late = worker.call(held()).within(Duration::from_millis(50)).await.unwrap_err();
            assert!(matches!(late, CallError::Deadline(_)), "{late:?}");
            assert_eq!(late.fault().kind, FaultKind::Deadline);
            let other = worker.clone();
            let call = tokio::spawn(async move { other.call(held()).await });
            while worker.call(begun_and_dropped()).await?.0 < 1 {}
            all_dropped_but_one(&worker).await?;
            call.abort();
            all_dropped(&worker, 1).await
        });
        done.await.unwrap();
        runtime.close().await;
    });
}

/// Waits until one call of [`held`] is left.
async fn all_dropped_but_one(worker: &Portal) -> hatchery::Result<()> {
    loop {
        let (begun, dropped) = worker.call(begun_and_dropped()).await?;
        if begun == dropped + 1 {
            return Ok(());
        }
    }
}

/// Scenario 45: an actor is cancelled while its answer is on the way: the caller gets the answer or
/// the cancellation, the actor goes, and nobody is forced.
#[test]
fn a_cancel_that_races_with_an_answer_has_one_outcome() {
    let (hang, config) = (Duration::from_secs(120), Config::with_budget(ROOMY));
    each(hang, here!(), &BACKENDS, &config, async |runtime| {
        let answered = AtomicU64::new(0);
        for round in 0..120 {
            let done = runtime.nursery(async |n| {
                let worker = Arc::new(n.start("worker").await?);
                let other = worker.clone();
                let cancel = tokio::spawn(async move {
                    for _ in 0..round {
                        tokio::task::yield_now().await;
                    }
                    other.cancel();
                });
                match worker.call(answer_after(round % 7)).await {
                    Ok(answer) => {
                        assert_eq!(answer, round % 7);
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(CallError::Cancelled(_)) => {}
                    Err(other) => panic!("{other:?}"),
                }
                cancel.await?;
                worker.settled().await;
                Ok(())
            });
            done.await.unwrap();
        }
        eprintln!("{answered:?} of 120 were answered");
        runtime.close().await;
    });
}

/// Scenario 45: the same for a whole nursery: its value or its cancellation.
#[test]
fn a_cancel_that_races_with_a_nurserys_return_has_one_outcome() {
    let (hang, config) = (Duration::from_secs(120), Config::with_budget(ROOMY));
    each(hang, here!(), &BACKENDS, &config, async |runtime| {
        let mut returned = 0;
        for round in 0..120 {
            let done = runtime.nursery(async |n| {
                let once = n.run("once", answer_after(round % 7));
                let other = n.clone();
                tokio::spawn(async move {
                    for _ in 0..round * 4 {
                        tokio::task::yield_now().await;
                    }
                    other.cancel();
                });
                Ok(once.await?)
            });
            match done.await {
                Ok(answer) => {
                    assert_eq!(answer, round % 7);
                    returned += 1;
                }
                Err(error) => {
                    assert!(error.is_cancelled(), "{}", error.render());
                    assert!(error.report().forced().is_empty(), "{}", error.report());
                }
            }
        }
        eprintln!("{returned} of 120 returned");
        runtime.close().await;
    });
}
