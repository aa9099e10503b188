//! Scenarios 53 to 58: signals on the root (C6). Each is a program of its own that is ended by its
//! signal: what is left of it, and its status, are seen from outside.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::fs::File;
use std::future::{pending, poll_fn};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::task::Poll;
use std::time::{Duration, Instant};

use hatchery::{Backend, Config, Error, Runtime, Stdio, nursery};
use hatchery_spawn::OwnThread;
use hatchery_testkit::isolate::{self, End, Verdict};
use hatchery_testkit::{dump, fault};
use hatchery_tests::{BUDGET, ROOMY, came_down, here};
use nix::libc::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1};

/// Catches hangs only.
const HANG: Duration = Duration::from_secs(60);
/// A budget that no test waits for: what ends before it was ended by something else.
const LONG: Duration = Duration::from_secs(40);

#[hatchery::function]
async fn idle() -> u64 {
    pending().await
}

#[hatchery::function]
async fn square(x: u64) -> u64 {
    x * x
}

/// Never comes back to its runtime.
#[hatchery::function]
async fn stick(spins: bool) -> u64 {
    loop {
        if !spins {
            std::thread::park();
        }
        std::hint::spin_loop();
    }
}

/// Keeps a thread and never gives it back.
fn for_ever() {
    loop {
        std::thread::park();
    }
}

/// Sends itself a signal, as anybody might from outside.
fn signal(signal: i32) {
    fault::send(std::process::id(), signal).unwrap();
}

fn open(backend: Backend, budget: Duration) -> Runtime {
    let config = Config::with_budget(budget);
    Runtime::builder().backend(backend).config(config).stdio(Stdio::Null).open().unwrap()
}

/// A root on two workers that ends in the way of its scenario.
fn root<F: Future>(scenario: F) {
    isolate::block_on(scenario);
}

/// As [`signal`], and tells who looks on from outside that the time runs.
fn strike(number: i32) {
    isolate::say(&monotonic().as_nanos().to_string()).unwrap();
    signal(number);
}

/// A clock that all processes share.
fn monotonic() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap().into()
}

/// As [`ended`], and inside `bound` from its [`strike`] on.
fn ended_within(verdict: &Verdict, status: i32, bound: Duration) {
    let now = monotonic();
    ended(verdict, status);
    let struck: u64 = verdict.said.parse().unwrap_or_else(|_| panic!("never struck: {verdict}"));
    let took = now.saturating_sub(Duration::from_nanos(struck));
    assert!(took < bound, "{took:?} after its signal: {verdict}");
}

/// What a teardown by a signal may take, whoever is stuck. 25 threads that spin, and those of the test
/// beside, leave everybody else little of a processor, also to who kills at the end of the budget.
const BOUNDED: Duration = BUDGET.saturating_add(ROOMY);

/// It ended with that status before its bound, and nothing is left.
fn ended(verdict: &Verdict, status: i32) {
    assert_eq!(verdict.end, End::Code(status), "{verdict}");
    assert!(verdict.left.is_empty() && verdict.files.is_empty(), "{verdict}");
}

/// When a signal finds the root.
#[derive(Clone, Copy, PartialEq)]
enum Moment {
    Idle,
    Call,
    Starts,
    Teardown,
}

/// Scenarios 53, 54, 58: a signal at that moment.
async fn struck(signal_number: i32, moment: Moment) {
    // Where nobody is stuck it ends long before its budget.
    let budget = if moment == Moment::Teardown { BUDGET } else { LONG };
    let runtime = open(Backend::Forkserver, budget);
    let struck: hatchery::Result<u64, _> = runtime
        .nursery(async |n| {
            let child = n.start("child").await?;
            match moment {
                Moment::Idle => strike(signal_number),
                Moment::Call => {
                    let mut call = Box::pin(child.call(idle()).into_future());
                    // Its first poll pushes it; what comes after it is answered after it has begun.
                    let pushed = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_pending()));
                    assert!(pushed.await, "an idle call was answered");
                    assert_eq!(child.call(square(3)).await?, 9);
                    strike(signal_number);
                    call.await?;
                }
                Moment::Starts => {
                    let names: Vec<String> = (0..25).map(|i| format!("a{i}")).collect();
                    let starts =
                        futures_util::future::join_all(names.iter().map(|name| n.start(name)));
                    tokio::join!(starts, async { strike(signal_number) });
                }
                Moment::Teardown => {
                    let late = child.call(stick(false)).within(Duration::from_millis(1)).await;
                    assert!(late.is_err());
                    n.cancel();
                    strike(signal_number);
                }
            }
            pending().await
        })
        .await;
    drop(came_down(struck));
    // A root that is told ends by itself.
    runtime.close().await;
}

