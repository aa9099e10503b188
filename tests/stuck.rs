//! Scenarios 33 to 43: cancels, and actors that don't go when they are asked. Bounds here allow for
//! a loaded machine; the benchmarks hold the tight ones.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::collections::BTreeSet;
use std::future::{IntoFuture as _, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use hatchery::{
    Backend, CallError, Callee, Config, ContextError, Error, FaultKind, Portal, Reason, Report,
    Runtime, Step, Why, nursery, shield,
};
use hatchery_testkit::fault::{self, Fault, Moment, Tree};
use hatchery_tests::events::Events;
use hatchery_tests::{
    BACKENDS, BUDGET, HANG, PROCESSES, ROOMY, SLACK, came_down, each, for_each, for_each_with,
    hasty, here,
};
use tokio::sync::Barrier;

#[hatchery::function]
async fn idle() -> u64 {
    std::future::pending().await
}

/// Never comes back to its runtime.
#[hatchery::function]
async fn spin(block: bool) -> u64 {
    loop {
        if block {
            std::thread::park();
        }
        std::hint::spin_loop();
    }
}

/// Ignores every cancel.
#[hatchery::function]
async fn stubborn() -> u64 {
    shield(std::future::pending()).await
}

/// Needs `part` per cent of the given time to clean up, and can't be hurried.
#[hatchery::function]
async fn slow_to_leave(span: Duration) -> u64 {
    hatchery::cancelled().await;
    shield(tokio::time::sleep(span)).await;
    7
}

/// An actor with one actor below it, down to one that is stuck.
#[hatchery::function]
async fn chain(depth: u32) -> Result<u64, Error> {
    if depth == 0 {
        return Ok(stubborn().here().await.unwrap_or(0));
    }
    let below = nursery(async |n| {
        let below = n.start("d").await?;
        Ok(below.call(chain(depth - 1)).await?)
    });
    Ok(below.await?)
}

/// Waits until the actor at that path answers a call; where it holds nobody up.
async fn serves(path: &'static str) {
    let (tell, told) = tokio::sync::oneshot::channel();
    let look = move || Tree::mine().at(Moment::InCall, path, HANG / 2, path, Fault::Continue);
    let looking = std::thread::spawn(move || drop(tell.send(look())));
    told.await.unwrap().unwrap();
    looking.join().unwrap();
}

/// Makes an actor stick. The call is in the channel when this returns, before any cancel.
async fn stick(child: &Portal, block: Option<bool>) {
    let call = match block {
        Some(block) => child.call(spin(block)),
        None => child.call(stubborn()),
    };
    let late = call.within(Duration::from_millis(1)).await;
    assert!(matches!(late, Err(CallError::Deadline(_))), "{late:?}");
}

/// Starts actors that call one function each, cancels as soon as all have been called, and gives
/// back how long the way down took and what it was.
async fn cancel_all(runtime: &Runtime, count: usize, block: Option<bool>) -> (Duration, Report) {
    let mut at = Instant::now();
    let down: Result<(), _> = runtime
        .nursery(async |n| {
            for i in 0..count {
                let child = n.start(&format!("a{i}")).await?;
                stick(&child, block).await;
            }
            at = Instant::now();
            n.cancel();
            std::future::pending().await
        })
        .await;
    let error = came_down(down);
    assert!(error.is_cancelled(), "{}", error.render());
    (at.elapsed(), error.report().clone())
}

/// Scenario 33: whoever cancels an idle nursery, everybody goes without force.
#[test]
fn a_cancelled_nursery_goes_without_force() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let cancelled: Result<(), _> = runtime
            .nursery(async |n| {
                let one = n.start("one").await?;
                n.start("two").await?;
                let _busy = n.run("busy", idle());
                tokio::spawn(async move { one.call(idle()).await });
                let other = n.clone();
                tokio::spawn(async move { other.cancel() });
                std::future::pending().await
            })
            .await;
        let error = cancelled.unwrap_err();
        assert!(error.is_cancelled(), "{}", error.render());
        assert!(error.report().forced().is_empty(), "{}", error.report());
        runtime.close().await;
    });
}

/// Scenario 34: one actor alone goes; again is fine; a call after it is a typed error.
#[test]
fn a_portal_cancels_one_actor_alone() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let (one, two) = (n.start("one").await?, n.start("two").await?);
            one.cancel();
            one.cancel();
            one.settled().await;
            one.cancel();
            let after = one.call(idle()).await;
            let Err(CallError::Cancelled(fault)) = after else { panic!("{after:?}") };
            let due = Reason { by: hatchery::path(), why: Why::Requested };
            assert_eq!(fault.kind, FaultKind::Cancelled(due));
            let late = two.call(idle()).within(Duration::from_millis(1)).await;
            assert!(matches!(late, Err(CallError::Deadline(_))), "{late:?}");
            Ok(())
        });
        done.await.unwrap();
        runtime.close().await;
    });
}

