//! Panics of user functions: caught where they happen, told with their message and place (C4).

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Once;
use std::task::{Context, Poll};

use hatchery_proto::{Fault, FaultKind};

use crate::current;

/// Runs a future and turns its panic into a fault. The future is dropped before this resolves,
/// and a destructor that panics counts as a panic of the future.
#[derive(Debug)]
pub(crate) struct Caught<F> {
    inner: Option<Pin<Box<F>>>,
}

pub(crate) fn caught<F: Future>(future: F) -> Caught<F> {
    remember_places();
    Caught { inner: Some(Box::pin(future)) }
}

/// The same for code that is no future.
pub(crate) fn catching<T>(run: impl FnOnce() -> T) -> Result<T, Box<Fault>> {
    remember_places();
    catch_unwind(AssertUnwindSafe(run)).map_err(|payload| fault(&*payload))
}

impl<F: Future> Future for Caught<F> {
    type Output = Result<F::Output, Box<Fault>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let inner = self.inner.as_mut().expect("not polled after it was ready");
        let polled = catch_unwind(AssertUnwindSafe(|| inner.as_mut().poll(cx)));
        let output = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(payload) => Err(fault(&*payload)),
        };
        let dropped = self.discard();
        Poll::Ready(output.and_then(|output| dropped.map(|()| output)))
    }
}

impl<F> Caught<F> {
    /// Drops the future now; a panic of its destructors goes on.
    pub(crate) fn abandon(&mut self) {
        drop(self.inner.take());
    }

    /// The same; a panic of its destructors comes back as a fault.
    pub(crate) fn discard(&mut self) -> Result<(), Box<Fault>> {
        let inner = self.inner.take();
        catch_unwind(AssertUnwindSafe(|| drop(inner))).map_err(|payload| fault(&*payload))
    }
}

/// A panic's payload as a fault; the place is the one the hook saw last on this thread.
fn fault(payload: &(dyn Any + Send)) -> Box<Fault> {
    let message = payload
        .downcast_ref::<&'static str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a payload that is no text".to_owned());
    let mut fault = current::fault(FaultKind::Panicked, message);
    fault.place = PLACE.with(|place| place.borrow_mut().take());
    Box::new(fault)
}

/// Adds to the process's panic hook, once, that each thread remembers where it panicked last.
fn remember_places() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().map(ToString::to_string);
            // A thread that is ending has no slot any more, and nobody to tell.
            let _ended = PLACE.try_with(|slot| *slot.borrow_mut() = place);
            before(info);
        }));
    });
}

thread_local! {
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}
