//! How often the path of a small message allocates, on both sides: counted, as an allocation more is
//! no bug that anybody would see, and a slower path for everybody.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hatchery::{Callee, Error, Nothing};
use hatchery_tests::{PROCESSES, for_each, here, with_worker};

/// The system's, counted.
struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

#[allow(unsafe_code, reason = "that is what the trait asks for")]
// SAFETY: all is done by the system's own, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        // SAFETY: as asked of the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as asked of the caller.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        // SAFETY: as asked of the caller.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[hatchery::function]
async fn square(x: u64) -> u64 {
    x * x
}

/// How many allocations this process has made.
#[hatchery::function]
async fn made() -> u64 {
    COUNT.load(Relaxed)
}

#[hatchery::context]
async fn sink(callee: Callee<[u64; 8], Nothing>) -> Result<u64, Error> {
    let (_sender, mut receiver) = callee.started(())?.split();
    let mut sum = 0;
    while let Some(message) = receiver.recv().await? {
        sum += message[0];
    }
    Ok(sum)
}

const MANY: u64 = 20_000;

/// A thousandth of these is what begins and ends with the stream, not each message.
#[test]
fn a_small_message_of_a_stream_allocates_nothing() {
    for_each(here!(), &PROCESSES, async |runtime| {
        with_worker(runtime, async |worker| {
            let before = (COUNT.load(Relaxed), worker.call(made()).await?);
            let sum = worker.context(sink()).run(async |mut cx| {
                let (mut sender, _receiver) = cx.split();
                for number in 0..MANY {
                    sender.send([number; 8]).await?;
                }
                sender.close().await?;
                Ok(cx.result().await?)
            });
            assert_eq!(sum.await?, MANY * (MANY - 1) / 2);
            let after = (COUNT.load(Relaxed), worker.call(made()).await?);
            let made = (after.0 - before.0, after.1 - before.1);
            assert!(made.0 < MANY / 10 && made.1 < MANY / 10, "{made:?} for {MANY}");
            Ok(())
        })
        .await
    });
}

/// A call is its arguments, a waiter, the caller's future and a place in a table here; a name, the
/// function's future, its task, a place in a table and the reply there.
#[test]
fn a_small_call_allocates_seven_times_here_and_eight_times_there() {
    for_each(here!(), &PROCESSES, async |runtime| {
        with_worker(runtime, async |worker| {
            for x in 0..100 {
                assert_eq!(worker.call(square(x)).await?, x * x);
            }
            let before = (COUNT.load(Relaxed), worker.call(made()).await?);
            for x in 0..1_000 {
                assert_eq!(worker.call(square(x)).await?, x * x);
            }
            let after = (COUNT.load(Relaxed), worker.call(made()).await?);
            let made = ((after.0 - before.0) / 1_000, (after.1 - before.1) / 1_000);
            assert!(made.0 <= 7 && made.1 <= 8, "{made:?} a call");
            Ok(())
        })
        .await
    });
}
