//! How a program is treated, beside what it is: how it is asked to end, what becomes of what it leaves
//! behind, at which numbers it finds its fds. Pure.

/// All off by default: then a child ends by SIGKILL, and what it leaves in its group with it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Manner {
    /// The signal that asks its group to end, and after how many nanoseconds SIGKILL follows.
    pub(crate) stop: Option<(u8, u64)>,
    /// How long what it leaves in its group may go on after it, in nanoseconds.
    pub(crate) linger: u64,
    /// What it leaves behind is ended with its owner and not with it.
    pub(crate) keep_strays: bool,
    /// It is left alone: by its owner's end, by the tree's and by every sweep.
    pub(crate) detach: bool,
    /// It has the terminal while it runs.
    pub(crate) foreground: bool,
    /// It has a session of its own, and is treated as any other.
    pub(crate) session: bool,
    /// What of its stdio is a terminal of its own is that of its session.
    pub(crate) terminal: bool,
    /// The group that it joins, in place of one of its own.
    pub(crate) group: Option<i32>,
    /// The numbers at which the last of its fds are put: 3 or higher, each once.
    pub(crate) places: Vec<i32>,
}

impl Manner {
    /// Whether this can be done: what is not of that kind is refused where it is read.
    pub(crate) fn is_sound(&self) -> bool {
        let is_signal = |&(signal, _): &(u8, u64)| (1..=super::wire::MAX_SIGNAL).contains(&signal);
        let mut places = self.places.clone();
        places.sort_unstable();
        places.dedup();
        let leads = self.session || self.detach || self.foreground;
        self.stop.as_ref().is_none_or(is_signal)
            && self.group.is_none_or(|group| group > 0 && !leads)
            && (!self.terminal || self.session)
            && places.len() == self.places.len()
            && places.first().is_none_or(|lowest| *lowest >= 3)
    }

    /// Its word on the wire: one byte of marks.
    pub(crate) fn marks(&self) -> u8 {
        let bit = |is_set, at: u8| u8::from(is_set) << at;
        bit(self.stop.is_some(), 0)
            | bit(self.keep_strays, 1)
            | bit(self.detach, 2)
            | bit(self.foreground, 3)
            | bit(self.session, 4)
            | bit(self.group.is_some(), 5)
            | bit(self.terminal, 6)
    }
}

/// What the forkserver notes of a program before its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Note {
    /// It runs, as far as is known.
    Runs,
    /// By that signal.
    Stopped(i32),
    /// It has ended, and what it left in its group goes on for a while: its status comes after that.
    Ended,
}

impl Note {
    /// Its number on the wire: a stop's is its signal.
    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Runs => 0,
            Self::Stopped(signal) => signal,
            Self::Ended => -1,
        }
    }

    /// The note of that number.
    pub(crate) fn from_number(number: i32) -> Option<Self> {
        match number {
            0 => Some(Self::Runs),
            -1 => Some(Self::Ended),
            signal if (1..=i32::from(super::wire::MAX_SIGNAL)).contains(&signal) => {
                Some(Self::Stopped(signal))
            }
            _ => None,
        }
    }
}
