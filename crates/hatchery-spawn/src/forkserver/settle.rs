//! Who is dead, and whether all is gone that it had started by itself (C1). Pure.
//!
//! A stray becomes the forkserver's child when its parent dies, so it is seen when the children are
//! looked at after that death. Each death of a stray may bring others, so a child has settled when its
//! group is empty, no stray of it lives, and a look after the last of these deaths has found nobody.
//!
//! `T` is what is told about a dead child, and to whom.

use std::collections::BTreeMap;

/// The dead whose strays may live, and the strays that have become the forkserver's children.
#[derive(Debug)]
pub(crate) struct Settling<T> {
    dead: Vec<Dead<T>>,
    strays: BTreeMap<i32, Stray>,
}

#[derive(Debug)]
struct Dead<T> {
    pid: i32,
    mark: u64,
    /// When nobody waits for its strays any more.
    until: u64,
    /// All children were looked at since its own death, and since the last of a stray that may have
    /// been its.
    looked: bool,
    /// Where somebody may be left.
    left: Places,
    /// It was told as dead.
    said: bool,
    told: T,
}

/// Where strays are found without a look at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) group: bool,
    pub(crate) cgroup: bool,
}

/// A stray that is the forkserver's child.
#[derive(Debug)]
struct Stray {
    /// Whose it is, as far as that is known: of one of these.
    of: Vec<u64>,
    /// It can't be killed.
    refused: bool,
}

/// What a look has shown of a stray that was not known before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) pid: i32,
    pub(crate) group: i32,
    pub(crate) says: Says,
}

/// What its environment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Says {
    /// Whose it is.
    Mark(u64),
    Nothing,
    /// It is another user's: nobody may read that.
    Closed,
}

/// What is to be told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Word<T> {
    /// It is dead; strays of it are still to end.
    Dead(T),
    /// Nothing of it is left but those, which can't be ended. `group`: somebody is in its group, and
    /// may be none of them.
    Settled { told: T, said: bool, left: Vec<i32>, group: Option<i32> },
}

impl<T> Settling<T> {
    pub(crate) fn new() -> Self {
        Self { dead: Vec::new(), strays: BTreeMap::new() }
    }

    /// A child is dead and reaped. Gives back who is to be killed with it.
    pub(crate) fn died(
        &mut self,
        (pid, mark): (i32, u64),
        left: Places,
        until: u64,
        told: T,
    ) -> Vec<i32> {
        self.dead.push(Dead { pid, mark, until, looked: false, left, said: false, told });
        let strays = self.strays.iter().filter(|(_, stray)| stray.of.contains(&mark));
        strays.map(|(pid, _)| *pid).collect()
    }

    /// Strays with those marks are of this child's from now on.
    pub(crate) fn hand_over(&mut self, marks: &[u64], to: u64) {
        let is_of = |stray: &&mut Stray| stray.of.iter().any(|mark| marks.contains(mark));
        self.strays.values_mut().filter(is_of).for_each(|stray| stray.of = vec![to]);
    }

    /// Whether this stray was seen before.
    pub(crate) fn knows(&self, pid: i32) -> bool {
        self.strays.contains_key(&pid)
    }

    /// A child is reaped that nobody asked for: what it had started may have come to us. Says whether
    /// somebody waits for that to be looked at.
    pub(crate) fn reaped(&mut self, pid: i32) -> bool {
        let of = self.strays.remove(&pid).map_or_else(Vec::new, |stray| stray.of);
        let mut awaited = false;
        for dead in &mut self.dead {
            if of.is_empty() || of.contains(&dead.mark) {
                dead.looked = false;
                awaited = true;
            }
        }
        awaited
    }

    /// All children were looked at; those were new, and some may have shown nothing yet (`amid`).
    /// Gives back who is to be killed: the strays of nobody who lives.
    pub(crate) fn looked(
        &mut self,
        new: &[Seen],
        amid: bool,
        lives: impl Fn(u64) -> bool,
    ) -> Vec<i32> {
        let mut due = Vec::new();
        for seen in new {
            let of = self.marks_of(*seen);
            if !of.is_empty() && !of.iter().any(|mark| lives(*mark)) {
                due.push(seen.pid);
            }
            self.strays.insert(seen.pid, Stray { of, refused: false });
        }
        for dead in &mut self.dead {
            dead.looked |= !amid;
        }
        due
    }

    /// Its own word comes first. Else its group tells, and of who hides what it is the time at which it
    /// came to us: it is of one of those that have died since the last look, and told by each of them, as
    /// nobody would tell it otherwise.
    fn marks_of(&self, seen: Seen) -> Vec<u64> {
        if let Says::Mark(mark) = seen.says {
            return vec![mark];
        }
        let of_group = self.dead.iter().find(|dead| dead.pid == seen.group);
        match (of_group, seen.says) {
            (Some(dead), _) => vec![dead.mark],
            (None, Says::Closed) => {
                self.dead.iter().filter(|dead| !dead.looked).map(|dead| dead.mark).collect()
            }
            (None, Says::Mark(_) | Says::Nothing) => Vec::new(),
        }
    }

