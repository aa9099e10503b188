//! What crosses without a copy: blobs in shared memory between processes, shared values between
//! threads; and what becomes of them when there is no fd, no memory, or nobody left to read them.
//!
//! Each in a process of its own, which counts threads, fds and children before and after.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use hatchery::{
    Backend, Blob, BlobBuffer, Callee, Config, ContextError, Error, FaultKind, Nothing, Resource,
    Runtime, Shared, StreamError,
};
use hatchery_tests::{BACKENDS, BUDGET, PROCESSES, came_down, for_each, for_each_with, here};
use nix::sys::resource::Resource::RLIMIT_NOFILE;
use nix::sys::resource::{getrlimit, setrlimit};

const MEBIBYTE: usize = 1 << 20;

/// Shared memory with a pattern in it.
fn written(length: usize, byte: u8) -> Blob {
    let mut buffer = BlobBuffer::zeroed(length).unwrap();
    buffer.fill(byte);
    buffer.seal().unwrap()
}

/// Whether these bytes lie in a file of shared memory, as the kernel tells.
fn is_mapped(blob: &Blob) -> bool {
    let at = blob.as_ptr().addr();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let hex = |text| usize::from_str_radix(text, 16).unwrap();
        (hex(from)..hex(to)).contains(&at) && rest.contains("memfd:hatchery-blob")
    })
}

/// How each of these came, their last bytes, and the largest of them again.
#[hatchery::function]
async fn look(blobs: Vec<Blob>) -> (Vec<(bool, u8)>, Blob) {
    let seen = blobs.iter().map(|blob| (is_mapped(blob), blob.last().copied().unwrap_or(0)));
    let seen = seen.collect();
    (seen, blobs.into_iter().max_by_key(|blob| blob.len()).unwrap_or_default())
}

/// Sends each blob back, and keeps none.
#[hatchery::context]
async fn echo(callee: Callee<Blob, (bool, Blob)>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    while let Some(blob) = stream.recv().await? {
        stream.send((is_mapped(&blob), blob)).await?;
    }
    Ok(())
}

/// Blobs that were written into shared memory are mapped on the other side, in calls, replies and
/// streams, with others in the same message; a small one is not worth it. On every backend they are
/// the same bytes.
#[test]
fn shared_memory_is_mapped_and_not_copied() {
    let config = Config {
        max_frame_bytes: 100 * MEBIBYTE,
        stream_credit: 50 * MEBIBYTE as u64,
        ..Config::with_budget(BUDGET)
    };
    for_each_with(&config, here!(), &BACKENDS, async |runtime| {
        let outcome = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                let mut blobs = vec![written(32 * MEBIBYTE, 1)];
                blobs.push(written(100, 2));
                blobs.push(Blob::from(vec![3; 30_000]));
                blobs.extend((4..=23).map(|byte| written(20_000, byte)));
                let (seen, back) = worker.call(look(blobs)).await?;
                assert!(seen.iter().map(|(_, byte)| *byte).eq(1..=23), "{seen:?}");
                assert!(seen.iter().skip(3).all(|(mapped, _)| *mapped), "{seen:?}");
                assert_eq!((back.len(), back[MEBIBYTE]), (32 * MEBIBYTE, 1));

                let (seen, back) = worker.call(look(vec![back])).await?;
                assert_eq!(seen, [(true, 1)], "a large one is passed on as it came");
                assert!(is_mapped(&back));

                let exchanged: Result<(), ContextError<Error>> = worker
                    .open_context(echo(), async |mut context| {
                        for byte in 0..200 {
                            context.send(written(20_000 + usize::from(byte), byte)).await?;
                            let (mapped, back) = context.recv().await?.unwrap();
                            assert!(mapped, "message {byte}");
                            assert!(back.iter().all(|there| *there == byte), "message {byte}");
                            assert_eq!(back.len(), 20_000 + usize::from(byte));
                        }
                        Ok(())
                    })
                    .await;
                exchanged.unwrap();
                Ok(())
            })
            .await;
        outcome.unwrap();
        runtime.close().await;
    });
}

