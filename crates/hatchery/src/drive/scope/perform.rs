//! From event to deed: each is decided and performed at once; the timers' turn is one as well.

use std::sync::{Arc, MutexGuard};

use hatchery_proto::scope::{Action, Event, Outcome};
use hatchery_proto::{ActorId, teardown};
use hatchery_spawn::notice;
use tokio::sync::Notify;

use super::Core;
use super::slot::{Mind, Signal};
use crate::clock;
use crate::copied::is_copy;
use crate::drive::lines::Lines;
use crate::lock::lock;

/// What others are to hear of.
#[derive(Default)]
pub(super) struct Performed {
    /// All is over.
    outcome: Option<Box<Outcome>>,
    /// Something became of these actors.
    bells: Vec<Arc<Notify>>,
}

impl Core {
    /// Something happened: decide, perform.
    pub(super) fn apply(&self, event: Event) {
        if is_copy() {
            return;
        }
        let sets_timers =
            !matches!(event, Event::Ready(_) | Event::Acked(_) | Event::Settled { .. });
        let mut mind = lock(&self.mind);
        let about = Lines::about(&event);
        mind.scope.handle(event, clock::now());
        let performed = self.perform(&mut mind);
        mind.show(about);
        drop(mind);
        if sets_timers {
            self.timer.notify_one();
        }
        self.finish(performed);
    }

    /// The table from action to deed.
    pub(super) fn perform(&self, mind: &mut MutexGuard<'_, Mind>) -> Performed {
        let Performed { mut outcome, mut bells } = Performed::default();
        while let Some(action) = mind.scope.poll_action() {
            match action {
                Action::Actor { id, action } => {
                    mind.show(Some(id));
                    let is_over = matches!(action, teardown::Action::GiveUp(_));
                    let is_launched = match mind.slots.get_mut(&id) {
                        Some(slot) => {
                            slot.perform(action);
                            true
                        }
                        // `launch` asks before it does, and is woken up.
                        None => false,
                    };
                    if is_over || !is_launched {
                        bells.extend(mind.bells.take(id));
                    }
                }
                Action::CancelBody(reason) => {
                    self.body.send_replace(Some(reason));
                }
                Action::Finish(all) => outcome = Some(all),
            }
        }
        Performed { outcome, bells }
    }

    /// Tells those who wait for what was performed. Not under the lock: they may be woken on the spot.
    pub(super) fn finish(&self, performed: Performed) {
        performed.bells.iter().for_each(|bell| bell.notify_waiters());
        let Some(outcome) = performed.outcome else { return };
        let outcome = Arc::new(*outcome);
        lock(&self.mind).lines.over();
        let unwaited = {
            let unwaited = lock(&self.unwaited);
            self.finished.send_replace(Some(outcome.clone()));
            *unwaited
        };
        self.ring_all();
        if unwaited {
            self.leave_behind(&outcome);
        }
        self.actor.close_scope(self, &outcome.report);
    }

    /// What was found is told at the actor's own end, if somebody is there to be told.
    pub(super) fn leave_behind(&self, outcome: &Outcome) {
        if self.actor.parent.is_some() {
            return self.actor.leave_behind(outcome.faults.clone());
        }
        for fault in outcome.faults.clone() {
            notice::post(move || {
                tracing::warn!(%fault, "a nursery that nobody waited for came down with an error");
            });
        }
    }

    /// Drives the machine's timers, on the supervisor, until all is over.
    pub(super) async fn tick(self: Arc<Self>) {
        loop {
            let next = {
                let mut mind = lock(&self.mind);
                if mind.scope.is_finished() {
                    return;
                }
                mind.poll_timeout()
            };
            match next {
                None => self.timer.notified().await,
                Some(at) => {
                    let _woken =
                        tokio::time::timeout_at(clock::instant(at).into(), self.timer.notified())
                            .await;
                }
            }
            let now = clock::now();
            let mut mind = lock(&self.mind);
            mind.spare_the_dead(now);
            mind.scope.handle_timeout(now);
            let performed = self.perform(&mut mind);
            mind.show(None);
            drop(mind);
            self.finish(performed);
            self.end_late_handshakes(now);
        }
    }

    pub(super) fn signal(&self, id: ActorId, signal: Signal) {
        if let Some(slot) = lock(&self.mind).slots.get_mut(&id) {
            slot.signal(signal);
        }
    }
}
