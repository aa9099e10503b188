//! The halves of a context's stream as users hold them: typed, ordered, closed one at a time.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_sink::Sink;
use hatchery_proto::{Encoded, FaultKind};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::current;
use crate::drive::framed::Framed;
use crate::drive::home::Home;
use crate::drive::pipe::{Next, Pipe, Sent, StreamStats};
use crate::error::StreamError;

/// Both halves of a context's stream: sends `W`, receives `R`.
///
/// It is a `Stream` and a `Sink`; [`Duplex::split`] gives each half to a task of its own.
#[derive(Debug)]
pub struct Duplex<R, W> {
    sender: Sender<W>,
    receiver: Receiver<R>,
}

impl<R, W> Duplex<R, W> {
    pub(crate) fn new(pipe: &Arc<Pipe>) -> Self {
        Self { sender: Sender::new(pipe.clone()), receiver: Receiver::new(pipe.clone()) }
    }

    /// The two halves. To close the sending one while this side goes on, see [`Sender::close`].
    #[must_use]
    pub fn split(self) -> (Sender<W>, Receiver<R>) {
        (self.sender, self.receiver)
    }

    /// What the stream has done so far.
    #[must_use]
    pub fn stats(&self) -> StreamStats {
        self.receiver.stats()
    }

    /// The context behind it, for looking at and for cancelling it.
    #[must_use]
    pub fn watch(&self) -> crate::context::Watch {
        crate::context::Watch::new(self.receiver.pipe.clone())
    }
}

impl<R: DeserializeOwned + 'static, W: Serialize + Send + 'static> Duplex<R, W> {
    /// See [`Sender::send`].
    ///
    /// # Errors
    /// See [`Sender::send`].
    ///
    /// # Cancel safety
    /// See [`Sender::send`].
    pub async fn send(&mut self, message: W) -> Result<(), StreamError> {
        self.sender.send(message).await
    }

    /// See [`Receiver::recv`].
    ///
    /// # Errors
    /// See [`Receiver::recv`].
    ///
    /// # Cancel safety
    /// See [`Receiver::recv`].
    pub async fn recv(&mut self) -> Result<Option<R>, StreamError> {
        self.receiver.recv().await
    }

    /// See [`Sender::close`].
    ///
    /// # Errors
    /// See [`Sender::close`].
    ///
    /// # Cancel safety
    /// See [`Sender::close`].
    pub async fn close(&mut self) -> Result<(), StreamError> {
        self.sender.close().await
    }
}

/// The half that sends. [`Sender::close`] closes it; messages that were sent still arrive.
///
/// The other side sees a clean end only where this side meant one (C20). A callee's sender that is
/// dropped without `close` is closed by the good end of its function: if that panics, errs or is
/// cancelled, the opener's reader gets that and no end. An opener's that is dropped in its body is
/// closed when the body has come to its next await, or to a good end; one that is dropped by an error or
/// a cancel of the body is not, and the callee is cancelled. One that a panic drops cancels the context,
/// in whichever thread. With [`Opening::handle`](crate::Opening::handle) there is no body to look at, and
/// a sender that the body gave to another task is dropped out of its sight: there a dropped sender is
/// closed, so where an error or an abort may drop it, keep it beside the handle, drop that first, or
/// `close` it yourself and keep it until then.
///
/// A message that still waits for room, as its `send` was dropped or it was fed and never flushed, is
/// dropped with its sender.
pub struct Sender<W> {
    pipe: Arc<Pipe>,
    /// A message that waits for room.
    staged: Option<Framed>,
    open: bool,
    of: PhantomData<fn(W)>,
}

impl<W> fmt::Debug for Sender<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("pipe", &self.pipe).finish_non_exhaustive()
    }
}

impl<W> Sender<W> {
    fn new(pipe: Arc<Pipe>) -> Self {
        Self { pipe, staged: None, open: true, of: PhantomData }
    }

    /// What the stream has done so far.
    #[must_use]
    pub fn stats(&self) -> StreamStats {
        self.pipe.stats()
    }

    /// Sends what waits for room, if anything does.
    fn poll_staged(&mut self, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        if let Some(value) = &self.staged {
            let sent = ready!(self.pipe.poll_send(value, cx));
            self.staged = None;
            return Poll::Ready(Self::settle(sent).map(drop));
        }
        Poll::Ready(Ok(()))
    }

    fn settle(sent: Sent) -> Result<Option<Framed>, StreamError> {
        match sent {
            Sent::Yes => Ok(None),
            Sent::Full(value) => Ok(Some(value)),
            Sent::Closed(None) => Err(StreamError::Closed),
            Sent::Closed(Some(fault)) => Err(StreamError::Ended(fault)),
            Sent::Refused(fault) => Err(StreamError::BadMessage(fault)),
        }
    }
}

