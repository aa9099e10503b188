//! Values that move between a spawner and its thread as they are, where the configuration says so:
//! the same calls, limits and errors as on processes, nothing decoded, nothing left.
//!
//! Each in a process of its own, which counts values on their way before and after.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context as Task, Waker};

use futures_core::Stream;
use futures_util::future::poll_immediate;
use hatchery::{
    Backend, Callee, Config, ContextError, Error, FaultKind, Nothing, Peer, Policy, Portal,
    StreamError, Watch,
};
use hatchery_tests::{BACKENDS, PROCESSES, ROOMY, for_each_with, here};
use serde::{Deserialize, Deserializer, Serialize};

/// Every value moves where one can. Nobody is stuck here.
fn all_move() -> Config {
    Config { move_from_bytes: Some(0), ..Config::with_budget(ROOMY) }
}

/// What it holds beside its rows is there after a move alone.
#[derive(Debug, Serialize, Deserialize)]
struct Freight {
    #[serde(deserialize_with = "decoded")]
    rows: Vec<u64>,
    #[serde(skip)]
    ticket: Option<Ticket>,
}

/// How often one was decoded in this process.
static DECODED: AtomicUsize = AtomicUsize::new(0);

fn decoded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    DECODED.fetch_add(1, Relaxed);
    Vec::deserialize(deserializer)
}

/// Counts who holds one; dropped, it uses what a destructor of a user's may use.
#[derive(Debug)]
struct Ticket {
    count: Arc<()>,
}

/// Which threads have dropped one.
static DROPPED_BY: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What a dropped ticket looks at, which takes the locks of its context and of its connection.
static LOOKED_AT: Mutex<Option<(Portal, Option<Watch>)>> = Mutex::new(None);

impl Drop for Ticket {
    fn drop(&mut self) {
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        DROPPED_BY.lock().unwrap().push(thread);
        let looked_at = LOOKED_AT.lock().unwrap().clone();
        if let Some((portal, watch)) = looked_at {
            let call = pin!(portal.call(add(1, 2)).into_future());
            // Begun and given up.
            let _begun = call.poll(&mut Task::from_waker(Waker::noop()));
            let _stats = watch.map(|watch| watch.stats());
        }
    }
}

fn freight(rows: u64) -> Freight {
    Freight { rows: (0..rows).collect(), ticket: None }
}

/// One with a ticket that is counted there.
fn counted(rows: u64, count: &Arc<()>) -> Freight {
    Freight { ticket: Some(Ticket { count: count.clone() }), ..freight(rows) }
}

/// Whether it came as it is, which no decoding may have had a part in.
fn moved(freight: &Freight) -> bool {
    freight.ticket.is_some()
}

#[hatchery::function]
async fn add(a: u64, b: u64) -> u64 {
    a + b
}

/// Says how its argument came, and sends it back.
#[hatchery::function]
async fn pass_on(freight: Freight) -> (bool, Freight) {
    (moved(&freight), freight)
}

#[hatchery::function]
async fn pass_on_if(freight: Freight, well: bool) -> Result<(bool, Freight), Error> {
    if !well {
        return Err(std::io::Error::other("not well").into());
    }
    Ok((moved(&freight), freight))
}

/// Begins with its argument, sends each message back, and ends with the last of them.
#[hatchery::context]
async fn converse(
    callee: Callee<Freight, (bool, Freight), (bool, Freight)>,
    first: Freight,
) -> Result<(bool, Freight), Error> {
    let mut stream = callee.started((moved(&first), first))?;
    let mut last = freight(0);
    while let Some(next) = stream.recv().await? {
        stream.send((moved(&next), std::mem::replace(&mut last, next))).await?;
    }
    Ok((moved(&last), last))
}

#[hatchery::function]
fn repeat(freight: Freight, times: u64) -> impl Stream<Item = (bool, Freight)> {
    let count = Arc::new(());
    let came = moved(&freight);
    futures_util::stream::iter((0..times).map(move |rows| (came, counted(rows, &count))))
}

