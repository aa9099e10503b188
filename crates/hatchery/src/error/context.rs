//! What can go wrong in a context and on its stream.

use std::error::Error as StdError;
use std::fmt;

use hatchery_proto::{ActorPath, Fault, FaultKind};

use crate::error::{CallError, carried};
use crate::function::{NoError, RemoteError};

/// A context that did not end well. What went wrong first is what is told (H16, H21).
#[derive(Debug)]
#[non_exhaustive]
pub enum ContextError<E = NoError> {
    /// The opener's own body failed or panicked; the other side was cancelled for it.
    Body(Box<Fault>),
    /// The other side's function returned its own error.
    Failed {
        /// The error, as the type the function returned.
        error: E,
        /// Where it happened and what caused it.
        fault: Box<Fault>,
    },
    /// The other side's function panicked; its actor lives.
    Panicked(Box<Fault>),
    /// The other side's actor ended; the fault names its status or signal.
    Died(Box<Fault>),
    /// The other side, or something further away that it depends on, was cancelled: the fault's
    /// reason says by whom and why, the same on every side.
    Cancelled(Box<Fault>),
    /// The context's own deadline passed; the other side was cancelled for it.
    Deadline(Box<Fault>),
    /// The context could not be opened, or a value not be read: unknown function, wrong argument,
    /// `started` never said.
    Refused(Box<Fault>),
    /// The channel broke and the other side's end isn't known.
    Lost(Box<Fault>),
    /// The other side was cancelled and did not end inside the budget.
    Stuck(Box<Fault>),
    /// Both sides failed: a group, the first one first.
    Several(Box<Fault>),
}

impl<E> ContextError<E> {
    /// The whole story: where, what kind, which causes.
    #[must_use]
    pub fn fault(&self) -> &Fault {
        match self {
            Self::Failed { fault, .. }
            | Self::Body(fault)
            | Self::Panicked(fault)
            | Self::Died(fault)
            | Self::Cancelled(fault)
            | Self::Deadline(fault)
            | Self::Refused(fault)
            | Self::Lost(fault)
            | Self::Stuck(fault)
            | Self::Several(fault) => fault,
        }
    }
}

impl<E> ContextError<E> {
    /// The actor in which it went wrong: the one on the other side, or one further away.
    #[must_use]
    pub fn path(&self) -> &ActorPath {
        &self.fault().path
    }

    /// Where in the source a panic was, if it was one: file, line and column.
    #[must_use]
    pub fn place(&self) -> Option<&str> {
        self.fault().place.as_deref()
    }
}

impl<E: RemoteError> ContextError<E> {
    /// Sorts what came from the other side.
    pub(crate) fn remote(fault: Box<Fault>, callee: &ActorPath) -> Self {
        if matches!(fault.kind, FaultKind::Cancelled(_) | FaultKind::Interrupted { .. }) {
            return Self::Cancelled(fault);
        }
        if matches!(fault.kind, FaultKind::Stage { .. }) && fault.path == *callee {
            return Self::Stuck(fault);
        }
        match CallError::from_fault(fault, callee) {
            CallError::Failed { error, fault } => Self::Failed { error, fault },
            CallError::Panicked(fault) => Self::Panicked(fault),
            CallError::Died(fault) => Self::Died(fault),
            CallError::Cancelled(fault) => Self::Cancelled(fault),
            CallError::Deadline(fault) => Self::Deadline(fault),
            CallError::Refused(fault) => Self::Refused(fault),
            CallError::Lost(fault) => Self::Lost(fault),
        }
    }
}

impl<E> fmt::Display for ContextError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "in a context with actor `{}`: {}", self.fault().path, self.fault().line())
    }
}

impl<E: fmt::Debug> StdError for ContextError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        carried(self.fault())
    }
}

/// A message that was not sent or not received.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum StreamError {
    /// This half was closed, or the other side has ended well.
    Closed,
    /// The context went wrong; the fault says how and where.
    Ended(Box<Fault>),
    /// The reader is behind and the stream's policy is to fail: try again later.
    Full,
    /// The message can't be encoded or is over the frame limit; the stream lives.
    BadMessage(Box<Fault>),
    /// A message of another type came; the stream lives.
    Unreadable(Box<Fault>),
    /// This subscriber of a broadcast was too slow and has missed that many messages.
    Lagged(u64),
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the stream is closed"),
            Self::Ended(fault) => {
                write!(f, "the stream's context with actor `{}`: {}", fault.path, fault.line())
            }
            Self::Full => f.write_str("the stream is full: its reader is behind"),
            Self::BadMessage(fault) => write!(f, "the message can't be sent: {}", fault.line()),
            Self::Unreadable(fault) => write!(f, "the message can't be read: {}", fault.line()),
            Self::Lagged(missed) => write!(f, "too slow: {missed} messages were missed"),
        }
    }
}

impl StdError for StreamError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Ended(fault) | Self::BadMessage(fault) | Self::Unreadable(fault) => {
                carried(fault)
            }
            Self::Closed | Self::Full | Self::Lagged(_) => None,
        }
    }
}
