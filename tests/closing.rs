//! Runtimes that are closed while others use them: handles, free functions, drains (C1, C2, C10, C19).
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::future::{IntoFuture as _, pending, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use hatchery::{
    Backend, Call, CallError, Config, FaultKind, Runtime, ScopeError, StartCause, Stdio, Why,
    nursery,
};
use hatchery_spawn::OwnThread;
use hatchery_testkit::isolate::{self, End};
use hatchery_tests::{BACKENDS, HANG, ROOMY, came_down, for_each, here};
use tokio::sync::{Notify, oneshot};

#[hatchery::function]
async fn square(x: u64) -> u64 {
    x * x
}

/// Answers when the time has come.
#[hatchery::function]
async fn square_in(x: u64, millis: u64) -> u64 {
    tokio::time::sleep(Duration::from_millis(millis)).await;
    x * x
}

#[hatchery::function]
async fn square_below(x: u64) -> Result<u64, hatchery::Error> {
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok(nursery(async |n| Ok(n.start("below").await?.call(square(x)).await?)).await?)
}

fn why(error: &ScopeError) -> Why {
    let FaultKind::Cancelled(reason) = &error.fault().kind else { panic!("{}", error.render()) };
    reason.why.clone()
}

/// C19, C10: a close on one clone closes for all: nurseries that were open end, new ones are refused, a
/// second close waits for the first.
#[test]
fn a_close_on_one_clone_closes_for_all() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let (clone, third) = (runtime.clone(), runtime.clone());
        let (up, is_up) = oneshot::channel();
        let held = tokio::spawn(async move {
            let down: Result<(), _> = clone
                .nursery(async |n| {
                    n.start("child").await?;
                    up.send(()).unwrap();
                    pending().await
                })
                .await;
            let late: Result<(), _> = clone.nursery(async |_| Ok(())).await;
            (why(&came_down(down)), why(&came_down(late)))
        });
        is_up.await.unwrap();
        tokio::join!(runtime.close(), third.close());
        assert_eq!(held.await.unwrap(), (Why::Dropped, Why::Dropped));
    });
}

/// C19: what is asked of a clone after the close is a typed error.
#[test]
fn a_clone_of_a_closed_runtime_says_so() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let clone = runtime.clone();
        runtime.close().await;
        let late: Result<(), _> = clone.nursery(async |_| Ok(())).await;
        let error = came_down(late);
        assert_eq!(why(&error), Why::Closed);
        assert!(error.to_string().contains("its runtime is closed"), "{error}");
        assert_eq!(clone.forkserver_pid(), None);
        clone.close().await;
    });
}

/// C1, C10: the last clone that is dropped closes, and not one before.
#[test]
fn the_last_clone_closes() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let clone = runtime.clone();
        drop(runtime);
        let worked = clone.nursery(async |n| Ok(n.start("a").await?.call(square(4)).await?));
        assert_eq!(worked.await.unwrap(), 16);
        drop(clone);
    });
}

/// C19, C2: one thread opens, uses and drops a runtime for ever, another one calls the free function. The
/// latter always gets its value: it depends on no runtime of others.
#[test]
fn a_free_nursery_depends_on_no_runtime_of_others() {
    isolate::run_test(here!(), HANG * 3, || {
        for backend in BACKENDS {
            let stop = Arc::new(AtomicBool::new(false));
            let (stopped, with) = (stop.clone(), backend.clone());
            let opens = OwnThread::spawn("opens", move || {
                while !stopped.load(Ordering::SeqCst) {
                    isolate::block_on(async {
                        let config = Config::with_budget(ROOMY);
                        let runtime = Runtime::builder().backend(with.clone()).config(config);
                        let runtime = runtime.stdio(Stdio::Null).signals(false).open().unwrap();
                        let used = runtime
                            .nursery(async |n| Ok(n.start("used").await?.call(square(2)).await?));
                        assert_eq!(used.await.unwrap(), 4);
                        drop(runtime);
                    });
                }
            });
            isolate::block_on(async {
                for round in 0..ROUNDS {
                    let asked = Instant::now();
                    let free = nursery(async |n| {
                        let child = n.actor("free").backend(backend.clone()).stdout(Stdio::Null);
                        Ok(child.stderr(Stdio::Null).start().await?.call(square(3)).await?)
                    });
                    let value = free.await.unwrap_or_else(|error| {
                        panic!("{} round {round}: {}", backend.name(), error.render())
                    });
                    assert_eq!(value, 9);
                    assert!(asked.elapsed() < ROOMY, "{}", backend.name());
                }
            });
            stop.store(true, Ordering::SeqCst);
            opens.unwrap().join();
        }
    });
}