/// All ways there are, on one connection; each arrives moved, or each as a copy.
async fn all_ways(portal: &Portal, moves: bool) -> hatchery::Result<()> {
    let count = Arc::new(());
    let check = |(came, back): (bool, Freight), rows| {
        assert_eq!((came, moved(&back), back.rows.len()), (moves, moves, rows));
    };
    check(portal.call(pass_on(counted(100, &count))).await?, 100);
    check(portal.call(pass_on_if(counted(10, &count), true)).await?, 10);
    let fails = portal.call(pass_on_if(counted(10, &count), false)).await.unwrap_err();
    assert!(format!("{fails:?}").contains("not well"), "{fails:?}");
    let talked: Result<(), ContextError<Error>> = portal
        .open_context(converse(counted(3, &count)), async |mut context| {
            let (came, back) = context.started();
            assert_eq!((*came, moved(back), back.rows.len()), (moves, moves, 3));
            for rows in 0..200 {
                context.send(counted(rows, &count)).await?;
                let (came, back) = context.recv().await?.unwrap();
                // The first one that comes back is the callee's own, without a ticket.
                let is_first = rows == 0;
                assert_eq!((came, moved(&back)), (moves, moves && !is_first), "message {rows}");
            }
            context.close().await?;
            check(context.result().await?, 199);
            // What has moved was had.
            assert_eq!(context.result().await.is_err(), moves);
            Ok(())
        })
        .await;
    talked.unwrap();
    let mut items = portal.stream(repeat(counted(7, &count), 100)).await?;
    let mut rows = 0;
    while let Some(item) = items.next().await? {
        check(item, rows);
        rows += 1;
    }
    assert_eq!(rows, 100);
    drop(items);
    assert_eq!(Arc::strong_count(&count), 1, "what has come is dropped");
    Ok(())
}

/// As its child, in an actor.
#[hatchery::function]
async fn below(freight: Freight) -> Result<(bool, Freight), Error> {
    let back = hatchery::nursery(async |n| {
        let grandchild = n.start("grandchild").await?;
        all_ways(&grandchild, moved(&freight)).await?;
        Ok(grandchild.call(pass_on(freight)).await?)
    });
    Ok(back.await?)
}

/// Arguments, replies, first values, messages both ways, results and items move to a thread and back
/// as they are, at any depth: nothing is decoded.
#[test]
fn everything_moves_between_a_spawner_and_its_thread() {
    for_each_with(&all_move(), here!(), &[Backend::Thread], async |runtime| {
        let count = Arc::new(());
        let outcome = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                all_ways(&worker, true).await?;
                let (came, back) = n.run("above", below(counted(5, &count))).await?;
                assert!(came && moved(&back));
                Ok(())
            })
            .await;
        outcome.unwrap();
        assert_eq!((DECODED.load(Relaxed), Arc::strong_count(&count)), (0, 1));
        runtime.close().await;
    });
}

/// C14: unless it is asked for, and for processes always, every value is encoded.
#[test]
fn without_being_asked_and_for_processes_values_are_encoded() {
    let both = [(Config::with_budget(ROOMY), &BACKENDS[..]), (all_move(), &PROCESSES)];
    for (config, backends) in both {
        for_each_with(&config, here!(), backends, async |runtime| {
            let before = DECODED.load(Relaxed);
            let outcome = runtime
                .nursery(async |n| {
                    all_ways(&n.start("worker").await?, false).await?;
                    let (came, back) = n.run("above", below(freight(5))).await?;
                    assert!(!came && !moved(&back));
                    Ok(())
                })
                .await;
            outcome.unwrap();
            assert!(DECODED.load(Relaxed) > before);
            runtime.close().await;
        });
    }
}

