//! Which actor this code runs in, and what that actor has to finish before it may leave.
//!
//! A process has one actor, but for thread actors, which have their own OS threads, and for roots, of
//! which there may be several: a thread's own actor comes first, then the one whose nursery's body is
//! being polled, then the process's, the root last.
//!
//! Lock order: the process's own actor before `Actor::inside`; a scope's machine before `Actor::inside`,
//! never the other way round.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hatchery_proto::board::{Kind, State, What};
use hatchery_proto::{ActorPath, Fault, FaultKind, Past, Reason, Report, ToParent, Why};
use tokio::sync::watch;

use crate::board::{Entry, Mark};
use crate::clock;
use crate::copied::is_copy;
use crate::drive::door::Reception;
use crate::drive::gate::Gate;
use crate::drive::scope::Core;
use crate::drive::writer::{Outbox, Priority};
use crate::lock::lock;
use crate::runtime::Inner;

mod own;

pub(crate) use own::{
    Entered, actor, close_process, enter_process, enter_thread, entered, leave_process,
    leave_thread, within,
};

/// One actor, as its own code sees it.
pub(crate) struct Actor {
    pub(crate) path: ActorPath,
    pub(crate) runtime: Arc<Inner>,
    /// The way to the spawner; the root has none.
    pub(crate) parent: Option<Arc<Outbox>>,
    /// Set once when the actor begins to go down. Watched by calls, shields and the main loop.
    cancel: watch::Sender<Option<Cancelling>>,
    /// Tasks and scopes the actor waits for before it leaves.
    busy: watch::Sender<usize>,
    inside: Mutex<Inside>,
    /// What it writes down for who asks why it hangs.
    pub(crate) mark: Mark,
    /// Where peers come in.
    pub(crate) door: Arc<Reception>,
    /// What a root begins passes it; an actor that others call for begins what they need.
    pub(crate) gate: Option<Arc<Gate>>,
    /// That the root drains: told to its own code.
    farewell: watch::Sender<Option<Reason>>,
}

/// That an actor goes down: why, and when it must be gone.
#[derive(Debug, Clone)]
pub(crate) struct Cancelling {
    pub(crate) reason: Reason,
    pub(crate) until: Instant,
}

/// That a root opens no scope any more.
#[derive(Debug, Clone)]
struct Closing {
    reason: Reason,
    /// Whoever was let in before may still open his.
    guests_may: bool,
}

#[derive(Default)]
struct Inside {
    scopes: Vec<Arc<Core>>,
    closing: Option<Closing>,
    line: Option<Entry>,
    /// What scopes found out that nobody waited for any more: goes up with the actor's end.
    faults: Vec<Fault>,
    /// How many more there were than are kept (C21).
    more_faults: u64,
    reports: Past,
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Actor").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Actor {
    pub(crate) fn new(path: ActorPath, runtime: Arc<Inner>, parent: Option<Arc<Outbox>>) -> Self {
        let (cancel, _) = watch::channel(None);
        let (busy, _) = watch::channel(0);
        let (mark, door) = (Mark::new(&runtime.board), Arc::default());
        let gate = parent.is_none().then(Arc::default);
        let (farewell, _) = watch::channel(None);
        let inside = Mutex::default();
        Self { path, runtime, parent, cancel, busy, inside, mark, door, gate, farewell }
    }

    /// Writes down that it lives.
    pub(crate) fn born(&self) {
        let line = self.mark.enter(Kind::Actor, 0, self.path.as_str(), "");
        self.mark.happened(What::Born, self.path.as_str());
        lock(&self.inside).line = Some(line);
    }

    /// Writes down how far it is on its way down.
    pub(crate) fn stage(&self, what: What) {
        self.mark.happened(what, "");
        let until = self.cancelling().map(|cancelling| clock::shared(clock::at(cancelling.until)));
        if let (What::Leaving, Some(line)) = (what, &lock(&self.inside).line) {
            line.set(State::Leaving, until, 0);
        }
    }

    /// Begins to go down, or hurries if it does already: every open scope is cancelled, every
    /// call is dropped. The first reason stays, the nearest end counts.
    pub(crate) fn cancel(&self, reason: Reason, budget: Duration) {
        if is_copy() {
            return;
        }
        let until = Instant::now() + budget;
        let scopes = {
            let inside = lock(&self.inside);
            self.cancel.send_modify(|cancelling| match cancelling {
                None => *cancelling = Some(Cancelling { reason: reason.clone(), until }),
                Some(earlier) => earlier.until = earlier.until.min(until),
            });
            if let Some(line) = &inside.line {
                line.set(State::Cancelled, Some(clock::shared(clock::at(until))), 0);
            }
            inside.scopes.clone()
        };
        self.mark.happened(What::Cancelled, &reason.to_string());
        for scope in scopes {
            scope.cancel(reason.clone(), budget);
        }
    }

    /// Cancels the actor at `path`, in whichever scope it or the way to it is.
    pub(crate) fn cancel_below(&self, path: &ActorPath, reason: &Reason) {
        let scopes = lock(&self.inside).scopes.clone();
        for scope in scopes {
            scope.cancel_below(path, reason);
        }
    }

