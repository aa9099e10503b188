//! Actors that were introduced to each other: who may come in, who is in, and how long one that
//! leaves waits for its guests (C13).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::handshake::HandshakeError;
use crate::id::ActorPath;
use crate::message::PROTOCOL_VERSION;
use crate::time::Time;

/// An introduction: how an actor is reached by others than its spawner. Whoever holds it may come.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Introduction {
    /// Who is reached.
    pub path: ActorPath,
    /// Where it listens: a name in the host's abstract socket namespace, drawn at random.
    pub address: [u8; 16],
    /// What a guest shows at the door.
    pub token: Token,
}

impl fmt::Debug for Introduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Introduction").field("path", &self.path).finish_non_exhaustive()
    }
}

/// 128 random bits that only introductions carry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Token(pub [u8; 16]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// Compares in the same time whatever the difference.
    fn is(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).fold(0, |differ, (own, other)| differ | (own ^ other)) == 0
    }
}

/// What a guest says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meet {
    /// [`PROTOCOL_VERSION`] of the guest.
    pub version: u32,
    /// Who comes.
    pub path: ActorPath,
    /// From the introduction.
    pub token: Token,
}

/// One guest that was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestId(u64);

/// The door of one actor.
#[derive(Debug)]
pub struct Door {
    token: Token,
    guests: BTreeMap<GuestId, ActorPath>,
    next: u64,
    until: Option<Time>,
}

impl Door {
    /// An open door.
    #[must_use]
    pub fn new(token: Token) -> Self {
        Self { token, guests: BTreeMap::new(), next: 0, until: None }
    }

    /// Somebody says who it is.
    ///
    /// # Errors
    /// [`HandshakeError`]: it speaks another version, was not introduced, or comes too late.
    pub fn enter(&mut self, meet: &Meet) -> Result<GuestId, HandshakeError> {
        if !self.token.is(&meet.token) {
            return Err(HandshakeError::Stranger);
        }
        if meet.version != PROTOCOL_VERSION {
            let (spawner, actor) = (meet.version, PROTOCOL_VERSION);
            return Err(HandshakeError::Version { spawner, actor });
        }
        if self.until.is_some() {
            return Err(HandshakeError::Leaving);
        }
        let id = GuestId(self.next);
        self.next += 1;
        self.guests.insert(id, meet.path.clone());
        Ok(id)
    }

    /// A guest's connection is closed.
    pub fn left(&mut self, id: GuestId) {
        self.guests.remove(&id);
    }

    /// The actor goes: nobody comes in any more, and who is in has until then to leave. A second
    /// close may only shorten the wait.
    pub fn close(&mut self, bound: Duration, now: Time) {
        let until = now + bound;
        self.until = Some(self.until.map_or(until, |earlier| earlier.min(until)));
    }

    /// Whether the door is closed and all have left.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.until.is_some() && self.guests.is_empty()
    }

    /// When the wait is over; `None` if nobody waits.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.until.filter(|_| !self.guests.is_empty())
    }

    /// The time is `now`: those to close on, because they did not leave. They count as gone.
    pub fn handle_timeout(&mut self, now: Time) -> Vec<(GuestId, ActorPath)> {
        match self.until {
            Some(until) if now >= until => std::mem::take(&mut self.guests).into_iter().collect(),
            _ => Vec::new(),
        }
    }
}

/// Somebody at the door who has not said who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StrangerId(u64);

/// Those at the door who have not said who they are. There is room for so many; whoever is silent for
/// longest makes room for who comes, so that nobody shuts the door by saying nothing (C15).
#[derive(Debug)]
pub struct Lobby {
    room: usize,
    patience: Duration,
    silent: BTreeMap<StrangerId, Time>,
    next: u64,
}

/// Whether one more may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// There is room.
    Free,
    /// If this one goes.
    After(StrangerId),
    /// Not before then: all have come a moment ago, and may be about to speak.
    Later(Time),
}

impl Lobby {
    /// Room for that many, at least one, each of whom may be silent for `patience` at least.
    #[must_use]
    pub fn new(room: usize, patience: Duration) -> Self {
        Self { room: room.max(1), patience, silent: BTreeMap::new(), next: 0 }
    }

