//! Scenarios 46, 48 and 50 to 52: who is killed takes with it what is below it, strays too, and nothing
//! else (C3).
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio as StdStdio};
use std::time::{Duration, Instant};

use hatchery::{
    ActorReport, Config, Error, ExitStatus, Report, Runtime, ScopeError, nursery,
    nursery_with_report,
};
use hatchery_spawn::Pidfd;
use hatchery_testkit::fault::{FORKSERVER, Fault, Moment, Tree};
use hatchery_testkit::isolate;
use hatchery_tests::grown::{
    GONE, LEAF, Load, all_up, all_up_of, aside, at, killed, stubborn, survivors, tend,
};
use hatchery_tests::{BUDGET, HANG, PROCESSES, came_down, for_each, here, with};
use nix::libc;

#[hatchery::function]
async fn square(x: u64) -> u64 {
    x * x
}

#[hatchery::function]
async fn idle() -> u64 {
    std::future::pending().await
}

/// Scenario 46, 48: the parent's side breaks: those below a killed actor, streaming to it, go.
#[test]
fn those_who_stream_to_a_dead_parent_go() {
    for_each(here!(), &PROCESSES, async |runtime| {
        // Beside the nursery: the death drops its body.
        let hit = async {
            let all = all_up().await;
            let below: Vec<_> =
                all.into_iter().filter(|(path, _)| path.starts_with("root/a1")).collect();
            assert_eq!(below.len(), 13);
            let victim = below.iter().position(|(path, _)| path == "root/a1").unwrap();
            below[victim].1.send_signal(libc::SIGKILL).unwrap();
            left_of_many(below).await
        };
        let tree = runtime.nursery(async |n| tend(&n, 3, Load::Streams).await);
        let (left, down) = tokio::join!(hit, tree);
        assert_eq!(left, Vec::<String>::new());
        let error = came_down(down);
        let died: Vec<_> = error.faults().iter().flat_map(|fault| fault.leaves()).collect();
        // Fault 9: once, whoever has heard of it.
        let told = died.iter().filter(|one| killed(&one.kind) && one.path.as_str() == "root/a1");
        assert_eq!(told.count(), 1, "{}", error.render());
        runtime.close().await;
    });
}

/// Who lives after the second of C3.
async fn left_of(all: Vec<(String, Pidfd)>) -> Vec<String> {
    aside(move || survivors(&all).into_iter().map(str::to_owned).collect()).await
}

/// The same of those below a child of the root, who need the processor to go by themselves, and the
/// forkserver to kill the others: C3's second is what the benchmarks measure; this only tells who never
/// goes from who waits for a processor beside forty others.
async fn left_of_many(all: Vec<(String, Pidfd)>) -> Vec<String> {
    let until = Instant::now() + SOON;
    let left = move || {
        let left = |one: &Pidfd| one.wait_dead(until.saturating_duration_since(Instant::now()));
        all.into_iter().filter(|(_, one)| !left(one)).map(|(path, _)| path).collect()
    };
    aside(left).await
}

/// SIGKILL of one process of T(3,3): who is below is gone within a second, and the survivors' error
/// names who died and how.
fn kill_one_of_each_level(test: &str, load: Load) {
    for victim in ["root/a1", "root/a1/a1", "root/a1/a1/a1", FORKSERVER] {
        eprintln!("{victim}");
        let hit = async || {
            let all = aside(move || all_up_of(Tree::mine(), load)).await;
            let at = all.iter().position(|(path, _)| path == victim).unwrap();
            all[at].1.send_signal(libc::SIGKILL).unwrap();
            let below = format!("{victim}/");
            let is_below = |path: &str| victim == FORKSERVER || path.starts_with(&below);
            let below = all.into_iter().filter(|(path, _)| is_below(path)).collect();
            if victim == "root/a1" { left_of_many(below).await } else { left_of(below).await }
        };
        let name = format!("{test} {victim}");
        with(PROCESSES[0].clone(), Config::default(), async |runtime| {
            // Beside the nursery: the death of its own actor drops its body.
            let tree = runtime.nursery(async |n| tend(&n, 3, load).await);
            let (left, down) = tokio::join!(hit(), tree);
            assert_eq!(left, Vec::<String>::new(), "{name}");
            let error = came_down(down);
            let leaves: Vec<_> = error.faults().iter().flat_map(|one| one.leaves()).collect();
            let is_named = if victim == FORKSERVER {
                error.render().contains("its forkserver is gone")
            } else {
                // Fault 9: once, whoever has heard of it.
                let told = leaves.iter().filter(|one| one.path.as_str() == victim);
                told.filter(|one| killed(&one.kind)).count() == 1
            };
            assert!(is_named, "{name}: {}", error.render());
            runtime.close().await;
        });
    }
}

