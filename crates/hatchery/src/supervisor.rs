//! The thread that drives timers and waits for children, so that no teardown depends on a worker
//! that user code can block (C2).

use std::future::Future;
use std::io;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

/// The running thread, and how to end it.
#[derive(Debug)]
pub(crate) struct Supervisor {
    handle: Handle,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Supervisor {
    /// Starts the thread. It ends by [`Supervisor::end`], or when this is dropped.
    ///
    /// # Errors
    /// The call that failed, and what it said. Nothing is left then.
    pub(crate) fn start() -> Result<Self, (&'static str, io::Error)> {
        Self::drive("hatchery", Builder::new_current_thread().enable_time())
    }

    /// A second one, for connections whose own runtime is not theirs alone: it watches their sockets.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub(crate) fn refuge() -> Result<Self, (&'static str, io::Error)> {
        Self::drive("hatchery-io", Builder::new_current_thread().enable_all())
    }

    fn drive(name: &str, builder: &mut Builder) -> Result<Self, (&'static str, io::Error)> {
        let runtime = builder.build();
        let runtime = runtime.map_err(|error| ("epoll_create1", error))?;
        let handle = runtime.handle().clone();
        let runtime = Undriven(Some(runtime));
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // A dropped sender stops it as well.
            runtime.drive(async { drop(stopped.await) });
        });
        let thread = thread.map_err(|error| ("pthread_create", error))?;
        Ok(Self { handle, stop, thread })
    }

    /// Where tasks run that must not depend on user code.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends the thread and waits for it: what it runs never blocks.
    pub(crate) fn end(self) {
        // It has stopped already if the receiver is gone.
        let _stopped = self.stop.send(());
        let _panicked = self.thread.join();
    }
}

/// A runtime on its way to its thread. Where there is no thread to be had it is dropped by its maker,
/// who may be inside another runtime: there a plain drop panics.
struct Undriven(Option<Runtime>);

impl Undriven {
    fn drive(mut self, until: impl Future<Output = ()>) {
        if let Some(runtime) = self.0.take() {
            runtime.block_on(until);
        }
    }
}

impl Drop for Undriven {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
