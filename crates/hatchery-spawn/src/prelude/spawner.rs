//! What a child takes over from its spawner as that one is now (C18). The forkserver was started
//! earlier, maybe by another thread, and has raised a limit of its own.
//!
//! Limits and priorities are asked of the kernel: a spawner that tells more than it has gets no more
//! (C15).

use std::fs;

use nix::errno::Errno;
use nix::libc;

use super::Nest;
use crate::forkserver::wire::Request;
use crate::sys::rlimit::{self, Limits};
use crate::sys::sched::{self, RESET_ON_FORK, Scheduling};

/// The limits of the spawner.
pub(super) fn limits(nest: &Nest<'_>) -> Result<(), Errno> {
    let spawner = match rlimit::of(nest.spawner) {
        // It is another user's by now, and we lack the right to ask so.
        Err(Errno::EPERM) => told_limits(nest.spawner).ok_or(Errno::EPERM)?,
        asked => asked?,
    };
    for (resource, (own, wanted)) in (0..).zip(nest.limits.iter().zip(spawner)) {
        if *own != wanted {
            rlimit::set(resource, wanted)?;
        }
    }
    Ok(())
}

/// The limits that were asked for, which take the spawner's rights.
pub(super) fn asked_limits(request: &Request) -> Result<(), Errno> {
    for (number, soft, hard) in &request.limits {
        let resource = match number {
            0 => libc::RLIMIT_AS,
            1 => libc::RLIMIT_CORE,
            2 => libc::RLIMIT_CPU,
            3 => libc::RLIMIT_FSIZE,
            4 => libc::RLIMIT_NOFILE,
            5 => libc::RLIMIT_NPROC,
            6 => libc::RLIMIT_STACK,
            _ => return Err(Errno::EINVAL),
        };
        rlimit::set(resource, (*soft, *hard))?;
    }
    Ok(())
}

/// What `/proc` says of the limits of a process: anybody may read it.
fn told_limits(pid: i32) -> Option<Limits> {
    parse_limits(&fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

/// A line of titles, then each resource in the order of its number.
fn parse_limits(text: &str) -> Option<Limits> {
    let mut limits = [(0, 0); rlimit::COUNT];
    let mut lines = text.lines().skip(1);
    for ((soft, hard), order) in limits.iter_mut().zip(IN_PROC) {
        let line = lines.next()?.strip_prefix(order)?;
        let mut numbers = line.split_whitespace().map(|text| match text {
            "unlimited" => Some(u64::MAX),
            number => number.parse().ok(),
        });
        (*soft, *hard) = (numbers.next()??, numbers.next()??);
    }
    Some(limits)
}

/// What `/proc` calls the resources.
const IN_PROC: [&str; rlimit::COUNT] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

/// The thread that asked, or the first of its process if it has ended meanwhile or was none of it.
pub(super) fn thread(request: &Request, nest: &Nest<'_>) -> i32 {
    let (pid, tid) = (nest.spawner, request.present.tid);
    if tid > 0 && (tid == pid || sched::is_thread_of(pid, tid)) { tid } else { pid }
}

/// What the kernel says of the thread; of its process, if the thread has ended since it was looked for.
fn of_either<T>(
    thread: i32,
    process: i32,
    ask: impl Fn(i32) -> Result<T, Errno>,
) -> Result<T, Errno> {
    match ask(thread) {
        Err(Errno::ESRCH) => ask(process),
        said => said,
    }
}

/// Policy, nice value, and the class of input and output: as a child of that thread's own would have
/// them. What the kernel refuses stays the forkserver's.
pub(super) fn scheduling(thread: i32, process: i32) {
    if let (Ok(spawner), Ok(own)) = (of_either(thread, process, sched::of), sched::of(0)) {
        let wanted = in_a_child(spawner);
        // To be nicer takes no right; to go back, or ahead of others, may.
        if wanted != own && sched::set(wanted).is_err() && wanted.nice > own.nice {
            let Scheduling { policy, flags, priority, .. } = own;
            let _refused = sched::set(Scheduling { policy, flags, nice: wanted.nice, priority });
        }
    }
    if let (Ok(spawner), Ok(own)) = (of_either(thread, process, sched::io_of), sched::io_of(0))
        && spawner != own
    {
        let _refused = sched::set_io(spawner);
    }
}

/// What a fork makes of a parent's. Who has a deadline can't fork unless that is reset.
fn in_a_child(parent: Scheduling) -> Scheduling {
    let is_fair = [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE]
        .contains(&parent.policy.cast_signed());
    let resets = parent.flags & RESET_ON_FORK != 0;
    let flags = parent.flags & !RESET_ON_FORK;
    let is_kept = [libc::SCHED_FIFO, libc::SCHED_RR].contains(&parent.policy.cast_signed());
    if !is_fair && (resets || !is_kept) {
        return Scheduling { policy: 0, flags, nice: 0, priority: 0 };
    }
    let nice = if resets { parent.nice.max(0) } else { parent.nice };
    Scheduling { flags, nice, ..parent }
}

/// The processors of that thread.
pub(super) fn processors(thread: i32, process: i32) -> Result<(), Errno> {
    let spawner = of_either(thread, process, sched::processors_of)?;
    let own = sched::processors_of(0)?;
    if spawner == own { Ok(()) } else { sched::run_on(&spawner) }
}

/// The directory that came with the request. It was searched, or not, by whoever is in it.
pub(super) fn directory(fd: i32) -> Result<(), Errno> {
    nix::unistd::fchdir(crate::sys::fds::in_slot(fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_that_proc_tells_are_those_that_the_kernel_tells() {
        assert_eq!(told_limits(std::process::id().cast_signed()), rlimit::of(0).ok());
        assert_eq!(parse_limits("Limit\nMax cpu time 1 2 seconds\n"), None);
    }

    /// As sched(7) has it.
    #[test]
    fn a_child_of_a_thread_that_resets_is_an_ordinary_one() {
        let of = |policy, flags, nice, priority| Scheduling { policy, flags, nice, priority };
        let (other, fifo, batch, deadline) = (0, 1, 3, 6);
        assert_eq!(in_a_child(of(other, 0, 7, 0)), of(other, 0, 7, 0));
        assert_eq!(in_a_child(of(fifo, 0, 0, 50)), of(fifo, 0, 0, 50));
        assert_eq!(in_a_child(of(fifo, 1, 0, 50)), of(other, 0, 0, 0));
        assert_eq!(in_a_child(of(batch, 1, -5, 0)), of(batch, 0, 0, 0));
        assert_eq!(in_a_child(of(batch, 1, 5, 0)), of(batch, 0, 5, 0));
        assert_eq!(in_a_child(of(deadline, 0, 0, 0)), of(other, 0, 0, 0));
    }
}
