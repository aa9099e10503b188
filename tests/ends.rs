//! Scenarios 35, 46, 65, 66, 71, 72 and C12: how contexts end, whoever ends them and when, also over
//! three actors.
//!
//! Each in a process of its own, which counts threads, fds and children before and after.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::sync::Mutex;
use std::time::{Duration, Instant};

use hatchery::{
    ActorPath, Callee, Config, ContextError, Error, ExitStatus, Fault, FaultKind, Nothing, Peer,
    Portal, Reason, Runtime, Watch, Why,
};
use hatchery_testkit::{fault, isolate};
use hatchery_tests::{BACKENDS, PROCESSES, came_down, for_each, here, with, with_worker};

#[derive(Debug, PartialEq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{0} is broken")]
struct Broken(String);

/// How a side leaves.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
enum Way {
    Return,
    Fail,
    Panic,
    Cancel,
    Die,
    Stay,
}

/// Waits for one message, then leaves.
#[hatchery::context]
async fn leave(callee: Callee<u64, u64>, way: Way) -> Result<u64, Broken> {
    quiet_panics();
    let mut stream = callee.started(()).unwrap();
    let _first = stream.recv().await;
    match way {
        Way::Return => Ok(7),
        Way::Fail => Err(Broken("the callee".to_owned())),
        Way::Panic => panic!("the callee as it was told"),
        Way::Cancel => {
            stream.watch().cancel();
            std::future::pending().await
        }
        Way::Die => std::process::abort(),
        Way::Stay => std::future::pending().await,
    }
}

/// Sends one message and leaves at the same moment.
async fn leave_both(
    worker: &Portal,
    ours: Way,
    theirs: Way,
) -> Result<Option<u64>, ContextError<Broken>> {
    worker
        .open_context(leave(theirs), async |mut cx| {
            cx.send(1).await?;
            match ours {
                Way::Return => Ok(None),
                Way::Fail => Err(Error::msg("the opener is broken")),
                Way::Panic => panic!("the opener as it was told"),
                Way::Cancel => {
                    cx.cancel();
                    Ok(None)
                }
                Way::Die | Way::Stay => Ok(Some(cx.result().await?)),
            }
        })
        .await
}

/// Whether one of the two faults is what that side did, or was told to do.
fn is_of(way: Way, side: &str, path: &ActorPath, fault: &Fault) -> bool {
    let of_it = fault.path == *path;
    of_it
        && match way {
            Way::Fail => fault.kind == FaultKind::Failed && fault.message.contains(side),
            Way::Panic => fault.kind == FaultKind::Panicked && fault.message.contains(side),
            Way::Cancel => {
                let reason = Reason { by: path.clone(), why: Why::Requested };
                fault.kind == FaultKind::Cancelled(reason)
            }
            Way::Return | Way::Die | Way::Stay => false,
        }
}

/// Scenario 65: both leave at once, in every pair of ways, many times. Who was first is open; that
/// the call returns, blames nobody who did no wrong, and tells the opener's own error is not.
#[test]
fn both_sides_may_leave_at_once() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let (root, callee) = (hatchery::path(), worker.path().clone());
            let ways = [Way::Return, Way::Fail, Way::Panic, Way::Cancel];
            for ours in ways {
                for theirs in ways {
                    for _ in 0..10 {
                        let ended = leave_both(&worker, ours, theirs).await;
                        let Err(error) = ended else {
                            assert!(matches!(ours, Way::Return | Way::Cancel));
                            continue;
                        };
                        for fault in error.fault().leaves() {
                            let known = is_of(ours, "opener", &root, fault)
                                || is_of(theirs, "callee", &callee, fault);
                            assert!(known, "{ours:?} {theirs:?}: {error:?}");
                        }
                        if matches!(error, ContextError::Body(_)) {
                            assert!(matches!(ours, Way::Fail | Way::Panic), "{error:?}");
                        }
                    }
                }
            }
            let well = leave_both(&worker, Way::Stay, Way::Return).await;
            assert_eq!(well.unwrap(), Some(7), "the actor is none the worse");
            Ok(())
        })
        .await;
    });
}