/// Scenario 36, H24, H27: a cancel while children boot, and while more wait for their turn to: none
/// of those is born any more, and nobody is forced.
#[test]
fn a_cancel_while_children_boot_leaves_nothing() {
    // Nobody is to be forced because the machine is slow.
    let (hang, config) = (Duration::from_secs(60), Config::with_budget(ROOMY));
    each(hang, here!(), &BACKENDS, &config, async |runtime| {
        for _ in 0..10 {
            let cancelled: Result<(), _> = runtime
                .nursery(async |n| {
                    let admitted = Arc::new(Barrier::new(CROWD + 1));
                    for i in 0..CROWD {
                        let (n, admitted) = (n.clone(), admitted.clone());
                        tokio::spawn(async move {
                            let name = format!("a{i}");
                            let mut start = std::pin::pin!(n.start(&name));
                            let asked = start.as_mut().now_or_never();
                            admitted.wait().await;
                            if asked.is_none() {
                                drop(start.await);
                            }
                        });
                    }
                    admitted.wait().await;
                    n.cancel();
                    std::future::pending().await
                })
                .await;
            let error = cancelled.unwrap_err();
            assert!(error.is_cancelled(), "{}", error.render());
            assert!(error.report().forced().is_empty(), "{}", error.report());
        }
        runtime.close().await;
    });
}

/// More than are born at a time.
const CROWD: usize = 40;

/// Scenario 38, C2, C16: a shield is ended by SIGTERM, then SIGKILL, and the report says so.
#[test]
fn a_shielded_actor_is_ended_by_force_and_reported() {
    let config = hasty(GRACEFUL);
    each(HANG, here!(), &PROCESSES, &config, async |runtime| {
        let (took, report) = cancel_all(&runtime, 1, None).await;
        assert!(took < config.budget, "{took:?}");
        assert_killed_on_time(&report, 1);
        let steps: Vec<Step> = report.actors[0].steps.iter().map(|taken| taken.step).collect();
        assert!(steps.contains(&Step::Acknowledged), "{steps:?}");
        assert!(steps.contains(&Step::Terminated), "{steps:?}");
        runtime.close().await;
    });
}

/// Scenarios 39 and 40, C2, H14: 25 actors that block or shield themselves cost one budget.
#[test]
fn twenty_five_stuck_processes_cost_one_budget() {
    stuck_within(here!(), &[Some(true), None]);
}

/// Scenario 40, C2: so do 25 that spin, on fewer cores.
#[test]
fn twenty_five_spinning_processes_cost_one_budget() {
    stuck_within(here!(), &[Some(false)]);
}

fn stuck_within(test: &str, how: &[Option<bool>]) {
    let (hang, config) = (Duration::from_secs(90), hasty(GRACEFUL));
    each(hang, test, &PROCESSES, &config, async |runtime| {
        for block in how {
            let (took, report) = cancel_all(&runtime, 25, *block).await;
            assert!(took < config.budget, "{took:?}");
            assert_killed_on_time(&report, 25);
        }
        runtime.close().await;
    });
}

/// What they have to go by themselves.
const GRACEFUL: Duration = Duration::from_millis(600);

/// Whether each of so many was killed when its time was over, and not after that of another; how
/// long the kernel takes then depends on what else the machine does.
fn assert_killed_on_time(report: &Report, count: usize) {
    assert_eq!(report.forced().len(), count, "{report}");
    for actor in report.forced() {
        let killed = actor.steps.iter().find(|taken| taken.step == Step::Killed);
        let after = killed.unwrap_or_else(|| panic!("{report}")).after;
        assert!(after < GRACEFUL * 5 / 4 + SLACK, "{after:?}\n{report}");
    }
}

/// Scenario 41, C2, H14: a stuck leaf four levels down costs one budget; the middle ones go
/// gracefully and say what they did.
#[test]
fn a_stuck_leaf_four_levels_down_costs_one_budget() {
    // The budget that users have: of less, the lowest level's share is too little for a process that
    // is killed on a machine with forty others waiting for each core.
    let config = Config::default();
    let budget = config.budget;
    for_each_with(&config, here!(), &PROCESSES, async |runtime| {
        let mut at = Instant::now();
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let top = n.start("top").await?;
                tokio::select! {
                    ended = top.call(chain(3)) => drop(ended?),
                    () = serves("root/top/d/d/d") => {}
                }
                at = Instant::now();
                Err(Error::msg("all are up"))
            })
            .await;
        let error = came_down(down);
        let took = at.elapsed();
        assert!(took < budget + SLACK, "{took:?}");
        let report = error.report();
        let forced: Vec<_> = report.forced().iter().map(|one| one.path.to_string()).collect();
        assert_eq!(forced, ["root/top/d/d/d"], "{report}");
        runtime.close().await;
    });
}

