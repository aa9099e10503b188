//! One small error for each thing a user can do; all of them carry the same remote fault (C4).

use std::cell::Cell;
use std::error::Error as StdError;
use std::fmt;

use hatchery_proto::{ActorPath, Fault, FaultKind, Report};

use crate::current;
use crate::function::{NoError, RemoteError};

mod context;
mod peer;
mod start;

pub use context::{ContextError, StreamError};
pub use peer::PeerError;
pub use start::{StartCause, StartError};

/// Any error, on its way up the tree. What nursery bodies return, so that `?` works on everything.
///
/// Like `anyhow::Error` it takes every standard error and does not implement that trait itself;
/// unlike it, it crosses processes: the path of the actor, the kind and the chain of causes stay.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Error {
    fault: Box<Fault>,
}

/// What nursery bodies return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error that is only a message.
    #[must_use]
    pub fn msg(message: impl Into<String>) -> Self {
        Self { fault: Box::new(current::fault(FaultKind::Failed, message.into())) }
    }

    pub(crate) fn from_remote(fault: Fault) -> Self {
        Self { fault: Box::new(fault) }
    }

    /// The whole story: where, what kind, which causes.
    #[must_use]
    pub fn fault(&self) -> &Fault {
        &self.fault
    }

    /// The whole story, owned.
    #[must_use]
    pub fn into_fault(self) -> Fault {
        *self.fault
    }
}

impl<E: StdError + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        Self { fault: Box::new(fault_of(&error)) }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fault.render())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fault.fmt(f)
    }
}

/// A call that did not bring back a value.
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError<E = NoError> {
    /// The function ran and returned its own error.
    Failed {
        /// The error, as the type the function returned.
        error: E,
        /// Where it happened and what caused it.
        fault: Box<Fault>,
    },
    /// The function panicked; the actor lives.
    Panicked(Box<Fault>),
    /// The actor ended during the call; the fault names its status or signal.
    Died(Box<Fault>),
    /// The call or its actor was cancelled; the fault names by whom.
    Cancelled(Box<Fault>),
    /// The call's own deadline passed; the function was cancelled on the other side.
    Deadline(Box<Fault>),
    /// The call could not be made or its reply not be read: unknown function, wrong argument,
    /// reply that can't be encoded or is over the frame limit. The actor and its channel live.
    Refused(Box<Fault>),
    /// The channel broke and the actor's end isn't known.
    Lost(Box<Fault>),
}

impl<E> CallError<E> {
    /// The whole story: where, what kind, which causes.
    #[must_use]
    pub fn fault(&self) -> &Fault {
        match self {
            Self::Failed { fault, .. }
            | Self::Panicked(fault)
            | Self::Died(fault)
            | Self::Cancelled(fault)
            | Self::Deadline(fault)
            | Self::Refused(fault)
            | Self::Lost(fault) => fault,
        }
    }
}

impl<E> CallError<E> {
    /// The actor in which it went wrong: the one that was called, or one further below.
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

impl<E: RemoteError> CallError<E> {
    /// Sorts what came back from `callee`: its function's own error, which may have come from
    /// further below, or what the runtime on either side has to say about the call itself.
    pub(crate) fn from_fault(fault: Box<Fault>, callee: &ActorPath) -> Self {
        let of_function = fault.path != *callee;
        match fault.kind {
            FaultKind::Failed | FaultKind::Group => Self::own(fault),
            _ if of_function => Self::own(fault),
            FaultKind::Panicked => Self::Panicked(fault),
            FaultKind::Died(_) | FaultKind::BirthFailed { .. } => Self::Died(fault),
            FaultKind::Cancelled(_) | FaultKind::Interrupted { .. } => Self::Cancelled(fault),
            FaultKind::Deadline => Self::Deadline(fault),
            FaultKind::UnknownFunction
            | FaultKind::BadArgument
            | FaultKind::BadReply
            | FaultKind::TooLarge
            | FaultKind::Refused
            | FaultKind::Copied => Self::Refused(fault),
            FaultKind::Protocol
            | FaultKind::Lost
            | FaultKind::Stage { .. }
            | FaultKind::Abandoned
            | FaultKind::Unreapable
            | FaultKind::LeftBehind => Self::Lost(fault),
        }
    }

    /// The actor that was to run the call did not come to serve.
    pub(crate) fn not_started(fault: Box<Fault>) -> Self {
        if matches!(fault.kind, FaultKind::Cancelled(_) | FaultKind::Interrupted { .. }) {
            return Self::Cancelled(fault);
        }
        Self::Died(fault)
    }

    fn own(fault: Box<Fault>) -> Self {
        match E::from_fault(&fault) {
            Some(error) => Self::Failed { error, fault },
            None => Self::Refused(fault),
        }
    }
}

impl<E> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "calling actor `{}`: {}", self.path(), self.fault().line())
    }
}

