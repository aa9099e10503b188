//! Scenarios 46, 48 and 50 to 52: who is killed takes with it what is below it, strays too, and nothing
//! else (C3).
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio as StdStdio};
use std::time::Instant;

use hatchery::{Config, Error, nursery, shield};
use hatchery_spawn::Pidfd;
use hatchery_testkit::fault::{FORKSERVER, Fault, Moment, Tree};
use hatchery_testkit::isolate;
use hatchery_tests::grown::{GONE, all_up, at, killed, struck, survivors, tend};
use hatchery_tests::{HANG, PROCESSES, came_down, for_each, here, with};
use nix::libc;

#[hatchery::function]
async fn square(x: u64) -> u64 {
    x * x
}

/// Ignores every cancel.
#[hatchery::function]
async fn stubborn() -> u64 {
    shield(std::future::pending()).await
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
                let (below, ended) = struck(hit, tend(&n, 3, true)).await;
                assert_eq!(below.len(), 13);
                assert_eq!(survivors(&below), Vec::<&str>::new());
                ended
            })
            .await;
        let error = came_down(down);
        let died: Vec<_> = error.faults().iter().flat_map(|fault| fault.leaves()).collect();
        assert!(
            died.iter().any(|fault| killed(&fault.kind) && fault.path.as_str() == "root/a1"),
            "{}",
            error.render()
        );
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
                    let (below, ended) = struck(hit(), tend(&n, 3, busy)).await;
                    assert_eq!(survivors(&below), Vec::<&str>::new(), "{name}");
                    ended
                })
                .await;
            let error = came_down(down);
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
            drop(came_down(down));
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
