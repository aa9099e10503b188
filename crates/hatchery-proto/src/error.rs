//! Errors on their way up the tree: path, kind, message, causes; groups; a rendering for people.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::ActorPath;
use crate::message::Reason;

/// One thing that went wrong somewhere in a tree (C4).
///
/// `Display` is one line and never prints causes; [`Fault::line`] is one line with them, and
/// [`Fault::render`] prints everything once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// Tells one fault that came by two roads from two faults that look alike.
    pub id: u64,
    /// The actor in which, or to which, it happened.
    pub path: ActorPath,
    /// What kind of thing.
    pub kind: FaultKind,
    /// In words.
    pub message: String,
    /// The chain of causes, outermost first.
    pub causes: Vec<String>,
    /// File, line and column of a panic.
    pub place: Option<String>,
    /// The typed error, for who knows its type.
    pub payload: Option<Payload>,
    /// The actor's last lines on stderr.
    pub output: Vec<String>,
    /// The members of a group, or the fault from further below that caused this one.
    pub below: Vec<Self>,
}

/// A user's error, encoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// Its Rust type, for messages and look-up.
    pub type_name: String,
    /// MessagePack with field names.
    pub bytes: Bytes,
}

/// What kind of thing went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FaultKind {
    /// A function or a nursery's body returned an error.
    Failed,
    /// It panicked.
    Panicked,
    /// The actor ended although nobody asked it to.
    Died(ExitStatus),
    /// The actor ended before it served.
    BirthFailed {
        /// The step that failed, or `handshake`.
        step: String,
    },
    /// Cancelled, by whom and why.
    Cancelled(Reason),
    /// No function of that name.
    UnknownFunction,
    /// The arguments can't be encoded, sent or decoded.
    BadArgument,
    /// The reply can't be encoded or decoded.
    BadReply,
    /// Over the frame limit.
    TooLarge,
    /// The other side broke the protocol.
    Protocol,
    /// The channel broke, and nobody knows how the actor ended.
    Lost,
    /// A call's own deadline passed.
    Deadline,
    /// A bounded wait ran out (H25).
    Stage {
        /// Which wait.
        stage: String,
        /// How long it was.
        waited: Duration,
    },
    /// Several at once.
    Group,
    /// Not admitted.
    Refused,
    /// A signal on the root.
    Interrupted {
        /// Its number.
        signal: i32,
    },
    /// A thread that did not end was given up on (C5).
    Abandoned,
    /// A process that even SIGKILL did not end was given up on.
    Unreapable,
    /// Asked for in a copy of the process, made by fork, to which nothing of the tree belongs.
    Copied,
    /// The actor is gone; processes that it had started by itself are not, and could not be ended.
    LeftBehind,
}

/// How a process or thread ended. A death by signal is never a code (H28).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It returned or called `exit`: 0 to 255.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// Its status is lost, for its forkserver died first.
    Unknown,
    /// SIGKILL by the kernel, as the memory of its cgroup was used up.
    OutOfMemory,
}

impl ExitStatus {
    /// The signal that ended it, if it was one.
    #[must_use]
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Signal(signal) => Some(signal),
            Self::OutOfMemory => Some(SIGKILL),
            Self::Code(_) | Self::Unknown => None,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "killed by {}", signal_name(*signal)),
            Self::Unknown => f.write_str("status unknown, its forkserver is gone"),
            Self::OutOfMemory => {
                write!(f, "killed by {}, out of memory in its cgroup", signal_name(SIGKILL))
            }
        }
    }
}

impl Fault {
    /// A fault without causes.
    #[must_use]
    pub fn new(id: u64, path: ActorPath, kind: FaultKind, message: impl Into<String>) -> Self {
        Self {
            id,
            path,
            kind,
            message: message.into(),
            causes: Vec::new(),
            place: None,
            payload: None,
            output: Vec::new(),
            below: Vec::new(),
        }
    }

    /// The same with one more cause at the end of the chain.
    #[must_use]
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Several faults as one: none is lost, none stands twice; a single one stays itself.
    ///
    /// `None` if there are none.
    #[must_use]
    pub fn group(id: u64, path: ActorPath, faults: Vec<Self>) -> Option<Self> {
        let mut seen = BTreeSet::new();
        let mut members: Vec<Self> = Vec::with_capacity(faults.len());
        for fault in faults {
            if seen.insert(fault.id) {
                members.push(fault);
            }
        }
        if members.len() < 2 {
            return members.pop();
        }
        let message = format!("{} errors", members.len());
        let mut group = Self::new(id, path, FaultKind::Group, message);
        group.below = members;
        Some(group)
    }

