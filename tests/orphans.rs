//! Scenarios 46 to 52: broken channels, dead and stopped processes, orphans and strays; with
//! signals from outside, at the moments that the fault injector knows.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio as StdStdio};
use std::time::{Duration, Instant};

use hatchery::{
    CallError, Callee, Config, ContextError, Error, ExitStatus, FaultKind, Nothing, Portal,
    Runtime, ScopeError, Step, StreamError, nursery, nursery_with_report, shield,
};
use hatchery_spawn::Pidfd;
use hatchery_testkit::fault::{FORKSERVER, Fault, Missed, Moment, Tree, children_of};
use hatchery_testkit::isolate;
use hatchery_tests::{BUDGET, HANG, PROCESSES, for_each, here, with};
use nix::libc;

/// C3, and what a loaded machine may add before a signal is even seen.
const GONE: Duration = Duration::from_secs(1);

/// What a teardown may take on a loaded machine beyond its budget.
const SLACK: Duration = Duration::from_secs(2);

#[hatchery::function]
async fn square(x: u64) -> u64 {
    x * x
}

#[hatchery::function]
async fn idle() -> u64 {
    std::future::pending().await
}

/// Ignores every cancel.
#[hatchery::function]
async fn stubborn() -> u64 {
    shield(std::future::pending()).await
}

/// Sends numbers for ever.
#[hatchery::context]
async fn count(callee: Callee<Nothing, u64>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    for number in 0.. {
        stream.send(number).await?;
    }
    Ok(())
}

/// Sends three numbers, closes, and stays.
#[hatchery::context]
async fn three(callee: Callee<Nothing, u64>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    for number in 0..3 {
        stream.send(number).await?;
    }
    stream.close().await?;
    std::future::pending().await
}

/// Three children, with levels below them; stays, with a stream from each child under way.
#[hatchery::function]
async fn grow(levels: u32, busy: bool) -> Result<(), Error> {
    Ok(nursery(async |n| tend(&n, levels, busy).await).await?)
}

async fn tend(n: &hatchery::Nursery, levels: u32, busy: bool) -> hatchery::Result<()> {
    let mut all = tokio::task::JoinSet::new();
    for i in 0..3 {
        let n = n.clone();
        all.spawn(async move {
            let child = n.start(&format!("a{i}")).await?;
            let below = async {
                if levels > 1 {
                    return Ok(child.call(grow(levels - 1, busy)).await?);
                }
                std::future::pending().await
            };
            let load = async {
                if busy {
                    return stream(&child).await;
                }
                std::future::pending().await
            };
            let ended: hatchery::Result<()> = tokio::select! {
                ended = below => ended,
                ended = load => ended,
            };
            ended
        });
    }
    while let Some(ended) = all.join_next().await {
        ended??;
    }
    Ok(())
}

async fn stream(child: &Portal) -> hatchery::Result<()> {
    child
        .open_context(count(), async |mut cx| {
            while cx.recv().await?.is_some() {
                tokio::task::yield_now().await;
            }
            Ok(())
        })
        .await?;
    Ok(())
}

/// Runs what waits for other processes where it holds nobody up.
async fn aside<T: Send + 'static>(wait: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || drop(tell.send(wait())));
    let answer = told.await.unwrap();
    thread.join().unwrap();
    answer
}

/// Waits for a moment and does it.
async fn at(moment: Moment, of: &str, whom: &str, fault: Fault) -> Result<Pidfd, Missed> {
    let (of, whom) = (of.to_owned(), whom.to_owned());
    aside(move || Tree::mine().at(moment, &of, HANG / 2, &whom, fault)).await
}

/// All of T(3,3), up, each held.
async fn all_up() -> Vec<(String, Pidfd)> {
    aside(|| {
        let until = Instant::now() + HANG;
        loop {
            let pids = Tree::mine().pids();
            if pids.len() == 41 {
                let held = pids.into_iter().filter(|(path, _)| path != "root");
                return held.map(|(path, pid)| (path, Pidfd::open(pid).unwrap())).collect();
            }
            assert!(Instant::now() < until, "{} of 41: {pids:?}", pids.len());
            #[allow(clippy::disallowed_methods, reason = "what others write down is no event")]
            std::thread::sleep(Duration::from_millis(5));
        }
    })
    .await
}

/// Who lives after the second of C3.
fn survivors(all: &[(String, Pidfd)]) -> Vec<&str> {
    let until = Instant::now() + GONE;
    let left = all
        .iter()
        .filter(|(_, process)| !process.wait_dead(until.saturating_duration_since(Instant::now())));
    left.map(|(path, _)| &**path).collect()
}