/// Scenario 48, C3, C4: idle.
#[test]
fn a_killed_process_of_an_idle_tree_takes_all_below_it_and_is_named() {
    isolate::run_test(here!(), HANG * 4, || kill_one_of_each_level("idle", Load::Idle));
}

/// Scenario 48, C3, C4: in streams.
#[test]
fn a_killed_process_of_a_streaming_tree_takes_all_below_it_and_is_named() {
    isolate::run_test(here!(), HANG * 4, || kill_one_of_each_level("busy", Load::Streams));
}

/// Scenario 48, C3, C4: while a leaf is being born.
#[test]
fn a_killed_process_of_a_tree_in_birth_takes_all_below_it_and_is_named() {
    isolate::run_test(here!(), HANG * 4, || kill_one_of_each_level("birth", Load::Birth));
}

/// Scenario 48, C3, C16: while the tree comes down, held up by one leaf that has acknowledged.
#[test]
fn a_killed_process_of_a_tree_in_teardown_takes_all_below_it() {
    isolate::run_test(here!(), HANG * 4, || {
        for victim in ["root/a1", "root/a1/a1", LEAF, FORKSERVER] {
            eprintln!("{victim}");
            with(PROCESSES[0].clone(), Config::with_budget(AMPLE), async |runtime| {
                let (below, (down, report)) = kill_in_teardown(victim).await;
                assert_eq!(below, Vec::<String>::new(), "{victim}");
                // Of one whose channel broke first, and who was then forced, the report tells.
                let named = if victim == FORKSERVER { "root/a1" } else { victim };
                let error = down.err().map(|error| error.render()).unwrap_or_default();
                let is_told = error.contains(named) || is_killed(&report.actors, named);
                assert!(is_told, "{victim}: {error}\n{report}");
                runtime.close().await;
            });
        }
    });
}

/// Waits until [`LEAF`] serves what it will not leave: before, it would go when it is asked to.
fn is_stubborn(tree: Tree) {
    tree.at(Moment::InCall, LEAF, HANG / 2, LEAF, Fault::Continue).unwrap();
}

/// Kills `victim` when [`LEAF`] has acknowledged that it is to go; who below it was still there after
/// the second of C3, and what the nursery said.
async fn kill_in_teardown(victim: &'static str) -> (Vec<String>, (Result<(), ScopeError>, Report)) {
    let (tell, up) = tokio::sync::oneshot::channel();
    let strike = aside(move || {
        let mut all = all_up_of(Tree::mine(), Load::Stubborn);
        is_stubborn(Tree::mine());
        tell.send(()).unwrap();
        Tree::mine()
            .at(Moment::CancelAcknowledged, LEAF, HANG / 2, victim, Fault::Kill)
            .unwrap_or_else(|missed| panic!("{missed}"));
        let below = format!("{victim}/");
        all.retain(|(path, _)| victim == FORKSERVER || path == victim || path.starts_with(&below));
        survivors(&all).into_iter().map(str::to_owned).collect()
    });
    let tree = nursery_with_report(async |n| {
        tokio::select! {
            ended = tend(&n, 3, Load::Stubborn) => panic!("it ended before it was struck: {ended:?}"),
            // All are there: it comes down.
            _ = up => Ok(()),
        }
    });
    tokio::join!(strike, tree)
}

/// Whether a report says of the actor at `path` that it did not end as it should.
fn is_killed(actors: &[ActorReport], path: &str) -> bool {
    actors.iter().any(|one| {
        let is_it = one.path.as_str() == path && one.end != Some(ExitStatus::Code(0));
        is_it || is_killed(&one.below, path)
    })
}

