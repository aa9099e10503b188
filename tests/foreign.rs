//! Portals, streams and nurseries in the hands of other runtimes than the one that made them, which may be
//! blocked or gone (C2).
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::sync::mpsc;
use std::time::Duration;

use hatchery::{Backend, Callee, Error, Nothing, Portal, Runtime, StreamError, Subscriber};
use hatchery_testkit::isolate;
use hatchery_tests::{BACKENDS, came_down, here};

/// Catches hangs only.
const HANG: Duration = Duration::from_secs(60);

#[hatchery::function]
async fn square(x: u64) -> u64 {
    x * x
}

#[hatchery::function]
async fn length(bytes: Vec<u8>) -> usize {
    bytes.len()
}

/// Sends numbers as long as somebody reads.
#[hatchery::context]
async fn count(callee: Callee<Nothing, u64>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    for number in 0.. {
        stream.send(number).await?;
    }
    Ok(())
}

/// Says back what it gets.
#[hatchery::context]
async fn echo(callee: Callee<u64, u64>) -> Result<u64, Error> {
    let mut stream = callee.started(())?;
    let mut sum = 0;
    while let Some(number) = stream.recv().await? {
        stream.send(number).await?;
        sum += number;
    }
    Ok(sum)
}

fn tokio() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs `asks` in a runtime and a thread of its own, and waits for it without giving way: this thread is
/// blocked meanwhile, and with it the runtime that it drives.
fn elsewhere<T: Send>(asks: impl AsyncFnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let asks = async { tokio::time::timeout(HANG / 2, asks()).await };
            tokio().block_on(asks).expect("nobody answers")
        });
        asked.join().unwrap()
    })
}

/// What a portal is for, whoever holds it.
async fn use_it(it: &Portal) {
    assert_eq!(it.call(square(7)).await.unwrap(), 49);
    // More than a socket takes at once, so that a writer has to wait for room.
    assert_eq!(it.call(length(vec![7; 5 << 20])).await.unwrap(), 5 << 20);
    let many = (0..100).map(|x| async move { it.call(square(x)).await.unwrap() });
    let squares = futures_util::future::join_all(many).await;
    assert_eq!(squares[99], 99 * 99);
    let mut cx = it.context(echo()).handle().await.unwrap();
    for number in 0..10 {
        cx.send(number).await.unwrap();
        assert_eq!(cx.recv().await.unwrap(), Some(number));
    }
    cx.close().await.unwrap();
    assert_eq!(cx.result().await.unwrap(), 45);
}

fn on_each(test: &str, scenario: impl Fn(Runtime)) {
    isolate::run_test(test, HANG * 3, || {
        for backend in BACKENDS {
            eprintln!("on {backend:?}");
            scenario(Runtime::builder().backend(backend).open().unwrap());
        }
    });
}

/// C2: the maker's runtime is blocked, and another one calls, opens contexts and reads streams.
#[test]
fn a_portal_answers_while_its_makers_runtime_is_blocked() {
    on_each(here!(), |runtime| {
        tokio().block_on(async {
            let done = runtime.nursery(async |n| {
                let it = n.start("it").await?;
                use_it(&it).await;
                elsewhere(async || use_it(&it).await);
                // At home again, with what was taken over.
                use_it(&it).await;
                elsewhere(async || use_it(&it).await);
                Ok(())
            });
            done.await.unwrap();
            runtime.close().await;
        });
    });
}

/// C2: a stream that was opened at home is read elsewhere while home is blocked.
#[test]
fn a_stream_goes_on_while_its_openers_runtime_is_blocked() {
    on_each(here!(), |runtime| {
        tokio().block_on(async {
            let done = runtime.nursery(async |n| {
                let it = n.start("it").await?;
                let mut cx = it.context(count()).handle().await.unwrap();
                assert_eq!(cx.recv().await.unwrap(), Some(0));
                let next = elsewhere(async || {
                    // More than its credit: the sender waits for ours.
                    for number in 1..200_000 {
                        assert_eq!(cx.recv().await.unwrap(), Some(number));
                    }
                    cx.recv().await.unwrap()
                });
                assert_eq!(next, Some(200_000));
                Err::<(), _>(Error::msg("that was all"))
            });
            let error = came_down(done.await);
            assert_eq!(error.faults()[0].message, "that was all", "{}", error.render());
            runtime.close().await;
        });
    });
}

