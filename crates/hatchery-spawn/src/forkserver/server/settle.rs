//! The strays of the dead: found, killed and reaped, before whoever waits is told that all is over.

use std::path::PathBuf;

use super::children::{children, processor_time};
use super::{Server, now};
use crate::forkserver::book::Owner;
use crate::forkserver::exited::Exited;
use crate::forkserver::settle::{Places, Says, Seen, Settling, Word};
use crate::forkserver::strays::{self, AmidExec};
use crate::forkserver::wire::{Answer, Left};
use crate::sys::{process, waitid};

/// The dead whose strays may live, and when to do something about them.
#[derive(Debug)]
pub(super) struct Strays {
    pub(super) settling: Settling<Told>,
    /// When to look for strays, and before when not.
    look_at: Option<u64>,
    look_not_before: u64,
    /// When to try again to remove the cgroups of the dead.
    clear_at: Option<u64>,
    /// How long strays are waited for.
    bound: u64,
}

impl Strays {
    pub(super) fn new(bound: u64) -> Self {
        let settling = Settling::new();
        Self { settling, look_at: None, look_not_before: 0, clear_at: None, bound }
    }
}

/// What is told about a dead child, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) owner: Owner,
    pub(super) exited: Exited,
    /// Its cgroup, if it was the last actor in there.
    pub(super) cgroup: Option<PathBuf>,
}

impl Server {
    /// A child is dead and reaped: its strays go too, unless they are to be kept, and then its owner is
    /// told.
    pub(super) fn settle_later(&mut self, (pid, mark): (i32, u64), keeps: bool, told: Told) {
        // Whoever owned those is not there to be told, and its number may be another's soon.
        for below in self.strays.settling.told_mut().filter(|told| told.owner == Owner::Actor(pid))
        {
            below.owner = Owner::Nobody;
        }
        // After the reap: the number leads to nobody but its group, and is nobody else's while that is.
        let left = Places {
            group: process::has_group(pid) && !self.programs.is_shared(pid),
            cgroup: told.cgroup.is_some(),
        };
        self.clear_later();
        if keeps {
            return self.say(Word::Settled { told, said: false, left: Vec::new(), group: None });
        }
        let until = now() + self.strays.bound;
        let due = self.strays.settling.died((pid, mark), left, until, told);
        self.kill_strays(due);
        self.look_soon();
    }

    /// A stray is dead and reaped: what it had started may have come to us.
    pub(super) fn stray_reaped(&mut self, pid: i32) {
        if self.strays.settling.reaped(pid) {
            self.look_soon();
        } else {
            // Of who lives, or had to be let go. They come in bursts.
            self.look_by(now() + UNAWAITED_PAUSE);
        }
    }

    /// One turn: look if it is time, ask who is left, tell who has settled.
    pub(super) fn settle_strays(&mut self) {
        if self.strays.look_at.is_some_and(|at| at <= now()) {
            self.strays.look_at = None;
            self.look();
        }
        if self.strays.clear_at.is_some_and(|at| at <= now()) {
            // What was killed in there is ours to reap, or was moved there and is somebody else's.
            self.strays.clear_at = (!self.confined.clear()).then(|| now() + CLEAR_PAUSE);
        }
        if self.strays.settling.is_waiting() {
            let confined = &self.confined;
            let in_cgroup = |told: &Told| {
                let path = told.cgroup.as_deref().filter(|path| confined.is_dying(path));
                path.is_some_and(|path| !strays::in_cgroup(path).is_empty())
            };
            self.strays.settling.ask(process::has_group, in_cgroup);
            for word in self.strays.settling.words(now()) {
                self.say(word);
            }
        }
    }

    /// When this has something to do again.
    pub(super) fn next_settling(&self) -> Option<u64> {
        let waits = self
            .strays
            .settling
            .next_deadline()
            .map(|(until, asks)| if asks { until.min(now() + ASK_PAUSE) } else { until });
        waits.into_iter().chain(self.strays.look_at).chain(self.strays.clear_at).min()
    }

    /// The tree goes down: whoever still listens is told what is known.
    pub(super) fn settle_all(&mut self) {
        for word in self.strays.settling.words(u64::MAX) {
            let Word::Settled { mut told, said, .. } = word else { continue };
            // Whoever is left is ended before this process is.
            told.cgroup = None;
            self.say(Word::Settled { told, said, left: Vec::new(), group: None });
        }
    }

