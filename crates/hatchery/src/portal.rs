//! The handle to one actor: call its functions, cancel it.

use std::future::{Future, IntoFuture};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hatchery_proto::{ActorId, ActorPath, FaultKind, Reason, ToChild, Why};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::{Context, ContextCall, Opening};
use crate::current;
use crate::drive::gate::Pass;
use crate::drive::link::Link;
use crate::drive::scope::Core;
use crate::drive::writer::Priority;
use crate::error::{CallError, ContextError};
use crate::function::{Call, RemoteError};
use crate::items::{Items, StreamCall};
use crate::peer::Peer;

/// A handle to a running actor. Clones lead to the same actor; none of them keeps it alive: its
/// nursery does.
#[derive(Debug, Clone)]
pub struct Portal {
    pub(crate) core: Arc<Core>,
    pub(crate) id: ActorId,
    pub(crate) link: Arc<Link>,
}

impl Portal {
    /// The actor's path in the tree.
    #[must_use]
    pub fn path(&self) -> &ActorPath {
        &self.link.path
    }

    /// The actor's process id; `None` for a thread.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.link.pid()
    }

    /// The reading end of the actor's stdout, if that is [`Stdio::Piped`](crate::Stdio::Piped).
    /// Once, and while the actor lives: what nobody took is closed when it has settled, what was
    /// taken stays and can be read to its end.
    ///
    /// ```no_run
    /// # use hatchery::{Error, Nursery, Stdio};
    /// use tokio::io::AsyncReadExt;
    /// use tokio::net::unix::pipe::Receiver;
    ///
    /// # async fn example(n: Nursery) -> Result<(), Error> {
    /// let actor = n.actor("noisy").stdout(Stdio::Piped).start().await?;
    /// if let Some(end) = actor.take_stdout() {
    ///     let mut stdout = Receiver::from_owned_fd(end)?;
    ///     tokio::spawn(async move {
    ///         let mut text = String::new();
    ///         stdout.read_to_string(&mut text).await
    ///     });
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn take_stdout(&self) -> Option<OwnedFd> {
        self.core.pipe(self.id, |pipes| pipes.stdout.take())
    }

    /// The same of its stderr.
    #[must_use]
    pub fn take_stderr(&self) -> Option<OwnedFd> {
        self.core.pipe(self.id, |pipes| pipes.stderr.take())
    }

    /// Calls a function in the actor. Await the result, or bound it first with
    /// [`Calling::within`].
    pub fn call<T, E>(&self, call: Call<T, E>) -> Calling<'_, T, E> {
        Calling::new(&self.link, call)
    }

    /// A context with a function of the actor, to be opened with options of its own.
    pub fn context<In, Out, S, T, E>(
        &self,
        call: ContextCall<In, Out, S, T, E>,
    ) -> Opening<In, Out, S, T, E> {
        Opening::new(self.link.clone(), call, self.core.config())
    }

    /// Opens a context with the defaults and runs `body` on this side; see [`Opening::run`].
    ///
    /// ```no_run
    /// # use hatchery::{Callee, Portal, StreamError};
    /// #[hatchery::context]
    /// async fn double(callee: Callee<u64, u64>) -> Result<(), hatchery::Error> {
    ///     let mut stream = callee.started(())?;
    ///     while let Some(number) = stream.recv().await? {
    ///         stream.send(number * 2).await?;
    ///     }
    ///     Ok(())
    /// }
    ///
    /// # async fn example(portal: Portal) -> Result<(), hatchery::Error> {
    /// let eight = portal.open_context(double(), async |mut cx| {
    ///     cx.send(4).await?;
    ///     Ok(cx.recv().await?)
    /// })
    /// .await?;
    /// assert_eq!(eight, Some(8));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// See [`Opening::run`].
    ///
    /// # Cancel safety
    /// See [`Opening::run`].
    pub async fn open_context<In, Out, S, T, E, B, F>(
        &self,
        call: ContextCall<In, Out, S, T, E>,
        body: F,
    ) -> Result<B, ContextError<E>>
    where
        In: Serialize,
        Out: DeserializeOwned,
        S: DeserializeOwned + 'static,
        T: DeserializeOwned,
        E: RemoteError,
        F: AsyncFnOnce(Context<Out, In, S, T, E>) -> crate::Result<B>,
    {
        self.context(call).run(body).await
    }

    /// Calls a function that returns a stream; its items come as they are made. Dropping the
    /// stream cancels the function.
    ///
    /// # Errors
    /// [`ContextError`]: the function could not be started.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the function.
    pub async fn stream<I>(&self, call: StreamCall<I>) -> Result<Items<I>, ContextError>
    where
        I: DeserializeOwned + 'static,
    {
        Items::open(self.context(call.context)).await
    }

    /// Asks the actor for an introduction to itself, to hand to others: they reach it directly.
    ///
    /// # Errors
    /// [`CallError`]: the actor goes down, or could not open its listener.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing but the answer.
    pub async fn peer(&self) -> Result<Peer, CallError<crate::Error>> {
        self.call(crate::peer::introduce()).await
    }

    /// Takes this one actor down, with its subtree; its siblings stay. Returns at once; a second
    /// cancel is no error. Calls in flight end as cancelled, later ones with a typed error.
    pub fn cancel(&self) {
        let reason = Reason { by: current::path(), why: Why::Requested };
        self.core.cancel_actor(self.id, reason);
    }

    /// Waits until the actor has settled, whoever takes it down. Ended by the actor's end, at
    /// the latest by its nursery's.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn settled(&self) {
        self.core.settled(self.id).await;
    }

    /// Takes down an actor further below, over the head of the ones between. `below` is its path.
    ///
    /// Returns at once; a path that leads nowhere is ignored, as the actor may have gone already.
    pub fn cancel_below(&self, below: &ActorPath) {
        let reason = Reason { by: current::path(), why: Why::Requested };
        let message = ToChild::CancelBelow { path: below.clone(), reason };
        // A closed channel: everything below is going down anyway.
        let _closed = self.link.outbox.push(Priority::Control, &message);
    }
}

