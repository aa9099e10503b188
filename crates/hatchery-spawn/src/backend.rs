//! How a child is brought to life: one trait, and what a spec asks of all of them.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::child::Child;
use crate::error::SpawnError;
use crate::spec::Spec;
use crate::sys::owner::is_copy;

/// A way to bring children to life.
pub trait Backend: Send + Sync + Debug {
    /// What people call it.
    fn name(&self) -> &'static str;

    /// Whether its children are processes, so that signals work on them.
    fn is_process(&self) -> bool;

    /// Asks for a child. The request is sent by this call; the future only waits for the answer.
    fn spawn(&self, spec: Spec) -> Spawning;
}

/// A child on its way.
///
/// Dropping it withdraws the request: a child that appears all the same is killed and reaped.
/// Who ends the wait: the backend, at the latest at the bound of a request (H26).
#[derive(Debug)]
#[must_use = "dropping this withdraws the request"]
pub struct Spawning {
    answer: Result<oneshot::Receiver<Result<Child, SpawnError>>, Option<SpawnError>>,
    name: String,
}

impl Spawning {
    pub(crate) fn failed(error: SpawnError) -> Self {
        Self { answer: Err(Some(error)), name: String::new() }
    }

    pub(crate) fn waiting(
        name: String,
        answer: oneshot::Receiver<Result<Child, SpawnError>>,
    ) -> Self {
        Self { answer: Ok(answer), name }
    }
}

impl Future for Spawning {
    type Output = Result<Child, SpawnError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let name = self.name.clone();
        if is_copy() {
            // The thread that answers is the owner's.
            return Poll::Ready(Err(SpawnError::Copied { name }));
        }
        let gone = || SpawnError::ServerGone { name, why: "its client has closed".to_owned() };
        match &mut self.answer {
            Ok(answer) => {
                Pin::new(answer).poll(cx).map(|answer| answer.unwrap_or_else(|_| Err(gone())))
            }
            Err(error) => Poll::Ready(Err(error.take().unwrap_or_else(gone))),
        }
    }
}
