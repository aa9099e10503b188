//! C19: a host forks while its tree is up, or a library of its does. Whatever the copy does, the tree
//! notices nothing, and the copy ends in time with its own status.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::task::Poll;
use std::time::Duration;

use hatchery::{
    Backend, CallError, Callee, ContextError, Fault, FaultKind, Nursery, OpenError, PeerError,
    Portal, Runtime, StartCause, Stdio, is_copy, nursery,
};
use hatchery_spawn::{Command, CommandError, Pidfd, SpawnError, fork_copy};
use hatchery_testkit::{fault, isolate};
use hatchery_tests::{BACKENDS, PROCESSES, ROOMY, for_each, here};
use nix::libc::{SIGINT, SIGTERM};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(60);

#[hatchery::function]
async fn square(x: u64) -> u64 {
    x * x
}

#[hatchery::function]
async fn idle() -> u64 {
    pending().await
}

#[hatchery::context]
async fn double(callee: Callee<u64, u64>) -> Result<(), hatchery::Error> {
    let mut stream = callee.started(())?;
    while let Some(number) = stream.recv().await? {
        stream.send(number * 2).await?;
    }
    Ok(())
}

/// What a copy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Deed {
    /// `exit`, with its hooks.
    Exits,
    /// Comes back from where it was made.
    Returns,
    Fails,
    Panics,
    /// Lets go of all that it holds.
    Drops,
    /// Tries every way into the tree.
    Asks,
    /// Waits for something.
    Waits,
    /// Waits for a signal.
    Stays,
}

/// The copy's own, where it calls `exit`.
const OWN: i32 = 7;

/// Waits for a copy's end, and says how it was.
fn ended(copy: u32) -> WaitStatus {
    let pidfd = Pidfd::open(copy).unwrap();
    assert!(pidfd.wait_dead(HANG), "the copy hangs");
    waitpid(Pid::from_raw(copy.cast_signed()), None).unwrap()
}

fn is_copied(fault: &Fault) -> bool {
    fault.kind == FaultKind::Copied
}

/// Tries every way into the tree.
async fn asks(n: &Nursery, worker: &Portal) {
    assert!(is_copy());
    let started = n.start("late").await.unwrap_err();
    assert!(matches!(started.cause, StartCause::Spawn(SpawnError::Copied { .. })), "{started:?}");
    let called = worker.call(square(3)).await.unwrap_err();
    assert!(matches!(&called, CallError::Refused(fault) if is_copied(fault)), "{called:?}");
    let run = n.run("once", square(3)).await.unwrap_err();
    assert!(matches!(&run, CallError::Refused(_)), "{run:?}");
    let opened = worker.open_context(double(), async |_| Ok(())).await.unwrap_err();
    assert!(matches!(&opened, ContextError::Refused(fault) if is_copied(fault)), "{opened:?}");
    let inner = nursery(async |_| Ok(())).await.unwrap_err();
    assert!(inner.render().contains("is a copy, made by fork"), "{}", inner.render());
    assert!(matches!(Runtime::builder().open(), Err(OpenError::Copied)));
    assert!(matches!(hatchery::here(), Err(PeerError::Open(OpenError::Copied))));
    let ran = Command::new("true").status().await;
    assert!(matches!(ran, Err(CommandError::Spawn(SpawnError::Copied { .. }))), "{ran:?}");
    worker.cancel();
    worker.cancel_below(worker.path());
    worker.settled().await;
    n.cancel();
    hatchery::cancel_self();
    hatchery::arm_watchdog(0);
    // Nothing of it has made a thread here: no watchdog, no supervisor.
    assert_eq!(hatchery_spawn::thread_count().unwrap(), 1);
}

/// What the copy does in the body of a nursery.
async fn in_body(deed: Deed, n: Nursery, worker: Portal) -> hatchery::Result<()> {
    match deed {
        Deed::Exits => std::process::exit(OWN),
        Deed::Fails => return Err(hatchery::Error::msg("the copy's own")),
        Deed::Panics => panic!("the copy's own"),
        Deed::Drops => drop((n, worker)),
        Deed::Asks => asks(&n, &worker).await,
        Deed::Returns | Deed::Waits | Deed::Stays => {}
    }
    Ok(())
}