/// Blobs over the threshold are put into shared memory on their way to a process, the others and
/// all to a thread are not.
#[test]
fn blobs_over_the_threshold_move_by_memory_file() {
    let config = Config { memfd_from_bytes: Some(MEBIBYTE), ..Config::with_budget(BUDGET) };
    for_each_with(&config, here!(), &PROCESSES, async |runtime| {
        let outcome = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                let blob = |size, byte| Blob::from(vec![byte; size]);
                let blobs = vec![blob(MEBIBYTE, 1), blob(MEBIBYTE - 1, 2), blob(2 * MEBIBYTE, 3)];
                let (seen, back) = worker.call(look(blobs)).await?;
                assert_eq!(seen, [(true, 1), (false, 2), (true, 3)]);
                assert!(is_mapped(&back) && back == blob(2 * MEBIBYTE, 3));
                let exchanged: Result<(), ContextError<Error>> = worker
                    .open_context(echo(), async |mut context| {
                        for byte in 0..5 {
                            let size = MEBIBYTE - 1 + usize::from(byte);
                            let (mapped, back) = {
                                context.send(blob(size, byte)).await?;
                                context.recv().await?.unwrap()
                            };
                            assert_eq!(mapped, byte > 0);
                            assert!(back == blob(size, byte));
                        }
                        Ok(())
                    })
                    .await;
                exchanged.unwrap();
                Ok(())
            })
            .await;
        outcome.unwrap();
        runtime.close().await;
    });
}

#[hatchery::function]
async fn fill_table() -> usize {
    let mut held = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        held.push(file);
    }
    let count = held.len();
    tokio::spawn(async move {
        let _held = held;
        std::future::pending::<()>().await;
    });
    count
}

/// Counts the messages that could not be read.
#[hatchery::context]
async fn lose(callee: Callee<Blob, Nothing>) -> Result<usize, Error> {
    let mut stream = callee.started(())?;
    let mut lost = 0;
    loop {
        match stream.recv().await {
            Ok(None) => return Ok(lost),
            Ok(Some(_)) => {}
            Err(StreamError::Unreadable(_)) => lost += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

#[hatchery::function]
async fn add(a: u64, b: u64) -> u64 {
    a + b
}

#[hatchery::function]
async fn total(blobs: Vec<Blob>) -> usize {
    blobs.iter().map(|blob| blob.len()).sum()
}

/// A process without a free fd can't take a blob by file: that call fails by name, a stream's reader
/// is told, and everything else goes on. One that came through the socket needs none.
#[test]
fn a_receiver_without_fds_loses_that_message_alone() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let outcome = runtime
            .nursery(async |n| {
                let few = n.actor("few").limit(Resource::OpenFiles, 64, 64).start().await?;
                assert!(few.call(fill_table()).await? > 0);
                let lost = few.call(total(vec![written(MEBIBYTE, 1)])).await.unwrap_err();
                assert_eq!(lost.fault().kind, FaultKind::BadArgument, "{lost:?}");
                let causes = lost.fault().causes.join(", ");
                assert!(causes.contains("no fd left"), "{lost:?}");
                assert_eq!(few.call(add(1, 2)).await?, 3);
                let through_the_socket = vec![vec![5; MEBIBYTE].into()];
                assert_eq!(few.call(total(through_the_socket)).await?, MEBIBYTE);
                // Nor does a stream stop: what is lost has its credit back.
                let told: Result<usize, ContextError<Error>> = few
                    .open_context(lose(), async |mut context| {
                        for _ in 0..20 {
                            context.send(written(MEBIBYTE, 1)).await?;
                        }
                        context.close().await?;
                        Ok(context.result().await?)
                    })
                    .await;
                assert_eq!(told.unwrap(), 20);
                Ok(())
            })
            .await;
        outcome.unwrap();
        runtime.close().await;
    });
}

/// Reads one message and keeps the stream open until it is cancelled.
#[hatchery::context]
async fn read_one(callee: Callee<Blob, Nothing>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    stream.recv().await?;
    std::future::pending().await
}

/// C10: files on their way to an actor that doesn't read, is cancelled or dies are gone with it: the
/// counts before and after are the same. So many at once are more than the kernel lets wait for one
/// user.
#[test]
fn files_that_nobody_reads_are_let_go() {
    let config = Config { stream_credit: 1 << 30, ..Config::with_budget(BUDGET) };
    for_each_with(&config, here!(), &PROCESSES, async |runtime| {
        let outcome = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                let blob = written(20_000, 1);
                let sent: Result<(), ContextError<Error>> = worker
                    .open_context(read_one(), async |mut context| {
                        for _ in 0..3_000 {
                            context.send(blob.clone()).await?;
                        }
                        Ok(())
                    })
                    .await;
                sent.unwrap();
                assert_eq!(worker.call(add(1, 2)).await?, 3);
                Ok(())
            })
            .await;
        outcome.unwrap();
        runtime.close().await;
    });
}