/// Scenario 43: a clean-up inside its budget is allowed to finish.
#[test]
fn a_clean_up_inside_its_budget_is_allowed_to_finish() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let (span, outcome) = (BUDGET / 5, async |n: hatchery::Nursery| {
            let child = n.start("child").await?;
            let late = child.call(slow_to_leave(BUDGET / 5)).within(Duration::from_millis(1)).await;
            assert!(matches!(late, Err(CallError::Deadline(_))), "{late:?}");
            Ok(())
        });
        let began = Instant::now();
        runtime.nursery(outcome).await.unwrap();
        assert!(began.elapsed() < span + BUDGET + SLACK);
        runtime.close().await;
    });
}

/// Scenario 39, C5, C16: a thread that is stuck is abandoned: named in the result and its report, in
/// the ledger, and by an event, each with its path; and nobody waits for it again.
#[test]
fn a_stuck_thread_is_abandoned_and_named() {
    hatchery_testkit::isolate::run_test(here!(), Duration::from_secs(60), || {
        let events = Events::capture();
        let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        tokio.block_on(async {
            let config = Config::with_budget(BUDGET);
            let runtime = Runtime::builder().backend(Backend::Thread).config(config);
            let runtime = runtime.signals(false).open().unwrap();
            let began = Instant::now();
            let mut at = began;
            let down: Result<(), _> = runtime
                .nursery(async |n| {
                    for i in 0..25 {
                        let child = n.start(&format!("a{i}")).await?;
                        stick(&child, Some(true)).await;
                    }
                    // The budget is that of the way down, not of the starts.
                    at = Instant::now();
                    Ok(())
                })
                .await;
            let took = at.elapsed();
            assert!(took < BUDGET + SLACK, "{took:?}");
            let error = came_down(down);
            assert_eq!(error.faults().len(), 25, "{}", error.render());
            assert!(error.faults().iter().all(|fault| fault.kind == FaultKind::Abandoned));
            let paths: BTreeSet<String> = (0..25).map(|i| format!("root/a{i}")).collect();
            let of_result = error.faults().iter().map(|fault| fault.path.to_string());
            assert_eq!(of_result.collect::<BTreeSet<_>>(), paths);
            let forced = error.report().forced();
            let of_report = forced.iter().map(|one| one.path.to_string());
            assert_eq!(of_report.collect::<BTreeSet<_>>(), paths, "{}", error.report());
            let ledger = runtime.abandoned();
            let of_ledger = ledger.iter().map(|one| one.path.clone());
            assert_eq!(of_ledger.collect::<BTreeSet<_>>(), paths);
            for one in &ledger {
                assert!(one.path.ends_with(&one.name) && one.since > began, "{one:?}");
                assert!(one.last_state.contains("it sleeps in "), "{one:?}");
            }
            for path in &paths {
                let said = events.with(&format!("path=\"{path}\""));
                let [one] = &said[..] else { panic!("{path}: {said:?}") };
                assert!(one.starts_with("WARN thread abandoned"), "{one}");
            }
            runtime.close().await;
        });
    });
}

#[hatchery::function]
async fn length(text: String) -> usize {
    text.len()
}

#[hatchery::context]
async fn starts(callee: Callee) -> Result<(), Error> {
    callee.started(())?;
    Ok(())
}

/// C16, H25: a bound counts from the beginning, also while there is no room for the call or the context: the
/// actor doesn't read.
#[test]
fn a_bound_holds_also_while_there_is_no_room() {
    let config = Config { outbox_bytes: 64 << 10, ..Config::with_budget(ROOMY) };
    for_each_with(&config, here!(), &PROCESSES, async |runtime| {
        let ended = runtime.nursery(async |n| {
            let child = n.start("child").await?;
            let pid = child.pid().unwrap();
            fault::sigstop(pid)?;
            // More than the socket and the queue take.
            let call = |_| child.call(length("x".repeat(100_000))).into_future();
            let mut calls: Vec<_> = (0..100).map(call).collect();
            let begun = poll_fn(|cx| {
                let mut calls = calls.iter_mut();
                Poll::Ready(calls.all(|call| call.as_mut().poll(cx).is_pending()))
            });
            assert!(begun.await, "an actor that is stopped has answered");
            let moment = Duration::from_millis(1);
            let late = child.call(length(String::new())).within(moment).await.unwrap_err();
            assert!(matches!(late, CallError::Deadline(_)), "{late:?}");
            let late = child.context(starts()).within(moment).handle().await.map(drop).unwrap_err();
            assert!(matches!(late, ContextError::Deadline(_)), "{late:?}");
            fault::sigcont(pid)?;
            for call in calls {
                assert_eq!(call.await?, 100_000);
            }
            Ok(())
        });
        ended.await.unwrap_or_else(|error| panic!("{}", error.render()));
        runtime.close().await;
    });
}
