//! Births under way in the whole tree, and the requests that wait for their turn. Pure.
//!
//! A process that was forked and does not serve yet wants a processor, and so does whoever waits for
//! it. If every actor of a tree starts its own at once, each gets so little that none is in time. So a
//! few are born at a time, whoever asked for them, and those who ask have one after the other in turn.
//!
//! A birth is over when its owner says so, when the child dies, or after [`PATIENCE`]: one that hangs
//! holds up nobody for longer. Time is nanoseconds of the driver's clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// `C` is who asks, `R` what for.
#[derive(Debug)]
pub(crate) struct Births<C, R> {
    /// By their marks, until when they count.
    open: BTreeMap<u64, u64>,
    ends: BTreeSet<(u64, u64)>,
    waiting: BTreeMap<C, VecDeque<R>>,
    /// Whoever waits, once each, in the order in which they are served.
    turns: VecDeque<C>,
}

impl<C, R> Default for Births<C, R> {
    fn default() -> Self {
        Self {
            open: BTreeMap::new(),
            ends: BTreeSet::new(),
            waiting: BTreeMap::new(),
            turns: VecDeque::new(),
        }
    }
}

impl<C: Copy + Ord, R> Births<C, R> {
    /// Somebody wants a child.
    pub(crate) fn ask(&mut self, who: C, request: R) {
        let own = self.waiting.entry(who).or_default();
        if own.is_empty() {
            self.turns.push_back(who);
        }
        own.push_back(request);
    }

    /// Whose child is to be forked next, if there is room for one. Until that has begun, or has
    /// failed, nobody else's is.
    pub(crate) fn next(&mut self, now: u64) -> Option<(C, R)> {
        self.expire(now);
        if self.open.len() >= MOST {
            return None;
        }
        let who = self.turns.pop_front()?;
        let own = self.waiting.get_mut(&who)?;
        let request = own.pop_front()?;
        if own.is_empty() {
            self.waiting.remove(&who);
        } else {
            self.turns.push_back(who);
        }
        Some((who, request))
    }

    /// The child with that mark was forked, and is not born yet. Says whether its owner shall tell at
    /// once when it is; else that has time until it asks for the next one.
    pub(crate) fn begun(&mut self, mark: u64, now: u64) -> bool {
        let until = now.saturating_add(PATIENCE);
        self.open.insert(mark, until);
        self.ends.insert((until, mark));
        self.open.len() > QUIET
    }

    /// The child with that mark is born, or dead. Again is no matter.
    pub(crate) fn over(&mut self, mark: u64) {
        if let Some(until) = self.open.remove(&mark) {
            self.ends.remove(&(until, mark));
        }
    }

    /// Somebody asks for nothing any more: what it had asked for is given back.
    pub(crate) fn left(&mut self, who: C) -> VecDeque<R> {
        self.turns.retain(|other| *other != who);
        self.waiting.remove(&who).unwrap_or_default()
    }

    /// How many requests of one client wait.
    pub(crate) fn count(&self, who: C) -> usize {
        self.waiting.get(&who).map_or(0, VecDeque::len)
    }

    /// Everybody who waits, and the first that each waits for.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (C, &R)> {
        self.waiting.iter().filter_map(|(who, own)| Some((*who, own.front()?)))
    }

    /// When there may be room for somebody who waits, though nobody says so.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.ends.first().map(|(until, _)| *until).filter(|_| !self.turns.is_empty())
    }

    fn expire(&mut self, now: u64) {
        while let Some((until, mark)) = self.ends.first().copied()
            && until <= now
        {
            self.over(mark);
        }
    }
}

