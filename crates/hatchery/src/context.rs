//! A linked pair of tasks as users see it: opened like a nursery, answered like a call, with a
//! stream between them.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use hatchery_proto::stream::{Policy, Terms};
use hatchery_proto::{ActorPath, Encoded, Fault, FaultKind, FrameError, Reason, Why};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::current;
use crate::drive::link::{Answer, Held, Link};
use crate::drive::pipe::{Pipe, Side, StreamStats, Unstarted};
use crate::error::{ContextError, StreamError};
use crate::function::{Name, NoError, RemoteError, encode_reply, packed};
use crate::panics::{Caught, caught};
use crate::stream::{Duplex, Receiver, Sender};

/// A context that has not been opened yet: a function that converses, and its arguments.
///
/// It is what a function under `#[hatchery::context]` returns. `In` is what the function receives,
/// `Out` what it sends, `S` its first value. Nothing happens before it is opened.
#[must_use = "a context does nothing until it is opened"]
pub struct ContextCall<In, Out, S, T, E = NoError> {
    name: Name,
    args: Box<dyn Args>,
    of: PhantomData<Parts<In, Out, S, T, E>>,
}

/// Arguments, with their types forgotten.
trait Args: Send {
    fn encode(self: Box<Self>, moves_from: Option<usize>) -> Result<Encoded, FrameError>;
}

impl<A: Serialize + Send + 'static> Args for A {
    fn encode(self: Box<Self>, moves_from: Option<usize>) -> Result<Encoded, FrameError> {
        packed(*self, moves_from)
    }
}

type Parts<In, Out, S, T, E> = fn(In) -> (Out, S, T, E);

impl<In, Out, S, T, E> fmt::Debug for ContextCall<In, Out, S, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContextCall").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<In, Out, S, T, E> ContextCall<In, Out, S, T, E> {
    /// For the attribute's expansion.
    pub(crate) fn new(name: Name, args: impl Serialize + Send + 'static) -> Self {
        Self { name, args: Box::new(args), of: PhantomData }
    }

    /// The function's path, for people; see [`Call::name`](crate::Call::name).
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name.path()
    }
}

/// The type of a stream that carries nothing in that direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Nothing {}

/// A context about to be opened. Made by [`Portal::context`](crate::Portal::context).
#[derive(Debug)]
#[must_use = "a context does nothing until it is opened"]
pub struct Opening<In, Out, S, T, E> {
    link: Arc<Link>,
    call: ContextCall<In, Out, S, T, E>,
    terms: Terms,
    within: Option<Duration>,
    unwind: Duration,
}

impl<In, Out, S, T, E> Opening<In, Out, S, T, E> {
    pub(crate) fn new(
        link: Arc<Link>,
        call: ContextCall<In, Out, S, T, E>,
        config: &crate::Config,
    ) -> Self {
        let terms = Terms { credit: config.stream_credit, policy: Policy::default() };
        Self { link, call, terms, within: None, unwind: config.budget }
    }

    /// Bytes of messages under way or unread, in each direction; at least 1 KiB. Default: the
    /// configuration's `stream_credit`. A message larger than half of it counts as half of it.
    pub fn credit(mut self, bytes: u64) -> Self {
        self.terms.credit = bytes.max(hatchery_proto::stream::MIN_CREDIT);
        self
    }

    /// What happens when that is used up, in each direction. Default: the sender waits.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.terms.policy = policy;
        self
    }

    /// Bounds the whole context: after `within` both sides are cancelled and the opener gets
    /// [`ContextError::Deadline`].
    pub fn within(mut self, within: Duration) -> Self {
        self.within = Some(within);
        self
    }
}

