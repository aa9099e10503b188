//! The thread that does nothing else: from a signal on the root to the end of the tree (C6).
//!
//! It depends on no tokio worker and takes no lock that user code can hold (H6): it cancels by
//! another thread. The first signal starts the graceful teardown; a second one, or the end of the
//! budget, kills the tree and ends the process with 128 + signal. SIGQUIT ends nothing: it shows what
//! the tree is doing. SIGTSTP stops the tree and then the root, and what continues the root continues
//! the tree.
//!
//! The watchdog is for what comes after: a process whose tree is down, or that has begun to exit,
//! and that stays because something waits for a thread of a user (H8).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hatchery_proto::board::What;
use hatchery_proto::{Reason, Why, signal_name};
use hatchery_spawn::signals::{SignalSource, SignalStop, is_ignored};
use nix::libc;
use nix::sys::signal::{Signal, raise};

use crate::current::Actor;
use crate::dump::Dump;
use crate::runtime::Inner;

/// The running thread, and how to end it.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: SignalStop,
    thread: JoinHandle<()>,
    watchdog: Option<Duration>,
}

impl Watch {
    /// Takes over the signals that are the tree's business until [`Watch::end`].
    pub(crate) fn start(root: Arc<Actor>) -> std::io::Result<Self> {
        let is_wanted = |signal: &i32| !MAY_BE_IGNORED.contains(signal) || !is_ignored(*signal);
        let signals: Vec<i32> = SIGNALS.into_iter().filter(is_wanted).collect();
        let source = hatchery_spawn::signals::install(&signals)?;
        let (stop, watchdog) = (source.stopper(), root.runtime.watchdog);
        let thread = std::thread::Builder::new()
            .name("hatchery-signal".to_owned())
            .spawn(move || watch(&source, &root))?;
        Ok(Self { stop, thread, watchdog })
    }

    /// Gives the signals back and ends the thread. If a signal has come, the process is to end:
    /// then the thread stays to see to that, unless there is no watchdog.
    pub(crate) fn end(self) {
        self.stop.stop();
        if received().is_none() || self.watchdog.is_none() {
            // It only waits and signals; a panic in it has nothing to clean up.
            let _panicked = self.thread.join();
        }
    }
}

/// The signal that ended this process's tree, if one did.
pub(crate) fn received() -> Option<i32> {
    Some(RECEIVED.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
}

fn watch(source: &SignalSource, root: &Arc<Actor>) {
    let Some(signal) = next(source, &root.runtime, None) else { return };
    RECEIVED.store(signal, Ordering::SeqCst);
    let until = Instant::now() + root.runtime.config.budget;
    let begun = Begun::new(signal, root);
    if next(source, &root.runtime, Some(until)).is_none() && source.is_stopped() {
        begun.end(root.runtime.config.level_margin);
        // The runtime was closed: the tree is down, and the program ends by itself; or it doesn't.
        let Some(watchdog) = root.runtime.watchdog else { return };
        source.resume();
        let _second = next(source, &root.runtime, Some(until + watchdog));
    }
    end_process(&root.runtime, signal);
}

/// The beginning of the graceful teardown, on a thread of its own: it takes locks of the tree and
/// wakes tasks, and a waker may be a user's.
struct Begun {
    thread: Option<JoinHandle<()>>,
    /// Ends with it.
    done: Receiver<()>,
}

impl Begun {
    fn new(signal: i32, root: &Arc<Actor>) -> Self {
        let (alive, done) = channel::<()>();
        let on_thread = root.clone();
        let on_it = move || {
            let _alive = alive;
            begin(signal, &on_thread);
        };
        let thread = std::thread::Builder::new().name("hatchery-cancel".to_owned()).spawn(on_it);
        if thread.is_err() {
            begin(signal, root);
        }
        Self { thread: thread.ok(), done }
    }

    /// Waits for its end, unless it hangs.
    fn end(mut self, bound: Duration) {
        if let Some(thread) = self.thread.take()
            && self.done.recv_timeout(bound) == Err(RecvTimeoutError::Disconnected)
        {
            // It only sets and wakes; a panic in a waker has nothing to clean up.
            let _panicked = thread.join();
        }
    }
}

fn begin(signal: i32, root: &Arc<Actor>) {
    root.mark.happened(What::Signal, &signal_name(signal));
    if root.open_scopes() == 0 {
        end_process(&root.runtime, signal);
    }
    let reason = Reason { by: root.path.clone(), why: Why::Signal(signal) };
    root.cancel(reason, root.runtime.config.budget);
}

/// The next signal that shall end the tree; `None` at `until`, or on a stop.
fn next(source: &SignalSource, runtime: &Inner, until: Option<Instant>) -> Option<i32> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        match source.recv(left)? {
            libc::SIGQUIT => show(),
            libc::SIGTSTP => {
                runtime.hold_tree(true);
                // Sent to this thread: it goes on only after a SIGCONT.
                let _stopped = raise(Signal::SIGSTOP);
                runtime.hold_tree(false);
            }
            signal => return Some(signal),
        }
    }
}

/// Shows the tree on stderr, by a thread that may take its time: reading it takes longer the
/// larger it is, and stderr may have a slow reader.
fn show() {
    static SHOWING: AtomicBool = AtomicBool::new(false);
    if SHOWING.swap(true, Ordering::SeqCst) {
        return;
    }
    let shown = std::thread::Builder::new().name("hatchery-dump".to_owned()).spawn(|| {
        if let Some(dump) = Dump::of(std::process::id()) {
            hatchery_spawn::write_stderr(&dump.to_string(), SHOW_BOUND);
        }
        SHOWING.store(false, Ordering::SeqCst);
    });
    if shown.is_err() {
        SHOWING.store(false, Ordering::SeqCst);
    }
}

/// Ends the process at `until` if it is still there then, whatever it waits for: kills the trees
/// of `runtimes` and leaves with `status`, or by the signal that came.
pub(crate) fn watch_exit(runtimes: Vec<Arc<Inner>>, status: i32, until: Instant) {
    let dog = move || {
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(left);
        }
        for runtime in &runtimes {
            runtime.kill_tree();
        }
        hatchery_spawn::exit_now(received().map_or(status, |signal| 128 + signal))
    };
    // Without it the process only lacks its last resort.
    let _none = std::thread::Builder::new().name("hatchery-exit".to_owned()).spawn(dog);
}

/// Kills what is left of the tree and ends the process; flushes nothing that could block.
pub(crate) fn end_process(runtime: &Inner, signal: i32) -> ! {
    runtime.kill_tree();
    hatchery_spawn::exit_now(128 + signal)
}

static RECEIVED: AtomicI32 = AtomicI32::new(0);

const SIGNALS: [i32; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGTSTP];
/// Who ignores these from the start wants to outlive its terminal.
const MAY_BE_IGNORED: [i32; 2] = [libc::SIGHUP, libc::SIGTSTP];
/// How long a reader of stderr may take for a dump before it is cut off.
const SHOW_BOUND: Duration = Duration::from_secs(5);
