//! What is asked of a scope, what it is told, what it wants done, and how it comes out.

use std::time::Duration;

use crate::error::{ExitStatus, Fault};
use crate::id::ActorId;
use crate::message::{Ended, Reason};
use crate::report::Report;
use crate::teardown;

/// What an actor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Serves until the scope ends.
    LongLived,
    /// Runs one function; the scope awaits it.
    OneShot,
}

/// Why an actor is not admitted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A sibling has the name: one that lives, or that was given up on and has not ended.
    NameTaken,
    /// The scope goes down.
    Closing(Reason),
    /// A limit is reached.
    TooMany {
        /// The limit.
        limit: usize,
        /// Of what.
        what: &'static str,
    },
}

/// What happens to a scope.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An actor finished its handshake.
    Ready(ActorId),
    /// An actor never came to life; nothing of it is left. Its starter was told.
    NotBorn(ActorId),
    /// A one-shot actor's function has ended.
    RunFinished {
        /// Whose.
        id: ActorId,
        /// How.
        result: Result<(), Box<Fault>>,
    },
    /// Who waited for a one-shot actor's function has said all about it.
    Told(ActorId),
    /// An actor's last words.
    Ended {
        /// Whose.
        id: ActorId,
        /// What it said.
        ended: Ended,
    },
    /// An actor acknowledged its cancel.
    Acked(ActorId),
    /// An actor's channel broke.
    ChannelDead(ActorId),
    /// An actor is reaped or joined; [`Event::Settled`] follows when its last words are read, for
    /// which there is [`Scope::last_words`](super::Scope::last_words).
    Exited(ActorId),
    /// Of an actor that is reaped processes are left that can't be ended; before [`Event::Settled`].
    LeftBehind {
        /// Whose.
        id: ActorId,
        /// Which, in words.
        processes: Vec<String>,
    },
    /// An actor is reaped or joined, and all that it said is known, and all that it had started by itself
    /// is gone or was told as left behind.
    Settled {
        /// Whose.
        id: ActorId,
        /// How it ended.
        status: ExitStatus,
        /// What to report if nobody asked it to end.
        fault: Box<Fault>,
    },
    /// The body has returned, or was dropped by [`Action::CancelBody`].
    BodyDone(Result<(), Box<Fault>>),
    /// Everybody shall go.
    Cancel {
        /// Why.
        reason: Reason,
        /// All the time there is.
        budget: Duration,
    },
    /// One actor shall go.
    CancelActor {
        /// Which.
        id: ActorId,
        /// Why.
        reason: Reason,
    },
}

/// What shall be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// About one actor.
    Actor {
        /// Which.
        id: ActorId,
        /// What.
        action: teardown::Action,
    },
    /// Drop the body, then say [`Event::BodyDone`].
    CancelBody(Reason),
    /// All is over.
    Finish(Box<Outcome>),
}

/// How a scope came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// All that went wrong, the body's own error first.
    pub faults: Vec<Fault>,
    /// Why it was cancelled, if it was.
    pub cancelled: Option<Reason>,
    /// How everybody came down.
    pub report: Report,
}
