//! Every order of events and time-outs on one actor's way down, each state visited once.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use hatchery_proto::teardown::{Action, Event, Kind, Teardown};
use hatchery_proto::{ActorPath, Config, ExitStatus, Reason, Time, Why};

/// The machine beside all that it has done so far.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Run {
    machine: Teardown,
    now: Time,
    actions: Vec<Action>,
    cancelled: Option<Time>,
    settled: bool,
}

#[derive(Debug, Clone, Copy)]
enum Move {
    Cancel(Duration),
    Acked,
    Leaving,
    ChannelDead,
    Settled,
    NextTimeout,
}

const MOVES: [Move; 8] = [
    Move::Cancel(Duration::from_secs(3)),
    Move::Cancel(Duration::from_millis(200)),
    Move::Cancel(Duration::ZERO),
    Move::Acked,
    Move::Leaving,
    Move::ChannelDead,
    Move::Settled,
    Move::NextTimeout,
];

impl Run {
    fn new(kind: Kind) -> Self {
        let machine = Teardown::new(kind, Config::default());
        Self { machine, now: Time::ZERO, actions: Vec::new(), cancelled: None, settled: false }
    }

    fn step(&self, step: Move) -> Option<Self> {
        let mut next = self.clone();
        match step {
            Move::Cancel(budget) => {
                let reason = Reason { by: ActorPath::root(), why: Why::Requested };
                next.machine.handle(Event::Cancel { reason, budget }, next.now);
                next.cancelled.get_or_insert(next.now);
            }
            Move::Acked => next.machine.handle(Event::Acked, next.now),
            Move::Leaving => next.machine.handle(Event::Leaving, next.now),
            Move::ChannelDead => {
                next.machine.handle(Event::ChannelDead, next.now);
                next.cancelled.get_or_insert(next.now);
            }
            Move::Settled => {
                next.machine.handle(Event::Settled(ExitStatus::Code(0)), next.now);
                next.settled = true;
            }
            Move::NextTimeout => {
                next.now = next.machine.poll_timeout()?;
                next.machine.handle_timeout(next.now);
            }
        }
        while let Some(action) = next.machine.poll_action() {
            next.actions.push(action);
        }
        Some(next)
    }
}

fn explore(kind: Kind, depth: usize, check: impl Fn(&Run)) -> usize {
    let mut seen = HashSet::new();
    let mut open = VecDeque::from([(Run::new(kind), 0)]);
    while let Some((run, length)) = open.pop_front() {
        if length == depth || !seen.insert(run.clone()) {
            continue;
        }
        check(&run);
        open.extend(MOVES.iter().filter_map(|step| Some((run.step(*step)?, length + 1))));
    }
    seen.len()
}

/// C12: the channel is broken exactly once when it is over, never before, and nothing follows.
#[test]
fn the_channel_is_broken_once_and_last() {
    for kind in [Kind::Process, Kind::Thread] {
        let states = explore(kind, 7, |run| {
            let breaks =
                run.actions.iter().filter(|action| **action == Action::BreakChannel).count();
            assert_eq!(breaks, usize::from(run.machine.is_over()), "{run:?}");
            if breaks == 1 {
                assert_eq!(run.actions.last(), Some(&Action::BreakChannel), "{run:?}");
            }
        });
        assert!(states > 100, "only {states} states");
    }
}

/// C2, H24: from every state, silence alone ends inside the budget that was given first.
#[test]
fn silence_ends_inside_the_budget_from_every_state() {
    let longest = Config::default().budget + Duration::from_millis(100);
    for kind in [Kind::Process, Kind::Thread] {
        explore(kind, 6, |run| {
            let Some(began) = run.cancelled else { return };
            let mut run = run.clone();
            while let Some(next) = run.step(Move::NextTimeout) {
                run = next;
            }
            assert!(run.machine.is_over(), "{run:?}");
            assert!(run.now.since(began) <= longest, "{:?}: {run:?}", run.now.since(began));
        });
    }
}

/// C5: a thread is asked and given up on, never signalled; a process is killed before that.
#[test]
fn only_processes_are_signalled_and_always_before_they_are_given_up_on() {
    explore(Kind::Thread, 7, |run| {
        assert!(!run.actions.contains(&Action::Terminate), "{run:?}");
        assert!(!run.actions.contains(&Action::Kill), "{run:?}");
    });
    explore(Kind::Process, 7, |run| {
        let given_up = run.actions.iter().position(|action| matches!(action, Action::GiveUp(_)));
        let killed = run.actions.iter().position(|action| *action == Action::Kill);
        if let Some(given_up) = given_up {
            assert!(killed.is_some_and(|killed| killed < given_up), "{run:?}");
        }
    });
}

/// C11: on a dead channel nobody is asked, and SIGTERM doesn't wait for the graceful part.
#[test]
fn a_dead_channel_is_not_waited_for() {
    let run = Run::new(Kind::Process).step(Move::ChannelDead).unwrap();
    let run = run.step(Move::NextTimeout).unwrap();
    assert_eq!(run.actions, [Action::Terminate]);
    assert!(run.now.since(Time::ZERO) <= Config::default().exit_status_wait);
    let asked = Run::new(Kind::Process).step(MOVES[0]).unwrap().step(Move::ChannelDead).unwrap();
    let ended = asked.step(Move::NextTimeout).unwrap();
    assert!(ended.now.since(Time::ZERO) < Config::default().graceful, "{ended:?}");
}

/// C2: a timer that is late by more than a second means that everybody stood still.
#[test]
fn a_pause_of_everybody_is_counted_against_nobody() {
    let mut run = Run::new(Kind::Process).step(MOVES[0]).unwrap();
    run.machine.handle_timeout(Time::ZERO + Duration::from_secs(60));
    assert_eq!(run.machine.poll_action(), None);
    let next = run.machine.poll_timeout().unwrap();
    assert_eq!(next, Time::ZERO + Duration::from_secs(60) + Config::default().graceful);
}