    /// A stray can't be killed: it has other rights.
    pub(crate) fn refused(&mut self, pid: i32) {
        if let Some(stray) = self.strays.get_mut(&pid) {
            stray.refused = true;
        }
    }

    /// Asks for each of the dead whether somebody is left in its group and its cgroup.
    pub(crate) fn ask(&mut self, group: impl Fn(i32) -> bool, cgroup: impl Fn(&T) -> bool) {
        for dead in &mut self.dead {
            dead.left.group &= dead.left.group && group(dead.pid);
            dead.left.cgroup &= dead.left.cgroup && cgroup(&dead.told);
        }
    }

    /// What the dead are told with.
    pub(crate) fn told(&self) -> impl Iterator<Item = &T> {
        self.dead.iter().map(|dead| &dead.told)
    }

    /// The same, to be changed.
    pub(crate) fn told_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.dead.iter_mut().map(|dead| &mut dead.told)
    }

    /// Whether there are dead that have not settled.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.dead.is_empty()
    }

    /// When the first of them is no longer waited for, and whether somebody has to be asked for again
    /// and again until then, as nobody tells of it.
    pub(crate) fn next_deadline(&self) -> Option<(u64, bool)> {
        let until = self.dead.iter().map(|dead| dead.until).min()?;
        Some((until, self.dead.iter().any(|dead| dead.left.group || dead.left.cgroup)))
    }

    /// All that is to be told now.
    pub(crate) fn words(&mut self, now: u64) -> Vec<Word<T>>
    where
        T: Clone,
    {
        let mut words = Vec::new();
        for mut dead in std::mem::take(&mut self.dead) {
            let own = || self.strays.iter().filter(|(_, stray)| stray.of.contains(&dead.mark));
            let dying = own().any(|(_, stray)| !stray.refused);
            // Whoever can't be ended is in there, and stays.
            let is_refused = own().next().is_some() && !dying;
            let is_empty = !dying && !dead.left.cgroup && (!dead.left.group || is_refused);
            if (dead.looked && is_empty) || dead.until <= now {
                let left: Vec<i32> = own().map(|(pid, _)| *pid).collect();
                let group = (dead.left.group && left.is_empty()).then_some(dead.pid);
                words.push(Word::Settled { told: dead.told, said: dead.said, left, group });
                continue;
            }
            if dead.looked && !dead.said {
                dead.said = true;
                words.push(Word::Dead(dead.told.clone()));
            }
            self.dead.push(dead);
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: Places = Places { group: false, cgroup: false };

    fn settled(told: &'static str) -> Vec<Word<&'static str>> {
        vec![Word::Settled { told, said: false, left: vec![], group: None }]
    }

    fn stray(pid: i32, group: i32, says: Says) -> Seen {
        Seen { pid, group, says }
    }

    fn nobody(_: u64) -> bool {
        false
    }

    /// A child without strays is told once, after the first look.
    #[test]
    fn who_leaves_nobody_has_settled_at_the_first_look() {
        let mut settling = Settling::new();
        assert!(settling.died((1, 10), EMPTY, 100, "one").is_empty());
        assert!(settling.words(0).is_empty(), "nobody has looked");
        assert!(settling.looked(&[], false, nobody).is_empty());
        assert_eq!(settling.words(0), settled("one"));
        assert!(!settling.is_waiting());
    }

    /// C1: each death may bring others; the last look has found nobody.
    #[test]
    fn strays_of_strays_are_waited_for() {
        let mut settling = Settling::new();
        settling.died((1, 10), EMPTY, 100, "one");
        assert_eq!(settling.looked(&[stray(5, 5, Says::Mark(10))], false, nobody), [5]);
        assert_eq!(settling.words(0), [Word::Dead("one")]);
        assert!(settling.words(0).is_empty(), "told once");
        assert!(settling.reaped(5));
        assert!(settling.words(0).is_empty(), "nobody has looked since");
        assert_eq!(settling.looked(&[stray(6, 6, Says::Mark(10))], false, nobody), [6]);
        assert!(settling.words(0).is_empty());
        settling.reaped(6);
        settling.looked(&[], false, nobody);
        let word = Word::Settled { told: "one", said: true, left: vec![], group: None };
        assert_eq!(settling.words(0), [word]);
    }

    /// Strays that were let go while their actor lived are known when it dies, and killed with it; those
    /// of others are left alone.
    #[test]
    fn strays_die_with_their_own_actor() {
        let mut settling = Settling::new();
        let two = [stray(5, 5, Says::Mark(10)), stray(6, 6, Says::Mark(20))];
        assert!(settling.looked(&two, false, |_| true).is_empty());
        assert!(settling.knows(5) && !settling.reaped(77));
        assert_eq!(settling.died((1, 10), EMPTY, 100, "one"), [5]);
        settling.looked(&[], false, |mark| mark == 20);
        assert_eq!(settling.words(0), [Word::Dead("one")]);
        assert!(!settling.reaped(6), "it was another's");
        assert!(settling.reaped(5));
    }

    /// Somebody amid an exec is nobody yet.
    #[test]
    fn who_shows_nothing_is_looked_at_again() {
        let mut settling = Settling::new();
        settling.died((1, 10), EMPTY, 100, "one");
        settling.looked(&[], true, nobody);
        assert!(settling.words(0).is_empty());
        settling.looked(&[], false, nobody);
        assert_eq!(settling.words(0), settled("one"));
    }

    /// The group is asked for until it is empty: who in it was killed may be another's child.
    #[test]
    fn a_group_is_waited_for() {
        let mut settling = Settling::new();
        let left = Places { group: true, cgroup: false };
        settling.died((1, 10), left, 100, "one");
        settling.looked(&[], false, nobody);
        settling.ask(|pid| pid == 1, |_| false);
        assert_eq!(settling.words(0), [Word::Dead("one")]);
        assert_eq!(settling.next_deadline(), Some((100, true)));
        settling.ask(|_| false, |_| false);
        let word = Word::Settled { told: "one", said: true, left: vec![], group: None };
        assert_eq!(settling.words(0), [word]);
    }

    /// What can't be ended is named at once; what hides is its whose group it is in, or who was the
    /// only one to die.
    #[test]
    fn who_can_not_be_killed_is_named_and_not_waited_for() {
        for (group, other) in [(1, false), (1, true), (5, false)] {
            let mut settling = Settling::new();
            let left = Places { group: group == 1, cgroup: false };
            settling.died((1, 10), left, 100, "one");
            if other {
                settling.died((2, 20), EMPTY, 100, "two");
            }
            assert_eq!(settling.looked(&[stray(5, group, Says::Closed)], false, nobody), [5]);
            settling.refused(5);
            let words = settling.words(0);
            let word = Word::Settled { told: "one", said: false, left: vec![5], group: None };
            assert_eq!(words[0], word);
            assert_eq!(words.len(), if other { 2 } else { 1 });
        }
    }

    /// C1: who hides and may be of two that have died is told by both, and ended; who only says nothing is
    /// nobody's.
    #[test]
    fn who_hides_and_may_be_of_two_is_told_by_both() {
        let mut settling = Settling::new();
        settling.died((1, 10), EMPTY, 100, "one");
        settling.died((2, 20), EMPTY, 100, "two");
        let hidden = [stray(5, 5, Says::Closed), stray(6, 6, Says::Nothing)];
        assert_eq!(settling.looked(&hidden, false, nobody), [5]);
        assert_eq!(settling.words(0), [Word::Dead("one"), Word::Dead("two")]);
        settling.refused(5);
        let word = |told| Word::Settled { told, said: true, left: vec![5], group: None };
        assert_eq!(settling.words(0), [word("one"), word("two")]);
    }

    /// Who hides and has come since the last look is none of those who had settled before.
    #[test]
    fn who_hides_is_of_no_one_who_was_looked_after() {
        let mut settling = Settling::new();
        settling.died((1, 10), Places { group: true, cgroup: false }, 100, "one");
        settling.looked(&[], false, nobody);
        settling.died((2, 20), EMPTY, 100, "two");
        assert_eq!(settling.looked(&[stray(5, 5, Says::Closed)], false, nobody), [5]);
        settling.refused(5);
        let word = Word::Settled { told: "two", said: false, left: vec![5], group: None };
        assert_eq!(settling.words(0), [Word::Dead("one"), word]);
    }

    /// C2: nobody is waited for longer than the bound, and then it is named.
    #[test]
    fn the_wait_has_an_end() {
        let mut settling = Settling::new();
        settling.died((1, 10), Places { group: true, cgroup: true }, 100, "one");
        settling.looked(&[stray(5, 5, Says::Mark(10))], false, nobody);
        assert_eq!(settling.words(99), [Word::Dead("one")]);
        let word = Word::Settled { told: "one", said: true, left: vec![5], group: None };
        assert_eq!(settling.words(100), [word]);
        settling.died((2, 20), Places { group: true, cgroup: false }, 100, "two");
        settling.looked(&[], false, nobody);
        let word = Word::Settled { told: "two", said: false, left: vec![], group: Some(2) };
        assert_eq!(settling.words(100), [word]);
    }
}