#[hatchery::function]
async fn visit(peer: Peer) -> Result<(), Error> {
    let peer = peer.connect().await?;
    let count = Arc::new(());
    let (came, back) = peer.call(pass_on(counted(5, &count))).await?;
    assert!(!came && !moved(&back));
    Ok(())
}

/// Peers have a socket between them and nothing beside it, also inside of one process.
#[test]
fn between_peers_values_are_encoded() {
    for_each_with(&all_move(), here!(), &[Backend::Thread], async |runtime| {
        let outcome = runtime
            .nursery(async |n| {
                let (one, other) = (n.start("one").await?, n.start("other").await?);
                Ok(one.call(visit(other.peer().await?)).await?)
            })
            .await;
        outcome.unwrap();
        runtime.close().await;
    });
}

/// From a length on: it is told by the value, not by the call.
#[test]
fn values_move_from_the_length_on_that_was_asked_for() {
    let config = Config { move_from_bytes: Some(1_000), ..all_move() };
    for_each_with(&config, here!(), &[Backend::Thread], async |runtime| {
        let count = Arc::new(());
        let outcome = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                let talked: Result<(), ContextError<Error>> = worker
                    .open_context(converse(counted(3, &count)), async |mut context| {
                        assert!(!context.started().0);
                        for rows in [10, 1_000, 10, 1_000] {
                            let (came, _) = worker.call(pass_on(counted(rows, &count))).await?;
                            assert_eq!(came, rows == 1_000);
                            context.send(counted(rows, &count)).await?;
                            assert_eq!(context.recv().await?.unwrap().0, rows == 1_000);
                        }
                        Ok(())
                    })
                    .await;
                talked.unwrap();
                Ok(())
            })
            .await;
        outcome.unwrap();
        runtime.close().await;
    });
}

#[hatchery::function]
async fn length(text: String) -> usize {
    text.len()
}

#[hatchery::function]
async fn text(length: usize) -> String {
    "x".repeat(length)
}

/// Begins with a text of that length, and reads nothing.
#[hatchery::context]
async fn hold(callee: Callee<String, Nothing, String>, length: usize) -> Result<(), Error> {
    let _stream = callee.started("x".repeat(length))?;
    std::future::pending().await
}

/// The longest text for which `accepts` says yes.
async fn longest(accepts: impl AsyncFn(usize) -> bool) -> usize {
    let (mut good, mut bad) = (0_usize, 1 << 18);
    while bad - good > 1 {
        let middle = good.midpoint(bad);
        if accepts(middle).await { good = middle } else { bad = middle }
    }
    good
}

/// C14: what fits into a message, and how many messages into a stream's credit, is the same to the
/// byte whether a value moves or is encoded.
#[test]
fn the_limits_are_those_of_processes() {
    static FIRST: OnceLock<Vec<u64>> = OnceLock::new();
    let config = Config { max_frame_bytes: 100_000, ..all_move() };
    for_each_with(&config, here!(), &BACKENDS, async |runtime| {
        let outcome = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                let fits = |kind: Result<(), FaultKind>| match kind {
                    Ok(()) => true,
                    Err(FaultKind::TooLarge) => false,
                    Err(other) => panic!("{other:?}"),
                };
                let kind = |error: hatchery::CallError| error.fault().kind.clone();
                let argument = longest(async |size| {
                    fits(worker.call(length("x".repeat(size))).await.map(drop).map_err(kind))
                });
                let reply = longest(async |size| {
                    fits(worker.call(text(size)).await.map(drop).map_err(kind))
                });
                let first = longest(async |size| worker.context(hold(size)).handle().await.is_ok());
                let message = longest(async |size| {
                    let mut context = worker.context(hold(0)).handle().await.unwrap();
                    context.send("x".repeat(size)).await.is_ok()
                });
                let (argument, reply) = (argument.await, reply.await);
                let (first, message) = (first.await, message.await);
                let opening = worker.context(hold(0)).credit(50_000).policy(Policy::Fail);
                let mut context = opening.handle().await.unwrap();
                let mut sent = 0;
                while context.send("x".repeat(1_000)).await.is_ok() {
                    sent += 1;
                }
                let limits = [argument, reply, first, message, sent].map(|limit| limit as u64);
                assert_eq!(FIRST.get_or_init(|| limits.to_vec())[..], limits);
                assert!(limits[..4].iter().all(|limit| (99_000..100_000).contains(limit)));
                assert!((30..=50).contains(&sent), "{sent}");
                Ok(())
            })
            .await;
        outcome.unwrap();
        runtime.close().await;
    });
}

