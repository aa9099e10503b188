//! Blobs between actors: as they were, whatever their size, and however slowly they are read.
//!
//! Each in a process of its own, which counts threads, fds and children before and after.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hatchery::{
    Backend, Blob, Callee, Config, ContextError, Error, FaultKind, Nothing, StreamError,
};
use hatchery_tests::{BACKENDS, BUDGET, for_each, for_each_with, here};

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Parcel {
    number: u64,
    parts: Vec<Blob>,
    label: String,
}

impl Parcel {
    fn new(number: u64) -> Self {
        let size = |part: u64| [0, 1, 16 * 1024 - 1, 16 * 1024, 70_000, 300_000][part as usize % 6];
        let blob = |part| Blob::from(vec![u8::try_from(part % 251).unwrap(); size(part)]);
        let parts = (number..number + number % 4).map(blob).collect();
        Self { number, parts, label: format!("parcel {number}") }
    }
}

/// Sends back what comes, and keeps all of it until the end.
#[hatchery::context]
async fn echo(callee: Callee<Parcel, Parcel>) -> Result<usize, Error> {
    let mut stream = callee.started(())?;
    let mut kept = Vec::new();
    while let Some(parcel) = stream.recv().await? {
        stream.send(parcel.clone()).await?;
        kept.push(parcel);
    }
    let as_sent = (0..).zip(&kept).all(|(number, parcel)| *parcel == Parcel::new(number));
    assert!(as_sent, "what was kept has changed");
    Ok(kept.len())
}

#[hatchery::function]
async fn turned(blob: Blob) -> Blob {
    blob.iter().rev().copied().collect::<Vec<_>>().into()
}

/// Messages with blobs among other fields, small and large, through less credit than they need:
/// each arrives as it was sent, in order, and stays as it is while others come.
#[test]
fn blobs_arrive_as_they_were_sent() {
    const COUNT: u64 = 200;
    for_each(here!(), &BACKENDS, async |runtime| {
        let outcome = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                let opened = worker.context(echo()).credit(100_000);
                let count: Result<usize, ContextError<Error>> = opened
                    .run(async |mut context| {
                        let (mut sender, mut receiver) = context.split();
                        let send = async {
                            for number in 0..COUNT {
                                sender.send(Parcel::new(number)).await.unwrap();
                            }
                            sender.close().await.unwrap();
                        };
                        let receive = async {
                            for number in 0..COUNT {
                                let parcel = receiver.recv().await.unwrap();
                                assert_eq!(parcel, Some(Parcel::new(number)));
                            }
                        };
                        tokio::join!(send, receive);
                        Ok::<_, Error>(context.result().await.unwrap())
                    })
                    .await;
                assert_eq!(count.unwrap() as u64, COUNT);
                Ok(())
            })
            .await;
        outcome.unwrap();
        runtime.close().await;
    });
}

/// Blobs as arguments and replies.
#[test]
fn blobs_can_be_arguments_and_replies() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let outcome = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                for size in [0, 10, 20_000, 1 << 20] {
                    let bytes: Vec<u8> = (0..size).map(|n| (n % 253) as u8).collect();
                    let back = worker.call(turned(bytes.clone().into())).await?;
                    assert!(back.iter().eq(bytes.iter().rev()), "{size} bytes have changed");
                }
                Ok(())
            })
            .await;
        outcome.unwrap();
        runtime.close().await;
    });
}

/// What is looked at to tell the same memory from a copy of it: the two ends of a thread actor are
/// in one process.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Shown {
    blob: Blob,
    at: usize,
}

fn show(blob: Blob) -> Shown {
    Shown { at: blob.as_ptr().addr(), blob }
}

impl Shown {
    fn is_the_same(&self) -> bool {
        self.blob.as_ptr().addr() == self.at
    }
}

#[hatchery::function]
async fn passed_on(shown: Shown, by: Shown) -> (bool, Shown) {
    (shown.is_the_same() && by.is_the_same(), show(shown.blob))
}

/// Says whether each message was the same memory, with the next; the first of its own comes with
/// the start, and the last word is one more.
#[hatchery::context]
async fn pass_on(callee: Callee<Shown, (bool, Shown), Shown>) -> Result<Shown, Error> {
    let own = Blob::from(vec![9; 20_000]);
    let mut stream = callee.started(show(own.clone()))?;
    while let Some(shown) = stream.recv().await? {
        let same = shown.is_the_same();
        stream.send((same, show(shown.blob))).await?;
    }
    stream.close().await?;
    Ok(show(own))
}

