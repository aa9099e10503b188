//! Scenarios 62 to 64, 69, 70 and 73, and the policies of 68: two linked tasks, in two actors, that can't leave each other
//! hanging.
//!
//! Each in a process of its own, which counts threads, fds and children before and after.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::time::Duration;

use futures_core::Stream;
use futures_util::{SinkExt, StreamExt};
use hatchery::{Callee, ContextError, Error, FaultKind, Nothing, Policy, StreamError, Why};
use hatchery_tests::{BACKENDS, for_each, here, with_worker};

#[derive(Debug, PartialEq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{what} is broken")]
struct Broken {
    what: String,
}

/// Greets, doubles what it gets until that ends, and returns how many there were.
#[hatchery::context]
async fn double(callee: Callee<u64, u64, String>, name: String) -> Result<usize, Error> {
    let mut stream = callee.started(format!("hello {name}"))?;
    let mut count = 0;
    while let Some(number) = stream.recv().await? {
        stream.send(number * 2).await?;
        count += 1;
    }
    Ok(count)
}

/// Says `started`, then fails, panics, returns or waits for ever, as it is told.
#[hatchery::context]
async fn end_by(callee: Callee<Nothing, u64>, how: u8) -> Result<u64, Broken> {
    if how == 10 {
        return Ok(1);
    }
    if how == 11 {
        return Err(Broken { what: "birth".to_owned() });
    }
    let mut stream = callee.started(()).unwrap();
    stream.send(7).await.unwrap();
    match how {
        0 => Ok(3),
        1 => Err(Broken { what: "life".to_owned() }),
        2 => panic!("as it was told"),
        3 => {
            stream.watch().cancel();
            std::future::pending().await
        }
        4 => std::process::exit(7),
        _ => std::future::pending().await,
    }
}

/// Writes down, on its way out, who cancelled it.
#[hatchery::context]
async fn remember(callee: Callee<Nothing, Nothing>, file: String) {
    struct Note(hatchery::Watch, String);
    impl Drop for Note {
        fn drop(&mut self) {
            let text = match self.0.cancelled() {
                Some(reason) => reason.to_string(),
                None => "nobody".to_owned(),
            };
            std::fs::write(&self.1, text).unwrap();
        }
    }
    let _note = Note(callee.watch(), file);
    let _stream = callee.started(()).unwrap();
    std::future::pending().await
}

#[hatchery::function]
fn count(to: u64) -> impl Stream<Item = u64> + Send {
    futures_util::stream::iter(0..to)
}

/// Scenario 62.
#[test]
fn the_first_value_comes_first_and_the_result_last() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let count = worker
                .open_context(double("you".to_owned()), async |mut cx| {
                    assert_eq!(cx.started(), "hello you");
                    for number in 0..100 {
                        cx.send(number).await?;
                        assert_eq!(cx.recv().await?, Some(number * 2));
                    }
                    cx.close().await?;
                    assert_eq!(cx.recv().await?, None);
                    Ok(cx.result().await?)
                })
                .await?;
            assert_eq!(count, 100);
            Ok(())
        })
        .await;
    });
}

/// Scenario 62, H21: what fails before `started` is what is told.
#[test]
fn a_side_that_never_starts_is_a_typed_error() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let error = worker.open_context(end_by(10), async |_| Ok(())).await.unwrap_err();
            assert!(
                matches!(&error, ContextError::Lost(fault) | ContextError::Refused(fault)
                if fault.message.contains("started")),
                "{error:?}"
            );
            let error = worker.open_context(end_by(11), async |_| Ok(())).await.unwrap_err();
            assert!(matches!(&error, ContextError::Failed { error, .. } if error.what == "birth"));
            Ok(())
        })
        .await;
    });
}

