//! The thread that does nothing else: from a signal on the root to the end of the tree (C6).
//!
//! It depends on no tokio worker and takes no lock that user code can hold (H6). The first
//! signal starts the graceful teardown; a second one, or the end of the budget, kills the tree
//! and ends the process with 128 + signal.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use hatchery_proto::{Reason, Why};
use hatchery_spawn::signals::{SignalSource, SignalStop};

use crate::current::Actor;
use crate::runtime::Inner;

/// The running thread, and how to end it.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: SignalStop,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Takes over SIGINT, SIGTERM and SIGHUP until [`Watch::end`].
    pub(crate) fn start(root: Arc<Actor>) -> std::io::Result<Self> {
        let source = hatchery_spawn::signals::install(&SIGNALS)?;
        let stop = source.stopper();
        let thread = std::thread::Builder::new()
            .name("hatchery-signal".to_owned())
            .spawn(move || watch(&source, &root))?;
        Ok(Self { stop, thread })
    }

    /// Gives the signals back and ends the thread.
    pub(crate) fn end(self) {
        self.stop.stop();
        // It only waits and signals; a panic in it has nothing to clean up.
        let _panicked = self.thread.join();
    }
}

/// The signal that ended this process's tree, if one did.
pub(crate) fn received() -> Option<i32> {
    Some(RECEIVED.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
}

fn watch(source: &SignalSource, root: &Arc<Actor>) {
    let Some(signal) = source.recv(None) else { return };
    RECEIVED.store(signal, Ordering::SeqCst);
    let budget = root.runtime.config.budget;
    let until = Instant::now() + budget;
    if root.open_scopes() == 0 {
        end_process(&root.runtime, signal);
    }
    root.cancel(Reason { by: root.path.clone(), why: Why::Signal(signal) }, budget);
    // A stop means that the runtime was closed: the tree is down, the exit hook has the status.
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        match source.recv(Some(left)) {
            Some(_) => break,
            None if source.is_stopped() => return,
            None => {}
        }
    }
    end_process(&root.runtime, signal);
}

/// Kills what is left of the tree and ends the process; flushes nothing that could block.
pub(crate) fn end_process(runtime: &Inner, signal: i32) -> ! {
    runtime.kill_tree();
    hatchery_spawn::exit_now(128 + signal)
}

static RECEIVED: AtomicI32 = AtomicI32::new(0);

const SIGNALS: [i32; 3] = [nix::libc::SIGINT, nix::libc::SIGTERM, nix::libc::SIGHUP];
