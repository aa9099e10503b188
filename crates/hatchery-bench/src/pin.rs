//! Placement: a round trip between cores costs ten times one on a core, so both sides of a ratio
//! run on the same one.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Keeps this thread, and all that it starts, on the first core it may use.
pub(crate) fn to_one_core() -> nix::Result<()> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let first = (0..CpuSet::count()).find(|&core| allowed.is_set(core).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(first.unwrap_or(0))?;
    sched_setaffinity(Pid::from_raw(0), &one)
}