macro_rules! struck {
    ($($name:ident: $signal:expr, $moment:ident, $status:expr;)*) => {$(
        #[test]
        fn $name() {
            let scenario = || root(struck($signal, Moment::$moment));
            if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
                ended_within(&verdict, $status, BOUNDED);
            }
        }
    )*};
}

struck! {
    a_sigint_finds_the_root_idle: SIGINT, Idle, 130;
    a_sigint_finds_the_root_in_a_call: SIGINT, Call, 130;
    a_sigint_finds_the_root_in_25_starts: SIGINT, Starts, 130;
    a_sigint_finds_the_root_in_a_teardown: SIGINT, Teardown, 130;
    a_sigterm_finds_the_root_idle: SIGTERM, Idle, 143;
    a_sigterm_finds_the_root_in_a_call: SIGTERM, Call, 143;
    a_sigterm_finds_the_root_in_25_starts: SIGTERM, Starts, 143;
    a_sigterm_finds_the_root_in_a_teardown: SIGTERM, Teardown, 143;
    a_sighup_is_as_a_sigterm_when_idle: SIGHUP, Idle, 129;
    a_sighup_is_as_a_sigterm_in_25_starts: SIGHUP, Starts, 129;
}

/// Starts actors that each do something for ever. All have been called when this returns.
async fn all_call(
    runtime: &Runtime,
    count: usize,
    spins: bool,
    signal: fn(i32),
) -> Result<(), hatchery::ScopeError> {
    runtime
        .nursery(async |n| {
            let names: Vec<String> = (0..count).map(|i| format!("a{i}")).collect();
            // All are there before the first one takes a core.
            let starts = names.iter().map(|name| n.start(name));
            let children = futures_util::future::try_join_all(starts).await?;
            let calls = children.iter().map(async |child| {
                let late = child.call(stick(spins)).within(Duration::from_millis(1)).await;
                assert!(late.is_err());
            });
            futures_util::future::join_all(calls).await;
            signal(SIGINT);
            pending().await
        })
        .await
}

/// Scenario 54: a second SIGINT is not kept waiting by anybody's budget.
#[test]
fn a_second_sigint_kills_at_once() {
    let scenario = || {
        root(async {
            let runtime = open(Backend::Forkserver, LONG);
            let second = OwnThread::spawn("second", || {
                // As soon as the first one is seen to work.
                while !going_down() {
                    std::thread::yield_now();
                }
                strike(SIGINT);
                // It doesn't come back from this.
                std::thread::park_timeout(HANG);
                panic!("still here after the second signal");
            });
            drop(second);
            all_call(&runtime, 5, false, signal).await
        });
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        // A hundred milliseconds where nobody else wants the processor; the bench holds it to that.
        ended_within(&verdict, 130, ROOMY);
    }
}

/// Whether this process's tree has been told to go.
fn going_down() -> bool {
    let board = dump::Process::of(std::process::id()).and_then(|root| root.board);
    let records = board.iter().flat_map(|board| &board.records);
    records.into_iter().any(|record| {
        record.kind == dump::boards::Kind::Actor && record.state == dump::boards::State::Cancelled
    })
}

/// Scenario 55, H6: no worker is free to do anything.
#[test]
fn a_sigint_works_while_all_workers_are_blocked() {
    let scenario = || {
        root(async {
            let runtime = open(Backend::Forkserver, BUDGET);
            let blocked = tokio::spawn(async { for_ever() });
            let held = runtime.nursery(async |n| {
                n.start("child").await?;
                // One worker is blocked by the task, the other one and this thread here.
                tokio::spawn(async { for_ever() });
                strike(SIGINT);
                for_ever();
                Ok(())
            });
            drop(held.await);
            drop(blocked);
        });
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        ended_within(&verdict, 130, BOUNDED);
    }
}

/// Scenario 55, H6: 25 threads spin that nobody can end.
#[test]
fn a_sigint_works_while_25_threads_spin() {
    let scenario = || {
        root(async {
            let runtime = open(Backend::Thread, BUDGET);
            drop(all_call(&runtime, 25, true, strike).await);
            runtime.close().await;
        });
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        ended_within(&verdict, 130, BOUNDED);
    }
}

