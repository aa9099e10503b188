//! What a child may not do: opt in, for each child alone, and never less than was asked for.
//!
//! Everything here is a step of the child's birth (see [`Step`](crate::Step)) or a call of the
//! forkserver. What the machine can't do fails the start, by the step's name; nothing is left out
//! silently. What a confined actor starts is confined as it is, on top of its own.

pub(crate) mod cgroup;
mod filter;

use std::path::{Path, PathBuf};

use nix::errno::Errno;

pub use cgroup::Cgroup;
pub use filter::{Instruction, SyscallFilter};

/// The bounds of one child. Only for processes; a thread shares its process's.
///
/// A later call for the file system or the calls adds a layer: what is done must be allowed by all
/// layers. A later nice value, user, set of processors or cgroup replaces the earlier one.
///
/// ```no_run
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use hatchery_spawn::{Access, Confinement, Spec};
///
/// let confinement = Confinement::new()
///     .nice(10)
///     .files([("/usr", Access::Execute), ("/var/lib/worker", Access::Write)])
///     .user(65534, 65534);
/// let spec = Spec::main("worker").confine(confinement);
/// # drop(spec); Ok(()) }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confinement {
    pub(crate) nice: Option<i32>,
    pub(crate) cpus: Option<Vec<u32>>,
    pub(crate) no_new_privs: bool,
    /// One landlock ruleset each.
    pub(crate) files: Vec<Vec<(PathBuf, Access)>>,
    /// One seccomp filter each.
    pub(crate) filters: Vec<SyscallFilter>,
    pub(crate) users: Vec<User>,
    pub(crate) cgroup: Option<Cgroup>,
}

/// Who a child is. What is not said is its spawner's; with a user alone, root's supplementary groups go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) groups: Option<Vec<u32>>,
}

impl User {
    /// The supplementary groups that are asked for. Root's are not left to whom it becomes, as std has it.
    pub(crate) fn groups_of(&self, real: u32) -> Option<&[u32]> {
        let none = || (self.uid.is_some() && real == 0).then_some(&[][..]);
        self.groups.as_deref().or_else(none)
    }
}

/// What may be done with a path and all below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Access {
    /// Files read, directories listed.
    Read,
    /// The same, and programs run. A program also needs its interpreter and its libraries.
    Execute,
    /// Read, and files and directories of any kind written, made, renamed and removed; no programs
    /// run.
    Write,
}

impl Confinement {
    /// No bounds yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Its nice value, −20 to 19. Lower than ours needs `CAP_SYS_NICE` or `RLIMIT_NICE`: without
    /// it the start fails with step `nice`, EACCES. Higher means that it also dies more slowly
    /// where processors are short: a teardown's budget holds for it all the same.
    #[must_use]
    pub fn nice(mut self, nice: i32) -> Self {
        self.nice = Some(nice);
        self
    }

    /// The processors it may run on, by number, 0 to 1023. The start fails with step `cpu
    /// affinity`, EINVAL, if none of them is there.
    #[must_use]
    pub fn cpus(mut self, cpus: impl IntoIterator<Item = u32>) -> Self {
        self.cpus = Some(cpus.into_iter().collect());
        self
    }

    /// No program that it runs has more rights than it: set-user-id bits and file capabilities
    /// don't count. Implied by [`files`](Self::files) and [`syscalls`](Self::syscalls).
    #[must_use]
    pub fn no_new_privs(mut self) -> Self {
        self.no_new_privs = true;
        self
    }

    /// The only paths, each with all below it, that it may open, list, run, write, make, rename or
    /// remove. Files that it was given open stay open to it; `stat` and `chdir` are not covered,
    /// nor is what no path leads to. A path that isn't there fails the start with step `landlock`,
    /// ENOENT.
    ///
    /// By landlock, version 3 or newer (Linux 6.2): without it the start fails with step
    /// `landlock`, EOPNOTSUPP or ENOSYS. On the exec backend our own image may always be run, but
    /// its interpreter and libraries are to be listed.
    #[must_use]
    pub fn files(mut self, allowed: impl IntoIterator<Item = (impl AsRef<Path>, Access)>) -> Self {
        let layer = allowed.into_iter().map(|(path, access)| (path.as_ref().to_owned(), access));
        self.files.push(layer.collect());
        self
    }

    /// A filter of its system calls, by seccomp. It is the last step before `main`, or before the
    /// exec, which it must then allow, together with all that a program's start needs.
    ///
    /// Fails the start with step `seccomp` if the kernel refuses it.
    #[must_use]
    pub fn syscalls(mut self, filter: SyscallFilter) -> Self {
        self.filters.push(filter);
        self
    }

