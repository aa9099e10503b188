//! Scenarios 4, 11, 16, 18, 29, 35, 37, 41 and 44: whole trees, and what happens to them at odd moments.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::time::{Duration, Instant};

use hatchery::{
    CallError, Config, Error, ExitStatus, FaultKind, Runtime, StartCause, Step, nursery,
};
use hatchery_spawn::Pidfd;
use hatchery_testkit::fault::{self, Fault, Moment};
use hatchery_tests::grown::{at, stubborn};
use hatchery_tests::{BACKENDS, HANG, PROCESSES, ROOMY, came_down, for_each, for_each_with, here};

#[derive(Debug, PartialEq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{0} is broken")]
struct Broken(String);

#[hatchery::function]
async fn fail() -> Result<u64, Broken> {
    Err(Broken(hatchery::path().to_string()))
}

#[hatchery::function]
async fn idle() -> u64 {
    std::future::pending().await
}

#[hatchery::function]
async fn add(a: u64, b: u64) -> u64 {
    a + b
}

/// Every path of the tree below this actor.
#[hatchery::function]
async fn paths(depth: u32, breadth: u32) -> Result<Vec<String>, Error> {
    let mut all = vec![hatchery::path().to_string()];
    if depth > 0 {
        let below = nursery(async |n| {
            let mut runs = Vec::new();
            for i in 0..breadth {
                runs.push(n.run(&format!("a{i}"), paths(depth - 1, breadth)));
            }
            let mut below = Vec::new();
            for run in runs {
                below.extend(run.await?);
            }
            Ok(below)
        });
        all.extend(below.await?);
    }
    Ok(all)
}

#[hatchery::function]
async fn give_up() -> u64 {
    hatchery::cancel_self();
    std::future::pending().await
}

#[hatchery::function]
async fn rebel() -> u64 {
    assert!(hatchery::cancel_parent());
    std::future::pending().await
}

/// Starts one actor below and keeps it until it is gone, then says so.
#[hatchery::function]
async fn outlive() -> Result<String, Error> {
    let said = nursery(async |n| {
        let below = n.start("below").await?;
        below.settled().await;
        Ok("it went alone".to_owned())
    });
    Ok(said.await?)
}

/// A destructor that panics, or blocks for ever.
struct Nasty {
    blocks: bool,
}

impl Drop for Nasty {
    fn drop(&mut self) {
        if self.blocks {
            loop {
                std::thread::park();
            }
        }
        panic!("a destructor panics");
    }
}

#[hatchery::function]
async fn hold_nasty(blocks: bool) -> u64 {
    // The default hook reads all debug information for a backtrace, if the environment asks for
    // one: 100 ms of processor time, on a busy machine more than the whole graceful part.
    std::panic::set_hook(Box::new(|_| {}));
    let _nasty = Nasty { blocks };
    std::future::pending().await
}

/// Scenario 4: every actor of T(4,3) answers with its path; they are all there, once.
#[test]
fn every_actor_of_a_deep_tree_answers_with_its_path() {
    for_each_with(&Config::with_budget(ROOMY), here!(), &BACKENDS, async |runtime| {
        let all = runtime.nursery(async |n| Ok(n.run("top", paths(3, 3)).await?));
        let mut all = all.await.unwrap();
        assert_eq!(all.len(), 1 + 3 + 9 + 27);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 1 + 3 + 9 + 27);
        runtime.close().await;
    });
}

/// Scenario 11, C3: the death of the forkserver takes the tree down and says why; the next runtime
/// in this process works.
#[test]
fn the_death_of_the_forkserver_takes_the_tree_down_and_the_next_one_works() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                n.start("one").await?;
                n.start("two").await?;
                let server = runtime.forkserver_pid().expect("two processes were started");
                Pidfd::open(server)?.send_signal(nix::libc::SIGKILL)?;
                std::future::pending().await
            })
            .await;
        let error = came_down(down);
        assert!(error.render().contains("forkserver is gone"), "{}", error.render());
        runtime.close().await;
        let next = Runtime::builder().signals(false).open().unwrap();
        let sum = next.nursery(async |n| Ok(n.start("one").await?.call(add(1, 2)).await?)).await;
        assert_eq!(sum.unwrap(), 3);
        next.close().await;
    });
}

/// Scenario 11, C4, H26: the same right after a start, maybe before the forkserver has said that
/// the new actor is there: its end is told all the same.
#[test]
fn the_death_of_the_forkserver_right_after_a_start_is_told() {
    for_each(here!(), &PROCESSES, async |runtime| {
        for _ in 0..20 {
            let down: Result<(), _> = runtime
                .nursery(async |n| {
                    n.start("one").await?;
                    let server = runtime.forkserver_pid().expect("a process was started");
                    Pidfd::open(server)?.send_signal(nix::libc::SIGKILL)?;
                    std::future::pending().await
                })
                .await;
            let error = came_down(down);
            let died = FaultKind::Died(ExitStatus::Unknown);
            assert_eq!(error.fault().kind, died, "{}", error.render());
            assert!(error.render().contains("forkserver is gone"), "{}", error.render());
        }
        runtime.close().await;
    });
}

