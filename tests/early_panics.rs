//! Code of users that runs before a function does: arguments are read, a stream is made (C4, C15).
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use futures_core::Stream;
use futures_util::stream;
use hatchery::{CallError, Callee, Error};
use hatchery_tests::{BACKENDS, for_each, here, with_worker};
use serde::{Deserialize, Deserializer, Serialize};

#[hatchery::function]
async fn add(a: u64, b: u64) -> u64 {
    a + b
}

/// A number that can't be read without a panic.
#[derive(Debug, Serialize)]
struct Explosive(u64);

impl<'de> Deserialize<'de> for Explosive {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        panic!("{} explodes", u64::deserialize(from)?)
    }
}

#[hatchery::function]
async fn explode(it: Explosive) -> u64 {
    it.0
}

#[hatchery::function]
fn explode_at_once(x: u64) -> impl Stream<Item = u64> + Send {
    assert!(x == 0, "{x} explodes");
    stream::empty()
}

#[hatchery::context]
async fn explode_in_context(callee: Callee, it: Explosive) -> Result<u64, Error> {
    callee.started(())?;
    Ok(it.0)
}

/// C4: a panic of an argument's own code, or of a function's before it is a future or a stream, is that
/// call's panic, and the actor serves on.
#[test]
fn a_panic_before_a_function_runs_is_the_panic_of_its_call() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let error = worker.call(explode(Explosive(1))).await.unwrap_err();
            assert!(matches!(error, CallError::Panicked(_)), "{error:?}");
            assert!(error.fault().message.contains("1 explodes"), "{error:?}");
            let error = worker.stream(explode_at_once(2)).await.map(drop).unwrap_err();
            assert!(error.fault().message.contains("2 explodes"), "{error:?}");
            let opened = worker.context(explode_in_context(Explosive(3))).handle().await;
            let error = opened.map(drop).unwrap_err();
            assert!(error.fault().message.contains("3 explodes"), "{error:?}");
            assert_eq!(worker.call(add(1, 1)).await?, 2);
            Ok(())
        })
        .await;
    });
}