/// Answers when something is written to the pipe, and does nothing else meanwhile: an actor has one
/// thread.
#[hatchery::function]
async fn look_away(until: PathBuf) {
    std::fs::File::open(until).unwrap().read_exact(&mut [0]).unwrap();
}

/// Sends a hundred files to who looks away, as a user who may have thirty on their way.
#[hatchery::function]
async fn crowd(told: PathBuf) -> Result<usize, Error> {
    let blob = written(20_000, 1);
    let came = hatchery::nursery(async |n| {
        let (reader, other) = (n.start("reader").await?, n.start("other").await?);
        let mut told_to = std::fs::File::options().read(true).write(true).open(&told).unwrap();
        let (_, hard) = getrlimit(RLIMIT_NOFILE).unwrap();
        setrlimit(RLIMIT_NOFILE, 30, hard).unwrap();
        // The limit doesn't bind root.
        if nix::unistd::geteuid().is_root() {
            nix::unistd::setuid((1_000_000 + std::process::id()).into()).unwrap();
        }
        let opened = reader.context(echo()).credit(1 << 30);
        let came: Result<usize, ContextError<Error>> = opened
            .run(async |mut context| {
                let (mut sender, mut receiver) = context.split();
                let away = reader.call(look_away(told.clone()));
                let send = async {
                    for _ in 0..100 {
                        sender.send(blob.clone()).await.unwrap();
                    }
                    sender.close().await.unwrap();
                    other.call(total(vec![blob.clone()])).await.unwrap();
                    assert_eq!(other.call(add(1, 2)).await.unwrap(), 3);
                    // A start has fds of its own to send; it waits until there is room.
                    let late = async { n.run("late", add(3, 4)).await };
                    let tell = async { told_to.write_all(b"!").unwrap() };
                    assert_eq!(tokio::join!(late, tell).0.unwrap(), 7);
                };
                let receive = async {
                    let mut came = 0;
                    while let Some((_, back)) = receiver.recv().await.unwrap() {
                        assert!(back == blob);
                        came += 1;
                    }
                    came
                };
                let (away, (), came) = tokio::join!(away, send, receive);
                away.unwrap();
                Ok(came)
            })
            .await;
        Ok(came.unwrap())
    });
    Ok(came.await?)
}

/// More files on their way than a user may have, to somebody who doesn't read: the rest of them goes
/// through the socket, in order, and meanwhile others are called as ever.
#[test]
fn files_that_are_too_many_on_their_way_go_through_the_socket() {
    let config = Config { outbox_bytes: 64 * MEBIBYTE, ..Config::with_budget(BUDGET) };
    for_each_with(&config, here!(), &[Backend::Forkserver], async |runtime| {
        let told = pipe_to_look_at();
        let outcome = runtime
            .nursery(async |n| {
                let came = n.run("crowd", crowd(told.clone())).await?;
                assert_eq!(came, 100);
                Ok(())
            })
            .await;
        outcome.unwrap();
        std::fs::remove_file(told).unwrap();
        runtime.close().await;
    });
}

/// How many files of shared memory this process has open.
fn open_files() -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let names = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    names.filter(|name| name.to_string_lossy().contains("hatchery-blob")).count()
}

/// A pipe with a name that nobody else has.
fn pipe_to_look_at() -> PathBuf {
    let path = std::env::temp_dir().join(format!("hatchery-told-{}", std::process::id()));
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    path
}

/// Files that wait for who doesn't read count as much as bytes would: callers wait, and no more of them
/// are made than fit.
#[test]
fn files_that_wait_count_for_the_queue() {
    let config = Config { memfd_from_bytes: Some(MEBIBYTE / 4), ..Config::with_budget(BUDGET) };
    for_each_with(&config, here!(), &PROCESSES, async |runtime| {
        let told = pipe_to_look_at();
        let mut told_to = std::fs::File::options().read(true).write(true).open(&told).unwrap();
        let outcome = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                let away = worker.call(look_away(told.clone()));
                let calls = async {
                    let calls = (0..200)
                        .map(|_| worker.call(total(vec![vec![1; MEBIBYTE].into()])).into_future());
                    futures_util::future::join_all(calls).await
                };
                let told = async {
                    // Each of them has had its turn by now.
                    tokio::task::yield_now().await;
                    let files = open_files();
                    told_to.write_all(b"!").unwrap();
                    files
                };
                let (away, calls, files) = tokio::join!(away, calls, told);
                away?;
                assert!(calls.into_iter().all(|total| total.unwrap() == MEBIBYTE));
                assert!(files <= 32, "{files} files");
                Ok(())
            })
            .await;
        outcome.unwrap();
        std::fs::remove_file(told).unwrap();
        runtime.close().await;
    });
}

