//! What a copy of the process, made by fork, is told: nothing of the tree is its own.
//!
//! The host of a tree forks when it likes, or a library of its does. Then the copy has every handle of
//! the tree, the same sockets, the same epolls, and the same exit hooks; but not the threads, so that a
//! lock may be held by nobody. So each way into the tree asks first, before any lock: [`is_copy`].

use std::pin::Pin;
use std::task::{Context, Poll};

use hatchery_proto::{Fault, FaultKind};
use hatchery_spawn::Kept;
pub(crate) use hatchery_spawn::is_copy;

use crate::current;
use crate::panics::Caught;

/// The error of whatever a copy asks for.
pub(crate) fn fault() -> Fault {
    current::fault(FaultKind::Copied, MESSAGE.to_owned())
}

/// A future that waits for the tree; in a copy it is neither polled nor dropped.
pub(crate) struct Here<F>(Kept<Pin<Box<F>>>);

impl<F> Here<F> {
    pub(crate) fn new(future: F) -> Self {
        Self(Kept::new(Box::pin(future)))
    }
}

impl<F: Future> Future for Here<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if is_copy() { Poll::Pending } else { self.0.as_mut().poll(cx) }
    }
}

/// A function that this process serves. In a copy, which somebody has made inside of it, nobody waits
/// for what it comes to, and the runtime that it would wait in is the other's: so the copy ends with it.
pub(crate) struct Serving<'a, F>(pub(crate) &'a mut Caught<F>);

impl<F, T> Future for Serving<'_, F>
where
    F: Future<Output = Result<T, Box<Fault>>>,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        leave_if_copy();
        let polled = Pin::new(&mut *self.0).poll(cx).map(|result| result.and_then(|result| result));
        if is_copy() {
            hatchery_spawn::exit_now(match &polled {
                Poll::Ready(Ok(_)) => 0,
                Poll::Ready(Err(fault)) if fault.kind == FaultKind::Panicked => PANICKED,
                Poll::Ready(Err(_)) => 1,
                Poll::Pending => WAITED,
            });
        }
        polled
    }
}

/// In an actor's runtime that has nothing more to do but to wait: a copy waits in the other's place.
pub(crate) fn leave_if_copy() {
    if is_copy() {
        hatchery_spawn::exit_now(WAITED);
    }
}

const MESSAGE: &str = "this process is a copy, made by fork, of the one that hatchery serves";
/// What std ends a process with whose `main` has panicked.
const PANICKED: i32 = 101;
/// `EX_SOFTWARE`: it can't wait for anything there.
const WAITED: i32 = 70;
