//! Several readers of one stream in one actor: each gets every message, and whoever is too slow
//! is told so, alone.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use crate::error::StreamError;
use crate::stream::Receiver;

/// One stream, read once and handed to every subscriber.
///
/// It reads as fast as messages come, so that no subscriber slows the sender or another one. Dropped
/// with its last subscriber it stops reading.
pub struct Broadcast<R> {
    sender: broadcast::WeakSender<Message<R>>,
    /// Keeps the ring until the first subscriber is there.
    first: broadcast::Receiver<Message<R>>,
    pump: Arc<Pump>,
}

type Message<R> = Result<R, StreamError>;

/// The task that reads; it ends with whoever holds this.
#[derive(Debug)]
struct Pump {
    task: JoinHandle<()>,
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<R> fmt::Debug for Broadcast<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broadcast").finish_non_exhaustive()
    }
}

impl<R> Receiver<R>
where
    R: DeserializeOwned + Clone + Send + 'static,
{
    /// Hands this stream to any number of local readers. Each may be up to `capacity` messages
    /// behind; who is further behind loses the oldest ones and is told how many.
    ///
    /// # Panics
    /// If `capacity` is zero, or outside of a tokio runtime.
    #[must_use]
    pub fn broadcast(mut self, capacity: usize) -> Broadcast<R> {
        let (sender, first) = broadcast::channel(capacity);
        let weak = sender.downgrade();
        let task = tokio::spawn(async move {
            // Ended by the stream, or aborted with the last holder.
            while let Some(message) = self.recv().await.transpose() {
                let last = matches!(message, Err(StreamError::Ended(_)));
                // Nobody subscribes at the moment: the message is for nobody.
                let _nobody = sender.send(message);
                if last {
                    break;
                }
            }
        });
        Broadcast { sender: weak, first, pump: Arc::new(Pump { task }) }
    }
}

impl<R: Clone> Broadcast<R> {
    /// A reader of every message from now on. After the stream's end it only gets the end.
    #[must_use]
    pub fn subscribe(&self) -> Subscriber<R> {
        let receiver = match self.sender.upgrade() {
            Some(sender) => sender.subscribe(),
            None => self.first.resubscribe(),
        };
        Subscriber { receiver, _pump: self.pump.clone() }
    }
}

/// One reader of a [`Broadcast`].
pub struct Subscriber<R> {
    receiver: broadcast::Receiver<Message<R>>,
    _pump: Arc<Pump>,
}

impl<R> fmt::Debug for Subscriber<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber").finish_non_exhaustive()
    }
}

impl<R: Clone> Subscriber<R> {
    /// The next message; `None` after the end of the stream.
    ///
    /// # Errors
    /// [`StreamError::Lagged`] if this reader has missed messages: the next one is the oldest that
    /// is still there. Otherwise as [`Receiver::recv`], told to every subscriber.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Result<Option<R>, StreamError> {
        match self.receiver.recv().await {
            Ok(Ok(message)) => Ok(Some(message)),
            Ok(Err(error)) => Err(error),
            Err(broadcast::error::RecvError::Lagged(missed)) => Err(StreamError::Lagged(missed)),
            Err(broadcast::error::RecvError::Closed) => Ok(None),
        }
    }
}