/// Begins, looks away until something is written to the pipe, which no other task of the actor gets
/// around: it has one thread. What it begins with is out by then, if the actor has said nothing else
/// yet. Then reads all, and says how many there were.
#[hatchery::context]
async fn look_away(callee: Callee<Freight, Nothing>, until: PathBuf) -> Result<usize, Error> {
    let mut stream = callee.started(())?;
    std::fs::File::open(until).unwrap().read_exact(&mut [0]).unwrap();
    let mut count = 0;
    while stream.recv().await?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// A pipe with a name that nobody else has, and its writing end.
fn pipe_to_look_at() -> (PathBuf, std::fs::File) {
    let path = std::env::temp_dir().join(format!("hatchery-moved-{}", std::process::id()));
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let told_to = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    (path, told_to)
}

/// Values that wait for who doesn't read count as bytes would: who sends waits until those before were
/// taken, and goes on then.
#[test]
fn values_that_wait_count_for_the_queue() {
    let config = Config { outbox_bytes: 200_000, ..all_move() };
    for_each_with(&config, here!(), &BACKENDS, async |runtime| {
        let (told, mut told_to) = pipe_to_look_at();
        let outcome = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                let opening = worker.context(look_away(told.clone())).credit(1 << 30);
                let read: Result<usize, ContextError<Error>> = opening
                    .run(async |mut context| {
                        let (mut sender, _nothing) = context.split();
                        let mut send = Box::pin(async move {
                            for _ in 0..100 {
                                // 20 KB or so.
                                sender.send(freight(8_000)).await.unwrap();
                            }
                            sender.close().await.unwrap();
                        });
                        assert!(poll_immediate(&mut send).await.is_none());
                        // A socket holds as much again and more.
                        let sent = context.stats().sent;
                        assert!((5..60).contains(&sent), "{sent} messages");
                        told_to.write_all(b"!").unwrap();
                        send.await;
                        Ok(context.result().await?)
                    })
                    .await;
                assert_eq!(read.unwrap(), 100);
                Ok(())
            })
            .await;
        outcome.unwrap();
        std::fs::remove_file(told).unwrap();
        runtime.close().await;
    });
}

/// Begins with a freight that is counted as its argument is, sends so many of them, and ends with one.
#[hatchery::context]
async fn pour(
    callee: Callee<Nothing, Freight, Freight>,
    first: Freight,
    times: u64,
) -> Result<Freight, Error> {
    let count = first.ticket.as_ref().map(|ticket| ticket.count.clone()).unwrap();
    drop(first);
    let (mut sender, _nothing) = callee.started(counted(1, &count))?.split();
    for rows in 0..times {
        match sender.send(counted(rows, &count)).await {
            Ok(()) | Err(StreamError::Closed) => {}
            Err(error) => return Err(error.into()),
        }
    }
    sender.close().await?;
    Ok(counted(1, &count))
}

/// Waits until nobody holds one any more: `worker` has other tasks too, which have their turns.
async fn all_gone(worker: &Portal, count: &Arc<()>) {
    while Arc::strong_count(count) > 1 {
        assert_eq!(worker.call(add(1, 2)).await.unwrap(), 3);
    }
}

