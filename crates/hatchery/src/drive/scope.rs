//! Owns a [`Scope`]: tells it what happens, performs what it decides: spawn, signal, settle.
//!
//! Events come from any thread; each is decided and performed at once, under the one lock. What
//! must be waited for is waited for on the supervisor, which no user code can block.
//!
//! Lock order: `mind` before an outbox's state and before `Actor::inside`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hatchery_proto::handshake::{self, Handshake};
use hatchery_proto::scope::{Action, Event, Outcome, Refusal, Role, Scope};
use hatchery_proto::teardown::{self, Kind};
use hatchery_proto::{
    ActorId, ActorName, ActorPath, ExitStatus, Fault, FaultKind, Hello, PROTOCOL_VERSION, Reason,
    Step, Time, ToChild, ToParent, Why,
};
use hatchery_spawn::{Child, ChildId, Exit, SpawnError, Spawning};
use tokio::sync::{Notify, oneshot, watch};

use super::lines::Lines;
use super::link::Link;
use super::reader::{Ended, Inbox, Received};
use super::socket::Socket;
use super::writer::{Outbox, Priority};
use crate::clock;
use crate::current::{self, Actor};
use crate::error::{StartCause, StartError};
use crate::lock::lock;
use crate::portal::Portal;
use crate::runtime::Inner;
use crate::start::{Backend, Options, Pipes};

/// One open nursery.
pub(crate) struct Core {
    /// Whose nursery it is.
    actor: Arc<Actor>,
    mind: Mutex<Mind>,
    /// Set when the body must be dropped.
    body: watch::Sender<Option<Reason>>,
    /// Set when all is over.
    finished: watch::Sender<Option<Arc<Outcome>>>,
    /// Rung when the machine may have an earlier time-out.
    timer: Notify,
    /// Changed whenever an actor is over.
    over: watch::Sender<()>,
    /// Nobody waits for the outcome any more: what it found goes to the actor's own end. Locked
    /// while the outcome is published, so that it is either waited for or handed on.
    unwaited: Mutex<bool>,
    /// Whether the timer task runs; it starts with the first actor.
    ticking: AtomicBool,
}

struct Mind {
    scope: Scope,
    slots: BTreeMap<ActorId, Slot>,
    /// Children whose handshake may not have been answered yet, by when it must be.
    handshakes: BTreeSet<(Time, ActorId)>,
    /// What is written down about them for who asks why it hangs.
    lines: Lines,
}

/// What the driver holds of one actor.
struct Slot {
    link: Arc<Link>,
    backend: &'static str,
    is_process: bool,
    /// What it writes, if its spawner wanted to read that and has not taken it.
    pipes: Pipes,
    child: Option<Arc<Child>>,
    /// Decided before the child was there; done when it comes.
    signal: Option<Signal>,
    /// Its handshake was answered, maybe before the child was known here.
    serving: bool,
    handshake: Handshake,
    /// Told once how the start came out.
    started: Option<oneshot::Sender<Result<(), StartError>>>,
    /// Why it goes, if it does not go unasked: what it said itself, or what it was told first.
    leaving: Option<Reason>,
    /// A signal was due, as the cancel alone did not do.
    forced: bool,
}

#[derive(Clone, Copy)]
enum Signal {
    Terminate,
    Kill,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("actor", &self.actor.path).finish_non_exhaustive()
    }
}

