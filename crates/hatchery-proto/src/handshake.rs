//! Whether a new actor is one of ours, raced against its death and a bound (H12, H26).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::ExitStatus;
use crate::message::{PROTOCOL_VERSION, Ready};
use crate::time::Time;

/// Which side disagrees about what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The two speak different versions: rebuild the older one.
    #[error("the spawner speaks protocol {spawner}, the actor {actor}")]
    Version {
        /// The spawner's.
        spawner: u32,
        /// The actor's.
        actor: u32,
    },
    /// The lanes beside the channel of a thread are not there for it.
    #[error("the lanes beside the channel are gone: the start was given up, or is no thread's")]
    NoLanes,
    /// The guest does not know the token: the introduction is not of this actor's life.
    #[error("the introduction is not this actor's")]
    Stranger,
    /// The actor goes down and lets nobody in any more.
    #[error("the actor goes down")]
    Leaving,
    /// The actor was born, and the system refused it something that it needs to serve: a limit of
    /// fds or threads, most often. A later start may succeed.
    #[error("the new actor called {call}, which failed with errno {errno}")]
    System {
        /// The system call, or what stands for it.
        call: String,
        /// What the call said; see errno(3).
        errno: i32,
    },
}

/// A start's wait for its actor, from the fork to the first of: ready, refused, dead, too late.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Handshake {
    began: Time,
    bound: Duration,
    until: Time,
    done: bool,
}

/// What the spawner sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The actor answered.
    Ready(Ready),
    /// The actor refused.
    Refused(HandshakeError),
    /// The actor ended.
    Exited(ExitStatus),
}

/// How a start comes out. Given once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It serves.
    Serving,
    /// It is another program or version.
    Refused(HandshakeError),
    /// It ended first.
    Died(ExitStatus),
    /// It did not answer in time.
    TimedOut {
        /// How long it had.
        waited: Duration,
    },
}

impl Handshake {
    /// A handshake that may take `bound` from now on.
    #[must_use]
    pub fn new(bound: Duration, now: Time) -> Self {
        Self { began: now, bound, until: now + bound, done: false }
    }

    /// The actor was forked just now: until then it could not answer, so its time begins here. Without
    /// effect on one that has answered.
    pub fn born(&mut self, bound: Duration, now: Time) {
        if !self.done {
            *self = Self::new(bound, now);
        }
    }

    /// So long of the time since its birth the actor wanted a processor and had none, or its answer lay
    /// there unread: that was no silence of its own, and is granted again, up to five bounds.
    pub fn excused(&mut self, lost: Duration) {
        self.until = self.began + self.bound + lost.min(self.bound * MOST_EXCUSED);
    }

    /// When it began.
    #[must_use]
    pub fn began(&self) -> Time {
        self.began
    }

    /// The first event decides; later ones change nothing, as the actor's life goes on elsewhere.
    pub fn handle(&mut self, event: Event) -> Option<Outcome> {
        if self.done {
            return None;
        }
        self.done = true;
        Some(match event {
            Event::Ready(Ready { version: PROTOCOL_VERSION, .. }) => Outcome::Serving,
            Event::Ready(Ready { version, .. }) => Outcome::Refused(HandshakeError::Version {
                spawner: PROTOCOL_VERSION,
                actor: version,
            }),
            Event::Refused(error) => Outcome::Refused(error),
            Event::Exited(status) => Outcome::Died(status),
        })
    }

    /// The bound, while it counts.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        (!self.done).then_some(self.until)
    }

    /// The time is `now`.
    pub fn handle_timeout(&mut self, now: Time) -> Option<Outcome> {
        if self.done || now < self.until {
            return None;
        }
        self.done = true;
        Some(Outcome::TimedOut { waited: now.since(self.began) })
    }
}

/// How many bounds a start may wait for an actor that the machine leaves no time: one that computes
/// and never answers, on a machine where fifty others compute, is found out too.
const MOST_EXCUSED: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> Vec<Event> {
        let wrong = HandshakeError::Version { spawner: 1, actor: 9 };
        vec![
            Event::Ready(Ready { version: PROTOCOL_VERSION, pid: 1, subscribed: false }),
            Event::Ready(Ready { version: 9, pid: 1, subscribed: false }),
            Event::Refused(wrong),
            Event::Exited(ExitStatus::Signal(6)),
        ]
    }

    /// H12: whatever comes first decides, once.
    #[test]
    fn every_order_of_two_events_has_one_outcome() {
        for first in events() {
            for second in events() {
                let mut handshake = Handshake::new(Duration::from_secs(5), Time::ZERO);
                assert!(handshake.handle(first.clone()).is_some());
                assert_eq!(handshake.handle(second), None);
                assert_eq!(handshake.handle_timeout(Time::from_nanos(u64::MAX)), None);
            }
        }
    }

    /// C16: who was not forked, or had no processor, is not silent; whatever the excuse, it ends.
    #[test]
    fn silence_counts_from_the_fork_and_without_what_others_took() {
        let bound = Duration::from_secs(5);
        let mut handshake = Handshake::new(bound, Time::ZERO);
        let fork = Time::ZERO + bound * 3;
        handshake.born(bound, fork);
        assert_eq!(handshake.poll_timeout(), Some(fork + bound));
        handshake.excused(bound / 2);
        assert_eq!(handshake.handle_timeout(fork + bound), None);
        handshake.excused(bound * 100);
        assert_eq!(handshake.poll_timeout(), Some(fork + bound * 6));
        let outcome = handshake.handle_timeout(fork + bound * 6);
        assert_eq!(outcome, Some(Outcome::TimedOut { waited: bound * 6 }));
        handshake.born(bound, fork + bound * 6);
        assert_eq!(handshake.poll_timeout(), None, "it is decided");
    }

    /// H12, H26: silence ends at the bound, not before.
    #[test]
    fn silence_ends_at_the_bound() {
        let bound = Duration::from_secs(5);
        let mut handshake = Handshake::new(bound, Time::ZERO);
        assert_eq!(handshake.handle_timeout(Time::from_nanos(1)), None);
        let outcome = handshake.handle_timeout(Time::ZERO + bound);
        assert_eq!(outcome, Some(Outcome::TimedOut { waited: bound }));
        assert_eq!(handshake.handle(events().remove(0)), None);
    }
}
