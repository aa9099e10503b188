//! How a start comes out: told once, to whoever waits for it.

use std::sync::Arc;

use hatchery_proto::handshake;
use hatchery_proto::scope::Event;
use hatchery_proto::{ActorId, ActorPath, HandshakeError, Time};
use hatchery_spawn::SpawnError;

use super::Core;
use super::perform::Performed;
use super::slot::Signal;
use crate::clock;
use crate::error::{StartCause, StartError};
use crate::lock::lock;

impl Core {
    /// A handshake's answer has come.
    pub(super) fn answered(self: &Arc<Self>, id: ActorId, event: handshake::Event) {
        let (outcome, performed) = {
            let mut mind = lock(&self.mind);
            let mut performed = Performed::default();
            let slot = mind.slots.get_mut(&id);
            let outcome = slot.and_then(|slot| {
                let outcome = slot.handshake.handle(event)?;
                if outcome == handshake::Outcome::Serving {
                    slot.serves();
                }
                Some(outcome)
            });
            if outcome == Some(handshake::Outcome::Serving) {
                // In the same step: from here on its end is an error of its nursery and not of
                // its start.
                mind.scope.handle(Event::Ready(id), clock::now());
                performed = self.perform(&mut mind);
                mind.show(Some(id));
            }
            (outcome, performed)
        };
        self.finish(performed);
        match outcome {
            Some(handshake::Outcome::Serving) => self.tell_start(id, |_, _| Ok(())),
            Some(handshake::Outcome::Refused(error)) => {
                self.reject(id, |path| refused(path, error));
            }
            Some(handshake::Outcome::Died(_) | handshake::Outcome::TimedOut { .. }) | None => {}
        }
    }

    /// Ends starts that take too long.
    pub(super) fn end_late_handshakes(self: &Arc<Self>, now: Time) {
        loop {
            let late = lock(&self.mind).next_late(now);
            let Some((id, outcome)) = late else { return };
            if let Some(handshake::Outcome::TimedOut { waited }) = outcome {
                self.reject(id, |_| StartCause::Handshake { waited });
            }
        }
    }

    /// Ends a child whose start has failed: by force, and a thread by the end of its channel. The starter
    /// is told when the child has settled, so that a second try finds the name and the fds free (C10);
    /// at the latest after the bound for last words, as a child may not die.
    fn reject(self: &Arc<Self>, id: ActorId, cause: impl FnOnce(&ActorPath) -> StartCause) {
        let bound = {
            let mut mind = lock(&self.mind);
            let bound = mind.scope.last_words(id, clock::now());
            let Some(slot) = mind.slots.get_mut(&id) else { return };
            slot.failed = Some(cause(&slot.link.path));
            if slot.is_process {
                slot.signal(Signal::Kill);
            }
            slot.link.outbox.break_channel();
            bound
        };
        let core = Arc::downgrade(self);
        match self.actor.runtime.supervisor() {
            Ok(supervisor) => drop(supervisor.spawn(async move {
                tokio::time::sleep(bound).await;
                if let Some(core) = core.upgrade() {
                    core.tell_failed(id);
                }
            })),
            // It runs since the launch; and without it nobody else would tell.
            Err(_) => self.tell_failed(id),
        }
    }

    /// Tells the starter why its start has failed, unless it was told.
    pub(super) fn tell_failed(&self, id: ActorId) {
        let failed = lock(&self.mind).slots.get_mut(&id).and_then(|slot| slot.failed.take());
        if let Some(cause) = failed {
            self.tell_start(id, |path, backend| Err(StartError::new(path, backend, cause)));
        }
    }

    pub(super) fn tell_start(
        &self,
        id: ActorId,
        result: impl FnOnce(ActorPath, &'static str) -> Result<(), StartError>,
    ) {
        let (started, path, backend) = {
            let mut mind = lock(&self.mind);
            let Some(slot) = mind.slots.get_mut(&id) else { return };
            (slot.started.take(), slot.link.path.clone(), slot.backend)
        };
        if let Some(started) = started {
            // Whoever started it may have gone; its guard takes the actor down.
            drop(started.send(result(path, backend)));
        }
    }
}

/// A limit that the new actor met is the same error as one that its spawner met on the way (C14).
fn refused(path: &ActorPath, error: HandshakeError) -> StartCause {
    if let HandshakeError::System { call, errno } = error {
        let name = path.name().to_owned();
        let cause = std::io::Error::from_raw_os_error(errno);
        return StartCause::Spawn(SpawnError::Call { name, call, cause });
    }
    StartCause::Refused(error.to_string())
}