impl<In, Out, S, T, E> Opening<In, Out, S, T, E>
where
    In: Serialize,
    Out: DeserializeOwned,
    S: DeserializeOwned + 'static,
    T: DeserializeOwned,
    E: RemoteError,
{
    /// Opens the context, runs `body` on this side, and returns when both sides have ended.
    ///
    /// When the body returns before the other side has, that one is cancelled; wait for its result
    /// with [`Context::result`] where it matters. When the other side fails, dies or cancels, the
    /// body is dropped at its next await.
    ///
    /// # Errors
    /// [`ContextError`], of which side ever went wrong first; both in a group if both did. A
    /// cancel by this side is no error, unless the body itself returns it as one.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the other side; nobody waits for its end then but its nursery.
    pub async fn run<B, F>(self, body: F) -> Result<B, ContextError<E>>
    where
        F: AsyncFnOnce(Context<Out, In, S, T, E>) -> crate::Result<B>,
    {
        let (path, unwind) = (self.link.path.clone(), self.unwind);
        let deadline = Deadline::after(self.within);
        let (held, started) = self.start(&deadline).await?;
        let held = Arc::new(held);
        let pipe = held.pipe.clone();
        let mut body = Body::new(pipe.clone(), body(Context::new(held.clone(), started)));
        let (value, own, why) = tokio::select! {
            biased;
            () = pipe.failed() => (None, body.discard().err(), Why::Requested),
            () = deadline.passed() => {
                let fault = deadline.fault(&path);
                (None, Some(body.discard().err().unwrap_or(fault)), Why::Deadline)
            }
            result = &mut body => match result {
                Ok(Ok(value)) => (Some(value), None, Why::Finished),
                Ok(Err(error)) => (None, Some(Box::new(error.into_fault())), Why::BodyFailed),
                Err(panic) => (None, Some(panic), Why::BodyFailed),
            },
        };
        drop(body);
        let by_itself = pipe.cancelled().is_some();
        let timed_out = why == Why::Deadline;
        pipe.cancel(Reason { by: current::path(), why });
        let word = last_word(&pipe, &path, unwind).await;
        held.release();
        conclude(value, own, word, &path, Ended { by_itself, timed_out })
    }

    /// Opens the context and hands out this side of it, without a scope around it. Dropping the
    /// handle cancels the other side.
    ///
    /// # Errors
    /// [`ContextError`]: it was not opened.
    ///
    /// # Cancel safety
    /// Dropping the future cancels what was opened.
    pub async fn handle(self) -> Result<Context<Out, In, S, T, E>, ContextError<E>> {
        let deadline = Deadline::after(self.within);
        let (held, started) = self.start(&deadline).await?;
        Ok(Context::new(Arc::new(held), started))
    }

    async fn start(self, deadline: &Deadline) -> Result<(Held, S), ContextError<E>> {
        let Self { link, call, terms, .. } = self;
        let path = link.path.clone();
        let name = call.name;
        let args = call.args.encode(link.outbox.moves_from()).map_err(|cause| {
            let message = format!("encoding the arguments of `{name}`");
            let fault = current::fault(FaultKind::BadArgument, message).because(cause.to_string());
            ContextError::Refused(Box::new(fault))
        })?;
        let remote = |fault| ContextError::remote(fault, &path);
        let held = tokio::select! {
            biased;
            opened = link.open(name, args, terms) => opened.map_err(remote)?,
            // There was no room for it yet.
            () = deadline.passed() => return Err(ContextError::Deadline(deadline.fault(&path))),
        };
        let first = tokio::select! {
            biased;
            first = held.pipe.first() => first.map_err(remote)?,
            () = deadline.passed() => {
                held.pipe.cancel(Reason { by: current::path(), why: Why::Deadline });
                return Err(ContextError::Deadline(deadline.fault(&path)));
            }
        };
        let started = first.decode().map_err(|cause| {
            let what = std::any::type_name::<S>();
            let message = format!("decoding the first value of `{name}` as `{what}`");
            let fault = current::fault(FaultKind::BadReply, message).because(cause.to_string());
            ContextError::Refused(Box::new(fault))
        })?;
        Ok((held, started))
    }
}

/// The opener's body. Its pipe knows when it runs: a sender that is dropped then may be dropped by an
/// error, which is known when it has run (C20).
struct Body<F> {
    pipe: Arc<Pipe>,
    running: Caught<F>,
}

impl<F: Future> Body<F> {
    fn new(pipe: Arc<Pipe>, body: F) -> Self {
        pipe.step_begins();
        Self { pipe, running: caught(body) }
    }
}

impl<F> Body<F> {
    fn discard(&mut self) -> Result<(), Box<Fault>> {
        self.pipe.step_begins();
        self.running.discard()
    }
}