/// Scenario 63: by return, by error, by cancel, by drop.
#[test]
fn an_opener_that_leaves_cancels_the_other_side_which_knows_by_whom() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let directory = std::env::temp_dir();
        let path = directory.join(format!("hatchery-remember-{}", std::process::id()));
        let file = path.to_str().unwrap().to_owned();
        let kept = path.clone();
        with_worker(runtime, async |worker| {
            let told = async || loop {
                // Only the drop is not waited for by its opener; the file is the event.
                match std::fs::read_to_string(&path) {
                    Ok(text) if !text.is_empty() => {
                        std::fs::remove_file(&path).unwrap();
                        return text;
                    }
                    Ok(_) | Err(_) => tokio::task::yield_now().await,
                }
            };
            worker.open_context(remember(file.clone()), async |_| Ok(())).await?;
            assert_eq!(told().await, "cancelled by `root` because the work is done");

            let failed = worker
                .open_context(remember(file.clone()), async |_| Err::<(), _>(Error::msg("no")))
                .await;
            assert!(matches!(failed, Err(ContextError::Body(fault)) if fault.message == "no"));
            let why = "cancelled by `root` because the nursery's body failed";
            assert_eq!(told().await, why);

            worker
                .open_context(remember(file.clone()), async |mut cx| {
                    cx.cancel();
                    let ended = cx.result().await;
                    assert!(matches!(ended, Err(ContextError::Cancelled(_))), "{ended:?}");
                    Ok(())
                })
                .await?;
            assert_eq!(told().await, "cancelled by `root` on request");

            let handle = worker.context(remember(file.clone())).handle().await?;
            drop(handle);
            let why = "cancelled by `root` because nobody waits for it any more";
            assert_eq!(told().await, why);

            let late = worker.context(remember(file.clone())).within(Duration::from_millis(20));
            let ended = late.run(async |_| std::future::pending::<hatchery::Result<()>>().await);
            assert!(matches!(ended.await, Err(ContextError::Deadline(_))));
            assert_eq!(told().await, "cancelled by `root` at the deadline");
            Ok(())
        })
        .await;
        assert!(!kept.exists());
    });
}

/// Scenario 64.
#[test]
fn the_opener_sees_the_end_of_the_stream_and_then_the_result() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let result = worker
                .open_context(end_by(0), async |mut cx| {
                    assert_eq!(cx.recv().await?, Some(7));
                    assert_eq!(cx.recv().await?, None);
                    Ok(cx.result().await?)
                })
                .await?;
            assert_eq!(result, 3);
            Ok(())
        })
        .await;
    });
}

/// Scenario 64, C4: error, panic, cancel of the other side reach a body that waits for nothing.
#[test]
fn the_other_sides_end_ends_the_body() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let ended = async |how| {
                worker.open_context(end_by(how), async |_| std::future::pending().await).await
            };
            let failed: Result<(), _> = ended(1).await;
            assert!(
                matches!(failed, Err(ContextError::Failed { error, .. }) if error.what == "life")
            );
            let panicked: Result<(), _> = ended(2).await;
            assert!(matches!(panicked, Err(ContextError::Panicked(fault))
                if fault.message == "as it was told"));
            let cancelled: Result<(), _> = ended(3).await;
            let Err(ContextError::Cancelled(fault)) = cancelled else { panic!("{cancelled:?}") };
            let FaultKind::Cancelled(reason) = &fault.kind else { panic!("{fault:?}") };
            assert_eq!((reason.by.as_str(), &reason.why), ("root/worker", &Why::Requested));
            Ok(())
        })
        .await;
    });
}

/// Scenario 69.
#[test]
fn halves_are_closed_one_at_a_time() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            worker
                .open_context(double("me".to_owned()), async |mut cx| {
                    cx.send(1).await?;
                    cx.close().await?;
                    let late = cx.send(2).await;
                    assert!(matches!(late, Err(StreamError::Closed)), "{late:?}");
                    assert_eq!(cx.recv().await?, Some(2));
                    assert_eq!(cx.recv().await?, None);
                    assert_eq!(cx.recv().await?, None);
                    Ok(())
                })
                .await?;
            Ok(())
        })
        .await;
    });
}

