//! How a start comes out: told once, to whoever waits for it.

use hatchery_proto::handshake;
use hatchery_proto::scope::Event;
use hatchery_proto::{ActorId, ActorPath, HandshakeError, Time};
use hatchery_spawn::SpawnError;

use super::Core;
use super::slot::Signal;
use crate::clock;
use crate::error::{StartCause, StartError};
use crate::lock::lock;

impl Core {
    /// A handshake's answer has come.
    pub(super) fn answered(&self, id: ActorId, event: handshake::Event) {
        let (outcome, finished) = {
            let mut mind = lock(&self.mind);
            let mut finished = None;
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
                finished = self.perform(&mut mind);
                mind.show(Some(id));
            }
            (outcome, finished)
        };
        self.finish(finished);
        match outcome {
            Some(handshake::Outcome::Serving) => self.tell_start(id, |_, _| Ok(())),
            Some(handshake::Outcome::Refused(error)) => {
                self.tell_start(id, |path, backend| {
                    let cause = refused(&path, error);
                    Err(StartError::new(path, backend, cause))
                });
                self.reject(id);
            }
            Some(handshake::Outcome::Died(_) | handshake::Outcome::TimedOut { .. }) | None => {}
        }
    }

    /// Ends starts that take too long.
    pub(super) fn end_late_handshakes(&self, now: Time) {
        loop {
            let late = lock(&self.mind).next_late(now);
            let Some((id, outcome)) = late else { return };
            if let Some(handshake::Outcome::TimedOut { waited }) = outcome {
                self.tell_start(id, |path, backend| {
                    let error = StartError::new(path, backend, StartCause::Handshake { waited });
                    Err(error)
                });
                self.reject(id);
            }
        }
    }

    /// Ends a child whose start has failed: by force, and a thread by the end of its channel.
    fn reject(&self, id: ActorId) {
        if let Some(slot) = lock(&self.mind).slots.get_mut(&id) {
            if slot.is_process {
                slot.signal(Signal::Kill);
            }
            slot.link.outbox.break_channel();
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
