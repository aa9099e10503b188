//! Up to three runtimes in one process, opened, closed and struck by signals in every order, each state
//! once (C6, C19).
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use hatchery_proto::Time;
use hatchery_proto::signals::{Action, Event, RootId, Signals, Wish};

const BUDGETS: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(3)];
const WATCHDOG: Duration = Duration::from_secs(1);
const ROOTS: [RootId; 3] = [RootId(1), RootId(2), RootId(3)];
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

/// The wishes that are tried for each root. One without a watchdog among them is enough.
fn wishes(root: usize) -> Vec<Wish> {
    let takes_down = |watchdog| Wish::TakeDown { budget: BUDGETS[root], watchdog };
    let mut wishes = vec![takes_down(Some(WATCHDOG)), Wish::Notify];
    if root == 0 {
        wishes.push(takes_down(None));
    }
    wishes
}

/// A process as a driver sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Process {
    signals: Signals,
    open: BTreeMap<RootId, Wish>,
    told: BTreeMap<RootId, u8>,
    down: BTreeSet<RootId>,
    killed: BTreeSet<RootId>,
    /// Whether ours are installed.
    holds: bool,
    ended: Option<i32>,
    /// Seconds.
    now: u64,
    /// When the first signal struck a process that ends by it.
    ends_by: Option<u64>,
    struck: u8,
}

#[derive(Debug, Clone, Copy)]
enum Move {
    Open(usize, Wish),
    Close(usize),
    Strike(i32),
    Wait,
}

impl Process {
    fn time(&self) -> Time {
        Time::ZERO + Duration::from_secs(self.now)
    }

    fn moves(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        for (root, id) in ROOTS.iter().enumerate() {
            if self.open.contains_key(id) {
                moves.push(Move::Close(root));
            } else {
                moves.extend(wishes(root).into_iter().map(|wish| Move::Open(root, wish)));
            }
        }
        if self.holds && self.struck < 2 {
            let first = self.struck == 0;
            moves.push(Move::Strike(if first { SIGINT } else { SIGTERM }));
        }
        if self.signals.poll_timeout().is_some() {
            moves.push(Move::Wait);
        }
        moves
    }

    fn make(&mut self, next: Move) {
        let actions = match next {
            Move::Open(root, wish) => {
                let id = ROOTS[root];
                self.open.insert(id, wish);
                self.told.remove(&id);
                self.down.remove(&id);
                self.killed.remove(&id);
                self.holds = true;
                self.signals.handle(Event::Opened(id, wish), self.time())
            }
            Move::Close(root) => {
                self.open.remove(&ROOTS[root]);
                self.signals.handle(Event::Closed(ROOTS[root]), self.time())
            }
            Move::Strike(signal) => self.strike(signal),
            Move::Wait => {
                self.now += 1;
                self.signals.handle_timeout(self.time())
            }
        };
        for action in actions {
            self.perform(action);
        }
        self.check();
    }

    fn strike(&mut self, signal: i32) -> Vec<Action> {
        self.struck += 1;
        let before = self.clone();
        let actions = self.signals.handle(Event::Signal(signal), self.time());
        assert!(!actions.is_empty(), "a signal is swallowed: {before:?}");
        let ends = actions.iter().any(|action| matches!(action, Action::End(_)));
        // Each root is told, or the process ends.
        for (id, wish) in &self.open {
            let reaches = actions.iter().any(|action| match action {
                Action::Tell(root, told) => root == id && *told == signal,
                Action::Kill(root) => root == id,
                Action::TakeDown { roots, .. } => roots.contains(id),
                Action::End(_) | Action::Stop => false,
            });
            assert!(reaches || ends, "{id:?} {wish:?} is not told: {before:?}");
        }
        // Whose program decides does not lose its process, unless that was decided before.
        if self.open.values().any(|wish| *wish == Wish::Notify) && before.ends_by.is_none() {
            assert!(!ends, "{before:?}");
        }
        actions
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::TakeDown { roots, ends, .. } => {
                for id in &roots {
                    assert!(matches!(self.open[id], Wish::TakeDown { .. }));
                    assert!(self.down.insert(*id), "taken down twice");
                }
                if ends {
                    assert!(self.open.values().all(|wish| *wish != Wish::Notify));
                    self.ends_by = Some(self.now);
                }
            }
            Action::Tell(id, _) => {
                assert_eq!(self.open[&id], Wish::Notify);
                *self.told.entry(id).or_default() += 1;
            }
            Action::Kill(id) => {
                assert!(self.down.contains(&id) && self.open.contains_key(&id));
                self.killed.insert(id);
            }
            Action::End(signal) => self.ended = Some(signal),
            Action::Stop => {
                assert!(self.open.is_empty());
                (self.holds, self.ends_by) = (false, None);
            }
        }
    }

    fn check(&self) {
        if self.ended.is_some() {
            return;
        }
        assert_eq!(self.holds, self.signals.is_needed(), "held for nobody, or not held: {self:?}");
        assert_eq!(self.signals.ending().is_some(), self.ends_by.is_some(), "{self:?}");
        // One budget for all, and the watchdog once.
        if let Some(began) = self.ends_by {
            assert!(self.now <= began + 3 + 1, "{self:?}");
            assert!(self.signals.poll_timeout().is_some(), "nobody ends it: {self:?}");
        }
        for id in self.open.keys().filter(|id| self.down.contains(id)) {
            let is_bounded = self.signals.poll_timeout().is_some() || self.killed.contains(id);
            assert!(is_bounded, "{id:?} is down without a bound: {self:?}");
        }
    }
}

