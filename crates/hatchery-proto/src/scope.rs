//! A nursery's mind: who is admitted, the first error, the cancel of the rest, the end.
//!
//! Rules, in the order in which they win:
//! 1. The scope finishes when the body is done and every actor is over, never before (C1).
//! 2. Whatever goes wrong first cancels everybody else; all that went wrong is told, the body's
//!    own error first, each thing once (C4).
//! 3. What a cancel brings about is not an error: cancelled calls, forced deaths.
//! 4. When all went well, one-shot actors are awaited, then the long-lived ones are taken down.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::Config;
use crate::board;
use crate::error::{ExitStatus, Fault, FaultKind};
use crate::id::{ActorId, ActorName, ActorPath};
use crate::message::{Ended, Reason, Why};
use crate::report::{ActorReport, Report, Step};
use crate::teardown::{self, Kind, Teardown};
use crate::time::Time;

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
    /// A sibling has the name.
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
    /// which there is [`Scope::last_words`].
    Exited(ActorId),
    /// An actor is reaped or joined, and all that it said is known.
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

/// The machine. One for each nursery.
#[derive(Debug, Clone, PartialEq)]
pub struct Scope {
    path: ActorPath,
    config: Config,
    phase: Phase,
    body: Body,
    cancelled: Option<Reason>,
    members: BTreeMap<ActorId, Member>,
    names: BTreeSet<ActorName>,
    next: u32,
    /// Members that are not over.
    living: usize,
    /// One-shot members whose function has not ended.
    running: usize,
    seen: BTreeSet<u64>,
    faults: Vec<Fault>,
    /// The next time-out of every actor that has one.
    timers: BTreeSet<(Time, ActorId)>,
    actions: VecDeque<Action>,
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    Open,
    Closing { since: Time, reason: Reason },
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Running,
    Cancelled,
    Done,
}

#[derive(Debug, Clone, PartialEq)]
struct Member {
    path: ActorPath,
    backend: &'static str,
    /// Its function still runs. Always false for a long-lived one.
    running: bool,
    ready: bool,
    /// Its own cancel, not the scope's, was asked for.
    cancelled: bool,
    /// We asked it to go, for whatever reason.
    asked: bool,
    born: bool,
    ended: Option<Ended>,
    teardown: Teardown,
}

impl Scope {
    /// An empty nursery of the actor at `path`.
    #[must_use]
    pub fn new(path: ActorPath, config: Config) -> Self {
        Self {
            path,
            config,
            phase: Phase::Open,
            body: Body::Running,
            cancelled: None,
            members: BTreeMap::new(),
            names: BTreeSet::new(),
            next: 0,
            living: 0,
            running: 0,
            seen: BTreeSet::new(),
            faults: Vec::new(),
            timers: BTreeSet::new(),
            actions: VecDeque::new(),
        }
    }

    /// Admits an actor, or says why not. Publishing it and asking whether the scope goes down are
    /// this one step (H27).
    ///
    /// # Errors
    /// [`Refusal`]; the scope is as it was.
    pub fn admit(
        &mut self,
        name: &ActorName,
        role: Role,
        kind: Kind,
        backend: &'static str,
    ) -> Result<(ActorId, ActorPath), Refusal> {
        match &self.phase {
            Phase::Open => {}
            Phase::Closing { reason, .. } => return Err(Refusal::Closing(reason.clone())),
            Phase::Finished => {
                let by = self.path.clone();
                return Err(Refusal::Closing(Reason { by, why: Why::Finished }));
            }
        }
        if self.members.len() >= self.config.max_actors {
            return Err(Refusal::TooMany { limit: self.config.max_actors, what: "actors" });
        }
        if self.path.depth() >= self.config.max_depth {
            return Err(Refusal::TooMany { limit: self.config.max_depth, what: "levels" });
        }
        if !self.names.insert(name.clone()) {
            return Err(Refusal::NameTaken);
        }
        let id = ActorId(self.next);
        self.next += 1;
        let path = self.path.child(name);
        self.members.insert(
            id,
            Member {
                path: path.clone(),
                backend,
                running: role == Role::OneShot,
                ready: false,
                cancelled: false,
                asked: false,
                born: true,
                ended: None,
                teardown: Teardown::new(kind, self.config.clone()),
            },
        );
        self.living += 1;
        self.running += usize::from(role == Role::OneShot);
        Ok((id, path))
    }

