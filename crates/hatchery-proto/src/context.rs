//! One side's view of a context: two linked tasks, one in each of two actors.
//!
//! ```text
//!   opener                                            callee
//!   Opened ── open ─────────────────────────────────► Opened
//!   Started ◄──────────────────────────── started ── Started
//!      │  messages, grants, ends of halves, both ways    │
//!   Over ◄─────────────────────────────────── word ── Over
//! ```
//!
//! The callee has the last word, exactly once, and it is what both believe: a cancel that crosses
//! it on the way changes nothing. Only an opener that gave up, or a broken channel, ends a context
//! without it.
//!
//! A half has a clean end (C20) where its sender has closed it, or where the function behind it has
//! come to a good end. A sender that was only dropped says nothing yet: it may have been dropped by a
//! panic, an error or a cancel, and the last word tells which.

use crate::message::Reason;
use crate::stream::{Incoming, Outgoing, Terms, Violation};

/// How far a context has come.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Asked for.
    Opened,
    /// The callee has said `started`; messages may pass.
    Started,
    /// All is said.
    Over(End),
}

/// How a context ended, without the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// The callee's function returned a value.
    Returned,
    /// It failed, panicked or was cancelled: the fault says by whom.
    Failed,
    /// The channel broke before the callee's last word was known here.
    Lost,
    /// The opener no longer waits for it.
    GivenUp,
}

/// What the callee says in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Word {
    /// Send what the function came to.
    AsItIs,
    /// The function returned without ever having said `started`: that is an error of its own.
    NeverStarted,
    /// Nobody is there to hear it.
    Nothing,
}

/// Which side of a context one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// It asked for the context.
    Opener,
    /// It runs the function.
    Callee,
}

/// In what course a sender was dropped that was not closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// Of code that goes on: this is its way to close the half.
    GoingOn,
    /// Of a step whose outcome nobody knows yet: [`Context::went_on`] tells it, or nothing does.
    InStep,
    /// Of code whose end decides, and is told as the last word or as a cancel.
    UntilTheEnd,
}

/// What a reader is to be told that has read all that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rest {
    /// More may come.
    Waits,
    /// That was all, and its sender meant it to be.
    Ended,
    /// There may have been more: the context ended in another way, and why is in its fault.
    Cut,
}

/// Why the callee can't say `started`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NotStarted {
    /// It has said so already.
    #[error("`started` was said twice")]
    Twice,
    /// The context is over.
    #[error("the context is over")]
    Over,
}

/// One side of one context.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Context {
    phase: Phase,
    /// The first cancel, made here by an opener or told to a callee.
    cancel: Option<Reason>,
    /// The sender was dropped in a step that is not over.
    owes_close: bool,
    /// What is sent from here.
    pub outgoing: Outgoing,
    /// What comes here.
    pub incoming: Incoming,
}