/// A call on its way; await it.
#[derive(Debug)]
#[must_use = "a call does nothing until it is awaited"]
pub struct Calling<'a, T, E> {
    link: &'a Link,
    call: Call<T, E>,
    within: Option<Duration>,
    /// It belongs to something that is under way.
    pass: Option<Pass>,
}

impl<'a, T, E> Calling<'a, T, E> {
    pub(crate) fn new(link: &'a Link, call: Call<T, E>) -> Self {
        Self { link, call, within: None, pass: None }
    }

    pub(crate) fn with_pass(mut self, pass: Option<Pass>) -> Self {
        self.pass = pass;
        self
    }

    /// Bounds the call: after `within` the function is cancelled on the other side and the
    /// caller gets [`CallError::Deadline`].
    pub fn within(mut self, within: Duration) -> Self {
        self.within = Some(within);
        self
    }
}

impl<T: DeserializeOwned + 'static, E: RemoteError> Calling<'_, T, E> {
    async fn answer(self) -> Result<T, CallError<E>> {
        let Self { link, call, within, pass } = self;
        let function = call.full_name();
        let args = call.encode(link.outbox.moves_from()).map_err(CallError::Refused)?;
        match link.call(function, args, within, pass).await {
            Ok(reply) => reply.decode().map_err(|cause| {
                let what = std::any::type_name::<T>();
                let message = format!("decoding the reply of `{function}` as `{what}`");
                let fault = current::fault(FaultKind::BadReply, message);
                CallError::Refused(Box::new(fault.because(cause.to_string())))
            }),
            Err(fault) => Err(CallError::from_fault(fault, &link.path)),
        }
    }
}

impl<'a, T, E> IntoFuture for Calling<'a, T, E>
where
    T: DeserializeOwned + 'static,
    E: RemoteError + 'a,
{
    type Output = Result<T, CallError<E>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    /// Sends the call and waits for its one outcome.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the function on the other side; the connection lives.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.answer())
    }
}
