//! Who is confined, and how; which cgroups there are, and who is in them.
//!
//! An actor may ask for children, and the forkserver has rights that the actor may have lost. So
//! whatever bounds an actor bounds its children too, on top of what it asks for them (C15).

use std::collections::BTreeMap;
use std::path::PathBuf;

use nix::errno::Errno;

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
}

/// The bounds of all living children that have any.
#[derive(Debug, Default)]
pub(crate) struct Confined {
    living: BTreeMap<i32, Bound>,
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
        if let Some(above) = above {
            let own = std::mem::take(&mut request.confine);
            let both = own.below(&above.confine);
            request.confine = both.map_err(|errno| ("a cgroup in a cgroup", errno))?;
            request.limits = limits_below(&request.limits, &above.limits);
        }
        let mut bound = Bound {
            confine: request.confine.clone(),
            limits: request.limits.clone(),
            cgroup: above.and_then(|above| above.cgroup.clone()),
            own_cgroup: false,
        };
        if let Some(wanted) = &request.confine.cgroup {
            bound.cgroup = Some(wanted.make(name)?);
            bound.own_cgroup = true;
        } else if let Some(above) = above {
            // So that it isn't asked for again further down.
            bound.confine.cgroup.clone_from(&above.confine.cgroup);
        }
        Ok(bound)
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

    /// A child is dead. If it was the last of its cgroup, all that is left in there goes too.
    pub(crate) fn died(&mut self, pid: i32) {
        let Some(path) = self.living.remove(&pid).and_then(|bound| bound.cgroup) else { return };
        if !self.living.values().any(|bound| bound.cgroup.as_ref() == Some(&path)) {
            self.dying.push(path);
            self.clear();
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
