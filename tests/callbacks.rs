//! Code of the user's that others call: a subscriber of `tracing`, a waker. One that blocks holds up no
//! signal, and a subscriber no budget, no cancel and no end either (C2, C5, C6, H6).
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake};
use std::thread::Thread;
use std::time::{Duration, Instant};

use hatchery::{Backend, Config, Runtime, Stdio};
use hatchery_testkit::fault;
use hatchery_testkit::isolate::{self, End};
use hatchery_tests::{BUDGET, SLACK, came_down, here};
use nix::libc::SIGINT;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Catches hangs only.
const HANG: Duration = Duration::from_secs(60);

/// What a logger locks, and an actor of the user's as well.
static LOG: Mutex<()> = Mutex::new(());

/// Takes the lock for each event, as loggers do.
struct Locking;

impl Subscriber for Locking {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        drop(LOG.lock().unwrap());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Sticks while it holds the logger's lock.
#[hatchery::function]
async fn stick() -> u64 {
    let _held: MutexGuard<'_, ()> = LOG.lock().unwrap();
    loop {
        std::thread::park();
    }
}

#[hatchery::function]
async fn square(x: u64) -> u64 {
    x * x
}

fn open() -> Runtime {
    tracing::subscriber::set_global_default(Locking).unwrap();
    let config = Config::with_budget(BUDGET);
    Runtime::builder().backend(Backend::Thread).config(config).stdio(Stdio::Null).open().unwrap()
}

/// A nursery whose actor sticks with the lock, and is abandoned.
async fn abandons(runtime: &Runtime) {
    let began = Instant::now();
    let down: Result<(), _> = runtime
        .nursery(async |n| {
            let child = n.start("stuck").await?;
            let late = child.call(stick()).within(Duration::from_millis(1)).await;
            assert!(late.is_err());
            Ok(())
        })
        .await;
    assert_eq!(came_down(down).faults().len(), 1);
    assert!(began.elapsed() < BUDGET + SLACK, "{:?}", began.elapsed());
}

/// H6, C2, C5: the abandonment is told to a subscriber that never comes back; the nursery does, those
/// after it come and go, and the runtime closes.
#[test]
fn a_subscriber_that_blocks_holds_up_no_budget() {
    let scenario = || {
        isolate::block_on(async {
            let runtime = open();
            abandons(&runtime).await;
            for round in 0..3 {
                let squares = runtime.nursery(async |n| {
                    let child = n.actor("a").backend(Backend::Forkserver).start().await?;
                    Ok(child.call(square(round)).await?)
                });
                assert_eq!(squares.await.unwrap(), round * round);
            }
            let began = Instant::now();
            runtime.close().await;
            assert!(began.elapsed() < BUDGET + SLACK, "{:?}", began.elapsed());
        });
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        assert_eq!(verdict.end, End::Code(0), "{verdict}");
    }
}

/// H6, C6: the same, and a SIGINT comes while the next nursery is up.
#[test]
fn a_sigint_works_while_a_subscriber_blocks() {
    let scenario = || {
        isolate::block_on(async {
            let runtime = open();
            abandons(&runtime).await;
            let struck: Result<u64, _> = runtime
                .nursery(async |n| {
                    let child = n.start("stuck2").await?;
                    fault::send(std::process::id(), SIGINT).unwrap();
                    // Waits for the lock that the first one holds.
                    Ok(child.call(stick()).await?)
                })
                .await;
            drop(came_down(struck));
            runtime.close().await;
        });
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        assert_eq!(verdict.end, End::Code(130), "{verdict}");
        assert!(verdict.left.is_empty(), "{verdict}");
        assert!(verdict.elapsed < 3 * BUDGET + SLACK, "{verdict}");
    }
}

/// Wakes its thread and then, once it is to, never comes back.
struct Blocking(Thread);

static BLOCKS: AtomicBool = AtomicBool::new(false);

impl Wake for Blocking {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
        while BLOCKS.load(SeqCst) {
            std::thread::park();
        }
    }
}

/// H6, C6: the nursery is polled by an executor of the user's whose waker never comes back, so whoever
/// cancels the nursery hangs. The budget of the signal ends the process all the same.
#[test]
fn a_sigint_works_while_a_waker_blocks() {
    let scenario = || {
        isolate::block_on(async {
            let runtime = open();
            let struck: Result<(), _> = {
                let nursery = runtime.nursery(async |n| {
                    n.actor("a").backend(Backend::Forkserver).start().await?;
                    BLOCKS.store(true, SeqCst);
                    fault::send(std::process::id(), SIGINT).unwrap();
                    std::future::pending().await
                });
                let mut nursery = pin!(nursery);
                let waker = Arc::new(Blocking(std::thread::current())).into();
                loop {
                    match nursery.as_mut().poll(&mut Context::from_waker(&waker)) {
                        Poll::Ready(struck) => break struck,
                        Poll::Pending => std::thread::park(),
                    }
                }
            };
            drop(came_down(struck));
            runtime.close().await;
        });
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        assert_eq!(verdict.end, End::Code(130), "{verdict}");
        assert!(verdict.left.is_empty(), "{verdict}");
        assert!(verdict.elapsed < BUDGET + SLACK, "{verdict}");
    }
}
