//! What a scope says when it is asked; nothing changes by it.

use std::time::Duration;

use super::{Body, Phase, Scope};
use crate::board;
use crate::id::ActorId;
use crate::message::Reason;
use crate::time::Time;

impl Scope {
    /// Whether all is over.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Finished)
    }

    /// Whether this actor is over: settled or given up on.
    #[must_use]
    pub fn is_over(&self, id: ActorId) -> bool {
        self.members.get(&id).is_none_or(|member| member.teardown.is_over())
    }

    /// How long to wait for the last words of an actor that has exited.
    #[must_use]
    pub fn last_words(&self, id: ActorId, now: Time) -> Duration {
        self.members.get(&id).map_or(Duration::ZERO, |member| member.teardown.last_words(now))
    }

    /// How long to wait for the end of what an actor that has exited had started by itself.
    #[must_use]
    pub fn time_left(&self, id: ActorId, now: Time) -> Duration {
        self.members.get(&id).map_or(Duration::ZERO, |member| member.teardown.time_left(now))
    }

    /// Whom [`Scope::handle_timeout`] would call unreapable now: see [`Teardown::gives_up`].
    ///
    /// [`Teardown::gives_up`]: crate::teardown::Teardown::gives_up
    pub fn gives_up(&self, now: Time) -> impl Iterator<Item = ActorId> + '_ {
        let due = self.timers.iter().take_while(move |(at, _)| *at <= now);
        let member = |id: ActorId| self.members.get(&id).map(|member| (id, member));
        due.filter_map(move |(_, id)| member(*id))
            .filter(move |(_, member)| member.teardown.gives_up(now))
            .map(|(id, _)| id)
    }

    /// Whether this actor was ended by force, or given up on.
    #[must_use]
    pub fn was_forced(&self, id: ActorId) -> bool {
        self.members.get(&id).is_some_and(|member| member.teardown.was_forced())
    }

    /// Whether this actor's channel broke before anybody asked it to go, and without a good-bye.
    #[must_use]
    pub fn broke_unasked(&self, id: ActorId) -> bool {
        self.members.get(&id).is_some_and(|member| member.teardown.broke_unasked())
    }

    /// Whether this actor was asked to go.
    #[must_use]
    pub fn was_asked(&self, id: ActorId) -> bool {
        self.why_asked(id).is_some()
    }

    /// Why this actor was asked to go, if it was: the first reason.
    #[must_use]
    pub fn why_asked(&self, id: ActorId) -> Option<&Reason> {
        self.members.get(&id).and_then(|member| member.asked.as_ref())
    }

    /// Whether this is a one-shot actor whose function has not ended.
    #[must_use]
    pub fn is_running(&self, id: ActorId) -> bool {
        self.members.get(&id).is_some_and(|member| member.running)
    }

    /// How far an actor is, and when its time is over; no state if it is over, `None` if it is
    /// none of ours.
    #[must_use]
    pub fn member(&self, id: ActorId) -> Option<(Option<board::State>, Option<Time>)> {
        let member = self.members.get(&id)?;
        Some(match member.teardown.stage() {
            (Some(board::State::Open), until) if !member.ready => {
                (Some(board::State::Starting), until)
            }
            stage => stage,
        })
    }

    /// How far the nursery itself is, and how many of its actors are not over.
    #[must_use]
    pub fn stage(&self) -> (board::State, usize) {
        let state = match (&self.phase, self.body) {
            (Phase::Open, Body::Running | Body::Cancelled) => board::State::Open,
            (_, Body::Done) => board::State::Waiting,
            (Phase::Closing { .. } | Phase::Finished, Body::Running | Body::Cancelled) => {
                board::State::Cancelled
            }
        };
        (state, self.living)
    }
}
