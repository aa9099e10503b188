//! Guards of hang classes that no other test stands for; see `ai/conc-anal`.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_core::Stream;
use hatchery::{Backend, Config, Error, FaultKind, Nursery, Peer, StartCause, Stdio};
use hatchery_spawn::{Bounds, Forkserver, Main, Spawning, Spec, inventory};
use hatchery_testkit::fault;
use hatchery_tests::{BACKENDS, PROCESSES, ROOMY, for_each, for_each_with, here};

#[hatchery::function]
async fn echo(text: String) -> String {
    text
}

#[hatchery::function]
async fn fail() -> Result<(), Error> {
    Err(Error::msg("the cause"))
}

/// Leaves a blocking task behind that never ends.
#[hatchery::function]
async fn block_for_ever() -> u8 {
    #[allow(clippy::disallowed_methods, reason = "the trap that users fall into")]
    let _never = tokio::task::spawn_blocking(|| {
        loop {
            std::thread::park();
        }
    });
    1
}

/// H8: an actor whose blocking pool is busy for ever goes without force.
#[test]
fn blocking_work_that_never_ends_keeps_nobody() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let (done, report) = runtime
            .nursery(async |_| {
                Ok(hatchery::nursery_with_report(async |n| {
                    let worker = n.start("worker").await?;
                    Ok(worker.call(block_for_ever()).await?)
                })
                .await)
            })
            .await
            .unwrap();
        assert_eq!(done.unwrap(), 1);
        assert!(report.forced().is_empty(), "{report}");
        runtime.close().await;
    });
}

/// Children of a forkserver that end before they shake hands.
#[derive(Debug)]
struct Stillborn(Forkserver);

impl hatchery_spawn::Backend for Stillborn {
    fn name(&self) -> &'static str {
        "stillborn"
    }
    fn is_process(&self) -> bool {
        true
    }
    fn spawn(&self, spec: Spec) -> Spawning {
        self.0.fork().spawn(spec.with_main("stillborn"))
    }
}

inventory::submit! { Main { name: "stillborn", run: |_| 3 } }

/// H12: an actor that ends before its handshake is told at once and by status, not by time-out.
#[test]
fn a_death_at_boot_is_told_at_once() {
    for_each(here!(), &[Backend::Forkserver], async |runtime| {
        let done = runtime.nursery(async |n| {
            let since = Instant::now();
            let server = Forkserver::start(Bounds::default()).unwrap();
            let backend = Backend::Custom(Arc::new(Stillborn(server)));
            let error = n.actor("stillborn").backend(backend).start().await.unwrap_err();
            assert!(matches!(error.cause, StartCause::Died), "{error}");
            assert!(matches!(error.fault().kind, FaultKind::Died(_)), "{error:?}");
            assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
            // The tree goes on working.
            let worker = n.start("worker").await?;
            Ok(worker.call(echo("1".to_owned())).await?)
        });
        assert_eq!(done.await.unwrap(), "1");
        runtime.close().await;
    });
}

/// H15: nobody spins: an idle actor uses less than 10 ms of processor time in a second.
#[test]
fn an_idle_tree_uses_no_cpu() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let done = runtime.nursery(async |n| {
            let mut actors = Vec::new();
            for name in ["a", "b", "c"] {
                let actor = n.start(name).await?;
                actor.call(echo("1".to_owned())).await?;
                actors.push(actor);
            }
            let used = || actors.iter().map(|actor| ticks(actor.pid().unwrap())).sum::<u64>();
            let before = used();
            // What is measured is a second in which nothing happens.
            tokio::time::sleep(Duration::from_secs(1)).await;
            // A tick is 10 ms.
            let used = used() - before;
            assert!(used <= 3, "{used} ticks of three idle actors");
            Ok(())
        });
        done.await.unwrap();
        runtime.close().await;
    });
}

/// Stays connected to the introduced actor for as long as it lives.
#[hatchery::function]
async fn stay(peer: Peer) -> Result<(), Error> {
    let portal = peer.connect().await?;
    portal.call(echo("1".to_owned())).await?;
    std::mem::forget(portal);
    Ok(())
}

