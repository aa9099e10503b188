//! What one actor says: read by a task of its own, passed on to its link, its scope, its handshake.

use std::sync::{Arc, Once};

use hatchery_proto::handshake;
use hatchery_proto::scope::Event;
use hatchery_proto::{ActorId, ExitStatus, Reason, ToParent};

use super::Core;
use crate::drive::link::Link;
use crate::drive::reader::{Ended, Inbox, Received};
use crate::lock::lock;

/// The reader task of one child's channel.
pub(super) struct Reading {
    pub(super) core: Arc<Core>,
    pub(super) id: ActorId,
    pub(super) link: Arc<Link>,
    pub(super) is_process: bool,
}

impl Reading {
    pub(super) async fn read(self, mut inbox: Inbox) {
        loop {
            let handled = match inbox.next::<ToParent>().await {
                Ok(Received::Message(message)) => {
                    self.note_failure(&message);
                    self.link.handle(message)
                }
                Ok(Received::Item(call, value)) => self.link.item(call, value).map(|()| None),
                Err(end) => Err(end),
            };
            match handled {
                Ok(Some(message)) => self.about_itself(message),
                Ok(None) => {}
                Err(end) => {
                    // Before anybody is told that all has been read: an fd less is part of it (C10).
                    drop(inbox);
                    break self.end(&end);
                }
            }
            tokio::task::consume_budget().await;
        }
        let bound = self.core.actor.runtime.config.exit_status_wait;
        // Who goes because it was asked to is not lost, however long its status takes.
        let left = self.core.left(self.id, ExitStatus::Code(0));
        self.link.close(bound, left).await;
    }

    /// The error of a one-shot actor belongs to its nursery from here on, whenever the task that
    /// waits for it is polled: the actor may have settled by then (C4).
    fn note_failure(&self, message: &ToParent) {
        if let ToParent::Reply { result: Err(fault), .. } = message
            && lock(&self.core.mind).scope.is_running(self.id)
        {
            let result = Err(fault.clone());
            self.core.apply(Event::RunFinished { id: self.id, result });
        }
    }

    /// What the child says that belongs to no call.
    fn about_itself(&self, message: ToParent) {
        match message {
            ToParent::Ready(ready) => {
                if self.is_process {
                    self.link.set_pid(ready.pid);
                    if !ready.subscribed {
                        warn_of_lost_events(&self.link);
                    }
                }
                self.core.answered(self.id, handshake::Event::Ready(ready));
            }
            ToParent::Refused(error) => {
                self.core.answered(self.id, handshake::Event::Refused(error));
            }
            ToParent::CancelAck => self.core.apply(Event::Acked(self.id)),
            ToParent::CancelParent { reason } => self.cancel_owner(reason),
            ToParent::Ended(ended) => {
                self.core.leaves(self.id, ended.why.clone());
                self.core.apply(Event::Ended { id: self.id, ended });
            }
            // The link has handled them.
            ToParent::Reply { .. }
            | ToParent::Started { .. }
            | ToParent::Grant { .. }
            | ToParent::CloseStream { .. } => {}
        }
    }

    /// The child asks us to go: the whole actor, or in the root the nursery it belongs to.
    fn cancel_owner(&self, reason: Reason) {
        let budget = self.core.budget();
        if self.core.actor.parent.is_some() {
            self.core.actor.cancel(reason, budget);
        } else {
            self.core.cancel(reason, budget);
        }
    }

    fn end(&self, end: &Ended) {
        if let Ended::Malformed(error) = end {
            self.link.broke_protocol(error);
        }
        self.core.apply(Event::ChannelDead(self.id));
        self.link.set_drained();
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.link.set_drained();
        self.core.apply(Event::ChannelDead(self.id));
        self.link.lose();
    }
}

/// Says once, to whoever subscribes here, that an actor with a process of its own is not heard.
fn warn_of_lost_events(link: &Link) {
    static ONCE: Once = Once::new();
    if !tracing::dispatcher::has_been_set() {
        return;
    }
    ONCE.call_once(|| {
        let path = link.path.clone();
        hatchery_spawn::notice::post(move || {
            tracing::warn!(
                %path,
                "events of actors with processes of their own don't reach this subscriber: they are lost \
                 unless such an actor installs one itself (told once)"
            );
        });
    });
}