/// What a callee of this process was told at its end. Each test has a process of its own, and asks
/// one callee at a time.
static NOTE: Mutex<Option<String>> = Mutex::new(None);
static NOTED: tokio::sync::Notify = tokio::sync::Notify::const_new();

struct Note(Watch);

impl Drop for Note {
    fn drop(&mut self) {
        let why = self.0.cancelled().map_or("nobody".to_owned(), |reason| reason.to_string());
        *NOTE.lock().unwrap() = Some(why);
        NOTED.notify_one();
    }
}

#[hatchery::function]
async fn noted() -> String {
    loop {
        if let Some(note) = NOTE.lock().unwrap().take() {
            return note;
        }
        NOTED.notified().await;
    }
}

static BEGUN: tokio::sync::Notify = tokio::sync::Notify::const_new();

/// Waits until [`never_start`] runs.
#[hatchery::function]
async fn begun() {
    BEGUN.notified().await;
}

/// Never says `started`; may cancel itself before.
#[hatchery::context]
async fn never_start(callee: Callee<Nothing, Nothing>, itself: bool) {
    let _note = Note(callee.watch());
    BEGUN.notify_one();
    if itself {
        callee.watch().cancel();
    }
    std::future::pending().await
}

/// Scenario 66: cancelled before `started`, by either side, by the deadline, with the actor.
#[test]
fn a_context_can_be_cancelled_before_it_has_started() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let body = async |_| -> hatchery::Result<()> { panic!("it never starts") };
            let dropped = worker.open_context(never_start(false), body);
            tokio::select! {
                ended = dropped => panic!("{ended:?}"),
                begun = worker.call(begun()) => begun?,
            }
            let why = "cancelled by `root` because nobody waits for it any more";
            assert_eq!(worker.call(noted()).await?, why);

            let late = worker.context(never_start(false)).within(Duration::from_millis(20));
            let late = late.run(body).await;
            assert!(matches!(late, Err(ContextError::Deadline(_))), "{late:?}");
            assert_eq!(worker.call(noted()).await?, "cancelled by `root` at the deadline");
            worker.call(begun()).await?;

            let itself = worker.open_context(never_start(true), body).await;
            assert_cancelled(&itself, worker.path());
            assert_eq!(worker.call(noted()).await?, "cancelled by `root/worker` on request");
            worker.call(begun()).await?;

            let opening = worker.open_context(never_start(false), body);
            let cancelling = async {
                worker.call(begun()).await?;
                worker.cancel();
                Ok::<_, Error>(())
            };
            let (gone, begun) = tokio::join!(opening, cancelling);
            begun?;
            assert_cancelled(&gone, &hatchery::path());
            Ok(())
        })
        .await;
    });
}

#[track_caller]
fn assert_cancelled<T: std::fmt::Debug>(ended: &Result<T, ContextError>, by: &ActorPath) {
    let Err(ContextError::Cancelled(fault)) = ended else { panic!("{ended:?}") };
    let due = Reason { by: by.clone(), why: Why::Requested };
    assert_eq!(fault.kind, FaultKind::Cancelled(due));
}

/// Panics in a destructor as soon as it is cancelled.
#[hatchery::context]
async fn burst(callee: Callee<Nothing, Nothing>) {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("while it was cancelled");
        }
    }
    quiet_panics();
    let _stream = callee.started(()).unwrap();
    let _bomb = Bomb;
    std::future::pending().await
}

