//! H25: each bounded wait is made to run out in turn, and what comes of it names the wait and how
//! long it was, or the step that was not answered.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hatchery::{
    Backend, CallError, Callee, Config, ContextError, Error, ExitStatus, FaultKind, Nothing, Peer,
    PeerError, StartCause, Step,
};
use hatchery_spawn::{Backend as _, Bounds, Forkserver, SpawnError, Spawning, Spec};
use hatchery_testkit::fault;
use hatchery_tests::{BUDGET, came_down, for_each_with, here};

/// What the wait under test may take.
const SHORT: Duration = Duration::from_millis(300);
/// Whose bounds they are does not depend on how the actors are made.
const FORKSERVER: [Backend; 1] = [Backend::Forkserver];

#[hatchery::function]
async fn one() -> u8 {
    1
}

fn short() -> Config {
    Config { handshake: SHORT, ..Config::with_budget(BUDGET) }
}

/// Its children live and hold their channel, and never say a word.
#[derive(Debug)]
struct Mute {
    server: Forkserver,
    channels: Mutex<Vec<Spec>>,
}

impl hatchery_spawn::Backend for Mute {
    fn name(&self) -> &'static str {
        "mute"
    }

    fn is_process(&self) -> bool {
        true
    }

    fn spawn(&self, spec: Spec) -> Spawning {
        self.channels.lock().unwrap().push(spec);
        self.server.fork().spawn(Spec::program("sleep").arg("1000"))
    }
}

/// H25, H12: a start that nobody answers is the handshake's time-out, by name.
#[test]
fn a_silent_actor_is_the_handshake_by_name() {
    for_each_with(&short(), here!(), &FORKSERVER, async |runtime| {
        let server = Forkserver::start(Bounds::default()).unwrap();
        let mute = Arc::new(Mute { server: server.clone(), channels: Mutex::default() });
        let done = runtime.nursery(async |n| {
            let silent = n.actor("silent").backend(Backend::Custom(mute.clone())).start();
            let error = silent.await.unwrap_err();
            assert!(
                matches!(error.cause, StartCause::Handshake { waited } if waited >= SHORT),
                "{error}"
            );
            let FaultKind::Stage { stage, waited } = &error.fault().kind else {
                panic!("{error:?}");
            };
            assert_eq!((stage.as_str(), *waited >= SHORT), ("handshake", true));
            Ok(n.start("other").await?.call(one()).await?)
        });
        assert_eq!(done.await.unwrap(), 1);
        mute.channels.lock().unwrap().clear();
        server.close();
        runtime.close().await;
    });
}

/// H25, H26: a forkserver that stands still is an unanswered request, by name.
#[test]
fn a_stopped_forkserver_is_an_unanswered_request() {
    for_each_with(&short(), here!(), &FORKSERVER, async |runtime| {
        let done = runtime.nursery(async |n| {
            n.start("first").await?;
            // An actor may serve before the forkserver has said that it was born. Of one that has
            // settled it has said all, and of those before it.
            let gone = n.start("gone").await?;
            gone.cancel();
            gone.settled().await;
            let server = runtime.forkserver_pid().unwrap();
            fault::sigstop(server).unwrap();
            let error = n.start("second").await.unwrap_err();
            fault::sigcont(server).unwrap();
            let StartCause::Spawn(SpawnError::Unanswered { name, waited }) = &error.cause else {
                panic!("{error:?}");
            };
            assert_eq!((name.as_str(), *waited >= SHORT), ("second", true));
            Ok(n.start("third").await?.call(one()).await?)
        });
        assert_eq!(done.await.unwrap(), 1);
        runtime.close().await;
    });
}

#[hatchery::context]
async fn host(callee: Callee<Nothing, Nothing>) {
    callee.started(()).unwrap();
    std::future::pending().await
}

/// H25: with a callee that stands still, a call, a context and an introduction run out of time each
/// by its name.
#[test]
fn a_stopped_actor_is_told_by_the_wait_that_found_it() {
    for_each_with(&short(), here!(), &FORKSERVER, async |runtime| {
        let done = runtime.nursery(async |n| {
            let child = n.start("child").await?;
            let peer: Peer = child.peer().await?;
            let pid = child.pid().unwrap();
            fault::sigstop(pid).unwrap();
            let error = child.call(one()).within(SHORT).await.unwrap_err();
            let CallError::Deadline(fault) = &error else { panic!("{error:?}") };
            assert!(fault.message.contains("one") && fault.message.contains("300"), "{fault}");
            let error = child.context(host()).within(SHORT).handle().await.unwrap_err();
            let ContextError::Deadline(fault) = &error else { panic!("{error:?}") };
            assert!(fault.message.contains("300"), "{fault}");
            let error = peer.connect().await.unwrap_err();
            let PeerError::Handshake { path, waited } = &error else { panic!("{error:?}") };
            assert_eq!((path.name(), *waited >= SHORT), ("child", true));
            fault::sigcont(pid).unwrap();
            Ok(child.call(one()).await?)
        });
        assert_eq!(done.await.unwrap(), 1);
        runtime.close().await;
    });
}

