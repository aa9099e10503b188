//! Programs: when they stop, and what they leave in their group when they end.

use std::collections::BTreeMap;

use super::{Server, now};
use crate::forkserver::manner::{Manner, Note};
use crate::forkserver::wire::Answer;
use crate::sys::waitid;

/// The living programs and how each is treated.
#[derive(Debug, Default)]
pub(super) struct Programs {
    manners: BTreeMap<i32, Manner>,
    /// Those that have ended and whose groups may go on until then. Nobody reaps them before, so that
    /// their numbers stay the groups'.
    lingering: BTreeMap<i32, u64>,
}

impl Programs {
    pub(super) fn born(&mut self, pid: i32, manner: Manner) {
        self.manners.insert(pid, manner);
    }

    pub(super) fn died(&mut self, pid: i32) {
        self.manners.remove(&pid);
        self.lingering.remove(&pid);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.manners.is_empty()
    }

    /// Whether it has ended and is not to be reaped yet.
    pub(super) fn lingers(&self, pid: i32) -> bool {
        self.lingering.contains_key(&pid)
    }

    pub(super) fn any_lingers(&self) -> bool {
        !self.lingering.is_empty()
    }

    /// When the next group has had its time.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.lingering.values().min().copied()
    }

    /// How it is treated, if it is a program.
    pub(super) fn manner(&self, pid: i32) -> Option<&Manner> {
        self.manners.get(&pid)
    }
}

impl Server {
    /// Whether a program that has ended stays a zombie for now, as what it left in its group has not
    /// had its time. Its spawner is told when that begins.
    pub(super) fn let_linger(&mut self, pid: i32) -> bool {
        let linger = self.programs.manner(pid).map_or(0, |manner| manner.linger);
        let until = self.programs.lingering.get(&pid).copied();
        if linger == 0 || until.is_some_and(|until| until <= now()) || !waitid::has_living(pid) {
            self.programs.lingering.remove(&pid);
            return false;
        }
        if until.is_none() {
            self.programs.lingering.insert(pid, now().saturating_add(linger));
            self.note(pid, Note::Ended);
        }
        true
    }

    /// Looks whether anybody is left in the groups of those that linger. The end of each that stayed
    /// in one is told to us.
    pub(super) fn look_at_lingering(&mut self) {
        let lingering: Vec<i32> = self.programs.lingering.keys().copied().collect();
        lingering.into_iter().for_each(|pid| self.reap_one(pid));
    }

    /// What a program has left has had its time, also if it has not ended yet.
    pub(super) fn settle(&mut self, pid: i32) {
        if let Some(manner) = self.programs.manners.get_mut(&pid) {
            manner.linger = 0;
        }
        if self.programs.lingers(pid) {
            self.reap_one(pid);
        }
    }

    /// Tells of programs that have stopped or go on; `None` looks at all of them.
    pub(super) fn look_at_stops(&mut self, pid: Option<i32>) {
        if self.programs.is_empty() {
            return;
        }
        while let Ok(Some((halted, note))) = waitid::take_stop(pid) {
            self.note(halted, note);
        }
    }

    fn note(&mut self, pid: i32, note: Note) {
        let Some((owner, number)) = self.book.asked_for(pid) else { return };
        for fd in self.sockets_of(owner) {
            self.answer(fd, Answer::Noted { number, note }, None);
        }
    }
}