/// What can't be had is a typed error, and nothing of it stays.
#[test]
fn memory_that_can_not_be_had_is_a_typed_error() {
    for_each(here!(), &[Backend::Forkserver], async |runtime| {
        assert!(BlobBuffer::zeroed(0).unwrap().seal().unwrap().is_empty());
        let error = BlobBuffer::zeroed(usize::MAX / 4).unwrap_err();
        assert!(error.to_string().contains("shared memory for a blob of"), "{error}");
        let before = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
        let mut held = Vec::new();
        let (soft, hard) = getrlimit(RLIMIT_NOFILE).unwrap();
        setrlimit(RLIMIT_NOFILE, 100, hard).unwrap();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            held.push(file);
        }
        let error = BlobBuffer::zeroed(MEBIBYTE).unwrap_err();
        assert!(error.to_string().contains("Too many open files"), "{error}");
        drop(held);
        setrlimit(RLIMIT_NOFILE, soft, hard).unwrap();
        assert_eq!(std::fs::File::open("/dev/null").unwrap().as_raw_fd(), before);
        runtime.close().await;
    });
}

/// More than a process's address and a field that is left out: what tells a hand-over from a copy.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Table {
    rows: Vec<(u64, String)>,
    #[serde(skip)]
    handed_over: bool,
}

fn table(rows: u64) -> Shared<Table> {
    let rows = (0..rows).map(|row| (row, format!("row {row}"))).collect();
    Shared::new(Table { rows, handed_over: true })
}

#[hatchery::function]
async fn sum(tables: Vec<Shared<Table>>, first: Shared<Table>) -> (bool, u64, Shared<Table>) {
    let sum = tables.iter().flat_map(|table| &table.rows).map(|(row, _)| *row).sum();
    (first.handed_over, sum, first)
}

#[hatchery::context]
async fn double(callee: Callee<Shared<Table>, Shared<Table>>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    while let Some(table) = stream.recv().await? {
        stream.send(table.clone()).await?;
        stream.send(table).await?;
    }
    Ok(())
}

/// Shared values on threads: the same value on both sides, in calls and streams.
#[test]
fn shared_values_are_handed_over_on_threads() {
    let config = Config { max_frame_bytes: MEBIBYTE, ..Config::with_budget(BUDGET) };
    for_each_with(&config, here!(), &[Backend::Thread], async |runtime| share(runtime, true).await);
}

/// The same in processes: an equal value, past the same limits.
#[test]
fn shared_values_are_decoded_in_processes() {
    let config = Config { max_frame_bytes: MEBIBYTE, ..Config::with_budget(BUDGET) };
    for_each_with(&config, here!(), &PROCESSES, async |runtime| share(runtime, false).await);
}

async fn share(runtime: Runtime, same: bool) {
    let is_same = |one: &Shared<Table>, other: &Shared<Table>| {
        assert_eq!(one.rows, other.rows);
        std::ptr::eq(&raw const **one, &raw const **other)
    };
    let outcome = runtime
        .nursery(async |n| {
            let worker = n.start("worker").await?;
            let first = table(1_000);
            let call = sum(vec![table(10), table(0), table(10)], first.clone());
            let (handed_over, rows, back) = worker.call(call).await?;
            assert_eq!((rows, handed_over, back.handed_over), (90, same, same));
            assert_eq!(is_same(&back, &first), same);
            let over = worker.call(sum(vec![table(100_000)], table(1))).await.unwrap_err();
            assert_eq!(over.fault().kind, FaultKind::TooLarge, "{over:?}");

            let doubled: Result<(), ContextError<Error>> = worker
                .open_context(double(), async |mut context| {
                    for rows in 0..300 {
                        let table = table(rows);
                        context.send(table.clone()).await?;
                        for _ in 0..2 {
                            let back = context.recv().await?.unwrap();
                            assert_eq!(is_same(&back, &table), same, "message {rows}");
                        }
                    }
                    Ok(())
                })
                .await;
            doubled.unwrap();
            Ok(())
        })
        .await;
    outcome.unwrap();
    runtime.close().await;
}

/// A value that no encoding is to be had of.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
enum Bad {
    Panics,
    Fails,
}