fn killed(kind: &FaultKind) -> bool {
    *kind == FaultKind::Died(ExitStatus::Signal(libc::SIGKILL))
}

/// Scenario 46: the other side dies in the midst of a stream, and after it was closed cleanly: a
/// typed error in the midst, the end and then the error after it; the tree can still be ended.
#[test]
fn a_channel_that_breaks_in_a_stream_is_a_typed_error() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let child = n.start("child").await?;
                let struck =
                    tokio::spawn(at(Moment::InStream, "root/child", "root/child", Fault::Kill));
                let error = child
                    .open_context(count(), async |mut cx| {
                        loop {
                            match cx.recv().await {
                                Ok(Some(_)) => {}
                                Ok(None) => return Err::<(), _>(Error::msg("a clean end")),
                                Err(error) => {
                                    assert!(!matches!(error, StreamError::Closed), "{error:?}");
                                    return Err(error.into());
                                }
                            }
                        }
                    })
                    .await
                    .unwrap_err();
                struck.await.unwrap().unwrap();
                assert!(!matches!(error, ContextError::Refused(_)), "{error:?}");
                Ok(())
            })
            .await;
        let error = down.unwrap_err();
        assert!(error.faults().iter().any(|fault| killed(&fault.kind)), "{}", error.render());

        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let child = n.start("child").await?;
                let ended = child
                    .open_context(three(), async |mut cx| {
                        for expected in 0..3 {
                            assert_eq!(cx.recv().await?, Some(expected));
                        }
                        assert_eq!(cx.recv().await?, None);
                        Tree::mine().hit("root/child", Fault::Kill).unwrap();
                        Ok(cx.result().await?)
                    })
                    .await;
                assert!(ended.is_err(), "{ended:?}");
                Ok(())
            })
            .await;
        let error = down.unwrap_err();
        assert!(error.faults().iter().any(|fault| killed(&fault.kind)), "{}", error.render());
        runtime.close().await;
    });
}

/// Scenario 46, 48: the parent's side breaks: those below a killed actor, streaming to it, go.
#[test]
fn those_who_stream_to_a_dead_parent_go() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let hit = async {
                    let all = all_up().await;
                    let below: Vec<_> =
                        all.into_iter().filter(|(path, _)| path.starts_with("root/a1")).collect();
                    let victim = below.iter().position(|(path, _)| path == "root/a1").unwrap();
                    below[victim].1.send_signal(libc::SIGKILL).unwrap();
                    below
                };
                let (below, ended) = tokio::join!(hit, tend(&n, 3, true));
                assert_eq!(below.len(), 13);
                assert_eq!(survivors(&below), Vec::<&str>::new());
                ended
            })
            .await;
        let error = down.unwrap_err();
        let died: Vec<_> = error.faults().iter().flat_map(|fault| fault.leaves()).collect();
        assert!(
            died.iter().any(|fault| killed(&fault.kind) && fault.path.as_str() == "root/a1"),
            "{}",
            error.render()
        );
        runtime.close().await;
    });
}

/// Shuts every socket of this process, those to the forkserver too, and goes on for ever.
#[hatchery::function]
async fn cut_off() -> u64 {
    let closed = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let sockets: Vec<i32> = closed
        .filter(|entry| {
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            target.to_string_lossy().starts_with("socket:")
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for socket in sockets {
        // Shut, not closed: nobody's fd number is taken from under it.
        let _none = nix::sys::socket::shutdown(socket, nix::sys::socket::Shutdown::Both);
    }
    loop {
        std::hint::spin_loop();
    }
}

/// Scenario 47: an actor that shut its channel and lives on is ended from outside in the budget.
#[test]
fn an_actor_that_cut_itself_off_is_ended_from_outside() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let began = Instant::now();
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let child = n.start("child").await?;
                let error = child.call(cut_off()).await.unwrap_err();
                assert!(matches!(error, CallError::Lost(_) | CallError::Died(_)), "{error:?}");
                Err(error.into())
            })
            .await;
        assert!(down.is_err());
        assert!(began.elapsed() < BUDGET + SLACK, "{:?}", began.elapsed());
        assert_eq!(children_of(runtime.forkserver_pid().unwrap()), Vec::<u32>::new());
        runtime.close().await;
    });
}

