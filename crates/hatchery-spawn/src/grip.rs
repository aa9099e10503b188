//! How a child's process is reached later: by an fd that is kept, by one that is opened again, or,
//! where neither can be had, by asking the forkserver for it.
//!
//! A root with ten thousand actors has other uses for ten thousand fds. Where the kernel gives each
//! process an identity of its own, that is remembered in place of the pidfd; whoever has the number
//! later and not the identity is a stranger and is left alone (H18).

use std::io;

use nix::libc;

use crate::sys::pidfd::Pidfd;

#[derive(Debug)]
pub(crate) enum Grip {
    Held(Pidfd),
    Known {
        pid: u32,
        identity: u64,
    },
    /// By its parent alone, the forkserver.
    Parent,
}

/// Why a signal was not sent.
#[derive(Debug)]
pub(crate) enum NotSent {
    /// It can't be reached from here: no room for the fd that this takes, no such calls, or another
    /// user's, as one of us has changed.
    OutOfReach,
    /// The system refused.
    Refused(io::Error),
}

impl Grip {
    /// Remembers the process, which `pid` is the number of.
    pub(crate) fn new(pid: u32, pidfd: Option<Pidfd>) -> Self {
        let Some(pidfd) = pidfd else { return Self::Parent };
        match pidfd.identity() {
            Some(identity) => Self::Known { pid, identity },
            None => Self::Held(pidfd),
        }
    }

    /// Whether the process is known to have ended, reaped or not.
    pub(crate) fn is_dead(&self) -> bool {
        match self {
            Self::Parent => false,
            Self::Held(pidfd) => pidfd.is_dead(),
            Self::Known { pid, identity } => match Pidfd::open(*pid) {
                Ok(pidfd) => pidfd.identity() != Some(*identity) || pidfd.is_dead(),
                Err(error) => is_gone(&error),
            },
        }
    }

    /// Sends a signal. A process that is gone is no error.
    pub(crate) fn signal(&self, signal: i32) -> Result<(), NotSent> {
        let sent = match self {
            Self::Parent => return Err(NotSent::OutOfReach),
            Self::Held(pidfd) => pidfd.send_signal(signal),
            Self::Known { pid, identity } => match Pidfd::open(*pid) {
                Ok(pidfd) if pidfd.identity() == Some(*identity) => pidfd.send_signal(signal),
                Ok(_stranger) => Ok(()),
                Err(error) if is_gone(&error) => Ok(()),
                Err(_no_room_or_no_call) => return Err(NotSent::OutOfReach),
            },
        };
        match sent {
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                Err(NotSent::OutOfReach)
            }
            sent => sent.map_err(NotSent::Refused),
        }
    }
}

/// Nobody has the number, or it is a thread's now.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL | libc::ENOENT))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::process::{Command, Stdio};

    use super::*;

    /// H18: what has the number of a process that is gone is not signalled.
    #[test]
    fn a_stranger_with_the_number_of_a_child_is_left_alone() {
        let mut stranger =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pidfd = Pidfd::open(stranger.id()).unwrap();
        let Some(identity) = pidfd.identity() else {
            // An older kernel: the pidfd is kept, and H18 is the kernel's business.
            stranger.kill().unwrap();
            stranger.wait().unwrap();
            return;
        };
        let gone = Grip::Known { pid: stranger.id(), identity: identity + 1 };
        gone.signal(libc::SIGKILL).unwrap();
        // A signal that was sent comes before anything else that it does.
        stranger.stdin.as_mut().unwrap().write_all(b"alive").unwrap();
        let mut said = [0; 5];
        let heard = stranger.stdout.as_mut().unwrap().read_exact(&mut said);
        assert!(heard.is_ok() && said == *b"alive", "a stranger was killed");
        let its_own = Grip::new(stranger.id(), Some(pidfd));
        its_own.signal(libc::SIGKILL).unwrap();
        stranger.wait().unwrap();
        its_own.signal(libc::SIGKILL).unwrap();
    }
}
