//! The two ends of one direction of a stream: credit, order, half-closing (H22).
//!
//! The receiver grants a window of bytes; every message costs its size and a little more, and the
//! sender stops when the window is spent. So what a stalled stream holds is bounded by its window
//! and by nothing that its neighbours do.

use serde::{Deserialize, Serialize};

/// What holds for a stream, in both directions. Chosen by whoever opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Terms {
    /// The window: bytes under way or unread, in each direction.
    pub credit: u64,
    /// What happens when the window is full.
    pub policy: Policy,
}

/// What happens when a stream's window is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Policy {
    /// The sender waits for the reader.
    #[default]
    Wait,
    /// The sender gets an error and keeps the message.
    Fail,
    /// The reader's oldest unread messages are dropped, and counted.
    DropOldest,
}

/// The smallest window: room for two small messages.
pub const MIN_CREDIT: u64 = 1024;

/// What keeping one message costs beyond its bytes.
const OVERHEAD: u64 = 64;

/// What a message of that length takes of a window.
///
/// At most half of it, so that a message of any size can go when the reader has caught up: two
/// that are larger than half the window are the most that is ever under way.
#[must_use]
pub fn cost(length: usize, window: u64) -> u64 {
    (length as u64).saturating_add(OVERHEAD).min(window / 2)
}

/// The other side broke the rules of a stream or context; its connection must end (C15).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// It sent more than it was granted.
    #[error("more was sent than the credit allows")]
    Overrun,
    /// It granted more than was used.
    #[error("more was granted than was used")]
    OverGranted,
    /// It sent something after it had closed its half.
    #[error("a message after the end of the stream")]
    AfterClose,
    /// It said `started` twice.
    #[error("started twice")]
    StartedTwice,
    /// It spoke in a context that it had not started.
    #[error("a message or a result before `started`")]
    NotStarted,
}

/// Why a message can't go now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Denied {
    /// The window is spent.
    Full,
    /// This half is closed.
    Closed,
}

/// The sending end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Outgoing {
    window: u64,
    /// Sent and not granted back.
    used: u64,
    open: bool,
}

impl Outgoing {
    /// An end that may use that much.
    #[must_use]
    pub fn new(window: u64) -> Self {
        Self { window: window.max(MIN_CREDIT), used: 0, open: true }
    }

    /// Takes the credit for one message.
    ///
    /// # Errors
    /// [`Denied`]; nothing was taken.
    pub fn send(&mut self, length: usize) -> Result<(), Denied> {
        if !self.open {
            return Err(Denied::Closed);
        }
        let used = self.used + cost(length, self.window);
        if used > self.window {
            return Err(Denied::Full);
        }
        self.used = used;
        Ok(())
    }

    /// The reader has made room.
    ///
    /// # Errors
    /// [`Violation::OverGranted`].
    pub fn granted(&mut self, bytes: u64) -> Result<(), Violation> {
        self.used = self.used.checked_sub(bytes).ok_or(Violation::OverGranted)?;
        Ok(())
    }

    /// Nothing more will be sent; says whether the other side has to be told.
    pub fn close(&mut self) -> bool {
        std::mem::replace(&mut self.open, false)
    }

    /// Whether messages may still be sent, now or later.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Sent and not granted back, in bytes.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used
    }
}

/// The receiving end. It decides; who keeps the messages does as it says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Incoming {
    window: u64,
    policy: Policy,
    /// Kept and not read.
    held: u64,
    /// Read and not granted back.
    owed: u64,
    open: bool,
}

