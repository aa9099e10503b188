//! The forkserver's decisions: who lives, whose child, who is an orphan and until when. Pure.
//!
//! Time is nanoseconds of the driver's clock. Nothing in here hashes: siblings are forked from
//! the process that holds this book, and would share the keys.

use std::collections::{BTreeMap, BTreeSet};

/// Whose child somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// The root's.
    Root,
    /// An actor's.
    Actor(i32),
    /// Whose owner has died. Its number may be another actor's by now.
    Nobody,
}

/// All living children of the forkserver that somebody asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Book {
    living: BTreeMap<i32, Entry>,
    /// By the number of the request.
    children: BTreeMap<(Owner, u64), i32>,
    deadlines: BTreeSet<(u64, i32)>,
    /// Who is to be asked to end, and by which signal.
    to_ask: Vec<(i32, u8)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    owner: Owner,
    /// What its owner calls it: the number of the request.
    number: u64,
    /// Names the actor in the environment of what it starts.
    mark: u64,
    kill_at: Option<u64>,
    /// It has closed its control socket, and speaks for nobody any more.
    left: bool,
    /// How many living children it has.
    children: usize,
    /// The signal that asks it to end, and how long that may take; until then nobody has sent it.
    stop: Option<(u8, u64)>,
    is_asked: bool,
    /// It is left alone, whoever ends.
    is_detached: bool,
}

impl Book {
    /// A child was born. Its owner has not used that number before.
    pub(crate) fn born(&mut self, pid: i32, owner: Owner, number: u64, mark: u64) {
        let entry = Entry {
            owner,
            number,
            mark,
            kill_at: None,
            left: false,
            children: 0,
            stop: None,
            is_asked: false,
            is_detached: false,
        };
        self.living.insert(pid, entry);
        self.children.insert((owner, number), pid);
        if let Some(above) = self.above(owner) {
            above.children += 1;
        }
    }

    /// That child is asked to end by a signal of its own before it is killed.
    pub(crate) fn asks_first(&mut self, pid: i32, stop: Option<(u8, u64)>) {
        if let Some(entry) = self.living.get_mut(&pid) {
            entry.stop = stop;
        }
    }

    /// That child is left alone from now on: nobody's end is its own.
    pub(crate) fn detached(&mut self, pid: i32) {
        if let Some(entry) = self.living.get_mut(&pid) {
            entry.is_detached = true;
        }
    }

    /// Whether that child is left alone.
    pub(crate) fn is_detached(&self, pid: i32) -> bool {
        self.living.get(&pid).is_some_and(|entry| entry.is_detached)
    }

    /// It shall end: it is asked to, and killed when its time is over. A second word changes nothing. Says
    /// whether it is one that is asked.
    pub(crate) fn stop(&mut self, pid: i32, now: u64, most: u64) -> bool {
        let Some(entry) = self.living.get_mut(&pid) else { return false };
        let Some((signal, grace)) = entry.stop else { return false };
        if !entry.is_asked {
            entry.is_asked = true;
            self.to_ask.push((pid, signal));
        }
        self.condemn(pid, now.saturating_add(grace.min(most)));
        true
    }

    /// Everybody shall end: those that are asked first are, within `most`.
    pub(crate) fn stop_all(&mut self, now: u64, most: u64) {
        for pid in self.all() {
            self.stop(pid, now, most);
        }
    }

    /// Whether it was asked to end and still has time for that.
    pub(crate) fn has_time(&self, pid: i32, now: u64) -> bool {
        let entry = self.living.get(&pid).filter(|entry| entry.is_asked);
        entry.and_then(|entry| entry.kill_at).is_some_and(|at| at > now)
    }

    /// Who is to be asked to end, and by which signal; each is named once.
    pub(crate) fn take_asked(&mut self) -> Vec<(i32, u8)> {
        std::mem::take(&mut self.to_ask)
    }

    /// Whether this is a living child that somebody asked for.
    pub(crate) fn knows(&self, pid: i32) -> bool {
        self.living.contains_key(&pid)
    }

    /// Whether this is a living child that may still become a client.
    pub(crate) fn may_ask(&self, pid: i32) -> bool {
        self.living.get(&pid).is_some_and(|entry| !entry.left)
    }

    /// A client has closed its socket: what is below it is orphaned, and it gets no other one.
    pub(crate) fn left(&mut self, pid: i32, now: u64, grace: u64) {
        if let Some(entry) = self.living.get_mut(&pid) {
            entry.left = true;
        }
        self.orphan(pid, now, grace);
    }

    /// How many living children an actor has; of the root's nobody keeps count.
    pub(crate) fn count_children(&self, owner: Owner) -> usize {
        let Owner::Actor(pid) = owner else { return 0 };
        self.living.get(&pid).map_or(0, |entry| entry.children)
    }

