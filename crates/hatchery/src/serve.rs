//! The answering end of a connection: runs the functions that the other side asks for.
//!
//! The same for an actor's parent channel and for its peers. Each call has a task of its own and
//! exactly one answer; a cancel finds it wherever it is, also if it overtakes it.

use std::sync::{Arc, Mutex};

use hatchery_proto::board::Kind;
use hatchery_proto::serve::{Admission, Served};
use hatchery_proto::stream::{Terms, Violation};
use hatchery_proto::{
    ActorPath, CallId, Encoded, Fault, FaultKind, FrameError, Reason, ToChild, ToParent, Why,
};
use tokio::sync::oneshot;

use crate::board::Entry;
use crate::context::RawCallee;
use crate::copied::{self, is_copy};
use crate::current::{self, Actor, Busy};
use crate::drive::link::Answer;
use crate::drive::pipe::{Pipe, Side};
use crate::drive::reader::Ended;
use crate::drive::writer::{Outbox, Priority, PushError};
use crate::function::{self, Asked};
use crate::lock::lock;
use crate::panics::{Caught, caught};

/// What one connection asks of this actor.
#[derive(Debug)]
pub(crate) struct Service {
    actor: Arc<Actor>,
    outbox: Arc<Outbox>,
    /// Who asks.
    from: ActorPath,
    open: Mutex<Served<Running>>,
}

/// How a running call is reached.
#[derive(Debug)]
enum Running {
    Call(Option<oneshot::Sender<Reason>>),
    Context(Arc<Pipe>),
}

impl Service {
    pub(crate) fn new(actor: Arc<Actor>, outbox: Arc<Outbox>, from: ActorPath) -> Arc<Self> {
        Arc::new(Self { actor, outbox, from, open: Mutex::default() })
    }

