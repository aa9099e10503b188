//! Scenarios 33, 42, 43 and 44: who cancels, in the midst of what, and what is still cleaned up.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::future::poll_fn;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use hatchery::{
    CallError, Config, Error, FaultKind, Nursery, Portal, Runtime, StartCause, Step, nursery,
    shield,
};
use hatchery_testkit::isolate::private_dir;
use hatchery_tests::{
    BACKENDS, BUDGET, PROCESSES, ROOMY, SLACK, came_down, each, for_each_with, hasty, here,
};

#[derive(Debug, PartialEq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("a task beside is broken")]
struct Beside;

#[hatchery::function]
async fn idle() -> u64 {
    std::future::pending().await
}

#[hatchery::function]
async fn here_i_am() -> u64 {
    1
}

#[hatchery::function]
async fn fail() -> Result<u64, Beside> {
    Err(Beside)
}

/// Leaves a file of its own, then blocks its actor for ever.
#[hatchery::function]
async fn sleep_for_ever(file: PathBuf) -> u64 {
    std::fs::write(file, "").unwrap();
    loop {
        #[allow(clippy::disallowed_methods, reason = "that it blocks is the point")]
        std::thread::sleep(Duration::from_secs(1000));
    }
}

/// Has that many levels below it, the last of which blocks.
#[hatchery::function]
async fn above_a_sleeper(levels: u32, file: PathBuf) -> Result<u64, Error> {
    if levels == 0 {
        return Ok(sleep_for_ever(file).here().await.unwrap_or(0));
    }
    let below =
        async |n: Nursery| Ok(n.start("d").await?.call(above_a_sleeper(levels - 1, file)).await?);
    Ok(nursery(below).await?)
}

/// Needs that long to clean up, and can't be hurried.
#[hatchery::function]
async fn slow_to_leave(span: Duration) -> u64 {
    hatchery::cancelled().await;
    shield(tokio::time::sleep(span)).await;
    7
}

/// Who cancels a nursery.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    Body,
    Task,
    TimeOut,
    Drop,
    Sibling,
}

/// Scenario 33, C1, C4: whoever cancels a nursery, with idle children or with children in the midst
/// of a call: everybody goes on the cancel alone, and the outcome says what it was.
#[test]
fn whoever_cancels_a_nursery_everybody_goes_without_force() {
    for_each_with(&Config::with_budget(ROOMY), here!(), &BACKENDS, async |runtime| {
        for who in [Who::Body, Who::Task, Who::TimeOut, Who::Drop, Who::Sibling] {
            for busy in [false, true] {
                cancelled_by(&runtime, who, busy).await;
            }
        }
        runtime.close().await;
    });
}

async fn cancelled_by(runtime: &Runtime, who: Who, busy: bool) {
    let (tell, ready) = tokio::sync::oneshot::channel();
    let mut seen = Vec::new();
    let open = runtime.nursery(async |n| {
        for name in ["one", "two", "three"] {
            let child = n.start(name).await?;
            if busy {
                in_the_midst_of_a_call(&child).await?;
            }
            seen.push(child);
        }
        match who {
            Who::Body => n.cancel(),
            Who::Task => drop(tokio::spawn(async move { n.cancel() })),
            Who::Sibling => drop(n.run("sibling", fail())),
            Who::TimeOut | Who::Drop => drop(tell.send(())),
        }
        std::future::pending::<hatchery::Result<()>>().await
    });
    let outcome = match who {
        Who::TimeOut => {
            let late = async {
                ready.await.unwrap();
                // As a time-out that has passed.
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            first(open, late).await
        }
        Who::Drop => first(open, async { ready.await.unwrap() }).await,
        Who::Body | Who::Task | Who::Sibling => Some(open.await),
    };
    // A nursery that was dropped comes down in the background (C1).
    for child in &seen {
        child.settled().await;
        let after = child.call(here_i_am()).await;
        assert!(matches!(after, Err(CallError::Cancelled(_) | CallError::Lost(_))), "{after:?}");
    }
    let Some(outcome) = outcome else { return };
    let error = outcome.unwrap_err();
    assert_eq!(error.is_cancelled(), who != Who::Sibling, "{who:?} {}", error.render());
    assert!(error.report().forced().is_empty(), "{who:?} {}", error.report());
    if who == Who::Sibling {
        assert_eq!(error.faults().len(), 1, "{}", error.render());
        assert_eq!(error.find(), Some(Beside));
        assert_eq!(error.fault().path.as_str(), "root/sibling");
    }
}

/// Runs `open` until `late` is over, then drops it.
async fn first<T>(open: impl Future<Output = T>, late: impl Future<Output = ()>) -> Option<T> {
    tokio::select! {
        biased;
        () = late => None,
        value = open => Some(value),
    }
}

/// A call that its actor has begun and will not end.
async fn in_the_midst_of_a_call(child: &Portal) -> hatchery::Result<()> {
    let busy = child.clone();
    begun(child, async move { drop(busy.call(idle()).await) }).await
}

/// Makes a call in a task of its own, and waits until its actor has begun it.
async fn begun(
    child: &Portal,
    call: impl Future<Output = ()> + Send + 'static,
) -> hatchery::Result<()> {
    let mut call = Box::pin(call);
    // Its first poll pushes it; what comes after it is answered after it has begun.
    let pushed = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_pending()));
    assert!(pushed.await, "it doesn't end");
    tokio::spawn(call);
    child.call(here_i_am()).await?;
    Ok(())
}

