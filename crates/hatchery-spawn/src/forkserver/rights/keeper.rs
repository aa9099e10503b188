//! The forkserver's side: who asks, and what a child of its may have.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::stat::{Mode, fstat};

use super::{Base, Case, Look, Plan, Right, Sight, judge, may_become, own};
use crate::forkserver::wire::{Request, Run};
use crate::sys::rights as sys;

/// Knows what the forkserver may do, and looks at what others may.
#[derive(Debug)]
pub(crate) struct Keeper {
    base: Base,
    look: Look,
    /// Our file gives rights to whoever executes it.
    raises: bool,
}

/// Who asks, by the kernel, and what the forkserver has put on it at its birth.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sender {
    pub(crate) process: i32,
    pub(crate) is_root: bool,
    /// Its user and group with the message; none if it had hidden them.
    pub(crate) ids: Option<(u32, u32)>,
    pub(crate) filters: usize,
    pub(crate) has_landlock: bool,
}

impl Keeper {
    /// `image` is open on our own file.
    pub(crate) fn new(image: BorrowedFd<'_>) -> Result<Self, (&'static str, Errno)> {
        let (base, look) = own()?;
        Ok(Self { base, look, raises: raises(image) })
    }

    /// What a child that is asked for gets less than we have, or why it is refused. Reads `/proc`.
    pub(crate) fn judge(&mut self, sender: Sender, request: &Request) -> Result<Plan, Right> {
        let asker = request.asker;
        if sender.is_root && asker.sight == Sight::Free {
            self.base.was_seen = true;
        }
        let seen = self.look.at(sender.process, request.present.tid, &self.base.rights)?;
        let case = Case {
            sent_as: sender.ids.ok_or(Right::Changed)?,
            asker,
            now: &seen.rights,
            is_at_home: seen.is_at_home,
            filters: sender.filters,
            has_landlock: sender.has_landlock,
            image: matches!(request.run, Run::Image(_)),
            raises: self.raises,
        };
        let plan = judge(&self.base, &case)?;
        for user in &request.confine.users {
            may_become(&self.base, &seen.rights, seen.is_at_home, user)?;
        }
        if let Some(cgroup) = &request.confine.cgroup
            && seen.rights != self.base.rights
            && let Ok(parent) = nix::sys::stat::stat(&cgroup.parent)
            && !seen.rights.may_make_in((parent.st_uid, parent.st_gid), parent.st_mode)
        {
            return Err(Right::Cgroup);
        }
        Ok(plan)
    }

    /// Nobody of that process asks any more.
    pub(crate) fn forget(&mut self, process: i32) {
        self.look.forget(process);
    }
}

/// Whether an exec of that file gives rights: by its mode, or by capabilities of its own.
fn raises(image: BorrowedFd<'_>) -> bool {
    let mode = fstat(image).map_or(Mode::empty(), |it| Mode::from_bits_truncate(it.st_mode));
    mode.intersects(Mode::S_ISUID | Mode::S_ISGID) || sys::has_capabilities(image)
}