impl serde::Serialize for Bad {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Panics => panic!("not today"),
            Self::Fails => Err(serde::ser::Error::custom("not today")),
        }
    }
}

#[hatchery::function]
async fn take(bad: Shared<Bad>) {
    drop(bad);
}

#[hatchery::function]
async fn give(panics: bool) -> Shared<Bad> {
    Shared::new(if panics { Bad::Panics } else { Bad::Fails })
}

/// Says something bad first, and then that it could not.
#[hatchery::context]
async fn start_badly(callee: Callee<Shared<Bad>, Nothing, Shared<Bad>>) -> Result<(), Error> {
    match callee.started(Shared::new(Bad::Fails)) {
        Err(StreamError::BadMessage(fault)) => {
            Err(std::io::Error::other(format!("as it should: {fault}")).into())
        }
        other => panic!("{other:?}"),
    }
}

#[hatchery::context]
async fn take_all(callee: Callee<Shared<Bad>, Nothing>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    while stream.recv().await?.is_some() {}
    Ok(())
}

/// C4, C14: a shared value whose encoding fails or panics does so where a plain value would: in the
/// call, in the function that returns it, in the task that sends it; and the connection lives.
#[test]
fn a_shared_value_that_can_not_be_encoded_fails_like_any_value() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let outcome = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                let lives = async || assert_eq!(worker.call(add(1, 2)).await.unwrap(), 3);
                let kind = |error: hatchery::CallError| error.fault().kind.clone();

                let fails = worker.call(take(Bad::Fails.into())).await.unwrap_err();
                assert_eq!(kind(fails), FaultKind::BadArgument);
                let portal = worker.clone();
                let panics =
                    tokio::spawn(async move { portal.call(take(Bad::Panics.into())).await });
                assert!(panics.await.unwrap_err().is_panic());
                lives().await;
                let fails = worker.call(give(false)).await.unwrap_err();
                assert_eq!(kind(fails), FaultKind::BadReply);
                let panics = worker.call(give(true)).await.unwrap_err();
                assert_eq!(kind(panics), FaultKind::Panicked);
                lives().await;

                let begun: Result<(), ContextError<Error>> =
                    worker.open_context(start_badly(), async |_| Ok(())).await;
                assert!(format!("{begun:?}").contains("as it should"), "{begun:?}");
                lives().await;
                let portal = worker.clone();
                let sent = tokio::spawn(async move {
                    let sent: Result<(), ContextError<Error>> = portal
                        .open_context(take_all(), async |mut context| {
                            let fails = context.send(Bad::Fails.into()).await;
                            assert!(matches!(fails, Err(StreamError::BadMessage(_))), "{fails:?}");
                            context.send(Bad::Panics.into()).await?;
                            Ok(())
                        })
                        .await;
                    sent
                });
                let told = format!("{:?}", sent.await);
                assert!(told.contains("not today"), "{told}");
                lives().await;
                Ok(())
            })
            .await;
        outcome.unwrap();
        runtime.close().await;
    });
}

/// A value whose destructor panics on the actor's thread, the first time.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Explodes;

impl Drop for Explodes {
    fn drop(&mut self) {
        static FIRST: AtomicBool = AtomicBool::new(true);
        if std::thread::current().name() == Some("fragile") {
            assert!(!FIRST.swap(false, Ordering::SeqCst), "it was dropped");
        }
    }
}

/// Reads nothing, for ever.
#[hatchery::context]
async fn reads_nothing(callee: Callee<Shared<Explodes>, Nothing>) -> Result<(), Error> {
    let (_sender, receiver) = callee.started(())?.split();
    drop(receiver);
    std::future::pending().await
}

/// C2, C4: a destructor that panics while the actor drops what nobody reads leaves no actor behind that hears
/// nothing: it goes, and tells why.
#[test]
fn an_actor_whose_reader_panics_goes_and_tells_why() {
    for_each(here!(), &[Backend::Thread], async |runtime| {
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let fragile = n.start("fragile").await?;
                let mut context = fragile.context(reads_nothing()).handle().await?;
                while context.send(Shared::new(Explodes)).await.is_ok() {}
                fragile.settled().await;
                Ok(())
            })
            .await;
        let error = came_down(down);
        let fault = &error.faults()[0];
        assert_eq!((fault.path.as_str(), &fault.kind), ("root/fragile", &FaultKind::Panicked));
        assert!(fault.message.contains("it was dropped"), "{}", error.render());
        runtime.close().await;
    });
}
