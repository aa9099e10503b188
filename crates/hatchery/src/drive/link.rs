//! The asking end of a connection: calls and contexts go out, replies come back to their callers.
//!
//! The table of open calls decides who gets what: exactly one outcome for each (C4). It is
//! touched by callers on any thread and by the one reader task.
//!
//! Lock order: the table before an outbox's own lock. A call's number is drawn and its frame is
//! pushed as one step, so that numbers only grow on the wire.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use hatchery_proto::board::Kind;
use hatchery_proto::call::Calls;
use hatchery_proto::stream::{Terms, Violation};
use hatchery_proto::{
    ActorPath, CallId, Encoded, Fault, FaultKind, FrameError, Reason, ToChild, ToParent, Why,
};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::gate::{Gate, Pass};
use super::pipe::{Pipe, Side};
use super::reader::Ended;
use super::writer::{Outbox, Priority, PushError};
use crate::board::Mark;
use crate::copied::{self, is_copy};
use crate::current::{self, Actor};
use crate::function::Name;
use crate::lock::lock;

/// What one call comes to.
pub(crate) type Answer = Result<Encoded, Box<Fault>>;

/// Who waits for an answer.
#[derive(Debug)]
enum Waiter {
    Call(oneshot::Sender<Answer>),
    Context(Arc<Pipe>),
}

/// How far the end of a child is known.
#[derive(Debug)]
enum End {
    Open,
    /// It has exited, and its last words are read for that long.
    Exited(Duration),
    Told(Box<Fault>),
}

/// A live connection to a child or a peer.
#[derive(Debug)]
pub(crate) struct Link {
    /// The child's path.
    pub(crate) path: ActorPath,
    pub(crate) outbox: Arc<Outbox>,
    calls: Mutex<Calls<Waiter>>,
    /// How the child ended; set by the scope's driver when it knows.
    end: watch::Sender<End>,
    /// Set by the reader when nothing more will come.
    drained: watch::Sender<bool>,
    /// The child's process, if it has its own; known from its handshake on.
    pid: OnceLock<u32>,
    /// Who holds this end of it.
    owner: Mark,
    /// What is begun here by a root passes it.
    gate: Option<Arc<Gate>>,
}

impl Link {
    pub(crate) fn new(path: ActorPath, outbox: Arc<Outbox>, owner: &Actor) -> Self {
        let (end, _) = watch::channel(End::Open);
        let (drained, _) = watch::channel(false);
        let (calls, pid) = (Mutex::default(), OnceLock::new());
        let (owner, gate) = (owner.mark.clone(), owner.gate.clone());
        Self { path, outbox, calls, end, drained, pid, owner, gate }
    }

    /// Makes a call and waits for its one answer. Ended by the reply, the deadline, or the
    /// channel's closing.
    ///
    /// Dropping the future cancels the function on the other side; the connection lives.
    pub(crate) async fn call(
        &self,
        name: Name,
        args: Encoded,
        within: Option<Duration>,
        pass: Option<Pass>,
    ) -> Answer {
        if is_copy() {
            return Err(self.copied());
        }
        self.outbox.visited();
        let function = name.path();
        let _pass = pass.map_or_else(|| self.enter(), |pass| Ok(Some(pass)))?;
        let _open = self.owner.enter(Kind::Call, 0, self.path.as_str(), function);
        // A bound beyond the end of time is none.
        let until = within.and_then(|within| Instant::now().checked_add(within));
        if by(until, self.outbox.room()).await.is_none() {
            return Err(self.late(function, within));
        }
        let args = self.outbox.settled(args).map_err(|error| self.refused(function, &error))?;
        let (answer, answered) = oneshot::channel();
        let (call, pushed, message) = {
            let mut calls = lock(&self.calls);
            let call = calls.open(Waiter::Call(answer))?;
            let message = ToChild::Call { call, function: name.wire(), args, deadline: within };
            let alone = calls.len() == 1;
            (call, self.say(alone, &message), message)
        };
        // Not under the lock: what moves is a value of the caller's.
        drop(message);
        let mut guard = OpenCall { link: self, call, why: Some(Why::Dropped) };
        if let Err(error) = pushed {
            guard.why = None;
            drop(guard);
            return Err(self.not_sent(function, error).await);
        }
        let Some(answer) = by(until, answered).await else {
            guard.why = Some(Why::Deadline);
            return Err(self.late(function, within));
        };
        guard.why = None;
        match answer {
            Ok(answer) => answer,
            Err(_) => Err(self.lost()),
        }
    }