/// Runs a scenario with a worker, whose values nobody takes: their destructors use the worker, so they
/// would lock up where its locks are held, and none of them runs on the supervisor's thread.
fn drops(test: &str, scenario: impl AsyncFn(&hatchery::Nursery, &Arc<()>) -> hatchery::Result<()>) {
    let config = Config { max_frame_bytes: 65_536, ..all_move() };
    for_each_with(&config, test, &[Backend::Thread], async |runtime| {
        let count = Arc::new(());
        let outcome = runtime.nursery(async |n| scenario(&n, &count).await).await;
        look_at(None);
        outcome.unwrap();
        assert_eq!(Arc::strong_count(&count), 1);
        let dropped_by = DROPPED_BY.lock().unwrap().clone();
        assert!(!dropped_by.is_empty());
        assert!(!dropped_by.iter().any(|thread| thread == "hatchery"), "{dropped_by:?}");
        runtime.close().await;
    });
}

fn look_at(looked_at: Option<(&Portal, Option<Watch>)>) {
    *LOOKED_AT.lock().unwrap() = looked_at.map(|(portal, watch)| (portal.clone(), watch));
}

/// Calls, arguments and messages that nobody has read are dropped when they are given up, and by the
/// end of an actor that never read them.
#[test]
fn what_nobody_reads_is_dropped() {
    drops(here!(), async |n, count| {
        let (told, mut told_to) = pipe_to_look_at();
        for (name, goes) in [("stays", false), ("goes", true)] {
            let worker = n.start(name).await?;
            let mut away = worker.context(look_away(told.clone())).handle().await.unwrap();
            look_at(Some((&worker, Some(away.watch()))));
            let mut call = Box::pin(worker.call(pass_on(counted(10, count))).into_future());
            assert!(poll_immediate(&mut call).await.is_none());
            let mut opening = Box::pin(worker.context(pour(counted(10, count), 3)).handle());
            assert!(poll_immediate(&mut opening).await.is_none());
            for rows in 0..3 {
                away.send(counted(rows, count)).await?;
            }
            if goes {
                worker.cancel();
            } else {
                drop((call, opening, away));
            }
            assert_eq!(Arc::strong_count(count), 6, "they are on their way");
            told_to.write_all(b"!").unwrap();
            if !goes {
                all_gone(&worker, count).await;
                worker.cancel();
            }
            worker.settled().await;
        }
        std::fs::remove_file(told).unwrap();
        Ok(())
    });
}

/// Replies, first values, results and messages that have come are dropped with who has not taken them.
#[test]
fn what_has_come_to_nobody_is_dropped() {
    drops(here!(), async |n, count| {
        let worker = n.start("worker").await?;
        look_at(Some((&worker, None)));
        let mut call = Box::pin(worker.call(pass_on(counted(10, count))).into_future());
        // Another core may have answered before this has looked; then that is nobody's as well.
        let called = poll_immediate(&mut call).await;
        let mut opening = Box::pin(worker.context(pour(counted(10, count), 3)).handle());
        let opened = poll_immediate(&mut opening).await;
        for _ in 0..10 {
            assert_eq!(worker.call(add(1, 2)).await?, 3);
        }
        assert!(Arc::strong_count(count) > 1);
        drop((call, opening, called, opened));
        all_gone(&worker, count).await;

        for policy in [Policy::Wait, Policy::DropOldest] {
            let opening = worker.context(pour(counted(10, count), 100)).policy(policy);
            let mut context = opening.credit(1_024).handle().await.unwrap();
            look_at(Some((&worker, Some(context.watch()))));
            let (_, mut receiver) = context.split();
            assert!(receiver.recv().await?.is_some());
            drop(receiver);
            let last = context.result().await.unwrap();
            assert_eq!(last.rows, [0]);
            drop((context, last));
            all_gone(&worker, count).await;
        }
        let opening = worker.context(pour(counted(10, count), 10_000));
        drop(opening.handle().await.unwrap());
        all_gone(&worker, count).await;
        Ok(())
    });
}