/// SIGKILL of one process of T(3,3): who is below is gone within a second, and the survivors' error
/// names who died and how.
fn kill_one_of_each_level(test: &str, busy: bool) {
    for victim in ["root/a1", "root/a1/a1", "root/a1/a1/a1", FORKSERVER] {
        eprintln!("{victim}");
        let hit = async || {
            let all = all_up().await;
            let at = all.iter().position(|(path, _)| path == victim).unwrap();
            all[at].1.send_signal(libc::SIGKILL).unwrap();
            let below = format!("{victim}/");
            let is_below = |path: &str| victim == FORKSERVER || path.starts_with(&below);
            all.into_iter().filter(|(path, _)| is_below(path)).collect::<Vec<_>>()
        };
        let name = format!("{test} {victim}");
        with(PROCESSES[0].clone(), Config::default(), async |runtime| {
            let down: Result<(), _> = runtime
                .nursery(async |n| {
                    let (below, ended) = tokio::join!(hit(), tend(&n, 3, busy));
                    assert_eq!(survivors(&below), Vec::<&str>::new(), "{name}");
                    ended
                })
                .await;
            let error = down.unwrap_err();
            let leaves: Vec<_> = error.faults().iter().flat_map(|one| one.leaves()).collect();
            let is_named = if victim == FORKSERVER {
                error.render().contains("its forkserver is gone")
            } else {
                leaves.iter().any(|one| killed(&one.kind) && one.path.as_str() == victim)
            };
            assert!(is_named, "{name}: {}", error.render());
            runtime.close().await;
        });
    }
}

/// Scenario 48, C3, C4: idle.
#[test]
fn a_killed_process_of_an_idle_tree_takes_all_below_it_and_is_named() {
    isolate::run_test(here!(), HANG * 4, || kill_one_of_each_level("idle", false));
}

/// Scenario 48, C3, C4: in streams.
#[test]
fn a_killed_process_of_a_streaming_tree_takes_all_below_it_and_is_named() {
    isolate::run_test(here!(), HANG * 4, || kill_one_of_each_level("busy", true));
}

/// Starts `root/it`, lives with it until that moment and kills it; what the nursery said, and the
/// strike.
async fn strike_in_a_nursery(
    runtime: &Runtime,
    moment: Moment,
) -> (Result<(), ScopeError>, Result<Pidfd, Missed>) {
    let mut strike = tokio::spawn(at(moment, "root/it", "root/it", Fault::Kill));
    let mut struck = None;
    let down = runtime
        .nursery(async |n| {
            let missed = async {
                let strike = struck.insert((&mut strike).await.unwrap());
                if strike.is_ok() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                ended = live_until(&n, moment) => ended,
                // What waits for the strike would wait for ever.
                () = missed => Ok(()),
            }
        })
        .await;
    if struck.is_none() {
        struck = Some(strike.await.unwrap());
    }
    (down, struck.unwrap())
}

async fn live_until(n: &hatchery::Nursery, moment: Moment) -> hatchery::Result<()> {
    let it = n.start("it").await?;
    match moment {
        Moment::InStream => stream(&it).await,
        Moment::CancelAcknowledged | Moment::Terminated => {
            let late = it.call(stubborn()).within(Duration::from_millis(20)).await;
            assert!(matches!(late, Err(CallError::Deadline(_))), "{late:?}");
            it.cancel();
            it.settled().await;
            Ok(())
        }
        Moment::AtBirth => it.call(square(2)).await.map(|_| ()).map_err(Error::from),
        Moment::BeforeFork | Moment::Ready | Moment::InCall => {
            it.call(idle()).await.map(|_| ()).map_err(Error::from)
        }
    }
}

/// Scenario 48, C1, C4: SIGKILL of an actor at each named moment of its life: the nursery returns
/// with its name and status, or with the error of its start, and nobody is left.
#[test]
fn a_kill_at_each_moment_of_a_life_is_told_as_one() {
    for_each(here!(), &PROCESSES[..1], async |runtime| {
        // The forkserver comes with the first actor.
        runtime.nursery(async |n| Ok(n.start("first").await.map(drop)?)).await.unwrap();
        for moment in [
            Moment::AtBirth,
            Moment::Ready,
            Moment::InCall,
            Moment::InStream,
            Moment::CancelAcknowledged,
            Moment::Terminated,
        ] {
            let (mut landed, mut tries) = (false, 0);
            // A birth is over in less than a millisecond: it may be missed. Each look that comes too
            // late costs its own bound.
            while !landed && tries < 20 {
                tries += 1;
                let (down, struck) = strike_in_a_nursery(&runtime, moment).await;
                match struck {
                    Ok(process) => {
                        assert!(process.wait_dead(GONE));
                        landed = true;
                        let error = match down {
                            Err(error) => error.render(),
                            Ok(()) => "it was cancelled before".to_owned(),
                        };
                        let told = error.contains("SIGKILL") || error.contains("was cancelled");
                        assert!(told, "{moment:?}: {error}");
                    }
                    Err(missed) if moment == Moment::AtBirth => drop(missed),
                    Err(missed) => panic!("{missed}"),
                }
                let server = runtime.forkserver_pid().unwrap();
                assert_eq!(children_of(server), Vec::<u32>::new(), "{moment:?}");
            }
            assert!(landed || moment == Moment::AtBirth, "{moment:?} after {tries} tries");
        }
        runtime.close().await;
    });
}

