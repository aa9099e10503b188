//! Scenarios 46 and 47, H3: a channel that breaks under open contexts and streams, from either side,
//! in the midst of a message or after a clean end. Both sides learn it, and the tree still ends.
//!
//! Each in a process of its own, which counts threads, fds and children before and after.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::sync::Mutex;
use std::time::Duration;

use hatchery::{
    Callee, ContextError, Error, FaultKind, Nothing, Portal, Runtime, Step, StreamError,
};
use hatchery_tests::{
    BACKENDS, BUDGET, PROCESSES, SLACK, came_down, for_each, for_each_with, hasty, here,
};
use nix::sys::socket::{Shutdown, shutdown};

/// The stream sockets of this process: its channels, and nothing else that these tests have.
fn channels() -> BTreeSet<RawFd> {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let is_stream = |inode: &str| {
        table.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(4) == Some(&"0001") && fields.get(6) == Some(&inode)
        })
    };
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let streams = fds.filter(|fd| {
        let to = std::fs::read_link(fd.path()).unwrap_or_default();
        let to = to.to_string_lossy().into_owned();
        to.strip_prefix("socket:[").and_then(|to| to.strip_suffix(']')).is_some_and(is_stream)
    });
    streams.map(|fd| fd.file_name().to_string_lossy().parse().unwrap()).collect()
}

fn break_channels(but: &BTreeSet<RawFd>) {
    for fd in channels().difference(but) {
        // The other side may have been quicker.
        let _broken = shutdown(*fd, Shutdown::Both);
    }
}

