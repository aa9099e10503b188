//! Functions that return a stream: called through a portal, consumed on this side.

use std::fmt;
use std::pin::Pin;
use std::task::{Context as Task, Poll, ready};

use futures_core::Stream;
use serde::de::DeserializeOwned;

use crate::context::{Context, ContextCall, Nothing, Opening};
use crate::drive::pipe::StreamStats;
use crate::error::{ContextError, StreamError};
use crate::function::NoError;
use crate::stream::Receiver;

/// A call, not made yet, of a function that returns a stream of `I`.
///
/// It is what such a function under `#[hatchery::function]` returns. Hand it to
/// [`Portal::stream`](crate::Portal::stream).
#[must_use = "a call does nothing until an actor is asked to run it"]
pub struct StreamCall<I> {
    pub(crate) context: ContextCall<Nothing, I, (), (), NoError>,
}

impl<I> fmt::Debug for StreamCall<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamCall").field("name", &self.context.name()).finish()
    }
}

/// The items of a function that runs in another actor. Dropped early, it cancels the function.
#[derive(Debug)]
pub struct Items<I> {
    receiver: Receiver<I>,
    /// Keeps the context open.
    _context: Context<I, Nothing, (), (), NoError>,
}

impl<I: DeserializeOwned + 'static> Items<I> {
    pub(crate) async fn open(
        opening: Opening<Nothing, I, (), (), NoError>,
    ) -> Result<Self, ContextError> {
        let mut context = opening.handle().await?;
        let (_nothing_goes, receiver) = context.split();
        Ok(Self { receiver, _context: context })
    }

    /// The next item; `None` after the last one.
    ///
    /// # Errors
    /// [`StreamError::Ended`] if the function panicked, died or was cancelled, after the items
    /// before that; [`StreamError::Unreadable`] for an item of another type.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<I>, StreamError> {
        self.receiver.recv().await
    }

    /// What the stream has done so far.
    #[must_use]
    pub fn stats(&self) -> StreamStats {
        self.receiver.stats()
    }
}

impl<I: DeserializeOwned + 'static> Stream for Items<I> {
    type Item = Result<I, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(ready!(Pin::new(&mut self.receiver).poll_next(cx)))
    }
}
