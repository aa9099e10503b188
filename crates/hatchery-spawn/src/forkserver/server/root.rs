//! The root's life: its end is everybody's.

use nix::libc;
use nix::sys::epoll::{EpollEvent, EpollTimeout};

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

    /// The root is gone, or wants the tree gone: everything goes, and so does this.
    pub(super) fn end(&mut self) -> ! {
        let until = now() + END_BOUND;
        loop {
            let mut rest = self.book.all();
            let cleared = self.confined.end();
            rest.extend(children());
            for pid in rest {
                process::kill_own_child(pid, true, libc::SIGKILL);
                process::kill_own_child(pid, false, libc::SIGKILL);
            }
            // Strays come to us as their parents die, until nobody is left.
            loop {
                match waitid::peek() {
                    Ok(Some((pid, _))) => {
                        let _reaped = waitid::reap(pid);
                        self.book.died(pid, 0, 0);
                    }
                    Ok(None) => break,
                    Err(_) if cleared || self.confined.clear() => exit::exit_now(0),
                    Err(_) => break,
                }
            }
            if now() > until {
                exit::exit_now(1);
            }
            // Ended by the next SIGCHLD, or soon enough to look again.
            let mut events = [EpollEvent::empty()];
            let _woken = self.epoll.wait(&mut events, EpollTimeout::from(1_u8));
            while let Ok(Some(_)) = self.signals.read_signal() {}
        }
    }
}

/// What the last sweep may take.
const END_BOUND: u64 = 2_000_000_000;
