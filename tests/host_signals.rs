//! A host that waits for signals by tokio, as most do (C19). With `--features tokio-signals`: a feature of
//! one crate is one of all in a build, and the other tests shall see a tokio without it.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::future::pending;
use std::time::Duration;

use hatchery::{Backend, Config, Runtime, Signals, Stdio};
use hatchery_testkit::fault;
use hatchery_testkit::isolate::{self, End};
use hatchery_tests::{ROOMY, came_down, here};
use nix::libc::SIGINT;
use tokio::signal::ctrl_c;
use tokio::signal::unix::{SignalKind, signal};

/// Catches hangs only.
const HANG: Duration = Duration::from_secs(60);

fn open(signals: Signals) -> Runtime {
    let config = Config::with_budget(ROOMY);
    let runtime = Runtime::builder().config(config).backend(Backend::Thread).stdio(Stdio::Null);
    runtime.signals(signals).open().unwrap()
}

fn strike() {
    fault::send(std::process::id(), SIGINT).unwrap();
}

/// Whether tokio waits first, or the runtime opens first.
#[derive(Clone, Copy)]
enum First {
    Tokio,
    Runtime,
}

/// Both are told, whoever came first, and tokio is still told when the runtime is closed.
async fn both_are_told(first: First) {
    let listen = || signal(SignalKind::interrupt()).unwrap();
    let (mut ours, runtime) = match first {
        First::Tokio => (listen(), open(Signals::Notify)),
        First::Runtime => {
            let runtime = open(Signals::Notify);
            (listen(), runtime)
        }
    };
    strike();
    ours.recv().await.unwrap();
    assert_eq!(runtime.interrupted().await.count, 1);
    runtime.close().await;
    strike();
    ours.recv().await.unwrap();
    // And again, over what is there now, and again.
    for _ in 0..20 {
        let next = open(Signals::Notify);
        strike();
        ours.recv().await.unwrap();
        assert_eq!(next.interrupted().await.count, 1);
        next.close().await;
    }
    strike();
    ours.recv().await.unwrap();
}

/// C19: tokio waited before.
#[test]
fn a_ctrl_c_that_waited_before_is_told() {
    isolate::run_test(here!(), HANG, || isolate::block_on(both_are_told(First::Tokio)));
}

/// C19: tokio waits afterwards.
#[test]
fn a_ctrl_c_that_waits_later_is_told_and_so_are_we() {
    isolate::run_test(here!(), HANG, || isolate::block_on(both_are_told(First::Runtime)));
}

/// C6, C19: the tree comes down, and the program's own wait is told before it has.
#[test]
fn a_ctrl_c_is_told_while_the_tree_comes_down() {
    let scenario = || {
        isolate::block_on(async {
            let waiting = tokio::spawn(ctrl_c());
            // It waits from its first poll on.
            tokio::task::yield_now().await;
            let runtime = open(Signals::TakeDown);
            let down: Result<(), _> = runtime
                .nursery(async |n| {
                    n.start("child").await?;
                    strike();
                    pending().await
                })
                .await;
            drop(came_down(down));
            waiting.await.unwrap().unwrap();
            isolate::say("told").unwrap();
            runtime.close().await;
        });
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        assert_eq!((verdict.end, &*verdict.said), (End::Code(130), "told"), "{verdict}");
    }
}