/// Between threads large blobs are the same memory on both sides, as arguments, in a reply, in the
/// first value, in both directions of a stream and as the last word.
#[test]
fn blobs_are_not_copied_between_threads() {
    for_each(here!(), &[Backend::Thread], async |runtime| {
        let outcome = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                let large = |byte| Blob::from(vec![byte; 100_000]);
                let call = passed_on(show(large(1)), show(large(2)));
                let (same, back) = worker.call(call).await?;
                assert!(same && back.is_the_same());
                assert_eq!(back.blob, large(1));

                let opened = worker.context(pass_on()).credit(150_000);
                let last: Result<Shown, ContextError<Error>> = opened
                    .run(async |mut context| {
                        assert!(context.started().is_the_same());
                        let (mut sender, mut receiver) = context.split();
                        let send = async {
                            for byte in 0..50 {
                                sender.send(show(large(byte))).await.unwrap();
                            }
                            sender.close().await.unwrap();
                        };
                        let receive = async {
                            for byte in 0..50 {
                                let (same, back) = receiver.recv().await.unwrap().unwrap();
                                assert!(same && back.is_the_same(), "message {byte} is a copy");
                                assert_eq!(back.blob, large(byte), "message {byte}");
                            }
                        };
                        tokio::join!(send, receive);
                        Ok(context.result().await?)
                    })
                    .await;
                assert!(last.unwrap().is_the_same());
                Ok(())
            })
            .await;
        outcome.unwrap();
        runtime.close().await;
    });
}

#[hatchery::function]
async fn length(blob: Blob) -> usize {
    blob.len()
}

#[hatchery::function]
async fn zeros(size: usize) -> Blob {
    vec![0; size].into()
}

/// C14, C15: a blob counts for the limit of a message wherever it lies: too large a one is refused
/// in every place, and the connection lives.
#[test]
fn a_blob_over_the_limit_is_refused_everywhere() {
    let config = Config { max_frame_bytes: 64 * 1024, ..Config::with_budget(BUDGET) };
    for_each_with(&config, here!(), &BACKENDS, async |runtime| {
        let outcome = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                let over = worker.call(length(vec![0; 70_000].into())).await.unwrap_err();
                assert_eq!(over.fault().kind, FaultKind::TooLarge, "{over:?}");
                let over = worker.call(zeros(70_000)).await.unwrap_err();
                assert_eq!(over.fault().kind, FaultKind::TooLarge, "{over:?}");
                let sent: Result<(), ContextError<Error>> = worker
                    .open_context(echo(), async |mut context| {
                        let parts = vec![vec![0; 40_000].into(), vec![1; 30_000].into()];
                        let parcel = Parcel { number: 0, parts, label: String::new() };
                        let refused = context.send(parcel).await.unwrap_err();
                        assert!(matches!(refused, StreamError::BadMessage(_)), "{refused:?}");
                        context.send(Parcel::new(0)).await?;
                        assert_eq!(context.recv().await?, Some(Parcel::new(0)));
                        Ok(())
                    })
                    .await;
                sent.unwrap();
                assert_eq!(worker.call(length(vec![0; 60_000].into())).await?, 60_000);
                Ok(())
            })
            .await;
        outcome.unwrap();
        runtime.close().await;
    });
}

/// Memory that says when it is gone.
struct Guarded(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Guarded {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Reads one message and keeps the stream open until it is cancelled.
#[hatchery::context]
async fn read_one(callee: Callee<Blob, Nothing>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    stream.recv().await?;
    std::future::pending().await
}

/// C10: blobs that nobody reads any more are gone with the connection, and with the context those
/// that had arrived.
#[test]
fn blobs_that_nobody_reads_are_let_go() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let alive = Arc::new(AtomicUsize::new(0));
        let blob = || {
            alive.fetch_add(1, Ordering::SeqCst);
            Blob::from(Bytes::from_owner(Guarded(vec![7; 50_000], alive.clone())))
        };
        let outcome = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                let opened = worker.context(read_one()).credit(500_000);
                let sent: Result<(), ContextError<Error>> = opened
                    .run(async |mut context| {
                        for _ in 0..8 {
                            context.send(blob()).await?;
                        }
                        Ok(())
                    })
                    .await;
                sent.unwrap();
                // A call that is dropped before it is answered.
                drop(worker.call(length(blob())).within(Duration::from_nanos(1)).await);
                Ok(())
            })
            .await;
        outcome.unwrap();
        runtime.close().await;
        assert_eq!(alive.load(Ordering::SeqCst), 0);
    });
}
