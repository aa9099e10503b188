//! The root's life: its end is everybody's.

use std::os::fd::AsFd as _;

use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};

use super::children::children;
use super::{Server, now};
use crate::sys::{exit, process, waitid};

impl Server {
    /// Whoever was our parent's thread has ended; if it was all of the root, we have another parent.
    pub(super) fn look_after_root(&mut self) {
        if nix::unistd::getppid().as_raw() != self.root {
            self.end();
        }
    }

    /// Stops every child, or lets all go on, at the word of a root that has no pidfds to do so.
    pub(super) fn hold(&mut self, stopped: bool) {
        self.held = stopped;
        let signal = if stopped { libc::SIGSTOP } else { libc::SIGCONT };
        for pid in self.book.all() {
            process::kill_own_child(pid, false, signal);
        }
    }

    /// The root is gone, or wants the tree gone: everything goes, and so does this. Programs that are
    /// asked to end first are, and have as long as orphans at most.
    pub(super) fn end(&mut self) -> ! {
        let began = now();
        self.settle_all();
        self.book.stop_all(began, self.grace);
        self.ask_to_end();
        let mut until = began.saturating_add(END_BOUND);
        loop {
            let mut all = self.book.all();
            all.extend(children().into_iter().filter(|pid| !self.is_left_alone(*pid)));
            let is_all_gone = all.is_empty();
            let (spared, rest): (Vec<i32>, Vec<i32>) =
                all.into_iter().partition(|pid| self.has_time(*pid));
            // The cgroups of those go with them.
            let cleared = spared.is_empty() && self.confined.end();
            if is_all_gone && cleared {
                // But for those that are left alone.
                exit::exit_now(0);
            }
            let mut refused = cleared && !rest.is_empty();
            for pid in rest {
                process::kill_own_child(pid, true, libc::SIGKILL);
                refused &= process::kill_or_refused(pid);
            }
            // Strays come to us as their parents die, until nobody is left.
            loop {
                match waitid::peek() {
                    Ok(Some((pid, status))) => {
                        let _reaped = waitid::reap(pid);
                        self.leaves_foreground(pid, &status);
                        self.book.died(pid, now(), self.grace);
                    }
                    Ok(None) => break,
                    Err(_) if spared.is_empty() && (cleared || self.confined.clear()) => {
                        exit::exit_now(0)
                    }
                    Err(_) => break,
                }
            }
            if !spared.is_empty() {
                until = now().saturating_add(END_BOUND);
            } else if refused || now() > until {
                // Those with other rights outlive us, however long we wait.
                exit::exit_now(1);
            }
            // Ended by the next SIGCHLD, or soon enough to look again.
            let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let _woken = poll(&mut fds, if spared.is_empty() { 1_u8 } else { 10 });
            while let Ok(Some(_)) = self.signals.read_signal() {}
        }
    }
}

/// What the last sweep may take.
const END_BOUND: u64 = 2_000_000_000;
