//! Who may be started: a place in the scope, held until the actor is launched.

use std::sync::Arc;

use hatchery_proto::scope::{Event, Refusal, Role};
use hatchery_proto::teardown::Kind;
use hatchery_proto::{ActorId, ActorName, ActorPath, Config, Fault, FaultKind};
use hatchery_spawn::SpawnError;

use super::Core;
use crate::copied::is_copy;
use crate::current;
use crate::drive::gate::Pass;
use crate::error::{StartCause, StartError};
use crate::function;
use crate::lock::lock;
use crate::portal::Portal;
use crate::runtime::Inner;
use crate::start::{Backend, Options};

impl Core {
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
            StartError::new(self.actor.path.clone(), backend_name, StartCause::BadName(bad.0))
        })?;
        if is_copy() {
            let path = self.actor.path.child(&name);
            let error = SpawnError::Copied { name: options.name };
            return Err(StartError::new(path, backend_name, StartCause::Spawn(error)));
        }
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
            return Err(StartError::new(path, backend_name, StartCause::Spawn(error)));
        }
        if let Some(twins) = function::twins() {
            let cause = StartCause::FunctionTwice { name: twins.path, places: twins.places };
            return Err(StartError::new(self.actor.path.child(&name), backend_name, cause));
        }
        if let Err(error) = options.busy_poll.map_or(Ok(()), Config::validate_busy_poll) {
            let path = self.actor.path.child(&name);
            return Err(StartError::new(path, backend_name, StartCause::Config(error)));
        }
        let gate = self.actor.gate.as_ref();
        let pass = gate.map(|gate| gate.enter()).transpose().map_err(|reason| {
            let path = self.actor.path.child(&name);
            StartError::new(path, backend_name, StartCause::Closing(reason))
        })?;
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
            StartError::new(self.actor.path.child(&name), backend_name, cause)
        })?;
        let core = self.clone();
        Ok(Admitted { core, id, path, options, backend, kind, launched: false, pass })
    }
}

/// An actor that its scope waits for and that has no process yet. Dropped early, it never gets
/// one.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(super) core: Arc<Core>,
    pub(super) id: ActorId,
    pub(super) path: ActorPath,
    pub(super) options: Options,
    pub(super) backend: Backend,
    pub(super) kind: Kind,
    pub(super) launched: bool,
    /// A start is under way until it is ready.
    pub(super) pass: Option<Pass>,
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

    /// What a one-shot actor goes on with: it is under way until its function has ended.
    pub(crate) fn take_pass(&mut self) -> Option<Pass> {
        self.pass.take()
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
        self.core.apply(Event::Told(self.id));
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.said {
            let message = "the task that waited for it is gone";
            let path = self.core.actor.path.clone();
            let fault = Fault::new(current::fault_id(), path, FaultKind::Lost, message);
            self.core.apply(Event::RunFinished { id: self.id, result: Err(Box::new(fault)) });
            self.core.apply(Event::Told(self.id));
        }
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
