//! How a child ended.

use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

/// The exact status of a child. A death by signal is never a code (H28).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Exit {
    /// It returned from main or called `exit`: 0 to 255.
    Code(i32),
    /// A signal ended it.
    Signal {
        /// Its number.
        signal: i32,
        /// Whether the kernel wrote a core file.
        core_dumped: bool,
        /// Whether it was SIGKILL because the memory of its [`Cgroup`](crate::Cgroup) was used up:
        /// the kernel's count of such kills there has grown while the child lived.
        out_of_memory: bool,
    },
    /// A thread's main panicked, with this message.
    Panicked(String),
}

impl Exit {
    /// Whether it ended with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        *self == Self::Code(0)
    }

    /// The code, if it was no signal and no panic.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Code(code) => Some(*code),
            Self::Signal { .. } | Self::Panicked(_) => None,
        }
    }

    /// The signal, if it was one.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        match self {
            Self::Signal { signal, .. } => Some(*signal),
            Self::Code(_) | Self::Panicked(_) => None,
        }
    }
}

/// As std has it. That the memory of a cgroup was used up is lost; a panic is code 101.
impl From<Exit> for ExitStatus {
    fn from(exit: Exit) -> Self {
        Self::from_raw(match exit {
            Exit::Code(code) => (code & 0xff) << 8,
            Exit::Signal { signal, core_dumped, out_of_memory: _ } => {
                signal | if core_dumped { CORE_DUMPED } else { 0 }
            }
            Exit::Panicked(_) => 101 << 8,
        })
    }
}

/// From std's. A status that is neither (a stop) is taken for its raw number's low byte.
impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => {
                Self::Signal { signal, core_dumped: status.core_dumped(), out_of_memory: false }
            }
            (None, None) => Self::Code(status.into_raw() & 0xff),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal { signal, core_dumped, out_of_memory } => {
                match nix::sys::signal::Signal::try_from(*signal) {
                    Ok(name) => write!(f, "killed by {name}")?,
                    Err(_) => write!(f, "killed by signal {signal}")?,
                }
                if *core_dumped {
                    f.write_str(", core dumped")?;
                }
                if *out_of_memory {
                    f.write_str(", out of memory in its cgroup")?;
                }
                Ok(())
            }
            Self::Panicked(message) => write!(f, "panicked: {message}"),
        }
    }
}

/// The bit of a raw status that says so; see wait(2).
const CORE_DUMPED: i32 = 0x80;
