//! The thread that does nothing else: from a signal on this process to the end of its trees (C6, C19).
//!
//! It is there while a runtime is open that wants signals, one for all of them. It depends on no tokio
//! worker and takes no lock that user code can hold (H6): it cancels and tells by another thread. What a
//! signal does to which tree is decided by [`Signals`](hatchery_proto::signals::Signals). SIGQUIT ends
//! nothing: it shows what the tree is doing. SIGTSTP stops the trees and then the process, and what
//! continues the process continues them.
//!
//! The watchdog is for what comes after: a process whose tree is down, or that has begun to exit,
//! and that stays because something waits for a thread of a user (H8).
//!
//! Lock order: `TURN` before `HUB`. The thread takes `HUB` alone, so who holds `TURN` may wait for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hatchery_proto::board::What;
use hatchery_proto::signals::{Action, Event, RootId, Signals as Machine, Wish};
use hatchery_proto::{Reason, Why, signal_name};
use hatchery_spawn::signals::{SignalSource, SignalStop, is_ignored};
use nix::libc;
use nix::sys::signal::{Signal, raise};
use tokio::sync::watch;

use crate::clock;
use crate::copied::is_copy;
use crate::current::Actor;
use crate::dump::Dump;
use crate::lock::lock;
use crate::runtime::Inner;

/// What SIGINT, SIGTERM and SIGHUP on this process do to a runtime. For
/// [`Builder::signals`](crate::Builder::signals).
///
/// Whatever it is, a handler that the program has installed before stays and is called too, with what it
/// would have got; and at the end each signal's handler becomes what it was before, unless somebody has
/// installed another one meanwhile: then that one stays (C19). With tokio's `signal::ctrl_c`, whether it
/// began to wait before or later, both are told.
///
/// A handler that is installed *after* the opening and doesn't call the one that it found, as one of C that
/// replaces ours, gets the signals alone, until the next runtime is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Signals {
    /// The tree comes down, and the process ends with 128 + signal (C6). If several runtimes are open, all
    /// trees come down side by side, in the longest of their budgets; a second signal kills them at once.
    #[default]
    TakeDown,
    /// The runtime tells it by [`Runtime::interrupted`](crate::Runtime::interrupted), and nothing else comes
    /// of it: the program decides. While such a runtime is open no signal ends the process; the trees of
    /// other runtimes, which want to be taken down, come down, and are killed at the end of their budget
    /// or by a second signal.
    Notify,
    /// It isn't listened to: what the signals do is the program's own business.
    Leave,
}

impl From<bool> for Signals {
    /// `true` takes the tree down, `false` leaves the signals alone.
    fn from(yes: bool) -> Self {
        if yes { Self::TakeDown } else { Self::Leave }
    }
}

/// A signal that came, as [`Runtime::interrupted`](crate::Runtime::interrupted) tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Interrupted {
    /// Its number: SIGINT, SIGTERM or SIGHUP.
    pub signal: i32,
    /// How many have come since the runtime was opened, this one included. Those of one number that come
    /// at the same moment are one.
    pub count: u64,
}

/// What a root has been told of.
#[derive(Debug)]
pub(crate) struct Interrupts {
    last: watch::Sender<Interrupted>,
}

impl Default for Interrupts {
    fn default() -> Self {
        Self { last: watch::channel(Interrupted { signal: 0, count: 0 }).0 }
    }
}

impl Interrupts {
    fn tell(&self, signal: i32) {
        self.last.send_modify(|last| {
            *last = Interrupted { signal, count: last.count + 1 };
        });
    }

    /// Waits for one beyond the first `seen`.
    pub(crate) async fn more_than(&self, seen: u64) -> Interrupted {
        let mut last = self.last.subscribe();
        let told = last.wait_for(|last| last.count > seen).await.map(|last| *last);
        told.expect("the sender lives in the runtime that is borrowed here")
    }
}

/// A root that is told of signals until [`Watch::end`].
#[derive(Debug)]
pub(crate) struct Watch {
    id: RootId,
    bound: Duration,
}

/// All roots of this process that are told.
struct Hub {
    machine: Machine,
    roots: BTreeMap<RootId, Arc<Actor>>,
    next: u64,
    /// The last root wants to leave; the thread lets it go when it has handled what came before.
    closing: Option<RootId>,
    begun: Vec<Begun>,
}