/// H25: a callee that stands still while its context is cancelled is a stage of its own.
#[test]
fn the_end_of_a_context_that_does_not_come_is_a_stage() {
    for_each_with(&short(), here!(), &FORKSERVER, async |runtime| {
        let done = runtime.nursery(async |n| {
            let child = n.start("child").await?;
            let pid = child.pid().unwrap();
            let error = child.open_context(host(), async |_cx| {
                fault::sigstop(pid).unwrap();
                Ok::<_, Error>(())
            });
            let error = error.await.unwrap_err();
            fault::sigcont(pid).unwrap();
            let FaultKind::Stage { stage, waited } = &error.fault().kind else {
                panic!("{error:?}");
            };
            assert_eq!(stage, "the end of a cancelled context");
            assert!(!waited.is_zero());
            Ok(())
        });
        done.await.unwrap();
        runtime.close().await;
    });
}

/// H25, C11, C16: a teardown that nobody answers names each rung; who is dead at the end of it is not
/// called unreapable because the forkserver, which has his status, stands still.
#[test]
fn a_teardown_without_an_answer_names_every_rung() {
    let config = Config { cancel_ack: Duration::from_millis(50), ..short() };
    for_each_with(&config, here!(), &FORKSERVER, async |runtime| {
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let child = n.start("child").await?;
                // The forkserver has said that the child was born when it says that a later one ended.
                let gone = n.start("gone").await?;
                gone.cancel();
                gone.settled().await;
                fault::sigstop(child.pid().unwrap()).unwrap();
                fault::sigstop(runtime.forkserver_pid().unwrap()).unwrap();
                n.cancel();
                std::future::pending().await
            })
            .await;
        let error = came_down(down);
        fault::sigcont(runtime.forkserver_pid().unwrap()).unwrap();
        // The other one was over before.
        let child = &error.report().actors[1];
        let steps: Vec<_> = child.steps.iter().map(|taken| taken.step).collect();
        let rungs =
            [Step::Asked, Step::Unacknowledged, Step::Terminated, Step::Killed, Step::Settled];
        assert_eq!(steps, rungs, "{}", error.report());
        assert_eq!(child.end, Some(ExitStatus::Unknown));
        let unreapable = |fault: &hatchery::Fault| fault.kind == FaultKind::Unreapable;
        assert!(!error.faults().iter().any(unreapable), "{}", error.render());
        runtime.close().await;
    });
}

/// H27, C2: a child whose birth takes longer than its nursery's whole budget, and which would not
/// go by itself: it is born with its death decided.
#[test]
fn a_child_that_is_born_after_its_budget_is_killed_at_once() {
    for_each_with(&Config::with_budget(BUDGET), here!(), &FORKSERVER, async |runtime| {
        let server = Forkserver::start(Bounds::default()).unwrap();
        let mute = Arc::new(Mute { server: server.clone(), channels: Mutex::default() });
        // It is there, and one of its children.
        drop(server.fork().spawn(Spec::program("true")).await.unwrap());
        fault::sigstop(server.pid()).unwrap();
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let late = n.actor("late").backend(Backend::Custom(mute.clone()));
                tokio::spawn(late.start());
                while mute.channels.lock().unwrap().is_empty() {
                    tokio::task::yield_now().await;
                }
                n.cancel();
                std::future::pending().await
            })
            .await;
        let error = came_down(down);
        fault::sigcont(server.pid()).unwrap();
        let steps: Vec<_> = error.report().actors[0].steps.iter().map(|taken| taken.step).collect();
        assert_eq!(steps.last(), Some(&Step::Unreapable), "{}", error.report());
        // Requests are answered in their order: the late one was born before this one was.
        drop(server.fork().spawn(Spec::program("true")).await.unwrap());
        let children = format!("/proc/{0}/task/{0}/children", server.pid());
        while !std::fs::read_to_string(&children).unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        mute.channels.lock().unwrap().clear();
        server.close();
        runtime.close().await;
    });
}
