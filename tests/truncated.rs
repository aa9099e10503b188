//! C20: a stream that was cut short never looks complete, on either side of a context; 100 rounds of
//! each case on each backend, half of them on a machine whose processors are all busy.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_core::Stream;
use futures_util::stream;
use hatchery::{Callee, ContextError, Error, FaultKind, Nothing, Portal, StreamError};
use hatchery_testkit::isolate::private_dir;
use hatchery_tests::{BACKENDS, PROCESSES, for_each_within, here, with_worker};
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use tokio::sync::Notify;

/// How a function comes to its end after three items.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Way {
    /// It ends as it should: the one good end among them.
    Well,
    Panics,
    Errs,
    /// It cancels its own context, or waits until somebody does.
    IsCancelled,
    /// Its sender is with another task, which drops it first.
    LetsGoAndErrs,
    /// The same in the function itself, with an await in between.
    DropsAndErrs,
    Exits,
}

/// Without the hook, which would print.
fn panics() -> ! {
    resume_unwind(Box::new("broken"))
}

/// A number, or something without an encoded form.
#[derive(Debug, PartialEq, Deserialize)]
struct Item(Option<u64>);

impl Serialize for Item {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(_) => serializer.serialize_newtype_struct("Item", &self.0),
            None => Err(S::Error::custom("it has no form")),
        }
    }
}

#[hatchery::function]
fn items(way: Way) -> impl Stream<Item = Item> + Send {
    stream::unfold(0, move |at| async move {
        match (at, way) {
            (0..3, _) => Some((Item(Some(at)), at + 1)),
            (_, Way::Panics) => panics(),
            (_, Way::Errs) => Some((Item(None), at + 1)),
            (_, Way::IsCancelled) => std::future::pending().await,
            (_, Way::Exits) => std::process::exit(0),
            (_, Way::Well | Way::LetsGoAndErrs | Way::DropsAndErrs) => None,
        }
    })
}

#[hatchery::context]
async fn converse(callee: Callee<Nothing, u64>, way: Way) -> Result<u64, Error> {
    let watch = callee.watch();
    let (mut sender, _nothing_comes) = callee.started(())?.split();
    for number in 0..3 {
        sender.send(number).await?;
    }
    match way {
        Way::Well => return Ok(3),
        Way::Panics => panics(),
        Way::Errs => {}
        Way::IsCancelled => {
            watch.cancel();
            std::future::pending().await
        }
        Way::LetsGoAndErrs => tokio::spawn(async move { drop(sender) }).await?,
        Way::DropsAndErrs => {
            drop(sender);
            tokio::task::yield_now().await;
        }
        Way::Exits => std::process::exit(0),
    }
    Err(Error::msg("broken"))
}

/// Keeps all processors busy until it is dropped.
struct Load {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn begin() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let count = std::thread::available_parallelism().unwrap().get();
        let spin = |over: Arc<AtomicBool>| {
            move || {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        };
        let threads = (0..count).map(|_| std::thread::spawn(spin(over.clone()))).collect();
        Self { over, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// Runs `round` a hundred times, half of them under load.
async fn rounds(mut round: impl AsyncFnMut() -> Result<(), Error>) -> Result<(), Error> {
    for _ in 0..50 {
        round().await?;
    }
    let _load = Load::begin();
    for _ in 0..50 {
        round().await?;
    }
    Ok(())
}

/// The kind of what a reader was told after three items; `None` for a clean end.
fn kind(end: Result<Option<u64>, StreamError>) -> Option<FaultKind> {
    match end {
        Ok(None) => None,
        Err(StreamError::Ended(fault)) => Some(fault.kind),
        other => panic!("{other:?} after three items"),
    }
}

fn is_right(way: Way, kind: Option<&FaultKind>) -> bool {
    match way {
        Way::Well => kind.is_none(),
        Way::Panics => kind == Some(&FaultKind::Panicked),
        Way::Errs | Way::LetsGoAndErrs | Way::DropsAndErrs => kind == Some(&FaultKind::Failed),
        Way::IsCancelled => matches!(kind, Some(FaultKind::Cancelled(_))),
        Way::Exits => matches!(kind, Some(FaultKind::Died(_))),
    }
}

async fn read_items(worker: &Portal, way: Way) -> Result<(), Error> {
    let mut items = worker.stream(items(way)).await?;
    for number in 0..3 {
        assert_eq!(items.next().await?, Some(Item(Some(number))));
    }
    let end = kind(items.next().await.map(|item| item.map(|item| item.0.unwrap_or_default())));
    assert!(
        is_right(way, end.as_ref()) || way == Way::Errs && end == Some(FaultKind::BadArgument),
        "{way:?}: {end:?}"
    );
    Ok(())
}

async fn read_context(worker: &Portal, way: Way) -> Result<(), Error> {
    let mut context = worker.context(converse(way)).handle().await?;
    for number in 0..3 {
        assert_eq!(context.recv().await?, Some(number));
    }
    let end = kind(context.recv().await);
    assert!(is_right(way, end.as_ref()), "{way:?}: {end:?}");
    assert_eq!(context.result().await.is_ok(), way == Way::Well, "{way:?}");
    Ok(())
}

/// C20: a function that panics, errs or is cancelled at its fourth item is no end of its stream.
#[test]
fn a_function_that_ends_badly_never_ends_its_stream_well() {
    for_each_within(MINUTES, here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            for way in [Way::Well, Way::Panics, Way::Errs] {
                rounds(async || read_items(&worker, way).await).await?;
            }
            let cut = [Way::IsCancelled, Way::LetsGoAndErrs, Way::DropsAndErrs];
            for way in [Way::Well, Way::Panics, Way::Errs].into_iter().chain(cut) {
                rounds(async || read_context(&worker, way).await).await?;
            }
            Ok(())
        })
        .await;
    });
}

