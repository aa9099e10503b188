//! Owns a [`Scope`]: tells it what happens, performs what it decides: spawn, signal, settle.
//!
//! Events come from any thread; each is decided and performed at once, under the one lock. What
//! must be waited for is waited for on the supervisor, which no user code can block.
//!
//! ```text
//! admit ──► launch ──► life       the way of one actor: its place, its start, what became of it
//!              └─────► reading    what it says meanwhile
//! life, reading ─────► handshake  how its start came out
//! all of them ───────► perform ──► slot    an event, what was decided, what is done to one actor
//!                         └─────► bells   who waits for the end of one
//! ```
//!
//! Lock order: `mind` before an outbox's state and before `Actor::inside`.

mod admit;
mod bells;
mod handshake;
mod launch;
mod life;
mod perform;
mod reading;
mod slot;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hatchery_proto::scope::{Event, Outcome, Scope};
use hatchery_proto::{ActorId, ActorPath, Fault, Reason, ToChild, Why};
use tokio::sync::{Notify, watch};

use self::bells::Bells;
use self::slot::Mind;
use super::lines::Lines;
use super::writer::Priority;
use crate::copied::is_copy;
use crate::current::{self, Actor};
use crate::lock::lock;
use crate::start::Pipes;

/// One open nursery.
pub(crate) struct Core {
    /// Whose nursery it is.
    actor: Arc<Actor>,
    /// It was opened by a free function in a root that others may close.
    pub(crate) is_guest: bool,
    mind: Mutex<Mind>,
    /// Set when the body must be dropped.
    body: watch::Sender<Option<Reason>>,
    /// Set when all is over.
    finished: watch::Sender<Option<Arc<Outcome>>>,
    /// Rung when the machine may have an earlier time-out.
    timer: Notify,
    /// Nobody waits for the outcome any more: what it found goes to the actor's own end. Locked
    /// while the outcome is published, so that it is either waited for or handed on.
    unwaited: Mutex<bool>,
    /// Whether the timer task runs; it starts with the first actor.
    ticking: AtomicBool,
}
impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("actor", &self.actor.path).finish_non_exhaustive()
    }
}

impl Core {
    /// Opens a scope in an actor, unless that goes down.
    pub(crate) fn open(actor: Arc<Actor>, is_guest: bool) -> Result<Arc<Self>, Reason> {
        let config = actor.runtime.config.clone();
        let scope = Scope::new(actor.path.clone(), config, current::fault_id);
        let lines = Lines::new(&actor.mark);
        let core = Arc::new(Self {
            actor: actor.clone(),
            is_guest,
            mind: Mutex::new(Mind {
                scope,
                slots: BTreeMap::new(),
                handshakes: BTreeSet::new(),
                lines,
                bells: Bells::default(),
            }),
            body: watch::channel(None).0,
            finished: watch::channel(None).0,
            timer: Notify::new(),
            unwaited: Mutex::new(false),
            ticking: AtomicBool::new(false),
        });
        actor.open_scope(&core)?;
        Ok(core)
    }

    /// The bounds of the tree.
    pub(crate) fn config(&self) -> &hatchery_proto::Config {
        &self.actor.runtime.config
    }

    /// All the time a teardown of this scope has.
    pub(crate) fn budget(&self) -> Duration {
        self.actor.runtime.config.budget
    }

    /// Everybody shall go.
    pub(crate) fn cancel(&self, reason: Reason, budget: Duration) {
        self.apply(Event::Cancel { reason, budget });
    }

    /// One actor shall go.
    pub(crate) fn cancel_actor(&self, id: ActorId, reason: Reason) {
        self.apply(Event::CancelActor { id, reason });
    }

    /// Something went wrong that belongs to no actor.
    pub(crate) fn fail(&self, fault: &Fault) {
        if is_copy() {
            return;
        }
        let why = Why::BodyFailed;
        let reason = Reason { by: fault.path.clone(), why };
        lock(&self.mind).scope.note(fault.clone());
        self.cancel_quietly(reason);
    }

    fn cancel_quietly(&self, reason: Reason) {
        let budget = self.budget();
        self.apply(Event::Cancel { reason, budget });
    }

    /// The body has ended.
    pub(crate) fn body_done(&self, result: Result<(), Box<Fault>>) {
        self.apply(Event::BodyDone(result));
    }

    /// Waits until the body must be dropped. Ended by a cancel or an error; while neither comes
    /// the body runs on, so nobody waits for this alone.
    pub(crate) async fn body_cancelled(&self) -> Reason {
        let mut body = self.body.subscribe();
        let reason = body.wait_for(Option::is_some).await.map(|reason| reason.clone());
        reason.ok().flatten().expect("the sender lives in the core that is borrowed here")
    }

    /// Waits until everybody has settled or was given up on. Ended by the machine, inside the
    /// budget (C2).
    pub(crate) async fn finished(&self) -> Arc<Outcome> {
        let mut finished = self.finished.subscribe();
        let outcome = finished.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        outcome.ok().flatten().expect("the sender lives in the core that is borrowed here")
    }

    /// Waits until one actor is over.
    pub(crate) async fn settled(&self, id: ActorId) {
        if is_copy() {
            return;
        }
        self.is_over(id).await;
    }

    /// The runtime that it is a part of.
    pub(crate) fn runtime(&self) -> &Arc<crate::runtime::Inner> {
        &self.actor.runtime
    }

    /// Our ends of what an actor writes, while it lives; what is taken out is the taker's.
    pub(crate) fn pipe<T>(
        &self,
        id: ActorId,
        take: impl FnOnce(&mut Pipes) -> Option<T>,
    ) -> Option<T> {
        if is_copy() {
            return None;
        }
        lock(&self.mind).slots.get_mut(&id).and_then(|slot| take(&mut slot.pipes))
    }

    /// The nursery's future is gone without having heard its outcome.
    pub(crate) fn unwaited(&self) {
        if is_copy() {
            return;
        }
        let outcome = {
            let mut unwaited = lock(&self.unwaited);
            *unwaited = true;
            self.finished.borrow().clone()
        };
        if let Some(outcome) = outcome {
            // It was on its way, and its report has been handed on.
            return self.leave_behind(&outcome);
        }
        let reason = Reason { by: self.actor.path.clone(), why: Why::Dropped };
        let left = self.actor.cancelling().map(|cancelling| {
            cancelling.until.saturating_duration_since(std::time::Instant::now())
        });
        self.cancel(reason, left.unwrap_or_else(|| self.budget()));
        self.body_done(Ok(()));
    }

    /// Cancels the actor at `path`, or passes that on to whoever is nearer to it.
    pub(crate) fn cancel_below(&self, path: &ActorPath, reason: &Reason) {
        if is_copy() {
            return;
        }
        let found = {
            let mind = lock(&self.mind);
            // One that is over may not be out of here yet, and another one have its name already.
            mind.slots
                .iter()
                .filter(|(id, _)| !mind.scope.is_over(**id))
                .find(|(_, slot)| *path == slot.link.path || path.is_below(&slot.link.path))
                .map(|(id, slot)| (*id, slot.link.clone()))
        };
        match found {
            Some((id, link)) if link.path == *path => self.cancel_actor(id, reason.clone()),
            Some((_, link)) => {
                let message = ToChild::CancelBelow { path: path.clone(), reason: reason.clone() };
                // A closed channel: it goes down anyway.
                drop(link.outbox.push(Priority::Control, &message));
            }
            None => {}
        }
    }
}