/// Scenario 42, C2: a grandchild that blocks in a sleep, cancelled from two nurseries up: one
/// budget, and nobody is forced but the sleeper.
#[test]
fn a_sleeper_two_nurseries_down_costs_one_budget() {
    // Those in between must have the processor in time; and of what the last one is left, the kernel,
    // the forkserver and its spawner have a fifth, one after the other.
    let (hang, budget) = (Duration::from_secs(60), BUDGET * 4);
    let config = Config::with_budget(budget);
    each(hang, here!(), &PROCESSES, &config, async |runtime| {
        for levels in [1, 2] {
            let mut at = Instant::now();
            let down: Result<(), _> = runtime
                .nursery(async |n| {
                    let top = n.start("top").await?;
                    let file = private_dir().unwrap().join("asleep");
                    let call = top.clone();
                    let asleep = file.clone();
                    let call = async move { call.call(above_a_sleeper(levels, asleep)).await };
                    tokio::spawn(call);
                    while !file.exists() {
                        // A file has no event, and a sleeper sends none.
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    std::fs::remove_file(file)?;
                    at = Instant::now();
                    n.cancel();
                    std::future::pending().await
                })
                .await;
            let took = at.elapsed();
            assert!(took < budget + SLACK, "{took:?}");
            let error = came_down(down);
            assert!(error.is_cancelled(), "{}", error.render());
            let forced = error.report().forced();
            let forced: Vec<_> = forced.iter().map(|one| one.path.to_string()).collect();
            assert_eq!(forced, [format!("root/top{}", "/d".repeat(levels as usize))]);
        }
        runtime.close().await;
    });
}

/// Scenario 43, C2, C16: a clean-up that takes 80 % of the time for unwinding is let finish; one
/// that takes 120 % of the whole budget is ended by force and reported.
#[test]
fn a_clean_up_inside_its_time_is_let_finish_and_a_longer_one_is_not() {
    // A fifth of this is for everything else that it must have the processor for.
    let graceful = Duration::from_secs(4);
    let (hang, config) = (Duration::from_secs(60), hasty(graceful));
    each(hang, here!(), &PROCESSES, &config, async |runtime| {
        for (span, in_time) in [(graceful * 8 / 10, true), (config.budget * 12 / 10, false)] {
            let down: Result<(), _> = runtime
                .nursery(async |n| {
                    let child = n.start("child").await?;
                    let slow = child.clone();
                    let slow = async move { drop(slow.call(slow_to_leave(span)).await) };
                    begun(&child, slow).await?;
                    n.cancel();
                    std::future::pending().await
                })
                .await;
            let error = came_down(down);
            let forced = error.report().forced();
            assert_eq!(forced.is_empty(), in_time, "{span:?} {}", error.report());
            if let [child] = forced[..] {
                assert!(child.steps.iter().any(|taken| taken.step == Step::Killed), "{child:?}");
                // Force that was only tried leaves no status.
                assert!(child.end.is_some(), "{child:?}");
            }
        }
        runtime.close().await;
    });
}

/// Starts an actor when it is dropped.
struct Late {
    nursery: Nursery,
    said: Arc<Mutex<Option<String>>>,
}

impl Drop for Late {
    fn drop(&mut self) {
        let refused = self.nursery.start("late").now_or_never().expect("it is refused at once");
        let cause = refused.unwrap_err().cause;
        assert!(matches!(cause, StartCause::Closing(_)), "{cause}");
        *self.said.lock().unwrap() = Some(cause.to_string());
    }
}

/// Holds a destructor that opens a nursery and starts an actor, in a task of its own.
#[hatchery::function]
async fn breed_when_dropped() -> u64 {
    struct Breeder;
    impl Drop for Breeder {
        fn drop(&mut self) {
            tokio::spawn(async {
                let late = nursery(async |n| Ok(n.start("late").await?.call(idle()).await?)).await;
                // It is never born; if it were, it would keep the actor for its whole budget.
                assert!(late.unwrap_err().is_cancelled());
            });
        }
    }
    let _breeder = Breeder;
    std::future::pending().await
}

/// Scenario 44, H27: a destructor that starts an actor during teardown is refused, in the body of
/// the nursery as in an actor below, and holds nobody up.
#[test]
fn a_destructor_that_starts_an_actor_is_refused() {
    for_each_with(&Config::with_budget(ROOMY), here!(), &BACKENDS, async |runtime| {
        let said = Arc::new(Mutex::new(None));
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let child = n.start("child").await?;
                let breeder = child.clone();
                let breed = async move { drop(breeder.call(breed_when_dropped()).await) };
                begun(&child, breed).await?;
                let _late = Late { nursery: n.clone(), said: said.clone() };
                n.cancel();
                std::future::pending().await
            })
            .await;
        let error = came_down(down);
        assert!(error.is_cancelled(), "{}", error.render());
        assert!(error.report().forced().is_empty(), "{}", error.report());
        assert_eq!(error.report().actors.len(), 1, "{}", error.report());
        assert!(said.lock().unwrap().as_deref().is_some_and(|text| text.contains("closing")));
        let FaultKind::Cancelled(reason) = &error.fault().kind else { panic!("{error}") };
        assert_eq!(reason.by.as_str(), "root");
        runtime.close().await;
    });
}
