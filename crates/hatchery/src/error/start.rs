//! Why an actor could not be started.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use hatchery_proto::{ActorPath, ConfigError, Fault, FaultKind, Reason};
use hatchery_spawn::SpawnError;

use crate::current;
use crate::error::carried;

/// An actor that could not be started. Nothing of it is left.
#[derive(Debug)]
pub struct StartError {
    /// Where it would have lived.
    pub path: ActorPath,
    /// By which backend.
    pub backend: &'static str,
    /// What went wrong.
    pub cause: StartCause,
    pub(crate) fault: Box<Fault>,
}

/// Why an actor could not be started, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartCause {
    /// Another actor of this nursery has the name: choose another one, or wait until that one has
    /// settled. A thread that was given up on has its name until it has ended.
    #[error("the name is taken in this nursery")]
    NameTaken,
    /// A name is 1 to 64 letters, digits, `_`, `-` or `.`.
    #[error("`{0}` is no name for an actor: 1 to 64 letters, digits, `_`, `-` or `.`")]
    BadName(String),
    /// The nursery is going down and takes no more actors.
    #[error("the nursery is closing: {0}")]
    Closing(Reason),
    /// A limit of the configuration is reached: raise it, or start fewer.
    #[error("the limit of {limit} {what} is reached")]
    TooMany {
        /// The limit.
        limit: usize,
        /// Of what.
        what: &'static str,
    },
    /// Two functions of the program have one name, so that the wrong one might run: rename one.
    /// Attributes tell apart what differs in module, `impl` block, function around it, place in the
    /// source or text; so a macro made the same function twice at one place.
    #[error("two functions are called `{name}`, at {} and at {}: rename one of them", places[0], places[1])]
    FunctionTwice {
        /// Their path.
        name: &'static str,
        /// Where each stands: file, line and column.
        places: [&'static str; 2],
    },
    /// An option of this actor's is out of its range, or contradicts another.
    #[error("{0}")]
    Config(ConfigError),
    /// The operating system refused; the error names the call.
    #[error("{0}")]
    Spawn(SpawnError),
    /// It ended before its handshake; the fault carries the status and its last stderr lines.
    #[error("it ended during its birth")]
    Died,
    /// It did not answer in time.
    #[error("no handshake after {waited:?}")]
    Handshake {
        /// How long the start waited.
        waited: Duration,
    },
    /// It answered, but is another program or speaks another version.
    #[error("the handshake was refused: {0}")]
    Refused(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "starting actor `{}` by {}: {}", self.path, self.backend, self.cause)?;
        match self.cause {
            // The fault has the status.
            StartCause::Died => write!(f, ": {}", self.fault.line()),
            StartCause::NameTaken
            | StartCause::BadName(_)
            | StartCause::Closing(_)
            | StartCause::TooMany { .. }
            | StartCause::FunctionTwice { .. }
            | StartCause::Config(_)
            | StartCause::Spawn(_)
            | StartCause::Handshake { .. }
            | StartCause::Refused(_) => Ok(()),
        }
    }
}

impl StdError for StartError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        carried(&self.fault)
    }
}

impl StartError {
    pub(crate) fn new(path: ActorPath, backend: &'static str, cause: StartCause) -> Self {
        let (kind, message) = match &cause {
            StartCause::Closing(reason) => (FaultKind::Cancelled(reason.clone()), String::new()),
            StartCause::Handshake { waited } => {
                let (stage, waited) = ("handshake".to_owned(), *waited);
                (FaultKind::Stage { stage, waited }, "the new actor did not answer".to_owned())
            }
            StartCause::Spawn(error) => (FaultKind::Refused, error.to_string()),
            StartCause::NameTaken
            | StartCause::BadName(_)
            | StartCause::TooMany { .. }
            | StartCause::FunctionTwice { .. }
            | StartCause::Config(_)
            | StartCause::Died
            | StartCause::Refused(_) => (FaultKind::Refused, cause.to_string()),
        };
        let fault = Fault::new(current::fault_id(), path.clone(), kind, message);
        Self { path, backend, cause, fault: Box::new(fault) }
    }

    /// The whole story: status, last stderr lines, causes.
    #[must_use]
    pub fn fault(&self) -> &Fault {
        &self.fault
    }
}
