//! Several runtimes in one process, and the host's own handlers (C6, C19). Each scenario is a program of
//! its own: what became of it is seen from outside.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]
#![allow(unsafe_code, reason = "the host is a program in C")]

use std::future::pending;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

use hatchery::{Backend, Config, FaultKind, Runtime, Signals, Stdio};
use hatchery_testkit::isolate::{self, End, Verdict};
use hatchery_testkit::{counts, fault};
use hatchery_tests::events::Events;
use hatchery_tests::{ROOMY, came_down, here};
use nix::libc::{SIGHUP, SIGINT, SIGTERM};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use tokio::task::JoinHandle;

/// Catches hangs only.
const HANG: Duration = Duration::from_secs(60);

#[hatchery::function]
async fn square(x: u64) -> u64 {
    x * x
}

fn strike(signal: i32) {
    fault::send(std::process::id(), signal).unwrap();
}

fn open(signals: impl Into<Signals>) -> Runtime {
    open_with(ROOMY, signals)
}

fn open_with(budget: Duration, signals: impl Into<Signals>) -> Runtime {
    let config = Config::with_budget(budget);
    let runtime = Runtime::builder().config(config).backend(Backend::Thread).stdio(Stdio::Null);
    runtime.signals(signals).open().unwrap()
}

/// A nursery of `runtime` with one actor that has answered, held open. It ends with the signal that took it
/// down.
async fn hold(runtime: &Runtime) -> JoinHandle<i32> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let runtime = runtime.clone();
    let held = tokio::spawn(async move {
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let child = n.start("child").await?;
                tell.send(child.call(square(3)).await?).unwrap();
                pending().await
            })
            .await;
        let down = came_down(down);
        let FaultKind::Interrupted { signal } = down.fault().kind else { panic!("{down:?}") };
        signal
    });
    assert_eq!(told.await.unwrap(), 9);
    held
}

/// What is ignored and what is caught.
fn dispositions() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kept = |line: &&str| line.starts_with("SigIgn") || line.starts_with("SigCgt");
    status.lines().filter(kept).collect::<Vec<_>>().join("\n")
}

fn ended(verdict: &Verdict, end: End) {
    assert_eq!(verdict.end, end, "{verdict}");
    assert!(verdict.left.is_empty() && verdict.files.is_empty(), "{verdict}");
}

/// One step of a scenario: which runtime opens (with a nursery held) or closes.
#[derive(Clone, Copy)]
enum Step {
    Open(usize),
    Close(usize),
}
use Step::{Close, Open};

/// Opens and closes in that order; then the signal comes, and whoever is open must be told.
async fn in_that_order(steps: &[Step], signal: i32) {
    let before = dispositions();
    let mut open_ones: [Option<Runtime>; 3] = [None, None, None];
    for step in steps {
        match *step {
            Open(at) => open_ones[at] = Some(open(true)),
            Close(at) => open_ones[at].take().unwrap().close().await,
        }
    }
    let mut held = Vec::new();
    for runtime in open_ones.iter().flatten() {
        held.push(hold(runtime).await);
    }
    if held.is_empty() {
        assert_eq!(dispositions(), before);
    }
    isolate::say("struck").unwrap();
    strike(signal);
    for one in held {
        assert_eq!(one.await.unwrap(), signal);
    }
    for runtime in open_ones.into_iter().flatten() {
        runtime.close().await;
    }
}

macro_rules! orders {
    ($($name:ident: [$($step:expr),*], $signal:expr, $end:expr;)*) => {$(
        /// C6, C19: each is told, and the last one to go gives back what was there.
        #[test]
        fn $name() {
            let scenario = || isolate::block_on(in_that_order(&[$($step),*], $signal));
            if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
                ended(&verdict, $end);
                assert_eq!(verdict.said, "struck", "{verdict}");
            }
        }
    )*};
}

orders! {
    two_are_open: [Open(0), Open(1)], SIGINT, End::Code(130);
    the_second_of_two_is_closed: [Open(0), Open(1), Close(1)], SIGINT, End::Code(130);
    the_first_of_two_is_closed: [Open(0), Open(1), Close(0)], SIGTERM, End::Code(143);
    two_are_closed_in_the_order_of_opening: [Open(0), Open(1), Close(0), Close(1)], SIGINT, End::Signal(SIGINT);
    two_are_closed_the_other_way_round: [Open(0), Open(1), Close(1), Close(0)], SIGTERM, End::Signal(SIGTERM);
    one_comes_after_the_other: [Open(0), Close(0), Open(1)], SIGHUP, End::Code(129);
    one_of_three_is_left: [Open(0), Open(1), Open(2), Close(1), Close(0)], SIGINT, End::Code(130);
    three_come_and_go: [Open(0), Open(1), Close(0), Open(2), Close(1), Close(2)], SIGINT, End::Signal(SIGINT);
}

