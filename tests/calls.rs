//! Scenarios 1 to 6 and 17 to 32: births, calls and errors, on every backend.
//!
//! Each in a process of its own, which counts threads, fds and children before and after.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::time::Duration;

use hatchery::{
    Backend, CallError, Config, ConfigError, Error, ExitStatus, FaultKind, Portal, StartCause,
    nursery, nursery_with_report,
};
use hatchery_testkit::isolate;
use hatchery_tests::{BACKENDS, PROCESSES, ROOMY, for_each, for_each_with, here, with};

#[derive(Debug, PartialEq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{what} is broken")]
struct Broken {
    what: String,
}

#[hatchery::function]
async fn add(a: u64, b: u64) -> u64 {
    a + b
}

#[hatchery::function]
async fn whoami() -> String {
    hatchery::path().to_string()
}

#[hatchery::function]
async fn break_it(what: String) -> Result<u64, Broken> {
    Err(Broken { what })
}

#[hatchery::function]
async fn panic_with(how: u8) -> u64 {
    match how {
        0 => panic!("a static text"),
        1 => panic!("a text with {how}"),
        _ => std::panic::panic_any(how),
    }
}

#[hatchery::function]
async fn end(how: u8) -> u64 {
    match how {
        0 => std::process::exit(7),
        _ => std::process::abort(),
    }
}

#[hatchery::function]
async fn for_ever() -> Result<u64, Broken> {
    std::future::pending().await
}

#[hatchery::function]
async fn text(length: usize) -> String {
    "1".repeat(length)
}

#[hatchery::function]
async fn take(text: String) -> usize {
    text.len()
}

/// Opens nurseries inside each other, `depth` of them, and comes back with the deepest path.
#[hatchery::function]
async fn dig(depth: u32) -> Result<String, Error> {
    if depth == 0 {
        return Ok(hatchery::path().to_string());
    }
    let deepest = nursery(async |n| {
        let below = n.start("d").await?;
        Ok(below.call(dig(depth - 1)).await?)
    });
    Ok(deepest.await?)
}

/// Scenarios 1 and 2: a call, and an actor that only lives; both go on the cancel alone.
#[test]
fn an_actor_answers_and_goes_without_force() {
    for_each_with(&Config::with_budget(ROOMY), here!(), &BACKENDS, async |runtime| {
        let both = runtime.nursery(async |_| {
            let (sum, report) = nursery_with_report(async |n| {
                let worker = n.start("worker").await?;
                n.start("idle").await?;
                assert_eq!(worker.call(whoami()).await?, "root/worker");
                Ok(worker.call(add(2, 3)).await?)
            })
            .await;
            assert_eq!(sum?, 5);
            Ok(report)
        });
        let report = both.await.unwrap();
        assert_eq!(report.actors.len(), 2, "{report}");
        assert!(report.forced().is_empty(), "{report}");
        runtime.close().await;
    });
}

/// Scenario 6: names are unique in a nursery and free in another.
#[test]
fn a_second_actor_of_one_name_is_refused() {
    for_each(here!(), &BACKENDS, async |runtime| {
        for _ in 0..2 {
            let refused = runtime.nursery(async |n| {
                n.start("twin").await?;
                let error = n.start("twin").await.unwrap_err();
                assert!(matches!(error.cause, StartCause::NameTaken), "{error}");
                let error = n.start("no name").await.unwrap_err();
                assert!(matches!(error.cause, StartCause::BadName(_)), "{error}");
                Ok(())
            });
            refused.await.unwrap();
        }
        runtime.close().await;
    });
}

/// Scenario 17: a nursery inside a call inside an actor of a nursery, five deep.
#[test]
fn nurseries_nest_five_deep() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let deepest = runtime.nursery(async |n| {
            let top = n.start("top").await?;
            Ok(top.call(dig(5)).await?)
        });
        assert_eq!(deepest.await.unwrap(), "root/top/d/d/d/d/d");
        runtime.close().await;
    });
}

/// Scenario 5: forkserver under thread, thread under forkserver, exec under both.
#[test]
fn backends_mix_at_any_level() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let all = runtime.nursery(async |n| {
            for backend in BACKENDS {
                let name = backend.name();
                let child = n.actor(name).backend(backend).start().await?;
                assert_eq!(child.call(dig(2)).await?, format!("root/{name}/d/d"));
            }
            Ok(())
        });
        all.await.unwrap();
        runtime.close().await;
    });
}

