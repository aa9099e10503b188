//! From event to deed: each is decided and performed at once; the timers' turn is one as well.

use std::sync::{Arc, MutexGuard};

use hatchery_proto::ActorId;
use hatchery_proto::scope::{Action, Event, Outcome};
use hatchery_spawn::notice;

use super::Core;
use super::slot::{Mind, Signal};
use crate::clock;
use crate::copied::is_copy;
use crate::drive::lines::Lines;
use crate::lock::lock;

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
        let outcome = self.perform(&mut mind);
        mind.show(about);
        drop(mind);
        if sets_timers {
            self.timer.notify_one();
        }
        self.finish(outcome);
    }

    /// The table from action to deed.
    pub(super) fn perform(&self, mind: &mut MutexGuard<'_, Mind>) -> Option<Box<Outcome>> {
        let mut outcome = None;
        while let Some(action) = mind.scope.poll_action() {
            match action {
                Action::Actor { id, action } => {
                    mind.show(Some(id));
                    match mind.slots.get_mut(&id) {
                        Some(slot) => slot.perform(action),
                        // Not launched yet: `launch` asks before it does, and is woken up.
                        None => {
                            self.over.send_replace(());
                        }
                    }
                }
                Action::CancelBody(reason) => {
                    self.body.send_replace(Some(reason));
                }
                Action::Finish(all) => outcome = Some(all),
            }
        }
        outcome
    }

    pub(super) fn finish(&self, outcome: Option<Box<Outcome>>) {
        let Some(outcome) = outcome else { return };
        let outcome = Arc::new(*outcome);
        lock(&self.mind).lines.over();
        let unwaited = {
            let unwaited = lock(&self.unwaited);
            self.finished.send_replace(Some(outcome.clone()));
            *unwaited
        };
        self.over.send_replace(());
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
            let outcome = self.perform(&mut mind);
            mind.show(None);
            drop(mind);
            self.finish(outcome);
            self.end_late_handshakes(now);
        }
    }

    pub(super) fn signal(&self, id: ActorId, signal: Signal) {
        if let Some(slot) = lock(&self.mind).slots.get_mut(&id) {
            slot.signal(signal);
        }
    }
}
