//! Faults 32 and 34 of `docs/faults.md` with whole actors: a tree without pidfds, and actors whose
//! pidfds found no room.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use hatchery::{
    Backend, Config, Error, ExitStatus, FaultKind, Portal, Report, Runtime, Step, nursery,
};
use hatchery_spawn::Pidfd;
use hatchery_testkit::fault::children_of;
use hatchery_testkit::isolate;
use hatchery_tests::events::Events;
use hatchery_tests::{
    BACKENDS, BUDGET, HANG, PROCESSES, ROOMY, SLACK, came_down, each, hasty, here, many_fds, within,
};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use tokio::sync::watch;

/// The actors of this process whose own two are up.
static UP: LazyLock<watch::Sender<BTreeSet<String>>> = LazyLock::new(watch::Sender::default);

#[hatchery::function]
async fn add(a: u64, b: u64) -> u64 {
    a + b
}

/// Starts two actors, lets them add, and keeps them until it is told to go.
#[hatchery::function]
async fn keep_two(stuck: bool) -> Result<u64, Error> {
    let below = nursery(async |n| {
        let leaves = [n.start("a").await?, n.start("b").await?];
        for leaf in &leaves {
            assert_eq!(leaf.call(add(1, 2)).await?, 3);
            if stuck {
                stick(leaf).await;
            }
        }
        UP.send_if_modified(|up| up.insert(hatchery::path().to_string()));
        std::future::pending().await
    });
    Ok(below.await?)
}

/// Waits until the two below this actor are up.
#[hatchery::function]
async fn has_two() -> bool {
    let own = hatchery::path().to_string();
    let up = UP.subscribe().wait_for(|up| up.contains(&own)).await.is_ok();
    // So that the next tree in this process begins anew.
    up && UP.send_if_modified(|up| up.remove(&own))
}

/// Never comes back to its runtime.
#[hatchery::function]
async fn block() -> u64 {
    loop {
        std::thread::park();
    }
}

/// Dies by a signal from somebody who needs no pidfd.
#[hatchery::function]
async fn be_killed() -> u64 {
    signal(std::process::id(), Signal::SIGKILL);
    std::future::pending().await
}

/// Makes an actor stick. The call is in the channel when this returns, before any cancel.
async fn stick(actor: &Portal) {
    let call = actor.call(block());
    call.within(Duration::from_millis(1)).await.unwrap_err();
}

/// Runs a scenario on each backend where neither this process nor what comes of it can have a pidfd,
/// nor signal through one.
fn without_pidfds<F: Future<Output = ()>>(
    test: &str,
    config: &Config,
    backends: &[Backend],
    forkservers: usize,
    scenario: impl Fn(Runtime) -> F,
) {
    isolate::run_test(test, HANG * 6, || {
        many_fds();
        let events = Events::capture();
        for errno in [libc::EPERM, libc::ENOSYS] {
            forbid(&[libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal], errno);
            for backend in backends {
                let before = events.with("no pidfd_open").len();
                within(HANG, backend.clone(), config.clone(), &scenario);
                let told = events.with("no pidfd_open").len() - before;
                let expected = if backend.name() == "thread" { 0 } else { forkservers };
                assert_eq!(told, expected, "each forkserver says so once");
            }
        }
    });
}

/// Forbids calls to this thread and all that it starts from here on.
fn forbid(calls: &[libc::c_long], errno: i32) {
    let rules = calls.iter().map(|call| (*call, vec![])).collect();
    let (allow, refuse) = (SeccompAction::Allow, SeccompAction::Errno(errno.cast_unsigned()));
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let program: BpfProgram =
        SeccompFilter::new(rules, allow, refuse, arch).unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
    assert!(Pidfd::open(std::process::id()).is_err());
}

#[allow(
    clippy::disallowed_methods,
    reason = "nothing else works here, and it is we or our own child"
)]
fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

/// Starts a T(2,2), and cancels it when all of it is up and was called.
async fn cancelled(runtime: &Runtime) -> Report {
    let down: Result<(), _> = runtime
        .nursery(async |n| {
            let middle = [n.start("a").await?, n.start("b").await?];
            for one in &middle {
                assert_eq!(one.call(add(2, 3)).await?, 5);
                let one = one.clone();
                tokio::spawn(async move { one.call(keep_two(false)).await });
            }
            for one in &middle {
                assert!(one.call(has_two()).await?);
            }
            n.cancel();
            std::future::pending().await
        })
        .await;
    let error = came_down(down);
    assert!(error.is_cancelled(), "{}", error.render());
    error.report().clone()
}

/// Fault 34: without pidfds a T(2,2) comes up, is called and cancelled, on every backend; the
/// runtime says what it goes without.
#[test]
fn a_tree_without_pidfds_is_up_called_and_cancelled() {
    let config = Config::with_budget(ROOMY);
    without_pidfds(here!(), &config, &BACKENDS, 1, async |runtime| {
        assert_eq!(runtime.has_pidfds(), None, "no process was started yet");
        let report = cancelled(&runtime).await;
        assert!(report.forced().is_empty(), "{report}");
        let expected = runtime.forkserver_pid().map(|_| false);
        assert_eq!(runtime.has_pidfds(), expected);
        runtime.close().await;
    });
}