    /// What happened to the actor and its causes, in one line and without the actor's path: for errors that
    /// have named it. Of a group, and of a fault from further below, the first one is told and the others
    /// are counted.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = What(self).to_string();
        for cause in &self.causes {
            line = line + ": " + cause;
        }
        if let Some(first) = self.below.first() {
            line = format!("{line}: actor `{}` {}", first.path, first.line());
            if self.below.len() > 1 {
                line = format!("{line} (and {} more)", self.below.len() - 1);
            }
        }
        // A message of a user's may have several.
        if line.contains('\n') { line.lines().collect::<Vec<_>>().join(" ") } else { line }
    }

    /// Whether this fault, or one below it, has that id.
    #[must_use]
    pub fn contains(&self, id: u64) -> bool {
        self.id == id || self.below.iter().any(|fault| fault.contains(id))
    }

    /// Every fault that is no group, depth first.
    #[must_use]
    pub fn leaves(&self) -> Vec<&Self> {
        if self.kind == FaultKind::Group {
            self.below.iter().flat_map(Self::leaves).collect()
        } else {
            vec![self]
        }
    }

    /// The whole story for people: one line a fault, causes and last output indented below it. Of
    /// a crowd of faults side by side the first 50 are shown, the rest counted.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        self.render_into(&mut text, 0, &mut BTreeSet::new());
        text.truncate(text.trim_end().len());
        text
    }

    fn render_into(&self, text: &mut String, depth: usize, seen: &mut BTreeSet<u64>) {
        let indent = depth * 2;
        if !seen.insert(self.id) {
            return;
        }
        // Writing to a String can't fail.
        let _infallible = writeln!(text, "{:indent$}{self}", "");
        if let Some(place) = &self.place {
            let _infallible = writeln!(text, "{:indent$}  at {place}", "");
        }
        for cause in &self.causes {
            let _infallible = writeln!(text, "{:indent$}  because: {cause}", "");
        }
        for line in &self.output {
            let _infallible = writeln!(text, "{:indent$}  stderr: {line}", "");
        }
        for fault in self.below.iter().take(MAX_SHOWN) {
            fault.render_into(text, depth + 1, seen);
        }
        let hidden = self.below.len().saturating_sub(MAX_SHOWN);
        if hidden > 0 {
            let _infallible = writeln!(text, "{:indent$}  and {hidden} more", "");
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "actor `{}` ", self.path)?;
        self.what(f)
    }
}

impl Fault {
    /// What happened to the actor, without its path.
    fn what(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            FaultKind::Failed => write!(f, "failed: {}", self.message),
            FaultKind::Panicked => write!(f, "panicked: {}", self.message),
            FaultKind::Died(status) => write!(f, "died, {status}: {}", self.message),
            FaultKind::BirthFailed { step } => write!(f, "was not born, {step}: {}", self.message),
            FaultKind::Cancelled(reason) => write!(f, "was {reason}"),
            FaultKind::UnknownFunction
            | FaultKind::BadArgument
            | FaultKind::BadReply
            | FaultKind::TooLarge
            | FaultKind::Refused => write!(f, "refused: {}", self.message),
            FaultKind::Deadline => write!(f, "was too slow: {}", self.message),
            FaultKind::Protocol => write!(f, "broke the protocol: {}", self.message),
            FaultKind::Lost => write!(f, "was lost: {}", self.message),
            FaultKind::Stage { stage, waited } => {
                write!(f, "ran out of time at {stage} after {waited:?}: {}", self.message)
            }
            FaultKind::Group => write!(f, "has {}", self.message),
            FaultKind::Interrupted { signal } => {
                write!(f, "was interrupted by {}", signal_name(*signal))
            }
            FaultKind::Abandoned => write!(f, "was abandoned: {}", self.message),
            FaultKind::Unreapable => write!(f, "can't be reaped: {}", self.message),
            FaultKind::Copied => write!(f, "is out of reach: {}", self.message),
            FaultKind::LeftBehind => write!(f, "has left behind: {}", self.message),
        }
    }
}

impl std::error::Error for Fault {}

/// A fault without its path.
struct What<'a>(&'a Fault);

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.what(f)
    }
}

/// On every Linux.
const SIGKILL: i32 = 9;

/// A thousand lines say no more to a reader than fifty.
const MAX_SHOWN: usize = 50;

/// The name of a Linux signal, `SIG` included; a number for one that has none.
#[must_use]
pub fn signal_name(signal: i32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let name = usize::try_from(signal).ok().and_then(|at| NAMES.get(at.checked_sub(1)?));
    name.map_or_else(|| format!("signal {signal}"), |name| format!("SIG{name}"))
}