/// C2: what one task reads for all goes on while that task's runtime is blocked, and when it is gone.
#[test]
fn a_broadcast_goes_on_while_its_makers_runtime_is_blocked_or_gone() {
    on_each(here!(), |runtime| {
        tokio().block_on(async {
            let done = runtime.nursery(async |n| {
                let it = n.start("it").await?;
                let mut here = it.context(count()).handle().await.unwrap();
                let all = here.split().1.broadcast(1 << 10);
                let mut one = all.subscribe();
                elsewhere(async || read_on(&mut one).await);
                let (_held, mut two) = elsewhere(async || {
                    // Made in a runtime that is dropped on the way out of here.
                    let mut there = it.context(count()).handle().await.unwrap();
                    let all = there.split().1.broadcast(1 << 10);
                    (there, all.subscribe())
                });
                elsewhere(async || read_on(&mut two).await);
                read_on(&mut two).await;
                Err::<(), _>(Error::msg("that was all"))
            });
            let error = came_down(done.await);
            assert_eq!(error.faults()[0].message, "that was all", "{}", error.render());
            runtime.close().await;
        });
    });
}

/// Reads far more than the ring holds, whatever it misses on the way.
async fn read_on(from: &mut Subscriber<u64>) {
    let mut last = None;
    while last.is_none_or(|last| last < 100_000) {
        match from.recv().await {
            Ok(number) => last = Some(number.expect("a stream that ends")),
            Err(error) => assert!(matches!(error, StreamError::Lagged(_)), "{error}"),
        }
    }
}

/// C2: a one-shot's result is awaited elsewhere while its maker's runtime is blocked.
#[test]
fn a_one_shot_is_awaited_elsewhere() {
    on_each(here!(), |runtime| {
        tokio().block_on(async {
            let done = runtime.nursery(async |n| {
                let once = n.run("once", square(9));
                assert_eq!(elsewhere(async || once.await.unwrap()), 81);
                Ok(())
            });
            done.await.unwrap();
            runtime.close().await;
        });
    });
}

/// C2: the runtime that an actor was started in is dropped, and the actor serves others until its nursery
/// ends. The nursery's body runs in a third one.
#[test]
fn an_actor_outlives_the_runtime_that_it_was_started_in() {
    on_each(here!(), |runtime| {
        tokio().block_on(async {
            let done = runtime.nursery(async |n| {
                let (tell, told) = mpsc::channel();
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        let gone = tokio();
                        let it = gone.block_on(n.start("it")).unwrap();
                        gone.block_on(use_it(&it));
                        drop(gone);
                        tell.send(it).unwrap();
                    });
                });
                let it = told.recv().unwrap();
                use_it(&it).await;
                assert_eq!(n.run("once", square(3)).await?, 9);
                Ok(())
            });
            done.await.unwrap();
            runtime.close().await;
        });
    });
}

/// C10: what was taken over leaves nothing: no thread, no fd.
#[test]
fn many_that_were_taken_over_leave_nothing() {
    isolate::run_test(here!(), HANG * 3, || {
        tokio().block_on(async {
            let runtime = Runtime::builder().backend(Backend::Thread).open().unwrap();
            let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
            let round = async || {
                let done = runtime.nursery(async |n| {
                    let it = n.start("it").await?;
                    assert_eq!(elsewhere(async || it.call(square(7)).await.unwrap()), 49);
                    Ok(())
                });
                done.await.unwrap();
            };
            round().await;
            let (fds, threads) = (open(), hatchery_spawn::thread_count().unwrap());
            for _ in 0..200 {
                round().await;
            }
            assert_eq!((open(), hatchery_spawn::thread_count().unwrap()), (fds, threads));
            runtime.close().await;
        });
        assert_eq!(hatchery_spawn::thread_count().unwrap(), 2, "the test's own two");
    });
}