    fn above(&mut self, owner: Owner) -> Option<&mut Entry> {
        let Owner::Actor(pid) = owner else { return None };
        self.living.get_mut(&pid)
    }

    /// The living child of that owner that it asked for under that number.
    pub(crate) fn child_of(&self, owner: Owner, number: u64) -> Option<i32> {
        self.children.get(&(owner, number)).copied()
    }

    /// Whose child it is, and what that one calls it.
    pub(crate) fn asked_for(&self, pid: i32) -> Option<(Owner, u64)> {
        self.living.get(&pid).map(|entry| (entry.owner, entry.number))
    }

    /// The mark of a living child that somebody asked for.
    pub(crate) fn mark_of(&self, pid: i32) -> Option<u64> {
        self.living.get(&pid).map(|entry| entry.mark)
    }

    /// Whether an actor with that mark lives.
    pub(crate) fn has_mark(&self, mark: u64) -> bool {
        self.living.values().any(|entry| entry.mark == mark)
    }

    /// A child has ended: all below it may live until `now + grace`. Says whose it was, and what
    /// that one calls it; `None` for a stray that nobody asked for.
    pub(crate) fn died(&mut self, pid: i32, now: u64, grace: u64) -> Option<(Owner, u64)> {
        let entry = self.living.remove(&pid)?;
        self.children.remove(&(entry.owner, entry.number));
        if let Some(above) = self.above(entry.owner) {
            above.children -= 1;
        }
        if let Some(at) = entry.kill_at {
            self.deadlines.remove(&(at, pid));
        }
        self.orphan(pid, now, grace);
        for number in self.numbers_of(pid) {
            let Some(child) = self.children.remove(&(Owner::Actor(pid), number)) else { continue };
            if let Some(entry) = self.living.get_mut(&child) {
                entry.owner = Owner::Nobody;
            }
        }
        Some((entry.owner, entry.number))
    }

    /// Nobody speaks for what is below `pid` any more: it may live until `now + grace`.
    pub(crate) fn orphan(&mut self, pid: i32, now: u64, grace: u64) {
        // The whole subtree at once, not a level at a time: C3 has one second for all depths.
        let mut below = self.children_of(pid);
        while let Some(pid) = below.pop() {
            if !self.stop(pid, now, grace) {
                self.condemn(pid, now.saturating_add(grace));
            }
            below.extend(self.children_of(pid));
        }
    }

    /// When the next orphan is due.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// The orphans whose grace is over; each is named once.
    pub(crate) fn due(&mut self, now: u64) -> Vec<i32> {
        let later = self.deadlines.split_off(&(now.saturating_add(1), 0));
        let due = std::mem::replace(&mut self.deadlines, later);
        for (_, pid) in &due {
            if let Some(entry) = self.living.get_mut(pid) {
                entry.kill_at = None;
            }
        }
        due.into_iter().map(|(_, pid)| pid).collect()
    }

    /// Everybody but those that are left alone.
    pub(crate) fn all(&self) -> Vec<i32> {
        let all = self.living.iter().filter(|(_, entry)| !entry.is_detached);
        all.map(|(pid, _)| *pid).collect()
    }

    /// Everybody.
    pub(crate) fn all_living(&self) -> Vec<i32> {
        self.living.keys().copied().collect()
    }

    fn children_of(&self, pid: i32) -> Vec<i32> {
        let owner = Owner::Actor(pid);
        self.children.range((owner, 0)..=(owner, u64::MAX)).map(|(_, child)| *child).collect()
    }

    fn numbers_of(&self, pid: i32) -> Vec<u64> {
        let owner = Owner::Actor(pid);
        self.children
            .range((owner, 0)..=(owner, u64::MAX))
            .map(|((_, number), _)| *number)
            .collect()
    }

