//! Scenarios 46 to 49: broken channels, kills at each moment of a life, stopped processes; with signals
//! from outside, at the moments that the fault injector knows.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::collections::BTreeMap;
use std::future::IntoFuture as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hatchery::{
    Backend, CallError, Callee, Config, ContextError, Error, Nothing, Portal, Runtime, ScopeError,
    Step, StreamError, nursery, nursery_with_report,
};
use hatchery_spawn::Pidfd;
use hatchery_testkit::fault::{FORKSERVER, Fault, Missed, Moment, Tree, children_of};
use hatchery_testkit::isolate;
use hatchery_tests::grown::{GONE, Held, Load, all_up, at, count, killed, stream, stubborn, tend};
use hatchery_tests::{
    BUDGET, HANG, PROCESSES, ROOMY, came_down, for_each, for_each_with, here, with,
};
use nix::libc;
use tokio::sync::oneshot;

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

/// Has one below it that never comes to its handshake.
#[hatchery::function]
async fn above_a_newborn() -> Result<(), Error> {
    let below = nursery(async |n| {
        n.actor("it").backend(Backend::Custom(Arc::new(Held))).start().await?;
        Ok(())
    });
    Ok(below.await?)
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

/// Reads a stream that only a death ends, and says when it has begun.
async fn read_to_the_break(child: &Portal, begun: oneshot::Sender<()>) -> StreamError {
    let mut cx = child.context(count()).handle().await.unwrap();
    let mut begun = Some(begun);
    loop {
        match cx.recv().await {
            Ok(Some(_)) => {
                let _first = begun.take().map(|begun| begun.send(()));
            }
            Ok(None) => panic!("a clean end"),
            Err(error) => return error,
        }
    }
}

/// Reads a stream to its clean end, kills who sent it, and waits for its last word.
async fn read_past_the_end(child: &Portal) -> Result<(), ContextError<Error>> {
    let mut cx = child.context(three()).handle().await.unwrap();
    for expected in 0..3 {
        assert_eq!(cx.recv().await.unwrap(), Some(expected));
    }
    assert_eq!(cx.recv().await.unwrap(), None);
    Tree::mine().hit("root/child", Fault::Kill).unwrap();
    cx.result().await
}

/// Scenario 46: the other side dies in the midst of a stream, and after it was closed cleanly: a
/// typed error in the midst, the end and then the error after it; the tree can still be ended.
#[test]
fn a_channel_that_breaks_in_a_stream_is_a_typed_error() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let mut reads = None;
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let child = n.start("child").await?;
                // In tasks of their own: the death drops the body, maybe before it has seen this. What the
                // child has said to itself may not have left it yet, so its reader has the first word.
                let (begun, has_begun) = oneshot::channel();
                reads = Some(tokio::spawn(async move { read_to_the_break(&child, begun).await }));
                has_begun.await.unwrap();
                let struck = at(Moment::InStream, "root/child", "root/child", Fault::Kill);
                tokio::spawn(struck).await.unwrap().unwrap();
                std::future::pending().await
            })
            .await;
        let error = came_down(down);
        assert!(error.faults().iter().any(|fault| killed(&fault.kind)), "{}", error.render());
        let error = reads.unwrap().await.unwrap();
        assert!(matches!(&error, StreamError::Ended(fault) if killed(&fault.kind)), "{error:?}");

        let mut reads = None;
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let child = n.start("child").await?;
                reads = Some(tokio::spawn(async move { read_past_the_end(&child).await }));
                std::future::pending().await
            })
            .await;
        let error = came_down(down);
        assert!(error.faults().iter().any(|fault| killed(&fault.kind)), "{}", error.render());
        let ended = reads.unwrap().await.unwrap();
        assert!(matches!(&ended, Err(ContextError::Died(_))), "{ended:?}");
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
        drop(came_down(down));
        assert!(began.elapsed() < BUDGET + SLACK, "{:?}", began.elapsed());
        assert_eq!(children_of(runtime.forkserver_pid().unwrap()), Vec::<u32>::new());
        runtime.close().await;
    });
}

/// Starts the actor of that moment, lives with it until then and kills it; what the nursery said,
/// and the strike.
async fn strike_in_a_nursery(
    runtime: &Runtime,
    moment: Moment,
) -> (Result<(), ScopeError>, Result<Pidfd, Missed>) {
    let it = if moment == Moment::AtBirth { "root/top/it" } else { "root/it" };
    let mut strike = tokio::spawn(at(moment, it, it, Fault::Kill));
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
    if moment == Moment::AtBirth {
        return Ok(n.start("top").await?.call(above_a_newborn()).await?);
    }
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
        Moment::AtBirth | Moment::BeforeFork | Moment::Ready | Moment::InCall => {
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
            let (down, struck) = strike_in_a_nursery(&runtime, moment).await;
            let process = struck.unwrap_or_else(|missed| panic!("{missed}"));
            assert!(process.wait_dead(GONE));
            let error = match down {
                Err(error) => error.render(),
                Ok(()) => "it was cancelled before".to_owned(),
            };
            let told = error.contains("SIGKILL") || error.contains("was cancelled");
            assert!(told, "{moment:?}: {error}");
            let server = runtime.forkserver_pid().unwrap();
            assert_eq!(children_of(server), Vec::<u32>::new(), "{moment:?}");
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
        drop(came_down(down));
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
                let (mut began, mut stopped) = (Instant::now(), None);
                let (down, report) = nursery_with_report(async |n| {
                    let hit = async {
                        drop(all_up().await);
                        Tree::mine().hit(victim, Fault::Stop).unwrap()
                    };
                    tokio::select! {
                        ended = tend(&n, 3, Load::Idle) => ended,
                        hit = hit => {
                            (began, stopped) = (Instant::now(), Some(hit));
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
                // By that, and not by the close.
                assert!(stopped.unwrap().wait_dead(HANG / 2), "{victim} is still there");
                runtime.close().await;
            });
        }
    });
}