/// The combinators of the futures crates work on the halves.
#[test]
fn a_stream_and_a_sink_can_be_forwarded() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let sum = worker
                .open_context(double("me".to_owned()), async |mut cx| {
                    let (mut sender, receiver) = cx.split();
                    let numbers = futures_util::stream::iter((0..1000).map(Ok));
                    let mut numbers = numbers.boxed();
                    let sending = async {
                        sender.send_all(&mut numbers).await?;
                        SinkExt::<u64>::close(&mut sender).await
                    };
                    let adding = receiver.fold(0, async |sum, number| sum + number.unwrap());
                    let (sent, sum) = tokio::join!(sending, adding);
                    sent?;
                    Ok(sum)
                })
                .await?;
            assert_eq!(sum, 999 * 1000);
            Ok(())
        })
        .await;
    });
}

/// One-way streaming functions.
#[test]
fn a_function_that_returns_a_stream_is_consumed_on_this_side() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let items: Vec<u64> =
                worker.stream(count(10_000)).await?.map(|item| item.unwrap()).collect().await;
            assert_eq!(items, (0..10_000).collect::<Vec<_>>());
            let mut endless = worker.stream(count(u64::MAX)).await?;
            assert_eq!(endless.next().await?, Some(0));
            drop(endless);
            Ok(())
        })
        .await;
    });
}

/// Sends numbers as fast as it may, and says at the end what became of them.
#[hatchery::context]
async fn flood(callee: Callee<Nothing, u64>, count: u64) -> Result<(u64, u64), Error> {
    let mut stream = callee.started(())?;
    let mut refused = 0;
    for number in 0..count {
        match stream.send(number).await {
            Ok(()) => {}
            Err(StreamError::Full) => refused += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok((stream.stats().sent, refused))
}

/// Scenario 68: the policies of a full stream.
#[test]
fn a_full_stream_fails_or_drops_the_oldest_as_it_was_opened() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let failing = worker.context(flood(10_000)).policy(Policy::Fail).credit(4096);
            failing
                .run(async |mut cx| {
                    let (sent, refused) = cx.result().await?;
                    assert_eq!(sent + refused, 10_000);
                    assert!(refused > 9_000, "{refused}");
                    let mut read = 0;
                    while cx.recv().await?.is_some() {
                        read += 1;
                    }
                    assert_eq!(read, sent);
                    Ok(())
                })
                .await?;
            let dropping = worker.context(flood(10_000)).policy(Policy::DropOldest).credit(4096);
            dropping
                .run(async |mut cx| {
                    assert_eq!(cx.result().await?, (10_000, 0));
                    let stats = cx.stats();
                    assert!(stats.dropped > 9_000 && stats.held <= 4096, "{stats:?}");
                    let mut last = None;
                    while let Some(number) = cx.recv().await? {
                        last = Some(number);
                    }
                    assert_eq!(last, Some(9_999));
                    Ok(())
                })
                .await?;
            Ok(())
        })
        .await;
    });
}

/// Scenario 70.
#[test]
fn a_lagging_subscriber_is_told_alone() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            worker
                .open_context(double("all".to_owned()), async |mut cx| {
                    let (mut sender, receiver) = cx.split();
                    let numbers = receiver.broadcast(8);
                    let (mut quick, mut slow) = (numbers.subscribe(), numbers.subscribe());
                    drop(numbers.subscribe());
                    for number in 0..20 {
                        sender.send(number).await?;
                        assert_eq!(quick.recv().await?, Some(number * 2));
                    }
                    sender.close().await?;
                    assert_eq!(quick.recv().await?, None);
                    let lag = slow.recv().await;
                    assert!(matches!(lag, Err(StreamError::Lagged(12))), "{lag:?}");
                    assert_eq!(slow.recv().await?, Some(24));
                    Ok(())
                })
                .await?;
            Ok(())
        })
        .await;
    });
}

/// Scenario 73.
#[test]
fn a_thousand_contexts_share_one_channel() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let one = async |at: u64| {
                worker
                    .open_context(double(at.to_string()), async |mut cx| {
                        cx.send(at).await?;
                        Ok(cx.recv().await?)
                    })
                    .await
            };
            let all = (0..1000).map(one);
            let answers = futures_util::future::join_all(all).await;
            for (at, answer) in answers.into_iter().enumerate() {
                assert_eq!(answer?, Some(at as u64 * 2));
            }
            Ok(())
        })
        .await;
    });
}