impl Incoming {
    /// An end that grants what the terms say.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        let window = terms.credit.max(MIN_CREDIT);
        Self { window, policy: terms.policy, held: 0, owed: 0, open: true }
    }

    /// A message has come and is to be kept; [`Incoming::is_over`] says what has to go for it.
    ///
    /// # Errors
    /// [`Violation`]: it is not to be kept.
    pub fn arrived(&mut self, length: usize) -> Result<(), Violation> {
        if !self.open {
            return Err(Violation::AfterClose);
        }
        let cost = cost(length, self.window);
        let unpaid = if self.policy == Policy::DropOldest { 0 } else { self.held };
        if unpaid + self.owed + cost > self.window {
            return Err(Violation::Overrun);
        }
        self.held += cost;
        if self.policy == Policy::DropOldest {
            self.owed += cost;
        }
        Ok(())
    }

    /// Whether the oldest kept message must be dropped. Only ever with [`Policy::DropOldest`].
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.held > self.window
    }

    /// A kept message was read, or dropped because [`Incoming::is_over`] said so.
    pub fn taken(&mut self, length: usize) {
        let cost = cost(length, self.window);
        self.held = self.held.saturating_sub(cost);
        if self.policy != Policy::DropOldest {
            self.owed += cost;
        }
    }

    /// What to grant the sender now: nothing, or at least half the window.
    ///
    /// Half is enough: no message costs more, so a sender whose reader has caught up can go on.
    pub fn grant(&mut self) -> Option<u64> {
        (self.open && self.owed * 4 >= self.window).then(|| std::mem::take(&mut self.owed))
    }

    /// The sender has closed its half.
    ///
    /// # Errors
    /// [`Violation::AfterClose`] at the second time.
    pub fn closed(&mut self) -> Result<(), Violation> {
        if std::mem::replace(&mut self.open, false) { Ok(()) } else { Err(Violation::AfterClose) }
    }

    /// Whether more may come.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Kept and not read, in bytes.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[derive(Debug, Clone)]
    enum Move {
        Send(usize),
        Deliver,
        Read,
        Grant,
    }

    fn moves() -> impl Strategy<Value = Move> {
        prop_oneof![
            4 => (0..3000usize).prop_map(Move::Send),
            4 => Just(Move::Deliver),
            3 => Just(Move::Read),
            2 => Just(Move::Grant),
        ]
    }

    proptest! {
        /// H22: whatever the order, honest sides never break the rules, what is kept never
        /// exceeds the window, and a sender whose reader has caught up is never stuck.
        #[test]
        fn credit_is_never_lost_and_never_exceeded(
            moves in prop::collection::vec(moves(), 0..200),
            drop_oldest in any::<bool>(),
        ) {
            let policy = if drop_oldest { Policy::DropOldest } else { Policy::Wait };
            let terms = Terms { credit: 4096, policy };
            let (mut out, mut inc) = (Outgoing::new(terms.credit), Incoming::new(terms));
            let (mut wire, mut kept) = (VecDeque::new(), VecDeque::new());
            let mut grants = VecDeque::new();
            let deliver = |wire: &mut VecDeque<usize>, kept: &mut VecDeque<usize>,
                               inc: &mut Incoming, grants: &mut VecDeque<u64>| {
                if let Some(length) = wire.pop_front() {
                    inc.arrived(length)?;
                    kept.push_back(length);
                    while inc.is_over() {
                        inc.taken(kept.pop_front().unwrap());
                    }
                    grants.extend(inc.grant());
                }
                Ok::<_, Violation>(())
            };
            for step in moves {
                match step {
                    Move::Send(length) => {
                        if out.send(length).is_ok() {
                            wire.push_back(length);
                        }
                    }
                    Move::Deliver => {
                        prop_assert!(deliver(&mut wire, &mut kept, &mut inc, &mut grants).is_ok());
                    }
                    Move::Read => {
                        if let Some(length) = kept.pop_front() {
                            inc.taken(length);
                            grants.extend(inc.grant());
                        }
                    }
                    Move::Grant => {
                        if let Some(bytes) = grants.pop_front() {
                            prop_assert!(out.granted(bytes).is_ok());
                        }
                    }
                }
                prop_assert!(inc.held() <= terms.credit);
                prop_assert!(out.used() <= terms.credit);
            }
            while !wire.is_empty() {
                prop_assert!(deliver(&mut wire, &mut kept, &mut inc, &mut grants).is_ok());
            }
            for length in kept.drain(..) {
                inc.taken(length);
                grants.extend(inc.grant());
            }
            for bytes in grants.drain(..) {
                prop_assert!(out.granted(bytes).is_ok());
            }
            prop_assert_eq!(inc.held(), 0);
            prop_assert!(out.send(usize::MAX).is_ok(), "the reader has caught up: {:?}", out);
        }
    }

    #[test]
    fn a_message_over_the_credit_is_a_violation() {
        let mut inc = Incoming::new(Terms { credit: 4096, policy: Policy::Wait });
        assert_eq!(inc.arrived(1900), Ok(()));
        assert_eq!(inc.arrived(1900), Ok(()));
        assert_eq!(inc.arrived(1900), Err(Violation::Overrun));
    }

    #[test]
    fn nothing_follows_the_end_of_a_half() {
        let terms = Terms { credit: 4096, policy: Policy::Wait };
        let (mut out, mut inc) = (Outgoing::new(terms.credit), Incoming::new(terms));
        assert!(out.close());
        assert!(!out.close(), "told once");
        assert_eq!(out.send(1), Err(Denied::Closed));
        assert_eq!(inc.closed(), Ok(()));
        assert_eq!(inc.arrived(1), Err(Violation::AfterClose));
        assert_eq!(inc.closed(), Err(Violation::AfterClose));
    }

    #[test]
    fn a_grant_that_nobody_is_owed_is_a_violation() {
        let mut out = Outgoing::new(4096);
        assert_eq!(out.send(100), Ok(()));
        assert_eq!(out.granted(5000), Err(Violation::OverGranted));
    }
}
