//! The scope that owns actors: no actor outlives it (C1).

use std::ffi::OsStr;
use std::future::{Future, IntoFuture};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hatchery_proto::scope::{Outcome, Role};
use hatchery_proto::{Fault, FaultKind, Reason, Report, Why};
use hatchery_spawn::{Confinement, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::copied::{self, Here, is_copy};
use crate::current::{self, Actor, Entered};
use crate::drive::home::{Home, Place};
use crate::drive::scope::Core;
use crate::error::{CallError, ScopeError, StartError};
use crate::function::{Call, RemoteError};
use crate::panics::{Caught, caught};
use crate::portal::Portal;
use crate::root::House;
use crate::runtime;
use crate::start::{Backend, Options, Stdio};

/// Opens a nursery, runs `body` in it, and returns when every actor that it started has settled.
///
/// Long-lived actors ([`Nursery::start`]) serve until the body has returned; one-shot actors
/// ([`Nursery::run`]) are awaited. Whatever goes wrong first, in the body or in an actor, cancels
/// all the others (C4). Teardown takes at most the budget of the configuration (C2).
///
/// It belongs to the actor that calls it, and in the body of a nursery to the same runtime as that one. In
/// other code of a process that is no actor it belongs to the process's own runtime: the one that was opened
/// first of those that are open, or else one with the defaults, which is opened now and lives until the
/// process ends. If that runtime is closed by whoever opened it, the nursery goes on to its own end all the
/// same (C19); while it drains, none is opened.
///
/// ```no_run
/// #[hatchery::function]
/// async fn square(x: u64) -> u64 {
///     x * x
/// }
///
/// # async fn example() -> Result<(), hatchery::ScopeError> {
/// let sum = hatchery::nursery(async |n| {
///     let worker = n.start("worker").await?;
///     let once = n.run("once", square(3));
///     Ok(worker.call(square(7)).await? + once.await?)
/// })
/// .await?;
/// assert_eq!(sum, 58);
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`ScopeError`] with all that went wrong, the body's own error first; or that the nursery was
/// cancelled, if that left no value.
///
/// # Cancel safety
/// Dropping the future cancels the nursery; it comes down in the background inside the budget,
/// and the runtime does not end before it (C1).
pub async fn nursery<T, F>(body: F) -> Result<T, ScopeError>
where
    F: AsyncFnOnce(Nursery) -> crate::Result<T>,
{
    match runtime::entered() {
        Ok(Entered { actor, guest }) => open(actor, guest, body).await,
        Err(error) => {
            let fault = Box::new(crate::error::fault_of(&error));
            Err(ScopeError { fault, report: Report::default() })
        }
    }
}

/// The same, with the report of how everybody came down also when all went well (C16).
///
/// # Errors
/// As [`nursery`].
///
/// # Cancel safety
/// As [`nursery`].
pub async fn nursery_with_report<T, F>(body: F) -> (Result<T, ScopeError>, Report)
where
    F: AsyncFnOnce(Nursery) -> crate::Result<T>,
{
    match runtime::entered() {
        Ok(Entered { actor, guest }) => run(actor, guest, body).await,
        Err(error) => {
            let fault = Box::new(crate::error::fault_of(&error));
            (Err(ScopeError { fault, report: Report::default() }), Report::default())
        }
    }
}

pub(crate) async fn open<T, F>(
    actor: Arc<Actor>,
    guest: Option<Arc<House>>,
    body: F,
) -> Result<T, ScopeError>
where
    F: AsyncFnOnce(Nursery) -> crate::Result<T>,
{
    run(actor, guest, body).await.0
}