/// H15: an end is an end: when an actor was killed whose output was relayed and that had a peer,
/// nobody who held an end of it spins: not the root, nor the forkserver, nor the peer.
#[test]
fn the_ends_of_a_killed_actor_keep_nobody_busy() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let done = runtime.nursery(async |n| {
            let other = n.start("other").await?;
            let peer = other.peer().await?;
            let killed: Result<(), _> = hatchery::nursery(async |n| {
                let one = n.actor("one").stderr(Stdio::Relay).start().await?;
                one.call(stay(peer)).await?;
                fault::sigkill(one.pid().unwrap()).unwrap();
                std::future::pending().await
            })
            .await;
            let killed = killed.unwrap_err();
            assert!(matches!(killed.fault().kind, FaultKind::Died(_)), "{}", killed.render());
            let server = runtime.forkserver_pid().unwrap();
            let held = [std::process::id(), server, other.pid().unwrap()];
            let before = held.map(ticks);
            // As above.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let after = held.map(ticks);
            let used = [0, 1, 2].map(|at| after[at] - before[at]);
            // Who spins uses a hundred, or its share of them.
            assert!(used.iter().all(|&ticks| ticks <= 3), "root, forkserver, peer: {used:?}");
            Ok(())
        });
        done.await.unwrap();
        runtime.close().await;
    });
}

/// H15: nothing wakes up in a tree that does nothing: no timer runs out for each start that was
/// answered long ago, and nobody looks whether there is something to do.
#[test]
fn an_idle_tree_wakes_nobody() {
    let config = Config::default();
    for_each_with(&config, here!(), &[Backend::Forkserver], async |runtime| {
        let done = runtime.nursery(async |n| {
            let mut pids = Vec::new();
            for i in 0..IDLE {
                let actor = n.start(&format!("a{i}")).await?;
                actor.call(echo("here".to_owned())).await?;
                pids.extend(actor.pid());
            }
            pids.extend(runtime.forkserver_pid());
            let wakes = || {
                let others = pids.iter().map(|pid| runs(&format!("/proc/{pid}"))).sum::<u64>();
                others + runs_of_supervisor()
            };
            let before = wakes();
            // Every bound that began with a start has run out after that.
            tokio::time::sleep(Config::default().handshake + Duration::from_millis(500)).await;
            let woken = wakes() - before;
            assert!(woken < IDLE / 2, "{woken} wake-ups of {IDLE} idle actors and who serves them");
            Ok(())
        });
        done.await.unwrap();
        runtime.close().await;
    });
}

const IDLE: u64 = 50;

/// How often a thread began to run.
fn runs(of: &str) -> u64 {
    let schedstat = std::fs::read_to_string(format!("{of}/schedstat")).unwrap();
    schedstat.split_whitespace().nth(2).unwrap().parse().unwrap()
}

/// The same for the thread of this process that serves the tree.
fn runs_of_supervisor() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let paths = tasks.map(|task| task.unwrap().path().display().to_string());
    let named = |path: &String| {
        std::fs::read_to_string(format!("{path}/comm")).is_ok_and(|name| name.trim() == "hatchery")
    };
    let found: Vec<String> = paths.filter(named).collect();
    assert!(!found.is_empty(), "no thread serves the tree");
    found.iter().map(|path| runs(path)).sum()
}

/// H16, C4: a cancel that comes right after an error, on its way up, doesn't hide it.
#[test]
fn an_error_is_not_hidden_by_a_cancel_that_follows_it() {
    for_each(here!(), &BACKENDS, async |runtime| {
        for _ in 0..20 {
            let failed: Result<(), _> = runtime
                .nursery(async |n| {
                    let worker = n.start("worker").await?;
                    let error = worker.call(fail()).await.unwrap_err();
                    n.cancel();
                    Err(error.into())
                })
                .await;
            let error = failed.unwrap_err();
            assert!(error.render().contains("the cause"), "{}", error.render());
        }
        runtime.close().await;
    });
}