/// A root with one actor that is called before and after, and is copied in between.
async fn copied(runtime: Runtime, deed: Deed) {
    let result = runtime
        .nursery(async |n| {
            let worker = n.start("worker").await?;
            assert_eq!(worker.call(square(3)).await?, 9);
            let mut waiting = Box::pin(worker.call(idle()).into_future());
            let begun = poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending()));
            assert!(begun.await, "an idle call was answered");
            let held = worker.clone();
            // What is written down about the call, here and in the actor.
            let written = || runtime.dump().unwrap().to_string().matches("copies::idle").count();
            let lines = Cell::new(0);
            let outcome = worker
                .open_context(double(), async |mut cx| {
                    cx.send(4).await?;
                    assert_eq!(cx.recv().await?, Some(8));
                    lines.set(written());
                    let Some(copy) = fork_copy()? else {
                        if deed == Deed::Asks {
                            assert!(cx.send(5).await.is_err() && cx.recv().await.is_err());
                        }
                        return in_body(deed, n.clone(), held).await;
                    };
                    let status = ended(copy);
                    assert!(matches!(status, WaitStatus::Exited(_, OWN)), "{status:?}");
                    cx.send(5).await?;
                    assert_eq!(cx.recv().await?, Some(10));
                    Ok(())
                })
                .await;
            if is_copy() {
                return Ok(outcome?);
            }
            assert!(lines.get() > 1 && written() == lines.get(), "{} lines", lines.get());
            drop(waiting);
            assert_eq!(worker.call(square(4)).await?, 16);
            n.start("another").await?.call(square(5)).await?;
            Ok(outcome?)
        })
        .await;
    if is_copy() {
        let told = result.as_ref().is_err_and(|error| is_copied(error.fault()));
        drop(runtime);
        std::process::exit(if told { OWN } else { 1 });
    }
    result.unwrap_or_else(|error| panic!("{}", error.render()));
    runtime.close().await;
}

#[test]
fn a_copy_that_exits_in_a_nursery_ends_nothing() {
    for_each(here!(), &BACKENDS, |runtime| copied(runtime, Deed::Exits));
}

#[test]
fn a_copy_that_returns_from_a_nursery_ends_nothing() {
    for_each(here!(), &BACKENDS, |runtime| copied(runtime, Deed::Returns));
}

#[test]
fn a_copy_that_fails_in_a_nursery_ends_nothing() {
    for_each(here!(), &BACKENDS, |runtime| copied(runtime, Deed::Fails));
}

#[test]
fn a_copy_that_panics_in_a_nursery_ends_nothing() {
    for_each(here!(), &BACKENDS, |runtime| copied(runtime, Deed::Panics));
}

#[test]
fn a_copy_that_drops_all_it_holds_ends_nothing() {
    for_each(here!(), &BACKENDS, |runtime| copied(runtime, Deed::Drops));
}

#[test]
fn a_copy_that_asks_for_anything_gets_a_typed_error() {
    for_each(here!(), &BACKENDS, |runtime| copied(runtime, Deed::Asks));
}

/// A copy drops the very tokio runtime whose epoll is its owner's too.
#[test]
fn a_copy_that_drops_its_runtimes_leaves_the_owners_as_they_are() {
    isolate::run_test(here!(), HANG * 3, || {
        for backend in BACKENDS {
            let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let runtime = Runtime::builder().backend(backend).stdio(Stdio::Null).signals(false);
            let runtime = runtime.open().unwrap();
            let copy = tokio.block_on(runtime.nursery(async |n| {
                let worker = n.start("worker").await?;
                assert_eq!(worker.call(square(3)).await?, 9);
                let copy = fork_copy()?;
                if let Some(copy) = copy {
                    // Its runtimes are gone when it is.
                    let status = ended(copy);
                    assert!(matches!(status, WaitStatus::Exited(_, OWN)), "{status:?}");
                    assert_eq!(worker.call(square(4)).await?, 16);
                }
                Ok(copy)
            }));
            if is_copy() {
                drop(tokio);
                drop(runtime);
                std::process::exit(OWN);
            }
            copy.unwrap_or_else(|error| panic!("{}", error.render()));
            tokio.block_on(runtime.close());
        }
    });
}

/// Makes a copy of the actor that runs this, and says how that one ended: with a status, or by a
/// signal, which is negative.
#[hatchery::function]
async fn copies(deed: Deed) -> Result<i32, hatchery::Error> {
    let Some(copy) = fork_copy()? else {
        assert!(is_copy());
        match deed {
            Deed::Exits => std::process::exit(OWN),
            Deed::Fails => return Err(hatchery::Error::msg("the copy's own")),
            Deed::Panics => panic!("the copy's own"),
            Deed::Waits => pending().await,
            Deed::Asks => {
                assert!(nursery(async |_| Ok(())).await.is_err());
                assert!(!hatchery::cancel_parent());
                hatchery::cancel_self();
            }
            Deed::Stays => loop {
                std::thread::park();
            },
            Deed::Returns | Deed::Drops => {}
        }
        return Ok(0);
    };
    if deed == Deed::Stays {
        fault::send(copy, SIGTERM)?;
    }
    let status = ended(copy);
    if let WaitStatus::Signaled(_, signal, _) = status {
        return Ok(-(signal as i32));
    }
    let WaitStatus::Exited(_, status) = status else {
        return Err(hatchery::Error::msg(format!("{status:?}")));
    };
    Ok(status)
}