/// What the callee of this test saw at its end, in a file, as no channel is there any more.
fn note(file: &str, text: &str) {
    let new = format!("{file}.new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, file).unwrap();
}

/// Waits for the callee's note. The file is the event.
async fn noted(file: &str) -> String {
    loop {
        if let Ok(text) = std::fs::read_to_string(file) {
            std::fs::remove_file(file).unwrap();
            return text;
        }
        // A wait for a file has no other event than the file.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Whose hand it is, and when.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
enum Break {
    Theirs,
    Ours,
    /// After both halves were closed.
    OursAtTheEnd,
    TheirsAtTheEnd,
}

/// Streams both ways until the channel breaks; writes down, on its way out, by whom it was cancelled.
#[hatchery::context]
async fn converse(callee: Callee<u64, u64>, how: Break, file: String) -> Result<(), Error> {
    struct Note(hatchery::Watch, String);
    impl Drop for Note {
        fn drop(&mut self) {
            let why = self.0.cancelled().map_or("nobody".to_owned(), |why| why.to_string());
            note(&self.1, &why);
        }
    }
    let _note = Note(callee.watch(), file);
    let mut stream = callee.started(())?;
    if matches!(how, Break::OursAtTheEnd | Break::TheirsAtTheEnd) {
        while stream.recv().await?.is_some() {}
        stream.close().await?;
        if how == Break::TheirsAtTheEnd {
            break_channels(&BTreeSet::new());
        }
        return std::future::pending().await;
    }
    for number in 0.. {
        stream.send(number).await?;
        stream.recv().await?;
        if number == 1000 && how == Break::Theirs {
            break_channels(&BTreeSet::new());
        }
    }
    Ok(())
}

/// What the opener came to, and its stream before that.
#[derive(Debug)]
struct Seen {
    stream: Result<Option<u64>, StreamError>,
    ended: ContextError<Error>,
}

async fn until_it_breaks(worker: Portal, how: Break, file: String, own: BTreeSet<RawFd>) -> Seen {
    let mut cx = worker.context(converse(how, file)).handle().await.unwrap();
    if matches!(how, Break::OursAtTheEnd | Break::TheirsAtTheEnd) {
        cx.close().await.unwrap();
        match cx.recv().await {
            Ok(None) => {}
            // Their break may come before this looks at their close.
            stream @ Err(_) if how == Break::TheirsAtTheEnd => {
                let ended = cx.result().await.unwrap_err();
                return Seen { stream, ended };
            }
            other => panic!("{how:?}: {other:?}"),
        }
    }
    if how == Break::OursAtTheEnd {
        break_channels(&own);
    }
    let stream = loop {
        match cx.recv().await {
            Ok(Some(1000)) if how == Break::Ours => break_channels(&own),
            Ok(Some(number)) => {
                if let Err(error) = cx.send(number).await {
                    break Err(error);
                }
            }
            end => break end,
        }
    };
    let ended = cx.result().await.unwrap_err();
    Seen { stream, ended }
}

async fn break_it(runtime: &Runtime, how: Break) {
    let file = std::env::temp_dir().join(format!("hatchery-channel-{}", std::process::id()));
    let file = file.to_str().unwrap().to_owned();
    let own = channels();
    let watching = Mutex::new(None);
    let nursery = runtime.nursery(async |n| {
        let worker = n.start("worker").await?;
        // Not in the body, which the actor's end may drop before it has seen anything.
        let task = tokio::spawn(until_it_breaks(worker, how, file.clone(), own.clone()));
        *watching.lock().unwrap() = Some(task);
        std::future::pending::<hatchery::Result<()>>().await
    });
    let error = came_down(nursery.await);
    let died = &error.faults()[0];
    assert!(matches!(died.kind, FaultKind::Died(_)), "{how:?}: {}", error.render());
    let task = watching.lock().unwrap().take().unwrap();
    let seen = task.await.unwrap();
    match (how, seen.stream) {
        (_, Err(StreamError::Ended(fault))) => assert_eq!(fault.kind, died.kind),
        (Break::OursAtTheEnd | Break::TheirsAtTheEnd, Ok(None)) => {}
        (how, stream) => panic!("{how:?}: {stream:?}"),
    }
    let ContextError::Died(fault) = seen.ended else { panic!("{how:?}: {:?}", seen.ended) };
    assert_eq!((&fault.kind, &fault.path), (&died.kind, &died.path));
    assert_eq!(noted(&file).await, "cancelled by `root` because its spawner is gone");
}

/// Scenario 46: each side is told, with a type, whoever breaks it and when, and the nursery ends by
/// itself.
#[test]
fn both_sides_of_a_channel_that_breaks_are_told() {
    for_each(here!(), &BACKENDS, async |runtime| {
        for how in [Break::Theirs, Break::Ours, Break::OursAtTheEnd, Break::TheirsAtTheEnd] {
            break_it(&runtime, how).await;
        }
        let still =
            runtime.nursery(async |n| n.start("worker").await.map(drop).map_err(Error::from));
        still.await.unwrap_or_else(|error| panic!("{}", error.render()));
        runtime.close().await;
    });
}

/// Breaks its own channel and goes on sending, and nothing makes it stop.
#[hatchery::context]
async fn stream_into_nothing(callee: Callee<Nothing, u64>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    stream.send(1).await?;
    hatchery::shield(async move {
        break_channels(&BTreeSet::new());
        loop {
            // That it fails is the point.
            let _nowhere = stream.send(2).await;
            tokio::task::yield_now().await;
        }
    })
    .await
}

/// Scenario 47, H3: the channel is gone and the actor goes on; it is ended from outside, in time.
#[test]
fn an_actor_that_streams_into_nothing_is_ended_from_outside() {
    // It doesn't go by itself, so the kernel has all the time that a busy machine needs.
    let config = hasty(BUDGET);
    for_each_with(&config, here!(), &PROCESSES, async |runtime| {
        let nursery = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            let streaming = worker.open_context(stream_into_nothing(), async |mut cx| {
                while cx.recv().await?.is_some() {}
                Ok(cx.result().await?)
            });
            Ok(streaming.await?)
        });
        let error = came_down(nursery.await);
        let report = error.report();
        let [forced] = &report.forced()[..] else { panic!("{report}") };
        let killed = forced.steps.iter().find(|taken| taken.step == Step::Killed);
        let after = killed.unwrap_or_else(|| panic!("{report}")).after;
        assert!(after < BUDGET * 5 / 4 + SLACK, "{report}");
        // Ended, and not given up on.
        assert!(forced.end.is_some(), "{report}");
        let died = |fault: &&hatchery::Fault| {
            fault.path.name() == "worker"
                && matches!(fault.kind, FaultKind::Died(_) | FaultKind::Lost)
        };
        assert!(error.fault().leaves().iter().any(died), "{}", error.render());
        runtime.close().await;
    });
}

/// Forks itself; the copy says something harmless on the channel of both, and stays.
#[hatchery::function]
async fn speak_twice() {
    let channel = *channels().first().unwrap();
    #[allow(unsafe_code, reason = "the scenario is a raw fork")]
    // SAFETY: the actor has one thread, and its copy does nothing but write and sleep.
    if unsafe { nix::unistd::fork() }.unwrap().is_child() {
        // A part of a next message that never comes: well-formed, and nobody would notice.
        let frame = [&[0, 0, 0, 10, 0xC1, 0x40][..], &[0; 7], b"x"].concat();
        nix::sys::socket::send(channel, &frame, nix::sys::socket::MsgFlags::empty()).unwrap();
        loop {
            nix::unistd::pause();
        }
    }
    std::future::pending().await
}

/// Fault 16: an actor that has made a copy of itself, which speaks on its channel, is ended with it,
/// and whoever waits is told why.
#[test]
fn a_copy_that_speaks_on_an_actors_channel_ends_with_it() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let told = std::cell::RefCell::new(None);
        let outcome = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                let error = worker.call(speak_twice()).await.unwrap_err();
                *told.borrow_mut() = Some(error.fault().kind.clone());
                Ok(())
            })
            .await;
        let came = came_down(outcome);
        let faults: Vec<_> = came.faults().iter().flat_map(|fault| fault.leaves()).collect();
        let is_breach = |fault: &&hatchery::Fault| {
            fault.kind == FaultKind::Protocol && fault.message.contains("another process")
        };
        assert!(!faults.is_empty() && faults.iter().all(is_breach), "{}", came.render());
        // The nursery may have cancelled its body before that was told anything.
        assert!(told.take().is_none_or(|told| told == FaultKind::Protocol));
        runtime.close().await;
    });
}
