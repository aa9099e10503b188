//! Limits of a process, which may be another one. See prlimit(2).

use nix::errno::Errno;
use nix::libc;

/// Soft and hard limit of each resource, by its number.
pub(crate) type Limits = [(u64, u64); COUNT];

/// All that there are.
pub(crate) const COUNT: usize = 16;

/// The limits of a process; 0 is this one. `EPERM`: it is another user's, and we lack the right.
pub(crate) fn of(pid: i32) -> Result<Limits, Errno> {
    let mut limits = [(0, 0); COUNT];
    for (resource, limit) in (0..).zip(&mut limits) {
        let mut found = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: nothing is set; `found` outlives the call.
        let done = unsafe { libc::prlimit64(pid, resource, std::ptr::null(), &raw mut found) };
        Errno::result(done)?;
        *limit = (found.rlim_cur, found.rlim_max);
    }
    Ok(limits)
}

/// Sets one of this process's.
pub(crate) fn set(resource: u32, (soft, hard): (u64, u64)) -> Result<(), Errno> {
    let wanted = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `wanted` outlives the call; nothing is written.
    let done = unsafe { libc::prlimit64(0, resource, &raw const wanted, std::ptr::null_mut()) };
    Errno::result(done).map(drop)
}
