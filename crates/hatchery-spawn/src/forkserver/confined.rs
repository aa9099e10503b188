//! Who is confined, and how; which cgroups there are, and who is in them.
//!
//! An actor may ask for children, and the forkserver has rights that the actor may have lost. So
//! whatever bounds an actor bounds its children too, on top of what it asks for them (C15).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::book::Owner;
use super::wire::Request;
use crate::confine::{Confinement, cgroup, limits_below};

/// The bounds of one child.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bound {
    confine: Confinement,
    limits: Vec<(u32, u64, u64)>,
    /// Where it is put; its own or that of the actor above.
    pub(crate) cgroup: Option<PathBuf>,
    /// Made for it.
    own_cgroup: bool,
    /// How many of its cgroup had been killed for want of memory before it was there, or alone.
    oom_kills: u64,
}

/// The bounds of all living children that have any.
#[derive(Debug, Default)]
pub(crate) struct Confined {
    living: BTreeMap<i32, Bound>,
    /// Cgroups whose own actor is dead and that others live in, by who had asked for that actor and
    /// what it called it: its word that kills them all may be on its way.
    survived: Vec<((Owner, u64), PathBuf)>,
    /// Cgroups whose last actor is dead, until nothing is in them and they are removed.
    dying: Vec<PathBuf>,
}

impl Confined {
    /// What a child will be bound by, which replaces what the request asked for. Makes its cgroup,
    /// under that name; then either [`Self::born`] or [`Self::unborn`] follows.
    pub(crate) fn bind(
        &self,
        above: Option<i32>,
        request: &mut Request,
        name: &str,
    ) -> Result<Bound, (&'static str, Errno)> {
        let above = above.and_then(|pid| self.living.get(&pid));
        let mut limits = Vec::new();
        let (asks_nice, asks_cpus) =
            (request.confine.nice.is_some(), request.confine.cpus.is_some());
        if let Some(above) = above {
            let own = std::mem::take(&mut request.confine);
            let both = own.below(&above.confine);
            request.confine = both.map_err(|errno| ("a cgroup in a cgroup", errno))?;
            request.nice =
                request.nice.map(|nice| above.confine.nice.map_or(nice, |it| it.max(nice)));
            request.limits = limits_below(&request.limits, &above.limits);
            limits.clone_from(&above.limits);
        }
        limits.extend(&request.limits);
        let mut bound = Bound {
            confine: request.confine.clone(),
            limits,
            cgroup: above.and_then(|above| above.cgroup.clone()),
            own_cgroup: false,
            oom_kills: 0,
        };
        if above.is_some() {
            // What it doesn't ask for it has from its spawner, which is bound, and may be more so by now.
            request.confine.nice = request.confine.nice.filter(|_| asks_nice);
            request.confine.cpus = request.confine.cpus.take().filter(|_| asks_cpus);
        }
        if let Some(wanted) = &request.confine.cgroup {
            bound.cgroup = Some(wanted.make(name)?);
            bound.own_cgroup = true;
        } else if let Some(above) = above {
            // So that it isn't asked for again further down.
            bound.confine.cgroup.clone_from(&above.confine.cgroup);
        }
        bound.oom_kills = bound.cgroup.as_deref().map_or(0, cgroup::oom_kills);
        Ok(bound)
    }

    /// Whether that child is bound by anything.
    pub(crate) fn binds(&self, pid: i32) -> bool {
        self.living.contains_key(&pid)
    }

    /// How many filters of system calls a living child was born with, and whether landlock.
    pub(crate) fn put_on(&self, pid: i32) -> (usize, bool) {
        let confine = self.living.get(&pid).map(|bound| &bound.confine);
        confine.map_or((0, false), |it| (it.filters.len(), !it.files.is_empty()))
    }

    /// The child lives.
    pub(crate) fn born(&mut self, pid: i32, bound: Bound) {
        let is_bound = !bound.confine.is_empty() || !bound.limits.is_empty();
        if is_bound {
            self.living.insert(pid, bound);
        }
    }

    /// No child came of it.
    pub(crate) fn unborn(&mut self, bound: Bound) {
        if let (Some(path), true) = (bound.cgroup, bound.own_cgroup) {
            self.dying.push(path);
            self.clear();
        }
    }

    /// Whether the kernel has killed it for the memory of its cgroup. Asked once, after its SIGKILL
    /// and before [`Self::died`].
    pub(crate) fn ran_out_of_memory(&mut self, pid: i32) -> bool {
        let Some(bound) = self.living.get(&pid) else { return false };
        let Some(path) = bound.cgroup.clone() else { return false };
        let is_limited = bound.confine.cgroup.as_ref().is_some_and(|it| it.memory.is_some());
        let was_killed = cgroup::oom_kills(&path) > bound.oom_kills;
        if was_killed && !is_limited {
            // It was killed alone, by a limit further up: that says nothing about the others. With a
            // limit of their own all of them are killed at once.
            let others = self.living.values_mut().filter(|it| it.cgroup.as_ref() == Some(&path));
            others.for_each(|other| other.oom_kills += 1);
        }
        was_killed
    }

    /// A child is dead that was asked for like that. If it was the last of its cgroup, all that is
    /// left in there goes too: gives back that cgroup if somebody is left.
    pub(crate) fn died(&mut self, pid: i32, asked: (Owner, u64)) -> Option<PathBuf> {
        self.survived.retain(|((owner, _), _)| *owner != Owner::Actor(pid));
        let bound = self.living.remove(&pid)?;
        let path = bound.cgroup?;
        if !self.living.values().any(|bound| bound.cgroup.as_ref() == Some(&path)) {
            self.survived.retain(|(_, survived)| *survived != path);
            self.dying.push(path.clone());
            let _all_gone = self.clear();
            return self.is_dying(&path).then_some(path);
        }
        if bound.own_cgroup {
            self.survived.push((asked, path));
        }
        None
    }

