//! The root of a tree: opened once, left by any number of handles, closed once and exactly (C10).
//!
//! ```text
//! Runtime ──► Handle ──► House ◄── nurseries of the free functions, its guests
//! ```
//!
//! The house is what is opened: with the last one that is in it, it is closed. The last clone of a runtime
//! closes for all handles, and brings down what was opened through them. A guest did not ask for this
//! runtime by name, so it isn't brought down by who did: the house stays until it has left (C19).
//!
//! Lock order: the process's own actor (`current.rs`) before `Actor::inside`. Under the first one it is
//! decided, as one step, who is still let in.

use std::fmt;
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use hatchery_proto::{Reason, Why};
use hatchery_spawn::{Abandoned, Forkserver};
use tokio::sync::watch;

use crate::copied::is_copy;
use crate::current::{self, Actor, Cancelling, Entered};
use crate::dump;
use crate::lock::lock;
use crate::nursery;
use crate::runtime::{Builder, CLOSE_SLACK};
use crate::signal::{self, Interrupted};
use crate::watchdog;

/// The root of a tree, for programs that want to say when it begins and ends.
///
/// Without one, the first [`nursery`](crate::nursery()) opens a runtime with the defaults that
/// lives until the process ends.
///
/// Clones are the same runtime. [`Runtime::close`] on one of them closes it for all; what is asked of the
/// others then is a typed error. Dropping the last one closes it too, blocking at most the budget.
///
/// Any number of runtimes may be open in a process, and be closed in any order (C19).
#[derive(Debug, Clone)]
pub struct Runtime {
    handle: Arc<Handle>,
}