/// Scenario 72, H16: an error of the body, raised while a second context is being cancelled; and an
/// error of the callee, raised by that very cancel.
#[test]
fn an_error_during_the_cancel_of_a_second_context_is_told() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            for _ in 0..20 {
                let ended: Result<(), _> = worker
                    .open_context(leave(Way::Stay), async |_first| {
                        let second = worker.open_context(leave(Way::Stay), async |cx| {
                            cx.cancel();
                            Err::<(), _>(Error::msg("the body is broken"))
                        });
                        Ok(second.await?)
                    })
                    .await;
                let Err(ContextError::Body(fault)) = ended else { panic!("{ended:?}") };
                assert_eq!(
                    (fault.kind, &*fault.message),
                    (FaultKind::Failed, "the body is broken")
                );
            }
            let ended = worker
                .open_context(burst(), async |cx| {
                    cx.cancel();
                    Ok(())
                })
                .await;
            let Err(ContextError::Panicked(fault)) = ended else { panic!("{ended:?}") };
            assert_eq!(fault.message, "while it was cancelled");
            Ok(())
        })
        .await;
    });
}

/// Scenario 72 one level up: the nursery's own error is the body's, not that its contexts were
/// cancelled because of it.
#[test]
fn an_error_of_a_nursery_is_not_hidden_by_its_open_contexts() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let ended: Result<(), _> = runtime
            .nursery(async |n| {
                let worker = n.start("worker").await?;
                let staying = worker.open_context(leave(Way::Stay), async |_cx| {
                    // Opened, and then it fails with both open.
                    let second = worker.context(leave(Way::Stay)).handle().await?;
                    let failed = Err::<(), _>(Error::msg("the middle is broken"));
                    drop(second);
                    failed
                });
                Ok(staying.await?)
            })
            .await;
        let error = ended.unwrap_err();
        assert_eq!(error.faults().len(), 1, "{}", error.render());
        assert_eq!(error.fault().message, "the middle is broken");
        runtime.close().await;
    });
}

/// Opens a context with the third actor, passes its first message up, and says what it came to.
#[hatchery::context]
async fn relay(callee: Callee<u64, u64>, third: Peer, way: Way) -> Result<u64, Error> {
    let third = third.connect().await?;
    let mut up = callee.started(())?;
    let relayed = third.open_context(leave(way), async |mut cx| {
        up.send(1).await?;
        let told = up.recv().await?;
        cx.send(told.unwrap_or(0)).await?;
        Ok(cx.result().await?)
    });
    Ok(relayed.await?)
}

/// Scenario 71 over three actors: the root has a context with the second, that one with the third.
/// Whatever the third does, the root reads it as it was, from the third's own path.
#[test]
fn what_ends_the_third_actors_context_is_told_to_the_first() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let nursery = runtime.nursery(async |n| {
            let (second, third) = (n.start("second").await?, n.start("third").await?);
            let peer = third.peer().await?;
            let relayed = async |way| {
                second
                    .open_context(relay(peer.clone(), way), async |mut cx| {
                        assert_eq!(cx.recv().await?, Some(1));
                        cx.send(2).await?;
                        Ok(cx.result().await?)
                    })
                    .await
            };
            assert_eq!(relayed(Way::Return).await?, 7);
            for way in [Way::Fail, Way::Panic, Way::Cancel] {
                let error = relayed(way).await.unwrap_err();
                let fault = error.fault();
                assert!(is_of(way, "callee", third.path(), fault), "{way:?}: {error:?}");
            }
            Ok(())
        });
        nursery.await.unwrap_or_else(|error| panic!("{}", error.render()));
        runtime.close().await;
    });
}

/// The same when the third actor itself is cancelled, over the heads of the two that talk.
#[test]
fn who_cancelled_the_third_actor_is_the_same_on_every_side() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let nursery = runtime.nursery(async |n| {
            let (second, third) = (n.start("second").await?, n.start("third").await?);
            let peer = third.peer().await?;
            let ended = second
                .open_context(relay(peer, Way::Stay), async |mut cx| {
                    assert_eq!(cx.recv().await?, Some(1));
                    third.cancel();
                    Ok(cx.result().await?)
                })
                .await;
            let Err(ContextError::Cancelled(fault)) = ended else { panic!("{ended:?}") };
            let due = Reason { by: hatchery::path(), why: Why::Requested };
            assert_eq!(fault.kind, FaultKind::Cancelled(due));
            Ok(())
        });
        nursery.await.unwrap_or_else(|error| panic!("{}", error.render()));
        runtime.close().await;
    });
}