/// Fault 34, C2: without pidfds actors that are stuck are killed within the budget and reported.
#[test]
fn stuck_actors_without_pidfds_are_killed() {
    let config = hasty(Duration::from_millis(600));
    without_pidfds(here!(), &config, &PROCESSES, 1, async |runtime| {
        let mut at = Instant::now();
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                for name in ["a", "b", "c", "d"] {
                    stick(&n.start(name).await?).await;
                }
                at = Instant::now();
                n.cancel();
                std::future::pending().await
            })
            .await;
        assert!(at.elapsed() < config.budget + SLACK, "{:?}", at.elapsed());
        let error = down.unwrap_err();
        assert!(error.is_cancelled(), "{}", error.render());
        let forced = error.report().forced();
        assert_eq!(forced.len(), 4, "{}", error.report());
        for actor in forced {
            let steps: Vec<_> = actor.steps.iter().map(|taken| taken.step).collect();
            assert!(
                steps.contains(&Step::Terminated) && steps.contains(&Step::Killed),
                "{steps:?}"
            );
        }
        runtime.close().await;
    });
}

/// H25, C16: whom only the forkserver can kill and reap, and that stands still, is unreapable, and that
/// is an error.
#[test]
fn who_can_neither_be_killed_nor_seen_to_be_dead_is_unreapable() {
    let config = Config::with_budget(BUDGET);
    without_pidfds(here!(), &config, &[Backend::Forkserver], 1, async |runtime| {
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                stick(&n.start("a").await?).await;
                signal(runtime.forkserver_pid().unwrap(), Signal::SIGSTOP);
                n.cancel();
                std::future::pending().await
            })
            .await;
        let error = down.unwrap_err();
        signal(runtime.forkserver_pid().unwrap(), Signal::SIGCONT);
        assert_eq!(error.report().actors[0].steps.last().unwrap().step, Step::Unreapable);
        let unreapable = |fault: &hatchery::Fault| fault.kind == FaultKind::Unreapable;
        assert!(error.faults().iter().any(unreapable), "{}", error.render());
        runtime.close().await;
    });
}

/// Fault 34, C3: without pidfds the SIGKILL of an actor takes the two below it, which are stuck, and
/// is told; so is the forkserver's, and the next one works.
#[test]
fn a_tree_without_pidfds_is_killed() {
    let config = Config::with_budget(ROOMY);
    without_pidfds(here!(), &config, &PROCESSES, 2, async |runtime| {
        let told: Result<u64, _> = runtime
            .nursery(async |n| {
                let (victim, other) = (n.start("a").await?, n.start("b").await?);
                for (one, stuck) in [(&victim, true), (&other, false)] {
                    let busy = one.clone();
                    tokio::spawn(async move { busy.call(keep_two(stuck)).await });
                    assert!(one.call(has_two()).await?);
                }
                Ok(victim.call(be_killed()).await?)
            })
            .await;
        let died = FaultKind::Died(ExitStatus::Signal(libc::SIGKILL));
        let error = told.unwrap_err();
        assert_eq!(error.fault().kind, died, "{}", error.render());
        // Also those below it that are stuck: their grace is over.
        let (server, until) = (runtime.forkserver_pid().unwrap(), Instant::now() + HANG / 2);
        while !children_of(server).is_empty() {
            assert!(Instant::now() < until, "{:?} are left", children_of(server));
            // A process number that is gone has no event.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                n.start("one").await?;
                signal(runtime.forkserver_pid().unwrap(), Signal::SIGKILL);
                std::future::pending().await
            })
            .await;
        let lost = FaultKind::Died(ExitStatus::Unknown);
        assert_eq!(down.unwrap_err().fault().kind, lost);
        cancelled(&runtime).await;
        runtime.close().await;
    });
}

/// Fault 32: the root's table is full when the forkserver's answer comes: the actor is up, is called,
/// and is killed when it is stuck, all with the table still full.
#[test]
fn an_actor_whose_pidfd_found_no_room_is_called_and_killed() {
    static EVENTS: LazyLock<Events> = LazyLock::new(Events::capture);
    let config = hasty(Duration::from_millis(600));
    each(HANG, here!(), &PROCESSES, &config, async |runtime| {
        let warnings = EVENTS.with("no room for a pidfd").len();
        // What is made once and kept.
        let first = runtime.nursery(async |n| Ok(n.start("first").await?.call(add(1, 1)).await?));
        assert_eq!(first.await.unwrap(), 2);
        let forkserver = Pidfd::open(runtime.forkserver_pid().unwrap()).unwrap();
        let null = OwnedFd::from(File::open("/dev/null").unwrap());
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 300, hard).unwrap();
        let mut fill = Vec::new();
        let fill_up = |fill: &mut Vec<OwnedFd>| {
            while let Ok(one) = null.try_clone() {
                fill.push(one);
            }
        };
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let mut starting = pin!(n.start("worker"));
                forkserver.send_signal(libc::SIGSTOP)?;
                assert!(starting.as_mut().now_or_never().is_none());
                fill_up(&mut fill);
                forkserver.send_signal(libc::SIGCONT)?;
                let worker = starting.await?;
                assert_eq!(worker.call(add(20, 22)).await?, 42);
                stick(&worker).await;
                // Its birth pipe is closed by now.
                fill_up(&mut fill);
                n.cancel();
                std::future::pending().await
            })
            .await;
        let error = came_down(down);
        drop(fill);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        assert!(error.is_cancelled(), "{}", error.render());
        let steps: Vec<_> = error.report().forced()[0].steps.iter().map(|it| it.step).collect();
        assert!(steps.contains(&Step::Terminated) && steps.contains(&Step::Killed), "{steps:?}");
        assert_eq!(EVENTS.with("no room for a pidfd").len(), warnings + 1);
        assert_eq!(runtime.has_pidfds(), Some(true));
        let again = runtime.nursery(async |n| Ok(n.start("next").await?.call(add(1, 2)).await?));
        assert_eq!(again.await.unwrap(), 3);
        runtime.close().await;
    });
}