/// Scenario 49: stopped at a named moment, in a call: it answers nobody, and all of it after SIGCONT.
#[test]
fn an_actor_that_is_stopped_in_a_call_answers_when_it_goes_on() {
    for_each_with(&Config::with_budget(ROOMY), here!(), &PROCESSES, async |runtime| {
        let done = runtime.nursery(async |n| {
            let it = n.start("it").await?;
            let strike = at(Moment::InCall, "root/it", "root/it", Fault::Stop);
            let answers = async {
                let stopped = strike.await.unwrap();
                let late = it.call(square(2)).within(BUDGET / 4).await;
                assert!(matches!(late, Err(CallError::Deadline(_))), "{late:?}");
                let call = async { Ok(it.call(square(3)).await?) };
                let go_on = async { stopped.send_signal(libc::SIGCONT).unwrap() };
                tokio::join!(biased; call, go_on).0
            };
            tokio::select! {
                ended = it.call(idle()).into_future() => panic!("an idle call ended: {ended:?}"),
                answer = answers => answer,
            }
        });
        assert_eq!(done.await.unwrap(), 9);
        runtime.close().await;
    });
}

/// The injector strikes no process for a thread that is in it.
#[test]
fn a_thread_has_no_process_to_strike() {
    for_each(here!(), &[Backend::Thread], async |runtime| {
        let done = runtime.nursery(async |n| {
            let child = n.start("child").await?;
            assert_eq!(child.call(square(2)).await?, 4);
            let tree = Tree::mine();
            assert_eq!(tree.pids(), BTreeMap::from([("root".to_owned(), std::process::id())]));
            for fault in [Fault::Continue, Fault::Stop, Fault::Kill] {
                let missed = tree.hit("root/child", fault).unwrap_err();
                let is_it = matches!(&missed, Missed::Thread(path, pid)
                    if path == "root/child" && *pid == std::process::id());
                assert!(is_it, "{missed}");
            }
            let missed = at(Moment::Ready, "root/child", "root/child", Fault::Kill).await;
            assert!(matches!(missed, Err(Missed::Thread(..))), "{missed:?}");
            Ok(child.call(square(3)).await?)
        });
        assert_eq!(done.await.unwrap(), 9);
        runtime.close().await;
    });
}

/// Squares what it gets, by one below it.
#[hatchery::context]
async fn square_below(callee: Callee<u64, u64>) -> Result<(), Error> {
    let done = nursery(async |n| {
        let low = n.start("low").await?;
        let mut stream = callee.started(())?;
        while let Some(number) = stream.recv().await? {
            stream.send(low.call(square(number)).await?).await?;
        }
        Ok(())
    });
    Ok(done.await?)
}

/// Scenario 49: a leaf or a middle actor that was stopped for a while goes on as if nothing had been:
/// what it was asked meanwhile is answered, and its end needs no force.
#[test]
fn an_actor_that_goes_on_after_a_stop_is_as_before() {
    isolate::run_test(here!(), HANG * 2, || {
        for victim in ["root/top", "root/top/low"] {
            with(PROCESSES[0].clone(), Config::with_budget(ROOMY), async |runtime| {
                let (done, report) = nursery_with_report(async |n| {
                    let top = n.start("top").await?;
                    top.open_context(square_below(), async |mut cx| {
                        cx.send(3).await?;
                        assert_eq!(cx.recv().await?, Some(9));
                        let stopped = Tree::mine().hit(victim, Fault::Stop).unwrap();
                        cx.send(7).await?;
                        let late = tokio::time::timeout(BUDGET / 4, cx.recv()).await;
                        assert!(late.is_err(), "a stopped actor answers: {late:?}");
                        stopped.send_signal(libc::SIGCONT).unwrap();
                        assert_eq!(cx.recv().await?, Some(49));
                        cx.close().await?;
                        Ok(cx.result().await?)
                    })
                    .await?;
                    Ok(())
                })
                .await;
                done.unwrap_or_else(|error| panic!("{victim}: {}", error.render()));
                assert!(report.forced().is_empty(), "{victim}: {report}");
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
