//! Waiting for children with their exact status. See waitid(2).

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;

use crate::exit::Exit;
use crate::forkserver::manner::Note;
use crate::usage::Usage;

/// A child that has ended and is not reaped yet, if there is one.
pub(crate) fn peek() -> Result<Option<(i32, Exit)>, Errno> {
    wait(libc::P_ALL, 0, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
}

/// Whether that child has ended and is not reaped yet.
pub(crate) fn peek_at(pid: i32) -> Result<Option<(i32, Exit)>, Errno> {
    wait(libc::P_PID, pid.cast_unsigned(), libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
}

/// Reaps one child that `peek` has shown.
pub(crate) fn reap(pid: i32) -> Result<Option<(i32, Exit)>, Errno> {
    wait(libc::P_PID, pid.cast_unsigned(), libc::WEXITED | libc::WNOHANG)
}

/// The same, and what it has used.
pub(crate) fn reap_used(pid: i32) -> Result<Option<(Exit, Usage)>, Errno> {
    // SAFETY: all-zero is a valid one: numbers alone.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG;
    let told = ask_used(libc::P_PID, pid.cast_unsigned(), flags, Some(&mut usage))?;
    Ok(told.map(|told| (exit_of(told), usage_of(&usage))))
}

fn usage_of(usage: &libc::rusage) -> Usage {
    let span = |time: libc::timeval| {
        let seconds = Duration::from_secs(time.tv_sec.cast_unsigned());
        seconds + Duration::from_micros(time.tv_usec.cast_unsigned())
    };
    // The kernel tells it in KiB.
    let peak_memory = usage.ru_maxrss.cast_unsigned().saturating_mul(1024);
    Usage { user: span(usage.ru_utime), system: span(usage.ru_stime), peak_memory }
}

/// Reaps the child behind a pidfd, and nobody else's (C9).
pub(crate) fn reap_pidfd(pidfd: BorrowedFd<'_>) -> Result<Option<(i32, Exit)>, Errno> {
    let number = pidfd.as_raw_fd().cast_unsigned();
    wait(libc::P_PIDFD, number, libc::WEXITED | libc::WNOHANG)
}

/// Whether a child of ours in that group has not ended. Zombies don't count: a wait that doesn't ask for
/// ends doesn't know of them.
pub(crate) fn has_living(group: i32) -> bool {
    let flags = libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT;
    ask(libc::P_PGID, group.cast_unsigned(), flags).is_ok()
}

/// A child that has stopped or goes on, that one or any; each change is told once.
pub(crate) fn take_stop(pid: Option<i32>) -> Result<Option<(i32, Note)>, Errno> {
    let (kind, id) = pid.map_or((libc::P_ALL, 0), |pid| (libc::P_PID, pid.cast_unsigned()));
    let told = ask(kind, id, libc::WSTOPPED | libc::WCONTINUED | libc::WNOHANG)?;
    Ok(told.map(|(pid, code, status)| {
        let is_stop = code != libc::CLD_CONTINUED;
        (pid, if is_stop { Note::Stopped(status) } else { Note::Runs })
    }))
}

fn wait(kind: libc::idtype_t, id: u32, flags: i32) -> Result<Option<(i32, Exit)>, Errno> {
    let told = ask(kind, id, flags)?;
    Ok(told.map(|told| (told.0, exit_of(told))))
}

fn exit_of((_, code, status): (i32, i32, i32)) -> Exit {
    if code == libc::CLD_EXITED {
        return Exit::Code(status);
    }
    let core_dumped = code == libc::CLD_DUMPED;
    Exit::Signal { signal: status, core_dumped, out_of_memory: false }
}

/// Number, kind of change and status of whom the kernel tells of.
fn ask(kind: libc::idtype_t, id: u32, flags: i32) -> Result<Option<(i32, i32, i32)>, Errno> {
    ask_used(kind, id, flags, None)
}

/// The same, with what it has used: libc's own function has no room for that.
fn ask_used(
    kind: libc::idtype_t,
    id: u32,
    flags: i32,
    usage: Option<&mut libc::rusage>,
) -> Result<Option<(i32, i32, i32)>, Errno> {
    let usage = usage.map_or(std::ptr::null_mut(), std::ptr::from_mut);
    // SAFETY: all-zero is a valid siginfo; a pid of 0 in it means that nobody has ended.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: the structs are ours, or none; the other arguments are numbers.
        let result =
            unsafe { libc::syscall(libc::SYS_waitid, kind, id, &raw mut info, flags, usage) };
        match Errno::result(result) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    // SAFETY: waitid has filled it, or left it zero.
    let pid = unsafe { info.si_pid() };
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    Ok(Some((pid, info.si_code, status)))
}
