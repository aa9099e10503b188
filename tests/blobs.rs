//! Blobs between actors: as they were, whatever their size, and however slowly they are read.
//!
//! Each in a process of its own, which counts threads, fds and children before and after.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use hatchery::{Blob, Callee, ContextError, Error};
use hatchery_tests::{BACKENDS, for_each, here};

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