    /// The nearest deadline counts.
    fn condemn(&mut self, pid: i32, at: u64) {
        let attached = self.living.get_mut(&pid).filter(|entry| !entry.is_detached);
        let Some(entry) = attached else { return };
        match entry.kill_at {
            Some(earlier) if earlier <= at => return,
            Some(later) => {
                self.deadlines.remove(&(later, pid));
            }
            None => {}
        }
        entry.kill_at = Some(at);
        self.deadlines.insert((at, pid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: u64 = 500;

    /// root: 1, 2; below 1: 3, 4; below 3: 5.
    fn tree() -> Book {
        let mut book = Book::default();
        book.born(1, Owner::Root, 0, 1);
        book.born(2, Owner::Root, 1, 2);
        book.born(3, Owner::Actor(1), 0, 3);
        book.born(4, Owner::Actor(1), 1, 4);
        book.born(5, Owner::Actor(3), 0, 5);
        book
    }

    /// C3: when an actor dies, its whole subtree goes after one grace, and nobody else.
    #[test]
    fn the_subtree_of_a_dead_actor_is_due_after_one_grace() {
        let mut book = tree();
        assert_eq!(book.died(1, 100, GRACE), Some((Owner::Root, 0)));
        assert_eq!(book.next_deadline(), Some(600));
        assert!(book.due(599).is_empty());
        assert_eq!(book.due(600), [3, 4, 5]);
        assert!(book.due(10_000).is_empty(), "named once");
        assert!(book.knows(2));
    }

    /// C3: who is asked to end first has its own time for that, and never more than an orphan.
    #[test]
    fn who_is_asked_first_has_its_own_time_and_no_more_than_an_orphan() {
        let mut book = tree();
        book.asks_first(2, Some((15, 2_000)));
        book.asks_first(3, Some((2, 200)));
        book.asks_first(4, Some((15, 2_000)));
        assert!(book.stop(2, 100, u64::MAX) && book.stop(2, 900, u64::MAX));
        assert!(!book.stop(1, 100, u64::MAX), "it is killed at once");
        assert_eq!(book.take_asked(), [(2, 15)]);
        assert!(book.has_time(2, 2_099) && !book.has_time(2, 2_100) && !book.has_time(1, 0));
        book.died(1, 100, GRACE);
        let mut asked = book.take_asked();
        asked.sort_unstable();
        assert_eq!(asked, [(3, 2), (4, 15)]);
        assert_eq!(book.due(300), [3]);
        assert_eq!(book.due(600), [4, 5]);
        assert_eq!(book.due(2_100), [2]);
    }

    /// Who is detached is nobody's orphan and not among those that a tree's end ends.
    #[test]
    fn who_is_detached_is_left_alone() {
        let mut book = tree();
        book.detached(4);
        book.died(1, 100, GRACE);
        assert_eq!(book.due(600), [3, 5]);
        assert_eq!((book.all(), book.all_living()), (vec![2, 3, 5], vec![2, 3, 4, 5]));
        assert!(book.is_detached(4) && book.knows(4));
        assert_eq!(book.died(4, 700, GRACE), Some((Owner::Nobody, 1)));
    }

    /// C15: an actor's children are counted while they live; who has left asks for no more.
    #[test]
    fn children_are_counted_and_who_has_left_may_not_ask() {
        let mut book = tree();
        assert_eq!(book.count_children(Owner::Actor(1)), 2);
        book.died(4, 0, GRACE);
        assert_eq!(book.count_children(Owner::Actor(1)), 1);
        assert!(book.may_ask(1));
        book.left(1, 100, GRACE);
        assert!(!book.may_ask(1) && book.knows(1));
        assert_eq!(book.due(600), [3, 5]);
        assert_eq!(book.count_children(Owner::Actor(77)), 0);
    }

    /// C3: the death of an orphan does not lengthen the grace of those below it.
    #[test]
    fn a_second_death_does_not_lengthen_the_first_grace() {
        let mut book = tree();
        book.died(1, 100, GRACE);
        book.died(3, 300, GRACE);
        assert_eq!(book.due(600), [4, 5]);
    }

    /// An orphan that goes by itself is not killed; a stray belongs to nobody.
    #[test]
    fn who_left_in_time_is_not_killed() {
        let mut book = tree();
        book.died(1, 100, GRACE);
        book.died(4, 200, GRACE);
        book.died(5, 200, GRACE);
        assert_eq!(book.due(600), [3]);
        assert_eq!(book.died(77, 0, GRACE), None);
    }

    /// H18: an actor that has the process number of a dead one has none of that one's children, nor
    /// has a child that is gone a name any more, whoever has its process number.
    #[test]
    fn what_a_number_meant_before_is_forgotten() {
        let mut book = tree();
        assert_eq!(book.child_of(Owner::Actor(1), 0), Some(3));
        book.died(1, 100, GRACE);
        book.born(1, Owner::Root, 2, 6);
        assert_eq!(book.child_of(Owner::Actor(1), 0), None);
        assert_eq!(book.count_children(Owner::Actor(1)), 0);
        book.born(7, Owner::Actor(1), 0, 7);
        assert_eq!(book.died(3, 200, GRACE), Some((Owner::Nobody, 0)));
        assert_eq!(book.child_of(Owner::Actor(1), 0), Some(7));
        book.died(7, 200, GRACE);
        book.born(7, Owner::Actor(1), 1, 8);
        assert_eq!(book.child_of(Owner::Actor(1), 0), None);
        assert_eq!(book.child_of(Owner::Actor(1), 1), Some(7));
        assert_eq!(book.due(600), [4, 5], "who was below it is due all the same");
    }
}