    /// Another user and group, with no supplementary groups. Needs `CAP_SETUID` and `CAP_SETGID` of
    /// who asks: without them the start is refused before a process is made, with
    /// [`Right::Become`](crate::Right::Become).
    #[must_use]
    pub fn user(self, uid: u32, gid: u32) -> Self {
        self.user_with_groups(uid, gid, [])
    }

    /// The same with supplementary groups.
    #[must_use]
    pub fn user_with_groups(
        mut self,
        uid: u32,
        gid: u32,
        groups: impl IntoIterator<Item = u32>,
    ) -> Self {
        let groups = Some(groups.into_iter().collect());
        self.users = vec![User { uid: Some(uid), gid: Some(gid), groups }];
        self
    }

    /// A cgroup of its own, removed after its end with whatever still lives in it.
    #[must_use]
    pub fn cgroup(mut self, cgroup: Cgroup) -> Self {
        self.cgroup = Some(cgroup);
        self
    }

    /// Whether anything was asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What the kernel would not refuse but silently read as something else.
    pub(crate) fn check(&self) -> Result<(), (&'static str, Errno)> {
        if self.nice.is_some_and(|nice| !(-20..=19).contains(&nice)) {
            return Err(("setpriority", Errno::EINVAL));
        }
        // A number that stands for "unchanged".
        let unset = |user: &User| [user.uid, user.gid].contains(&Some(u32::MAX));
        if self.users.iter().any(unset) {
            return Err(("setresuid", Errno::EINVAL));
        }
        Ok(())
    }

    /// What a child is bound by that `above` has asked for: by both. The same bound for both stays
    /// one; a cgroup of its own below one is refused.
    pub(crate) fn below(mut self, above: &Self) -> Result<Self, Errno> {
        if above.is_empty() {
            return Ok(self);
        }
        if self.cgroup.is_some() && above.cgroup.is_some() {
            return Err(Errno::EPERM);
        }
        self.nice = self.nice.max(above.nice);
        self.cpus = match (self.cpus, &above.cpus) {
            (Some(own), Some(above)) => {
                Some(own.into_iter().filter(|cpu| above.contains(cpu)).collect())
            }
            (own, above) => own.or_else(|| above.clone()),
        };
        self.no_new_privs |= above.no_new_privs;
        // The outer ones first: that is the order in which a fork would have come to them.
        self.files.splice(0..0, above.files.iter().cloned());
        self.filters.splice(0..0, above.filters.iter().cloned());
        // Who the one above is, it may have changed since: the kernel says it (C17).
        Ok(self)
    }
}

/// The lower of both, where both limit a resource; what is not asked for is had from above as it is.
pub(crate) fn limits_below(
    own: &[(u32, u64, u64)],
    above: &[(u32, u64, u64)],
) -> Vec<(u32, u64, u64)> {
    let capped = |&(resource, soft, hard): &(u32, u64, u64)| {
        let cap = above.iter().filter(|(limited, ..)| *limited == resource).map(|(.., hard)| *hard);
        let cap = cap.min().unwrap_or(u64::MAX);
        (resource, soft.min(cap), hard.min(cap))
    };
    own.iter().map(capped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody gets out of its bounds by having a child.
    #[test]
    fn below_a_confined_actor_both_count() {
        let above = Confinement::new().nice(5).cpus([0, 1]).files([("/a", Access::Read)]);
        let above = above.user(1, 1).no_new_privs();
        let own = Confinement::new().nice(3).cpus([1, 2]).files([("/b", Access::Write)]).user(2, 2);
        let both = own.below(&above).expect("no cgroups");
        assert_eq!((both.nice, both.cpus.as_deref()), (Some(5), Some(&[1][..])));
        assert_eq!((both.files.len(), both.users.len()), (2, 1));
        assert_eq!(both.files[0][0].0, Path::new("/a"));
        assert!(both.no_new_privs);
        let same = Confinement::new().below(&above).expect("no cgroups");
        assert_eq!(same, Confinement { users: Vec::new(), ..above });
        let limits = limits_below(&[(1, 50, 200), (2, 7, 7)], &[(1, 10, 100)]);
        assert_eq!(limits, [(1, 50, 100), (2, 7, 7)]);
    }

    #[test]
    fn a_cgroup_below_a_cgroup_is_refused() {
        let one = Confinement::new().cgroup(Cgroup::under("/a"));
        assert_eq!(one.clone().below(&one), Err(Errno::EPERM));
        assert_eq!(Confinement::new().below(&one).map(|both| both.cgroup), Ok(None));
    }
}
