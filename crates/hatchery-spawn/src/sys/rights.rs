//! What a process may do beyond its files: capabilities, securebits, dumpable, where it lives, and
//! whether it was raised by its exec. See capabilities(7), credentials(7), prctl(2), getauxval(3).

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

/// The three sets that capset(2) takes, one bit for each capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sets {
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// This thread's sets.
pub(crate) fn sets() -> Result<Sets, Errno> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut halves = [Half::default(); 2];
    // SAFETY: version 3 means two halves, and that is what it is given; both outlive the call.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_capget, &raw const header, halves.as_mut_ptr())
    })?;
    let [low, high] = halves;
    let whole = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    Ok(Sets {
        effective: whole(low.effective, high.effective),
        permitted: whole(low.permitted, high.permitted),
        inheritable: whole(low.inheritable, high.inheritable),
    })
}

/// Sets this thread's. Only in a process of one thread: glibc keeps none in step.
pub(crate) fn set_sets(sets: Sets) -> Result<(), Errno> {
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |shift: u32| {
        let part = |set: u64| u32::try_from(set >> shift & u64::from(u32::MAX)).unwrap_or(0);
        Half {
            effective: part(sets.effective),
            permitted: part(sets.permitted),
            inheritable: part(sets.inheritable),
        }
    };
    let halves = [half(0), half(32)];
    // SAFETY: as in `sets`; the kernel only reads them.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) })
        .map(drop)
}

fn prctl(option: libc::c_int, second: u64, third: u64) -> Result<i32, Errno> {
    // SAFETY: only numbers are passed, and none of the options of this file takes a pointer.
    Errno::result(unsafe { libc::prctl(option, second, third, 0_u64, 0_u64) })
}

/// Takes a capability out of the bounding set, for ever.
pub(crate) fn drop_from_bounding(capability: u32) -> Result<(), Errno> {
    prctl(libc::PR_CAPBSET_DROP, capability.into(), 0).map(drop)
}

/// Raises a capability in the ambient set.
pub(crate) fn raise_ambient(capability: u32) -> Result<(), Errno> {
    prctl(libc::PR_CAP_AMBIENT, AMBIENT_RAISE, capability.into()).map(drop)
}

/// Empties the ambient set.
pub(crate) fn clear_ambient() -> Result<(), Errno> {
    prctl(libc::PR_CAP_AMBIENT, AMBIENT_CLEAR_ALL, 0).map(drop)
}

/// Keeps the permitted set over the next change of user, or not.
pub(crate) fn keep_permitted(keep: bool) -> Result<(), Errno> {
    prctl(libc::PR_SET_KEEPCAPS, keep.into(), 0).map(drop)
}

/// This thread's securebits.
pub(crate) fn securebits() -> Result<u32, Errno> {
    prctl(libc::PR_GET_SECUREBITS, 0, 0).map(i32::cast_unsigned)
}

/// Sets this thread's securebits.
pub(crate) fn set_securebits(bits: u32) -> Result<(), Errno> {
    prctl(libc::PR_SET_SECUREBITS, bits.into(), 0).map(drop)
}

/// Whether this process may be traced by its own user, and dumps core.
pub(crate) fn is_dumpable() -> bool {
    // 2, a core for root alone, can't be set by anybody.
    prctl(libc::PR_GET_DUMPABLE, 0, 0) == Ok(1)
}

/// Sets that.
pub(crate) fn set_dumpable(dumpable: bool) -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, dumpable.into(), 0).map(drop)
}

/// Whether the kernel lets this thread look at that process as ptrace(2) does to read it. Changes
/// nothing, needs no path, and allows under Yama what other such calls don't.
pub(crate) fn may_look_at(pid: i32) -> Result<(), Errno> {
    let mut head: *mut libc::c_void = std::ptr::null_mut();
    let mut length: usize = 0;
    // SAFETY: the kernel writes a pointer, which nobody follows, and a length, to what is given here.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_get_robust_list, pid, &raw mut head, &raw mut length)
    })
    .map(drop)
}

/// Whether a file has capabilities of its own, which an exec of it gives.
pub(crate) fn has_capabilities(file: BorrowedFd<'_>) -> bool {
    let Ok(path) = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())) else {
        return false;
    };
    let (name, none) = (c"security.capability".as_ptr(), std::ptr::null_mut());
    // SAFETY: both are C strings, and of no length nothing is written.
    let length = unsafe { libc::getxattr(path.as_ptr(), name, none, 0) };
    length > 0
}

/// Whether the exec of this image has raised its rights above those of who asked for it: by a
/// set-user-id or set-group-id bit, file capabilities, or another real than effective user.
pub(crate) fn is_raised() -> bool {
    // SAFETY: only a number is passed; what is not there is 0.
    let secure = unsafe { libc::getauxval(libc::AT_SECURE) };
    secure != 0
}

/// The root directory behind a link of `/proc`, as numbers: its file system, its inode, its mount.
/// Two mount namespaces have no mount in common. Before Linux 5.8 the mount is 0.
pub(crate) fn root_behind(directory: BorrowedFd<'_>, link: &CStr) -> Result<[u64; 3], Errno> {
    // SAFETY: all-zero is a valid one, and only numbers.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let mask = libc::STATX_INO | libc::STATX_MNT_ID;
    let directory = directory.as_raw_fd();
    // SAFETY: the name ends with null, the kernel writes to one struct of the right kind.
    Errno::result(unsafe {
        libc::statx(directory, link.as_ptr(), libc::AT_STATX_DONT_SYNC, mask, &raw mut found)
    })?;
    let device = u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor);
    let mount = if found.stx_mask & libc::STATX_MNT_ID == 0 { 0 } else { found.stx_mnt_id };
    Ok([device, found.stx_ino, mount])
}

const VERSION_3: u32 = 0x2008_0522;
const AMBIENT_RAISE: u64 = 2;
const AMBIENT_CLEAR_ALL: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_this_thread_is_what_proc_says() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let of = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        let sets = sets().unwrap();
        assert_eq!(sets.effective, of("CapEff:"));
        assert_eq!(sets.permitted, of("CapPrm:"));
        assert_eq!(sets.inheritable, of("CapInh:"));
        may_look_at(std::process::id().cast_signed()).unwrap();
        assert!(!is_raised());
    }
}