    /// Cgroups without actors are removed when nobody is in them any more.
    pub(super) fn clear_later(&mut self) {
        if self.confined.has_dying() {
            self.strays.clear_at.get_or_insert(now() + CLEAR_PAUSE);
        }
    }

    fn look_soon(&mut self) {
        self.look_by(self.strays.look_not_before);
    }

    fn look_by(&mut self, at: u64) {
        self.strays.look_at = self.strays.look_at.into_iter().chain([at]).min();
    }

    /// Looks for strays among our children. Takes time by their number, so a tenth of our time at most
    /// goes into it: a crowd that dies together is looked at once.
    fn look(&mut self) {
        let since = processor_time();
        let (mut new, mut ended, mut amid) = (Vec::new(), Vec::new(), false);
        for pid in children() {
            if self.book.knows(pid) || self.strays.settling.knows(pid) {
                continue;
            }
            match strays::says(pid, &self.tree) {
                Ok((group, says)) => {
                    // Who hides what it is in the group of a child that lives is that one's.
                    let of_living = self.book.mark_of(group).filter(|_| says == Says::Closed);
                    let says = of_living.map_or(says, Says::Mark);
                    new.push(Seen { pid, group, says });
                }
                Err(AmidExec) => amid = true,
            }
            // What it had started may have come to us after the list was read.
            if matches!(waitid::peek_at(pid), Ok(Some(_))) {
                new.pop_if(|seen| seen.pid == pid);
                ended.push(pid);
            }
        }
        amid |= !ended.is_empty();
        let lives = |mark| self.book.has_mark(mark) || self.programs.keeps(mark);
        let due = self.strays.settling.looked(&new, amid, lives);
        self.kill_strays(due);
        ended.into_iter().for_each(|pid| self.reap_one(pid));
        let cost = processor_time().saturating_sub(since);
        self.strays.look_not_before = now() + (LOOK_PAUSE * cost).min(LOOK_PAUSE_MOST);
        if amid {
            self.look_by(self.strays.look_not_before.max(now() + AMID_PAUSE));
        }
    }

    fn kill_strays(&mut self, due: Vec<i32>) {
        for pid in due {
            if process::kill_or_refused(pid) && !self.is_ending(pid) {
                self.strays.settling.refused(pid);
            }
        }
    }

    /// Whether it ends without our signal: its cgroup was killed. Listed there first, exiting second: the
    /// list hides who has begun its exit.
    fn is_ending(&self, pid: i32) -> bool {
        let cgroups = self.strays.settling.told().filter_map(|told| told.cgroup.as_deref());
        let mut dying = cgroups.filter(|path| self.confined.is_dying(path));
        dying.any(|path| strays::in_cgroup(path).contains(&pid)) || strays::is_exiting(pid)
    }

    fn say(&mut self, word: Word<Told>) {
        let (told, settled) = match word {
            Word::Dead(told) => (told, None),
            Word::Settled { told, said, mut left, group } => {
                left.extend(group.into_iter().flat_map(strays::in_group));
                if let Some(path) = &told.cgroup {
                    left.extend(strays::in_cgroup(path));
                }
                let left: Vec<Left> = left.into_iter().filter_map(strays::describe).collect();
                (told, Some((said, left)))
            }
        };
        let number = told.exited.number;
        for fd in self.sockets_of(told.owner) {
            match &settled {
                Some((false, left)) if left.is_empty() => {
                    let exited = Exited { settled: true, ..told.exited.clone() };
                    self.answer(fd, Answer::Exited(exited), None);
                }
                None | Some((false, _)) => {
                    self.answer(fd, Answer::Exited(told.exited.clone()), None);
                }
                Some((true, _)) => {}
            }
            if let Some((said, left)) = &settled
                && (*said || !left.is_empty())
            {
                self.answer(fd, Answer::Settled { number, left: left.clone() }, None);
            }
        }
    }
}

/// How much longer than a look the time until the next one is, by the processor time of the look; and
/// how much that is at most, for whoever waits.
const LOOK_PAUSE: u64 = 9;
const LOOK_PAUSE_MOST: u64 = 50_000_000;
/// How long a look waits for further deaths if nobody waits for it.
const UNAWAITED_PAUSE: u64 = 20_000_000;
/// An exec takes microseconds between the old environment and the new one.
const AMID_PAUSE: u64 = 1_000_000;
/// How often a group or a cgroup is asked for: who dies in there may be another's child.
const ASK_PAUSE: u64 = 2_000_000;
/// How often it is tried to remove a cgroup that somebody is in, or that the kernel holds.
const CLEAR_PAUSE: u64 = 5_000_000;