    /// Something happened.
    pub fn handle(&mut self, event: Event, now: Time) {
        match event {
            Event::Ready(id) => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.ready = true;
                }
            }
            Event::NotBorn(id) => self.not_born(id, now),
            Event::RunFinished { id, result } => self.run_finished(id, result, now),
            Event::Ended { id, ended } => self.ended(id, ended, now),
            Event::Acked(id) => self.tell(id, teardown::Event::Acked, now),
            Event::ChannelDead(id) => self.tell(id, teardown::Event::ChannelDead, now),
            Event::Exited(id) => self.tell(id, teardown::Event::Exited, now),
            Event::Settled { id, status, fault } => self.settled(id, status, *fault, now),
            Event::BodyDone(result) => self.body_done(result, now),
            Event::Cancel { reason, budget } => {
                self.cancelled.get_or_insert_with(|| reason.clone());
                self.close(reason, budget, now);
            }
            Event::CancelActor { id, reason } => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.cancelled = true;
                }
                let budget = self.config.budget;
                self.tell(id, teardown::Event::Cancel { reason, budget }, now);
            }
        }
        self.progress(now);
    }

    /// Something went wrong that belongs to no actor; it will be among the faults.
    pub fn note(&mut self, fault: Fault) {
        if !self.faults.iter().any(|known| known.contains(fault.id)) && self.seen.insert(fault.id) {
            self.faults.push(fault);
        }
    }

    /// The time is `now`.
    pub fn handle_timeout(&mut self, now: Time) {
        let later = self.timers.split_off(&(now + Duration::from_nanos(1), ActorId(0)));
        let due: Vec<_> =
            std::mem::replace(&mut self.timers, later).into_iter().map(|(_, id)| id).collect();
        for id in due {
            self.drive(id, now, |teardown| teardown.handle_timeout(now));
        }
        self.progress(now);
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Scope::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

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

    /// Whether this actor was ended by force, or given up on.
    #[must_use]
    pub fn was_forced(&self, id: ActorId) -> bool {
        self.members.get(&id).is_some_and(|member| member.teardown.was_forced())
    }

    /// Whether this actor was asked to go.
    #[must_use]
    pub fn was_asked(&self, id: ActorId) -> bool {
        self.members.get(&id).is_some_and(|member| member.asked)
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

    fn not_born(&mut self, id: ActorId, now: Time) {
        if let Some(member) = self.members.get_mut(&id) {
            member.born = false;
        }
        self.free_name(id);
        self.run_over(id);
        self.tell(id, teardown::Event::Settled(ExitStatus::Unknown), now);
    }

    fn run_finished(&mut self, id: ActorId, result: Result<(), Box<Fault>>, now: Time) {
        let Some(member) = self.members.get(&id) else { return };
        // Its error is told by who reads it, and again by who waits for it.
        let again = !member.running;
        self.run_over(id);
        let Some(member) = self.members.get(&id) else { return };
        // What a cancel brings about; a crash on the way is judged when it has settled.
        let asked_for = member.cancelled || member.asked;
        if let Err(fault) = result
            && !(asked_for && is_consequence(&fault.kind))
        {
            self.fail(*fault, Why::SiblingFailed, now);
        }
        if again {
            return;
        }
        let reason = Reason { by: self.path.clone(), why: Why::Finished };
        let budget = self.config.budget;
        self.tell(id, teardown::Event::Cancel { reason, budget }, now);
    }

    fn ended(&mut self, id: ActorId, ended: Ended, now: Time) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let faults = ended.faults.clone();
        member.ended = Some(ended);
        self.tell(id, teardown::Event::Leaving, now);
        for fault in faults {
            self.fail(fault, Why::SiblingFailed, now);
        }
    }

    fn settled(&mut self, id: ActorId, status: ExitStatus, fault: Fault, now: Time) {
        let Some(member) = self.members.get(&id) else { return };
        if member.teardown.is_over() {
            return self.tell(id, teardown::Event::Settled(status), now);
        }
        // Force that met one who was dead already, and only not yet reaped, is no excuse.
        let forced = member.teardown.was_forced() && !member.teardown.broke_unasked();
        let wanted = match &member.ended {
            // It said good-bye, and wanted to go by itself.
            Some(Ended { why: Some(reason), .. }) => reason.why == Why::Requested,
            Some(_) | None => false,
        };
        let left = status == ExitStatus::Code(0) && (member.asked || wanted);
        // A start that fails is told to its starter.
        let told = !member.ready;
        let crashed = !(left || told || (member.asked && forced));
        if told {
            self.free_name(id);
        }
        self.run_over(id);
        self.tell(id, teardown::Event::Settled(status), now);
        if crashed {
            self.fail(fault, Why::SiblingFailed, now);
        }
    }

    fn body_done(&mut self, result: Result<(), Box<Fault>>, now: Time) {
        self.body = Body::Done;
        match result {
            Ok(()) => {}
            Err(fault) if self.cancelled.is_some() && is_consequence(&fault.kind) => {}
            Err(fault) => {
                // Its own error comes first, whatever else was found before; if it is one that we
                // know already, it moves to the front (H16).
                self.faults.retain(|known| known.id != fault.id);
                self.seen.insert(fault.id);
                self.faults.insert(0, *fault);
                let by = self.path.clone();
                self.close(Reason { by, why: Why::BodyFailed }, self.config.budget, now);
            }
        }
    }

    /// Something went wrong: remember it, once, and take everybody down.
    fn fail(&mut self, fault: Fault, why: Why, now: Time) {
        let closing = !matches!(self.phase, Phase::Open);
        if closing && is_consequence(&fault.kind) && !is_death(&fault.kind) {
            return;
        }
        if self.faults.iter().any(|known| known.contains(fault.id)) || !self.seen.insert(fault.id) {
            return;
        }
        let by = fault.path.clone();
        if !self.explain(&fault) {
            self.faults.push(fault);
        }
        if !closing {
            self.close(Reason { by, why }, self.config.budget, now);
        }
    }

    /// A death that comes late says what became of an actor that is known as lost (C4).
    fn explain(&mut self, death: &Fault) -> bool {
        let is_it = |known: &&mut Fault| known.kind == FaultKind::Lost && known.path == death.path;
        let lost = self.faults.iter_mut().find(is_it).filter(|_| is_death(&death.kind));
        let Some(lost) = lost else { return false };
        lost.kind = death.kind.clone();
        lost.message.clone_from(&death.message);
        lost.output.clone_from(&death.output);
        true
    }

    fn close(&mut self, reason: Reason, budget: Duration, now: Time) {
        match self.phase {
            Phase::Open => self.phase = Phase::Closing { since: now, reason: reason.clone() },
            Phase::Closing { .. } => {}
            // Nobody is left to be told.
            Phase::Finished => return,
        }
        if self.body == Body::Running {
            self.body = Body::Cancelled;
            self.actions.push_back(Action::CancelBody(reason.clone()));
        }
        let ids: Vec<_> = self.members.keys().copied().collect();
        for id in ids {
            let event = teardown::Event::Cancel { reason: reason.clone(), budget };
            self.tell(id, event, now);
        }
    }

    /// Takes the steps that follow from the state alone.
    fn progress(&mut self, now: Time) {
        if matches!(self.phase, Phase::Open) && self.body == Body::Done && self.running == 0 {
            let by = self.path.clone();
            self.close(Reason { by, why: Why::Finished }, self.config.budget, now);
        }
        let Phase::Closing { since, .. } = self.phase else { return };
        if self.body != Body::Done || self.living > 0 {
            return;
        }
        self.phase = Phase::Finished;
        let report = Report { actors: self.reports(), teardown: now.since(since) };
        let faults = std::mem::take(&mut self.faults);
        let cancelled = self.cancelled.clone();
        self.actions.push_back(Action::Finish(Box::new(Outcome { faults, cancelled, report })));
    }

    /// An actor whose start has failed leaves its name to the next attempt.
    fn free_name(&mut self, id: ActorId) {
        if let Some(member) = self.members.get(&id) {
            self.names.remove(
                &ActorName::new(member.path.name())
                    .unwrap_or_else(|_| unreachable!("the path was made from a name")),
            );
        }
    }

    fn run_over(&mut self, id: ActorId) {
        if let Some(member) = self.members.get_mut(&id)
            && std::mem::take(&mut member.running)
        {
            self.running -= 1;
        }
    }

    fn tell(&mut self, id: ActorId, event: teardown::Event, now: Time) {
        if let Some(member) = self.members.get_mut(&id) {
            member.asked |= matches!(event, teardown::Event::Cancel { .. });
        }
        self.drive(id, now, |teardown| teardown.handle(event, now));
    }

    /// Moves one actor's teardown and passes its actions on.
    fn drive(&mut self, id: ActorId, now: Time, step: impl FnOnce(&mut Teardown)) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let before = member.teardown.is_over();
        if let Some(at) = member.teardown.poll_timeout() {
            self.timers.remove(&(at, id));
        }
        step(&mut member.teardown);
        if let Some(at) = member.teardown.poll_timeout() {
            self.timers.insert((at, id));
        }
        if !before && member.teardown.is_over() {
            self.living -= 1;
        }
        let (path, asked) = (member.path.clone(), member.asked);
        let mut lost = false;
        while let Some(action) = self.members.get_mut(&id).and_then(|m| m.teardown.poll_action()) {
            if let teardown::Action::GiveUp(step) = action {
                self.run_over(id);
                self.given_up(id, &path, step);
                lost = !asked;
            }
            self.actions.push_back(Action::Actor { id, action });
        }
        if lost && matches!(self.phase, Phase::Open) {
            // Its channel broke, and nobody knows what became of it: whoever waits for it would
            // wait for ever (C4).
            let reason = Reason { by: path, why: Why::SiblingFailed };
            self.close(reason, self.config.budget, now);
        }
    }

    /// Somebody who stays behind is never silent (C5).
    fn given_up(&mut self, id: ActorId, path: &ActorPath, step: Step) {
        let (kind, message) = match step {
            Step::Abandoned => (FaultKind::Abandoned, "the thread did not end in time"),
            Step::Asked
            | Step::Acknowledged
            | Step::Unacknowledged
            | Step::ChannelDead
            | Step::Terminated
            | Step::Killed
            | Step::Paused
            | Step::Settled
            | Step::Unreapable => (FaultKind::Unreapable, "SIGKILL did not end it in time"),
        };
        // Unique in this scope, and no driver counts downwards.
        let fault_id = u64::MAX - u64::from(id.0);
        self.faults.push(Fault::new(fault_id, path.clone(), kind, message));
    }

    fn reports(&mut self) -> Vec<ActorReport> {
        let born = std::mem::take(&mut self.members).into_values().filter(|member| member.born);
        born.map(|member| {
            let (steps, forced, end) = member.teardown.report();
            let Ended { report: below, undrained, .. } = member.ended.unwrap_or_default();
            let backend = member.backend.to_owned();
            ActorReport { path: member.path, backend, steps, forced, end, undrained, below }
        })
        .collect()
    }
}

/// What a cancel itself brings about.
fn is_consequence(kind: &FaultKind) -> bool {
    matches!(
        kind,
        FaultKind::Cancelled(_)
            | FaultKind::Interrupted { .. }
            | FaultKind::Lost
            | FaultKind::Died(_)
    )
}

fn is_death(kind: &FaultKind) -> bool {
    matches!(kind, FaultKind::Died(_))
}
