//! Scenarios 67 and 68, H22, H23: streams under load, with readers that stop, with futures that are
//! dropped at any point.
//!
//! Each in a process of its own, which counts threads, fds and children before and after.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use hatchery::{Callee, Error, Nothing, Receiver, Sender, StreamError};
use hatchery_testkit::await_points::drop_at_each;
use hatchery_tests::{BACKENDS, for_each, for_each_within, here, sockets, with_worker};

/// Sends the numbers up to `count`, and reads as many that must come in order; rests after every
/// `every` of them, if that is not 0.
async fn exchange(
    mut sender: Sender<u64>,
    mut receiver: Receiver<u64>,
    count: u64,
    every: u64,
) -> Result<u64, Error> {
    let sending = async {
        for number in 0..count {
            sender.send(number).await?;
        }
        Ok::<_, Error>(sender.close().await?)
    };
    let receiving = async {
        let mut most = 0;
        for due in 0..count {
            let came = receiver.recv().await?;
            if came != Some(due) {
                return Err(Error::msg(format!("{came:?} came where {due} was due")));
            }
            if every > 0 && due % every == 0 {
                most = most.max(receiver.stats().held);
                // The slowness itself.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(receiver.recv().await?, None);
        Ok(most)
    };
    let (_, most) = tokio::try_join!(sending, receiving)?;
    Ok(most)
}

#[hatchery::context]
async fn peer_of_exchange(callee: Callee<u64, u64>, count: u64, every: u64) -> Result<u64, Error> {
    let (sender, receiver) = callee.started(())?.split();
    exchange(sender, receiver, count, every).await
}

/// The most memory this process ever had, in KiB.
#[hatchery::function]
async fn peak() -> u64 {
    own_peak()
}

fn own_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Scenario 67: 1,000,000 messages, half of them in each direction at once, with a slow reader on
/// one side and then on the other. Memory stays near the credit, on both sides.
#[test]
fn a_million_messages_come_in_order_past_a_slow_reader_on_either_side() {
    const COUNT: u64 = 250_000;
    const EVERY: u64 = 2_500;
    for_each_within(MINUTES, here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let before = (worker.call(peak()).await?, own_peak());
            for (theirs, ours) in [(EVERY, 0), (0, EVERY)] {
                let both = worker.context(peer_of_exchange(COUNT, theirs)).credit(64 << 10);
                let (mine, other) = both
                    .run(async |mut cx| {
                        let (sender, receiver) = cx.split();
                        let mine = exchange(sender, receiver, COUNT, ours).await?;
                        Ok((mine, cx.result().await?))
                    })
                    .await?;
                assert!(mine.max(other) <= 64 << 10, "{mine} and {other} bytes were held");
            }
            let after = (worker.call(peak()).await?, own_peak());
            let grown = (after.0 - before.0).max(after.1 - before.1);
            assert!(grown < 16 << 10, "{grown} KiB more");
            Ok(())
        })
        .await;
    });
}

#[hatchery::function]
async fn ping() {}

/// Sends without end.
#[hatchery::context]
async fn flood(callee: Callee<u64, u64>) -> Result<(), Error> {
    let (mut sender, _unread) = callee.started(())?.split();
    for number in 0.. {
        sender.send(number).await?;
    }
    Ok(())
}

/// Reads nothing until it is told to, then all; returns how many there were.
#[hatchery::context]
async fn stop(callee: Callee<u64, Nothing>, span: Duration) -> Result<u64, Error> {
    let (_sender, mut receiver) = callee.started(())?.split();
    // The reader that has stopped: a span, as the scenario says.
    tokio::time::sleep(span).await;
    let mut due = 0;
    while let Some(number) = receiver.recv().await? {
        if number != due {
            return Err(Error::msg(format!("{number} came where {due} was due")));
        }
        due += 1;
    }
    Ok(due)
}

#[hatchery::context]
async fn echo(callee: Callee<u64, u64>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    while let Some(number) = stream.recv().await? {
        stream.send(number).await?;
    }
    Ok(())
}

/// What the other uses of the channel took while two of its streams stood still.
#[derive(Default)]
struct Others {
    calls: Vec<Duration>,
    messages: Vec<Duration>,
    cancels: Vec<Duration>,
}

impl Others {
    /// A call, a message there and back, and a context that is cancelled and says so.
    async fn take_turns(&mut self, worker: &hatchery::Portal) -> Result<(), Error> {
        let began = Instant::now();
        worker.call(ping()).await?;
        self.calls.push(began.elapsed());
        worker
            .open_context(echo(), async |mut cx| {
                let began = Instant::now();
                cx.send(7).await?;
                assert_eq!(cx.recv().await?, Some(7));
                self.messages.push(began.elapsed());
                let began = Instant::now();
                cx.cancel();
                assert!(cx.result().await.is_err());
                self.cancels.push(began.elapsed());
                Ok(())
            })
            .await?;
        Ok(())
    }
}