/// H17: starts never hang, whatever locks other threads hold: a thousand of them, by processes.
#[test]
fn starts_work_while_threads_allocate_and_write() {
    // Eight times 125, so that the bound that catches hangs stands for a hundred starts and not for
    // a thousand. Teardowns have their whole time: they are no matter of this test.
    let eight = [PROCESSES, PROCESSES, PROCESSES, PROCESSES].concat();
    for_each_with(&Config::default(), here!(), &eight, async |runtime| {
        let stop = Arc::new(AtomicBool::new(false));
        let busy: Vec<_> = (0..16)
            .map(|i| {
                let stop = stop.clone();
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        // Allocates under the allocator's locks, writes under the output's.
                        let text = "x".repeat(1 << (i % 12));
                        print!("{}", &text[..0]);
                        // Sixteen that only spin leave no processor to those who start.
                        std::thread::park_timeout(Duration::from_micros(50));
                    }
                })
            })
            .collect();
        let done = runtime.nursery(async |n| {
            for round in 0..5 {
                let starts = (0..25).map(|i| start_and_leave(&n, format!("a{round}-{i}")));
                futures_util::future::try_join_all(starts).await?;
            }
            Ok(())
        });
        let done = done.await;
        stop.store(true, Ordering::Relaxed);
        for thread in busy {
            thread.join().unwrap();
        }
        done.unwrap_or_else(|error| panic!("{}\n{}", error.render(), error.report()));
        runtime.close().await;
    });
}

/// An actor that allocates and writes, too: what its process inherited is whole.
async fn start_and_leave(n: &Nursery, name: String) -> Result<(), Error> {
    let worker = n.start(&name).await?;
    worker.call(chatter()).await?;
    worker.cancel();
    worker.settled().await;
    Ok(())
}

#[hatchery::function]
async fn chatter() -> usize {
    println!("{}", "x".repeat(100));
    std::thread::spawn(|| "x".repeat(100)).join().unwrap().len()
}

/// H23: calls that are dropped at any moment tear no frame: what comes after them is understood.
#[test]
fn dropped_calls_tear_no_frame() {
    for_each_with(&Config::with_budget(ROOMY), here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            for i in 0..2_000_u64 {
                let size = usize::try_from(i % 50).unwrap() * 1_000;
                let mut call = worker.call(echo("7".repeat(size))).into_future();
                for _ in 0..i % 3 {
                    // Some are dropped before they are sent, some on the way, some answered.
                    tokio::select! {
                        biased;
                        reply = &mut call => {
                            assert_eq!(reply?.len(), size);
                            break;
                        }
                        () = tokio::task::yield_now() => {}
                    }
                    if i % 3 == 1 {
                        break;
                    }
                }
            }
            Ok(worker.call(echo("9".repeat(10))).await?)
        });
        assert_eq!(done.await.unwrap(), "9".repeat(10));
        runtime.close().await;
    });
}

/// H13: 64 starts of one name at once: one is admitted, all others are told at once.
#[test]
fn many_starts_of_one_name_are_decided_at_once() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let starts = futures_util::future::join_all((0..64).map(|_| n.start("same"))).await;
            let (started, refused): (Vec<_>, Vec<_>) = starts.into_iter().partition(Result::is_ok);
            assert_eq!((started.len(), refused.len()), (1, 63));
            for error in refused.into_iter().filter_map(Result::err) {
                assert!(matches!(error.cause, StartCause::NameTaken), "{error}");
            }
            Ok(())
        });
        done.await.unwrap();
        runtime.close().await;
    });
}

/// More than anybody reads.
#[hatchery::function]
fn endless() -> impl Stream<Item = String> + Send {
    futures_util::stream::repeat("7".repeat(1_000))
}

/// H22: while nobody reads a stream, calls on the same channel are answered, and its cancel comes
/// through.
#[test]
fn a_stream_that_nobody_reads_holds_up_nobody_else() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            let unread = worker.stream(endless()).await?;
            for _ in 0..1_000 {
                assert_eq!(worker.call(echo("1".to_owned())).await?, "1");
            }
            drop(unread);
            Ok(worker.call(echo("2".to_owned())).await?)
        });
        assert_eq!(done.await.unwrap(), "2");
        runtime.close().await;
    });
}

/// Processor time of a process, in ticks.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let field = |i: usize| rest.split(' ').nth(i).unwrap().parse::<u64>().unwrap();
    field(11) + field(12)
}