/// C19: a free nursery that is open when its runtime is closed goes on, and the last one to leave closes.
#[test]
fn a_free_nursery_outlives_the_close_of_the_runtime_it_found() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let (up, is_up) = oneshot::channel();
        let (go, gone) = oneshot::channel::<()>();
        let free = tokio::spawn(nursery(async |n| {
            let child = n.start("free").await?;
            up.send(()).unwrap();
            gone.await.unwrap();
            // It may go on as it likes.
            let next = n.start("next").await?;
            let below = nursery(async |n| Ok(n.run("below", square(2)).await?)).await?;
            Ok(child.call(square(3)).await? + next.call(square(4)).await? + below)
        }));
        is_up.await.unwrap();
        runtime.close().await;
        go.send(()).unwrap();
        // With its end all is closed: what is left is counted.
        assert_eq!(free.await.unwrap().unwrap(), 29);
    });
}

/// C19: what is under way is finished, what is new is refused, and then all is down.
#[test]
fn a_drain_finishes_what_is_under_way_and_refuses_what_is_new() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let (draining, drained) = (runtime.clone(), oneshot::channel());
        let (tell, told) = drained;
        let served = runtime.nursery(async |n| {
            let (one, two) = (n.start("one").await?, n.start("two").await?);
            let (slow, below) = (one.call(square_in(3, 200)), two.call(square_below(4)));
            let (slow, below, ()) = tokio::join!(slow, below, async {
                // Both have been sent by now: they are polled first.
                tokio::spawn(async move { tell.send(draining.drain(ROOMY).await) });
                let refused = loop {
                    match one.call(square(1)).await {
                        Ok(_) => tokio::task::yield_now().await,
                        Err(error) => break error,
                    }
                };
                let CallError::Cancelled(fault) = refused else { panic!("{refused:?}") };
                let reason = matches!(&fault.kind, FaultKind::Cancelled(reason) if reason.why == Why::Draining);
                assert!(reason, "{}", fault.render());
                let late = n.start("late").await.unwrap_err();
                let closing = matches!(late.cause, StartCause::Closing(ref reason) if reason.why == Why::Draining);
                assert!(closing, "{late:?}");
                let free: Result<(), _> = nursery(async |_| Ok(())).await;
                assert_eq!(why(&came_down(free)), Why::Draining);
            });
            let sum = slow? + below?;
            assert_eq!(hatchery::cancelled().await.why, Why::Draining);
            Ok(sum)
        });
        assert_eq!(served.await.unwrap(), 25);
        drop(runtime);
        assert_eq!(told.await.unwrap().cut, 0);
    });
}

/// C19: of several runtimes each tells its own bodies that it drains, and what a body opens, asks and cancels
/// by the free functions is of its runtime, whichever is the process's own.
#[test]
fn a_body_belongs_to_the_runtime_that_it_was_opened_in() {
    for_each(here!(), &BACKENDS, async |process_s_own| {
        let other = Runtime::builder().stdio(Stdio::Null).signals(false);
        let other = other.config(Config::with_budget(ROOMY)).open().unwrap();
        let clone = other.clone();
        let (up, is_up) = oneshot::channel();
        let served = tokio::spawn(async move {
            let served = clone.nursery(async |_| {
                let below = nursery(async |n| Ok(n.start("below").await?.call(square(3)).await?));
                assert_eq!(below.await?, 9);
                up.send(()).unwrap();
                let why = hatchery::cancelled().await.why;
                // Refused by its own, where the process's own would let it in.
                let late: Result<(), _> = nursery(async |_| Ok(())).await;
                Ok((why, self::why(&came_down(late))))
            });
            served.await
        });
        is_up.await.unwrap();
        assert_eq!(other.drain(ROOMY).await.cut, 0);
        assert_eq!(served.await.unwrap().unwrap(), (Why::Draining, Why::Draining));

        let other = Runtime::builder().stdio(Stdio::Null).signals(false).open().unwrap();
        let kept = process_s_own.nursery(async |n| {
            let child = n.start("child").await?;
            let down = other.nursery(async |_| {
                hatchery::cancel_self();
                pending::<hatchery::Result<()>>().await
            });
            drop(came_down(down.await));
            // Behind the other's body this one is where it was.
            let below = nursery(async |n| Ok(n.run("once", square(2)).await?)).await?;
            Ok(child.call(square(3)).await? + below)
        });
        assert_eq!(kept.await.unwrap(), 13);
        other.close().await;
        process_s_own.close().await;
    });
}

