//! What a spawner is at the moment of a start, and what of it goes with the request (C18).
//!
//! A request carries what nobody but the spawner can tell, and what anybody may choose for itself:
//! its variables, its directory, its umask. What bounds a process (limits, priorities) is not told: the
//! child asks the kernel for its spawner's, so that nobody gets more by telling more (C15).

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode as Permissions;

use super::wire::{Malformed, Reader, Writer};
use crate::sys::mode::Mode;

/// What a request tells of its spawner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Present {
    /// The thread that asks: it is the one whose priorities and processors count, as in a fork.
    pub(crate) tid: i32,
    pub(crate) umask: Option<u32>,
    pub(crate) mode: Mode,
    /// Its directory comes among the fds, after all others.
    pub(crate) has_directory: bool,
    /// Its variables were told before this request.
    pub(crate) has_environment: bool,
}

impl Present {
    /// That of the calling thread; that umask, if there is one.
    pub(crate) fn own(status: &OwnStatus, umask: Option<u32>) -> Self {
        Self {
            tid: nix::unistd::gettid().as_raw(),
            umask: umask.or_else(|| status.umask()),
            mode: Mode::own(),
            has_directory: false,
            has_environment: false,
        }
    }

    pub(super) fn write(&self, out: &mut Writer) {
        let Self { tid, umask, mode, has_directory, has_environment } = self;
        out.i32(*tid);
        out.optional_u64(umask.map(u64::from));
        for number in [mode.timer_slack, mode.personality] {
            out.u64(number.into());
        }
        for flag in [mode.small_pages, *has_directory, *has_environment] {
            out.u8(u8::from(flag));
        }
    }

    pub(super) fn read(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let tid = input.i32()?;
        let umask = input.optional_u64()?.map(small).transpose()?;
        let (timer_slack, personality) = (small(input.u64()?)?, small(input.u64()?)?);
        let small_pages = input.u8()? != 0;
        let mode = Mode { timer_slack, small_pages, personality };
        let (has_directory, has_environment) = (input.u8()? != 0, input.u8()? != 0);
        Ok(Self { tid, umask, mode, has_directory, has_environment })
    }
}

fn small(number: u64) -> Result<u32, Malformed> {
    u32::try_from(number).map_err(|_| Malformed)
}

/// The directory of this process, also where it was deleted or renamed, or may not be searched.
pub(crate) fn directory() -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let open = |path| nix::fcntl::open(path, flags, Permissions::empty());
    match open(".") {
        // Who has dropped its rights may be where it may not look.
        Err(Errno::EACCES) => Ok(open("/proc/self/cwd")?),
        opened => Ok(opened?),
    }
}

/// What the kernel says of this process. Held open, as reading it costs half as much as opening it.
#[derive(Debug)]
pub(crate) struct OwnStatus(Option<File>);

impl OwnStatus {
    /// `None` in it where it can't be had.
    pub(crate) fn open() -> Self {
        Self(File::open("/proc/self/status").ok())
    }

    /// The umask; there is no other way to ask for it that other threads don't notice. `None`: it is
    /// not to be had from here, or this process has no main thread any more.
    fn umask(&self) -> Option<u32> {
        let mut text = [0; 256];
        let length = self.0.as_ref()?.read_at(&mut text, 0).ok()?;
        umask_in(&text[..length])
    }
}

/// The umask of a thread of another process.
pub(crate) fn umask_of(pid: i32, tid: i32) -> Option<u32> {
    let mut text = [0; 256];
    let mut file = File::open(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    let length = file.read(&mut text).ok()?;
    umask_in(&text[..length])
}

/// The second line, after a name that is short and has no end of a line in it.
fn umask_in(status: &[u8]) -> Option<u32> {
    let mut lines = status.split(|byte| *byte == b'\n');
    let line = lines.find_map(|line| line.strip_prefix(b"Umask:\t"))?;
    u32::from_str_radix(std::str::from_utf8(line).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_umask_is_read_from_what_the_kernel_says() {
        assert_eq!(umask_in(b"Name:\ta\\nUmask:\t0007\nUmask:\t0027\nState:\tR"), Some(0o27));
        assert_eq!(umask_in(b"Name:\tz\nState:\tZ (zombie)\n"), None);
        let (pid, tid) = (std::process::id().cast_signed(), nix::unistd::gettid().as_raw());
        let own = OwnStatus::open().umask();
        assert!(own.is_some() && own == umask_of(pid, tid) && OwnStatus(None).umask().is_none());
    }
}
