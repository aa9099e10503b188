//! Who has the terminal: a program that asked for it, and else the root's group.

use nix::errno::Errno;
use nix::sys::termios::Termios;
use nix::unistd::{Pid, getpgid, getsid};

use super::{CallFailed, Server};
use crate::exit::Exit;
use crate::terminal::Terminal;

/// A program that was given the terminal.
#[derive(Debug)]
pub(super) struct Foreground {
    pid: i32,
    terminal: Terminal,
    /// Whose it is else.
    root_group: Pid,
    /// How it was set before.
    settings: Option<Termios>,
}

impl Server {
    /// Whether a program can be given the terminal. `EBUSY`: it isn't the root's, but that of another
    /// job or program. `ENXIO`: there is none. `ENOTTY`: the root has left our session.
    pub(super) fn may_have_terminal(&mut self) -> Result<(), CallFailed> {
        let terminal = Terminal::open().map_err(|errno| ("open(/dev/tty)", errno))?;
        let root = Pid::from_raw(self.root);
        let (root_session, own_session) = (getsid(Some(root)), getsid(None));
        if root_session != own_session {
            return Err(("getsid", Errno::ENOTTY));
        }
        let group = getpgid(Some(root)).map_err(|errno| ("getpgid", errno))?;
        let holder = terminal.group().map_err(|errno| ("tcgetpgrp", errno))?;
        if holder != group {
            return Err(("tcgetpgrp", Errno::EBUSY));
        }
        self.programs.before_foreground = terminal.settings();
        Ok(())
    }

    /// A program was born in the foreground, or will be there in a moment.
    pub(super) fn in_foreground(&mut self, pid: i32) {
        let Ok(terminal) = Terminal::open() else { return };
        let Ok(root_group) = getpgid(Some(Pid::from_raw(self.root))) else { return };
        let settings = self.programs.before_foreground.take();
        self.programs.foreground = Some(Foreground { pid, terminal, root_group, settings });
    }

    /// A program that was stopped goes on: it has the terminal again, if nobody else has it.
    pub(super) fn give_terminal_again(&mut self, pid: i32) {
        let Some(foreground) = &self.programs.foreground else { return };
        if foreground.pid == pid && foreground.terminal.group() == Ok(foreground.root_group) {
            // Else it is stopped again when it needs it.
            let _hung_up = foreground.terminal.give(Pid::from_raw(pid));
        }
    }

    /// A program has ended or stopped: whatever it did, the terminal is the root's again, and set as
    /// before if it had no chance to do that.
    pub(super) fn take_terminal_back(&mut self, pid: i32, sets: bool) {
        let Some(foreground) = &self.programs.foreground else { return };
        if foreground.pid == pid && foreground.terminal.group() == Ok(Pid::from_raw(pid)) {
            // A terminal that has hung up is nobody's.
            let _hung_up = foreground.terminal.give(foreground.root_group);
            if let Some(settings) = foreground.settings.as_ref().filter(|_| sets) {
                foreground.terminal.set(settings);
            }
        }
    }

    /// A program has ended.
    pub(super) fn leaves_foreground(&mut self, pid: i32, status: &Exit) {
        self.take_terminal_back(pid, status.code().is_none());
        if self.programs.foreground.as_ref().is_some_and(|foreground| foreground.pid == pid) {
            self.programs.foreground = None;
        }
    }
}
