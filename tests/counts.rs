//! Scenarios 74 to 77, and C10 as such: what a process holds, counted at once, without a pause.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hatchery::{Backend, CallError, Config, FaultKind, Runtime, Stdio};
use hatchery_testkit::counts::{self, Counts};
use hatchery_testkit::isolate::{self, End, Isolated};
use hatchery_tests::{BACKENDS, BUDGET, HANG, came_down, for_each, here};

#[hatchery::function]
async fn square(x: u64) -> u64 {
    x * x
}

fn open(backend: Backend) -> Runtime {
    let runtime = Runtime::builder().backend(backend).config(Config::with_budget(BUDGET));
    runtime.stdio(Stdio::Null).signals(false).open().unwrap()
}

/// C10: a portal that outlives its nursery, and a task that does, hold nothing of the tree: no fd,
/// no thread, no shared memory.
#[test]
fn a_portal_that_is_kept_holds_nothing() {
    isolate::run_test(here!(), HANG * 3, || {
        isolate::block_on(async {
            for backend in BACKENDS {
                for _ in 0..10 {
                    let before = Counts::now();
                    let runtime = open(backend.clone());
                    let started = runtime.nursery(async |n| {
                        let kept = n.start("kept").await?;
                        kept.call(square(3)).await?;
                        Ok(kept)
                    });
                    let kept = started.await.unwrap();
                    runtime.close().await;
                    assert_eq!(Counts::now().difference(&before), None, "{}", backend.name());
                    assert!(kept.call(square(3)).await.is_err());
                }
            }
        });
    });
}

/// Its thread takes a while to end after its last word.
#[hatchery::function]
async fn square_and_linger(x: u64) -> u64 {
    struct Linger;
    impl Drop for Linger {
        fn drop(&mut self) {
            #[allow(clippy::disallowed_methods, reason = "that it takes time is the point")]
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    thread_local!(static LINGER: Linger = const { Linger });
    LINGER.with(|_| x * x)
}

/// Scenario 74, C5, H9: a thousand thread actors, each of which still runs destructors after its
/// last word: whenever a nursery has returned, the count is exact.
#[test]
fn a_thousand_thread_actors_leave_the_count_exact() {
    for_each(here!(), &[Backend::Thread], async |runtime| {
        let before = Counts::now();
        for _ in 0..10 {
            let done = runtime.nursery(async |n| {
                let mut all = Vec::new();
                for i in 0..100 {
                    all.push(n.start(&format!("a{i}")).await?);
                }
                let threads = Counts::now().threads.len();
                assert!(threads >= before.threads.len() + 100, "{threads}");
                for actor in &all {
                    assert_eq!(actor.call(square_and_linger(4)).await?, 16);
                }
                Ok(())
            });
            done.await.unwrap();
            // The supervisor came with the first nursery and stays with the runtime.
            let left = Counts::now().difference(&before).unwrap_or_default().threads;
            assert!(left.iter().all(|thread| thread.ends_with(" hatchery")), "{left:?}");
        }
        runtime.close().await;
    });
}

/// Panics with a lock in hand that tasks of the same actor want.
#[hatchery::function]
async fn poison() -> u8 {
    let shared = Arc::new(Mutex::new(0_u8));
    let (held, waits) = (shared.clone(), shared);
    let (tell, told) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        told.await.unwrap();
        // Poisoned: the one who held it has panicked.
        waits.lock().is_err()
    });
    let guard = held.lock().unwrap();
    tell.send(()).unwrap();
    drop(task);
    assert!(*guard > 0, "with the lock in hand");
    0
}

