//! Several readers of one stream in one actor: each gets every message, and whoever is too slow
//! is told so, alone.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, OnceLock};

use hatchery_proto::FaultKind;
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, oneshot};

use crate::copied::{self, is_copy};
use crate::current;
use crate::drive::home::Home;
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

/// Of the task that reads; it ends with whoever holds this.
#[derive(Debug)]
struct Pump {
    /// Dropped with the last holder, which ends the task.
    _held: oneshot::Sender<()>,
    /// Where the task runs; none in the actor's own runtime, where it stays.
    home: Option<Arc<Home>>,
    /// How the stream ended, once it has: well, or not. Unsaid if the task is gone before.
    end: Arc<OnceLock<Result<(), StreamError>>>,
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
        let end = Arc::new(OnceLock::new());
        let of_task = end.clone();
        let (held, let_go) = oneshot::channel::<()>();
        let home = self.home_beside();
        let work = async move {
            // Ended by the stream, or with the last holder.
            let reads = async {
                loop {
                    match self.recv().await.transpose() {
                        None => break Ok(()),
                        Some(Err(error @ StreamError::Ended(_))) => break Err(error),
                        // Nobody subscribes at the moment: the message is for nobody.
                        Some(message) => drop(sender.send(message)),
                    }
                }
            };
            tokio::select! {
                biased;
                _ = let_go => return,
                // Before the sender is dropped: who finds it gone looks for this.
                ended = reads => drop(of_task.set(ended)),
            }
            drop(sender);
        };
        match &home {
            Some(home) => home.spawn(work),
            None => drop(tokio::spawn(work)),
        }
        Broadcast { sender: weak, first, pump: Arc::new(Pump { _held: held, home, end }) }
    }
}

impl<R: Clone> Broadcast<R> {
    /// A reader of every message from now on. After the stream's end it only gets the end, or why it was
    /// none.
    #[must_use]
    pub fn subscribe(&self) -> Subscriber<R> {
        let receiver = match self.sender.upgrade() {
            Some(sender) => sender.subscribe(),
            None => self.first.resubscribe(),
        };
        Subscriber { receiver, pump: self.pump.clone(), done: false }
    }
}

/// One reader of a [`Broadcast`].
pub struct Subscriber<R> {
    receiver: broadcast::Receiver<Message<R>>,
    pump: Arc<Pump>,
    /// The end was told, or why it was none.
    done: bool,
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
    /// is still there. Otherwise as [`Receiver::recv`], told to every subscriber; also that the task which
    /// read for all is gone before the end, with its tokio runtime or by a panic of a message's own code.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Result<Option<R>, StreamError> {
        if is_copy() {
            // The task that reads is the owner's.
            return Err(StreamError::Ended(Box::new(copied::fault())));
        }
        match self.next_message().await {
            Ok(message) => message.map(Some),
            Err(broadcast::error::RecvError::Lagged(missed)) => Err(StreamError::Lagged(missed)),
            Err(broadcast::error::RecvError::Closed) => self.end().map(|()| None),
        }
    }

    /// Waits for the ring, with the task that fills it moved if this is not its runtime.
    async fn next_message(&mut self) -> Result<Message<R>, broadcast::error::RecvError> {
        let mut next = pin!(self.receiver.recv());
        let polled = poll_fn(|cx| {
            let polled = next.as_mut().poll(cx);
            if polled.is_pending() {
                self.pump.home.iter().for_each(Home::visited);
            }
            polled
        });
        polled.await
    }

    /// What is told in the place of a message that doesn't come any more (C20).
    fn end(&mut self) -> Result<(), StreamError> {
        if std::mem::replace(&mut self.done, true) {
            return Ok(());
        }
        self.pump.end.get().cloned().unwrap_or_else(|| {
            let message = "the task that read it for all is gone".to_owned();
            Err(StreamError::Ended(Box::new(current::fault(FaultKind::Lost, message))))
        })
    }
}
