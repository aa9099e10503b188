//! Programs: when they stop, and what they leave in their group when they end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;
use nix::sys::termios::Termios;
use nix::unistd::Pid;

use super::children::children;
use super::foreground::Foreground;
use super::{CallFailed, Server, now};
use crate::forkserver::book::Owner;
use crate::forkserver::manner::{Manner, Note};
use crate::forkserver::strays::{self, AmidExec};
use crate::forkserver::wire::Answer;
use crate::sys::{process, waitid};

/// The living programs and how each is treated.
#[derive(Debug, Default)]
pub(super) struct Programs {
    manners: BTreeMap<i32, Manner>,
    /// Those that have ended and whose groups may go on until then. Nobody reaps them before, so that
    /// their numbers stay the groups'.
    lingering: BTreeMap<i32, u64>,
    /// The marks of those that have ended and left what may go on, and the actor with which that ends;
    /// `None` is the root.
    kept: BTreeMap<u64, Option<i32>>,
    /// The sessions of those that are left alone.
    sessions: BTreeSet<i32>,
    /// Those that were put into the group of another child of ours, and which.
    joined: BTreeMap<i32, i32>,
    /// Who has the terminal, or will have it again when it goes on.
    pub(super) foreground: Option<Foreground>,
    /// How the terminal is set before the program that is about to have it.
    pub(super) before_foreground: Option<Termios>,
}

impl Programs {
    pub(super) fn born(&mut self, pid: i32, manner: Manner) {
        self.manners.insert(pid, manner);
    }

    pub(super) fn died(&mut self, pid: i32) {
        self.manners.remove(&pid);
        self.lingering.remove(&pid);
        self.joined.remove(&pid);
    }

    /// Whether others were put into that group, and one of them lives or is not reaped.
    pub(super) fn is_shared(&self, group: i32) -> bool {
        self.joined.values().any(|of| *of == group)
    }

    /// Those that were put into that group.
    fn members(&self, group: i32) -> impl Iterator<Item = i32> {
        self.joined.iter().filter(move |(_, of)| **of == group).map(|(member, _)| *member)
    }

    /// The group that a program was put into, if it is the last of those.
    pub(super) fn last_of(&self, pid: i32) -> Option<i32> {
        let group = self.joined.get(&pid)?;
        let others = self.joined.iter().any(|(other, of)| of == group && *other != pid);
        (!others).then_some(*group)
    }

    /// What was kept for an actor that has ended goes with it: by those marks.
    pub(super) fn owner_died(&mut self, pid: i32) -> Vec<u64> {
        let of_it = |owner: &Option<i32>| *owner == Some(pid);
        let marks = self.kept.iter().filter(|(_, owner)| of_it(owner)).map(|(mark, _)| *mark);
        let marks = marks.collect();
        self.kept.retain(|_, owner| !of_it(owner));
        marks
    }