/// Scenario 75, C4.
#[test]
fn a_panic_with_a_lock_in_hand_harms_nobody_else() {
    for_each(here!(), &[Backend::Thread], async |runtime| {
        let done = runtime.nursery(async |n| {
            let (one, two) = (n.start("one").await?, n.start("two").await?);
            for _ in 0..20 {
                let error = one.call(poison()).await.unwrap_err();
                assert!(matches!(error, CallError::Panicked(_)), "{error:?}");
                assert!(error.fault().message.contains("with the lock in hand"), "{error:?}");
                assert_eq!(one.call(square(5)).await?, 25);
                assert_eq!(two.call(square(6)).await?, 36);
            }
            Ok(())
        });
        done.await.unwrap();
        runtime.close().await;
    });
}

/// Lets the stuck threads of this process go.
static GO: AtomicBool = AtomicBool::new(false);

/// Never comes back to its runtime, until it is let go.
#[hatchery::function]
async fn stick() -> u8 {
    while !GO.load(Ordering::SeqCst) {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    0
}

/// Starts thread actors that stick, and takes the nursery down over them.
async fn abandon(runtime: &Runtime, count: usize) -> hatchery::ScopeError {
    let down: Result<(), _> = runtime
        .nursery(async |n| {
            for i in 0..count {
                let child = n.start(&format!("a{i}")).await?;
                let late = child.call(stick()).within(Duration::from_millis(1)).await;
                assert!(matches!(late, Err(CallError::Deadline(_))), "{late:?}");
            }
            Ok(())
        })
        .await;
    came_down(down)
}

/// Scenario 76, C5: the ledger forgets a thread that ends after all, and the count is exact again.
#[test]
fn an_abandoned_thread_that_ends_is_forgotten() {
    isolate::run_test(here!(), HANG * 3, || {
        let _nothing_left = counts::guard();
        isolate::block_on(async {
            let before = Counts::now();
            let runtime = open(Backend::Thread);
            let error = abandon(&runtime, 3).await;
            assert!(error.faults().iter().all(|fault| fault.kind == FaultKind::Abandoned));
            let names: Vec<String> = runtime.abandoned().into_iter().map(|one| one.name).collect();
            assert_eq!(names, ["a0", "a1", "a2"]);
            assert!(runtime.abandoned().iter().all(|one| !one.last_state.is_empty()));
            let now = Counts::now().difference(&before).unwrap().threads;
            assert!(
                names.iter().all(|name| now.iter().any(|left| left.ends_with(name))),
                "{now:?}"
            );

            GO.store(true, Ordering::SeqCst);
            let until = Instant::now() + HANG;
            while !runtime.abandoned().is_empty() {
                assert!(Instant::now() < until, "{:?}", runtime.abandoned());
                tokio::task::yield_now().await;
            }
            runtime.close().await;
            // They have left the ledger as their last act but one.
            while Counts::now().difference(&before).is_some() && Instant::now() < until {
                tokio::task::yield_now().await;
            }
            assert_eq!(Counts::now().difference(&before), None);
        });
    });
}

/// Scenario 77, C5: threads that were given up on keep no process from its end.
#[test]
fn a_process_with_25_abandoned_threads_exits_at_once() {
    if isolate::is_scenario() {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async {
            let runtime = open(Backend::Thread);
            let error = abandon(&runtime, 25).await;
            assert_eq!(error.faults().len(), 25);
            assert_eq!(runtime.abandoned().len(), 25);
            runtime.close().await;
        });
        let began = std::time::SystemTime::now();
        let since = began.duration_since(std::time::UNIX_EPOCH).unwrap();
        isolate::say(&since.as_millis().to_string()).unwrap();
        std::process::exit(0);
    }
    let name = here!().split_once("::").unwrap().1;
    let args = [name, "--exact", "--nocapture", "--test-threads=1"];
    let verdict = Isolated::new(HANG).args(args).run().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(verdict.end == End::Code(0) && verdict.left.is_empty(), "{verdict}");
    let left_at: u64 = verdict.said.parse().unwrap();
    let took = now.saturating_sub(Duration::from_millis(left_at));
    assert!(took < Duration::from_secs(5), "{took:?}");
}
