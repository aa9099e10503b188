//! Actors that were introduced to each other: they talk directly, not through their spawners.

use std::fmt;
use std::sync::Arc;

use hatchery_proto::peer::Introduction;
use hatchery_proto::{ActorPath, Fault};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::context::{Context, ContextCall, Opening};
use crate::current::Actor;
use crate::drive::link::Link;
use crate::drive::visit;
use crate::error::{ContextError, PeerError};
use crate::function::{Call, Function, Name, RemoteError, call_result, serve_result};
use crate::items::{Items, StreamCall};
use crate::portal::Calling;

/// An introduction to an actor: hand it to another one, as an argument or a message, and that one
/// can [`connect`](Peer::connect).
///
/// It is a secret: whoever holds it can call the actor. It leads to one life of one actor on this
/// host, to processes of the same user only, and keeps nothing alive.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Peer {
    introduction: Introduction,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("path", &self.introduction.path).finish_non_exhaustive()
    }
}

/// An introduction to the actor this code runs in.
///
/// The first one opens the actor's listener, an abstract Unix socket, served by the tokio runtime
/// that this is called in; an actor that nobody asks has none. Once it goes down it lets nobody
/// in any more.
///
/// # Errors
/// [`PeerError`]: the actor goes down, or the operating system refused.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn here() -> Result<Peer, PeerError> {
    let actor = crate::runtime::actor()?;
    let introduction = actor.door.introduction(&actor)?;
    Ok(Peer { introduction })
}

impl Peer {
    /// The introduced actor.
    #[must_use]
    pub fn path(&self) -> &ActorPath {
        &self.introduction.path
    }

    /// Connects to the actor. Bounded by `Config::handshake`.
    ///
    /// # Errors
    /// [`PeerError`]: it is gone, does not answer, or does not let us in.
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened.
    pub async fn connect(&self) -> Result<PeerPortal, PeerError> {
        let actor = crate::runtime::actor()?;
        let link = visit::connect(&self.introduction, &actor).await?;
        Ok(PeerPortal { link, actor })
    }
}

/// A handle to an actor that somebody introduced. Clones share one connection; it closes when the
/// last of them and the last context opened through it are gone.
///
/// A peer can be asked, not ended: only its spawner takes it down. When it goes, every call and
/// context through this handle ends with the reason it gave, or as lost if it gave none.
#[derive(Debug, Clone)]
pub struct PeerPortal {
    link: Arc<Link>,
    actor: Arc<Actor>,
}

impl PeerPortal {
    /// The actor's path in the tree.
    #[must_use]
    pub fn path(&self) -> &ActorPath {
        &self.link.path
    }

    /// Calls a function in the actor; see [`Portal::call`](crate::Portal::call).
    pub fn call<T, E>(&self, call: Call<T, E>) -> Calling<'_, T, E> {
        Calling::new(&self.link, call)
    }

    /// A context with a function of the actor; see [`Portal::context`](crate::Portal::context).
    pub fn context<In, Out, S, T, E>(
        &self,
        call: ContextCall<In, Out, S, T, E>,
    ) -> Opening<In, Out, S, T, E> {
        Opening::new(self.link.clone(), call, &self.actor.runtime.config)
    }

    /// Opens a context with the defaults and runs `body` on this side; see [`Opening::run`].
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

    /// Calls a function that returns a stream; see [`Portal::stream`](crate::Portal::stream).
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

    /// Waits until the connection has ended, and says how: cancelled, with the reason the peer
    /// gave, or lost. Ended by the peer's end; as long as it lives, so does this wait.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn closed(&self) -> Fault {
        self.link.closed().await
    }
}

/// What a [`Portal`](crate::Portal) calls in its actor to introduce it.
pub(crate) fn introduce() -> Call<Peer, crate::Error> {
    call_result::<_, Result<Peer, crate::Error>, _, _>(INTRODUCE, (), introduced)
}

async fn introduced((): ()) -> Result<Peer, crate::Error> {
    Ok(here()?)
}

const INTRODUCE: Name = Name::new("hatchery::here", "hatchery");

inventory::submit! {
    Function::new(|| INTRODUCE, |args| serve_result(args, introduced))
}