impl<E: fmt::Debug> StdError for CallError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        carried(self.fault())
    }
}

/// A nursery that did not end well: every fault, the first one first, and how it came down (C16).
pub struct ScopeError {
    pub(crate) fault: Box<Fault>,
    pub(crate) report: Report,
}

impl ScopeError {
    /// One fault, or a group of them. The body's own error stands first.
    #[must_use]
    pub fn fault(&self) -> &Fault {
        &self.fault
    }

    /// Every fault: the members of the group, or the only one.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        if self.fault.kind == FaultKind::Group {
            &self.fault.below
        } else {
            std::slice::from_ref(&self.fault)
        }
    }

    /// How each actor came down: steps, force, what was abandoned.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Was the nursery cancelled, and is that all that happened to it?
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self.fault.kind, FaultKind::Cancelled(_) | FaultKind::Interrupted { .. })
    }

    /// The first fault in the tree that carries an error of type `E`.
    #[must_use]
    pub fn find<E: serde::de::DeserializeOwned>(&self) -> Option<E> {
        find(&self.fault)
    }

    /// The whole tree of faults for people: one line an actor, causes below.
    #[must_use]
    pub fn render(&self) -> String {
        self.fault.render()
    }
}

/// As `main` prints it: the tree of faults, and who had to be forced.
impl fmt::Debug for ScopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fault.render())?;
        match self.report.forced().len() {
            0 => Ok(()),
            forced => write!(f, "\n{forced} forced, down in {:?}", self.report.teardown),
        }
    }
}

impl fmt::Display for ScopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "actor `{}` {}", self.fault.path, self.fault.line())
    }
}

impl StdError for ScopeError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        carried(&self.fault)
    }
}

/// A runtime that could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// This process is a copy, made by fork, of one that has used hatchery: see
    /// [`is_copy`](crate::is_copy).
    #[error("this process is a copy, made by fork, of the one that hatchery serves")]
    Copied,
    /// A bound contradicts another one.
    #[error("the configuration contradicts itself: {0}")]
    Config(hatchery_proto::ConfigError),
    /// The operating system refused.
    #[error("opening the runtime: {what}: {cause}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What it said.
        cause: std::io::Error,
    },
}

fn find<E: serde::de::DeserializeOwned>(fault: &Fault) -> Option<E> {
    let own =
        fault.payload.as_ref().filter(|payload| payload.type_name == std::any::type_name::<E>());
    own.and_then(|payload| hatchery_proto::value::from_bytes(&payload.bytes).ok())
        .or_else(|| fault.below.iter().find_map(find))
}

/// Any error as a fault: our own errors keep theirs, others become the head of a chain.
pub(crate) fn fault_of(error: &(dyn StdError + 'static)) -> Fault {
    if let Some(fault) = own_fault(error) {
        return fault.clone();
    }
    let mut fault = current::fault(FaultKind::Failed, error.to_string());
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(inner) = own_fault(cause) {
            fault.below.push(inner.clone());
            break;
        }
        fault = fault.because(cause.to_string());
        next = cause.source();
    }
    fault
}

/// The fault inside one of this crate's own errors.
fn own_fault<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Fault> {
    if let Some(fault) = error.downcast_ref::<Fault>() {
        return Some(fault);
    }
    if let Some(error) = error.downcast_ref::<ScopeError>() {
        return Some(&error.fault);
    }
    if let Some(error) = error.downcast_ref::<StartError>() {
        return Some(&error.fault);
    }
    if let Some(error) = error.downcast_ref::<StreamError>() {
        return match error {
            StreamError::Ended(fault) => Some(fault),
            StreamError::BadMessage(_)
            | StreamError::Unreadable(_)
            | StreamError::Closed
            | StreamError::Full
            | StreamError::Lagged(_) => None,
        };
    }
    // `CallError` and `ContextError` are generic, so they can't be named here.
    asked(error)
}

/// Whether this thread asks an error for the fault that it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    No,
    Yes,
    Answered,
}

thread_local! {
    static ASKING: Cell<Asking> = const { Cell::new(Asking::No) };
}

/// The fault that one of our own errors carries, whatever its type.
fn asked<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Fault> {
    ASKING.set(Asking::Yes);
    let source = error.source();
    let is_ours = ASKING.replace(Asking::No) == Asking::Answered;
    source?.downcast_ref::<Fault>().filter(|_| is_ours)
}

/// The source of an error that prints its fault: nothing that it has not printed. Asked by [`asked`] alone it
/// hands out the fault, so that an error keeps its story on its way through users' hands (C4).
fn carried(fault: &Fault) -> Option<&(dyn StdError + 'static)> {
    if ASKING.get() == Asking::No {
        return None;
    }
    ASKING.set(Asking::Answered);
    Some(fault)
}