/// Scenario 48: the forkserver dies before it could fork: the start fails at once, with its cause.
#[test]
fn a_forkserver_that_dies_before_the_fork_fails_the_start() {
    for_each(here!(), &PROCESSES, async |runtime| {
        runtime.nursery(async |n| Ok(n.start("first").await.map(drop)?)).await.unwrap();
        let began = Instant::now();
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let stopped = Tree::mine().hit(FORKSERVER, Fault::Stop).unwrap();
                let struck =
                    tokio::spawn(at(Moment::BeforeFork, "root/it", FORKSERVER, Fault::Kill));
                let error = n.start("it").await.unwrap_err();
                assert!(struck.await.unwrap().unwrap().wait_dead(GONE));
                assert!(stopped.is_dead());
                Err(error.into())
            })
            .await;
        assert!(down.is_err());
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        // The next one finds a new forkserver.
        runtime.nursery(async |n| Ok(n.start("next").await.map(drop)?)).await.unwrap();
        runtime.close().await;
    });
}

/// Scenario 49, C2: a stopped leaf and a stopped middle actor cost one budget, and are named.
#[test]
fn a_stopped_actor_costs_one_budget_and_is_named() {
    isolate::run_test(here!(), HANG * 4, || {
        for victim in ["root/a2", "root/a2/a2", "root/a2/a2/a2"] {
            with(PROCESSES[0].clone(), Config::default(), async |runtime| {
                let mut began = Instant::now();
                let (down, report) = nursery_with_report(async |n| {
                    let hit = async {
                        drop(all_up().await);
                        Tree::mine().hit(victim, Fault::Stop).unwrap();
                    };
                    tokio::select! {
                        ended = tend(&n, 3, false) => ended,
                        () = hit => {
                            began = Instant::now();
                            Ok(())
                        }
                    }
                })
                .await;
                let took = began.elapsed();
                assert!(took < Config::default().budget + SLACK, "{victim}: {took:?}");
                let forced = report.forced();
                let named = forced.iter().find(|one| one.path.as_str() == victim);
                let named = named.unwrap_or_else(|| panic!("{victim}: {down:?}\n{report}"));
                assert!(named.steps.iter().any(|taken| taken.step == Step::Killed), "{report}");
                runtime.close().await;
            });
        }
    });
}

/// Scenario 49: with the forkserver stopped calls go on and the teardown is bounded; after
/// SIGCONT all is as before.
#[test]
fn a_stopped_forkserver_holds_up_starts_alone() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let done = runtime.nursery(async |n| {
            let child = n.start("child").await?;
            let stopped = Tree::mine().hit(FORKSERVER, Fault::Stop).unwrap();
            for x in 0..100 {
                assert_eq!(child.call(square(x)).await?, x * x);
            }
            let late = tokio::time::timeout(BUDGET / 4, n.start("late")).await;
            assert!(late.is_err(), "a stopped forkserver forks");
            stopped.send_signal(libc::SIGCONT).unwrap();
            let next = n.start("next").await?;
            Ok(next.call(square(4)).await?)
        });
        assert_eq!(done.await.unwrap(), 16);

        let (mut began, mut stopped) = (Instant::now(), None);
        let down = runtime.nursery(async |n| {
            n.start("child").await?;
            stopped = Some(Tree::mine().hit(FORKSERVER, Fault::Stop).unwrap());
            began = Instant::now();
            Ok(())
        });
        // Nobody can be reaped: what comes out of it is not the point, when it does is.
        drop(down.await);
        assert!(began.elapsed() < BUDGET + SLACK, "{:?}", began.elapsed());
        stopped.unwrap().send_signal(libc::SIGCONT).unwrap();
        let again = runtime.nursery(async |n| {
            let next = n.start("next").await?;
            Ok(next.call(square(5)).await?)
        });
        assert_eq!(again.await.unwrap(), 25);
        runtime.close().await;
    });
}