    /// Begins something, unless the root drains.
    fn enter(&self) -> Result<Option<Pass>, Box<Fault>> {
        let Some(gate) = &self.gate else { return Ok(None) };
        gate.enter().map(Some).map_err(|reason| {
            let message = reason.to_string();
            self.fault(FaultKind::Cancelled(reason), message)
        })
    }

    /// Sends at once, or together with others that are under way.
    fn say(&self, alone: bool, message: &ToChild) -> Result<(), PushError> {
        if alone { self.outbox.push(Priority::Data, message) } else { self.outbox.gather(message) }
    }

    /// Asks for a context; what it comes to is told by the pipe. Ended by room in the queue.
    ///
    /// Dropping the future asks for nothing.
    pub(crate) async fn open(
        self: &Arc<Self>,
        name: Name,
        args: Encoded,
        terms: Terms,
    ) -> Result<Held, Box<Fault>> {
        if is_copy() {
            return Err(self.copied());
        }
        self.outbox.visited();
        let function = name.path();
        let pass = self.enter()?;
        let line = self.owner.enter(Kind::Context, 0, self.path.as_str(), function);
        self.outbox.room().await;
        let args = self.outbox.settled(args).map_err(|error| self.refused(function, &error))?;
        let (mut pipe, path) = (None, self.path.clone());
        let (call, pushed, message) = {
            let mut calls = lock(&self.calls);
            let call = calls.open_with(|call| {
                let outbox = self.outbox.clone();
                let new = Pipe::new(Side::Opener, call, path, outbox, terms, line);
                pipe = Some(new.clone());
                Waiter::Context(new)
            })?;
            let message = ToChild::Open { call, function: name.wire(), args, terms };
            (call, self.outbox.push(Priority::Data, &message), message)
        };
        drop(message);
        match (pushed, pipe) {
            (Ok(()), Some(pipe)) => Ok(Held { link: self.clone(), pipe, _pass: pass }),
            (Ok(()), None) => Err(self.lost()),
            (Err(error), _) => {
                lock(&self.calls).withdrawn(call);
                Err(self.not_sent(function, error).await)
            }
        }
    }

    /// Handles what the other side says about calls and contexts; whatever it says about itself
    /// is the reader's own business and comes back.
    pub(crate) fn handle(&self, message: ToParent) -> Result<Option<ToParent>, Ended> {
        match message {
            ToParent::Reply { call, result } => self.answered(call, result)?,
            ToParent::Started { call, value } => self.with(call, |pipe| pipe.started(value))?,
            ToParent::Grant { call, bytes } => self.with(call, |pipe| pipe.granted(bytes))?,
            ToParent::CloseStream { call } => self.with(call, Pipe::closed)?,
            ToParent::Ready(_)
            | ToParent::Refused(_)
            | ToParent::CancelAck
            | ToParent::CancelParent { .. }
            | ToParent::Ended(_) => return Ok(Some(message)),
        }
        Ok(None)
    }

    /// Hands a message of a stream to its context.
    pub(crate) fn item(&self, call: CallId, value: Encoded) -> Result<(), Ended> {
        self.with(call, |pipe| pipe.arrived(value))
    }

    /// Does something to an open context. One that nobody waits for any more is left alone: what
    /// comes for it was under way when it ended here.
    fn with(
        &self,
        call: CallId,
        act: impl FnOnce(&Pipe) -> Result<(), Violation>,
    ) -> Result<(), Ended> {
        let pipe = match lock(&self.calls).waiting(call) {
            Some(Waiter::Context(pipe)) => pipe.clone(),
            Some(Waiter::Call(_)) => return Err(Ended::violation("a stream in a plain call")),
            None => return Ok(()),
        };
        act(&pipe).map_err(Ended::violation)
    }

    /// Hands a reply to its caller; one that nobody waits for any more is dropped.
    fn answered(&self, call: CallId, answer: Answer) -> Result<(), Ended> {
        let waiter = lock(&self.calls).answered(call);
        match waiter {
            // The caller may have gone at this very moment; then nobody is owed an answer.
            Some(Waiter::Call(caller)) => drop(caller.send(answer)),
            Some(Waiter::Context(pipe)) => pipe.replied(answer).map_err(Ended::violation)?,
            None => {}
        }
        Ok(())
    }