/// `guest`: what keeps the runtime open until the nursery has returned, if others may close it.
async fn run<T, F>(
    actor: Arc<Actor>,
    guest: Option<Arc<House>>,
    body: F,
) -> (Result<T, ScopeError>, Report)
where
    F: AsyncFnOnce(Nursery) -> crate::Result<T>,
{
    if is_copy() {
        return (Err(copied()), Report::default());
    }
    // Dropped last of all.
    let within = Entered { actor, guest };
    let actor = &within.actor;
    let core = match Core::open(actor.clone(), within.guest.is_some()) {
        Ok(core) => core,
        Err(reason) => {
            let fault = Box::new(cancelled_fault(actor, reason));
            return (Err(ScopeError { fault, report: Report::default() }), Report::default());
        }
    };
    let mut waiting = Waiting { core: &core, heard: false };
    let value = {
        let running = current::within(&within, || body(Nursery { core: core.clone() }));
        let mut body = Body { within: &within, running: caught(running) };
        tokio::select! {
            biased;
            _reason = Here::new(core.body_cancelled()) => {
                // A destructor in the body that panics is the body's own error.
                core.body_done(body.discard());
                None
            }
            result = &mut body => match result {
                // Made inside of the body: the nursery is not this process's.
                _ if is_copy() => return (Err(copied()), Report::default()),
                Ok(Ok(value)) => {
                    core.body_done(Ok(()));
                    Some(value)
                }
                Ok(Err(error)) => {
                    core.body_done(Err(Box::new(error.into_fault())));
                    None
                }
                Err(panic) => {
                    core.body_done(Err(panic));
                    None
                }
            },
        }
    };
    let outcome = core.finished().await;
    waiting.heard = true;
    let report = outcome.report.clone();
    (conclude(actor, value, &outcome), report)
}

/// A nursery's body: what it asks for by the free functions belongs to the same root or actor as its nursery
/// does, and is a guest there if that one is.
struct Body<'a, F> {
    within: &'a Entered,
    running: Caught<F>,
}

impl<F> Body<'_, F> {
    fn discard(&mut self) -> Result<(), Box<Fault>> {
        let Self { within, running } = self;
        current::within(within, || running.discard())
    }
}

impl<F: Future> Future for Body<'_, F> {
    type Output = Result<F::Output, Box<Fault>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { within, running } = &mut *self;
        current::within(within, || Pin::new(running).poll(cx))
    }
}

impl<F> Drop for Body<'_, F> {
    fn drop(&mut self) {
        // Dropped early, it is dropped where it was polled; a panic in it is the caller's.
        let Self { within, running } = self;
        current::within(within, || running.abandon());
    }
}

fn conclude<T>(actor: &Actor, value: Option<T>, outcome: &Outcome) -> Result<T, ScopeError> {
    let faults = outcome.faults.clone();
    let group = Fault::group(current::fault_id(), actor.path.clone(), faults);
    let fault = match (group, &outcome.cancelled, value) {
        (Some(fault), _, _) => fault,
        (None, None, Some(value)) => return Ok(value),
        // What the body itself asked for, after it had its value, is no error.
        (None, Some(Reason { by, why: Why::Requested }), Some(value)) if *by == actor.path => {
            return Ok(value);
        }
        (None, Some(reason), _) => cancelled_fault(actor, reason.clone()),
        (None, None, None) => {
            cancelled_fault(actor, Reason { by: actor.path.clone(), why: Why::Dropped })
        }
    };
    Err(ScopeError { fault: Box::new(fault), report: outcome.report.clone() })
}

fn copied() -> ScopeError {
    ScopeError { fault: Box::new(copied::fault()), report: Report::default() }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "every other reason is a cancel")]
fn cancelled_fault(actor: &Actor, reason: Reason) -> Fault {
    let message = reason.to_string();
    let kind = match reason.why {
        Why::Signal(signal) => FaultKind::Interrupted { signal },
        _ => FaultKind::Cancelled(reason),
    };
    Fault::new(current::fault_id(), actor.path.clone(), kind, message)
}

/// Dropped early, it leaves the scope to come down in the background.
struct Waiting<'a> {
    core: &'a Arc<Core>,
    heard: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.heard {
            self.core.unwaited();
        }
    }
}

/// The way into an open nursery: start actors, run functions, cancel. Clones are the same.
#[derive(Debug, Clone)]
pub struct Nursery {
    core: Arc<Core>,
}

