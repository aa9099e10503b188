//! Hang dumps: what they show of actors that can't answer any more, and whom they blame.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::io::Read as _;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use hatchery::dump::boards::{Board, Kind, State, What};
use hatchery::dump::culprit::{Culprit, Health};
use hatchery::dump::{Dump, Process, Thread};
use hatchery::{Backend, Callee, Config, Error, Nothing, Runtime, nursery};
use hatchery_spawn::OwnThread;
use hatchery_testkit::{fault, isolate};
use hatchery_tests::{PROCESSES, came_down, for_each, here, with};

/// A budget that no test waits for.
const LONG: Duration = Duration::from_secs(25);

#[hatchery::function]
async fn idle() -> u64 {
    std::future::pending().await
}

#[hatchery::function]
async fn echo(number: u64) -> u64 {
    number
}

/// Never comes back to its runtime: computes, or reads from a pipe into which nobody writes.
#[hatchery::function]
async fn stick(spins: bool) -> u64 {
    let (mut nothing_comes, _held) = std::io::pipe().unwrap();
    loop {
        if !spins {
            let _never = nothing_comes.read(&mut [0]);
        }
        std::hint::spin_loop();
    }
}

/// A chain of actors, each of which waits for the next; the last one serves the call.
#[hatchery::function]
async fn chain(depth: u32, spins: bool) -> Result<u64, Error> {
    if depth == 0 {
        return Ok(stick(spins).here().await.unwrap_or(0));
    }
    let below = nursery(async |n| {
        let below = n.start("next").await?;
        Ok(below.call(chain(depth - 1, spins)).await?)
    });
    Ok(below.await?)
}

/// A dump in which there is what is looked for. What leads to it has been asked for; when it has
/// come to that only a dump can tell.
fn dump_with(mut found: impl FnMut(&Dump) -> bool) -> Dump {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let dump = Dump::of(std::process::id()).unwrap();
        if found(&dump) {
            return dump;
        }
        assert!(Instant::now() < until, "what is looked for never came:\n{dump}");
        // Each look costs the tree some of its time.
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Looks from a thread of its own, so that nobody who is looked at is held up.
async fn aside<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = tokio::sync::oneshot::channel();
    let thread = OwnThread::spawn("look", move || drop(tell.send(look()))).unwrap();
    let seen = told.await.unwrap();
    thread.join();
    seen
}

fn boards(dump: &Dump) -> Vec<&Board> {
    dump.process.flatten().into_iter().filter_map(|process| process.board.as_ref()).collect()
}

fn serves(dump: &Dump, function: &str) -> bool {
    let all = boards(dump).into_iter().flat_map(|board| &board.records);
    all.into_iter().any(|record| record.kind == Kind::Serving && record.what.ends_with(function))
}

fn blamed(dump: &Dump) -> &str {
    dump.culprit.as_ref().map_or("nobody", |culprit| &culprit.who)
}

/// An actor that is stopped is blamed, also if it only idled; it and all others are shown.
#[test]
fn a_stopped_actor_is_shown_and_blamed() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let (one, two) = (n.start("one").await?, n.start("two").await?);
                // It answers its handshake a moment before it writes down that it lives.
                assert_eq!(one.call(echo(0)).await?, 0);
                fault::sigstop(one.pid().unwrap()).unwrap();
                let (calls, idles) = (one.call(echo(1)), two.call(idle()));
                let looks = aside(|| {
                    dump_with(|dump| {
                        let is_stopped = |culprit: &Culprit| culprit.health == Health::Stopped;
                        serves(dump, "idle")
                            && blamed(dump) == "root/one"
                            && dump.culprit.as_ref().is_some_and(is_stopped)
                    })
                });
                tokio::select! {
                    _ = calls => panic!("a stopped actor answered"),
                    _ = idles => panic!("an idle call was answered"),
                    dump = looks => {
                        assert!(dump.to_string().contains("serves `dumps::idle` to root"), "{dump}");
                        // Root, forkserver, two actors; all but the forkserver write things down.
                        assert_eq!((dump.process.count(), boards(&dump).len()), (4, 3), "{dump}");
                    }
                }
                n.cancel();
                std::future::pending().await
            })
            .await;
        drop(came_down(down));
        runtime.close().await;
    });
}