    /// Whether one more may come in.
    #[must_use]
    pub fn room(&self, now: Time) -> Room {
        match self.silent.first_key_value() {
            Some((&oldest, &since)) if self.silent.len() >= self.room => {
                let until = since + self.patience;
                if until <= now { Room::After(oldest) } else { Room::Later(until) }
            }
            Some(_) | None => Room::Free,
        }
    }

    /// Somebody has come in.
    pub fn enter(&mut self, now: Time) -> StrangerId {
        let id = StrangerId(self.next);
        self.next += 1;
        self.silent.insert(id, now);
        id
    }

    /// It has said who it is, or has gone.
    pub fn left(&mut self, id: StrangerId) {
        self.silent.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

    use super::*;
    use proptest::prelude::*;

    fn meet(token: u8) -> Meet {
        Meet { version: PROTOCOL_VERSION, path: ActorPath::root(), token: Token([token; 16]) }
    }

    /// C15: a token that differs anywhere lets nobody in, and a version is only told to friends.
    #[test]
    fn only_who_was_introduced_comes_in() {
        let mut door = Door::new(Token([7; 16]));
        for at in 0..16 {
            let mut token = [7; 16];
            token[at] ^= 1;
            let stranger = Meet { version: 1, token: Token(token), ..meet(7) };
            assert_eq!(door.enter(&stranger), Err(HandshakeError::Stranger));
        }
        let old = Meet { version: 1, ..meet(7) };
        assert!(matches!(door.enter(&old), Err(HandshakeError::Version { spawner: 1, .. })));
        door.enter(&meet(7)).unwrap();
        assert!(!door.is_over());
    }

    /// C15: who is silent for longest goes first, nobody before it had its time, and who has spoken is
    /// not asked to.
    #[test]
    fn who_is_silent_for_longest_makes_room() {
        let (patience, at) = (Duration::from_nanos(20), Time::from_nanos);
        let mut lobby = Lobby::new(2, patience);
        let first = lobby.enter(at(0));
        assert_eq!(lobby.room(at(5)), Room::Free);
        let second = lobby.enter(at(5));
        assert_eq!(lobby.room(at(19)), Room::Later(at(20)));
        assert_eq!(lobby.room(at(20)), Room::After(first));
        lobby.left(first);
        assert_eq!(lobby.room(at(20)), Room::Free);
        let third = lobby.enter(at(21));
        lobby.left(second);
        assert_eq!(lobby.room(at(90)), Room::Free);
        lobby.enter(at(90));
        assert_eq!(lobby.room(at(90)), Room::After(third));
    }

    proptest! {
        /// C13, H4: whatever guests do, a closed door is over by its bound, and exactly those who
        /// had not left are named.
        #[test]
        fn a_closed_door_is_over_by_its_bound(
            steps in prop::collection::vec((0..4_u8, 0..8_usize, 0..50_u64), 0..60)
        ) {
            let mut door = Door::new(Token([1; 16]));
            let (mut inside, mut closed) = (Vec::new(), None::<u64>);
            let mut now = 0;
            for (step, which, passes) in steps {
                now += passes;
                match step {
                    0 => match door.enter(&meet(1)) {
                        Ok(id) => {
                            prop_assert!(closed.is_none());
                            inside.push(id);
                        }
                        Err(error) => {
                            prop_assert_eq!(error, HandshakeError::Leaving);
                            prop_assert!(closed.is_some());
                        }
                    },
                    1 if !inside.is_empty() => door.left(inside.remove(which % inside.len())),
                    2 => {
                        door.close(Duration::from_nanos(20), Time::from_nanos(now));
                        closed = Some(closed.map_or(now + 20, |earlier| earlier.min(now + 20)));
                    }
                    _ => {
                        let late = door.handle_timeout(Time::from_nanos(now));
                        let late: Vec<_> = late.into_iter().map(|(id, _)| id).collect();
                        if closed.is_some_and(|until| now >= until) {
                            prop_assert_eq!(&late, &inside);
                            inside.clear();
                            prop_assert!(door.is_over());
                        } else {
                            prop_assert!(late.is_empty());
                        }
                    }
                }
                prop_assert_eq!(door.is_over(), closed.is_some() && inside.is_empty());
            }
        }
    }
}