/// Scenario 19, C4: a typed error comes back as that type, with the path of who failed.
#[test]
fn a_typed_error_comes_back_as_its_type() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let failed = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            let error = worker.call(break_it("pump".into())).await.unwrap_err();
            let CallError::Failed { error, fault } = error else { panic!("{error:?}") };
            assert_eq!(error, Broken { what: "pump".into() });
            assert_eq!(fault.path.as_str(), "root/worker");
            assert_eq!(worker.call(add(1, 1)).await?, 2);
            Ok(worker.call(break_it("valve".into())).await?)
        });
        let error = failed.await.unwrap_err();
        assert_eq!(error.find::<Broken>(), Some(Broken { what: "valve".into() }));
        assert_eq!(error.faults().len(), 1, "{}", error.render());
        runtime.close().await;
    });
}

/// Scenario 20, C4: a panic comes back with its message and place; the actor lives.
#[test]
fn a_panic_comes_back_with_message_and_place() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            for (how, message) in [(0, "a static text"), (1, "a text with 1"), (2, "no text")] {
                let error = worker.call(panic_with(how)).await.unwrap_err();
                let CallError::Panicked(fault) = error else { panic!("{error:?}") };
                assert!(fault.message.contains(message), "{fault}");
                assert!(fault.place.as_deref().is_some_and(|place| place.contains("calls.rs")));
            }
            Ok(worker.call(add(1, 1)).await?)
        });
        assert_eq!(done.await.unwrap(), 2);
        runtime.close().await;
    });
}

/// Scenario 21, C4: an actor that ends during a call is told by its exact status, once.
#[test]
fn an_end_during_a_call_names_the_status() {
    for_each(here!(), &PROCESSES, async |runtime| {
        for (how, status) in [(0, ExitStatus::Code(7)), (1, ExitStatus::Signal(6))] {
            let (tell, told) = tokio::sync::oneshot::channel();
            let died = runtime.nursery(async |n| {
                let worker = n.start("worker").await?;
                // In a task of its own: the death drops the body.
                let call = tokio::spawn(async move {
                    tell.send(worker.call(end(how)).await.unwrap_err()).unwrap();
                });
                Ok(call.await?)
            });
            let error = died.await.unwrap_err();
            let told = told.await.unwrap();
            assert!(matches!(told, CallError::Died(_)), "{told:?}");
            assert_eq!(told.fault().kind, FaultKind::Died(status));
            assert_eq!(error.faults().len(), 1, "{}", error.render());
            assert_eq!(error.fault().kind, FaultKind::Died(status));
            assert_eq!(error.fault().path.as_str(), "root/worker");
        }
        runtime.close().await;
    });
}

/// Scenario 23: what is too large or can't be decoded is a typed error; the connection lives.
#[test]
fn a_message_over_the_limit_is_refused_and_the_connection_lives() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            // Text is copied as a whole; a list of numbers, one by one, takes a debug build seconds.
            let error = worker.call(take("1".repeat(20 << 20))).await.unwrap_err();
            assert_eq!(error.fault().kind, FaultKind::TooLarge, "{error:?}");
            let error = worker.call(text(20 << 20)).await.unwrap_err();
            assert_eq!(error.fault().kind, FaultKind::TooLarge, "{error:?}");
            assert_eq!(worker.call(take("1".repeat(4 << 20))).await?, 4 << 20);
            Ok(worker.call(add(1, 1)).await?)
        });
        assert_eq!(done.await.unwrap(), 2);
        runtime.close().await;
    });
}

/// Scenario 24: many calls at once are all answered, each with its own reply.
#[test]
fn two_thousand_calls_in_flight_are_all_answered() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            let calls = (0..2000_u64).map(|i| {
                let worker: Portal = worker.clone();
                (i, tokio::spawn(async move { worker.call(add(i, i)).await }))
            });
            for (i, call) in calls.collect::<Vec<_>>() {
                assert_eq!(call.await??, 2 * i);
            }
            Ok(())
        });
        done.await.unwrap();
        runtime.close().await;
    });
}

/// Scenarios 25 and 26: a dropped or late call is cancelled on the other side, the actor lives.
#[test]
fn a_dropped_or_late_call_leaves_the_actor_alive() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            let late = worker.call(for_ever()).within(Duration::from_millis(1)).await;
            assert!(matches!(late, Err(CallError::Deadline(_))), "{late:?}");
            tokio::select! {
                biased;
                never = worker.call(for_ever()).into_future() => panic!("{never:?}"),
                sum = worker.call(add(1, 1)).into_future() => assert_eq!(sum?, 2),
            }
            Ok(worker.call(add(2, 2)).await?)
        });
        assert_eq!(done.await.unwrap(), 4);
        runtime.close().await;
    });
}