/// Whether the last one of the chain is blamed for what it does when it is stuck; before, it is
/// blamed for its start.
fn leads_to_the_stuck(dump: &Dump, spins: bool) -> bool {
    dump.culprit.as_ref().is_some_and(|culprit| {
        let is_stuck = if spins {
            culprit.health == Health::Running
        } else {
            culprit.health.to_string().contains("read")
        };
        is_stuck && culprit.who == "root/first/next/next" && culprit.chain.len() == 3
    })
}

/// A chain of calls leads to the actor whose one thread is stuck, at any depth; it says nothing
/// itself any more and is shown all the same.
#[test]
fn a_stuck_actor_at_the_end_of_a_chain_is_blamed() {
    for_each(here!(), &PROCESSES, async |runtime| {
        for spins in [false, true] {
            let down: Result<(), _> = runtime
                .nursery(async |n| {
                    let first = n.start("first").await?;
                    let calls = first.call(chain(2, spins));
                    let looks = aside(move || dump_with(|dump| leads_to_the_stuck(dump, spins)));
                    tokio::select! {
                        _ = calls => panic!("a stuck actor answered"),
                        _ = looks => {}
                    }
                    n.cancel();
                    std::future::pending().await
                })
                .await;
            // Who had to be forced, and how fast that was, is other tests' business.
            drop(came_down(down));
        }
        runtime.close().await;
    });
}

/// A teardown that waits is shown with its rung and what is left of its budget. It would take long,
/// so that a look falls into it, and is cut short then.
#[test]
fn a_teardown_shows_its_rung_and_its_budget() {
    isolate::run_test(here!(), LONG * 4, || {
        for backend in PROCESSES {
            with(backend, Config::with_budget(LONG), a_long_teardown);
        }
    });
}

async fn a_long_teardown(runtime: Runtime) {
    let nursery = runtime.nursery(async |n| {
        let child = n.start("child").await?;
        tokio::select! {
            _ = child.call(stick(false)) => {}
            _ = aside(|| dump_with(|dump| serves(dump, "stick"))) => {}
        }
        n.cancel();
        std::future::pending::<hatchery::Result<()>>().await
    });
    let looks = async {
        let dump = aside(|| dump_with(|dump| blamed(dump) == "root/child" && is_asked(dump))).await;
        let root = dump.process.board.as_ref().unwrap();
        let child = root.records.iter().find(|record| is_member_that_goes(record)).unwrap();
        assert!(child.until.is_some_and(|until| until > child.since), "{dump}");
        assert!(root.events.iter().any(|event| event.what == What::Asked), "{dump}");
        fault::sigkill(child.count).unwrap();
    };
    let (down, ()) = tokio::join!(nursery, looks);
    drop(came_down(down));
    runtime.close().await;
}

fn is_asked(dump: &Dump) -> bool {
    dump.process.board.iter().flat_map(|board| &board.records).any(is_member_that_goes)
}

fn is_member_that_goes(record: &hatchery::dump::boards::Record) -> bool {
    let goes = [State::Asked, State::Acknowledged, State::Terminated, State::Killed];
    // It may serve, and be told to go, before its forkserver has said which process it is.
    record.kind == Kind::Member && goes.contains(&record.state) && record.count != 0
}

/// Who looks while thousands of calls come and go sees whole records only, and disturbs nobody.
#[test]
fn a_look_at_a_busy_tree_is_whole_and_harmless() {
    for_each(here!(), &[Backend::Forkserver, Backend::Thread], async |runtime| {
        let sum = runtime.nursery(async |n| {
            let child = n.start("child").await?;
            let looks =
                aside(|| (0..5).map(|_| Dump::of(std::process::id()).unwrap()).collect::<Vec<_>>());
            let mut looks = std::pin::pin!(looks);
            let mut sum = 0;
            let dumps = loop {
                let calls = (0..100).map(|number| child.call(echo(number)));
                let calls = try_join_all(calls.map(IntoFuture::into_future));
                tokio::select! {
                    dumps = &mut looks => break dumps,
                    answers = calls => sum += answers?.len(),
                }
            };
            // The looks may have been faster than a hundred answers; now there are some.
            let calls = (0..100).map(|number| child.call(echo(number)));
            sum += try_join_all(calls.map(IntoFuture::into_future)).await?.len();
            let records = dumps.iter().flat_map(boards).flat_map(|board| &board.records);
            let calls = records.filter(|record| matches!(record.kind, Kind::Call | Kind::Serving));
            for call in calls {
                assert_eq!(call.what, "dumps::echo", "{call:?}");
            }
            Ok(sum)
        });
        assert!(sum.await.unwrap() > 0);
        runtime.close().await;
    });
}