    /// The child has ended so; calls that are cut off from now on are told this, unless they are told
    /// something already.
    pub(crate) fn set_end(&self, fault: Box<Fault>) {
        self.end.send_if_modified(|end| {
            let first = !matches!(end, End::Told(_));
            if first {
                *end = End::Told(fault);
            }
            first
        });
    }

    /// The other side has broken the protocol, and the connection ends with that (C15): calls that
    /// are cut off are told it, and not the death that follows.
    pub(crate) fn broke_protocol(&self, error: &impl std::fmt::Display) {
        tracing::error!(%error, path = %self.path, "malformed message");
        self.outbox.break_channel();
        self.set_end(self.fault(FaultKind::Protocol, error.to_string()));
    }

    /// What the other side broke the protocol by, if it did.
    pub(crate) fn breach(&self) -> Option<Fault> {
        match &*self.end.borrow() {
            End::Told(fault) if fault.kind == FaultKind::Protocol => Some((**fault).clone()),
            End::Told(_) | End::Open | End::Exited(_) => None,
        }
    }

    /// The child has exited; what it said last is read for at most `words`, then its end is set.
    pub(crate) fn exited(&self, words: Duration) {
        self.end.send_if_modified(|end| {
            let first = matches!(end, End::Open);
            if first {
                *end = End::Exited(words);
            }
            first
        });
    }

    /// The child's process, if it has its own.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid.get().copied()
    }

    /// The child has told its process in the handshake.
    pub(crate) fn set_pid(&self, pid: u32) {
        // A second handshake changes nothing.
        let _first = self.pid.set(pid);
    }

    /// The reader has seen the end of the channel.
    pub(crate) fn set_drained(&self) {
        if is_copy() {
            return;
        }
        self.drained.send_replace(true);
    }

    /// Waits until all that the child said has been read, at most `bound`: its last words may
    /// still be in the socket when its status is known.
    pub(crate) async fn drained(&self, bound: Duration) {
        let mut drained = self.drained.subscribe();
        // A copy of the socket in somebody's hands, or a blocked reader: then it was not read.
        let _bounded = tokio::time::timeout(bound, drained.wait_for(|drained| *drained)).await;
    }

    /// Nothing more will come: waits at most `bound` for the child's end to be known, then tells
    /// every open call; `unknown` if it is not. Run by the reader task as its last act.
    pub(crate) async fn close(&self, bound: Duration, unknown: Option<Fault>) {
        let fault = self.end_within(bound).await.or_else(|| unknown.map(Box::new));
        self.close_now(&fault.unwrap_or_else(|| self.lost()));
    }

    /// How the child ended, if its status is known within `bound`.
    async fn end_within(&self, bound: Duration) -> Option<Box<Fault>> {
        let mut end = self.end.subscribe();
        let has_exited = |end: &End| !matches!(end, End::Open);
        let words =
            match &*tokio::time::timeout(bound, end.wait_for(has_exited)).await.ok()?.ok()? {
                End::Told(fault) => return Some(fault.clone()),
                End::Exited(words) => *words,
                End::Open => return None,
            };
        // Who reads them keeps their bound, on another thread; this one is only behind it.
        let is_told = |end: &End| matches!(end, End::Told(_));
        match &*tokio::time::timeout(words * 2, end.wait_for(is_told)).await.ok()?.ok()? {
            End::Told(fault) => Some(fault.clone()),
            End::Open | End::Exited(_) => None,
        }
    }

    /// Tells every open and future call this fault, if none was told before.
    fn close_now(&self, fault: &Fault) {
        if is_copy() {
            return;
        }
        let waiters = lock(&self.calls).close(fault);
        for waiter in waiters {
            match waiter {
                // As above: a caller that has gone is owed nothing.
                Waiter::Call(caller) => drop(caller.send(Err(Box::new(fault.clone())))),
                Waiter::Context(pipe) => pipe.lost(fault),
            }
        }
    }

    /// How the connection ended. Ended by its end.
    pub(crate) async fn closed(&self) -> Fault {
        if is_copy() {
            return *self.copied();
        }
        let mut end = self.end.subscribe();
        match end.wait_for(|end| matches!(end, End::Told(_))).await.as_deref() {
            Ok(End::Told(fault)) => (**fault).clone(),
            // The sender lives in `self`.
            Ok(End::Open | End::Exited(_)) | Err(_) => *self.lost(),
        }
    }

    /// The connection to a peer has ended; unless the peer has said why, it is lost.
    pub(crate) fn gone(&self) {
        if is_copy() {
            return;
        }
        self.set_end(self.lost());
        self.lose();
    }

    /// The reader is gone without having seen the end.
    pub(crate) fn lose(&self) {
        if is_copy() {
            return;
        }
        let end = match &*self.end.borrow() {
            End::Told(fault) => fault.clone(),
            End::Open | End::Exited(_) => self.lost(),
        };
        self.close_now(&end);
    }

    /// The arguments can't be sent.
    #[allow(clippy::wildcard_enum_match_arm, reason = "the enum may grow")]
    fn refused(&self, function: &str, cause: &FrameError) -> Box<Fault> {
        let kind = match cause {
            FrameError::TooLarge { .. } => FaultKind::TooLarge,
            _ => FaultKind::BadArgument,
        };
        self.fault(kind, format!("sending the arguments of `{function}`: {cause}"))
    }

    async fn not_sent(&self, function: &str, error: PushError) -> Box<Fault> {
        match error {
            PushError::Frame(cause) => self.refused(function, &cause),
            PushError::Closed => {
                // The reader sees the same break and learns the cause; it ends this wait.
                self.end_within(STATUS_WAIT).await.unwrap_or_else(|| self.lost())
            }
        }
    }

    fn late(&self, function: &str, within: Option<Duration>) -> Box<Fault> {
        let message =
            format!("`{function}` did not answer within {:?}", within.unwrap_or_default());
        self.fault(FaultKind::Deadline, message)
    }

    /// What a copy of this process is told.
    fn copied(&self) -> Box<Fault> {
        Box::new(Fault { path: self.path.clone(), ..copied::fault() })
    }

    fn lost(&self) -> Box<Fault> {
        self.fault(FaultKind::Lost, "the channel closed without an answer".to_owned())
    }

    fn fault(&self, kind: FaultKind, message: String) -> Box<Fault> {
        let mut fault = current::fault(kind, message);
        fault.path = self.path.clone();
        Box::new(fault)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.outbox.leave();
    }
}