static HUB: Mutex<Hub> = Mutex::new(Hub {
    machine: Machine::new(),
    roots: BTreeMap::new(),
    next: 1,
    closing: None,
    begun: Vec::new(),
});

/// Held while a root comes or goes: one at a time.
static TURN: Mutex<Option<Listening>> = Mutex::new(None);

/// The running thread.
struct Listening {
    source: Arc<SignalSource>,
    stop: SignalStop,
    /// Whether it ends, said whenever the last root goes.
    ends: Receiver<bool>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Has `root` told of signals, if it wants that.
    pub(crate) fn start(root: &Arc<Actor>, signals: Signals) -> std::io::Result<Option<Self>> {
        let (budget, watchdog) = (root.runtime.config.budget, root.runtime.watchdog);
        let wish = match signals {
            Signals::TakeDown => Wish::TakeDown { budget, watchdog },
            Signals::Notify => Wish::Notify,
            Signals::Leave => return Ok(None),
        };
        let mut turn = lock(&TURN);
        // It is there before the first signal can come: none is lost.
        let id = {
            let mut hub = lock(&HUB);
            let id = RootId(hub.next);
            hub.next += 1;
            hub.roots.insert(id, root.clone());
            let actions = hub.machine.handle(Event::Opened(id, wish), clock::now());
            hub.perform(actions);
            id
        };
        if let Err(error) = listen(&mut turn) {
            let mut hub = lock(&HUB);
            hub.roots.remove(&id);
            hub.machine.handle(Event::Closed(id), clock::now());
            return Err(error);
        }
        Ok(Some(Self { id, bound: root.runtime.config.level_margin }))
    }

    /// The root isn't told any more. With the last one the signals are given back and the thread ends. If
    /// a signal has come that ends the process, the thread stays to see to that, unless there is no
    /// watchdog.
    pub(crate) fn end(self) {
        if is_copy() {
            // It has neither the thread nor the signals.
            return;
        }
        let mut turn = lock(&TURN);
        let is_last = {
            let mut hub = lock(&HUB);
            let is_last = hub.roots.len() == 1;
            if is_last {
                hub.closing = Some(self.id);
            } else {
                hub.close(self.id);
            }
            is_last
        };
        if let Some(listening) = &*turn {
            // It looks at what has changed.
            listening.stop.stop();
            if is_last && listening.ends.recv().unwrap_or(true) {
                end(turn.take());
            }
        }
        drop(turn);
        let begun = std::mem::take(&mut lock(&HUB).begun);
        for one in begun {
            one.end(self.bound);
        }
    }
}

/// Makes sure that there is a thread, and that it is told first.
fn listen(turn: &mut Option<Listening>) -> std::io::Result<()> {
    let is_wanted = |signal: &i32| !MAY_BE_IGNORED.contains(signal) || !is_ignored(*signal);
    let signals: Vec<i32> = SIGNALS.into_iter().filter(is_wanted).collect();
    if let Some(listening) = turn {
        return listening.source.hold(&signals);
    }
    let source = Arc::new(hatchery_spawn::signals::install(&signals)?);
    let stop = source.stopper();
    let (say, ends) = channel();
    let of_thread = source.clone();
    let thread = std::thread::Builder::new()
        .name("hatchery-signal".to_owned())
        .spawn(move || watch(&of_thread, &say))?;
    *turn = Some(Listening { source, stop, ends, thread });
    Ok(())
}

fn end(listening: Option<Listening>) {
    let Some(Listening { source, thread, .. }) = listening else { return };
    // It only waits and signals; a panic in it has nothing to clean up.
    let _panicked = thread.join();
    drop(source);
}

impl Hub {
    fn close(&mut self, id: RootId) -> Vec<Action> {
        self.roots.remove(&id);
        self.machine.handle(Event::Closed(id), clock::now())
    }

    /// Carries out what is quick, and has another thread carry out what may meet code of users.
    fn perform(&mut self, actions: Vec<Action>) {
        let (mut down, mut told, mut by, mut ends) = (Vec::new(), Vec::new(), 0, false);
        for action in actions {
            match action {
                Action::TakeDown { roots, signal, ends: is_end } => {
                    (by, ends) = (signal, is_end);
                    if is_end {
                        RECEIVED.store(signal, Ordering::SeqCst);
                    }
                    down.extend(roots.iter().filter_map(|id| self.roots.get(id)).cloned());
                }
                Action::Tell(id, signal) => {
                    by = signal;
                    told.extend(self.roots.get(&id).cloned());
                }
                // Bounded by the forkserver's own bound.
                Action::Kill(id) => {
                    if let Some(root) = self.roots.get(&id) {
                        root.runtime.kill_tree();
                    }
                }
                Action::End(signal) => end_process(self.roots.values(), signal),
                Action::Stop => {}
            }
        }
        if by != 0 {
            self.begun.retain(|begun| !begun.is_done());
            self.begun.push(Begun::new(by, down, told, ends));
        }
    }
}