impl Runtime {
    /// Options of a runtime; every one has a default.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub(crate) fn new(root: &Arc<Actor>, house: Arc<House>) -> Self {
        let (closed, _) = watch::channel(false);
        let house = Mutex::new(Some(house));
        Self { handle: Arc::new(Handle { root: root.clone(), house, closed }) }
    }

    /// Makes it the process's own, if there is none, and enters it as a guest.
    pub(crate) fn enter(&self) -> Entered {
        let (actor, guest) = (self.handle.root.clone(), lock(&self.handle.house).clone());
        if let Some(house) = &guest {
            current::enter_process(&actor, Arc::downgrade(house));
        }
        Entered { actor, guest }
    }

    /// Opens a nursery at the root of this runtime's tree; see [`nursery`](crate::nursery()).
    ///
    /// # Errors
    /// See [`nursery`](crate::nursery()); and cancelled, for [`Why::Draining`] or [`Why::Closed`], once the
    /// runtime drains or is closed.
    ///
    /// # Cancel safety
    /// See [`nursery`](crate::nursery()).
    pub async fn nursery<T, F>(&self, body: F) -> Result<T, crate::ScopeError>
    where
        F: AsyncFnOnce(crate::Nursery) -> crate::Result<T>,
    {
        nursery::open(self.handle.root.clone(), None, body).await
    }

    /// Every thread of this process that was given up on and still runs (C5), at any level of the
    /// tree.
    ///
    /// An actor with a process of its own has a ledger of its own, which [`abandoned`](crate::abandoned())
    /// shows in it; its threads are not listed here. That they were given up on is told upwards all the
    /// same, in the results and reports of the nurseries above; and they end with their process.
    #[must_use]
    pub fn abandoned(&self) -> Vec<Abandoned> {
        if is_copy() {
            return Vec::new();
        }
        self.handle.root.runtime.threads.ledger().list()
    }

    /// What the whole tree is doing right now, and who holds it up; see [`dump`](crate::dump).
    ///
    /// Reads `/proc`, which blocks for a millisecond or so for each process. `None` if there is no
    /// `/proc`.
    #[must_use]
    pub fn dump(&self) -> Option<dump::Dump> {
        dump::Dump::of(std::process::id())
    }

    /// The process id of the forkserver, once it runs; for looking from outside.
    #[must_use]
    pub fn forkserver_pid(&self) -> Option<u32> {
        self.handle.root.runtime.running_forkserver().as_ref().map(Forkserver::pid)
    }

    /// Whether the processes of the tree are held by pidfds, once a forkserver runs.
    ///
    /// `Some(false)`: neither the kernel nor a filter lets us have any. All promises hold; what is
    /// done differently then stands at [`Forkserver::has_pidfds`].
    #[must_use]
    pub fn has_pidfds(&self) -> Option<bool> {
        self.handle.root.runtime.running_forkserver().as_ref().map(Forkserver::has_pidfds)
    }

    /// Waits until a SIGINT, SIGTERM or SIGHUP has come to this process since the runtime was opened, and
    /// tells the last one. If one has come already, it returns at once.
    ///
    /// For [`Signals::Notify`](crate::Signals::Notify), where the program decides what comes of it; with
    /// [`Signals::TakeDown`](crate::Signals::TakeDown) it tells the same while the tree comes down, and
    /// with [`Signals::Leave`](crate::Signals::Leave) it waits for ever. Any number may wait.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing; the next call tells the same.
    pub async fn interrupted(&self) -> Interrupted {
        self.interrupted_again(0).await
    }

    /// The same once more than `seen` signals have come: with the count of an [`Interrupted`] it waits for
    /// the next one, as programs do that leave at once when they are asked twice.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing; the next call tells the same.
    pub async fn interrupted_again(&self, seen: u64) -> Interrupted {
        if is_copy() {
            // Its signals are not told to anybody.
            return std::future::pending().await;
        }
        self.handle.root.runtime.interrupts.more_than(seen).await
    }

    /// Ends the runtime when what is under way has finished, and within `within` and the budget in any case.
    ///
    /// From now on nothing new is begun in it, by any clone or free function: opening a nursery, starting an
    /// actor, and calls and contexts of the root are refused, with a reason of [`Why::Draining`]. What is
    /// under way goes on, and actors that work on it go on starting and calling. First the root's calls,
    /// contexts, starts and one-shot actors are waited for. Then [`cancelled`](crate::cancelled()) tells the
    /// bodies of its nurseries that it is over, and those are waited for too: a body that serves for ever
    /// waits for that, or for [`Runtime::interrupted`], or it takes all of `within`. In the end the runtime
    /// is closed as by [`Runtime::close`]. What is under way even then is counted.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(runtime: hatchery::Runtime) {
    /// runtime.interrupted().await;
    /// let drained = runtime.drain(Duration::from_secs(10)).await;
    /// assert_eq!(drained.cut, 0, "somebody took longer");
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// Dropping the future closes nothing: the runtime still refuses what is new, until somebody drains it
    /// again, closes it, or drops the last clone.
    pub async fn drain(self, within: Duration) -> Drained {
        if is_copy() {
            return Drained { cut: 0 };
        }
        let root = &self.handle.root;
        let reason = Reason { by: root.path.clone(), why: Why::Draining };
        let cut = if root.refuse_new(reason.clone()) {
            let left = tokio::time::timeout(within, root.drained(reason)).await;
            left.map_or_else(|_late| root.under_way(), |()| 0)
        } else {
            0
        };
        self.close().await;
        Drained { cut }
    }

    /// Brings down what is still open and waits until everything that served the runtime is gone:
    /// threads, fds, the forkserver. Abandoned threads are excepted (C5, C10).
    ///
    /// It closes for all clones: what is asked of them later is an error with [`Why::Closed`]. A second
    /// close waits for the first one. A nursery of the free [`nursery`](crate::nursery()) that uses this
    /// runtime, because it was the process's own, is not brought down: it didn't ask for it by name. Then
    /// what serves the runtime is gone when that nursery has ended. New ones use another runtime.
    ///
    /// # Cancel safety
    /// Dropping the future closes as dropping the runtime does, blocking.
    pub async fn close(self) {
        if is_copy() {
            return;
        }
        let handle = &self.handle;
        let Some(house) = handle.shut() else {
            // Whoever closes has a bound, also if it is dropped.
            let mut closed = handle.closed.subscribe();
            let _closed = closed.wait_for(|closed| *closed).await;
            return;
        };
        let mut closing = Closing { handle, house: Some(house) };
        let root = &handle.root;
        closing.cancel();
        let bound = root.runtime.config.budget + CLOSE_SLACK;
        // Scopes have their own bounds; this one only guards against a bug in them.
        if tokio::time::timeout(bound, root.own_scopes_closed()).await.is_err() {
            still_open(root, bound);
        }
        let Some(house) = closing.house.take().and_then(Arc::into_inner) else { return };
        // Blocking, if this future is dropped here.
        let reason = Reason { by: root.path.clone(), why: Why::Finished };
        let config = &root.runtime.config;
        let going = Cancelling { reason, until: Instant::now() + config.peer_drain * 2 };
        root.door.close_all(&going, config.peer_drain).await;
        drop(house);
    }
}

/// What a drain came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// How many nurseries, and calls, contexts, starts and one-shot actors of the root, were still under
    /// way when the time was spent. They were cut off, but for what belongs to nurseries of the free
    /// functions, which go on (see [`Runtime::close`]).
    pub cut: usize,
}

