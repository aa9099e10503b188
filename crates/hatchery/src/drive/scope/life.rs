//! One actor's life as its spawner sees it: born or not, lost, ended, forgotten. Runs on the
//! supervisor, which no user code can block.

use std::sync::Arc;

use hatchery_proto::handshake;
use hatchery_proto::scope::Event;
use hatchery_proto::{ActorId, ExitStatus, Fault, FaultKind, Reason};
use hatchery_spawn::{Child, Exit, SpawnError, Spawning};

use super::Core;
use crate::clock;
use crate::current;
use crate::drive::link::Link;
use crate::error::{StartCause, StartError};
use crate::lock::lock;
use crate::start::Pipes;

impl Core {
    /// From the answer to the request to the end.
    pub(super) async fn raise(self: Arc<Self>, id: ActorId, spawning: Spawning) {
        let child = match spawning.await {
            Ok(child) => Arc::new(child),
            Err(error) => {
                self.not_born(id, error).await;
                return self.forget(id);
            }
        };
        self.born(id, child.clone());
        let exit = child.handle().ended().await;
        let status = match &exit {
            Ok(Exit::Code(code)) => ExitStatus::Code(*code),
            Ok(Exit::Signal { out_of_memory: true, .. }) => ExitStatus::OutOfMemory,
            Ok(Exit::Signal { signal, .. }) => ExitStatus::Signal(*signal),
            Ok(Exit::Panicked(_)) => ExitStatus::Code(101),
            Err(_) => ExitStatus::Unknown,
        };
        self.ended(id, &child, status).await;
    }

    fn born(&self, id: ActorId, child: Arc<Child>) {
        let signal = {
            let mut mind = lock(&self.mind);
            let Some(slot) = mind.slots.get_mut(&id) else { return };
            slot.child = Some(child);
            if slot.serving {
                slot.serves();
            }
            slot.handshake.born(self.actor.runtime.config.handshake, clock::now());
            let (signal, until) = (slot.signal.take(), slot.handshake.poll_timeout());
            if let Some(until) = until {
                mind.handshakes.insert((until, id));
                if mind.handshakes.first() == Some(&(until, id)) {
                    self.timer.notify_one();
                }
            }
            mind.show(Some(id));
            signal
        };
        if let Some(signal) = signal {
            self.signal(id, signal);
        }
    }

    async fn not_born(&self, id: ActorId, error: SpawnError) {
        let serves = {
            let mut mind = lock(&self.mind);
            mind.slots.get_mut(&id).is_some_and(|slot| {
                // If it is the first to be told, nothing else will be.
                slot.handshake.handle(handshake::Event::Exited(ExitStatus::Unknown));
                slot.serving
            })
        };
        if serves {
            // Its own answer was faster than the forkserver's, and that one will not come.
            return self.lost(id, error).await;
        }
        self.withdraw(id).await;
        let mut error = Some(error);
        self.tell_start(id, |path, backend| {
            let cause = error.take().map_or(StartCause::Died, StartCause::Spawn);
            Err(StartError::new(path, backend, cause))
        });
    }

    /// Gives back all that a refused start has taken, before its error is told: a second try finds the
    /// name and the fds free (C10). The reader's end of the channel is closed by the starter's own
    /// runtime; if that is blocked, this wait is bounded as one for last words.
    async fn withdraw(&self, id: ActorId) {
        let (link, bound) = {
            let mut mind = lock(&self.mind);
            let bound = mind.scope.last_words(id, clock::now());
            let Some(slot) = mind.slots.get_mut(&id) else { return };
            slot.pipes = Pipes::default();
            (slot.link.clone(), bound)
        };
        link.outbox.release();
        link.drained(bound).await;
        self.apply(Event::NotBorn(id));
    }

    /// Nobody answers for the process of an actor that serves: it was killed with its forkserver,
    /// or it is killed as soon as that speaks again.
    async fn lost(&self, id: ActorId, error: SpawnError) {
        let Some(link) = lock(&self.mind).slots.get(&id).map(|slot| slot.link.clone()) else {
            return;
        };
        // Should it live, it goes by itself.
        link.outbox.break_channel();
        let bound = lock(&self.mind).scope.last_words(id, clock::now());
        link.exited(bound);
        link.drained(bound).await;
        let (status, path) = (ExitStatus::Unknown, link.path.clone());
        let died = FaultKind::Died(status);
        let fault = Fault::new(current::fault_id(), path, died, error.to_string());
        self.tell_calls(id, &link, status, &fault);
        self.apply(Event::Settled { id, status, fault: Box::new(fault) });
    }