    /// Handles what belongs to calls and contexts; the rest comes back.
    pub(crate) fn handle(self: &Arc<Self>, message: ToChild) -> Result<Option<ToChild>, Ended> {
        match message {
            ToChild::Call { call, function, args, deadline: _ } => {
                if self.admit(call, &function)? {
                    self.call(call, &function, self.asked(args));
                }
            }
            ToChild::Open { call, function, args, terms } => {
                if self.admit(call, &function)? {
                    self.context(call, &function, self.asked(args), terms);
                }
            }
            ToChild::CancelCall { call, reason } => self.cancel(call, reason)?,
            ToChild::Grant { call, bytes } => self.with(call, |pipe| pipe.granted(bytes))?,
            ToChild::CloseStream { call } => self.with(call, Pipe::closed)?,
            ToChild::Hello(_)
            | ToChild::Meet(_)
            | ToChild::Cancel { .. }
            | ToChild::CancelBelow { .. } => {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Hands a message of a stream to its context.
    pub(crate) fn item(&self, call: CallId, value: Encoded) -> Result<(), Ended> {
        self.with(call, |pipe| pipe.arrived(value))
    }

    /// The connection is gone: nobody waits for what runs here.
    pub(crate) fn lost(&self) {
        if is_copy() {
            return;
        }
        let reason = Reason { by: self.from.clone(), why: Why::PeerGone };
        for mut running in lock(&self.open).take_all() {
            running.stop(reason.clone());
        }
    }

    /// Whether to run a call; if not, it is answered here.
    fn admit(&self, call: CallId, name: &str) -> Result<bool, Ended> {
        let admission = lock(&self.open).admit(call).map_err(Ended::violation)?;
        let reason = match (admission, self.actor.cancelling()) {
            (Admission::Run, None) => return Ok(true),
            (Admission::Cancelled(reason), _) => reason,
            (Admission::Run, Some(cancelling)) => cancelling.reason,
        };
        let name = function::name::path(name);
        let message = format!("`{name}` was called while the actor goes down, or cancelled before");
        let fault = current::fault(FaultKind::Cancelled(reason), message);
        self.answer(call, Err(Box::new(fault)));
        Ok(false)
    }

    fn call(self: &Arc<Self>, call: CallId, name: &str, asked: Asked) {
        match function::dispatch(name, &asked) {
            Ok(running) => {
                let (cancel, cancelled) = oneshot::channel();
                lock(&self.open).insert(call, Running::Call(Some(cancel)));
                let cancelled = async move {
                    match cancelled.await {
                        Ok(reason) => reason,
                        Err(_) => std::future::pending().await,
                    }
                };
                let line = self.line(Kind::Serving, call, name);
                tokio::spawn(self.task(call, Some(line)).run(running, cancelled, Ok));
            }
            Err(fault) => self.answer(call, Err(fault)),
        }
    }

    fn context(self: &Arc<Self>, call: CallId, name: &str, asked: Asked, terms: Terms) {
        let (from, outbox) = (self.from.clone(), self.outbox.clone());
        let line = self.line(Kind::ServingContext, call, name);
        let pipe = Pipe::new(Side::Callee, call, from, outbox, terms, line);
        match function::dispatch_context(name, &asked, RawCallee::new(pipe.clone())) {
            Ok(running) => {
                lock(&self.open).insert(call, Running::Context(pipe.clone()));
                let (stopping, actor) = (pipe.clone(), self.actor.clone());
                let stopped = async move {
                    tokio::select! {
                        biased;
                        reason = stopping.stopped() => reason,
                        cancelling = actor.cancelled() => {
                            // So that also destructors of the function find the reason.
                            stopping.stop(cancelling.reason);
                            stopping.stopped().await
                        }
                    }
                };
                let last_word = move |result| pipe.finish(result).ok_or(());
                tokio::spawn(self.task(call, None).run(running, stopped, last_word));
            }
            Err(fault) => self.answer(call, Err(fault)),
        }
    }

    fn asked(&self, args: Encoded) -> Asked {
        Asked::new(args, self.outbox.moves_from())
    }

    fn task(self: &Arc<Self>, call: CallId, line: Option<Entry>) -> Serving {
        Serving { service: self.clone(), call, line, _busy: self.actor.busy() }
    }

    fn line(&self, kind: Kind, call: CallId, name: &str) -> Entry {
        let function = function::name::path(name);
        self.actor.mark.enter(kind, call.number(), self.from.as_str(), function)
    }

    fn cancel(&self, call: CallId, reason: Reason) -> Result<(), Ended> {
        let mut open = lock(&self.open);
        if let Some(running) = open.cancel(call, reason.clone()).map_err(Ended::violation)? {
            running.stop(reason);
        }
        Ok(())
    }

    /// Does something to an open context. One that has ended is left alone: what comes for it was
    /// under way when it did.
    fn with(
        &self,
        call: CallId,
        act: impl FnOnce(&Pipe) -> Result<(), Violation>,
    ) -> Result<(), Ended> {
        let pipe = match lock(&self.open).get(call) {
            Some(Running::Context(pipe)) => pipe.clone(),
            Some(Running::Call(_)) => return Err(Ended::violation("a stream in a plain call")),
            None => return Ok(()),
        };
        act(&pipe).map_err(Ended::violation)
    }

    fn answer(&self, call: CallId, result: Answer) {
        let message = ToParent::Reply { call, result };
        // Others that run may answer in the same moment.
        let alone = lock(&self.open).is_empty();
        let pushed = match alone {
            true => self.outbox.push(Priority::Data, &message),
            false => self.outbox.gather(&message),
        };
        if let Err(PushError::Frame(cause)) = pushed {
            let result = Err(Box::new(unsendable(&cause)));
            // If the channel is closed the reader sees it too and takes care.
            let _closed = self.outbox.push(Priority::Data, &ToParent::Reply { call, result });
        }
    }
}

impl Running {
    fn stop(&mut self, reason: Reason) {
        match self {
            Self::Call(cancel) => {
                if let Some(cancel) = cancel.take() {
                    // It is being answered at this very moment: then the answer stands.
                    let _answered = cancel.send(reason);
                }
            }
            Self::Context(pipe) => pipe.stop(reason),
        }
    }
}

/// One call or context in progress.
struct Serving {
    service: Arc<Service>,
    call: CallId,
    /// A context's is its pipe's.
    line: Option<Entry>,
    /// The actor doesn't leave before this is dropped.
    _busy: Busy,
}

impl Serving {
    /// Runs a function to its end, or drops it when it is cancelled; `conclude` has the last say
    /// about what is answered, if anything.
    async fn run(
        self,
        running: function::Served,
        cancelled: impl Future<Output = Reason>,
        conclude: impl FnOnce(Answer) -> Result<Answer, ()>,
    ) {
        let mut running = caught(running);
        let result = tokio::select! {
            biased;
            result = copied::Serving(&mut running) => result,
            reason = cancelled => Err(cancelled_fault(&mut running, reason)),
            cancelling = self.service.actor.cancelled() => {
                Err(cancelled_fault(&mut running, cancelling.reason))
            }
        };
        // This is the function's own code still, and its panic the function's.
        let result = match result {
            Ok(reply) if reply.has_parts() => settled(&self.service.outbox, reply).await,
            result => result,
        };
        drop(self.line);
        // Before the answer: who hears it may find the number free.
        lock(&self.service.open).finished(self.call);
        if let Ok(result) = conclude(result) {
            self.service.outbox.room().await;
            self.service.answer(self.call, result);
        }
    }
}

async fn settled(outbox: &Outbox, reply: Encoded) -> Answer {
    // Before files are made for it.
    outbox.room().await;
    let settled = caught(async { outbox.settled(reply) }).await?;
    settled.map_err(|cause| Box::new(unsendable(&cause)))
}

/// The fault in the place of a reply that can't be sent.
#[allow(clippy::wildcard_enum_match_arm, reason = "the enum may grow")]
fn unsendable(cause: &FrameError) -> Fault {
    let kind = match cause {
        FrameError::TooLarge { .. } => FaultKind::TooLarge,
        _ => FaultKind::BadReply,
    };
    current::fault(kind, format!("the reply can't be sent: {cause}"))
}

/// Drops the function; a destructor that panics is told in place of the cancellation.
fn cancelled_fault(running: &mut Caught<function::Served>, reason: Reason) -> Box<Fault> {
    match running.discard() {
        Err(fault) => fault,
        Ok(()) => {
            let message = format!("cancelled by `{}`", reason.by);
            Box::new(current::fault(FaultKind::Cancelled(reason), message))
        }
    }
}