impl<W: Serialize + Send + 'static> Sender<W> {
    /// Sends one message, after all that were sent before it. Waits for room if the stream's
    /// policy is to wait: ended by the reader, or by the end of the context.
    ///
    /// # Errors
    /// [`StreamError::Closed`] after [`Sender::close`] or the other side's end,
    /// [`StreamError::Ended`] if the context went wrong, [`StreamError::Full`] with
    /// [`Policy::Fail`](crate::Policy::Fail), [`StreamError::BadMessage`] if it can't be encoded or
    /// is over the frame limit.
    ///
    /// # Cancel safety
    /// Dropping the future while it waits for room leaves the message with the sender: it goes
    /// before the next one. It is never sent in part or twice.
    pub async fn send(&mut self, message: W) -> Result<(), StreamError> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_ready(cx)).await?;
        Pin::new(&mut *self).start_send(message)?;
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_flush(cx)).await
    }

    /// Closes this half: the other side reads what was sent and then the end, whatever this side
    /// comes to later. The other half stays open.
    ///
    /// # Errors
    /// [`StreamError::Ended`] if the context went wrong before the last message was out.
    ///
    /// # Cancel safety
    /// Dropping the future while it waits for room leaves the half open.
    pub async fn close(&mut self) -> Result<(), StreamError> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_close(cx)).await
    }
}

impl<W: Serialize + Send + 'static> Sink<W> for Sender<W> {
    type Error = StreamError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        ready!(yield_now_and_then(cx));
        if !self.open {
            return Poll::Ready(Err(StreamError::Closed));
        }
        ready!(self.poll_staged(cx))?;
        if self.pipe.poll_room(cx).is_pending() && !self.pipe.is_over() {
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn start_send(mut self: Pin<&mut Self>, message: W) -> Result<(), StreamError> {
        if !self.open {
            return Err(StreamError::Closed);
        }
        let sent = self.pipe.try_send(message);
        match Self::settle(sent)? {
            Some(_) if self.pipe.fails_when_full() => Err(StreamError::Full),
            staged => {
                self.staged = staged;
                Ok(())
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        ready!(self.poll_staged(cx))?;
        self.pipe.flush();
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        ready!(self.poll_staged(cx))?;
        if std::mem::replace(&mut self.open, false) {
            self.pipe.close();
            self.pipe.flush();
        }
        Poll::Ready(Ok(()))
    }
}

impl<W> Drop for Sender<W> {
    fn drop(&mut self) {
        self.staged = None;
        if self.open {
            self.pipe.let_go();
            self.pipe.flush();
        }
    }
}

/// The half that receives. Dropped, it reads nothing more: what comes is thrown away, and the
/// sender is not held up by it.
pub struct Receiver<R> {
    pipe: Arc<Pipe>,
    /// The context's fault was told.
    done: bool,
    of: PhantomData<fn() -> R>,
}

impl<R> fmt::Debug for Receiver<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("pipe", &self.pipe).finish_non_exhaustive()
    }
}

impl<R> Receiver<R> {
    fn new(pipe: Arc<Pipe>) -> Self {
        Self { pipe, done: false, of: PhantomData }
    }

    /// What the stream has done so far.
    #[must_use]
    pub fn stats(&self) -> StreamStats {
        self.pipe.stats()
    }

    /// A home for a task that reads from here; see [`Outbox::home_beside`](crate::drive::writer::Outbox).
    pub(crate) fn home_beside(&self) -> Option<Arc<Home>> {
        self.pipe.home_beside()
    }
}

impl<R: DeserializeOwned + 'static> Receiver<R> {
    /// The next message, in the order of sending; `None` when the other side has closed its half
    /// or has ended well, and all that it sent was read. Ended by the sender, or by the context.
    ///
    /// # Errors
    /// [`StreamError::Ended`] if the context went wrong, once and after what was sent before;
    /// [`StreamError::Unreadable`] for a message of another type: the next one may be fine.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Result<Option<R>, StreamError> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await.transpose()
    }
}

impl<R: DeserializeOwned + 'static> Stream for Receiver<R> {
    type Item = Result<R, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        ready!(yield_now_and_then(cx));
        if self.done {
            return Poll::Ready(None);
        }
        match ready!(self.pipe.poll_next(cx)) {
            Next::Item(value) => Poll::Ready(Some(decode(&value))),
            Next::End => Poll::Ready(None),
            Next::Broken(fault) => {
                self.done = true;
                Poll::Ready(Some(Err(StreamError::Ended(fault))))
            }
        }
    }
}

impl<R> Drop for Receiver<R> {
    fn drop(&mut self) {
        self.pipe.deafen();
    }
}

impl<R: DeserializeOwned + 'static, W> Stream for Duplex<R, W> {
    type Item = Result<R, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.receiver).poll_next(cx)
    }
}

impl<R, W: Serialize + Send + 'static> Sink<W> for Duplex<R, W> {
    type Error = StreamError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Pin::new(&mut self.sender).poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: W) -> Result<(), StreamError> {
        Pin::new(&mut self.sender).start_send(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Pin::new(&mut self.sender).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Pin::new(&mut self.sender).poll_close(cx)
    }
}

/// A busy stream gives the connection's own tasks their turn.
fn yield_now_and_then(cx: &mut Context<'_>) -> Poll<()> {
    std::pin::pin!(tokio::task::consume_budget()).poll(cx)
}

fn decode<R: DeserializeOwned + 'static>(value: &Encoded) -> Result<R, StreamError> {
    value.decode().map_err(|cause| {
        let message = format!("decoding a message as `{}`", std::any::type_name::<R>());
        let fault = current::fault(FaultKind::BadReply, message).because(cause.to_string());
        StreamError::Unreadable(Box::new(fault))
    })
}