    /// The process is reaped, the thread joined. What it had started by itself may not be.
    async fn ended(&self, id: ActorId, child: &Child, status: ExitStatus) {
        let Some(link) = lock(&self.mind).slots.get(&id).map(|slot| slot.link.clone()) else {
            return;
        };
        self.apply(Event::Exited(id));
        let (bound, was_forced) = {
            let scope = &lock(&self.mind).scope;
            (scope.last_words(id, clock::now()), scope.was_forced(id))
        };
        link.exited(bound);
        // Nobody asks what led to a death of our own making.
        let is_quoted = status != ExitStatus::Code(0) && !was_forced;
        let mut fault = Fault::new(
            current::fault_id(),
            link.path.clone(),
            FaultKind::Died(status),
            self.why_it_died(id),
        );
        // Side by side: all of it has been written, and waits for readers of ours to have their turn.
        let quoted = async { if is_quoted { child.stderr_tail(bound).await } else { Vec::new() } };
        ((), fault.output) = tokio::join!(link.drained(bound), quoted);
        // What came first is what it ended by.
        if let Some(breach) = link.breach() {
            fault = Fault { output: fault.output, ..breach };
        }
        // One of our own making may come in the middle of a birth too: that one did not fail.
        let failure = child.handle().birth_failure();
        if let Some(failure) = failure.filter(|failure| failure.errno.is_some() || !was_forced) {
            let step = failure.step.name().to_owned();
            fault.kind = FaultKind::BirthFailed { step };
            fault.message = match failure.errno {
                Some(errno) => std::io::Error::from_raw_os_error(errno).to_string(),
                None => format!("it died there: {status}"),
            };
        }
        let outcome = {
            let mut mind = lock(&self.mind);
            let exited = handshake::Event::Exited(status);
            mind.slots.get_mut(&id).and_then(|slot| {
                slot.pipes = Pipes::default();
                slot.handshake.handle(exited)
            })
        };
        let left = self.left(id, status);
        self.tell_calls(id, &link, status, &fault);
        self.strays(id, child).await;
        self.apply(Event::Settled { id, status, fault: Box::new(fault.clone()) });
        if outcome.is_some() {
            // After that: whoever tries again finds the name free.
            self.tell_start(id, |path, backend| {
                let (cause, fault) = match left {
                    // It was asked to go amid its birth, and went.
                    Some(Fault { kind: FaultKind::Cancelled(ref reason), .. }) => {
                        (StartCause::Closing(reason.clone()), left.clone().unwrap_or(fault))
                    }
                    Some(_) | None => (StartCause::Died, fault),
                };
                Err(StartError { path, backend, cause, fault: Box::new(fault) })
            });
        }
        self.forget(id);
    }

    /// In words: what hatchery has done to it is not nobody's doing.
    fn why_it_died(&self, id: ActorId) -> &'static str {
        let mind = lock(&self.mind);
        let was_struck = mind.slots.get(&id).is_some_and(|slot| slot.struck);
        if was_struck && mind.scope.broke_unasked(id) {
            return "hatchery ended it, as its channel broke while it lived: it has executed another program \
                    over itself, or closed fds that are not its own";
        }
        "nobody asked it to"
    }

    /// All that will ever be known of it is known.
    fn tell_calls(&self, id: ActorId, link: &Link, status: ExitStatus, fault: &Fault) {
        link.set_end(Box::new(self.left(id, status).unwrap_or_else(|| fault.clone())));
        link.outbox.release();
    }

    /// Waits until what it had started by itself is gone, at most for what is left of the budget; what
    /// stays is told (C1).
    async fn strays(&self, id: ActorId, child: &Child) {
        let bound = lock(&self.mind).scope.time_left(id, clock::now());
        let processes: Vec<String> = match tokio::time::timeout(bound, child.handle().wait()).await
        {
            Ok(_known) => child.handle().left_behind().iter().map(ToString::to_string).collect(),
            Err(_elapsed) => vec![format!("processes that SIGKILL did not end in {bound:?}")],
        };
        if !processes.is_empty() {
            self.apply(Event::LeftBehind { id, processes });
        }
    }

    /// Late readers find the end; the process itself is gone.
    fn forget(&self, id: ActorId) {
        self.tell_failed(id);
        lock(&self.mind).slots.remove(&id);
        self.ring(id);
    }

    /// An actor says good-bye, and why if it goes by itself.
    pub(super) fn leaves(&self, id: ActorId, why: Option<Reason>) {
        if let (Some(why), Some(slot)) = (why, lock(&self.mind).slots.get_mut(&id)) {
            slot.leaving.get_or_insert(why);
        }
    }

    /// What is told to calls that an actor has not answered, if it did not end unasked: it may
    /// have gone before it read them.
    pub(super) fn left(&self, id: ActorId, status: ExitStatus) -> Option<Fault> {
        let mind = lock(&self.mind);
        let slot = mind.slots.get(&id)?;
        let reason = slot.leaving.clone()?;
        (status == ExitStatus::Code(0) || slot.forced).then(|| {
            let (path, message) = (slot.link.path.clone(), reason.to_string());
            Fault::new(current::fault_id(), path, FaultKind::Cancelled(reason), message)
        })
    }
}