/// Starts a program of its own and says its number.
#[hatchery::function]
#[allow(clippy::zombie_processes, reason = "left behind on purpose")]
async fn sleep_1000() -> u32 {
    Command::new("sleep").arg("1000").stdin(StdStdio::null()).spawn().unwrap().id()
}

/// Scenario 50, C3: what an actor has started by itself goes when the actor is killed.
#[test]
fn what_a_killed_actor_started_itself_is_gone() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let mut stray = None;
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let child = n.start("child").await?;
                stray = Some(Pidfd::open(child.call(sleep_1000()).await?)?);
                Tree::mine().hit("root/child", Fault::Kill).unwrap();
                child.settled().await;
                Ok(())
            })
            .await;
        assert!(down.is_err());
        assert!(stray.unwrap().wait_dead(GONE));
        runtime.close().await;
    });
}

/// Scenario 51: an orphan in its grace, stubborn as it is, ends at SIGINT and SIGTERM; and without
/// them at the end of the grace.
#[test]
fn an_orphan_ends_at_a_signal_or_at_the_end_of_its_grace() {
    for_each(here!(), &PROCESSES[..1], async |runtime| {
        for signal in [Some(libc::SIGINT), Some(libc::SIGTERM), None] {
            let down: Result<(), _> = runtime
                .nursery(async |n| {
                    let top = n.start("top").await?;
                    let orphan = async {
                        let struck =
                            at(Moment::InCall, "root/top/low", "root/top/low", Fault::Continue);
                        let orphan = struck.await.unwrap();
                        Tree::mine().hit("root/top", Fault::Kill).unwrap();
                        if let Some(signal) = signal {
                            // It may be gone by itself already.
                            let _gone = orphan.send_signal(signal);
                        }
                        assert!(orphan.wait_dead(GONE), "{signal:?}");
                    };
                    let (ended, ()) = tokio::join!(top.call(above_a_stubborn_one()), orphan);
                    ended?;
                    Ok(())
                })
                .await;
            assert!(down.is_err());
        }
        runtime.close().await;
    });
}

#[hatchery::function]
async fn above_a_stubborn_one() -> Result<(), Error> {
    let below = nursery(async |n| {
        let low = n.start("low").await?;
        low.call(stubborn()).await?;
        Ok(())
    });
    Ok(below.await?)
}

/// Scenario 52: the second tree of the same program is killed; the first one notices nothing.
#[test]
fn a_tree_that_is_killed_is_none_of_another_trees_business() {
    for_each(here!(), &PROCESSES[..1], async |runtime| {
        let done = runtime.nursery(async |n| {
            let child = n.start("child").await?;
            for round in 0..5 {
                let mut other = Command::new("/proc/self/exe")
                    .args(["the_other_tree", "--exact", "--nocapture", "--ignored"])
                    .env(OTHER, "1")
                    .stdout(StdStdio::piped())
                    .stderr(StdStdio::null())
                    .spawn()?;
                let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
                lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("it is up")));
                let tree = Tree::of(other.id());
                let until = Instant::now() + HANG / 2;
                while tree.pids().len() < 5 {
                    assert!(Instant::now() < until, "{:?}", tree.pids());
                    tokio::task::yield_now().await;
                }
                let held: Vec<Pidfd> =
                    tree.pids().into_values().map(|pid| Pidfd::open(pid).unwrap()).collect();
                other.kill()?;
                other.wait()?;
                assert!(held.iter().all(|one| one.wait_dead(GONE)));
                assert_eq!(child.call(square(7)).await?, 49);
                let next = n.start(&format!("next{round}")).await?;
                assert_eq!(next.call(square(8)).await?, 64);
                next.cancel();
                next.settled().await;
            }
            Ok(())
        });
        done.await.unwrap();
        runtime.close().await;
    });
}

/// What the test above starts; not one by itself.
#[test]
#[ignore = "the other side of another test"]
fn the_other_tree() {
    if std::env::var_os(OTHER).is_none() {
        return;
    }
    isolate::block_on(async {
        let held: Result<(), _> = nursery(async |n| {
            let mut all = Vec::new();
            for i in 0..3 {
                all.push(n.start(&format!("b{i}")).await?);
            }
            println!("it is up");
            std::future::pending().await
        })
        .await;
        drop(held);
    });
}

const OTHER: &str = "HATCHERY_TESTS_OTHER_TREE";