/// What `wait` comes to, if that is known at that time.
async fn by<T>(until: Option<Instant>, wait: impl Future<Output = T>) -> Option<T> {
    match until {
        Some(until) => tokio::time::timeout_at(until, wait).await.ok(),
        None => Some(wait.await),
    }
}

/// A call that somebody waits for; dropped early, it cancels the function.
struct OpenCall<'a> {
    link: &'a Link,
    call: CallId,
    why: Option<Why>,
}

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        if is_copy() {
            return;
        }
        let open = lock(&self.link.calls).withdrawn(self.call);
        if let Some(why) = self.why.take().filter(|_| open) {
            let reason = Reason { by: current::path(), why };
            let message = ToChild::CancelCall { call: self.call, reason };
            // A closed channel has cancelled the call already.
            let _closed = self.link.outbox.push(Priority::Control, &message);
        }
    }
}

/// A context that this side holds open; dropped, it is cancelled, unless it is over.
#[derive(Debug)]
pub(crate) struct Held {
    link: Arc<Link>,
    pub(crate) pipe: Arc<Pipe>,
    _pass: Option<Pass>,
}

impl Held {
    /// The actor on the other side.
    pub(crate) fn path(&self) -> &ActorPath {
        &self.link.path
    }
}

impl Held {
    /// Cancels what is not over and waits for nothing more.
    pub(crate) fn release(&self) {
        if is_copy() {
            return;
        }
        let why = match current::actor().and_then(|actor| actor.cancelling()) {
            Some(cancelling) => cancelling.reason,
            None => Reason { by: current::path(), why: Why::Dropped },
        };
        self.pipe.cancel(why.clone());
        self.pipe.give_up(|| {
            let message = "nobody holds the context any more".to_owned();
            self.link.fault(FaultKind::Cancelled(why), message)
        });
        lock(&self.link.calls).withdrawn(self.pipe.call);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

/// How long a call on a broken channel waits for the child's status before it says 'lost'.
const STATUS_WAIT: Duration = Duration::from_millis(250);