/// Scenario 48, C3: the root, while a leaf is being born and while the tree comes down.
#[test]
fn a_root_that_is_killed_in_a_birth_or_a_teardown_takes_all_with_it() {
    isolate::run_test(here!(), HANG * 4, || {
        for load in [Load::Birth, Load::Stubborn] {
            let mut other = start_the_other_tree(&format!("{load:?}"));
            let tree = Tree::of(other.id());
            let all = all_up_of(tree, load);
            if load == Load::Birth {
                other.kill().unwrap();
            } else {
                is_stubborn(tree);
                Pidfd::open(other.id()).unwrap().send_signal(libc::SIGTERM).unwrap();
                let moment = Moment::CancelAcknowledged;
                tree.at(moment, LEAF, HANG / 2, "root", Fault::Kill).unwrap();
            }
            assert_eq!(survivors(&all), Vec::<&str>::new(), "{load:?}");
            let status = other.wait().unwrap();
            assert_eq!(status.signal(), Some(libc::SIGKILL), "{load:?}");
        }
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
        drop(came_down(down));
        assert!(stray.unwrap().wait_dead(GONE));
        runtime.close().await;
    });
}

/// Scenario 51: an orphan in its grace ends at SIGINT, stubborn as it is, and at SIGTERM, which asks as
/// any cancel does, long before the end of the grace; who ignores the asking ends with the grace, and
/// so does who is not signalled.
#[test]
fn an_orphan_ends_at_a_signal_or_at_the_end_of_its_grace() {
    let roomy = Config { orphan_grace: HANG, ..Config::with_budget(BUDGET) };
    isolate::run_test(here!(), HANG * 2, || {
        orphans_end(roomy, &[(Some(libc::SIGINT), true), (Some(libc::SIGTERM), false)]);
        orphans_end(Config::with_budget(BUDGET), &[(Some(libc::SIGTERM), true), (None, true)]);
    });
}

fn orphans_end(config: Config, rounds: &[(Option<i32>, bool)]) {
    with(PROCESSES[0].clone(), config, async |runtime| {
        for &(signal, is_stubborn) in rounds {
            let down: Result<(), _> = runtime
                .nursery(async |n| {
                    let top = n.start("top").await?;
                    let orphan = async {
                        let struck =
                            at(Moment::InCall, "root/top/low", "root/top/low", Fault::Continue);
                        let orphan = struck.await.unwrap();
                        Tree::mine().hit("root/top", Fault::Kill).unwrap();
                        if let Some(signal) = signal {
                            // Who obeys may be gone already, at the end of its channel.
                            let sent = orphan.send_signal(signal);
                            assert!(sent.is_ok() || !is_stubborn, "{sent:?}");
                        }
                        assert!(orphan.wait_dead(GONE), "{signal:?} {is_stubborn}");
                    };
                    let (ended, ()) = tokio::join!(top.call(above_one(is_stubborn)), orphan);
                    ended?;
                    Ok(())
                })
                .await;
            drop(came_down(down));
        }
        runtime.close().await;
    });
}

#[hatchery::function]
async fn above_one(is_stubborn: bool) -> Result<(), Error> {
    let below = nursery(async |n| {
        let low = n.start("low").await?;
        if is_stubborn {
            low.call(stubborn()).await?;
        } else {
            low.call(idle()).await?;
        }
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
                let mut other = start_the_other_tree("Small");
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
                other.kill().unwrap();
                other.wait().unwrap();
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

/// This program again, as the root of a tree of its own.
fn start_the_other_tree(load: &str) -> Child {
    Command::new("/proc/self/exe")
        .args(["the_other_tree", "--exact", "--nocapture", "--ignored"])
        .env(OTHER, load)
        .stdout(StdStdio::piped())
        .stderr(StdStdio::null())
        .spawn()
        .unwrap()
}

/// What the tests above start; not one by itself.
#[test]
#[ignore = "the other side of another test"]
fn the_other_tree() {
    let Ok(load) = std::env::var(OTHER) else { return };
    isolate::block_on(async {
        let runtime = Runtime::builder().config(Config::with_budget(AMPLE)).open().unwrap();
        let tree = runtime.nursery(async |n| match load.as_str() {
            "Birth" => tend(&n, 3, Load::Birth).await,
            "Stubborn" => tend(&n, 3, Load::Stubborn).await,
            _ => {
                let mut all = Vec::new();
                for i in 0..3 {
                    all.push(n.start(&format!("b{i}")).await?);
                }
                println!("it is up");
                std::future::pending().await
            }
        });
        let held: Result<(), _> = tree.await;
        drop(held);
    });
}

/// Well before a hang.
const SOON: Duration = Duration::from_secs(10);

/// A budget that nobody waits for: however long a busy machine needs to strike, it is a teardown yet.
const AMPLE: Duration = Duration::from_secs(25);
const OTHER: &str = "HATCHERY_TESTS_OTHER_TREE";