/// What the clones of a runtime share. Dropped with the last of them, it closes.
#[derive(Debug)]
struct Handle {
    root: Arc<Actor>,
    /// Taken by whoever closes.
    house: Mutex<Option<Arc<House>>>,
    closed: watch::Sender<bool>,
}

impl Handle {
    /// Lets nobody in any more. Whoever gets the house closes it; nobody does at the second time.
    fn shut(&self) -> Option<Arc<House>> {
        if is_copy() {
            return None;
        }
        let house = lock(&self.house).take()?;
        current::close_process(&self.root);
        Some(house)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(house) = self.shut() {
            drop(Closing { handle: self, house: Some(house) });
        }
    }
}

/// A close under way. Dropped early, it goes on blocking.
struct Closing<'a> {
    handle: &'a Handle,
    house: Option<Arc<House>>,
}

impl Closing<'_> {
    /// Cancels what was opened through the handles, and all if nobody else is there.
    fn cancel(&self) {
        let root = &self.handle.root;
        // Nobody is let in any more, so there are no more than these.
        match &self.house {
            Some(house) if Arc::strong_count(house) > 1 => root.cancel_own_scopes(),
            Some(_) | None => root.cancel_scopes(),
        }
    }
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        if is_copy() {
            return;
        }
        if let Some(house) = self.house.take() {
            let root = &self.handle.root;
            if Arc::strong_count(&house) > 1 {
                root.cancel_own_scopes();
                wait_for_scopes(root, Which::Own);
            }
            // Closed here if nobody else is in it.
            drop(house);
        }
        self.handle.closed.send_replace(true);
    }
}

/// An open runtime. Dropped by the last one that is in it, it is closed, blocking at most the budget.
pub(crate) struct House {
    root: Arc<Actor>,
}

impl House {
    /// The runtime of `root` is open.
    pub(crate) fn new(root: &Arc<Actor>) -> Arc<Self> {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| hatchery_spawn::at_exit(at_exit));
        lock(&ROOTS).push(root.clone());
        Arc::new(Self { root: root.clone() })
    }
}

impl fmt::Debug for House {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("House").finish_non_exhaustive()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if is_copy() {
            return;
        }
        current::close_process(&self.root);
        close_blocking(&self.root);
        lock(&ROOTS).retain(|other| !Arc::ptr_eq(other, &self.root));
    }
}

static ROOTS: Mutex<Vec<Arc<Actor>>> = Mutex::new(Vec::new());

/// The roots of the trees that are open in this process.
pub(crate) fn roots() -> Vec<Arc<Actor>> {
    if is_copy() {
        return Vec::new();
    }
    lock(&ROOTS).clone()
}

/// `main` has returned or `exit` was called: nobody opens scopes any more; those that come down
/// in the background may finish (C1), bounded, and a signal that ended the tree gives the status.
fn at_exit(status: i32) {
    let roots = std::mem::take(&mut *lock(&ROOTS));
    watchdog::arm(&roots, status);
    // All are told before one is waited for: side by side they take the longest of their budgets (C2).
    for root in &roots {
        // The process has no other one any more: what comes now is refused by this one.
        root.refuse_all();
        root.cancel_scopes();
    }
    roots.iter().for_each(close_blocking);
    if let Some(signal) = signal::received() {
        hatchery_spawn::exit_now(128 + signal);
    }
}

fn close_blocking(root: &Arc<Actor>) {
    root.cancel_scopes();
    wait_for_scopes(root, Which::All);
    crate::drive::door::root_closes(root);
    root.runtime.close();
}

#[derive(Clone, Copy)]
enum Which {
    Own,
    All,
}

/// Waits on this thread without a runtime: it may be a worker of one.
fn wait_for_scopes(root: &Arc<Actor>, which: Which) {
    let bound = root.runtime.config.budget + CLOSE_SLACK;
    if root.open_scopes() > 0
        && let Ok(handle) = root.runtime.supervisor()
    {
        let waited = root.clone();
        let (done, closed) = std::sync::mpsc::channel();
        handle.spawn(async move {
            match which {
                Which::Own => waited.own_scopes_closed().await,
                Which::All => waited.scopes_closed().await,
            }
            done.send(()).is_ok()
        });
        // Scopes have their own bounds; this one only guards against a bug in them.
        if closed.recv_timeout(bound).is_err() {
            still_open(root, bound);
        }
    }
}

/// A wait that ran out is never silent (H25), also where nobody is left to be told by an error.
fn still_open(root: &Actor, waited: Duration) {
    let open = root.open_scopes();
    hatchery_spawn::notice::post(move || {
        let (stage, dump) = ("the end of a runtime", dump::of_this_tree());
        tracing::error!(stage, ?waited, open, dump, "nurseries are still open");
    });
}