impl<F: Future<Output = crate::Result<B>>, B> Future for Body<F> {
    type Output = Result<crate::Result<B>, Box<Fault>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<Self::Output> {
        self.pipe.step_begins();
        let polled = Pin::new(&mut self.running).poll(cx);
        if matches!(polled, Poll::Pending | Poll::Ready(Ok(Ok(_)))) {
            self.pipe.step_ends();
        }
        polled
    }
}

impl<F> Drop for Body<F> {
    fn drop(&mut self) {
        // What it still holds is dropped after this.
        self.pipe.step_begins();
    }
}

/// A context's own bound, if it has one.
struct Deadline {
    within: Option<Duration>,
    at: Option<tokio::time::Instant>,
}

impl Deadline {
    fn after(within: Option<Duration>) -> Self {
        // A bound beyond the end of time is none.
        let at = within.and_then(|within| tokio::time::Instant::now().checked_add(within));
        Self { within, at }
    }

    async fn passed(&self) {
        match self.at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    fn fault(&self, path: &ActorPath) -> Box<Fault> {
        let message = format!("the context was not over within {:?}", self.within);
        let mut fault = current::fault(FaultKind::Deadline, message);
        fault.path = path.clone();
        Box::new(fault)
    }
}

/// The callee's last word, or that it did not come in time.
async fn last_word(pipe: &Pipe, path: &ActorPath, bound: Duration) -> Answer {
    match tokio::time::timeout(bound, pipe.last_word()).await {
        Ok(word) => word,
        Err(_) => {
            let stage = "the end of a cancelled context".to_owned();
            let kind = FaultKind::Stage { stage, waited: bound };
            let message = "the other side did not end".to_owned();
            let mut fault = current::fault(kind, message);
            fault.path = path.clone();
            Err(Box::new(fault))
        }
    }
}

/// How this side came to its end.
struct Ended {
    /// It had cancelled the context before its body ended.
    by_itself: bool,
    timed_out: bool,
}

fn conclude<B, E: RemoteError>(
    value: Option<B>,
    own: Option<Box<Fault>>,
    word: Answer,
    path: &ActorPath,
    ended: Ended,
) -> Result<B, ContextError<E>> {
    let theirs = word.err();
    // The same fault, seen by the body first: told once, and as the other side's, also if that is a
    // cancel which this actor has brought about in another way.
    if let (Some(own), Some(theirs)) = (&own, &theirs)
        && own.id == theirs.id
    {
        return Err(ContextError::remote(theirs.clone(), path));
    }
    let asked_for = value.is_some() || own.is_some() || ended.by_itself;
    // That the other side was cancelled is what this side asked for, when it did.
    let theirs = theirs.filter(|fault| {
        !(asked_for
            && matches!(&fault.kind, FaultKind::Cancelled(reason) if reason.by == current::path()))
    });
    match (own, theirs, value) {
        (None, None, Some(value)) => Ok(value),
        (None, Some(theirs), _) => Err(ContextError::remote(theirs, path)),
        (Some(own), None, _) if ended.timed_out => Err(ContextError::Deadline(own)),
        (Some(own), None, _) => Err(ContextError::Body(own)),
        // The body's fault has the other's as its cause.
        (Some(own), Some(theirs), _) if own.contains(theirs.id) => Err(ContextError::Body(own)),
        (Some(own), Some(theirs), _) => {
            let faults = vec![*own, *theirs];
            let group = Fault::group(current::fault_id(), current::path(), faults);
            Err(group.map_or_else(
                || ContextError::Lost(Box::new(current::fault(FaultKind::Lost, String::new()))),
                |group| ContextError::Several(Box::new(group)),
            ))
        }
        // The body was dropped because the other side had failed, and then it had not: it can't be.
        (None, None, None) => {
            let reason = Reason { by: current::path(), why: Why::Requested };
            let kind = FaultKind::Cancelled(reason);
            let fault = current::fault(kind, "the body was dropped".to_owned());
            Err(ContextError::Cancelled(Box::new(fault)))
        }
    }
}

/// The opener's side of an open context: receives `R`, sends `W`, was greeted with an `S`, and
/// will get a `T`.
///
/// In the body of [`Opening::run`] the context ends with the body; a handle from
/// [`Opening::handle`] cancels the other side when it is dropped.
#[derive(Debug)]
pub struct Context<R, W, S, T, E = NoError> {
    held: Arc<Held>,
    started: S,
    halves: Option<Duplex<R, W>>,
    of: PhantomData<fn() -> (T, E)>,
}

impl<R, W, S, T, E> Context<R, W, S, T, E> {
    fn new(held: Arc<Held>, started: S) -> Self {
        let halves = Some(Duplex::new(&held.pipe));
        Self { held, started, halves, of: PhantomData }
    }

