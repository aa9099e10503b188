//! One actor's way down, in order: asked, terminated, killed, settled; or given up on.
//!
//! The ladder is climbed by time alone or by a dead channel; only `Settled` leads off it. The
//! channel is broken exactly once, as the last step (C12).

use std::collections::VecDeque;
use std::time::Duration;

use crate::Config;
use crate::board;
use crate::budget::{PAUSE, Rungs};
use crate::error::ExitStatus;
use crate::message::Reason;
use crate::report::{Forced, Step, StepTaken};
use crate::time::Time;

/// What means there are to end an actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Signals work.
    Process,
    /// Nothing works but asking (C5).
    Thread,
}

/// What happens to an actor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// It shall go, inside the budget.
    Cancel {
        /// Why.
        reason: Reason,
        /// All the time there is.
        budget: Duration,
    },
    /// It acknowledged the cancel.
    Acked,
    /// It said its last words, and closes the channel by itself.
    Leaving,
    /// Its channel broke.
    ChannelDead,
    /// It is reaped or joined; what it said last is still being read.
    Exited,
    /// It is reaped or joined, and all that it said is known.
    Settled(ExitStatus),
}

/// What shall be done about an actor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send the cancel.
    SendCancel {
        /// Why.
        reason: Reason,
        /// What the actor is told it has.
        budget: Duration,
    },
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
    /// Nothing helps: report it and wait no more.
    GiveUp(Step),
    /// Break the parent channel. Always last.
    BreakChannel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    Serving,
    Asked {
        until: Time,
    },
    Terminating {
        until: Time,
    },
    Killing {
        until: Time,
    },
    /// Nothing is left to be done to it; whoever reads its last words says when it has settled.
    Exited,
    GivenUp,
    Settled(ExitStatus),
}

/// The machine. One for each actor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Teardown {
    kind: Kind,
    config: Config,
    state: State,
    channel: Channel,
    rungs: Rungs,
    /// When the actor was cancelled, and by when all must be over.
    began: Option<(Time, Time)>,
    unacknowledged: Option<Time>,
    steps: Vec<StepTaken>,
    forced: Option<Forced>,
    /// Its channel broke before anybody asked it to go.
    broke_unasked: bool,
    /// It said its last words.
    leaves: bool,
    actions: VecDeque<Action>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Channel {
    Alive,
    /// It will be closed by the actor, as its last act.
    Closing,
    Dead,
}

impl Teardown {
    /// An actor that lives.
    #[must_use]
    pub fn new(kind: Kind, config: Config) -> Self {
        Self {
            kind,
            rungs: Rungs::cut(config.budget, &config),
            config,
            state: State::Serving,
            channel: Channel::Alive,
            began: None,
            unacknowledged: None,
            broke_unasked: false,
            leaves: false,
            steps: Vec::new(),
            forced: None,
            actions: VecDeque::new(),
        }
    }

    /// Something happened.
    pub fn handle(&mut self, event: Event, now: Time) {
        match event {
            Event::Cancel { reason, budget } => self.cancel(reason, budget, now),
            Event::Acked => self.acked(now),
            Event::Leaving => {
                self.leaves = true;
                if self.channel == Channel::Alive {
                    self.channel = Channel::Closing;
                }
            }
            Event::ChannelDead => self.channel_dead(now),
            Event::Exited => self.exited(),
            Event::Settled(status) => self.settled(status, now),
        }
    }