    /// Whether a cgroup without actors is still there.
    pub(crate) fn is_dying(&self, path: &Path) -> bool {
        self.dying.iter().any(|dying| dying == path)
    }

    /// Whether there are such cgroups.
    pub(crate) fn has_dying(&self) -> bool {
        !self.dying.is_empty()
    }

    /// A child is killed: so is all that is in a cgroup of its own, which else would outlive it until
    /// the last actor in there is gone, or for ever if it can't die.
    pub(crate) fn kill(&self, pid: i32) {
        if let Some(Bound { own_cgroup: true, cgroup: Some(path), .. }) = self.living.get(&pid) {
            cgroup::kill(path);
        }
    }

    /// The same for one that was dead before the word came.
    pub(crate) fn kill_survivors(&self, asked: (Owner, u64)) {
        for (_, path) in self.survived.iter().filter(|(by, _)| *by == asked) {
            cgroup::kill(path);
        }
    }

    /// Kills what is left in cgroups without actors and removes those that are empty; says whether
    /// all are gone.
    pub(crate) fn clear(&mut self) -> bool {
        self.dying.retain(|path| {
            cgroup::kill(path);
            !cgroup::remove(path)
        });
        self.dying.is_empty()
    }

    /// Everybody goes.
    pub(crate) fn end(&mut self) -> bool {
        let all = std::mem::take(&mut self.living).into_values();
        self.dying.extend(all.filter_map(|bound| bound.cgroup));
        self.dying.sort();
        self.dying.dedup();
        self.clear()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::confine::Cgroup;

    /// A directory that stands for a cgroup with that many kills.
    struct Stand(PathBuf);

    impl Stand {
        fn new(name: &str) -> Self {
            let name = format!("hatchery-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn kills(&self, count: u64) {
            let events = format!("low 0\nmax 7\noom 1\noom_kill {count}\noom_group_kill 9\n");
            fs::write(self.0.join("memory.events"), events).unwrap();
        }

        fn bound(&self, memory: Option<u64>) -> Bound {
            let cgroup = Cgroup { memory, ..Cgroup::under("/") };
            let oom_kills = cgroup::oom_kills(&self.0);
            let confine = Confinement::new().cgroup(cgroup);
            Bound { confine, cgroup: Some(self.0.clone()), oom_kills, ..Bound::default() }
        }
    }

    /// A child of `above`, which asks for nothing and is put where that one is.
    fn born_below(confined: &mut Confined, above: i32, pid: i32) {
        let bound = confined.bind(Some(above), &mut Request::default(), "").unwrap();
        confined.born(pid, bound);
    }

    impl Drop for Stand {
        fn drop(&mut self) {
            let _left = fs::remove_dir_all(&self.0);
        }
    }

    /// C15, C2: the word that an actor is to be killed comes after its death, and is for all in its
    /// cgroup: as long as somebody lives there, and who gives it does.
    #[test]
    fn a_kill_that_comes_late_is_one_of_all_that_are_left() {
        let stand = Stand::new("survived");
        let kill = stand.0.join("cgroup.kill");
        let is_killed = |confined: &Confined, asked| {
            fs::write(&kill, "").unwrap();
            confined.kill_survivors(asked);
            fs::read_to_string(&kill).unwrap() == "1"
        };
        for (ends, is_kept) in [(77, true), (2, false), (9, false)] {
            let (asked, mut confined) = ((Owner::Actor(9), 5), Confined::default());
            confined.born(1, Bound { own_cgroup: true, ..stand.bound(None) });
            born_below(&mut confined, 1, 2);
            confined.died(1, asked);
            assert!(is_killed(&confined, asked) && !is_killed(&confined, (Owner::Actor(9), 6)));
            confined.died(ends, (Owner::Root, 1));
            assert_eq!(is_killed(&confined, asked), is_kept, "{ends}");
        }
    }

    /// Fault 17: all of a cgroup that has used up its memory are told so, and nobody who was born
    /// after that.
    #[test]
    fn all_of_a_cgroup_without_memory_are_told_so() {
        let stand = Stand::new("limited");
        let mut confined = Confined::default();
        confined.born(1, stand.bound(Some(1)));
        assert!(!confined.ran_out_of_memory(1), "a cgroup without that file has had no kills");
        stand.kills(0);
        born_below(&mut confined, 1, 2);
        assert!(!confined.ran_out_of_memory(1), "somebody else's SIGKILL");
        stand.kills(3);
        assert!(confined.ran_out_of_memory(1) && confined.ran_out_of_memory(2));
        born_below(&mut confined, 2, 3);
        assert!(!confined.ran_out_of_memory(3));
        assert!(!confined.ran_out_of_memory(77), "who is not confined");
    }

    /// Fault 17: a limit further up kills one alone; the next one's SIGKILL is somebody else's.
    #[test]
    fn who_is_killed_alone_for_want_of_memory_is_told_alone() {
        let stand = Stand::new("unlimited");
        stand.kills(5);
        let mut confined = Confined::default();
        confined.born(1, stand.bound(None));
        born_below(&mut confined, 1, 2);
        stand.kills(6);
        assert!(confined.ran_out_of_memory(1) && !confined.ran_out_of_memory(2));
        stand.kills(7);
        assert!(confined.ran_out_of_memory(2));
    }
}
