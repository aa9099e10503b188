//! Scenario 39: actors that are stuck in one call or another, all in one nursery.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hatchery::{Backend, Config, FaultKind, Runtime, ScopeError};
use hatchery_testkit::isolate;
use hatchery_tests::{BUDGET, PROCESSES, SLACK, came_down, each, here};

/// Those that can't be brought to an end but by force.
const STUCK: [&str; 4] = ["flock", "read", "sleep", "spin"];
/// One that can: its actor waits for a thread of the blocking pool, and need not.
const LEFT: &str = "pool";
/// The processor is shared, and who dies needs it once more.
const ROOMY: Duration = BUDGET.saturating_mul(4);

/// Says that it is there, and never comes back.
#[hatchery::function]
#[allow(clippy::disallowed_methods, reason = "that it blocks is the point")]
async fn block_in(what: String, dir: PathBuf) -> u64 {
    let lock = File::open(dir.join("lock")).unwrap();
    drop(File::create(dir.join(&what)).unwrap());
    match &*what {
        "flock" => lock.lock().unwrap(),
        "read" => {
            let (mut ours, _writer) = std::io::pipe().unwrap();
            ours.read_exact(&mut [0]).unwrap();
        }
        "sleep" => std::thread::sleep(Duration::from_secs(1000)),
        "spin" => loop {
            std::hint::spin_loop();
        },
        _ => {
            tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_secs(1000)))
                .await
                .unwrap();
        }
    }
    0
}

/// Has them all stuck, cancels, and gives back what it came to and how long it took.
async fn stuck_and_cancelled(runtime: &Runtime) -> (ScopeError, Duration) {
    let dir = isolate::private_dir().expect("the scenario has a directory");
    let lock = File::create(dir.join("lock")).unwrap();
    lock.lock().unwrap();
    let all: Vec<&str> = STUCK.into_iter().chain([LEFT]).collect();
    let mut at = Instant::now();
    let down: Result<(), _> = runtime
        .nursery(async |n| {
            for what in &all {
                let child = n.start(what).await?;
                let call = block_in((*what).to_owned(), dir.clone());
                tokio::spawn(async move { child.call(call).await });
            }
            while !all.iter().all(|what| dir.join(what).exists()) {
                // A file has no event, and who is stuck sends none.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            at = Instant::now();
            n.cancel();
            std::future::pending().await
        })
        .await;
    let took = at.elapsed();
    for file in all.into_iter().chain(["lock"]) {
        std::fs::remove_file(dir.join(file)).unwrap();
    }
    (came_down(down), took)
}

fn names<'a>(paths: impl Iterator<Item = &'a hatchery::ActorPath>) -> BTreeSet<&'a str> {
    paths.map(hatchery::ActorPath::name).collect()
}

/// Scenario 39, C2, C16: whatever a process is stuck in, it is ended by force inside one budget,
/// and reported; one that only waits for its blocking pool goes without (H8).
#[test]
fn whatever_a_process_is_stuck_in_it_is_ended_by_force() {
    let hang = Duration::from_secs(60);
    let config = Config::with_budget(ROOMY);
    each(hang, here!(), &PROCESSES, &config, async |runtime| {
        let (error, took) = stuck_and_cancelled(&runtime).await;
        assert!(took < ROOMY + SLACK, "{took:?}");
        assert!(error.is_cancelled(), "{}", error.render());
        let forced = error.report().forced();
        assert_eq!(names(forced.iter().map(|one| &one.path)), STUCK.into(), "{}", error.report());
        runtime.close().await;
    });
}

/// Scenario 39, C5: a thread is given up on inside one budget, and named in the error and in the
/// ledger.
#[test]
fn whatever_a_thread_is_stuck_in_it_is_given_up_on() {
    // Nothing is counted: they stay until the process ends.
    isolate::run_test(here!(), Duration::from_secs(90), || {
        isolate::block_on(async {
            let builder = Runtime::builder().backend(Backend::Thread).signals(false);
            let runtime = builder.config(Config::with_budget(ROOMY)).open().unwrap();
            let (error, took) = stuck_and_cancelled(&runtime).await;
            assert!(took < ROOMY + SLACK, "{took:?}");
            let abandoned = error.faults().iter().filter(|one| one.kind == FaultKind::Abandoned);
            let abandoned = names(abandoned.map(|one| &one.path));
            assert!(abandoned.is_superset(&STUCK.into()), "{}", error.render());
            let ledger = runtime.abandoned();
            assert!(ledger.len() >= STUCK.len(), "{ledger:?}");
            runtime.close().await;
            // Its runtime would wait for what the pool does.
            std::process::exit(0);
        });
    });
}