/// The same when the third one dies: the second, and through it the first, are told that it is lost;
/// its own spawner how it died. It has a nursery of its own: what is told is not that the two others
/// were cancelled for it.
#[test]
fn the_death_of_the_third_actor_is_told_to_the_first() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let done = runtime.nursery(async |n| {
            let second = n.start("second").await?;
            let mut told = None;
            let down: Result<(), _> = runtime
                .nursery(async |n| {
                    let third = n.start("third").await?;
                    let peer = third.peer().await?;
                    // In a task of its own: the death drops the body.
                    told = Some(tokio::spawn(async move {
                        let ended = second.open_context(relay(peer, Way::Stay), async |mut cx| {
                            assert_eq!(cx.recv().await?, Some(1));
                            fault::sigkill(third.pid().unwrap()).unwrap();
                            Ok(cx.result().await?)
                        });
                        ended.await
                    }));
                    std::future::pending().await
                })
                .await;
            let error = came_down(down);
            let killed = FaultKind::Died(ExitStatus::Signal(9));
            assert_eq!(error.fault().kind, killed, "{}", error.render());
            let told = told.unwrap().await?.unwrap_err();
            let fault = told.fault();
            let is_lost = fault.kind == FaultKind::Lost && fault.path.name() == "third";
            assert!(is_lost, "{told:?}");
            Ok(())
        });
        done.await.unwrap_or_else(|error| panic!("{}", error.render()));
        runtime.close().await;
    });
}

/// Keeps a context with the introduced actor, and cancels it when it is told to.
#[hatchery::context]
async fn cancel_there(callee: Callee<u64, u64>, sibling: Peer) -> Result<(), Error> {
    let sibling = sibling.connect().await?;
    let mut stream = callee.started(())?;
    let cancelled = sibling.open_context(listen(), async |mut cx| {
        stream.send(1).await?;
        let _told = stream.recv().await?;
        cx.cancel();
        let ended = cx.result().await;
        assert!(matches!(ended, Err(ContextError::Cancelled(_))), "{ended:?}");
        Ok(())
    });
    Ok(cancelled.await?)
}

#[hatchery::context]
async fn listen(callee: Callee<Nothing, Nothing>) {
    let _note = Note(callee.watch());
    let _stream = callee.started(()).unwrap();
    std::future::pending().await
}

/// Scenario 35: a child cancels a context that runs in its sibling: that one is told by whom, and
/// the sibling, and what others have with it, go on.
#[test]
fn a_child_cancels_its_context_in_a_sibling_and_nothing_else() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let nursery = runtime.nursery(async |n| {
            let (child, sibling) = (n.start("child").await?, n.start("sibling").await?);
            let own = sibling.context(leave(Way::Return)).handle().await?;
            let peer = sibling.peer().await?;
            child
                .open_context(cancel_there(peer), async |mut cx| {
                    assert_eq!(cx.recv().await?, Some(1));
                    cx.send(1).await?;
                    Ok(cx.result().await?)
                })
                .await?;
            let why = "cancelled by `root/child` on request";
            assert_eq!(sibling.call(noted()).await?, why);
            let mut own = own;
            assert!(own.watch().cancelled().is_none());
            own.send(1).await?;
            assert_eq!(own.result().await?, 7);
            Ok(())
        });
        nursery.await.unwrap_or_else(|error| panic!("{}", error.render()));
        runtime.close().await;
    });
}

/// Starts a clean-up that talks with the introduced actor only after this one was told to go.
#[hatchery::context]
async fn last_words(callee: Callee<u64, u64>, friend: Peer) -> Result<(), Error> {
    let friend = friend.connect().await?;
    let mut held = friend.context(leave(Way::Return)).handle().await?;
    let mut stream = callee.started(())?;
    stream.send(1).await?;
    hatchery::shield(async move {
        let why = hatchery::cancelled().await;
        held.send(1).await?;
        let answer = held.result().await?;
        friend.call(note(format!("{answer}, {why}"))).await?;
        Ok::<_, Error>(())
    })
    .await
}

