//! Small things that a process hands down to what it starts: how late its timers may be, huge pages,
//! its execution domain. See prctl(2), personality(2).

use nix::errno::Errno;
use nix::libc;

/// All of them, as the kernel has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mode {
    /// How late a timer of this thread may be, in nanoseconds.
    pub(crate) timer_slack: u32,
    /// No transparent huge pages for its memory.
    pub(crate) small_pages: bool,
    /// See personality(2).
    pub(crate) personality: u32,
}

impl Mode {
    /// This thread's. What can't be asked here is 0.
    pub(crate) fn own() -> Self {
        Self {
            timer_slack: number(libc::PR_GET_TIMERSLACK).unwrap_or(0),
            small_pages: number(libc::PR_GET_THP_DISABLE) == Ok(1),
            personality: personality(ASK).unwrap_or(0),
        }
    }

    /// Makes this thread's so. What the kernel refuses, or doesn't know, stays as it is.
    pub(crate) fn take_over(self) {
        let own = Self::own();
        if self.timer_slack != own.timer_slack && self.timer_slack != 0 {
            set(libc::PR_SET_TIMERSLACK, self.timer_slack);
        }
        if self.small_pages != own.small_pages {
            set(libc::PR_SET_THP_DISABLE, self.small_pages.into());
        }
        if self.personality != own.personality {
            let _refused = personality(self.personality);
        }
    }
}

fn number(option: i32) -> Result<u32, Errno> {
    // SAFETY: these options read a number; the others must be 0.
    let found = Errno::result(unsafe { libc::prctl(option, 0, 0, 0, 0) })?;
    u32::try_from(found).map_err(|_| Errno::EOVERFLOW)
}

fn set(option: i32, value: u32) {
    // SAFETY: these options take a number; the others must be 0.
    let _refused = unsafe { libc::prctl(option, libc::c_ulong::from(value), 0, 0, 0) };
}

fn personality(persona: u32) -> Result<u32, Errno> {
    // SAFETY: only numbers are passed.
    Errno::result(unsafe { libc::personality(persona.into()) }).map(i32::cast_unsigned)
}

/// Changes nothing.
const ASK: u32 = 0xffff_ffff;