/// Opens a context with the one who holds it open, and fills its channel while that one is stopped.
#[hatchery::context]
async fn stay(callee: Callee<u64, Nothing>) -> Result<(), Error> {
    let _stream = callee.started(())?;
    // A thread of the user's own, with a mask of its own.
    let thread = OwnThread::spawn("masked", || {
        nix::sys::signal::SigSet::from(nix::sys::signal::Signal::SIGUSR2).thread_block().unwrap();
        loop {
            std::thread::park();
        }
    });
    std::mem::forget(thread);
    std::future::pending().await
}

/// What a dump shows of a real tree: contexts on both sides, the mask of each thread, what waits in the
/// queues of sockets; as data, and the same when it has been JSON.
#[test]
fn a_dump_shows_contexts_masks_and_queues() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let child = n.start("child").await?;
                child
                    .open_context(stay(), async |mut cx| {
                        let pid = child.pid().unwrap();
                        // It reads no more: what is sent stays in the socket.
                        aside(move || {
                            dump_with(|dump| masked(dump, pid).is_some());
                            fault::sigstop(pid).unwrap();
                        })
                        .await;
                        for number in 0..100 {
                            cx.send(number).await?;
                        }
                        aside(move || looks_right(pid)).await;
                        fault::sigcont(pid).unwrap();
                        Err::<(), _>(Error::msg("all was seen"))
                    })
                    .await?;
                Ok(())
            })
            .await;
        let error = came_down(down);
        assert!(error.render().contains("all was seen"), "{}", error.render());
        runtime.close().await;
    });
}

/// The thread of `pid` that blocks SIGUSR2 alone.
fn masked(dump: &Dump, pid: u32) -> Option<Thread> {
    let all = dump.process.flatten();
    let process = all.into_iter().find(|process| process.pid == pid)?;
    let bit = format!("{:016x}", 1_u64 << (nix::libc::SIGUSR2 - 1));
    process.threads.iter().find(|thread| thread.name == "masked" && thread.blocked == bit).cloned()
}

fn looks_right(pid: u32) {
    let dump = dump_with(|dump| {
        let all = dump.process.flatten();
        let child = all.iter().find(|process| process.pid == pid);
        child.is_some_and(|child| {
            let sockets = child.fds.values().filter_map(|fd| fd.socket);
            sockets.into_iter().any(|socket| socket.unread > 0 && socket.peer != 0)
        })
    });
    let all = boards(&dump);
    let has = |who: &str, kind: Kind, with: &str| {
        all.iter().any(|board| {
            let mut records = board.records.iter();
            board.records.iter().any(|one| one.kind == Kind::Actor && one.who == who)
                && records
                    .any(|one| one.kind == kind && one.who == with && one.what.ends_with("stay"))
        })
    };
    assert!(has("root", Kind::Context, "root/child"), "{dump}");
    assert!(has("root/child", Kind::ServingContext, "root"), "{dump}");
    let text = dump.to_string();
    let mask = masked(&dump, pid).unwrap().blocked;
    for part in
        ["context `dumps::stay` with root/child", "serves context `dumps::stay` to root", " unread"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let thread = text.lines().find(|line| line.contains(" masked ")).unwrap();
    assert!(thread.ends_with(&format!("blocked {mask}")), "{thread}");
}

/// Only the last events are kept, in order, and calls that ended leave no record.
#[test]
fn the_last_events_are_kept_and_what_is_over_is_gone() {
    for_each(here!(), &[Backend::Thread], async |runtime| {
        for _ in 0..60 {
            let done = runtime.nursery(async |n| {
                let child = n.start("child").await?;
                Ok(child.call(echo(7)).await?)
            });
            assert_eq!(done.await.unwrap(), 7);
        }
        let board = Process::of(std::process::id()).unwrap().board.unwrap();
        assert!(board.events.len() >= 100, "{}", board.events.len());
        assert!(board.events.is_sorted_by_key(|event| event.at));
        assert_eq!(board.events.last().unwrap().what, What::NurseryClosed);
        let open: Vec<_> = board.records.iter().filter(|record| record.actor == 0).collect();
        assert_eq!(open.len(), 1, "{open:?}");
        runtime.close().await;
    });
}