/// Makes stderr a full pipe. What comes back is its other end, which nobody reads.
fn fill_stderr() -> std::io::PipeReader {
    let (unread, mut full) = std::io::pipe().unwrap();
    nix::unistd::dup2_stderr(full.as_fd()).unwrap();
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(&full, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
    while full.write(&[b'x'; 512]).is_ok() {}
    nix::fcntl::fcntl(&full, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
    unread
}

/// Scenario 55, H6, C5, C8: 25 abandoned threads spin, every worker is blocked, stderr is full and a
/// dump is asked for, all at once.
#[test]
fn a_sigint_works_when_everything_has_gone_wrong() {
    let scenario = || {
        root(async {
            let runtime = open(Backend::Thread, BUDGET);
            let abandoned = runtime.nursery(async |n| {
                let names: Vec<String> = (0..25).map(|i| format!("a{i}")).collect();
                let starts = names.iter().map(|name| n.start(name));
                let children = futures_util::future::try_join_all(starts).await?;
                let calls = children.iter().map(async |child| {
                    let late = child.call(stick(true)).within(Duration::from_millis(1)).await;
                    assert!(late.is_err());
                });
                futures_util::future::join_all(calls).await;
                Ok(())
            });
            assert_eq!(abandoned.await.unwrap_err().faults().len(), 25);
            assert_eq!(runtime.abandoned().len(), 25);
            let unread = fill_stderr();
            let held = runtime.nursery(async |n| {
                n.actor("child").backend(Backend::Forkserver).start().await?;
                tokio::spawn(async { for_ever() });
                tokio::spawn(async { for_ever() });
                signal(SIGQUIT);
                strike(SIGINT);
                for_ever();
                Ok(())
            });
            drop(held.await);
            drop(unread);
        });
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        ended_within(&verdict, 130, BOUNDED);
    }
}

/// Scenario 55, C8: stderr is a full pipe that nobody reads, and a dump is asked for as well.
#[test]
fn a_sigint_works_while_stderr_is_full() {
    let scenario = || {
        let unread = fill_stderr();
        root(async {
            let runtime = open(Backend::Forkserver, BUDGET);
            let struck: Result<(), _> = runtime
                .nursery(async |n| {
                    n.start("child").await?;
                    signal(SIGQUIT);
                    strike(SIGINT);
                    pending().await
                })
                .await;
            drop(came_down(struck));
            runtime.close().await;
        });
        drop(unread);
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        ended_within(&verdict, 130, BOUNDED);
    }
}

/// Scenario 56: what the terminal sends to the root's process group reaches no actor.
#[test]
fn a_terminals_sigint_reaches_the_root_alone() {
    let scenario = || {
        root(async {
            let config = Config::with_budget(BUDGET);
            let builder = Runtime::builder().config(config).stdio(Stdio::Null);
            let runtime = builder.signals(false).open().unwrap();
            let ours = hatchery_spawn::signals::install(&[SIGINT]).unwrap();
            let squares = runtime.nursery(async |n| {
                let child = n.start("child").await?;
                // As the terminal's driver does on Ctrl-C.
                nix::sys::signal::killpg(nix::unistd::getpgrp(), nix::sys::signal::Signal::SIGINT)
                    .map_err(|_| Error::msg("killpg"))?;
                assert_eq!(ours.recv(Some(HANG)), Some(SIGINT));
                // It would have died of it.
                Ok(child.call(square(7)).await?)
            });
            assert_eq!(squares.await.unwrap(), 49);
            runtime.close().await;
        });
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        ended(&verdict, 0);
    }
}

/// Whether a signal was sent to this process that no thread of it has taken yet.
fn is_pending(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:\t")).unwrap();
    u64::from_str_radix(pending, 16).unwrap() & (1 << (signal - 1)) != 0
}

/// Scenario 57: 10,000 signals that mean nothing to us, during 100 starts.
#[test]
fn a_burst_of_other_signals_loses_nothing() {
    let scenario = || {
        root(async {
            let ours = hatchery_spawn::signals::install(&[SIGUSR1]).unwrap();
            let config = Config::with_budget(LONG);
            let builder = Runtime::builder().config(config).stdio(Stdio::Null);
            let runtime = builder.signals(false).open().unwrap();
            let burst = OwnThread::spawn("burst", || {
                for _ in 0..5000 {
                    signal(SIGUSR1);
                    signal(SIGCHLD);
                }
            });
            let sum = runtime.nursery(async |n| {
                let starts = (0..100_u64).map(async |i| {
                    let child = n.start(&format!("a{i}")).await?;
                    Ok::<_, Error>(child.call(square(i)).await?)
                });
                let squares = futures_util::future::try_join_all(starts).await?;
                Ok(squares.into_iter().sum::<u64>())
            });
            assert_eq!(sum.await.unwrap(), (0..100).map(|i| i * i).sum::<u64>());
            burst.unwrap().join();
            assert_eq!(ours.recv(Some(HANG)), Some(SIGUSR1));
            // Who gives a signal back while one is under way dies of it: the thread that shall take
            // it may not have run since it was sent.
            while is_pending(SIGUSR1) {
                tokio::task::yield_now().await;
            }
            runtime.close().await;
        });
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        ended(&verdict, 0);
    }
}

/// What the kernel says of all processes of the tree but the root.
fn states() -> Vec<char> {
    let root = dump::Process::of(std::process::id()).unwrap();
    let below = root.flatten().into_iter().skip(1);
    below.map(|process| process.state.chars().next().unwrap_or('?')).collect()
}

/// Scenario 58: the tree stops with the root and goes on with it. Who continues the root here is
/// a process that is told to when all have stopped.
#[test]
fn the_tree_stops_and_goes_on_with_the_root() {
    let scenario = || {
        root(async {
            let runtime = open(Backend::Forkserver, LONG);
            let squares = runtime.nursery(async |n| {
                let child = n.start("child").await?;
                let me = std::process::id();
                let actor =
                    child.pid().ok_or("no process").map_err(|_| Error::msg("no process"))?;
                // Continues us once it has seen us and the actor stopped.
                let script = format!(
                    "for pid in {me} {actor}; do \
                     until grep '^State:.T' /proc/$pid/status; do sleep 0.01; done; done; \
                     kill -CONT {me}"
                );
                let mut shell = std::process::Command::new("sh");
                let saw = shell.args(["-c", &script]).stdout(std::process::Stdio::piped()).spawn();
                let saw = saw.map_err(|_| Error::msg("sh"))?;
                signal(SIGTSTP);
                let saw = saw.wait_with_output().map_err(|_| Error::msg("sh"))?.stdout;
                let saw = String::from_utf8_lossy(&saw).into_owned();
                assert_eq!(saw.matches("T (stopped)").count(), 2, "not both were stopped: {saw}");
                Ok(child.call(square(7)).await?)
            });
            assert_eq!(squares.await.unwrap(), 49);
            assert!(!states().contains(&'T'));
            runtime.close().await;
        });
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        ended(&verdict, 0);
    }
}

/// SIGQUIT ends nothing and shows all, also what a nested actor waits for.
#[test]
fn a_sigquit_shows_the_tree_and_goes_on() {
    #[hatchery::function]
    async fn nest() -> Result<u64, Error> {
        let nested = nursery(async |n| {
            let leaf = n.start("leaf").await?;
            Ok(leaf.call(idle()).await?)
        });
        Ok(nested.await?)
    }
    let scenario = || {
        // Where stderr goes can be read again here.
        let path = isolate::private_dir().unwrap().join("stderr");
        nix::unistd::dup2_stderr(File::create(&path).unwrap().as_fd()).unwrap();
        root(async {
            let runtime = open(Backend::Forkserver, LONG);
            let shown = runtime.nursery(async |n| {
                let child = n.start("child").await?;
                let look = async {
                    let until = Instant::now() + HANG;
                    while Instant::now() < until {
                        let text = std::fs::read_to_string(&path).unwrap_or_default();
                        let is_shown = text.contains("likely culprit: root/child/leaf")
                            && text.contains("serves `signals::idle` to root/child");
                        if is_shown {
                            return text;
                        }
                        signal(SIGQUIT);
                        // A dump is complete when its last line is there, which nobody tells.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    String::new()
                };
                tokio::select! {
                    _ = child.call(nest()) => Err(Error::msg("an idle call was answered")),
                    text = look => Ok(text),
                }
            });
            let shown = shown.await.unwrap();
            assert!(!shown.is_empty(), "never shown");
            runtime.close().await;
            std::fs::remove_file(&path).unwrap();
        });
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        ended(&verdict, 0);
    }
}