/// How many births are under way at once. Each holds a processor for less than a millisecond, so that
/// they are all over in a moment also where a single processor is shared with others; and a forkserver
/// makes no more than a few while one is born.
const MOST: usize = 40;
/// Up to so many nobody need tell at once: one process that starts others has no more under way, and
/// tells with its next request.
const QUIET: usize = 32;
/// How long a birth counts at most: a fifth of what its spawner waits for it by default would be too
/// short on a machine that does much else, and who hangs takes a place for no longer.
const PATIENCE: u64 = 2_000_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Those who ask have their turns one after the other, however much one of them wants.
    #[test]
    fn who_asks_for_much_leaves_others_their_turn() {
        let mut births = Births::default();
        for number in 0..3 {
            births.ask('a', number);
        }
        births.ask('b', 0);
        births.ask('c', 0);
        births.ask('c', 1);
        let order: Vec<_> = std::iter::from_fn(|| births.next(0)).collect();
        assert_eq!(order, [('a', 0), ('b', 0), ('c', 0), ('a', 1), ('c', 1), ('a', 2)]);
        assert_eq!(births.next_deadline(), None);
    }

    /// C2: one that hangs holds up the others for a while, and no longer; and nobody is woken up
    /// for it while nobody waits.
    #[test]
    fn a_birth_that_hangs_is_waited_for_for_a_while() {
        let mut births = Births::default();
        for mark in 0..MOST as u64 {
            assert!(births.next(0).is_none());
            let told = births.begun(mark, mark);
            assert_eq!(told, mark >= QUIET as u64);
        }
        assert_eq!(births.next_deadline(), None);
        births.ask('a', 1);
        assert_eq!((births.next_deadline(), births.next(PATIENCE - 1)), (Some(PATIENCE), None));
        assert_eq!(births.next(PATIENCE), Some(('a', 1)));
        births.over(0);
        births.over(7);
        births.ask('a', 2);
        assert_eq!(births.next(PATIENCE), Some(('a', 2)));
    }

    proptest! {
        /// In any order of events there are never more than that under way, everybody who
        /// stays gets all that it asked for, in its order, and who leaves gets nothing.
        #[test]
        fn whoever_stays_is_served(
            steps in prop::collection::vec((0..5_u8, 0..6_usize), 0..400)
        ) {
            let mut births = Births::default();
            let (mut now, mut mark) = (0, 0_u64);
            let mut open = BTreeSet::new();
            let mut wanted: BTreeMap<usize, VecDeque<u64>> = BTreeMap::new();
            let mut serve = |births: &mut Births<usize, u64>,
                             open: &mut BTreeSet<u64>,
                             wanted: &mut BTreeMap<usize, VecDeque<u64>>,
                             now: u64| {
                while let Some((who, request)) = births.next(now) {
                    let own = wanted.get_mut(&who).and_then(VecDeque::pop_front);
                    assert_eq!(own, Some(request), "in the order of its own requests");
                    mark += 1;
                    births.begun(mark, now);
                    open.insert(mark);
                    assert!(births.open.len() <= MOST);
                }
            };
            for (number, (step, which)) in (0..).zip(steps) {
                match step {
                    0..=2 => {
                        births.ask(which, number);
                        wanted.entry(which).or_default().push_back(number);
                    }
                    3 => {
                        // Told twice, or of somebody who was given up on.
                        let some = open.iter().nth(which).copied();
                        some.into_iter().for_each(|mark| births.over(mark));
                        open.retain(|mark| Some(*mark) != some);
                    }
                    _ => {
                        let left = births.left(which);
                        prop_assert_eq!(left, wanted.remove(&which).unwrap_or_default());
                        prop_assert_eq!(births.count(which), 0);
                    }
                }
                if which == 5 {
                    now += PATIENCE / 3;
                }
                serve(&mut births, &mut open, &mut wanted, now);
            }
            // Silence.
            while let Some(at) = births.next_deadline() {
                serve(&mut births, &mut open, &mut wanted, at);
            }
            prop_assert!(wanted.values().all(VecDeque::is_empty), "{:?}", wanted);
            prop_assert!(births.waiting().next().is_none());
        }
    }
}
