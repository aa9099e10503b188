//! The nice value. See setpriority(2).

use nix::errno::Errno;
use nix::libc;

/// Sets this process's.
pub(crate) fn set_nice(nice: i32) -> Result<(), Errno> {
    // SAFETY: only numbers are passed.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }).map(drop)
}
