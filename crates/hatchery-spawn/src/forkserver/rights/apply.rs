//! The child's side: it takes what its spawner has, with the forkserver's rights, and has them no more.

use nix::errno::Errno;
use nix::unistd::{
    Gid, Uid, getresgid, getresuid, setfsgid, setfsuid, setgroups, setresgid, setresuid,
};

use super::{Ids, Plan};
use crate::sys::rights::{self as sys, Sets};

/// Between fork and main. Fails rather than leaving a right more; who calls arms the parent-death
/// signal again.
pub(crate) fn apply(plan: &Plan) -> Result<(), Errno> {
    if let Some(ids) = &plan.ids {
        take(ids)?;
    }
    if plan.no_new_privs {
        nix::sys::prctl::set_no_new_privs()?;
    }
    plan.dumpable.map_or(Ok(()), sys::set_dumpable)
}

fn take(ids: &Ids) -> Result<(), Errno> {
    let caps = &ids.caps;
    let at_first = sys::sets()?.permitted;
    // All that the forkserver may have, for the steps to come.
    let all = |permitted| Sets { effective: permitted, permitted, inheritable: caps.inheritable };
    sys::set_sets(all(at_first))?;
    for capability in each(ids.dropped) {
        sys::drop_from_bounding(capability)?;
    }
    // Groups first: without the old user there is no right to it.
    if let Some(groups) = &ids.groups {
        let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups)?;
    }
    let [real, effective, saved, files] = ids.gids.map(Gid::from_raw);
    setresgid(real, effective, saved)?;
    if files != effective {
        // Says nothing of its success.
        setfsgid(files);
    }
    // Refused where it is locked, and then the permitted set goes with the user, as it did there.
    let _locked = sys::keep_permitted(true);
    let [real, effective, saved, files] = ids.uids.map(Uid::from_raw);
    setresuid(real, effective, saved)?;
    let left = sys::sets()?.permitted;
    sys::set_sets(all(left))?;
    sys::clear_ambient()?;
    for capability in each(caps.ambient & left) {
        sys::raise_ambient(capability)?;
    }
    if sys::securebits()? != ids.securebits {
        securebits(ids.securebits)?;
    }
    if files != effective {
        setfsuid(files);
    }
    let (permitted, inheritable) = (caps.permitted & left, caps.inheritable);
    sys::set_sets(Sets { effective: caps.effective & left, permitted, inheritable })?;
    look_again(ids)
}

/// Without the right to set them only the one bit can be changed that says that the permitted set is
/// kept, and that was set here.
fn securebits(bits: u32) -> Result<(), Errno> {
    match sys::set_securebits(bits) {
        Err(Errno::EPERM) => {
            sys::keep_permitted(bits & KEEP_CAPS != 0)?;
            if sys::securebits()? == bits { Ok(()) } else { Err(Errno::EPERM) }
        }
        set => set,
    }
}

/// Whether all is as it should be, whatever the calls have said.
fn look_again(ids: &Ids) -> Result<(), Errno> {
    let (uids, gids, sets) = (getresuid()?, getresgid()?, sys::sets()?);
    let uids = [uids.real, uids.effective, uids.saved].map(Uid::as_raw);
    let gids = [gids.real, gids.effective, gids.saved].map(Gid::as_raw);
    let is_right = uids == ids.uids[..3]
        && gids == ids.gids[..3]
        && sets.permitted & !ids.caps.permitted == 0
        && sets.effective & !ids.caps.effective == 0
        && sets.inheritable & !ids.caps.inheritable == 0;
    if is_right { Ok(()) } else { Err(Errno::EPERM) }
}

/// The numbers of a set's capabilities.
fn each(set: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |capability| set & 1 << capability != 0)
}

const KEEP_CAPS: u32 = 1 << 4;