/// C20: the same when the whole actor is cancelled, with another stream of it open, or is gone.
#[test]
fn an_actor_that_goes_never_ends_its_streams_well() {
    for_each_within(MINUTES, here!(), &BACKENDS, async |runtime| {
        for _ in 0..30 {
            let ended = runtime.nursery(async |n| {
                let worker = n.start("worker").await?;
                let mut all = worker.stream(items(Way::IsCancelled)).await?;
                let mut one = worker.context(converse_until_cancelled()).handle().await?;
                assert_eq!(one.recv().await?, Some(0));
                for number in 0..3 {
                    assert_eq!(all.next().await?, Some(Item(Some(number))));
                }
                worker.cancel();
                let ends = [
                    kind(all.next().await.map(|item| item.and_then(|item| item.0))),
                    kind(one.recv().await),
                ];
                for end in ends {
                    assert!(is_right(Way::IsCancelled, end.as_ref()), "{end:?}");
                }
                Ok(())
            });
            ended.await.unwrap_or_else(|error| panic!("{}", error.render()));
        }
        runtime.close().await;
    });
}

#[hatchery::context]
async fn converse_until_cancelled(callee: Callee<Nothing, u64>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    stream.send(0).await?;
    std::future::pending().await
}

/// C20: not even an exit with status 0 in the middle is an end.
#[test]
fn a_process_that_exits_never_ends_its_streams_well() {
    for_each_within(MINUTES, here!(), &PROCESSES, async |runtime| {
        for _ in 0..10 {
            let ended = runtime.nursery(async |n| {
                let worker = n.start("worker").await?;
                read_items(&worker, Way::Exits).await?;
                Ok(())
            });
            assert!(ended.await.is_err(), "the death of an actor is told");
        }
        runtime.close().await;
    });
}

/// Reads to the end, and notes that there was one.
#[hatchery::context]
async fn note_the_end(callee: Callee<u64, u64>, note: PathBuf) -> Result<u64, Error> {
    let mut stream = callee.started(())?;
    let mut count = 0;
    while stream.recv().await?.is_some() {
        count += 1;
        stream.send(count).await?;
    }
    std::fs::write(note, "").unwrap();
    Ok(count)
}

/// An opener's body that sends three items and then comes to its end.
async fn open(worker: &Portal, way: Way, note: &Path) -> Result<u64, Error> {
    let going = Arc::new(Notify::new());
    let gone = going.clone();
    let opened = worker.open_context(note_the_end(note.to_owned()), async move |mut cx| {
        let (mut sender, mut receiver) = cx.split();
        for number in 1..=3 {
            sender.send(number).await?;
            assert_eq!(receiver.recv().await?, Some(number));
        }
        match way {
            Way::Well => {
                // To close it by dropping it, in a body that goes on.
                drop(sender);
                return Ok(cx.result().await?);
            }
            Way::Panics => panics(),
            Way::IsCancelled => {
                going.notify_one();
                std::future::pending::<()>().await;
            }
            Way::LetsGoAndErrs => drop(sender),
            Way::Errs | Way::DropsAndErrs | Way::Exits => {}
        }
        Err(Error::msg("broken"))
    });
    tokio::select! {
        biased;
        opened = opened => Ok(opened?),
        () = gone.notified() => Err(Error::msg("dropped")),
    }
}

/// C20: the callee's input likewise: an opener's body that errs, panics or is dropped is no end of it,
/// and a sender that is dropped in a body which goes on is one.
#[test]
fn a_body_that_ends_badly_never_ends_the_callees_input_well() {
    for_each_within(MINUTES, here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let dir = private_dir().expect("the scenario has a directory");
            let note = dir.join("ended");
            for way in [Way::Errs, Way::LetsGoAndErrs, Way::Panics, Way::IsCancelled] {
                rounds(async || {
                    assert!(open(&worker, way, &note).await.is_err());
                    Ok(())
                })
                .await?;
                // The callees of all contexts that were opened have ended before an answer to this.
                worker.call(quiet()).await?;
                assert!(!note.exists(), "{way:?}: a callee read to a clean end");
            }
            rounds(async || {
                assert_eq!(open(&worker, Way::Well, &note).await?, 3);
                Ok(())
            })
            .await?;
            std::fs::remove_file(&note).unwrap();
            Ok(())
        })
        .await;
    });
}

