//! Pseudo terminals. See pty(7), ioctl_tty(2).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use nix::errno::Errno;
use nix::libc;
use tokio::io::unix::AsyncFd;

/// A new one: our side and the program's. Neither becomes anybody's controlling terminal by this.
pub(crate) fn open() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NOCTTY);
    let ours: OwnedFd = options.open("/dev/ptmx")?.into();
    let unlocked: libc::c_int = 0;
    // SAFETY: the kernel reads an int.
    Errno::result(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: only numbers are passed.
    let theirs = Errno::result(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: it is new, and nobody else's.
    Ok((ours, unsafe { OwnedFd::from_raw_fd(theirs) }))
}

/// Sets how many characters it has room for. Who is in its foreground is told by SIGWINCH.
pub(crate) fn resize(ours: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let fd = ours.as_fd().as_raw_fd();
    // SAFETY: the kernel reads one struct of the right kind.
    Errno::result(unsafe { libc::ioctl(fd, libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

/// Has the runtime of this thread watch our side, which doesn't block.
pub(crate) fn watch(ours: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: it owns the fd, so that it stays open and the same as long as that is watched.
    let watched = unsafe { AsyncFd::register(ours) };
    Ok(watched?)
}

/// Makes one of stdin, stdout and stderr the terminal of this session, which leads it and has none.
pub(crate) fn take_control() -> Result<(), Errno> {
    // SAFETY: only numbers are passed.
    let take = |fd| Errno::result(unsafe { libc::ioctl(fd, libc::TIOCSCTTY, 0) });
    (0..3).find_map(|fd| take(fd).ok()).map_or(Err(Errno::ENOTTY), |_| Ok(()))
}