/// The signal that ended this process's trees, if one did.
pub(crate) fn received() -> Option<i32> {
    Some(RECEIVED.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
}

/// The thread: until the last root has gone.
fn watch(source: &SignalSource, ends: &Sender<bool>) {
    loop {
        let until = lock(&HUB).machine.poll_timeout().map(clock::instant);
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        match source.recv(left) {
            Some(libc::SIGQUIT) => show(),
            Some(libc::SIGTSTP) => stop_with_the_trees(),
            Some(signal) => {
                let mut hub = lock(&HUB);
                let actions = hub.machine.handle(Event::Signal(signal), clock::now());
                hub.perform(actions);
            }
            None => {
                // First this: who changes something says so afterwards.
                source.resume();
                let mut hub = lock(&HUB);
                let actions = hub.machine.handle_timeout(clock::now());
                hub.perform(actions);
                if let Some(id) = hub.closing.take() {
                    let is_over = hub.close(id).contains(&Action::Stop);
                    // Who asked waits for it.
                    let _waits = ends.send(is_over);
                    if is_over {
                        return;
                    }
                }
            }
        }
    }
}

fn stop_with_the_trees() {
    let runtimes: Vec<Arc<Inner>> =
        lock(&HUB).roots.values().map(|root| root.runtime.clone()).collect();
    runtimes.iter().for_each(|runtime| runtime.hold_tree(true));
    // Sent to this thread: it goes on only after a SIGCONT.
    let _stopped = raise(Signal::SIGSTOP);
    runtimes.iter().for_each(|runtime| runtime.hold_tree(false));
}

/// What a signal begins, on a thread of its own: it takes locks of the trees and wakes tasks, and a
/// waker may be a user's.
#[derive(Debug)]
struct Begun {
    thread: Option<JoinHandle<()>>,
    /// Ends with it.
    done: Receiver<()>,
}

impl Begun {
    fn new(signal: i32, down: Vec<Arc<Actor>>, told: Vec<Arc<Actor>>, ends: bool) -> Self {
        let (alive, done) = channel::<()>();
        let roots = Arc::new((down, told));
        let on_thread = roots.clone();
        let on_it = move || {
            let _alive = alive;
            begin(signal, &on_thread.0, &on_thread.1, ends);
        };
        let thread = std::thread::Builder::new().name("hatchery-cancel".to_owned()).spawn(on_it);
        if thread.is_err() {
            begin(signal, &roots.0, &roots.1, ends);
        }
        Self { thread: thread.ok(), done }
    }

    fn is_done(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
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

fn begin(signal: i32, down: &[Arc<Actor>], told: &[Arc<Actor>], ends: bool) {
    for root in down.iter().chain(told) {
        root.mark.happened(What::Signal, &signal_name(signal));
        root.runtime.interrupts.tell(signal);
    }
    if ends && down.iter().all(|root| root.open_scopes() == 0) {
        end_process(down, signal);
    }
    for root in down {
        let reason = Reason { by: root.path.clone(), why: Why::Signal(signal) };
        root.cancel(reason, root.runtime.config.budget);
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

/// Kills what is left of the trees and ends the process; flushes nothing that could block.
fn end_process<'a>(roots: impl IntoIterator<Item = &'a Arc<Actor>>, signal: i32) -> ! {
    for root in roots {
        root.runtime.kill_tree();
    }
    hatchery_spawn::exit_now(128 + signal)
}

static RECEIVED: AtomicI32 = AtomicI32::new(0);

const SIGNALS: [i32; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGTSTP];
/// Who ignores these from the start wants to outlive its terminal.
const MAY_BE_IGNORED: [i32; 2] = [libc::SIGHUP, libc::SIGTSTP];
/// How long a reader of stderr may take for a dump before it is cut off.
const SHOW_BOUND: Duration = Duration::from_secs(5);
