//! Who waits for the end of an actor, each at a bell of that one: a crowd whose members end one after
//! the other wakes everybody once, and not everybody each time.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use hatchery_proto::ActorId;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use super::Core;
use crate::lock::lock;

/// The bells that somebody waits at; none for who is over.
#[derive(Debug, Default)]
pub(super) struct Bells(BTreeMap<ActorId, Arc<Notify>>);

impl Bells {
    /// From now on no ring of this one's is missed.
    fn listen(&mut self, id: ActorId) -> Pin<Box<OwnedNotified>> {
        let mut rung = Box::pin(self.0.entry(id).or_default().clone().notified_owned());
        rung.as_mut().enable();
        rung
    }

    /// Who waits at this one shall look again; nothing is woken before that is rung.
    #[must_use]
    pub(super) fn take(&mut self, id: ActorId) -> Option<Arc<Notify>> {
        self.0.remove(&id)
    }

    /// The same of all.
    #[must_use]
    pub(super) fn take_all(&mut self) -> Vec<Arc<Notify>> {
        std::mem::take(&mut self.0).into_values().collect()
    }
}

impl Core {
    /// Waits until one actor is over. Ended by its end, at the latest by the nursery's.
    pub(super) async fn is_over(&self, id: ActorId) {
        while let Some(rung) = self.unless(id, false) {
            rung.await;
        }
    }

    /// Waits until one actor is asked to go, or is over.
    pub(super) async fn asked(&self, id: ActorId) {
        while let Some(rung) = self.unless(id, true) {
            rung.await;
        }
    }

    /// Its bell, unless it is over, or asked to go if that is enough. Looked and listened in one step.
    fn unless(&self, id: ActorId, or_asked: bool) -> Option<Pin<Box<OwnedNotified>>> {
        let mut mind = lock(&self.mind);
        let done = mind.scope.is_over(id) || (or_asked && mind.scope.was_asked(id));
        (!done).then(|| mind.bells.listen(id))
    }

    /// Something became of that actor.
    pub(super) fn ring(&self, id: ActorId) {
        let bell = lock(&self.mind).bells.take(id);
        bell.iter().for_each(|bell| bell.notify_waiters());
    }

    /// All is over.
    pub(super) fn ring_all(&self) {
        let bells = lock(&self.mind).bells.take_all();
        bells.iter().for_each(|bell| bell.notify_waiters());
    }
}