/// Scenario 27: one of three errs; the others are cancelled, and its error comes out alone.
#[test]
fn one_of_three_one_shots_errs_and_comes_out_alone() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let failed = runtime.nursery(async |n| {
            let _never = n.run("a", for_ever());
            let _never = n.run("b", for_ever());
            let _errs = n.run("c", break_it("pump".into()));
            Ok(())
        });
        let error = failed.await.unwrap_err();
        assert_eq!(error.faults().len(), 1, "{}", error.render());
        assert_eq!(error.fault().path.as_str(), "root/c");
        runtime.close().await;
    });
}

/// Scenario 31: the body's own error comes first.
#[test]
fn an_error_of_the_body_comes_first() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let failed: Result<(), _> = runtime
            .nursery(async |n| {
                let _never = n.run("a", for_ever());
                n.start("idle").await?;
                Err(Broken { what: "body".into() }.into())
            })
            .await;
        let error = failed.unwrap_err();
        assert_eq!(error.faults()[0].path.as_str(), "root");
        assert_eq!(error.faults().len(), 1, "{}", error.render());
        runtime.close().await;
    });
}

/// A channel that is polled busily gives the same answers in the same order, and its owner still
/// hears a cancel at once.
#[test]
fn busy_polling_changes_no_answer_and_holds_up_no_cancel() {
    isolate::run_test(here!(), Duration::from_secs(60), || {
        for backend in BACKENDS {
            let busy_poll = Duration::from_millis(1);
            with(backend.clone(), Config { busy_poll, ..Default::default() }, busy);
        }
    });
}

async fn busy(runtime: hatchery::Runtime) {
    let outcome = runtime
        .nursery(async |n| {
            let worker = n.start("worker").await?;
            for i in 0..100 {
                assert_eq!(worker.call(add(i, 1)).await?, i + 1);
            }
            // It waits when the nursery ends, which cancels both.
            tokio::select! {
                _ = worker.call(for_ever()).into_future() => unreachable!("it never answers"),
                sum = worker.call(add(1, 1)).into_future() => assert_eq!(sum?, 2),
            }
            Ok(())
        })
        .await;
    outcome.unwrap();
    runtime.close().await;
}

/// What this process has had of the processors.
fn processor_time() -> Duration {
    let clock = nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID;
    nix::time::clock_gettime(clock).unwrap().into()
}

/// One channel may be polled busily and no other. Where one processor is all there is, none is: the
/// other side could not answer meanwhile.
#[test]
fn busy_polling_is_of_one_channel_and_off_on_one_processor() {
    isolate::run_test(here!(), Duration::from_secs(60), || {
        let one = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
        let first = (0..nix::sched::CpuSet::count()).find(|cpu| one.is_set(*cpu).unwrap()).unwrap();
        let mut one = nix::sched::CpuSet::new();
        one.set(first).unwrap();
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one).unwrap();
        for backend in BACKENDS {
            with(backend.clone(), Config::default(), async |runtime| {
                let outcome = runtime.nursery(async |n| {
                    let plain = n.start("plain").await?;
                    let busy = n.actor("busy").busy_poll(Duration::from_millis(1)).start().await?;
                    let mut burnt = [Duration::ZERO; 2];
                    for turn in 0..20 {
                        for (burnt, actor) in burnt.iter_mut().zip([&plain, &busy]) {
                            let before = processor_time();
                            for i in 0..50 {
                                assert_eq!(actor.call(add(i, turn)).await?, i + turn);
                            }
                            *burnt += processor_time() - before;
                        }
                    }
                    // Six times as much if it were on.
                    assert!(burnt[1] < burnt[0] * 3, "{burnt:?}");
                    Ok(())
                });
                outcome.await.unwrap();
                runtime.close().await;
            });
        }
    });
}

/// A bound on what may be burnt.
#[test]
fn busy_polling_is_bounded() {
    isolate::run_test(here!(), Duration::from_secs(60), || {
        with(Backend::Forkserver, Config::default(), async |runtime| {
            let outcome = runtime.nursery(async |n| {
                let refused = n.actor("busy").busy_poll(Duration::from_millis(2)).start().await;
                let cause = refused.unwrap_err().cause;
                assert!(matches!(cause, StartCause::Config(ConfigError::BusyPoll(_))), "{cause:?}");
                // Its name is free.
                let fair = n.actor("busy").busy_poll(Duration::from_micros(20)).start().await?;
                assert_eq!(fair.call(add(1, 1)).await?, 2);
                Ok(())
            });
            outcome.await.unwrap();
            runtime.close().await;
        });
    });
    let config = Config { busy_poll: Duration::from_millis(2), ..Default::default() };
    let refused = hatchery::Runtime::builder().config(config).open().map(drop).unwrap_err();
    assert!(format!("{refused:?}").contains("BusyPoll"), "{refused:?}");
}