/// Scenario 16, C10: open and close, 100 times; counts stay exact.
#[test]
fn a_runtime_is_opened_and_closed_a_hundred_times() {
    for_each(here!(), &BACKENDS, async |runtime| {
        runtime.close().await;
        for _ in 0..100 {
            let runtime = Runtime::builder().signals(false).open().unwrap();
            let sum = runtime.nursery(async |n| Ok(n.start("a").await?.call(add(1, 1)).await?));
            assert_eq!(sum.await.unwrap(), 2);
            runtime.close().await;
        }
    });
}

/// Scenario 18, C1: a start that is dropped at any of its await points leaves nothing, not even until its
/// nursery goes down.
#[test]
fn a_start_that_is_dropped_anywhere_leaves_nothing() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let mut there = 1;
            for polls in 0..12 {
                let name = format!("a{polls}");
                let mut start = Box::pin(n.start(&name));
                let mut left = polls;
                let dropped = std::future::poll_fn(|cx| {
                    if left == 0 {
                        return std::task::Poll::Ready(None);
                    }
                    left -= 1;
                    start.as_mut().poll(cx).map(Some)
                });
                there += usize::from(matches!(dropped.await, Some(Ok(_))));
            }
            let after = n.start("after").await?;
            let (server, until) = (runtime.forkserver_pid(), Instant::now() + HANG / 2);
            while let Some(living) = server.map(|server| fault::children_of(server).len())
                && living != there
            {
                assert!(Instant::now() < until, "{living} for {there} are there");
                // A process number that is gone has no event.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(after.call(add(1, 1)).await?)
        });
        assert_eq!(done.await.unwrap(), 2);
        runtime.close().await;
    });
}

/// Scenario 29, C4: many err while many more are still starting: a group, and none is left.
#[test]
fn many_err_while_more_are_starting() {
    for_each_with(&Config::with_budget(ROOMY), here!(), &BACKENDS, async |runtime| {
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                for i in 0..15 {
                    drop(n.run(&format!("bad{i}"), fail()));
                    drop(n.run(&format!("good{i}"), idle()));
                }
                Ok(())
            })
            .await;
        let error = came_down(down);
        let failed = |fault: &hatchery::Fault| fault.kind == FaultKind::Failed;
        assert!(error.faults().iter().all(failed), "{}", error.render());
        runtime.close().await;
    });
}

/// Scenario 35: a child cancels itself: its call says by whom, its siblings stay.
#[test]
fn a_child_that_cancels_itself_goes_alone() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let (one, two) = (n.start("one").await?, n.start("two").await?);
            let error = one.call(give_up()).await.unwrap_err();
            let CallError::Cancelled(fault) = error else { panic!("{error:?}") };
            let FaultKind::Cancelled(reason) = &fault.kind else { panic!("{fault}") };
            assert_eq!(reason.by.as_str(), "root/one");
            one.settled().await;
            Ok(two.call(add(1, 1)).await?)
        });
        assert_eq!(done.await.unwrap(), 2);
        runtime.close().await;
    });
}

/// Scenario 35: a child cancels its parent: the root's nursery comes down and says by whom.
#[test]
fn a_child_that_cancels_its_parent_is_named() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let child = n.start("child").await?;
                child.call(rebel()).await?;
                Ok(())
            })
            .await;
        let error = came_down(down);
        let FaultKind::Cancelled(reason) = &error.fault().kind else {
            panic!("{}", error.render());
        };
        assert_eq!(reason.by.as_str(), "root/child");
        runtime.close().await;
    });
}

/// Scenario 35: a grandparent cancels over the head of the parent, who goes on.
#[test]
fn a_grandparent_cancels_over_the_head_of_the_parent() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let parent = n.start("parent").await?;
            let name = "root/parent/below".to_owned();
            let waiting = parent.clone();
            let said = tokio::spawn(async move { waiting.call(outlive()).await });
            // The grandchild may not be there yet: asked again until it has gone.
            let below = hatchery::ActorPath::parse(&name)?;
            let asking = async {
                loop {
                    parent.cancel_below(&below);
                    // A poll of the other side, not a wait for time: its answer ends this loop.
                    drop(parent.call(add(1, 1)).await);
                }
            };
            tokio::select! {
                said = said => Ok(said??),
                () = asking => unreachable!("it only ends by being dropped"),
            }
        });
        assert_eq!(done.await.unwrap(), "it went alone");
        runtime.close().await;
    });
}

/// Scenario 37, H24: a thousand cancels from sixteen tasks are one teardown.
#[test]
fn a_thousand_cancels_are_one_teardown() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                for i in 0..4 {
                    n.start(&format!("a{i}")).await?;
                }
                for _ in 0..16 {
                    let n = n.clone();
                    tokio::spawn(async move {
                        for _ in 0..64 {
                            n.cancel();
                            tokio::task::yield_now().await;
                        }
                    });
                }
                std::future::pending().await
            })
            .await;
        let error = came_down(down);
        assert!(error.is_cancelled(), "{}", error.render());
        assert!(error.report().forced().is_empty(), "{}", error.report());
        runtime.close().await;
    });
}

