//! The pidfds of children: how the forkserver has room for one before it forks, and how it does
//! without where there are none.
//!
//! A fork can't be taken back, so what its pidfd needs is held before: a spare one, of the
//! forkserver itself, takes a place in its table and one in the machine's.

use nix::errno::Errno;

use super::fork::CallFailed;
use crate::held::is_forbidden;
use crate::sys::pidfd::Pidfd;

#[derive(Debug)]
pub(crate) struct Pidfds {
    /// The kernel, or a filter, lets us have some.
    available: bool,
    /// The forkserver's number.
    own: u32,
    spare: Option<Pidfd>,
}

impl Pidfds {
    pub(crate) fn new(available: bool) -> Self {
        let mut pidfds = Self { available, own: std::process::id(), spare: None };
        // A table that is full now may have room at the first request.
        let _later = pidfds.reserve();
        pidfds
    }

    /// Whether children have pidfds here.
    pub(crate) fn are_available(&self) -> bool {
        self.available
    }

    /// Makes sure that the next child's pidfd has its place, if there are pidfds.
    pub(crate) fn reserve(&mut self) -> Result<(), CallFailed> {
        if self.available && self.spare.is_none() {
            match Pidfd::open(self.own) {
                Ok(spare) => self.spare = Some(spare),
                Err(error) if is_forbidden(&error) => self.available = false,
                Err(error) => return Err(failed(&error)),
            }
        }
        Ok(())
    }

    /// The pidfd of a child that was just forked and that nobody else can have reaped; `None` where
    /// there is none to be had. Uses up what was reserved.
    pub(crate) fn open(&mut self, child: i32) -> Result<Option<Pidfd>, CallFailed> {
        if !self.available {
            return Ok(None);
        }
        drop(self.spare.take());
        match Pidfd::open(child.cast_unsigned()) {
            Ok(pidfd) => Ok(Some(pidfd)),
            Err(error) if is_forbidden(&error) => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }
}

fn failed(error: &std::io::Error) -> CallFailed {
    let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    ("pidfd_open", errno)
}