    /// The going down, once it has begun.
    pub(crate) fn cancelling(&self) -> Option<Cancelling> {
        self.cancel.borrow().clone()
    }

    /// Waits until the actor begins to go down. Ended by `cancel`, which the spawner's cancel,
    /// its death and SIGTERM all lead to.
    pub(crate) async fn cancelled(&self) -> Cancelling {
        let mut cancel = self.cancel.subscribe();
        let seen = cancel.wait_for(Option::is_some).await.map(|cancelling| cancelling.clone());
        seen.ok().flatten().expect("the sender lives in the actor that is borrowed here")
    }

    /// Publishes a scope and asks whether the actor is going down, as one step (H27).
    pub(crate) fn open_scope(&self, scope: &Arc<Core>) -> Result<(), Reason> {
        let mut inside = lock(&self.inside);
        if let Some(cancelling) = &*self.cancel.borrow() {
            return Err(cancelling.reason.clone());
        }
        if let Some(closing) = &inside.closing
            && !(closing.guests_may && scope.is_guest)
        {
            return Err(closing.reason.clone());
        }
        inside.scopes.push(scope.clone());
        self.busy.send_modify(|busy| *busy += 1);
        Ok(())
    }

    /// A scope has finished; what it reports is kept for the actor's own end.
    pub(crate) fn close_scope(&self, scope: &Core, report: &Report) {
        {
            let mut inside = lock(&self.inside);
            inside.scopes.retain(|other| !std::ptr::eq(Arc::as_ptr(other), scope));
            if self.parent.is_some() {
                // It may open and close them for ever (C21).
                let most = self.runtime.config.report_tail_actors;
                report.actors.iter().for_each(|one| inside.reports.push(one.clone(), most));
                inside.reports.drop_unseen(report.dropped);
            }
        }
        self.busy.send_modify(|busy| *busy -= 1);
    }

    /// Keeps what a scope found and nobody waited for, as one that is waited for hands it up: what
    /// was below this actor stands below it.
    pub(crate) fn leave_behind(&self, faults: Vec<Fault>) {
        let Some(fault) = Fault::group(fault_id(), self.path.clone(), faults) else { return };
        let mut inside = lock(&self.inside);
        if inside.faults.len() < self.runtime.config.report_tail_actors.max(1) {
            inside.faults.push(fault);
        } else {
            inside.more_faults += 1;
        }
    }

    /// Takes what is to be told to the spawner at the end.
    pub(crate) fn take_left(&self) -> (Vec<Fault>, Past) {
        let mut inside = lock(&self.inside);
        let mut faults = std::mem::take(&mut inside.faults);
        let more = std::mem::take(&mut inside.more_faults);
        if more > 0 {
            let message =
                format!("{more} more nurseries that nobody waited for failed after these");
            faults.push(Fault::new(fault_id(), self.path.clone(), FaultKind::Failed, message));
        }
        (faults, std::mem::take(&mut inside.reports))
    }

    /// Counts a task that the actor waits for before it leaves, until the guard is dropped.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        // Nobody waits for more.
        self.busy.send_if_modified(|busy| {
            *busy += 1;
            false
        });
        Busy { actor: self.clone() }
    }

    /// Waits until no call, shield or scope is left. Calls end by the cancel, scopes by their
    /// budget, shields by themselves or by the spawner's ladder (C2).
    pub(crate) async fn quiet(&self) {
        let mut busy = self.busy.subscribe();
        // The sender lives in `self`, so waiting can't fail.
        let _quiet = busy.wait_for(|busy| *busy == 0).await;
    }

    /// The number of scopes that are open or coming down.
    pub(crate) fn open_scopes(&self) -> usize {
        if is_copy() {
            return 0;
        }
        lock(&self.inside).scopes.len()
    }

    /// Waits until every scope has finished. Ended by their budgets (C2).
    pub(crate) async fn scopes_closed(&self) {
        let mut busy = self.busy.subscribe();
        let _closed = busy.wait_for(|_| self.open_scopes() == 0).await;
    }

    /// The same of those that are no guests'.
    pub(crate) async fn own_scopes_closed(&self) {
        let mut busy = self.busy.subscribe();
        let is_own = |scope: &Arc<Core>| !scope.is_guest;
        let _closed = busy.wait_for(|_| !lock(&self.inside).scopes.iter().any(is_own)).await;
    }

    /// Cancels the scopes that are still open at the end of a runtime.
    pub(crate) fn cancel_scopes(&self) {
        if self.open_scopes() > 0 {
            self.cancel(self.dropped(), self.runtime.config.budget);
        }
    }

    /// The same of those that are no guests', while there are some of those.
    pub(crate) fn cancel_own_scopes(&self) {
        let scopes = lock(&self.inside).scopes.clone();
        for scope in scopes.iter().filter(|scope| !scope.is_guest) {
            scope.cancel(self.dropped(), self.runtime.config.budget);
        }
    }

    fn dropped(&self) -> Reason {
        Reason { by: self.path.clone(), why: Why::Dropped }
    }

    /// Begins nothing new from here on; says whether it is still open.
    pub(crate) fn refuse_new(&self, reason: Reason) -> bool {
        let mut inside = lock(&self.inside);
        let is_open = inside.closing.as_ref().is_none_or(|one| one.reason.why == Why::Draining);
        if is_open {
            inside.closing = Some(Closing { reason: reason.clone(), guests_may: false });
            if let Some(gate) = &self.gate {
                gate.close(reason);
            }
        }
        is_open
    }

    /// The process ends: nobody opens a scope any more.
    pub(crate) fn refuse_all(&self) {
        lock(&self.inside).closing = Some(Closing { reason: self.closed(), guests_may: false });
    }

    fn closed(&self) -> Reason {
        Reason { by: self.path.clone(), why: Why::Closed }
    }

    /// Waits until what is under way has finished, then tells the root's own code that it drains, and waits
    /// for that. Ended by both, or dropped at the drain's bound.
    pub(crate) async fn drained(&self, reason: Reason) {
        if let Some(gate) = &self.gate {
            gate.empty().await;
        }
        self.farewell.send_replace(Some(reason));
        self.quiet().await;
    }

    /// How much of that there is.
    pub(crate) fn under_way(&self) -> usize {
        self.gate.as_ref().map_or(0, |gate| gate.inside()) + self.open_scopes()
    }

    /// Waits until the actor is to go: it is cancelled, or it is a root and drains.
    async fn asked_to_go(&self) -> Reason {
        let mut farewell = self.farewell.subscribe();
        tokio::select! {
            cancelling = self.cancelled() => cancelling.reason,
            Ok(told) = farewell.wait_for(Option::is_some) => {
                told.clone().unwrap_or_else(|| self.closed())
            }
        }
    }
}

