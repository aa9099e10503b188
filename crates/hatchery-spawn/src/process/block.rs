//! A wait of a thread for a future: one that no runtime drives, or one that needs a runtime.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use tokio::runtime::{Builder, Handle};

/// Runs the future on this thread, which sleeps meanwhile. The future may need no runtime: one that waits
/// for a timer of tokio would sleep for ever.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            // A wake-up that comes before this makes it return at once.
            Poll::Pending => thread::park(),
        }
    }
}

/// Runs a future that reads pipes or waits for time, in a runtime that lives no longer than this. A thread
/// that drives another runtime may drive no second one, so then it waits for a thread that does.
pub(super) fn drive<T: Send>(future: impl Future<Output = io::Result<T>> + Send) -> io::Result<T> {
    let run = || Builder::new_current_thread().enable_io().enable_time().build()?.block_on(future);
    if Handle::try_current().is_err() {
        return run();
    }
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("hatchery-wait".to_owned());
        match thread.spawn_scoped(scope, run)?.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