impl Nursery {
    /// Starts a long-lived actor with the defaults of the runtime.
    ///
    /// # Errors
    /// [`StartError`]; nothing of the actor is left.
    ///
    /// # Cancel safety
    /// Dropping the future takes the actor down again.
    pub async fn start(&self, name: &str) -> Result<Portal, StartError> {
        self.actor(name).start().await
    }

    /// Starts a one-shot actor that runs `call`, in the background. The nursery awaits it; its
    /// error cancels the siblings.
    pub fn run<T, E>(&self, name: &str, call: Call<T, E>) -> OneShot<T, E>
    where
        T: DeserializeOwned + Send + 'static,
        E: RemoteError + Send + 'static,
    {
        self.actor(name).run(call)
    }

    /// An actor with options of its own.
    pub fn actor(&self, name: &str) -> ActorBuilder {
        let options = Options { name: name.to_owned(), ..Options::default() };
        ActorBuilder { core: self.core.clone(), options }
    }

    /// Takes every actor of the nursery down and drops its body, gracefully. Returns at once; a
    /// second cancel is no error.
    pub fn cancel(&self) {
        let reason = Reason { by: current::path(), why: Why::Requested };
        let budget = self.core.budget();
        self.core.cancel(reason, budget);
    }
}

/// One actor to be. Made by [`Nursery::actor`].
#[derive(Debug, Clone)]
#[must_use = "an actor is only started by `start` or `run`"]
pub struct ActorBuilder {
    core: Arc<Core>,
    options: Options,
}