impl Core {
    /// Opens a scope in an actor, unless that goes down.
    pub(crate) fn open(actor: Arc<Actor>) -> Result<Arc<Self>, Reason> {
        let scope = Scope::new(actor.path.clone(), actor.runtime.config.clone());
        let lines = Lines::new(&actor.mark);
        let core = Arc::new(Self {
            actor: actor.clone(),
            mind: Mutex::new(Mind {
                scope,
                slots: BTreeMap::new(),
                handshakes: BTreeSet::new(),
                lines,
            }),
            body: watch::channel(None).0,
            finished: watch::channel(None).0,
            timer: Notify::new(),
            over: watch::channel(()).0,
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
        let mut over = self.over.subscribe();
        while !lock(&self.mind).scope.is_over(id) {
            if over.changed().await.is_err() {
                return;
            }
        }
    }

    /// Our ends of what an actor writes, while it lives; what is taken out is the taker's.
    pub(crate) fn pipe<T>(
        &self,
        id: ActorId,
        take: impl FnOnce(&mut Pipes) -> Option<T>,
    ) -> Option<T> {
        lock(&self.mind).slots.get_mut(&id).and_then(|slot| take(&mut slot.pipes))
    }

    /// Waits until one actor is asked to go, or is over.
    async fn asked(&self, id: ActorId) {
        let mut over = self.over.subscribe();
        let is_asked = || {
            let mind = lock(&self.mind);
            mind.scope.was_asked(id) || mind.scope.is_over(id)
        };
        while !is_asked() {
            if over.changed().await.is_err() {
                return;
            }
        }
    }

    /// The nursery's future is gone without having heard its outcome.
    pub(crate) fn unwaited(&self) {
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
        let found = {
            let mind = lock(&self.mind);
            mind.slots
                .iter()
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

    /// Admits an actor: from here on the scope waits for it (C1). Never waits itself.
    pub(crate) fn admit(
        self: &Arc<Self>,
        options: Options,
        role: Role,
    ) -> Result<Admitted, StartError> {
        let runtime = &self.actor.runtime;
        let backend = options.backend.clone().unwrap_or_else(|| runtime.defaults.backend.clone());
        let backend_name = backend.name();
        let name = ActorName::new(&options.name).map_err(|bad| {
            self.start_error(self.actor.path.clone(), backend_name, StartCause::BadName(bad.0))
        })?;
        let kind = match &backend {
            Backend::Forkserver | Backend::Exec => Kind::Process,
            Backend::Thread => Kind::Thread,
            Backend::Custom(backend) if backend.is_process() => Kind::Process,
            Backend::Custom(_) => Kind::Thread,
        };
        if let Some(what) = nobody_to_take(&options, runtime, role, kind) {
            let called = options.name.clone();
            let error = SpawnError::Unsupported { name: called, backend: backend_name, what };
            let path = self.actor.path.child(&name);
            return Err(self.start_error(path, backend_name, StartCause::Spawn(error)));
        }
        // Published and checked in one step: who is cancelled from here on finds it (H27).
        let mut mind = lock(&self.mind);
        let admitted = mind.scope.admit(&name, role, kind, backend_name);
        if let Ok((id, path)) = &admitted {
            mind.lines.admitted(*id, path, backend_name);
        }
        drop(mind);
        let (id, path) = admitted.map_err(|refusal| {
            let cause = match refusal {
                Refusal::NameTaken => StartCause::NameTaken,
                Refusal::Closing(reason) => StartCause::Closing(reason),
                Refusal::TooMany { limit, what } => StartCause::TooMany { limit, what },
            };
            self.start_error(self.actor.path.child(&name), backend_name, cause)
        })?;
        Ok(Admitted { core: self.clone(), id, path, options, backend, kind, launched: false })
    }

    /// Opens a channel and asks the backend for a child; without waiting.
    fn launch(self: &Arc<Self>, admitted: &Admitted) -> Result<Starting, StartError> {
        let Admitted { id, path, options, backend, kind, .. } = admitted;
        let (id, runtime) = (*id, &self.actor.runtime);
        let backend_name = backend.name();
        let cause = |error| self.start_error(path.clone(), backend_name, StartCause::Spawn(error));
        let backend = self.resolve(backend).map_err(cause)?;
        let supervisor =
            runtime.supervisor().map_err(system(&options.name, "pthread_create")).map_err(cause)?;
        let (stream, theirs) =
            pair().map_err(system(&options.name, "socketpair")).map_err(cause)?;
        let (spec, pipes) = options
            .spec(&self.actor, path, theirs)
            .map_err(system(&options.name, "pipe2"))
            .map_err(cause)?;
        let config = &runtime.config;
        let is_process = *kind == Kind::Process;
        let (offer, lanes) = (!is_process).then(|| runtime.offers.offer()).unzip();
        let (down, up) = lanes.map(|lanes| (lanes.down, lanes.up)).unzip();
        let outbox = Outbox::new(stream.clone(), config);
        let outbox = Arc::new(outbox.with_lane(down));
        self.hello(&outbox, path, offer);
        let link = Arc::new(Link::new(path.clone(), outbox.clone(), self.actor.mark.clone()));
        let (started, ready) = oneshot::channel();
        {
            let mut mind = lock(&self.mind);
            // A cancel before this had no channel to be sent on (H27).
            if mind.scope.was_asked(id) {
                let reason = Reason { by: self.actor.path.clone(), why: Why::Requested };
                drop(mind);
                return Err(self.start_error(
                    path.clone(),
                    backend_name,
                    StartCause::Closing(reason),
                ));
            }
            mind.slots.insert(
                id,
                Slot {
                    link: link.clone(),
                    backend: backend_name,
                    is_process,
                    pipes,
                    child: None,
                    signal: None,
                    serving: false,
                    handshake: Handshake::new(config.handshake, clock::now()),
                    started: Some(started),
                    leaving: None,
                    forced: false,
                },
            );
        }
        let spawning = backend.spawn(spec);
        let inbox = Inbox::new(stream, config.max_frame_bytes).with_spin(config).with_lane(up);
        let reading = Reading { core: self.clone(), id, link: link.clone(), is_process };
        tokio::spawn(reading.read(inbox));
        tokio::spawn(outbox.write_out());
        supervisor.spawn(self.clone().raise(id, spawning));
        if !self.ticking.swap(true, Ordering::SeqCst) {
            supervisor.spawn(self.clone().tick());
        }
        Ok(Starting { core: self.clone(), id, link, ready: Some(ready) })
    }

    fn hello(&self, outbox: &Outbox, path: &ActorPath, lanes: Option<u64>) {
        let runtime = &self.actor.runtime;
        let (backend, stdio) = runtime.defaults.names();
        let hello = Hello {
            version: PROTOCOL_VERSION,
            path: path.clone(),
            config: runtime.config.clone(),
            backend,
            stdio,
            lanes,
        };
        // The socket is new and empty; if it were closed, the handshake's bound would tell.
        drop(outbox.push(Priority::Control, &ToChild::Hello(Box::new(hello))));
    }

    fn resolve(&self, backend: &Backend) -> Result<Arc<dyn hatchery_spawn::Backend>, SpawnError> {
        let runtime = &self.actor.runtime;
        Ok(match backend {
            Backend::Forkserver => Arc::new(runtime.forkserver()?.fork()),
            Backend::Exec => Arc::new(runtime.forkserver()?.exec()),
            Backend::Thread => Arc::new(runtime.threads.clone()),
            Backend::Custom(backend) => backend.clone(),
        })
    }

    /// One actor's life as seen from here: birth, handshake, end. Runs on the supervisor.
    async fn raise(self: Arc<Self>, id: ActorId, spawning: Spawning) {
        let child = match spawning.await {
            Ok(child) => Arc::new(child),
            Err(error) => {
                self.not_born(id, error).await;
                return self.forget(id);
            }
        };
        self.born(id, child.clone());
        let exit = child.wait().await;
        let status = match &exit {
            Ok(Exit::Code(code)) => ExitStatus::Code(*code),
            Ok(Exit::Signal { signal, .. }) => ExitStatus::Signal(*signal),
            Ok(Exit::Panicked(_)) => ExitStatus::Code(101),
            Err(_) => ExitStatus::Unknown,
        };
        self.ended(id, &child, status).await;
    }

    /// Ends starts that take too long.
    fn end_late_handshakes(&self, now: Time) {
        loop {
            let late = lock(&self.mind).next_late(now);
            let Some((id, outcome)) = late else { return };
            if let Some(handshake::Outcome::TimedOut { waited }) = outcome {
                self.tell_start(id, |path, backend| {
                    let error = self.start_error(path, backend, StartCause::Handshake { waited });
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
        let mut error = Some(error);
        self.tell_start(id, |path, backend| {
            let cause = error.take().map_or(StartCause::Died, StartCause::Spawn);
            Err(self.start_error(path, backend, cause))
        });
        if let Some(slot) = lock(&self.mind).slots.get_mut(&id) {
            slot.pipes = Pipes::default();
            slot.link.outbox.release();
        }
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
        link.drained(bound).await;
        let (status, path) = (ExitStatus::Unknown, link.path.clone());
        let died = FaultKind::Died(status);
        let fault = Fault::new(current::fault_id(), path, died, error.to_string());
        self.tell_end(id, &link, status, fault);
    }

    /// All that will ever be known of it is known.
    fn tell_end(&self, id: ActorId, link: &Link, status: ExitStatus, fault: Fault) {
        link.set_end(Box::new(self.left(id, status).unwrap_or_else(|| fault.clone())));
        link.outbox.release();
        self.apply(Event::Settled { id, status, fault: Box::new(fault) });
    }

    fn born(&self, id: ActorId, child: Arc<Child>) {
        let signal = {
            let mut mind = lock(&self.mind);
            let Some(slot) = mind.slots.get_mut(&id) else { return };
            slot.child = Some(child);
            if slot.serving {
                slot.serves();
            }
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

    /// The process is reaped, the thread joined.
    async fn ended(&self, id: ActorId, child: &Child, status: ExitStatus) {
        let Some(link) = lock(&self.mind).slots.get(&id).map(|slot| slot.link.clone()) else {
            return;
        };
        self.apply(Event::Exited(id));
        let (bound, was_forced) = {
            let scope = &lock(&self.mind).scope;
            (scope.last_words(id, clock::now()), scope.was_forced(id))
        };
        link.drained(bound).await;
        // Nobody asks what led to a death of our own making.
        let is_quoted = status != ExitStatus::Code(0) && !was_forced;
        let mut fault = Fault::new(
            current::fault_id(),
            link.path.clone(),
            FaultKind::Died(status),
            "nobody asked it to",
        );
        if is_quoted {
            fault.output = child.stderr_tail(TAIL_WAIT.min(bound)).await;
        }
        if let Some(failure) = child.handle().birth_failure() {
            let step = failure.step.name().to_owned();
            fault.kind = FaultKind::BirthFailed { step };
            fault.message = std::io::Error::from_raw_os_error(failure.errno).to_string();
        }
        let outcome = {
            let mut mind = lock(&self.mind);
            let exited = handshake::Event::Exited(status);
            mind.slots.get_mut(&id).and_then(|slot| {
                slot.pipes = Pipes::default();
                slot.handshake.handle(exited)
            })
        };
        self.tell_end(id, &link, status, fault.clone());
        if outcome.is_some() {
            // After that: whoever tries again finds the name free.
            self.tell_start(id, |path, backend| {
                Err(StartError { path, backend, cause: StartCause::Died, fault: Box::new(fault) })
            });
        }
        self.forget(id);
    }

    /// Late readers find the end; the process itself is gone.
    fn forget(&self, id: ActorId) {
        lock(&self.mind).slots.remove(&id);
        self.over.send_replace(());
    }

    /// An actor says good-bye, and why if it goes by itself.
    fn leaves(&self, id: ActorId, why: Option<Reason>) {
        if let (Some(why), Some(slot)) = (why, lock(&self.mind).slots.get_mut(&id)) {
            slot.leaving.get_or_insert(why);
        }
    }

    /// What is told to calls that an actor has not answered, if it did not end unasked: it may
    /// have gone before it read them.
    fn left(&self, id: ActorId, status: ExitStatus) -> Option<Fault> {
        let mind = lock(&self.mind);
        let slot = mind.slots.get(&id)?;
        let reason = slot.leaving.clone()?;
        (status == ExitStatus::Code(0) || slot.forced).then(|| {
            let (path, message) = (slot.link.path.clone(), reason.to_string());
            Fault::new(current::fault_id(), path, FaultKind::Cancelled(reason), message)
        })
    }

    /// A handshake's answer has come.
    fn answered(&self, id: ActorId, event: handshake::Event) {
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
                    let cause = StartCause::Refused(error.to_string());
                    Err(self.start_error(path, backend, cause))
                });
                self.reject(id);
            }
            Some(handshake::Outcome::Died(_) | handshake::Outcome::TimedOut { .. }) | None => {}
        }
    }

    fn tell_start(
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

    fn start_error(&self, path: ActorPath, backend: &'static str, cause: StartCause) -> StartError {
        let (kind, message) = match &cause {
            StartCause::Closing(reason) => (FaultKind::Cancelled(reason.clone()), String::new()),
            StartCause::Handshake { waited } => {
                let (stage, waited) = ("handshake".to_owned(), *waited);
                (FaultKind::Stage { stage, waited }, "the new actor did not answer".to_owned())
            }
            StartCause::Spawn(error) => (FaultKind::Refused, error.to_string()),
            StartCause::NameTaken
            | StartCause::BadName(_)
            | StartCause::TooMany { .. }
            | StartCause::Died
            | StartCause::Refused(_) => (FaultKind::Refused, cause.to_string()),
        };
        let mut fault = Fault::new(current::fault_id(), path.clone(), kind, message);
        if let StartCause::Spawn(error) = &cause {
            let mut next = std::error::Error::source(error);
            while let Some(cause) = next {
                fault = fault.because(cause.to_string());
                next = cause.source();
            }
        }
        StartError { path, backend, cause, fault: Box::new(fault) }
    }

    /// Something happened: decide, perform.
    fn apply(&self, event: Event) {
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
    fn perform(&self, mind: &mut MutexGuard<'_, Mind>) -> Option<Box<Outcome>> {
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

    fn finish(&self, outcome: Option<Box<Outcome>>) {
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
        self.actor.close_scope(self, &outcome.report.actors);
    }

    /// What was found is told at the actor's own end, if somebody is there to be told.
    fn leave_behind(&self, outcome: &Outcome) {
        if self.actor.parent.is_some() {
            return self.actor.leave_behind(outcome.faults.clone());
        }
        for fault in &outcome.faults {
            tracing::warn!(%fault, "a nursery that nobody waited for came down with an error");
        }
    }

    /// Drives the machine's timers, on the supervisor, until all is over.
    async fn tick(self: Arc<Self>) {
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
            mind.scope.handle_timeout(now);
            let outcome = self.perform(&mut mind);
            mind.show(None);
            drop(mind);
            self.finish(outcome);
            self.end_late_handshakes(now);
        }
    }

    fn signal(&self, id: ActorId, signal: Signal) {
        if let Some(slot) = lock(&self.mind).slots.get_mut(&id) {
            slot.signal(signal);
        }
    }
}

impl Mind {
    /// When a bound runs out next.
    fn poll_timeout(&mut self) -> Option<Time> {
        // An answered handshake is forgotten here and not when the answer comes: a timer for each,
        // to be ended by another thread or to run out for nothing, would cost every start a wake-up.
        while let Some((_, id)) = self.handshakes.first()
            && self.slots.get(id).is_none_or(|slot| slot.handshake.poll_timeout().is_none())
        {
            self.handshakes.pop_first();
        }
        let handshake = self.handshakes.first().map(|(until, _)| *until);
        self.scope.poll_timeout().into_iter().chain(handshake).min()
    }

    /// Takes a handshake whose bound has run out, and says what comes of it: nothing if it was
    /// answered.
    fn next_late(&mut self, now: Time) -> Option<(ActorId, Option<handshake::Outcome>)> {
        let (_, id) = *self.handshakes.first().filter(|(until, _)| *until <= now)?;
        self.handshakes.pop_first();
        let outcome = self.slots.get_mut(&id).and_then(|slot| slot.handshake.handle_timeout(now));
        Some((id, outcome))
    }

    /// Writes down how the nursery and one of its actors are doing.
    fn show(&mut self, id: Option<ActorId>) {
        self.lines.nursery(self.scope.stage());
        if let Some(id) = id
            && let Some(stage) = self.scope.member(id)
        {
            let child = self.slots.get(&id).and_then(|slot| slot.child.as_ref());
            let pid = child.and_then(|child| match child.id() {
                ChildId::Process(pid) => Some(pid),
                ChildId::Thread(_) => None,
            });
            self.lines.member(id, stage, pid.unwrap_or(0));
        }
    }
}

impl Slot {
    /// What watched over its birth is not needed any more.
    fn serves(&mut self) {
        self.serving = true;
        if let Some(child) = &self.child {
            child.handle().born();
        }
    }

    fn perform(&mut self, action: teardown::Action) {
        match action {
            teardown::Action::SendCancel { reason, budget } => {
                self.leaving.get_or_insert_with(|| reason.clone());
                // If the channel is closed, the reader says so and the ladder goes on.
                drop(self.link.outbox.push(Priority::Control, &ToChild::Cancel { reason, budget }));
            }
            teardown::Action::Terminate => {
                self.forced = true;
                self.signal(Signal::Terminate);
            }
            teardown::Action::Kill => {
                self.forced = true;
                self.signal(Signal::Kill);
            }
            teardown::Action::GiveUp(step) => self.give_up(step),
            teardown::Action::BreakChannel => self.link.outbox.break_channel(),
        }
    }

    fn signal(&mut self, signal: Signal) {
        let Some(child) = &self.child else {
            self.signal = Some(signal);
            return;
        };
        let sent = match signal {
            Signal::Terminate => child.terminate(),
            Signal::Kill => child.kill(),
        };
        if let Err(error) = sent {
            tracing::warn!(%error, path = %self.link.path, "signal not sent");
        }
    }

    fn give_up(&mut self, step: Step) {
        self.pipes = Pipes::default();
        let Some(child) = self.child.take() else { return };
        if step == Step::Abandoned {
            child.abandon("did not end inside the teardown budget");
        } else {
            tracing::error!(path = %self.link.path, "a process did not end on SIGKILL");
        }
    }
}

/// An actor that its scope waits for and that has no process yet. Dropped early, it never gets
/// one.
#[derive(Debug)]
pub(crate) struct Admitted {
    core: Arc<Core>,
    id: ActorId,
    path: ActorPath,
    options: Options,
    backend: Backend,
    kind: Kind,
    launched: bool,
}

impl Admitted {
    /// Starts it as soon as few enough others are on their way, and waits for its handshake.
    ///
    /// Ended by that, by the actor's death, by the handshake's bound, or by a cancel.
    pub(crate) async fn ready(mut self) -> Result<Portal, StartError> {
        let runtime = self.core.actor.runtime.clone();
        let _birth = tokio::select! {
            birth = runtime.births.acquire() => birth.ok(),
            // `launch` sees the same and refuses.
            () = self.core.asked(self.id) => None,
        };
        let starting = self.core.clone().launch(&self)?;
        self.launched = true;
        starting.ready().await
    }

    /// What a one-shot actor's task says at its end, also if it is dropped.
    pub(crate) fn run(&self) -> Run {
        Run { core: self.core.clone(), id: self.id, said: false }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if !self.launched {
            self.core.apply(Event::NotBorn(self.id));
        }
    }
}

/// An actor on its way to its handshake. Dropped early, it is taken down again.
#[derive(Debug)]
struct Starting {
    core: Arc<Core>,
    id: ActorId,
    link: Arc<Link>,
    ready: Option<oneshot::Receiver<Result<(), StartError>>>,
}

impl Starting {
    async fn ready(mut self) -> Result<Portal, StartError> {
        let answer = match &mut self.ready {
            Some(ready) => ready.await.unwrap_or_else(|_| Err(self.given_up())),
            None => Err(self.given_up()),
        };
        self.ready = None;
        answer.map(|()| {
            let (core, id, link) = (self.core.clone(), self.id, self.link.clone());
            Portal { core, id, link }
        })
    }

    fn given_up(&self) -> StartError {
        let by = self.link.path.clone();
        let cause = StartCause::Closing(Reason { by: by.clone(), why: Why::Dropped });
        self.core.start_error(by, "unknown", cause)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if self.ready.is_some() {
            let reason = Reason { by: current::path(), why: Why::Dropped };
            self.core.cancel_actor(self.id, reason);
        }
    }
}

/// A one-shot actor's function, as its scope counts it.
#[derive(Debug)]
pub(crate) struct Run {
    core: Arc<Core>,
    id: ActorId,
    said: bool,
}

impl Run {
    /// It has ended so.
    pub(crate) fn finished(mut self, result: Result<(), Fault>) {
        self.said = true;
        self.core.apply(Event::RunFinished { id: self.id, result: result.map_err(Box::new) });
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.said {
            let message = "the task that waited for it is gone";
            let path = self.core.actor.path.clone();
            let fault = Fault::new(current::fault_id(), path, FaultKind::Lost, message);
            self.core.apply(Event::RunFinished { id: self.id, result: Err(Box::new(fault)) });
        }
    }
}

/// The reader task of one child's channel; if its runtime ends, so does the channel.
struct Reading {
    core: Arc<Core>,
    id: ActorId,
    link: Arc<Link>,
    is_process: bool,
}

impl Reading {
    async fn read(self, mut inbox: Inbox) {
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
            // That connection ends, and nothing else (C15).
            tracing::error!(%error, path = %self.link.path, "malformed message");
            self.link.outbox.break_channel();
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

/// Why an actor can't have a piped output, if it shall have one and can't.
fn nobody_to_take(
    options: &Options,
    runtime: &Inner,
    role: Role,
    kind: Kind,
) -> Option<&'static str> {
    match (options.is_piped(&runtime.defaults), kind, role) {
        (false, _, _) | (true, Kind::Process, Role::LongLived) => None,
        (true, Kind::Thread, _) => Some("piped output: a thread has none of its own"),
        (true, Kind::Process, Role::OneShot) => {
            Some("piped output of a one-shot actor: it has no portal to take it from")
        }
    }
}

fn pair() -> std::io::Result<(Arc<Socket>, std::os::fd::OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((Arc::new(Socket::new(ours)?), theirs.into()))
}

fn system(name: &str, call: &'static str) -> impl FnOnce(std::io::Error) -> SpawnError {
    let (name, call) = (name.to_owned(), call.to_owned());
    move |cause| SpawnError::Call { name, call, cause }
}

/// How long a dead actor's last stderr lines are waited for: a stray may hold the pipe.
const TAIL_WAIT: Duration = Duration::from_millis(100);
