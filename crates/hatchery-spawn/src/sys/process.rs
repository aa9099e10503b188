//! fork, exec and groups. See fork(2), execveat(2), setpgid(2).

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::fd::RawFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;

/// Which side of a fork this is.
pub(crate) enum Forked {
    /// The one that forked.
    Parent { child: i32 },
    /// The new one.
    Child,
}

/// Forks. Only the forkserver may, and a process 1 that has one thread. Where it has one thread the child is a whole libc process. Where a
/// library has begun others before `main`, the child is on its way to an exec: until then it takes no
/// lock but malloc's, which both glibc's and musl's `fork` leave usable in a child.
///
/// By libc's own `fork`: a child of a raw `clone` has a stale thread id and robust list.
pub(crate) fn fork() -> Result<Forked, Errno> {
    // SAFETY: no lock that the child takes is held by a thread that it lacks, as said above.
    match Errno::result(unsafe { libc::fork() })? {
        0 => Ok(Forked::Child),
        child => Ok(Forked::Parent { child }),
    }
}

/// Becomes another program, found by PATH as a shell would.
pub(crate) fn exec(program: &CStr, argv: &[CString]) -> Result<Infallible, Errno> {
    let pointers = null_ended(argv);
    // SAFETY: both are C strings, the array ends with null and outlives the call.
    unsafe { libc::execvp(program.as_ptr(), pointers.as_ptr()) };
    Err(Errno::last())
}

/// Becomes the program that `fd` is open on, with the environment as it is and one entry more.
pub(crate) fn exec_fd(fd: RawFd, argv: &[CString], more: &CStr) -> Result<Infallible, Errno> {
    let pointers = null_ended(argv);
    let mut environment = super::environ::pointers();
    environment.extend([more.as_ptr(), std::ptr::null()]);
    // SAFETY: all are C strings, the arrays end with null and outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd,
            c"".as_ptr(),
            pointers.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(Errno::last())
}

fn null_ended(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}

/// Signals a process that the caller is the parent of and has not reaped, or its group.
///
/// The forkserver calls this for its own children: as their sole reaper it knows that a number
/// can't have changed hands (H18). A root without pidfds calls it for its forkserver. `group` is by
/// negative number, as in kill(2); a child that leads none, for it was put into another, is signalled alone.
pub(crate) fn kill_own_child(pid: i32, group: bool, signal: i32) {
    let target = if group { -pid } else { pid };
    // SAFETY: only numbers are passed; ESRCH means that there is nobody left to signal.
    let sent = Errno::result(unsafe { libc::kill(target, signal) });
    if group && sent == Err(Errno::ESRCH) {
        // SAFETY: as above.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Kills a process as [`kill_own_child`] signals one, and says whether that was refused: it has other
/// rights than the caller.
pub(crate) fn kill_or_refused(pid: i32) -> bool {
    // SAFETY: only numbers are passed.
    Errno::result(unsafe { libc::kill(pid, libc::SIGKILL) }) == Err(Errno::EPERM)
}

/// Whether the caller has no right to signal that process.
pub(crate) fn is_refused(pid: i32) -> bool {
    // SAFETY: only numbers are passed, and nobody is signalled.
    Errno::result(unsafe { libc::kill(pid, 0) }) == Err(Errno::EPERM)
}

/// Whether there is anybody, dead or alive, in the group of that number.
pub(crate) fn has_group(number: i32) -> bool {
    // SAFETY: only numbers are passed, and nobody is signalled.
    Errno::result(unsafe { libc::kill(-number, 0) }) != Err(Errno::ESRCH)
}

/// A bare fork, for benchmarks to compare with: the child does `work`, then exits. Gives back its
/// pid, and when the fork began: looking for other threads is no part of it.
///
/// # Errors
/// What fork(2) says, or `EBUSY` if this process has more than one thread.
pub fn fork_floor(work: impl FnOnce()) -> std::io::Result<(u32, Instant)> {
    if crate::thread_count()? != 1 {
        return Err(Errno::EBUSY.into());
    }
    let began = Instant::now();
    match fork()? {
        Forked::Child => {
            work();
            super::exit::exit_now(0)
        }
        Forked::Parent { child } => Ok((child.cast_unsigned(), began)),
    }
}

/// Forks this process as a library of its host may, threads or not: `None` in the copy, which has the
/// calling thread alone. For tests of what a copy does; it may take no lock that another thread may hold.
///
/// # Errors
/// What fork(2) says.
pub fn fork_copy() -> std::io::Result<Option<u32>> {
    // SAFETY: libc's own locks are whole in the child, those of its allocator included. What the caller
    // does there with other locks can hang it, and nothing worse; no destructor runs that it doesn't run.
    match Errno::result(unsafe { libc::fork() })? {
        0 => Ok(None),
        child => Ok(Some(child.cast_unsigned())),
    }
}