/// Scenario 44: a destructor that panics during teardown harms nobody; one that blocks is ended by
/// force.
#[test]
fn a_nasty_destructor_does_not_hold_up_a_teardown() {
    for_each(here!(), &PROCESSES, async |runtime| {
        for blocks in [false, true] {
            let down: Result<(), _> = runtime
                .nursery(async |n| {
                    let child = n.start("child").await?;
                    let late =
                        child.call(hold_nasty(blocks)).within(Duration::from_millis(1)).await;
                    assert!(late.is_err());
                    n.cancel();
                    std::future::pending().await
                })
                .await;
            let error = came_down(down);
            assert!(error.is_cancelled(), "{}", error.render());
            assert_eq!(error.report().forced().len(), usize::from(blocks), "{}", error.report());
        }
        runtime.close().await;
    });
}

/// C1: a nursery that goes down takes nobody any more.
#[test]
fn a_nursery_that_goes_down_takes_nobody() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let (tell, told) = tokio::sync::oneshot::channel();
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                n.start("one").await?;
                n.cancel();
                drop(tell.send(n.clone()));
                std::future::pending().await
            })
            .await;
        assert!(came_down(down).is_cancelled());
        let late = told.await.unwrap().start("late").await.unwrap_err();
        assert!(matches!(late.cause, StartCause::Closing(_)), "{late}");
        runtime.close().await;
    });
}

/// A root with many actors keeps one fd of each, its channel; before Linux 6.9 also the pidfd.
#[test]
fn an_actor_costs_its_root_one_fd() {
    const ACTORS: usize = 20;
    for_each(here!(), &PROCESSES, async |runtime| {
        let fds = || fds_to("");
        let pipes = fds_to("pipe:");
        let outcome = runtime
            .nursery(async |n| {
                n.start("first").await?;
                // The forkserver's answer may come after the actor's own; until it is there, the
                // pipe that watches over the birth is.
                while fds_to("pipe:") > pipes {
                    tokio::task::yield_now().await;
                }
                let before = fds();
                for i in 0..ACTORS {
                    n.start(&format!("a{i}")).await?;
                }
                let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
                let number = |text: Option<&str>| text.and_then(|text| text.parse::<u32>().ok());
                let mut version = kernel.split('.');
                let version = (number(version.next()), number(version.next()));
                let each = if version >= (Some(6), Some(9)) { 1 } else { 2 };
                // The same with the last ones.
                while fds() > before + each * ACTORS {
                    tokio::task::yield_now().await;
                }
                assert_eq!(fds(), before + each * ACTORS);
                Ok(())
            })
            .await;
        outcome.unwrap();
        runtime.close().await;
    });
}

/// How many fds of this process lead to something whose name begins so.
fn fds_to(begin: &str) -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with(begin)).count()
}

/// An actor with one actor below it, down to one that ignores every cancel.
#[hatchery::function]
async fn line_down(levels: u32) -> Result<(), Error> {
    if levels == 0 {
        stubborn().here().await.map_err(|_| Error::msg("it ended"))?;
        return Ok(());
    }
    let below = nursery(async |n| {
        let below = n.start("d").await?;
        Ok(below.call(line_down(levels - 1)).await?)
    });
    Ok(below.await?)
}

/// Scenario 41, C16: above a leaf that ignores its cancel each goes gracefully, and says so: it was
/// asked, has acknowledged, and has settled, without force. The leaf is killed from outside here: when
/// its time is over is another test's business.
#[test]
fn those_above_a_stubborn_leaf_acknowledge_and_settle() {
    // Nobody waits for its end, and nobody is forced or called slow because the machine is busy.
    let config = Config { cancel_ack: HANG, ..Config::with_budget(HANG * 4 / 5) };
    for_each_with(&config, here!(), &PROCESSES, async |runtime| {
        let leaf = "root/top/d/d/d";
        let strike = tokio::spawn(at(Moment::CancelAcknowledged, leaf, leaf, Fault::Kill));
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let top = n.start("top").await?;
                tokio::select! {
                    ended = top.call(line_down(3)) => ended?,
                    up = at(Moment::InCall, leaf, leaf, Fault::Continue) => drop(up.unwrap()),
                }
                Err(Error::msg("all are up"))
            })
            .await;
        let error = came_down(down);
        let struck = strike.await.unwrap();
        assert!(struck.is_ok(), "{struck:?}: {}", error.report());
        let mut below = &error.report().actors;
        for path in ["root/top", "root/top/d", "root/top/d/d"] {
            let [one] = &below[..] else { panic!("{}", error.report()) };
            let steps: Vec<Step> = one.steps.iter().map(|taken| taken.step).collect();
            let graceful = [Step::Asked, Step::Acknowledged, Step::Settled];
            assert_eq!(
                (one.path.as_str(), &steps[..]),
                (path, &graceful[..]),
                "{}",
                error.report()
            );
            assert_eq!((one.forced, one.end), (None, Some(ExitStatus::Code(0))), "{path}");
            below = &one.below;
        }
        assert_eq!(below.len(), 1, "{}", error.report());
        runtime.close().await;
    });
}