/// C6, C19: whatever the order, each root is told or taken down, nobody is left without a bound, and the
/// signals are given back exactly when nobody is there.
#[test]
fn every_order_of_three_runtimes_and_signals_reaches_all_and_gives_back() {
    let (mut seen, mut todo) = (HashSet::new(), vec![Process::default()]);
    while let Some(process) = todo.pop() {
        for next in process.moves() {
            let mut then = process.clone();
            then.make(next);
            // Where nothing is to come the time means nothing.
            if then.signals.poll_timeout().is_none() {
                (then.now, then.ends_by) = (0, None);
            }
            if !then.holds {
                then.struck = 0;
            }
            if then.ended.is_none() && seen.insert(then.clone()) {
                todo.push(then);
            }
        }
    }
    assert!(seen.len() > 1_000, "{} states", seen.len());
}

fn down(budget: u64, watchdog: Option<u64>) -> Wish {
    let (budget, watchdog) = (Duration::from_secs(budget), watchdog.map(Duration::from_secs));
    Wish::TakeDown { budget, watchdog }
}

fn at(seconds: u64) -> Time {
    Time::ZERO + Duration::from_secs(seconds)
}

/// C6: trees side by side cost the longest budget, and not the sum.
#[test]
fn three_trees_come_down_in_one_budget() {
    let mut signals = Signals::new();
    for (id, budget) in [(1, 2), (2, 5), (3, 3)] {
        assert!(signals.handle(Event::Opened(RootId(id), down(budget, Some(1))), at(0)).is_empty());
    }
    let taken = signals.handle(Event::Signal(SIGTERM), at(10));
    let roots = ROOTS.to_vec();
    assert_eq!(taken, [Action::TakeDown { roots, signal: SIGTERM, ends: true }]);
    assert_eq!(signals.poll_timeout(), Some(at(15)));
    assert!(signals.handle_timeout(at(14)).is_empty());
    assert_eq!(signals.handle_timeout(at(15)), [Action::End(SIGTERM)]);
}

/// C6: a second signal ends the process, with the status of the first.
#[test]
fn a_second_signal_ends_by_the_first() {
    let mut signals = Signals::new();
    signals.handle(Event::Opened(RootId(1), down(2, None)), at(0));
    signals.handle(Event::Signal(SIGINT), at(1));
    assert_eq!(signals.handle(Event::Signal(SIGTERM), at(1)), [Action::End(SIGINT)]);
}

/// C19: while one is only told, the process goes on; the other is killed when its budget is spent.
#[test]
fn a_root_that_is_told_keeps_its_process() {
    let mut signals = Signals::new();
    signals.handle(Event::Opened(RootId(1), Wish::Notify), at(0));
    signals.handle(Event::Opened(RootId(2), down(2, Some(1))), at(0));
    let taken = Action::TakeDown { roots: vec![RootId(2)], signal: SIGINT, ends: false };
    let told = Action::Tell(RootId(1), SIGINT);
    assert_eq!(signals.handle(Event::Signal(SIGINT), at(1)), [told.clone(), taken]);
    assert_eq!(signals.ending(), None);
    assert_eq!(signals.handle_timeout(at(3)), [Action::Kill(RootId(2))]);
    assert_eq!(signals.handle(Event::Signal(SIGINT), at(4)), [told, Action::Kill(RootId(2))]);
}

/// C6, H8: the watchdog of a process whose trees are down; without one it may stay.
#[test]
fn the_last_close_leaves_the_watchdog_or_nothing() {
    for (watchdog, left) in [(Some(1), Some(at(4))), (None, None)] {
        let mut signals = Signals::new();
        signals.handle(Event::Opened(RootId(1), down(2, watchdog)), at(0));
        signals.handle(Event::Signal(SIGINT), at(1));
        let closed = signals.handle(Event::Closed(RootId(1)), at(1));
        assert_eq!(closed.is_empty(), left.is_some());
        assert_eq!(signals.poll_timeout(), left);
        assert_eq!(signals.is_needed(), left.is_some());
    }
}
