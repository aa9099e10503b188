//! A nursery's mind: who is admitted, the first error, the cancel of the rest, the end.
//!
//! Rules, in the order in which they win:
//! 1. The scope finishes when the body is done and every actor is over, never before (C1).
//! 2. Whatever goes wrong first cancels everybody else; all that went wrong is told, the body's
//!    own error first, each thing once (C4).
//! 3. What a cancel brings about is not an error: cancelled calls, forced deaths.
//! 4. When all went well, one-shot actors are awaited, then the long-lived ones are taken down.
//! 5. Who has settled while it is open is forgotten, but for a line in the report (C21).
//!
//! Rooms: `event` is what is said to it and by it, `member` what happens to one actor, `faults` what
//! counts of what went wrong, `look` what it answers when it is asked.

mod event;
mod faults;
mod look;
mod member;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub use self::event::{Action, Event, Outcome, Refusal, Role};
use self::member::Member;
use crate::Config;
use crate::error::Fault;
use crate::id::{ActorId, ActorName, ActorPath};
use crate::message::{Reason, Why};
use crate::report::{ActorReport, Past, Report};
use crate::teardown::{self, Kind, Teardown};
use crate::time::Time;

/// The machine. One for each nursery.
#[derive(Debug, Clone)]
pub struct Scope {
    path: ActorPath,
    config: Config,
    fault_id: fn() -> u64,
    phase: Phase,
    body: Body,
    cancelled: Option<Reason>,
    /// Those that live; and from the moment on at which it closes all that lived then.
    members: BTreeMap<ActorId, Member>,
    /// Those that were over before.
    past: Past,
    names: BTreeSet<ActorName>,
    next: u64,
    /// Members that have not settled, those that were given up on included.
    present: usize,
    /// Members that are not over.
    living: usize,
    /// One-shot members whose function has not ended.
    running: usize,
    seen: BTreeSet<u64>,
    faults: Vec<Fault>,
    /// How many of the faults are about members that were given up on, and how many of those have no
    /// room among them.
    given_up: (usize, u64),
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

impl Scope {
    /// An empty nursery of the actor at `path`; its own faults have ids from `fault_id`, which gives
    /// none twice in the whole tree.
    #[must_use]
    pub fn new(path: ActorPath, config: Config, fault_id: fn() -> u64) -> Self {
        Self {
            path,
            config,
            fault_id,
            phase: Phase::Open,
            body: Body::Running,
            cancelled: None,
            members: BTreeMap::new(),
            past: Past::default(),
            names: BTreeSet::new(),
            next: 0,
            present: 0,
            living: 0,
            running: 0,
            seen: BTreeSet::new(),
            faults: Vec::new(),
            given_up: (0, 0),
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
        if self.present >= self.config.max_actors {
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
                awaited: role == Role::OneShot,
                named: true,
                ready: false,
                cancelled: false,
                asked: None,
                born: true,
                ended: None,
                left_behind: Vec::new(),
                teardown: Teardown::new(kind, self.config.clone()),
            },
        );
        self.living += 1;
        self.present += 1;
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
            Event::Told(id) => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.awaited = false;
                }
                self.forget(id);
            }
            Event::Ended { id, ended } => self.ended(id, ended, now),
            Event::Acked(id) => self.tell(id, teardown::Event::Acked, now),
            Event::ChannelDead(id) => self.tell(id, teardown::Event::ChannelDead, now),
            Event::Exited(id) => self.tell(id, teardown::Event::Exited, now),
            Event::LeftBehind { id, processes } => self.left_behind(id, processes, now),
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
        let (actors, dropped) = self.reports();
        let report = Report { actors, dropped, teardown: now.since(since) };
        self.name_the_rest();
        let faults = std::mem::take(&mut self.faults);
        let cancelled = self.cancelled.clone();
        self.actions.push_back(Action::Finish(Box::new(Outcome { faults, cancelled, report })));
    }

    fn reports(&mut self) -> (Vec<ActorReport>, u64) {
        let born = std::mem::take(&mut self.members).into_values().filter(|member| member.born);
        let (mut all, dropped) = std::mem::take(&mut self.past).into_parts();
        all.extend(born.map(Member::report));
        (all, dropped)
    }
}
