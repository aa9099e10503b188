//! A process, held so that its number can't be given to a stranger. See pidfd_open(2),
//! pidfd_send_signal(2), Linux 5.3.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, fstatfs};

/// A handle to one process, whatever becomes of its number (H18).
#[derive(Debug)]
pub struct Pidfd {
    fd: OwnedFd,
}

impl Pidfd {
    /// Opens a process that exists or is a zombie.
    ///
    /// # Errors
    /// `ESRCH`: there is none. `EMFILE`, `ENOSYS` or `EPERM` as the kernel or a filter says.
    pub fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: only numbers are passed; the result is checked before it is taken over.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel just made it for us, close-on-exec.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Sends a signal; 0 only asks whether that would work.
    ///
    /// # Errors
    /// `ESRCH`: it has been reaped. `EPERM`: it belongs to somebody else.
    pub fn send_signal(&self, signal: i32) -> io::Result<()> {
        send_signal(self.fd.as_fd(), signal)
    }

    /// Whether the process has ended, reaped or not.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.wait_dead(Duration::ZERO)
    }

    /// Blocks until the process has ended, at most `bound`; says whether it has.
    #[must_use]
    pub fn wait_dead(&self, bound: Duration) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(bound).unwrap_or(PollTimeout::MAX);
        matches!(poll(&mut fds, timeout), Ok(1..))
    }

    /// What no other process will ever be called while this system runs. `None` before Linux 6.9,
    /// where all pidfds share an inode.
    pub(crate) fn identity(&self) -> Option<u64> {
        let own_kind = fstatfs(&self.fd).is_ok_and(|system| system.filesystem_type() == PID_FS);
        own_kind.then(|| fstat(&self.fd).ok().map(|stat| stat.st_ino)).flatten()
    }

    /// Takes over an fd that the forkserver sent as a pidfd.
    pub(crate) fn received(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

/// Sends a signal to the process that an fd stands for: a pidfd, or its directory in `/proc`.
pub(crate) fn send_signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let fd = process.as_raw_fd();
    // SAFETY: a null siginfo means what kill(2) would send; the fd is borrowed, so it is open.
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<u8>(), 0)
    };
    Ok(Errno::result(sent).map(drop)?)
}

/// `PID_FS_MAGIC` of linux/magic.h.
const PID_FS: FsType = FsType(0x5049_4446);

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