/// Scenario 68, H22: a reader that stops for ten seconds, on either side, stops its own writer; what
/// else goes over the channel takes under 50 ms meanwhile. The median is held to that, as a loaded
/// machine may keep any single one waiting; behind a stalled stream all would wait.
#[test]
fn a_reader_that_stops_stops_its_own_writer_and_nobody_else() {
    for_each_within(MINUTES, here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let ours = worker.context(flood()).credit(8 << 10).handle().await?;
            let mut theirs = worker.context(stop(STOPPED)).credit(8 << 10).handle().await?;
            let mut sender = theirs.split().0;
            let writing = tokio::spawn(async move {
                let mut count = 0;
                let began = Instant::now();
                while began.elapsed() < STOPPED + Duration::from_millis(100) {
                    sender.send(count).await?;
                    count += 1;
                }
                let stats = sender.stats();
                sender.close().await?;
                Ok::<_, StreamError>((count, stats))
            });
            let (began, mut others) = (Instant::now(), Others::default());
            while began.elapsed() < STOPPED {
                others.take_turns(&worker).await?;
            }
            let held = ours.stats().held;
            assert!((4 << 10..=8 << 10).contains(&held), "{held}");
            for all in [&mut others.calls, &mut others.messages, &mut others.cancels] {
                all.sort();
                let median = all[all.len() / 2];
                assert!(median < Duration::from_millis(50), "{median:?} of {}", all.len());
            }
            let (count, stats) = writing.await??;
            assert!(stats.waited > 0, "{stats:?}");
            assert_eq!(theirs.result().await?, count, "none was lost");
            Ok(())
        })
        .await;
    });
}

/// Reads to the end and says what came.
#[hatchery::context]
async fn collect(callee: Callee<u64, Nothing>) -> Result<Vec<u64>, Error> {
    let (_sender, mut receiver) = callee.started(())?.split();
    let mut all = Vec::new();
    while let Some(number) = receiver.recv().await? {
        all.push(number);
    }
    Ok(all)
}

/// H23: 10,000 sends that are dropped at any point are whole or not there, once, in their order.
#[test]
fn sends_that_are_dropped_tear_nothing_and_double_nothing() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let small = worker.context(collect()).credit(2048);
            let (sent, all) = small
                .run(async |mut cx| {
                    let (mut sender, _receiver) = cx.split();
                    for number in 0..10_000 {
                        let mut send = Box::pin(sender.send(number));
                        for _ in 0..number % 4 {
                            if let Some(sent) = send.as_mut().now_or_never() {
                                sent?;
                                break;
                            }
                            tokio::task::yield_now().await;
                        }
                    }
                    sender.close().await?;
                    Ok((sender.stats().sent, cx.result().await?))
                })
                .await?;
            assert!(all.is_sorted_by(|one, next| one < next), "in order, none twice");
            assert_eq!(all.len() as u64, sent);
            assert!((100..10_000).contains(&all.len()), "{}", all.len());
            Ok(())
        })
        .await;
    });
}

/// H23, H24: a context that is dropped at each of its await points, one after the other, leaves a
/// channel on which the next one works.
#[test]
fn a_context_can_be_dropped_at_each_of_its_await_points() {
    for_each(here!(), &BACKENDS, async |runtime| {
        with_worker(runtime, async |worker| {
            let converse = || {
                worker.context(echo()).credit(1024).run(async |mut cx| {
                    for number in 0..8 {
                        cx.send(number).await?;
                        assert_eq!(cx.recv().await?, Some(number));
                    }
                    cx.close().await?;
                    Ok(cx.result().await?)
                })
            };
            // How many there are is the machine's choice: an answer may be quicker than the wait.
            let mut points = 0;
            while points < 100 {
                points +=
                    drop_at_each(converse, async |_| worker.call(ping()).await.unwrap()).await;
            }
            Ok(())
        })
        .await;
    });
}

/// H23, C10: the same for a peer's connection and what is opened through it; no connection that was
/// dropped is kept by either side, none is waited for at the end.
#[test]
fn a_connection_can_be_dropped_at_each_of_its_await_points() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let (ended, report) = hatchery::nursery_with_report(async |n| {
            let worker = n.start("worker").await?;
            let peer = worker.peer().await?;
            let open = |pid: Option<u32>| pid.map_or(0, sockets);
            let (here, there) = (Some(std::process::id()), worker.pid());
            let before = (open(here), open(there));
            let visit = || async {
                let portal = peer.connect().await?;
                portal.call(ping()).await?;
                let first = portal
                    .open_context(echo(), async |mut cx| {
                        cx.send(1).await?;
                        Ok(cx.recv().await?)
                    })
                    .await?;
                assert_eq!(first, Some(1));
                Ok::<_, Error>(())
            };
            // More visits are given up than the door has room for strangers.
            let mut points = 0;
            while points < 200 {
                points += drop_at_each(|| peer.connect(), async |_| ()).await;
            }
            let mut points = 0;
            while points < 100 {
                points += drop_at_each(visit, async |_| worker.call(ping()).await.unwrap()).await;
            }
            visit().await?;
            while open(here) > before.0 || open(there) > before.1 {
                worker.call(ping()).await?;
            }
            Ok(())
        })
        .await;
        ended.unwrap_or_else(|error| panic!("{}", error.render()));
        let kept = report.flatten().into_iter().find(|actor| !actor.undrained.is_empty());
        assert!(kept.is_none() && report.forced().is_empty(), "{report}");
        runtime.close().await;
    });
}

/// For a scenario with much to do on a loaded machine, in a build that isn't optimised.
const MINUTES: Duration = Duration::from_secs(180);
/// For how long scenario 68's readers stop.
const STOPPED: Duration = Duration::from_secs(10);