/// What can't be sent is dropped after the locks that were held to try it.
#[test]
fn what_is_too_large_is_dropped() {
    drops(here!(), async |n, count| {
        let worker = n.start("worker").await?;
        look_at(Some((&worker, None)));
        let large = || counted(65_536, count);
        let refused = worker.call(pass_on(large())).await.unwrap_err();
        assert_eq!(refused.fault().kind, FaultKind::TooLarge);
        let refused = worker.call(pour_out(counted(1, count))).await.unwrap_err();
        assert_eq!(refused.fault().kind, FaultKind::TooLarge);
        let refused = worker.context(pour(large(), 1)).handle().await.unwrap_err();
        assert!(format!("{refused:?}").contains("TooLarge"), "{refused:?}");
        let opening = worker.context(leave_early(counted(1, count)));
        let mut context = opening.handle().await.unwrap();
        look_at(Some((&worker, Some(context.watch()))));
        let refused = context.send(large()).await.unwrap_err();
        assert!(matches!(refused, StreamError::BadMessage(_)), "{refused:?}");
        drop(context);
        let begun = worker.context(start_too_large(counted(1, count))).handle().await;
        assert!(format!("{begun:?}").contains("saying `started`"), "{begun:?}");
        all_gone(&worker, count).await;
        Ok(())
    });
}

/// Answers with more than fits.
#[hatchery::function]
async fn pour_out(first: Freight) -> Freight {
    let count = first.ticket.as_ref().map(|ticket| ticket.count.clone()).unwrap();
    counted(65_536, &count)
}

/// Reads nothing.
#[hatchery::context]
async fn leave_early(callee: Callee<Freight, Nothing>, first: Freight) -> Result<(), Error> {
    let _stream = callee.started(())?;
    drop(first);
    std::future::pending().await
}

/// Begins with more than fits.
#[hatchery::context]
async fn start_too_large(
    callee: Callee<Nothing, Nothing, Freight>,
    first: Freight,
) -> Result<(), Error> {
    let count = first.ticket.as_ref().map(|ticket| ticket.count.clone()).unwrap();
    let before = LOOKED_AT.lock().unwrap().clone();
    if let Some((portal, _)) = &before {
        look_at(Some((portal, Some(callee.watch()))));
    }
    let started = callee.started(counted(65_536, &count));
    *LOOKED_AT.lock().unwrap() = before;
    started.map(drop).map_err(Error::from)
}

/// A value with a destructor that fails.
#[derive(Debug, Serialize, Deserialize)]
struct Explodes;

impl Drop for Explodes {
    fn drop(&mut self) {
        panic!("it was dropped");
    }
}

#[hatchery::function]
async fn defuse(explodes: Explodes) {
    std::mem::forget(explodes);
}

/// A destructor that panics where nobody has taken its value ends neither the connection nor the actor.
#[test]
fn a_destructor_that_panics_on_the_way_disturbs_nobody() {
    for_each_with(&all_move(), here!(), &[Backend::Thread], async |runtime| {
        let (told, mut told_to) = pipe_to_look_at();
        let outcome = runtime
            .nursery(async |n| {
                for (name, cancelled) in [("stays", false), ("goes", true)] {
                    let worker = n.start(name).await?;
                    let away = worker.context(look_away(told.clone())).handle().await.unwrap();
                    for _ in 0..3 {
                        let call = worker.call(defuse(Explodes)).into_future();
                        assert!(poll_immediate(call).await.is_none());
                    }
                    if cancelled {
                        worker.cancel();
                    }
                    told_to.write_all(b"!").unwrap();
                    drop(away);
                    if !cancelled {
                        assert_eq!(worker.call(add(1, 2)).await?, 3);
                        worker.call(defuse(Explodes)).await?;
                        worker.cancel();
                    }
                    worker.settled().await;
                }
                Ok(())
            })
            .await;
        outcome.unwrap();
        std::fs::remove_file(told).unwrap();
        runtime.close().await;
    });
}

/// A value that no encoding is to be had of.
#[derive(Debug, Clone, Copy, Deserialize)]
enum Bad {
    Panics,
    Fails,
}

