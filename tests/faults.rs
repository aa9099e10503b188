//! Faults of `docs/faults.md` that only a whole actor can show.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use hatchery::CallError;
use hatchery_tests::{PROCESSES, for_each, here};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[hatchery::function]
async fn one() -> u8 {
    1
}

/// Leaves its process no room for another thread's stack, then wants one.
#[hatchery::function]
async fn needs_a_thread() -> u8 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = status.split(' ').next().unwrap().parse().unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
    setrlimit(Resource::RLIMIT_AS, pages * 4096 + (1 << 20), hard).unwrap();
    #[allow(clippy::disallowed_methods, reason = "that it fails is the point")]
    let joined = tokio::task::spawn_blocking(|| 1).await;
    setrlimit(Resource::RLIMIT_AS, hard, hard).unwrap();
    joined.unwrap()
}

/// Fault 38, C4: an actor that can have no more threads says so, and goes on.
#[test]
fn an_actor_without_threads_says_so() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let done = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            let error = worker.call(needs_a_thread()).await.unwrap_err();
            assert!(matches!(error, CallError::Panicked(_)), "{error:?}");
            assert!(error.fault().message.contains("thread"), "{error:?}");
            Ok(worker.call(one()).await?)
        });
        assert_eq!(done.await.unwrap(), 1);
        runtime.close().await;
    });
}
