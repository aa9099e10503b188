//! A process that is held, so that what is done to it is done to nobody else (H18): by a pidfd, or,
//! where the kernel or a filter gives none, by its directory in `/proc`, which is that process's
//! alone too and takes signals as a pidfd does.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::libc;
use nix::sys::stat::Mode;

use crate::sys::pidfd::{self, Pidfd};

#[derive(Debug)]
pub(crate) enum Held {
    Pidfd(Pidfd),
    Directory(OwnedFd),
}

impl Held {
    /// Holds a process that exists or is a zombie. `ESRCH`: there is none.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        match Pidfd::open(pid) {
            Err(error) if is_forbidden(&error) => Self::directory(pid),
            opened => opened.map(Self::Pidfd),
        }
    }

    fn directory(pid: u32) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match nix::fcntl::open(format!("/proc/{pid}").as_str(), flags, Mode::empty()) {
            Err(Errno::ENOENT) => Err(Errno::ESRCH.into()),
            opened => Ok(Self::Directory(opened?)),
        }
    }

    /// Sends a signal; see [`Pidfd::send_signal`].
    pub(crate) fn send_signal(&self, signal: i32) -> io::Result<()> {
        match self {
            Self::Pidfd(pidfd) => pidfd.send_signal(signal),
            Self::Directory(directory) => pidfd::send_signal(directory.as_fd(), signal),
        }
    }

    /// Whether nobody has reaped it. By a pidfd alone that can't be told.
    pub(crate) fn is_there(&self) -> bool {
        match self {
            Self::Pidfd(_) => true,
            Self::Directory(directory) => stat(directory).is_some(),
        }
    }

    /// Whether the process has ended, reaped or not.
    pub(crate) fn is_dead(&self) -> bool {
        match self {
            Self::Pidfd(pidfd) => pidfd.is_dead(),
            Self::Directory(directory) => stat(directory).is_none_or(|stat| has_ended(&stat)),
        }
    }

    /// Blocks until the process has ended, at most `bound`; says whether it has.
    pub(crate) fn wait_dead(&self, bound: Duration) -> bool {
        if let Self::Pidfd(pidfd) = self {
            return pidfd.wait_dead(bound);
        }
        let until = Instant::now() + bound;
        while !self.is_dead() {
            if Instant::now() >= until {
                return false;
            }
            #[allow(clippy::disallowed_methods, reason = "a directory has no event for an end")]
            std::thread::sleep(LOOK_AGAIN);
        }
        true
    }
}

/// Whether a call failed because there is no such call here, or not for us.
pub(crate) fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES))
}

/// What its directory says about a process; `None` if that was reaped.
fn stat(directory: &OwnedFd) -> Option<String> {
    let file = openat(directory, "stat", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
    io::read_to_string(std::fs::File::from(file.ok()?)).ok()
}

/// A zombie, and not just the main thread of others that run (H11).
fn has_ended(stat: &str) -> bool {
    let Some((_, after)) = stat.rsplit_once(')') else { return true };
    let mut fields = after.split_whitespace();
    let state = fields.next();
    // Field 20; the state is the third.
    let threads = fields.nth(16).and_then(|threads| threads.parse::<u32>().ok());
    matches!(state, Some("Z" | "X")) && threads.is_none_or(|threads| threads <= 1)
}

const LOOK_AGAIN: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// H18: what is held by its directory is signalled, seen to end, and never taken for another.
    #[test]
    fn a_directory_holds_a_process_as_a_pidfd_does() {
        let mut cat = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        for held in [Held::open(cat.id()).unwrap(), Held::directory(cat.id()).unwrap()] {
            held.send_signal(0).unwrap();
            assert!(held.is_there() && !held.is_dead() && !held.wait_dead(LOOK_AGAIN));
        }
        let held = Held::directory(cat.id()).unwrap();
        held.send_signal(libc::SIGKILL).unwrap();
        assert!(held.wait_dead(Duration::from_secs(10)));
        assert!(held.is_there(), "nobody has reaped it");
        cat.wait().unwrap();
        assert!(!held.is_there() && held.is_dead());
        let refused = held.send_signal(libc::SIGKILL).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ESRCH));
        let nobody = Held::directory(i32::MAX.cast_unsigned()).unwrap_err();
        assert_eq!(nobody.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn the_end_of_a_main_thread_is_not_the_end() {
        let stat = |state: char, threads: u32| {
            format!("1 (a) b) {state} 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 {threads} 0 9")
        };
        assert!(has_ended(&stat('Z', 1)) && has_ended(&stat('X', 0)));
        assert!(
            !has_ended(&stat('Z', 2)) && !has_ended(&stat('S', 1)) && !has_ended(&stat('T', 1))
        );
    }
}