    /// The time is `now`.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.ack_end().is_some_and(|until| until <= now) {
            self.unacknowledged = None;
            self.note(Step::Unacknowledged, now);
        }
        let Some(until) = self.rung_end().filter(|until| *until <= now) else { return };
        if now.since(until) > PAUSE {
            return self.paused(now);
        }
        match self.state {
            State::Asked { .. } => match self.kind {
                // It is on its way, and SIGTERM would tell it nothing: it has the time until SIGKILL. A
                // level that gave up on who is below it is not forced for having waited (C2).
                Kind::Process if self.leaves => {
                    self.state = State::Terminating { until: now + self.rungs.terminate };
                }
                Kind::Process => self.terminate(now),
                Kind::Thread => self.give_up(Step::Abandoned, now),
            },
            State::Terminating { .. } => self.kill(now),
            State::Killing { .. } => self.give_up(Step::Unreapable, now),
            // No rung has an end in these: `rung_end` gave none.
            State::Serving | State::Exited | State::GivenUp | State::Settled(_) => {}
        }
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Teardown::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        match (self.rung_end(), self.ack_end()) {
            (Some(rung), Some(ack)) => Some(rung.min(ack)),
            (rung, ack) => rung.or(ack),
        }
    }

    /// Whether nobody waits for this actor any more: settled, or given up on.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::GivenUp | State::Settled(_))
    }

    /// Whether the actor has settled: who was given up on, and ended all the same, has too.
    #[must_use]
    pub fn has_settled(&self) -> bool {
        matches!(self.state, State::Settled(_))
    }

    /// Whether the actor was asked to go.
    #[must_use]
    pub fn was_asked(&self) -> bool {
        self.began.is_some()
    }

    /// The rung it stands on, and when all its time is over; `None` in the state if it is over.
    #[must_use]
    pub fn stage(&self) -> (Option<board::State>, Option<Time>) {
        let stage = match self.state {
            State::Serving => Some(board::State::Open),
            State::Asked { .. } => {
                let acknowledged = self.steps.iter().any(|taken| taken.step == Step::Acknowledged);
                Some(if acknowledged { board::State::Acknowledged } else { board::State::Asked })
            }
            State::Terminating { .. } if self.forced.is_none() => Some(board::State::Leaving),
            State::Terminating { .. } => Some(board::State::Terminated),
            State::Killing { .. } => Some(board::State::Killed),
            State::Exited => Some(board::State::Leaving),
            State::GivenUp => Some(board::State::GivenUp),
            State::Settled(_) => None,
        };
        (stage, self.began.map(|(_, until)| until))
    }

    /// Whether it would be called unreapable now. Whoever can see that it is dead says so before:
    /// [`Event::Exited`], and [`Event::Settled`] with what is known.
    #[must_use]
    pub fn gives_up(&self, now: Time) -> bool {
        // Later than that means that everybody stood still, and it is given its time again.
        matches!(self.state, State::Killing { until } if until <= now && now.since(until) <= PAUSE)
    }

    /// Whether it was ended by force, or given up on.
    #[must_use]
    pub fn was_forced(&self) -> bool {
        self.forced.is_some()
    }

    /// Whether its channel broke before anybody asked it to go, and without a good-bye: whatever was
    /// done to it since, that was its own doing.
    #[must_use]
    pub fn broke_unasked(&self) -> bool {
        self.broke_unasked
    }

    /// How long to wait for the last words of an actor that has ended: what is left of the budget,
    /// so that its spawner isn't late, and at least the moment that a reader needs to have its turn.
    #[must_use]
    pub fn last_words(&self, now: Time) -> Duration {
        let patience = self.config.peer_drain;
        match self.began {
            Some((_, end)) => end.since(now).max(LAST_WORDS_FLOOR).min(patience),
            None => patience,
        }
    }

    /// How long to wait for what an actor that has ended had started by itself: what is left of the
    /// budget, and at least the moment that the kernel needs for a kill.
    #[must_use]
    pub fn time_left(&self, now: Time) -> Duration {
        let left = self.began.map_or(self.config.budget, |(_, end)| end.since(now));
        left.max(KILL_FLOOR)
    }

    /// The steps so far, the hardest means, and the end.
    #[must_use]
    pub fn report(&self) -> (Vec<StepTaken>, Option<Forced>, Option<ExitStatus>) {
        let end = match self.state {
            State::Settled(status) => Some(status),
            State::Serving
            | State::Asked { .. }
            | State::Terminating { .. }
            | State::Killing { .. }
            | State::Exited
            | State::GivenUp => None,
        };
        (self.steps.clone(), self.forced, end)
    }

    fn cancel(&mut self, reason: Reason, budget: Duration, now: Time) {
        match self.state {
            State::Serving => {}
            State::Asked { .. } | State::Terminating { .. } | State::Killing { .. } => {
                return self.hurry(reason, budget, now);
            }
            // Too late to be asked; whoever asks sees that it is over.
            State::Exited | State::GivenUp | State::Settled(_) => return,
        }
        self.rungs = Rungs::cut(budget, &self.config);
        self.began = Some((now, now + budget));
        if self.rungs.graceful.is_zero() && self.kind == Kind::Process {
            return self.kill(now);
        }
        match (self.channel, self.kind) {
            (Channel::Alive | Channel::Closing, _) => {
                self.note(Step::Asked, now);
                let budget = self.rungs.handed_down;
                self.actions.push_back(Action::SendCancel { reason, budget });
                self.unacknowledged = Some(now + self.config.cancel_ack);
            }
            // Nobody waits for an acknowledgement on a dead channel (C11).
            (Channel::Dead, Kind::Process) => return self.terminate(now),
            // A thread sees the broken channel by itself; there is nothing harder to do.
            (Channel::Dead, Kind::Thread) => self.note(Step::ChannelDead, now),
        }
        let patience = match self.kind {
            Kind::Process => self.rungs.graceful,
            Kind::Thread => self.rungs.total(),
        };
        self.state = State::Asked { until: now + patience };
    }

    /// A second cancel shortens, it never lengthens (H24).
    fn hurry(&mut self, reason: Reason, budget: Duration, now: Time) {
        let Some((began, end)) = self.began else { return };
        if now + budget >= end {
            return;
        }
        self.began = Some((began, now + budget));
        self.rungs = Rungs::cut(budget, &self.config);
        match (&mut self.state, self.kind) {
            (State::Asked { until }, Kind::Thread) => {
                *until = (*until).min(now + self.rungs.total());
            }
            (State::Asked { .. }, Kind::Process) if self.rungs.graceful.is_zero() => {
                return self.kill(now);
            }
            (State::Asked { until }, Kind::Process) => {
                *until = (*until).min(now + self.rungs.graceful);
            }
            (State::Terminating { until }, _) => {
                *until = (*until).min(now + self.rungs.terminate);
            }
            (State::Killing { until }, _) => {
                *until = (*until).min(now + budget.max(KILL_FLOOR));
            }
            // `began` is set, so it was asked; and `cancel` let no finished one in here.
            (State::Serving | State::Exited | State::GivenUp | State::Settled(_), _) => {}
        }
        if matches!(self.state, State::Asked { .. }) && self.channel == Channel::Alive {
            let budget = self.rungs.handed_down;
            self.actions.push_back(Action::SendCancel { reason, budget });
        }
    }

    /// Noted once, also when it is late: who is slow may still be on its way.
    fn acked(&mut self, now: Time) {
        self.unacknowledged = None;
        let took = |step| self.steps.iter().any(|taken| taken.step == step);
        if took(Step::Asked) && !took(Step::Acknowledged) && !self.is_over() {
            self.note(Step::Acknowledged, now);
        }
    }

    fn channel_dead(&mut self, now: Time) {
        if self.channel == Channel::Dead || self.is_over() {
            return;
        }
        let was_closing = self.channel == Channel::Closing;
        self.broke_unasked = !was_closing && matches!(self.state, State::Serving);
        self.channel = Channel::Dead;
        self.unacknowledged = None;
        match (&self.state, self.kind) {
            // Its last act: it settles in a moment, and keeps the time it was given for that.
            (State::Asked { .. }, Kind::Process) if was_closing => {}
            (State::Asked { .. }, Kind::Process) => {
                // Its last words may have been lost with the channel: a moment, then SIGTERM.
                self.note(Step::ChannelDead, now);
                let soon = now + self.rungs.terminate.min(LAST_ACT);
                if let State::Asked { until } = &mut self.state {
                    *until = (*until).min(soon);
                }
            }
            (State::Asked { .. }, Kind::Thread) => self.note(Step::ChannelDead, now),
            // It is dying at this moment and its status comes in a moment, or it lives on without
            // a channel and is taken down from outside.
            (State::Serving, _) => {
                self.began = Some((now, now + self.config.budget));
                self.note(Step::ChannelDead, now);
                let patience = match self.kind {
                    Kind::Process => self.config.exit_status_wait,
                    Kind::Thread => self.rungs.total(),
                };
                self.state = State::Asked { until: now + patience };
            }
            // These are past asking.
            (
                State::Terminating { .. }
                | State::Killing { .. }
                | State::Exited
                | State::GivenUp
                | State::Settled(_),
                _,
            ) => {}
        }
    }

    /// From here on no rung has an end: nobody is signalled, or called unreapable, because its last
    /// words take their time. Its acknowledgement may be among them.
    fn exited(&mut self) {
        if !self.is_over() {
            self.state = State::Exited;
        }
    }

    fn settled(&mut self, status: ExitStatus, now: Time) {
        match self.state {
            State::Settled(_) => {}
            // Reported as given up already, and its channel is broken: only the record changes.
            State::GivenUp => {
                self.state = State::Settled(status);
                self.note(Step::Settled, now);
            }
            State::Serving
            | State::Asked { .. }
            | State::Terminating { .. }
            | State::Killing { .. }
            | State::Exited => {
                self.state = State::Settled(status);
                self.unacknowledged = None;
                self.note(Step::Settled, now);
                self.actions.push_back(Action::BreakChannel);
            }
        }
    }

    fn terminate(&mut self, now: Time) {
        self.force(Step::Terminated, now);
        self.actions.push_back(Action::Terminate);
        self.state = State::Terminating { until: now + self.rungs.terminate };
    }

    fn kill(&mut self, now: Time) {
        self.force(Step::Killed, now);
        self.actions.push_back(Action::Kill);
        self.unacknowledged = None;
        // The last wait: what was not used before it is its own.
        let end = self.began.map_or(now, |(_, end)| end);
        let until = end.max(now + self.rungs.kill.max(KILL_FLOOR));
        self.state = State::Killing { until };
    }

    fn give_up(&mut self, step: Step, now: Time) {
        self.force(step, now);
        self.unacknowledged = None;
        self.state = State::GivenUp;
        self.actions.push_back(Action::GiveUp(step));
        self.actions.push_back(Action::BreakChannel);
    }

    /// A timer that is late by more than a second means that everybody stood still: nobody is
    /// blamed, the rung starts again (C2).
    fn paused(&mut self, now: Time) {
        self.note(Step::Paused, now);
        let Rungs { graceful, terminate, kill, .. } = self.rungs;
        match &mut self.state {
            State::Asked { until } => *until = now + graceful,
            State::Terminating { until } => *until = now + terminate,
            State::Killing { until } => *until = now + kill.max(KILL_FLOOR),
            // These have no timer.
            State::Serving | State::Exited | State::GivenUp | State::Settled(_) => {}
        }
    }

    fn rung_end(&self) -> Option<Time> {
        match self.state {
            State::Asked { until } | State::Terminating { until } | State::Killing { until } => {
                Some(until)
            }
            State::Serving | State::Exited | State::GivenUp | State::Settled(_) => None,
        }
    }

    /// When its acknowledgement is late; who is dead can't be late.
    fn ack_end(&self) -> Option<Time> {
        self.unacknowledged.filter(|_| self.state != State::Exited)
    }

    fn force(&mut self, step: Step, now: Time) {
        self.note(step, now);
        self.forced = Some(Forced { step, after: self.after(now) });
    }

    fn note(&mut self, step: Step, now: Time) {
        let after = self.after(now);
        self.steps.push(StepTaken { step, after });
    }

    fn after(&self, now: Time) -> Duration {
        self.began.map_or(Duration::ZERO, |(began, _)| now.since(began))
    }
}

/// The kernel needs this long for a kill even when no budget is left.
const KILL_FLOOR: Duration = Duration::from_millis(50);
/// A reader of last words has its turn in this time, if its threads are free.
const LAST_WORDS_FLOOR: Duration = Duration::from_millis(50);
/// From an actor's closing of the channel to the end of its process.
const LAST_ACT: Duration = Duration::from_millis(100);