    /// Whether what has that mark may go on though its program has ended.
    pub(super) fn keeps(&self, mark: u64) -> bool {
        self.kept.contains_key(&mark)
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
    /// A program is there: what its manner asks of us begins.
    pub(super) fn program_born(&mut self, pid: i32, manner: Manner) {
        if manner.detach {
            self.book.detached(pid);
            let is_there = |session: &i32| {
                let is_in = |pid: &i32| session_of(*pid) == *session;
                self.book.knows(*session) || children().iter().any(is_in)
            };
            self.programs.sessions.retain(is_there);
            self.programs.sessions.insert(pid);
        } else {
            self.book.asks_first(pid, manner.stop);
        }
        if manner.foreground {
            self.in_foreground(pid);
        }
        // A group of nobody of ours, as this process's own, is not ours to end.
        let is_ours = |group: &i32| self.book.knows(*group) || self.programs.is_shared(*group);
        if let Some(group) = manner.group.filter(is_ours) {
            self.programs.joined.insert(pid, group);
        }
        self.programs.born(pid, manner);
    }

    /// Whether a child of ours is left alone at the end: a program that was asked to be, and what it has
    /// started, which is in its session or has kept its variable.
    pub(super) fn is_left_alone(&self, pid: i32) -> bool {
        self.book.is_detached(pid)
            || (!self.programs.sessions.is_empty()
                && !self.book.knows(pid)
                && (self.programs.sessions.contains(&session_of(pid))
                    || strays::is_detached(pid.cast_unsigned(), &self.tree)))
    }

    /// Whether a program may be treated like that. `EPERM`: whoever is bound would leave its bounds.
    pub(super) fn may_be_treated_so(
        &mut self,
        above: Option<i32>,
        manner: &Manner,
    ) -> Result<(), CallFailed> {
        if manner.detach && above.is_some_and(|pid| self.confined.binds(pid)) {
            return Err(("a detached program of a confined actor", Errno::EPERM));
        }
        if let (Some(group), Some(pid)) = (manner.group, above) {
            let own = |child: i32| {
                let asked = self.book.asked_for(child);
                asked.is_some_and(|(owner, _)| owner == Owner::Actor(pid))
            };
            // What is in a group ends with its last: nobody ends another's so.
            let is_own = group == pid || own(group) || self.programs.members(group).any(own);
            if !is_own || self.confined.binds(pid) {
                return Err(("another's process group for a program of an actor", Errno::EPERM));
            }
        }
        if manner.foreground { self.may_have_terminal() } else { Ok(()) }
    }

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

    /// Whether what a program leaves behind, which has ended, may go on after it. It is remembered as long
    /// as there is anybody.
    pub(super) fn keeps_strays(&mut self, pid: i32) -> bool {
        if !self.programs.manner(pid).is_some_and(|manner| manner.keep_strays) {
            return false;
        }
        let marks: BTreeSet<u64> = self.stray_marks().collect();
        self.programs.kept.retain(|mark, _| marks.contains(mark));
        let (mark, asked) = (self.book.mark_of(pid), self.book.asked_for(pid));
        if let (Some(mark), Some((owner, _))) = (mark.filter(|mark| marks.contains(mark)), asked) {
            match owner {
                Owner::Root => drop(self.programs.kept.insert(mark, None)),
                Owner::Actor(actor) => drop(self.programs.kept.insert(mark, Some(actor))),
                // Its time is over.
                Owner::Nobody => return false,
            }
        }
        true
    }

    /// The marks of what is our child and nobody asked for.
    fn stray_marks(&self) -> impl Iterator<Item = u64> {
        let strays = children().into_iter().filter(|pid| !self.book.knows(*pid));
        strays.filter_map(|pid| {
            // Amid an exec it has none for microseconds.
            let until = Instant::now() + strays::EXEC_BOUND;
            loop {
                match strays::mark_of(pid.cast_unsigned(), &self.tree) {
                    Err(AmidExec) if Instant::now() < until => std::thread::yield_now(),
                    mark => return mark.ok().flatten(),
                }
            }
        })
    }

    /// Asks those to end whose time has come: all of a group, as a terminal would.
    pub(super) fn ask_to_end(&mut self) {
        for (pid, signal) in self.book.take_asked() {
            process::kill_own_child(pid, true, signal.into());
            process::kill_own_child(pid, true, libc::SIGCONT);
        }
    }

    /// Whether it is part of a program that was asked to end and still has time for it.
    pub(super) fn has_time(&self, pid: i32) -> bool {
        let now = now();
        if self.book.knows(pid) {
            return self.book.has_time(pid, now);
        }
        let group = nix::unistd::getpgid(Some(Pid::from_raw(pid))).map_or(0, Pid::as_raw);
        self.book.has_time(group, now)
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
        if matches!(note, Note::Stopped(_)) {
            self.take_terminal_back(pid, true);
        }
        let Some((owner, number)) = self.book.asked_for(pid) else { return };
        for fd in self.sockets_of(owner) {
            self.answer(fd, Answer::Noted { number, note }, None);
        }
    }
}

fn session_of(pid: i32) -> i32 {
    nix::unistd::getsid(Some(Pid::from_raw(pid))).map_or(0, Pid::as_raw)
}
