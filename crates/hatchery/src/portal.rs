//! The handle to one actor: call its functions, cancel it.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hatchery_proto::{ActorId, ActorPath, FaultKind, Reason, ToChild, Why};
use serde::de::DeserializeOwned;

use crate::current;
use crate::drive::link::Link;
use crate::drive::scope::Core;
use crate::drive::writer::Lane;
use crate::error::CallError;
use crate::function::{Call, RemoteError};

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

    /// Calls a function in the actor. Await the result, or bound it first with
    /// [`Calling::within`].
    pub fn call<T, E>(&self, call: Call<T, E>) -> Calling<'_, T, E> {
        Calling { portal: self, call, within: None }
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
        let _closed = self.link.outbox.push(Lane::Control, &message);
    }
}

/// A call on its way; await it.
#[derive(Debug)]
#[must_use = "a call does nothing until it is awaited"]
pub struct Calling<'a, T, E> {
    portal: &'a Portal,
    call: Call<T, E>,
    within: Option<Duration>,
}

impl<T, E> Calling<'_, T, E> {
    /// Bounds the call: after `within` the function is cancelled on the other side and the
    /// caller gets [`CallError::Deadline`].
    pub fn within(mut self, within: Duration) -> Self {
        self.within = Some(within);
        self
    }
}

impl<T: DeserializeOwned, E: RemoteError> Calling<'_, T, E> {
    async fn answer(self) -> Result<T, CallError<E>> {
        let link = &self.portal.link;
        let function = self.call.name();
        let args = self.call.encode().map_err(CallError::Refused)?;
        match link.call(function, args, self.within).await {
            Ok(reply) => hatchery_proto::frame::decode(&reply).map_err(|cause| {
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
    T: DeserializeOwned + 'a,
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