/// C20: a sender that a panic of another thread drops is no end, though the body goes on; and who waits
/// for one, on either side, doesn't wait for ever.
#[test]
fn a_sender_that_a_panic_drops_is_no_end() {
    for_each_within(MINUTES, here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let note = private_dir().expect("the scenario has a directory").join("ended");
            let dropped = async |mut cx: hatchery::Context<u64, u64, (), u64, Error>| {
                let (mut sender, mut receiver) = cx.split();
                sender.send(1).await?;
                assert_eq!(receiver.recv().await?, Some(1));
                let thread = std::thread::spawn(move || {
                    let _dropped = sender;
                    panics();
                });
                assert!(thread.join().is_err());
                Ok::<_, Error>(cx.result().await?)
            };
            for _ in 0..25 {
                let in_body = worker.open_context(note_the_end(note.clone()), dropped).await;
                assert!(matches!(in_body, Err(ContextError::Cancelled(_))), "{in_body:?}");
                let handle = worker.context(note_the_end(note.clone())).handle().await?;
                assert!(dropped(handle).await.is_err());
                worker.call(quiet()).await?;
                assert!(!note.exists(), "a callee read to a clean end");
            }
            Ok(())
        })
        .await;
    });
}

/// A number that can't be read without a panic if it is 2.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Explosive(u64);

impl<'de> Deserialize<'de> for Explosive {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(from)?;
        if number == 2 { panics() } else { Ok(Self(number)) }
    }
}

/// Sends three items when it is asked to, as all have come who will read them.
#[hatchery::context]
async fn converse_when_asked(callee: Callee<(), u64>, way: Way) -> Result<u64, Error> {
    let mut stream = callee.started(())?;
    stream.recv().await?;
    for number in 0..3 {
        stream.send(number).await?;
    }
    if way == Way::Panics { panics() } else { Ok(3) }
}

#[hatchery::context]
async fn send_explosives(callee: Callee<(), Explosive>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    stream.recv().await?;
    for number in 0..3 {
        stream.send(Explosive(number)).await?;
    }
    Ok(())
}

/// C20: none of several readers takes what was cut short for complete: not one that comes after the end, and
/// not if the task that reads for all is gone.
#[test]
fn a_broadcast_of_a_cut_stream_has_no_clean_end() {
    for_each_within(MINUTES, here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            for way in [Way::Well, Way::Panics] {
                let mut context = worker.context(converse_when_asked(way)).handle().await?;
                let (mut ask, receiver) = context.split();
                let all = receiver.broadcast(8);
                let mut early = all.subscribe();
                ask.send(()).await?;
                for number in 0..3 {
                    assert_eq!(early.recv().await?, Some(number));
                }
                let end = kind(early.recv().await);
                assert!(is_right(way, end.as_ref()), "{way:?}: {end:?}");
                // It is told once, to each.
                assert_eq!(early.recv().await?, None);
                let end = kind(all.subscribe().recv().await);
                assert!(is_right(way, end.as_ref()), "{way:?}: {end:?}");
            }
            let mut context = worker.context(send_explosives()).handle().await?;
            let (mut ask, receiver) = context.split();
            let mut broken = receiver.broadcast(8).subscribe();
            ask.send(()).await?;
            for number in 0..2 {
                assert_eq!(broken.recv().await?, Some(Explosive(number)));
            }
            let end = broken.recv().await;
            assert!(matches!(end, Err(StreamError::Ended(_))), "{end:?}");
            Ok(())
        })
        .await;
    });
}

/// Sends one item, closes its half, and then fails.
#[hatchery::context]
async fn close_and_fail(callee: Callee<Nothing, u64>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    stream.send(1).await?;
    stream.close().await?;
    Err(Error::msg("broken"))
}

/// C20: what was closed has a clean end, however late it is read, whatever its side came to later.
#[test]
fn a_half_that_was_closed_ends_well_also_when_it_is_read_late() {
    for_each_within(MINUTES, here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            for is_late in [false, true] {
                for _ in 0..25 {
                    let mut context = worker.context(close_and_fail()).handle().await?;
                    let watch = context.watch();
                    if is_late {
                        watch.over().await;
                    }
                    assert_eq!(context.recv().await?, Some(1));
                    assert_eq!(context.recv().await?, None, "{is_late}");
                    assert!(context.result().await.is_err());
                }
            }
            Ok(())
        })
        .await;
    });
}

#[hatchery::function]
async fn quiet() {}

/// For a scenario with much to do on a loaded machine, in a build that isn't optimised.
const MINUTES: Duration = Duration::from_secs(120);