impl Context {
    /// A side of a new context.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self {
            phase: Phase::Opened,
            cancel: None,
            owes_close: false,
            outgoing: Outgoing::new(terms.credit),
            incoming: Incoming::new(terms),
        }
    }

    /// How far it has come.
    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Whether all is said.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    /// The first cancel: who asked for it and why. A callee is told the opener's.
    #[must_use]
    pub fn cancelled(&self) -> Option<&Reason> {
        self.cancel.as_ref()
    }

    /// Callee: `started` is to be sent.
    ///
    /// # Errors
    /// [`NotStarted`]: it is not.
    pub fn start(&mut self) -> Result<(), NotStarted> {
        match self.phase {
            Phase::Opened => {
                self.phase = Phase::Started;
                Ok(())
            }
            Phase::Started => Err(NotStarted::Twice),
            Phase::Over(_) => Err(NotStarted::Over),
        }
    }

    /// Callee: the function has ended; says what to tell the opener.
    pub fn finish(&mut self, returned: bool) -> Word {
        let word = match (&self.phase, returned) {
            (Phase::Over(_), _) => return Word::Nothing,
            (Phase::Opened, true) => Word::NeverStarted,
            (Phase::Opened, false) | (Phase::Started, _) => Word::AsItIs,
        };
        let returned = returned && word == Word::AsItIs;
        self.end(if returned { End::Returned } else { End::Failed });
        word
    }

    /// Callee: the opener cancels; says whether the function has to be dropped.
    pub fn told_to_stop(&mut self, reason: Reason) -> bool {
        self.note_cancel(reason)
    }

    /// Opener: `started` has come.
    ///
    /// # Errors
    /// [`Violation::StartedTwice`]. After this side has given up it is harmless and ignored.
    pub fn started(&mut self) -> Result<(), Violation> {
        match self.phase {
            Phase::Opened => {
                self.phase = Phase::Started;
                Ok(())
            }
            Phase::Started => Err(Violation::StartedTwice),
            Phase::Over(_) => Ok(()),
        }
    }

    /// Opener: the callee's last word has come; says whether it is news.
    ///
    /// # Errors
    /// [`Violation::NotStarted`]: a value without `started`.
    pub fn replied(&mut self, returned: bool) -> Result<bool, Violation> {
        match (&self.phase, returned) {
            (Phase::Over(_), _) => Ok(false),
            (Phase::Opened, true) => Err(Violation::NotStarted),
            (Phase::Opened, false) | (Phase::Started, _) => {
                self.end(if returned { End::Returned } else { End::Failed });
                Ok(true)
            }
        }
    }

    /// Opener: cancels; says whether the callee has to be told.
    pub fn cancel(&mut self, reason: Reason) -> bool {
        self.note_cancel(reason)
    }

    /// Opener: waits no longer for the last word.
    pub fn give_up(&mut self) {
        if !self.is_over() {
            self.end(End::GivenUp);
        }
    }

    /// The channel broke; says whether that is news.
    pub fn lost(&mut self) -> bool {
        let news = !self.is_over();
        if news {
            self.end(End::Lost);
        }
        news
    }

    /// A message has come; see [`Incoming::arrived`]. Says whether to keep it.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn arrived(&mut self, length: usize) -> Result<bool, Violation> {
        match self.phase {
            // It was on its way when the context ended here.
            Phase::Over(_) => Ok(false),
            // Both sides know of the start before the other's first message can come.
            Phase::Opened => Err(Violation::NotStarted),
            Phase::Started => self.incoming.arrived(length).map(|()| true),
        }
    }

    /// The other side has closed its half.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn closed(&mut self) -> Result<(), Violation> {
        match self.phase {
            Phase::Over(_) => Ok(()),
            Phase::Opened => Err(Violation::NotStarted),
            Phase::Started => self.incoming.closed(),
        }
    }

    /// The other side has made room.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn granted(&mut self, bytes: u64) -> Result<(), Violation> {
        if self.is_over() { Ok(()) } else { self.outgoing.granted(bytes) }
    }

    /// This side closes its half; says whether the other one has to be told.
    pub fn close(&mut self) -> bool {
        self.phase == Phase::Started && self.outgoing.close()
    }

    /// This side's sender was dropped without that; says whether the other one has to be told now.
    pub fn let_go(&mut self, dropped: Dropped) -> bool {
        if !self.close() {
            return false;
        }
        self.owes_close = dropped == Dropped::InStep;
        dropped == Dropped::GoingOn
    }

    /// The step is over, and its code goes on or has ended well; says whether the other side has to be
    /// told of a sender that was dropped in it.
    pub fn went_on(&mut self) -> bool {
        std::mem::take(&mut self.owes_close) && self.phase == Phase::Started
    }

    /// What this side's reader is to be told when it has read all that has come.
    #[must_use]
    pub fn rest(&self, side: Side) -> Rest {
        match (&self.phase, side) {
            // It has closed its half, whatever either side came to later.
            _ if !self.incoming.is_open() => Rest::Ended,
            // The other side's function has ended well, and all that it sent came before that.
            (Phase::Over(End::Returned), Side::Opener) => Rest::Ended,
            // It may have had more to send, also if this side's own function has ended well.
            (Phase::Over(_), _) => Rest::Cut,
            (Phase::Opened | Phase::Started, _) => Rest::Waits,
        }
    }

    fn note_cancel(&mut self, reason: Reason) -> bool {
        let news = self.cancel.is_none() && !self.is_over();
        if news {
            self.cancel = Some(reason);
        }
        news
    }

    fn end(&mut self, end: End) {
        self.phase = Phase::Over(end);
        self.outgoing.close();
    }
}