/// What the host's own handlers have seen.
static SEEN: AtomicUsize = AtomicUsize::new(0);
static SENDER: AtomicI32 = AtomicI32::new(0);

extern "C" fn plain(_: i32) {
    SEEN.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn informed(_: i32, info: *mut nix::libc::siginfo_t, _: *mut std::ffi::c_void) {
    // SAFETY: the kernel's own, for as long as the handler runs.
    let info = unsafe { &*info };
    // SAFETY: the signal was sent by kill(2), so it has a sender.
    let sender = unsafe { info.si_pid() };
    SENDER.store(sender, Ordering::SeqCst);
    SEEN.fetch_add(1, Ordering::SeqCst);
}

/// Installs a handler as a program in C does.
fn install(handler: SigHandler) -> SigAction {
    let flags = SaFlags::SA_RESTART;
    let action = SigAction::new(handler, flags, SigSet::empty());
    // SAFETY: the handlers above only touch atomics.
    unsafe { sigaction(Signal::SIGINT, &action) }.unwrap()
}

fn is_ours(handler: SigHandler) -> bool {
    format!("{:?}", install(handler).handler()) == format!("{handler:?}")
}

/// C19: a handler that was there is told too, with all that the kernel told, and is there afterwards.
#[test]
fn a_handler_that_was_there_before_is_told_and_stays() {
    isolate::run_test(here!(), HANG, || {
        isolate::block_on(async {
            for handler in [SigHandler::Handler(plain), SigHandler::SigAction(informed)] {
                install(handler);
                let before = SEEN.load(Ordering::SeqCst);
                let (one, two) = (open(Signals::Notify), open(Signals::Notify));
                strike(SIGINT);
                assert_eq!(one.interrupted().await.signal, SIGINT);
                assert_eq!(two.interrupted().await.count, 1);
                // Ours counts first, and then calls it.
                while SEEN.load(Ordering::SeqCst) == before {
                    tokio::task::yield_now().await;
                }
                assert_eq!(SEEN.load(Ordering::SeqCst), before + 1);
                one.close().await;
                two.close().await;
                assert!(is_ours(handler));
            }
            assert_eq!(SENDER.load(Ordering::SeqCst), std::process::id().cast_signed());
        });
    });
}

/// C19: a handler that is installed after the opening is there after the close, and isn't called by us
/// afterwards; a runtime that is opened next is told again, and calls it.
#[test]
fn a_handler_that_came_later_stays() {
    isolate::run_test(here!(), HANG, || {
        isolate::block_on(async {
            let handler = SigHandler::Handler(plain);
            for round in 1..=10 {
                let runtime = open(Signals::Notify);
                install(handler);
                runtime.close().await;
                assert!(is_ours(handler), "round {round}");
                let next = open(Signals::Notify);
                strike(SIGINT);
                assert_eq!(next.interrupted().await.signal, SIGINT);
                while SEEN.load(Ordering::SeqCst) < round {
                    tokio::task::yield_now().await;
                }
                assert_eq!(SEEN.load(Ordering::SeqCst), round);
                next.close().await;
                assert!(is_ours(handler), "round {round}");
                install(SigHandler::SigDfl);
            }
        });
    });
}

/// C19: who puts back what he had found, when that was ours and the runtime has closed meanwhile, has put
/// back nothing: the signal does what it does by default.
#[test]
fn a_handler_of_ours_that_is_put_back_later_swallows_nothing() {
    let scenario = || {
        isolate::block_on(async {
            let runtime = open(true);
            let found = install(SigHandler::Handler(plain));
            runtime.close().await;
            // SAFETY: it came from sigaction(2).
            unsafe { sigaction(Signal::SIGINT, &found) }.unwrap();
            strike(SIGINT);
            pending::<()>().await;
        });
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        ended(&verdict, End::Signal(SIGINT));
    }
}

/// C6, C19: the same while runtimes are open, and one came over the handler that is taken off again: the
/// signal is told to all, though it comes to the handler that was the first.
#[test]
fn a_handler_of_ours_that_is_uncovered_again_tells_all() {
    isolate::run_test(here!(), HANG, || {
        isolate::block_on(async {
            let before = dispositions();
            let one = open(Signals::Notify);
            let found = install(SigHandler::Handler(plain));
            let two = open(Signals::Notify);
            // SAFETY: it came from sigaction(2).
            unsafe { sigaction(Signal::SIGINT, &found) }.unwrap();
            strike(SIGINT);
            assert_eq!(one.interrupted().await.signal, SIGINT);
            assert_eq!(two.interrupted().await.signal, SIGINT);
            assert_eq!(SEEN.load(Ordering::SeqCst), 0);
            one.close().await;
            strike(SIGINT);
            assert_eq!(two.interrupted_again(1).await.count, 2);
            two.close().await;
            assert_eq!(dispositions(), before);
        });
    });
}

/// C6: who ignores SIGHUP from the start wants to outlive its terminal.
#[test]
fn an_ignored_sighup_stays_ignored() {
    isolate::run_test(here!(), HANG, || {
        isolate::block_on(async {
            let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
            // SAFETY: no handler of ours.
            unsafe { sigaction(Signal::SIGHUP, &ignore) }.unwrap();
            let before = dispositions();
            let (one, two) = (open(Signals::Notify), open(true));
            strike(SIGHUP);
            strike(SIGINT);
            assert_eq!(one.interrupted().await.signal, SIGINT);
            assert_eq!(one.interrupted().await.count, 1);
            two.close().await;
            one.close().await;
            assert_eq!(dispositions(), before);
        });
    });
}

/// C19: one that is only told keeps the process, while another's tree comes down beside it.
#[test]
fn a_runtime_that_is_told_keeps_its_process() {
    isolate::run_test(here!(), HANG, || {
        isolate::block_on(async {
            let (told, down) = (open(Signals::Notify), open(Signals::TakeDown));
            let held = hold(&down).await;
            let kept = told.nursery(async |n| {
                let child = n.start("child").await?;
                strike(SIGTERM);
                assert_eq!(held.await.unwrap(), SIGTERM);
                assert_eq!(told.interrupted().await.signal, SIGTERM);
                let second = told.interrupted_again(1);
                strike(SIGINT);
                assert_eq!((second.await.signal, told.interrupted().await.count), (SIGINT, 2));
                Ok(child.call(square(7)).await?)
            });
            assert_eq!(kept.await.unwrap(), 49);
            down.close().await;
            told.close().await;
        });
    });
}

/// C6, C19: trees of several runtimes come down side by side, by a second signal too.
#[test]
fn a_second_signal_kills_all_trees() {
    let scenario = || {
        isolate::block_on(async {
            // No budget ends before the test is over: only the second signal can.
            let (one, two) = (open_with(HANG * 2, true), open_with(HANG * 2, true));
            let stuck = async |runtime: &Runtime| {
                let down = runtime.nursery(async |n| {
                    let name = n.actor("stuck").backend(Backend::Forkserver).start().await?;
                    assert_eq!(name.call(square(2)).await?, 4);
                    // A destructor that doesn't end keeps the body, and with it the tree.
                    hatchery::shield(pending::<()>()).await;
                    Ok(())
                });
                drop(down.await);
            };
            let _both = tokio::join!(stuck(&one), stuck(&two), async {
                strike(SIGINT);
                one.interrupted().await;
                strike(SIGTERM);
                pending::<()>().await;
            });
        });
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        ended(&verdict, End::Code(130));
    }
}

/// C10, C21: a hundred runtimes, two at a time, leave nothing of their listening.
#[test]
fn runtimes_that_listen_come_and_go() {
    isolate::run_test(here!(), HANG, || {
        isolate::block_on(async {
            let before = dispositions();
            for round in 0..100 {
                let _nothing_left = counts::guard();
                let (one, two) = (open(true), open(Signals::Notify));
                let (first, second) = if round % 2 == 0 { (one, two) } else { (two, one) };
                first.close().await;
                second.close().await;
            }
            assert_eq!(dispositions(), before);
        });
    });
}

/// An actor whose events of `tracing` nobody gets is told of, once, to the subscriber of its spawner; a
/// thread's reach it.
#[test]
fn a_subscriber_is_warned_once_of_events_that_do_not_reach_it() {
    isolate::run_test(here!(), HANG, || {
        isolate::block_on(async {
            let events = Events::capture();
            let lost = || events.with("don't reach this subscriber").len();
            for (backend, warned) in
                [(Backend::Thread, 0), (Backend::Exec, 1), (Backend::Forkserver, 1)]
            {
                let runtime = open(false);
                let squares = runtime.nursery(async |n| {
                    let one = n.actor("one").backend(backend.clone()).start().await?;
                    let two = n.actor("two").backend(backend.clone()).start().await?;
                    Ok(one.call(square(3)).await? + two.call(square(4)).await?)
                });
                assert_eq!(squares.await.unwrap(), 25);
                runtime.close().await;
                assert_eq!(lost(), warned, "{}", backend.name());
            }
        });
    });
}