    /// The other side's first value.
    pub fn started(&self) -> &S {
        &self.started
    }

    /// The other side's actor.
    #[must_use]
    pub fn path(&self) -> &ActorPath {
        self.held.path()
    }

    /// Takes the stream out of the context, once.
    ///
    /// # Panics
    /// At the second time.
    pub fn stream(&mut self) -> Duplex<R, W> {
        self.halves.take().expect("the stream is taken out of its context once")
    }

    /// The same, each half by itself.
    ///
    /// # Panics
    /// If the stream was taken before.
    pub fn split(&mut self) -> (Sender<W>, Receiver<R>) {
        self.stream().split()
    }

    /// Cancels both sides. Returns at once; [`Context::result`] tells what the other side came to.
    pub fn cancel(&self) {
        self.held.pipe.cancel(Reason { by: current::path(), why: Why::Requested });
    }

    /// A handle for looking at the context from elsewhere.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch { pipe: self.held.pipe.clone() }
    }

    /// What the stream has done so far.
    #[must_use]
    pub fn stats(&self) -> StreamStats {
        self.held.pipe.stats()
    }
}

impl<R, W, S, T, E> Context<R, W, S, T, E>
where
    R: DeserializeOwned + 'static,
    W: Serialize + Send + 'static,
{
    /// Sends a message; see [`Sender::send`].
    ///
    /// # Errors
    /// See [`Sender::send`]; [`StreamError::Closed`] after the stream was taken out.
    ///
    /// # Cancel safety
    /// See [`Sender::send`].
    pub async fn send(&mut self, message: W) -> Result<(), StreamError> {
        match &mut self.halves {
            Some(halves) => halves.send(message).await,
            None => Err(StreamError::Closed),
        }
    }

    /// Receives a message; see [`Receiver::recv`].
    ///
    /// # Errors
    /// See [`Receiver::recv`]; [`StreamError::Closed`] after the stream was taken out.
    ///
    /// # Cancel safety
    /// See [`Receiver::recv`].
    pub async fn recv(&mut self) -> Result<Option<R>, StreamError> {
        match &mut self.halves {
            Some(halves) => halves.recv().await,
            None => Err(StreamError::Closed),
        }
    }

    /// Closes the sending half; see [`Sender::close`].
    ///
    /// # Errors
    /// See [`Sender::close`]; [`StreamError::Closed`] after the stream was taken out.
    ///
    /// # Cancel safety
    /// See [`Sender::close`].
    pub async fn close(&mut self) -> Result<(), StreamError> {
        match &mut self.halves {
            Some(halves) => halves.close().await,
            None => Err(StreamError::Closed),
        }
    }
}

impl<R, W, S, T: DeserializeOwned + 'static, E: RemoteError> Context<R, W, S, T, E> {
    /// Waits for the other side's result. Its stream may still hold unread messages. Ended by the
    /// other side's end, or its connection's.
    ///
    /// # Errors
    /// [`ContextError`]: the other side did not end well.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing; the result stays.
    pub async fn result(&mut self) -> Result<T, ContextError<E>> {
        let path = self.held.path();
        let word = self.held.pipe.last_word().await;
        let value = word.map_err(|fault| ContextError::remote(fault, path))?;
        value.decode().map_err(|cause| {
            let message = format!("decoding the result as `{}`", std::any::type_name::<T>());
            let fault = current::fault(FaultKind::BadReply, message).because(cause.to_string());
            ContextError::Refused(Box::new(fault))
        })
    }
}

