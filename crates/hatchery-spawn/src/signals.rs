//! Signals on this process, for a thread that does nothing else (C6, H6).

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::sys::owner::{claim, is_copy};
use crate::sys::sigaction;
use crate::sys::sigchain::Listener;

/// Signals that are told to this process's code; no more when this is dropped.
///
/// A signal is a bit that its handler sets, so none is lost when the wake-up can't be written; a
/// second one of the same number before the first was received counts as one.
///
/// Any number of sources may be there, each is told of each of its signals. A handler that was there
/// before is called too, after ours, with what it would have got from the kernel. With the last source of
/// a signal its disposition becomes what it was before, if it is still ours then: a handler that somebody
/// has installed meanwhile stays. While such a one is in force, a source is told if that handler passes the
/// signal on, as tokio's does, or when [`SignalSource::hold`] is said again.
///
/// A signal that was sent before the drop and that no thread has taken yet is its next owner's, and ends
/// the process if that is nobody.
///
/// In a copy of this process (fork(2)) signals do what they did before, and dropping the copy's source
/// does nothing.
#[derive(Debug)]
pub struct SignalSource {
    listener: &'static Listener,
    wake: Arc<EventFd>,
    stopped: Arc<AtomicBool>,
    /// Signals that came together and are given out one at a time.
    pending: AtomicU64,
}

/// Ends a [`SignalSource`]'s wait from another thread.
#[derive(Debug, Clone)]
pub struct SignalStop {
    wake: Arc<EventFd>,
    stopped: Arc<AtomicBool>,
}

/// Has signals told to this process's code. Numbers are those below 64.
///
/// # Errors
/// No fd could be had, a signal can't be caught, or this process is a [copy](crate::is_copy).
pub fn install(signals: &[i32]) -> io::Result<SignalSource> {
    if !claim() {
        return Err(io::Error::other(
            "this process is a copy, made by fork, of the one that hatchery serves",
        ));
    }
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let listener = Listener::claim(wake.as_fd().as_raw_fd());
    let (stopped, pending) = (Arc::new(AtomicBool::new(false)), AtomicU64::new(0));
    let source = SignalSource { listener, wake, stopped, pending };
    // On an error, dropping the source gives the earlier ones back.
    source.hold(signals)?;
    Ok(source)
}

impl SignalSource {
    /// Has these signals told too; those that are told already are told first again, before whoever has
    /// installed a handler meanwhile.
    ///
    /// # Errors
    /// A signal can't be caught; those before it are told.
    pub fn hold(&self, signals: &[i32]) -> io::Result<()> {
        for &signal in signals {
            self.listener.hold(signal)?;
        }
        Ok(())
    }

    /// Blocks until a signal comes, at most `bound`; `None` if none came, or on a stop.
    #[must_use]
    pub fn recv(&self, bound: Option<Duration>) -> Option<i32> {
        let until = bound.map(|bound| Instant::now() + bound);
        loop {
            let _none = self.wake.read();
            let new = self.listener.take();
            let counted = self.pending.fetch_or(new, Ordering::SeqCst) | new;
            if counted != 0 {
                let signal = counted.trailing_zeros();
                self.pending.fetch_and(!(1 << signal), Ordering::SeqCst);
                return i32::try_from(signal).ok();
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if self.is_stopped() || left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            let timeout = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left + ROUND_UP).unwrap_or(PollTimeout::MAX)
            });
            let mut fds = [PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
            // EINTR: look again.
            let _woken = poll(&mut fds, timeout);
        }
    }

    /// Whether somebody has asked it to stop.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Waits again from here on, although it was asked to stop.
    pub fn resume(&self) {
        self.stopped.store(false, Ordering::SeqCst);
    }

    /// What ends the wait.
    #[must_use]
    pub fn stopper(&self) -> SignalStop {
        SignalStop { wake: self.wake.clone(), stopped: self.stopped.clone() }
    }
}

impl SignalStop {
    /// Ends the wait, now and for ever.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Full means awake.
        let _full = self.wake.write(1);
    }
}

impl Drop for SignalSource {
    fn drop(&mut self) {
        if !is_copy() {
            self.listener.release();
        }
    }
}

/// Gives each of these signals its default if this process ignores it, as who was started by nohup(1)
/// or in the background of a shell does.
pub fn unignore(signals: &[i32]) {
    for &signal in signals {
        sigaction::unignore(signal);
    }
}

/// Whether this process ignores the signal, as under nohup(1).
#[must_use]
pub fn is_ignored(signal: i32) -> bool {
    sigaction::is_ignored(signal)
}

/// From now on SIGTERM ends the reading side of `channel`, so that whoever reads it wakes up, also
/// in a runtime that has no signal handling of its own. Once for each process.
///
/// # Errors
/// What sigaction(2) says.
pub fn shutdown_on_terminate(channel: &UnixStream) -> io::Result<()> {
    Ok(sigaction::shutdown_on_terminate(channel.as_fd())?)
}

/// Whether SIGTERM has come since [`shutdown_on_terminate`].
#[must_use]
pub fn terminated() -> bool {
    sigaction::terminated()
}

/// poll(2) counts in milliseconds.
const ROUND_UP: Duration = Duration::from_millis(1);