impl ActorBuilder {
    /// How it is brought to life.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.options.backend = Some(backend);
        self
    }

    /// Where its stdout goes.
    pub fn stdout(mut self, stdio: Stdio) -> Self {
        self.options.stdout = Some(stdio);
        self
    }

    /// Where its stderr goes.
    pub fn stderr(mut self, stdio: Stdio) -> Self {
        self.options.stderr = Some(stdio);
        self
    }

    /// Limits a resource of its process.
    pub fn limit(mut self, resource: Resource, soft: u64, hard: u64) -> Self {
        self.options.limits.push((resource, soft, hard));
        self
    }

    /// Sets a variable of its process. All others are its spawner's at the moment of the start (C18).
    ///
    /// This, the other changes of variables, [`Self::current_dir`], [`Self::umask`] and [`Self::nice`]
    /// are refused on a thread, which shares its process's: the start fails with
    /// [`StartCause::Spawn`](crate::StartCause::Spawn) and
    /// [`SpawnError::Unsupported`](hatchery_spawn::SpawnError::Unsupported). An empty name, one with a
    /// `=` and a null byte are errors of the start too.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.options.env.push((key.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Removes a variable of its process; not on a thread, see [`Self::env`].
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.options.env.push((key.as_ref().to_owned(), None));
        self
    }

    /// Removes all variables of its process but those that are set after this; not on a thread, see
    /// [`Self::env`].
    ///
    /// Also the one by which hatchery finds programs that the actor starts by itself. Those that leave
    /// the actor's process group then end with the tree and not with the actor, and outlive a SIGKILL
    /// of the tree's forkserver (C3).
    pub fn env_clear(mut self) -> Self {
        self.options.env.clear();
        self.options.env_clear = true;
        self
    }

    /// Where its process starts; a relative path is seen from its spawner's directory, which is the
    /// default. Not on a thread, see [`Self::env`].
    pub fn current_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.options.current_dir = Some(path.as_ref().to_owned());
        self
    }

    /// The umask of its process, 0 to 0o777. Default: its spawner's. Not on a thread, see
    /// [`Self::env`].
    pub fn umask(mut self, umask: u32) -> Self {
        self.options.umask = Some(umask);
        self
    }

    /// The nice value of its process, -20 to 19; below its spawner's only with the right to it.
    /// Default: that of the thread that starts it. Not on a thread, see [`Self::env`]. Unlike
    /// [`Confinement::nice`] it doesn't bind what the actor starts.
    pub fn nice(mut self, nice: i32) -> Self {
        self.options.nice = Some(nice);
        self
    }

    /// Bounds what its process may do, and all that it starts: nice value, processors, rights,
    /// files, system calls, user, cgroup. Default: nothing is bounded. Replaces what was said
    /// before.
    ///
    /// What this machine can't do, and any of it on a thread, fails the start with
    /// [`StartCause::Spawn`](crate::StartCause::Spawn), whose source names the step. A filter or a
    /// list of files must leave the actor what it needs: a tokio runtime and the channel to its
    /// spawner; `/dev/null` to write, if it starts others; and with [`Backend::Exec`] all that the
    /// start of a program takes.
    pub fn confine(mut self, confinement: Confinement) -> Self {
        self.options.confine = confinement;
        self
    }

    /// Bytes of stack, for a thread.
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.options.stack_size = Some(bytes);
        self
    }

    /// How long both ends of its channel look for messages before they sleep, at most 1 ms: see
    /// [`Config::busy_poll`](crate::Config::busy_poll), which is the default. More fails the start
    /// with [`StartCause::Config`](crate::StartCause::Config).
    pub fn busy_poll(mut self, span: Duration) -> Self {
        self.options.busy_poll = Some(span);
        self
    }

    /// Starts it to serve until the nursery ends.
    ///
    /// # Errors
    /// [`StartError`]; nothing of the actor is left.
    ///
    /// # Cancel safety
    /// Dropping the future takes the actor down again.
    pub async fn start(self) -> Result<Portal, StartError> {
        self.core.admit(self.options, Role::LongLived)?.ready().await
    }

    /// Starts it to run one function, in the background.
    pub fn run<T, E>(self, call: Call<T, E>) -> OneShot<T, E>
    where
        T: DeserializeOwned + Send + 'static,
        E: RemoteError + Send + 'static,
    {
        let (told, result) = oneshot::channel();
        let home = Home::new(Place::here(), self.core.runtime());
        match self.core.admit(self.options, Role::OneShot) {
            Ok(mut admitted) => {
                let (run, pass) = (admitted.run(), admitted.take_pass());
                home.spawn(async move {
                    let result = match admitted.ready().await {
                        Ok(portal) => portal.call(call).with_pass(pass).await,
                        Err(error) => Err(CallError::not_started(error.fault)),
                    };
                    let fault = result.as_ref().map(drop).map_err(|error| error.fault().clone());
                    run.finished(fault);
                    // Whoever waits may have gone; the nursery knows.
                    drop(told.send(result));
                });
            }
            Err(error) => {
                let fault = error.fault;
                self.core.fail(&fault);
                drop(told.send(Err(CallError::Refused(fault))));
            }
        }
        OneShot { result, home }
    }
}

/// The result of a one-shot actor, on its way. Await it or not: the nursery does.
#[derive(Debug)]
pub struct OneShot<T, E> {
    result: oneshot::Receiver<Result<T, CallError<E>>>,
    /// Of the task that brings it.
    home: Arc<Home>,
}

impl<T, E> IntoFuture for OneShot<T, E> {
    type Output = Result<T, CallError<E>>;
    type IntoFuture = OneShotFuture<T, E>;

    /// Waits for the function's outcome. Ended by it, or by the nursery's teardown.
    ///
    /// # Cancel safety
    /// Dropping the future loses the value and nothing else.
    fn into_future(self) -> Self::IntoFuture {
        OneShotFuture { result: self.result, home: self.home }
    }
}

/// See [`OneShot`].
#[derive(Debug)]
pub struct OneShotFuture<T, E> {
    result: oneshot::Receiver<Result<T, CallError<E>>>,
    home: Arc<Home>,
}

impl<T, E> Future for OneShotFuture<T, E> {
    type Output = Result<T, CallError<E>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = Pin::new(&mut self.result).poll(cx);
        if result.is_pending() {
            self.home.visited();
        }
        result.map(|result| {
            result.unwrap_or_else(|_| {
                let message = "the task that waited for it is gone".to_owned();
                Err(CallError::Lost(Box::new(current::fault(FaultKind::Lost, message))))
            })
        })
    }
}
