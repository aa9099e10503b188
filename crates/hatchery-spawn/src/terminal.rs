//! The terminal of this process's session. See tty(4), tcsetpgrp(3), termios(3).

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

#[derive(Debug)]
pub(crate) struct Terminal(OwnedFd);

impl Terminal {
    /// `ENXIO`: the session has none.
    pub(crate) fn open() -> Result<Self, Errno> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        open("/dev/tty", flags, Mode::empty()).map(Self)
    }

    /// The group in the foreground.
    pub(crate) fn group(&self) -> Result<Pid, Errno> {
        tcgetpgrp(&self.0)
    }

    /// Puts a group into the foreground. The caller has SIGTTOU blocked, or is in it.
    pub(crate) fn give(&self, group: Pid) -> Result<(), Errno> {
        tcsetpgrp(&self.0, group)
    }

    /// How it is set.
    pub(crate) fn settings(&self) -> Option<Termios> {
        tcgetattr(&self.0).ok()
    }

    /// Sets it, at once. The caller has SIGTTOU blocked, or is in the foreground.
    pub(crate) fn set(&self, settings: &Termios) {
        // A terminal that has hung up needs nothing.
        let _hung_up = tcsetattr(&self.0, SetArg::TCSANOW, settings);
    }
}

/// Takes the terminal back from a program of ours, in whose group nobody may be any more: for a process
/// whose forkserver was killed.
pub(crate) fn take_back(from: u32) {
    let Ok(terminal) = Terminal::open() else { return };
    if terminal.group() != Ok(Pid::from_raw(from.cast_signed())) {
        return;
    }
    let mut stops = SigSet::empty();
    stops.add(Signal::SIGTTOU);
    let before = stops.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK);
    let _hung_up = terminal.give(getpgrp());
    // A mask that was read is one that can be set.
    let _set = before.map(|before| before.thread_set_mask());
}
