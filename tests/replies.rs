//! Scenarios 21 and 23, and bad input: what comes back when nothing good can.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::time::Instant;

use hatchery::{CallError, Error, ExitStatus, FaultKind, StartCause, nursery};
use hatchery_spawn::SpawnError;
use hatchery_tests::{BACKENDS, PROCESSES, SLACK, for_each, here};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, raise};
use serde::de::Error as _;
use serde::ser::Error as _;

/// Can't be encoded.
#[derive(Debug)]
struct Unspeakable;

impl serde::Serialize for Unspeakable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom("not to be spoken"))
    }
}

impl<'de> serde::Deserialize<'de> for Unspeakable {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        <()>::deserialize(from).map(|()| Self)
    }
}

/// Can't be decoded.
#[derive(Debug, serde::Serialize)]
struct Unreadable;

impl<'de> serde::Deserialize<'de> for Unreadable {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom("not to be read"))
    }
}

#[hatchery::function]
async fn add(a: u64, b: u64) -> u64 {
    a + b
}

#[hatchery::function]
async fn say_unspeakable() -> Unspeakable {
    Unspeakable
}

#[hatchery::function]
async fn say_unreadable() -> Unreadable {
    Unreadable
}

#[hatchery::function]
async fn hear_unspeakable(_what: Unspeakable) -> u64 {
    0
}

#[hatchery::function]
async fn hear_unreadable(_what: Unreadable) -> u64 {
    0
}

#[hatchery::function]
async fn end_by(signal: i32) -> u64 {
    if let Ok(signal) = Signal::try_from(signal) {
        raise(signal).unwrap();
    }
    std::process::exit(7)
}

/// Starts an actor below while its process can open nothing, and says which call failed; then once
/// more when it can.
#[hatchery::function]
async fn breed_without_fds() -> Result<(String, u64), Error> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let done = nursery(async |n| {
        setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
        let refused = n.start("below").await;
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let error = refused.unwrap_err();
        let StartCause::Spawn(SpawnError::Call { call, .. }) = error.cause else {
            panic!("{error:?}")
        };
        Ok((call, n.start("below").await?.call(add(1, 1)).await?))
    });
    Ok(done.await?)
}

/// Scenario 23, C4: what can't be encoded or decoded, as an argument or as a reply, is a typed error
/// that says why; the connection lives.
#[test]
fn what_can_not_be_encoded_or_decoded_is_refused_and_the_connection_lives() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            let refused = [
                worker.call(say_unspeakable()).await.map(drop),
                worker.call(say_unreadable()).await.map(drop),
                worker.call(hear_unspeakable(Unspeakable)).await.map(drop),
                worker.call(hear_unreadable(Unreadable)).await.map(drop),
            ];
            let expected = [
                (FaultKind::BadReply, "not to be spoken"),
                (FaultKind::BadReply, "not to be read"),
                (FaultKind::BadArgument, "not to be spoken"),
                (FaultKind::BadArgument, "not to be read"),
            ];
            for (refused, (kind, why)) in refused.into_iter().zip(expected) {
                let error = refused.unwrap_err();
                assert!(matches!(error, CallError::Refused(_)), "{error:?}");
                assert_eq!(error.fault().kind, kind, "{error:?}");
                assert!(error.fault().render().contains(why), "{error:?}");
                assert_eq!(worker.call(add(1, 1)).await?, 2);
            }
            Ok(())
        });
        done.await.unwrap();
        runtime.close().await;
    });
}

/// Scenario 21, C4: whatever ends an actor during a call is told to the caller by its exact status,
/// as a death and not as a time-out; and once more by the nursery, the same.
#[test]
fn an_end_during_a_call_is_told_by_its_exact_status() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let signals = [libc::SIGKILL, libc::SIGSEGV, libc::SIGABRT, libc::SIGBUS, libc::SIGTERM];
        let ends = signals.map(|signal| (signal, ExitStatus::Signal(signal)));
        for (signal, status) in ends.into_iter().chain([(0, ExitStatus::Code(7))]) {
            let (tell, told) = tokio::sync::oneshot::channel();
            let died = runtime.nursery(async |n| {
                let worker = n.start("worker").await?;
                // In a task of its own: the death drops the body.
                let call = tokio::spawn(async move {
                    let at = Instant::now();
                    let error = worker.call(end_by(signal)).await.unwrap_err();
                    tell.send((error, at.elapsed())).unwrap();
                });
                Ok(call.await?)
            });
            let died = died.await;
            let (error, took) = told.await.unwrap();
            assert!(took < SLACK, "{took:?}");
            if signal == libc::SIGTERM {
                // That one asks an actor to go.
                assert!(!matches!(error, CallError::Deadline(_)), "{error:?}");
            } else {
                assert!(matches!(error, CallError::Died(_)), "{error:?}");
                assert_eq!(error.fault().kind, FaultKind::Died(status), "{error:?}");
                let error = died.unwrap_err();
                assert_eq!(error.faults().len(), 1, "{}", error.render());
                assert_eq!(error.fault().kind, FaultKind::Died(status));
            }
        }
        runtime.close().await;
    });
}

/// Bad input: an actor that can't reach the tree's forkserver says which call failed, starts none of
/// its own, and can start others when it can reach it.
#[test]
fn an_actor_that_can_not_reach_its_forkserver_names_the_call() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let done = runtime.nursery(async |n| Ok(n.run("parent", breed_without_fds()).await?));
        assert_eq!(done.await.unwrap(), ("open(/dev/null)".to_owned(), 2));
        runtime.close().await;
    });
}
