//! All that spawner and actor can say to each other.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Config;
use crate::encoded::Encoded;
use crate::error::Fault;
use crate::handshake::HandshakeError;
use crate::id::{ActorPath, CallId};
use crate::peer::Meet;
use crate::report::ActorReport;
use crate::stream::Terms;

/// Raised whenever a message changes its form.
pub const PROTOCOL_VERSION: u32 = 8;

/// From the spawner to the actor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToChild {
    /// Always first: who you are and which bounds hold.
    Hello(Box<Hello>),
    /// Always first on a connection between peers: who I am and who introduced us.
    Meet(Box<Meet>),
    /// Run a function.
    Call {
        /// Answered under this number.
        call: CallId,
        /// The registered name.
        function: String,
        /// Its arguments, a MessagePack tuple.
        args: Encoded,
        /// The caller's patience, for information; the caller cancels by itself.
        deadline: Option<Duration>,
    },
    /// Open a context: a call that converses. Its last word is a `Reply`.
    Open {
        /// Answered under this number; numbers are shared with calls and only grow.
        call: CallId,
        /// The registered name.
        function: String,
        /// Its arguments, a MessagePack tuple.
        args: Encoded,
        /// What holds for its stream.
        terms: Terms,
    },
    /// There is room again for messages of a context.
    Grant {
        /// Which context.
        call: CallId,
        /// How much of the credit is given back.
        bytes: u64,
    },
    /// No more messages of a context from this side.
    CloseStream {
        /// Which context.
        call: CallId,
    },
    /// Nobody waits for this call or context any more.
    CancelCall {
        /// Which one.
        call: CallId,
        /// Why, and by whom.
        reason: Reason,
    },
    /// Go down, with all below you. Acknowledged before it is carried out (C11).
    Cancel {
        /// Why, and by whom.
        reason: Reason,
        /// What is left of the budget: be gone by then.
        budget: Duration,
        /// When it was sent, on the clock that all processes share, in nanoseconds: the way counts.
        sent: u64,
    },
    /// Take down an actor further below.
    CancelBelow {
        /// Its path.
        path: ActorPath,
        /// Why, and by whom.
        reason: Reason,
    },
}

/// From the actor to its spawner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToParent {
    /// The handshake's answer: I am who you started, and serve.
    Ready(Ready),
    /// The handshake's answer: we don't understand each other.
    Refused(HandshakeError),
    /// A context has started: its first value.
    Started {
        /// Which context.
        call: CallId,
        /// The encoded value.
        value: Encoded,
    },
    /// There is room again for messages of a context.
    Grant {
        /// Which context.
        call: CallId,
        /// How much of the credit is given back.
        bytes: u64,
    },
    /// No more messages of a context from this side.
    CloseStream {
        /// Which context.
        call: CallId,
    },
    /// The one answer to a call, the last word of a context.
    Reply {
        /// Which call.
        call: CallId,
        /// The encoded value, or what went wrong.
        result: Result<Encoded, Box<Fault>>,
    },
    /// The cancel has arrived (C11).
    CancelAck,
    /// The actor asks its spawner to go down.
    CancelParent {
        /// Why, and by whom.
        reason: Reason,
    },
    /// The last message: what nobody below has been told yet.
    Ended(Ended),
}

/// The opening of a handshake.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the spawner.
    pub version: u32,
    /// The new actor's place.
    pub path: ActorPath,
    /// The bounds of the tree.
    #[serde(with = "unless_default")]
    pub config: Config,
    /// The default backend of the tree.
    pub backend: DefaultBackend,
    /// The default stdio of the tree.
    pub stdio: DefaultStdio,
    /// How long who waits on this channel looks for messages before it sleeps.
    pub busy_poll: Duration,
    /// For a thread of the spawner's process: where the lanes beside its channel wait for it.
    pub lanes: Option<u64>,
}

/// What an actor below is started by, unless its spawner says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DefaultBackend {
    /// A fork of the forkserver.
    Forkserver,
    /// An exec of the program.
    Exec,
    /// A thread of its spawner's process.
    Thread,
}

/// Where an actor below writes, unless its spawner says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DefaultStdio {
    /// Its lines are relayed with its path.
    Relay,
    /// Nowhere.
    Null,
    /// To its spawner's own.
    Inherit,
    /// To a pipe that its spawner takes.
    Piped,
}

/// Bounds that are the default ones are not sent: every actor has to read them before it answers,
/// and both sides are of one [`PROTOCOL_VERSION`].
mod unless_default {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::Config;

    pub(super) fn serialize<S: Serializer>(config: &Config, to: S) -> Result<S::Ok, S::Error> {
        (*config != Config::default()).then_some(config).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Config, D::Error> {
        Option::deserialize(from).map(Option::unwrap_or_default)
    }
}

/// The answer to a handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// [`PROTOCOL_VERSION`] of the actor.
    pub version: u32,
    /// Its process.
    pub pid: u32,
    /// Whether somebody subscribes to its events of `tracing`, in its own process.
    pub subscribed: bool,
}

/// An actor's last words.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Ended {
    /// Errors from below that no caller was there to take.
    pub faults: Vec<Fault>,
    /// How those below came down (C16).
    pub report: Vec<ActorReport>,
    /// How many more there were, which the report does not name.
    pub dropped: u64,
    /// Peers that did not leave in time and were closed on (C13).
    pub undrained: Vec<ActorPath>,
    /// Why it goes.
    pub why: Option<Reason>,
}

/// Why something was cancelled, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reason {
    /// Who asked for it.
    pub by: ActorPath,
    /// What for.
    pub why: Why,
}

/// What a cancel is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Why {
    /// Somebody asked.
    Requested,
    /// A deadline passed.
    Deadline,
    /// An actor beside it failed.
    SiblingFailed,
    /// The body of the nursery failed.
    BodyFailed,
    /// The future that waited for it was dropped.
    Dropped,
    /// The work is done.
    Finished,
    /// The root got a signal.
    Signal(i32),
    /// The spawner is gone.
    ParentGone,
    /// SIGTERM came in place of a message.
    Terminated,
    /// The connection to the peer that asked for it is gone.
    PeerGone,
    /// Its runtime drains: nothing new is begun.
    Draining,
    /// Its runtime is closed.
    Closed,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => f.write_str("on request"),
            Self::Deadline => f.write_str("at the deadline"),
            Self::SiblingFailed => f.write_str("because a sibling failed"),
            Self::BodyFailed => f.write_str("because the nursery's body failed"),
            Self::Dropped => f.write_str("because nobody waits for it any more"),
            Self::Finished => f.write_str("because the work is done"),
            Self::Signal(signal) => write!(f, "by {}", crate::signal_name(*signal)),
            Self::ParentGone => f.write_str("because its spawner is gone"),
            Self::Terminated => f.write_str("by SIGTERM"),
            Self::PeerGone => f.write_str("because the peer that asked for it is gone"),
            Self::Draining => f.write_str("because its runtime drains"),
            Self::Closed => f.write_str("because its runtime is closed"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cancelled by `{}` {}", self.by, self.why)
    }
}
