//! The forkserver's process, in the hands of its root.

use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::libc;

use super::strays;
use crate::exit::Exit;
use crate::held::{Held, is_forbidden};
use crate::sys::{process, waitid};

#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) held: Held,
    /// What all of its tree carry in their environment.
    pub(super) tree: String,
}

impl Process {
    /// Ends it with all that lives below it: asks for `bound`, then kills and sweeps.
    pub(super) fn end(&self, bound: Duration) {
        // A stopped one can't sweep; one that is dead needs nothing.
        self.signal(libc::SIGTERM);
        self.signal(libc::SIGCONT);
        if !self.held.wait_dead(bound) {
            self.signal(libc::SIGKILL);
            let _ended = self.held.wait_dead(KILL_WAIT);
            strays::sweep(&self.tree, strays::SWEEP_BOUND);
        }
    }

    /// Whether this process may signal it no more: it has given up the rights that both had (C17).
    /// Then it ends by the end of its socket alone.
    pub(super) fn is_out_of_reach(&self) -> bool {
        let asked = self.held.send_signal(0);
        asked.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
    }

    /// Sends it a signal. One that is gone is no error.
    pub(super) fn signal(&self, signal: i32) {
        let sent = self.held.send_signal(signal);
        if matches!(self.held, Held::Directory(_))
            && sent.is_err_and(|error| is_forbidden(&error))
            && self.held.is_there()
            && waitid::peek_at(self.pid.cast_signed()).is_ok()
        {
            // Our own child, and not reaped a moment ago: only a host that reaps what is not its
            // own could make somebody else of it meanwhile.
            process::kill_own_child(self.pid.cast_signed(), false, signal);
        }
    }

    /// Its status, if we are the first to ask: a host that waits for everybody may have been (C9).
    pub(super) fn reap(&self) -> Option<Exit> {
        let reaped = match &self.held {
            Held::Pidfd(pidfd) => waitid::reap_pidfd(pidfd.as_fd()),
            Held::Directory(_) if self.held.is_there() => waitid::reap(self.pid.cast_signed()),
            Held::Directory(_) => return None,
        };
        reaped.ok().flatten().map(|(_, exit)| exit)
    }
}

/// How long a kill of the forkserver may take: it does nothing but die.
const KILL_WAIT: Duration = Duration::from_millis(500);