/// C19: the same for a copy of an actor, which ends with the function that it was made in.
#[test]
fn a_copy_of_an_actor_ends_with_its_function_and_speaks_for_nobody() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let ended = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            for (deed, status) in [
                (Deed::Exits, OWN),
                (Deed::Returns, 0),
                (Deed::Asks, 0),
                (Deed::Fails, 1),
                (Deed::Panics, 101),
                (Deed::Waits, 70),
            ] {
                assert_eq!(worker.call(copies(deed)).await?, status, "{deed:?}");
                assert_eq!(worker.call(square(6)).await?, 36, "{deed:?}");
            }
            Ok(())
        });
        ended.await.unwrap_or_else(|error| panic!("{}", error.render()));
        runtime.close().await;
    });
}

/// C19, C6: a signal for a copy of an actor is the copy's, and the actor's channel stays.
#[test]
fn a_sigterm_ends_the_copy_of_an_actor_and_not_the_actor() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let ended = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            assert_eq!(worker.call(copies(Deed::Stays)).await?, -SIGTERM);
            assert_eq!(worker.call(square(6)).await?, 36);
            Ok(())
        });
        ended.await.unwrap_or_else(|error| panic!("{}", error.render()));
        runtime.close().await;
    });
}

/// C19, C6: a signal for a copy of the root does what it does by default, and the root is not told.
#[test]
fn a_signal_ends_the_copy_of_a_root_and_not_its_tree() {
    isolate::run_test(here!(), HANG * 2, || {
        isolate::block_on(async {
            let config = hatchery::Config::with_budget(ROOMY);
            let runtime = Runtime::builder().backend(Backend::Forkserver).config(config);
            let runtime = runtime.stdio(Stdio::Null).open().unwrap();
            let ended = runtime.nursery(async |n| {
                let worker = n.start("worker").await?;
                for signal in [SIGINT, SIGTERM] {
                    let Some(copy) = fork_copy()? else {
                        loop {
                            std::thread::park();
                        }
                    };
                    fault::send(copy, signal)?;
                    let status = ended(copy);
                    let by_it =
                        matches!(status, WaitStatus::Signaled(_, by, _) if by as i32 == signal);
                    assert!(by_it, "{status:?}");
                    assert_eq!(worker.call(square(6)).await?, 36);
                }
                Ok(())
            });
            ended.await.unwrap_or_else(|error| panic!("{}", error.render()));
            runtime.close().await;
        });
    });
}

/// C19: a process that has not used hatchery when it forks has made no copy: its child may.
#[test]
fn who_forks_before_all_has_made_no_copy() {
    isolate::run_test(here!(), HANG * 2, || {
        if let Some(child) = fork_copy().unwrap() {
            let status = ended(child);
            assert!(matches!(status, WaitStatus::Exited(_, OWN)), "{status:?}");
            return;
        }
        let nine = isolate::block_on(async {
            let runtime = Runtime::builder().stdio(Stdio::Null).open().unwrap();
            let nine = runtime.nursery(async |n| Ok(n.run("once", square(3)).await?)).await;
            runtime.close().await;
            nine
        });
        std::process::exit(if nine.is_ok_and(|nine| nine == 9) { OWN } else { 1 });
    });
}

/// C19: a `main` under `#[hatchery::main]` ends in a copy too, whose workers are not there.
#[test]
fn a_copy_leaves_a_main_of_ours_in_time() {
    isolate::run_test(here!(), HANG * 2, || {
        hatchery::__private::run_main(true, async {
            let result = nursery(async |n| {
                let worker = n.actor("worker").stdout(Stdio::Null).start().await?;
                if let Some(copy) = fork_copy()? {
                    let status = ended(copy);
                    assert!(matches!(status, WaitStatus::Exited(_, OWN)), "{status:?}");
                    assert_eq!(worker.call(square(6)).await?, 36);
                }
                Ok(())
            });
            let result = result.await;
            assert_eq!(result.is_err(), is_copy(), "{result:?}");
        });
        if is_copy() {
            std::process::exit(OWN);
        }
    });
}