/// C2: a drain doesn't wait beyond its time, and counts what it cut off.
#[test]
fn a_drain_cuts_off_what_takes_longer() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let clone = runtime.clone();
        let (up, is_up) = oneshot::channel();
        let held = tokio::spawn(async move {
            let down: Result<u64, _> = clone
                .nursery(async |n| {
                    let child = n.start("child").await?;
                    let call = child.call(square_in(3, 3_600_000)).into_future();
                    // It has begun when it was polled first.
                    let (answer, ()) = tokio::join!(call, async { up.send(()).unwrap() });
                    Ok(answer?)
                })
                .await;
            came_down(down)
        });
        is_up.await.unwrap();
        let drained = runtime.drain(Duration::from_millis(50)).await;
        assert!((1..=2).contains(&drained.cut), "{drained:?}");
        held.await.unwrap();
    });
}

/// C19: a one-shot actor is under way until its function has ended.
#[test]
fn a_drain_waits_for_one_shot_actors() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let clone = runtime.clone();
        let (up, is_up) = oneshot::channel();
        let held = tokio::spawn(async move {
            let done = clone.nursery(async |n| {
                let once = n.run("once", square_in(5, 150));
                up.send(()).unwrap();
                Ok(once.await?)
            });
            done.await.unwrap()
        });
        is_up.await.unwrap();
        assert_eq!(runtime.drain(ROOMY).await.cut, 0);
        assert_eq!(held.await.unwrap(), 25);
    });
}

static SECOND_GOES: Notify = Notify::const_new();

/// Goes when the other one has been asked to.
#[hatchery::function]
async fn first() {
    hatchery::shield(async {
        hatchery::cancelled().await;
        SECOND_GOES.notified().await;
        // Too late, it would have been given up on.
        assert!(hatchery::abandoned().is_empty());
        isolate::say("met").unwrap();
    })
    .await;
}

#[hatchery::function]
async fn second() {
    hatchery::shield(async {
        hatchery::cancelled().await;
        SECOND_GOES.notify_one();
    })
    .await;
}

/// C2, C19: at the end of the process all runtimes come down side by side, and not one after the other.
#[test]
fn at_the_end_of_a_process_all_runtimes_come_down_side_by_side() {
    let scenario = || {
        let up = |call: Call<()>| {
            let config = Config::with_budget(ROOMY);
            let runtime = Runtime::builder().backend(Backend::Thread).config(config);
            let runtime = runtime.stdio(Stdio::Null).open().unwrap();
            let (tell, told) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                isolate::block_on(async {
                    let down = runtime.nursery(async |n| {
                        let child = n.start("child").await?;
                        let mut call = Box::pin(child.call(call).into_future());
                        let begun = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_pending()));
                        assert!(begun.await);
                        // What is asked later is answered later: the first has begun by then.
                        child.call(square(1)).await?;
                        tell.send(()).unwrap();
                        Ok(call.await?)
                    });
                    drop(down.await);
                });
                loop {
                    std::thread::park();
                }
            });
            told.recv().unwrap();
        };
        up(first());
        up(second());
        std::process::exit(0);
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        assert_eq!((verdict.end, &*verdict.said), (End::Code(0), "met"), "{verdict}");
    }
}

/// Enough to meet a runtime at every moment of its closing.
const ROUNDS: usize = 60;