/// The callee's side of a context, before it has started: the first argument of a function under
/// `#[hatchery::context]`. Receives `In`, sends `Out`, greets with an `S`.
///
/// The function must say [`Callee::started`]; returning a value without it is an error.
pub struct Callee<In = Nothing, Out = Nothing, S = ()> {
    pipe: Arc<Pipe>,
    of: PhantomData<Parts<S, In, Out, (), ()>>,
}

impl<In, Out, S> fmt::Debug for Callee<In, Out, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callee").field("pipe", &self.pipe).finish()
    }
}

impl<In, Out, S: Serialize + Send + 'static> Callee<In, Out, S> {
    /// Tells the opener that this side is ready, with a first value, and gives the stream. It
    /// takes the callee itself, so that nothing can be said twice or before.
    ///
    /// # Errors
    /// [`StreamError::BadMessage`] if the value can't be encoded; [`StreamError::Closed`] if the
    /// context is over already.
    pub fn started(self, value: S) -> Result<Duplex<In, Out>, StreamError> {
        let moves_from = self.pipe.moves_from();
        let value = encode_reply(value, moves_from).map_err(StreamError::BadMessage)?;
        self.pipe.start(value).map_err(|error| match error {
            Unstarted::Context => StreamError::Closed,
            Unstarted::Value(cause) => {
                let message = format!("saying `started` with `{}`", std::any::type_name::<S>());
                let fault = current::fault(FaultKind::BadReply, message);
                StreamError::BadMessage(Box::new(fault.because(cause.to_string())))
            }
        })?;
        Ok(Duplex::new(&self.pipe))
    }
}

impl<In, Out, S> Callee<In, Out, S> {
    /// The actor that opened the context.
    #[must_use]
    pub fn opener(&self) -> &ActorPath {
        &self.pipe.peer
    }

    /// A handle for looking at the context from elsewhere, also from a destructor: it knows who
    /// cancelled.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch { pipe: self.pipe.clone() }
    }
}

/// Looks at a context from outside of its two tasks: whether it is over, who cancelled it.
#[derive(Debug, Clone)]
pub struct Watch {
    pipe: Arc<Pipe>,
}

impl Watch {
    pub(crate) fn new(pipe: Arc<Pipe>) -> Self {
        Self { pipe }
    }

    /// The first cancel on this side: by whom and why. A callee learns the opener's.
    #[must_use]
    pub fn cancelled(&self) -> Option<Reason> {
        self.pipe.cancelled()
    }

    /// Whether the context is over on this side.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.pipe.is_over()
    }

    /// Waits until the context is over on this side. Ended by that.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn over(&self) {
        self.pipe.ended().await;
    }

    /// Cancels the context, from either side: the callee's function is dropped at its next await,
    /// and every side is told that this actor did it.
    pub fn cancel(&self) {
        let reason = Reason { by: current::path(), why: Why::Requested };
        match self.pipe.side {
            Side::Opener => self.pipe.cancel(reason),
            Side::Callee => self.pipe.stop(reason),
        }
    }

    /// What the stream has done so far.
    #[must_use]
    pub fn stats(&self) -> StreamStats {
        self.pipe.stats()
    }
}

/// What the attribute's expansion makes a [`Callee`] of.
#[derive(Debug)]
pub struct RawCallee(Arc<Pipe>);

impl RawCallee {
    pub(crate) fn new(pipe: Arc<Pipe>) -> Self {
        Self(pipe)
    }
}

/// A [`Callee`], seen as a type with three parts. The attribute uses it to look through aliases.
#[diagnostic::on_unimplemented(
    message = "the first argument of a context is its side of it, and not `{Self}`",
    label = "not a `Callee`",
    note = "write `callee: hatchery::Callee<In, Out>` as the first argument"
)]
pub trait IsCallee {
    /// What it receives.
    type In;
    /// What it sends.
    type Out;
    /// What it greets with.
    type Started;
    /// The thing itself.
    fn from_raw(raw: RawCallee) -> Self;
}

impl<In, Out, S> IsCallee for Callee<In, Out, S> {
    type In = In;
    type Out = Out;
    type Started = S;
    fn from_raw(raw: RawCallee) -> Self {
        Self { pipe: raw.0, of: PhantomData }
    }
}
