//! Process 1 of a pid namespace, as a container's program is one: it is given every orphan in there, and
//! must reap them.
//!
//! Why by a fork, and not by a thread that reaps: process 1 can't tell an orphan that it was given from a
//! child of its own that somebody waits for, so a wait for anybody takes statuses away. The program as the
//! child of a process 1 that does nothing else has its own children alone.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpgrp, getpid, setpgid};

use crate::exit::Exit;
use crate::sys::process::{self, Forked};
use crate::sys::{close_range, exit, owner, sigaction, waitid};
use crate::terminal::Terminal;

/// What came of [`reap_orphans`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reaper {
    /// Process 1 stays behind and reaps. This process is its child, and the program.
    Stands,
    /// This process is not process 1, so orphans are not given to it. Nothing was done.
    NotNeeded,
}

/// Process 1 can't stay behind as a reaper; nothing was done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReaperError {
    /// It has other threads, which its child would lack.
    #[error(
        "process 1 has {count} threads, and its child would have one: reap from the start of `main`"
    )]
    Threads {
        /// How many, this one included.
        count: usize,
    },
    /// A call failed.
    #[error("leaving process 1 behind as a reaper: {call}: {cause}")]
    Call {
        /// Which.
        call: &'static str,
        /// What it said.
        cause: io::Error,
    },
}

/// If this process is process 1 of a pid namespace, as the program of a container is: forks, stays behind
/// as a small init that reaps all orphans, and returns in the child, which is the program from then on.
/// Any other process does nothing, and is told [`Reaper::NotNeeded`].
///
/// Call it first in `main`, while there is one thread; `#[hatchery::main(reap)]` does so. Not needed where
/// something else is process 1, as with `docker run --init` or a pod with a shared process namespace.
///
/// Process 1 passes every signal on that can be caught, without what sigqueue(3) adds, and ends with the program: with its status, or with
/// 128 + signal, as no signal of its own ends a process 1. What is left in the namespace is then killed by the
/// kernel. SIGKILL to process 1, which only comes from outside of the namespace, ends everything in there.
/// It takes no status that the program waits for: the program's children are not its own. What process 1 had
/// started before, as a shell that executes its last program may have, stays its own, and is reaped. It
/// holds none of the program's fds: whoever reads its output sees the end when the program has closed it.
///
/// The program is in a process group of its own, in the foreground if process 1 was, so that the terminal's
/// signals reach it once. Stopped by the terminal or otherwise, it goes on when process 1 is sent SIGCONT.
/// Only if process 1 is in a group from outside of the namespace and has a terminal, as `unshare --pid
/// --fork` in a shell makes it, the program stays in that group for the shell's job control; a
/// signal that somebody sends to that whole group then reaches the program twice.
///
/// # Errors
/// [`ReaperError`]: no process or fd could be had, or there are other threads already.
pub fn reap_orphans() -> Result<Reaper, ReaperError> {
    if getpid() != Pid::from_raw(1) {
        return Ok(Reaper::NotNeeded);
    }
    let failed = |call| move |errno: Errno| ReaperError::Call { call, cause: errno.into() };
    let count = crate::thread_count()
        .map_err(|cause| ReaperError::Call { call: "open(/proc/self/task)", cause })?;
    if count != 1 {
        return Err(ReaperError::Threads { count });
    }
    let all = SigSet::all();
    let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC).map_err(failed("signalfd"))?;
    let group = Group::now();
    // From here on until the child is ready nothing is lost: what comes to process 1 is passed on.
    let before = all.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(failed("sigprocmask"))?;
    // Who ignores it gets no zombies, and no statuses.
    let ignored = sigaction::is_ignored(libc::SIGCHLD);
    sigaction::unignore(libc::SIGCHLD);
    let forked = process::fork();
    if let Ok(Forked::Parent { child }) = forked {
        stay(child, &group, &signals);
    }
    if ignored {
        sigaction::ignore(libc::SIGCHLD);
    }
    if forked.is_ok() {
        owner::adopt();
        group.enter();
    }
    before.thread_set_mask().map_err(failed("sigprocmask"))?;
    forked.map(|_child| Reaper::Stands).map_err(failed("fork"))
}

/// In which process group the program is.
enum Group {
    /// Its own; and that terminal's foreground, if process 1 is there.
    Own(Option<Terminal>),
    /// That of process 1, which is somebody's job outside of the namespace.
    Shared,
}

impl Group {
    fn now() -> Self {
        let group = getpgrp();
        match Terminal::open() {
            // A group whose leader is outside of the namespace has no number here.
            Ok(_terminal) if group == Pid::from_raw(0) => Self::Shared,
            Ok(terminal) => Self::Own((terminal.group() == Ok(group)).then_some(terminal)),
            Err(_none) => Self::Own(None),
        }
    }

    /// For the program, while all its signals are blocked.
    fn enter(self) {
        let Self::Own(terminal) = self else { return };
        // It is no leader of a session, as it was forked a moment ago.
        let _done = setpgid(Pid::from_raw(0), Pid::from_raw(0));
        if let Some(terminal) = terminal {
            // One that has hung up is nobody's.
            let _hung_up = terminal.give(getpid());
        }
    }
}

/// What process 1 does from then on.
fn stay(child: i32, group: &Group, signals: &SignalFd) -> ! {
    let _shown = nix::sys::prctl::set_name(c"hatchery:init");
    let keep = signals.as_raw_fd().unsigned_abs();
    // Nothing is ever used again of what they belong to. What can't be closed stays open.
    let _below = keep.checked_sub(1).map(|last| close_range::close_between(0, last));
    let _above = close_range::close_from(keep + 1);
    // Dispositions stay: what is blocked is told even if it is ignored, and a change to the default would
    // take away what is pending. A SIGCHLD that was ignored until now may have been.
    if let Some(exit) = reap(child) {
        exit::exit_now(status(exit));
    }
    loop {
        // EINTR is not to be had with all signals blocked; anything else would come again and again.
        let Ok(Some(told)) = signals.read_signal() else { exit::exit_now(LOST) };
        let signal = told.ssi_signo.cast_signed();
        if signal == libc::SIGCHLD {
            if let Some(exit) = reap(child) {
                exit::exit_now(status(exit));
            }
            continue;
        }
        let is_shared = matches!(group, Group::Shared);
        // The terminal has told the whole group.
        if !(is_shared && told.ssi_code == libc::SI_KERNEL) {
            // A stop by the terminal was one of the whole group. Not reaped, so the number is its own.
            process::kill_own_child(child, signal == libc::SIGCONT && !is_shared, signal);
        }
    }
}

/// Reaps all that are dead, and says how that one has ended.
fn reap(child: i32) -> Option<Exit> {
    while let Ok(Some((pid, exit))) = waitid::peek() {
        if pid == child {
            return Some(exit);
        }
        let _reaped = waitid::reap(pid);
    }
    None
}

/// What process 1 ends with.
fn status(exit: Exit) -> i32 {
    match exit {
        Exit::Code(code) => code,
        Exit::Signal { signal, .. } => 128 + signal,
        // Of threads alone.
        Exit::Panicked(_) => LOST,
    }
}

/// `EX_OSERR`.
const LOST: i32 = 71;