impl Serialize for Bad {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Panics => panic!("not today"),
            Self::Fails => Err(serde::ser::Error::custom("not today")),
        }
    }
}

#[hatchery::function]
async fn take(bad: Bad) {
    let _bad = bad;
}

#[hatchery::function]
async fn give(bad: u8) -> Bad {
    if bad == 0 { Bad::Fails } else { Bad::Panics }
}

/// Says something bad first, and then that it could not.
#[hatchery::context]
async fn start_badly(callee: Callee<Bad, Nothing, Bad>) -> Result<(), Error> {
    match callee.started(Bad::Fails) {
        Err(StreamError::BadMessage(fault)) => {
            Err(std::io::Error::other(format!("as it should: {fault}")).into())
        }
        other => panic!("{other:?}"),
    }
}

#[hatchery::context]
async fn take_all(callee: Callee<Bad, Nothing>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    while stream.recv().await?.is_some() {}
    Ok(())
}

#[hatchery::context]
async fn take_first(callee: Callee<Nothing, Nothing>, bad: Bad) -> Result<(), Error> {
    callee.started(())?;
    let _bad = bad;
    Ok(())
}

/// C4, C14: what can't be encoded doesn't move either. It fails where it is sent, by the same words on
/// each backend, and the connection lives.
#[test]
fn what_can_not_be_encoded_is_the_same_error() {
    static FIRST: OnceLock<Vec<String>> = OnceLock::new();
    for_each_with(&all_move(), here!(), &BACKENDS, async |runtime| {
        let mut told = Vec::new();
        let outcome = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                let lives = async || assert_eq!(worker.call(add(1, 2)).await.unwrap(), 3);
                let mut tell = |fault: &hatchery::Fault| {
                    told.push(format!("{:?}: {}, {:?}", fault.kind, fault.message, fault.causes));
                };

                let fails = worker.call(take(Bad::Fails)).await.unwrap_err();
                assert_eq!(fails.fault().kind, FaultKind::BadArgument);
                tell(fails.fault());
                let portal = worker.clone();
                let panics = tokio::spawn(async move { portal.call(take(Bad::Panics)).await });
                assert!(panics.await.unwrap_err().is_panic());
                lives().await;
                let fails = worker.call(give(0)).await.unwrap_err();
                assert_eq!(fails.fault().kind, FaultKind::BadReply);
                tell(fails.fault());
                let panics = worker.call(give(1)).await.unwrap_err();
                assert_eq!(panics.fault().kind, FaultKind::Panicked);
                tell(panics.fault());
                lives().await;

                let fails = worker.context(take_first(Bad::Fails)).handle().await.unwrap_err();
                assert!(format!("{fails:?}").contains("BadArgument"), "{fails:?}");
                let portal = worker.clone();
                let panics = tokio::spawn(async move {
                    portal.context(take_first(Bad::Panics)).handle().await.map(drop)
                });
                assert!(panics.await.unwrap_err().is_panic());
                let begun: Result<(), ContextError<Error>> =
                    worker.open_context(start_badly(), async |_| Ok(())).await;
                assert!(format!("{begun:?}").contains("as it should"), "{begun:?}");
                lives().await;
                let portal = worker.clone();
                let sent = tokio::spawn(async move {
                    let sent: Result<(), ContextError<Error>> = portal
                        .open_context(take_all(), async |mut context| {
                            let fails = context.send(Bad::Fails).await;
                            assert!(matches!(fails, Err(StreamError::BadMessage(_))), "{fails:?}");
                            context.send(Bad::Panics).await?;
                            Ok(())
                        })
                        .await;
                    sent
                });
                assert!(format!("{:?}", sent.await).contains("not today"));
                lives().await;
                Ok(())
            })
            .await;
        outcome.unwrap();
        assert_eq!(*FIRST.get_or_init(|| told.clone()), told);
        runtime.close().await;
    });
}
