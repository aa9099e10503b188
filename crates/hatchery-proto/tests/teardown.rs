//! Every order of events and time-outs on one actor's way down, each state visited once.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use hatchery_proto::teardown::{Action, Event, Kind, Teardown};
use hatchery_proto::{ActorPath, Config, ExitStatus, Reason, Step, Time, Why};

/// The machine beside all that it has done so far.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Run {
    machine: Teardown,
    now: Time,
    actions: Vec<Action>,
    cancelled: Option<Time>,
    exited: bool,
    settled: bool,
}

#[derive(Debug, Clone, Copy)]
enum Move {
    Cancel(Duration),
    Acked,
    Leaving,
    ChannelDead,
    Exited,
    Settled,
    NextTimeout,
}

const MOVES: [Move; 9] = [
    Move::Cancel(Duration::from_secs(3)),
    Move::Cancel(Duration::from_millis(200)),
    Move::Cancel(Duration::ZERO),
    Move::Acked,
    Move::Leaving,
    Move::ChannelDead,
    Move::Exited,
    Move::Settled,
    Move::NextTimeout,
];

impl Run {
    fn new(kind: Kind) -> Self {
        let machine = Teardown::new(kind, Config::default());
        Self {
            machine,
            now: Time::ZERO,
            actions: Vec::new(),
            cancelled: None,
            exited: false,
            settled: false,
        }
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
            Move::Exited => {
                next.machine.handle(Event::Exited, next.now);
                next.exited = true;
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
            if run.exited && !run.machine.is_over() {
                // Its driver says how it came out, after the time that it is told to wait.
                run.now = run.now + run.machine.last_words(run.now);
                run = run.step(Move::Settled).unwrap();
            }
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
    // Nor is anybody called unreapable for it, whose status may be there.
    let killed = Run::new(Kind::Process).step(Move::Cancel(Duration::ZERO)).unwrap();
    let until = killed.machine.poll_timeout().unwrap();
    let gives_up = |late: Duration| killed.machine.gives_up(until + late);
    assert!(gives_up(Duration::ZERO) && !gives_up(Duration::from_secs(2)));
}

/// C2: a status that is there is never called missing: while the last words of an actor that has
/// exited are read, nobody signals it and nobody gives it up.
#[test]
fn who_has_exited_is_neither_signalled_nor_given_up_on() {
    for kind in [Kind::Process, Kind::Thread] {
        explore(kind, 6, |run| {
            if run.exited || run.machine.is_over() {
                return;
            }
            let exited = run.step(Move::Exited).unwrap();
            assert_eq!(exited.machine.poll_timeout(), None, "{exited:?}");
            for step in MOVES.iter().filter(|step| !matches!(step, Move::Settled)) {
                let Some(next) = exited.step(*step) else { continue };
                assert_eq!(next.actions, run.actions, "{step:?} after {run:?}");
            }
        });
    }
}

/// C2: what the rungs before it did not use belongs to the wait after SIGKILL: a busy machine kills
/// and reaps late.
#[test]
fn the_last_wait_ends_with_the_budget_and_not_before() {
    let run = Run::new(Kind::Process).step(MOVES[0]).unwrap().step(Move::ChannelDead).unwrap();
    let killed = run.step(Move::NextTimeout).unwrap().step(Move::NextTimeout).unwrap();
    assert_eq!(killed.actions.last(), Some(&Action::Kill));
    let config = Config::default();
    assert!(killed.now + config.kill < Time::ZERO + config.budget, "an early kill");
    assert_eq!(killed.machine.poll_timeout(), Some(Time::ZERO + config.budget));
}

/// C2, H14: last words are waited for inside the budget, and a moment where none is left.
#[test]
fn last_words_have_what_is_left_of_the_budget() {
    let run = Run::new(Kind::Process).step(MOVES[1]).unwrap();
    let left = |run: &Run| run.machine.last_words(run.now);
    assert_eq!(left(&run), Duration::from_millis(200));
    let killed = run.step(Move::NextTimeout).unwrap().step(Move::NextTimeout).unwrap();
    assert_eq!(left(&killed), Duration::from_millis(50));
    assert_eq!(left(&Run::new(Kind::Process)), Config::default().peer_drain);
}

/// C2, H24: cancels that leave no time leave the kernel its moment all the same.
#[test]
fn hurry_after_a_kill_leaves_the_kernel_its_moment() {
    let hurried = Move::Cancel(Duration::ZERO);
    let run = Run::new(Kind::Process).step(hurried).unwrap().step(hurried).unwrap();
    assert_eq!(run.actions, [Action::Kill]);
    assert!(run.machine.poll_timeout().unwrap() >= run.now + Duration::from_millis(50), "{run:?}");
    let run = Run::new(Kind::Process).step(MOVES[1]).unwrap();
    let killed = run.step(Move::NextTimeout).unwrap().step(Move::NextTimeout).unwrap();
    assert_eq!(killed.actions.last(), Some(&Action::Kill));
    let run = killed.step(hurried).unwrap();
    assert!(run.machine.poll_timeout().unwrap() >= run.now + Duration::from_millis(40), "{run:?}");
}

/// C16: its status may come before what it had said is read, and a slow one is late.
#[test]
fn an_acknowledgement_is_noted_whenever_it_comes() {
    let steps = |run: Run| -> Vec<Step> {
        run.machine.report().0.into_iter().map(|taken| taken.step).collect()
    };
    let asked = Run::new(Kind::Process).step(MOVES[0]).unwrap();
    let exited = asked.step(Move::Exited).unwrap();
    assert_eq!(exited.machine.poll_timeout(), None);
    let settled = exited.step(Move::Acked).unwrap().step(Move::Settled).unwrap();
    assert_eq!(steps(settled), [Step::Asked, Step::Acknowledged, Step::Settled]);
    let late = asked.step(Move::NextTimeout).unwrap().step(Move::Acked).unwrap();
    // That of a second cancel.
    let twice = late.step(Move::Acked).unwrap();
    assert_eq!(steps(twice), [Step::Asked, Step::Unacknowledged, Step::Acknowledged]);
}

/// C2, H14: a level that said its last words in time is not forced for having waited for those below
/// it; nor does it have more time than it would have had.
#[test]
fn who_has_said_its_last_words_is_not_told_to_go() {
    let asked = Run::new(Kind::Process).step(MOVES[0]).unwrap().step(Move::Acked).unwrap();
    let silent = asked.step(Move::NextTimeout).unwrap().step(Move::NextTimeout).unwrap();
    assert!(matches!(silent.actions[..], [_, Action::Terminate, Action::Kill]), "{silent:?}");
    let leaving = asked.step(Move::Leaving).unwrap().step(Move::ChannelDead).unwrap();
    let late = leaving.step(Move::NextTimeout).unwrap();
    assert!(!late.machine.was_forced() && late.actions.len() == 1, "{late:?}");
    let gone = late.step(Move::Settled).unwrap();
    assert!(!gone.machine.was_forced(), "{gone:?}");
    let stuck = late.step(Move::NextTimeout).unwrap();
    assert_eq!(stuck.actions.last(), Some(&Action::Kill));
    assert_eq!(stuck.now, silent.now);
}