/// Something the actor waits for.
#[derive(Debug)]
pub(crate) struct Busy {
    actor: Arc<Actor>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        if is_copy() {
            return;
        }
        let all = &self.actor.busy;
        // This comes with every call, and hardly ever does anybody wait. Who begins to from here on looks
        // first, and finds what this leaves: the lock is held.
        all.send_if_modified(|busy| {
            *busy -= 1;
            *busy == 0 && all.receiver_count() > 0
        });
    }
}

/// The path of the actor this code runs in; the root's outside of any runtime.
#[must_use]
pub fn path() -> ActorPath {
    actor().map_or_else(ActorPath::root, |actor| actor.path.clone())
}

/// Waits until the actor this code runs in is asked to go down, and says why.
///
/// For functions that want to end in their own way; without it they are dropped at their next
/// await. In the root it also says that the runtime drains ([`Runtime::drain`](crate::Runtime::drain)):
/// in the body of a nursery the one that this was opened in, in other tasks the process's own. Outside of
/// any runtime it waits for ever.
///
/// # Cancel safety
/// Dropping the future loses nothing; the next call sees the same.
pub async fn cancelled() -> Reason {
    match actor() {
        Some(actor) => actor.asked_to_go().await,
        None => std::future::pending().await,
    }
}

/// Runs `future` to its end even if the calling task is cancelled meanwhile.
///
/// The actor stays until it is done; who cuts it short is the spawner, when the budget is spent:
/// a process is killed, a thread is abandoned (C2, C5). For clean-ups that must await.
///
/// # Panics
/// Panics where `future` panics, and outside of a tokio runtime.
///
/// # Cancel safety
/// Dropping the returned future does not stop `future`; its value is lost then.
pub async fn shield<F>(future: F) -> F::Output
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let busy = actor().map(|actor| actor.busy());
    let task = tokio::spawn(async move {
        let output = future.await;
        drop(busy);
        output
    });
    match task.await {
        Ok(output) => output,
        Err(error) => match error.try_into_panic() {
            Ok(payload) => std::panic::resume_unwind(payload),
            // The runtime is being dropped; whoever awaits here is dropped with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Asks the actor this code runs in to go down, gracefully, with its whole subtree.
///
/// In the root that cancels every open nursery: of the runtime that the body of the nursery belongs to which
/// this is called in, or else of the process's own. The calls it serves end as cancelled by itself.
pub fn cancel_self() {
    if let Some(actor) = actor() {
        let budget = actor.runtime.config.budget;
        actor.cancel(Reason { by: actor.path.clone(), why: Why::Requested }, budget);
    }
}

/// Asks the actor that spawned this one to go down, and so, in the end, this one too.
///
/// Says whether there was a parent with a living channel to ask.
#[must_use]
pub fn cancel_parent() -> bool {
    let Some(actor) = actor() else { return false };
    let Some(parent) = &actor.parent else { return false };
    let reason = Reason { by: actor.path.clone(), why: Why::Requested };
    parent.push(Priority::Control, &ToParent::CancelParent { reason }).is_ok()
}

/// A fault of the actor this code runs in.
pub(crate) fn fault(kind: FaultKind, message: String) -> Fault {
    Fault::new(fault_id(), path(), kind, message)
}

/// A number that no other fault of the tree has, to tell one fault that came by two roads.
pub(crate) fn fault_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    (u64::from(std::process::id()) << 32) | NEXT.fetch_add(1, Ordering::Relaxed)
}