#[hatchery::function]
async fn note(text: String) {
    *NOTE.lock().unwrap() = Some(text);
    NOTED.notify_one();
}

/// C12, C13: while an actor unwinds, its connections still work: a clean-up can finish a context and
/// make a call, and nobody had to be forced.
#[test]
fn an_actor_that_unwinds_still_talks_with_its_peers() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let (ended, report) = hatchery::nursery_with_report(async |n| {
            let (one, friend) = (n.start("one").await?, n.start("friend").await?);
            let mut context = one.context(last_words(friend.peer().await?)).handle().await?;
            assert_eq!(context.recv().await?, Some(1));
            one.cancel();
            assert_eq!(friend.call(noted()).await?, "7, cancelled by `root` on request");
            one.settled().await;
            Ok(())
        })
        .await;
        ended.unwrap_or_else(|error| panic!("{}", error.render()));
        assert!(report.forced().is_empty(), "{report}");
        runtime.close().await;
    });
}

/// Sends and reads without end.
#[hatchery::context]
async fn converse(callee: Callee<u64, u64>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    loop {
        stream.send(1).await?;
        stream.recv().await?;
    }
}

/// Keeps a context with the introduced actor busy for ever.
#[hatchery::context]
async fn stay_with(callee: Callee<Nothing, Nothing>, friend: Peer) -> Result<(), Error> {
    let friend = friend.connect().await?;
    let talk = friend.open_context(converse(), async |mut cx| {
        let _stream = callee.started(())?;
        while let Some(number) = cx.recv().await? {
            cx.send(number).await?;
        }
        Ok(cx.result().await?)
    });
    Ok(talk.await?)
}

/// H3, H4, C12: a nursery returns although every actor has contexts open, with its spawner and with
/// its peers in a ring, in all of which messages are under way; nobody waits for the other to close.
#[test]
fn open_contexts_keep_no_nursery() {
    default_budget(here!(), async |runtime| {
        let began = Instant::now();
        let (ended, report) = hatchery::nursery_with_report(async |n| {
            let mut actors = Vec::new();
            for i in 0..4 {
                actors.push(n.start(&format!("a{i}")).await?);
            }
            let mut open = Vec::new();
            for (at, actor) in actors.iter().enumerate() {
                let next = actors[(at + 1) % actors.len()].peer().await?;
                let staying = actor.context(stay_with(next)).handle().await?;
                open.push(tokio::spawn(async move {
                    let mut staying = staying;
                    staying.result().await
                }));
                let talk = actor.clone();
                tokio::spawn(async move {
                    let talk = talk.open_context(converse(), async |mut cx| {
                        while let Some(number) = cx.recv().await? {
                            cx.send(number).await?;
                        }
                        Ok(cx.result().await?)
                    });
                    drop(talk.await);
                });
            }
            Ok(open)
        })
        .await;
        let open = ended.unwrap_or_else(|error| panic!("{}", error.render()));
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert!(report.forced().is_empty(), "{report}");
        assert!(report.flatten().iter().all(|actor| actor.undrained.is_empty()), "{report}");
        for staying in open {
            let error = staying.await.unwrap().unwrap_err();
            assert!(matches!(error, ContextError::Cancelled(_)), "{error:?}");
        }
        runtime.close().await;
    });
}

/// On every backend with the bounds that users have, for a scenario that asks whether anybody has to be
/// forced: how soon a busy machine runs who goes is not its point.
fn default_budget<F: Future<Output = ()>>(test: &str, scenario: impl Fn(Runtime) -> F) {
    isolate::run_test(test, Duration::from_secs(90), || {
        for backend in BACKENDS {
            with(backend, Config::default(), &scenario);
        }
    });
}

/// The default hook reads all debug information for a backtrace if the environment asks for one: on
/// a busy machine that takes more than the whole budget.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|_| {}));
}
