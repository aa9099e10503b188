//! Where the tasks of a connection run: in the runtime of whoever made it, as long as nobody else needs
//! them; then on a thread of our own, for good.
//!
//! A connection is used from any runtime, and that of its maker may be blocked or gone. So its tasks can be
//! taken over: each stands in a cell that one driver at a time polls. A driver that finds its task taken
//! ends.
//!
//! Lock order: `tasks`, then a task's `work`; neither is held while somebody is woken. `work` is held while
//! its future runs, and never waited for.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError, Weak};
use std::task::{Context, Poll, Waker};

use tokio::runtime::{Handle, Id};

use crate::copied::is_copy;
use crate::lock::lock;
use crate::runtime::Inner;

/// The home of one connection's tasks.
#[derive(Debug)]
pub(crate) struct Home {
    place: Arc<Place>,
    tasks: Mutex<Vec<Arc<Task>>>,
    runtime: Weak<Inner>,
}

/// Which runtime a connection was made in, and whether it is still there.
#[derive(Debug)]
pub(crate) struct Place {
    /// `None`: in no runtime of tokio's.
    id: Option<Id>,
    moved: AtomicBool,
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Task {
    /// `None` when it has ended.
    work: Mutex<Option<Work>>,
    /// Who takes it over, while the one before is still at it.
    next: Mutex<Option<Waker>>,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}

/// The runtime of whoever calls.
fn here() -> Option<Id> {
    Handle::try_current().ok().map(|handle| handle.id())
}

impl Place {
    /// The runtime of whoever calls.
    pub(crate) fn here() -> Arc<Self> {
        Arc::new(Self { id: here(), moved: AtomicBool::new(false) })
    }

    /// Whether whoever asks polls elsewhere than where it was made. Cheap while nothing was moved.
    pub(crate) fn is_away(&self) -> bool {
        self.moved.load(Ordering::Acquire) && here() != self.id
    }
}

impl Home {
    /// `runtime` has the thread that takes the tasks over.
    pub(crate) fn new(place: Arc<Place>, runtime: &Arc<Inner>) -> Arc<Self> {
        Arc::new(Self { place, tasks: Mutex::default(), runtime: Arc::downgrade(runtime) })
    }

    /// The home of a task that belongs to no connection, and reads from this one.
    pub(crate) fn beside(&self) -> Arc<Self> {
        let runtime = self.runtime.clone();
        Arc::new(Self { place: Place::here(), tasks: Mutex::default(), runtime })
    }

    /// Runs a task of the connection here, until it is needed elsewhere.
    pub(crate) fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let task =
            Arc::new(Task { work: Mutex::new(Some(Box::pin(work))), next: Mutex::default() });
        lock(&self.tasks).push(task.clone());
        tokio::spawn(Driver { home: self.clone(), task, is_moved: false });
    }

    /// Somebody uses the connection: if that is in another runtime, its tasks are taken over.
    pub(crate) fn visited(self: &Arc<Self>) {
        if !self.has_moved() && here() != self.place.id {
            self.take_over();
        }
    }

    fn has_moved(&self) -> bool {
        self.place.moved.load(Ordering::Acquire)
    }

    /// From here on the tasks run on our own thread. Without one to be had they stay where they are, and
    /// the next visitor tries again.
    fn take_over(self: &Arc<Self>) {
        if is_copy() {
            return;
        }
        let mut tasks = lock(&self.tasks);
        if self.has_moved() {
            return;
        }
        let refuge = self.runtime.upgrade().map(|runtime| runtime.refuge());
        let Some(Ok(refuge)) = refuge else { return };
        self.place.moved.store(true, Ordering::Release);
        for task in tasks.drain(..) {
            drop(refuge.spawn(Driver { home: self.clone(), task, is_moved: true }));
        }
    }
}

/// Polls one task, in one runtime.
struct Driver {
    home: Arc<Home>,
    task: Arc<Task>,
    is_moved: bool,
}

impl Driver {
    /// Polls it, unless another driver is at it right now.
    fn poll_work(&self, cx: &mut Context<'_>) -> Option<Poll<()>> {
        let mut place = match self.task.work.try_lock() {
            Ok(place) => place,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        // Taken out: one that panics is dropped, and not polled again.
        let Some(mut work) = place.take() else { return Some(Poll::Ready(())) };
        let polled = work.as_mut().poll(cx);
        if polled.is_pending() {
            *place = Some(work);
        }
        Some(polled)
    }

    /// Whoever has taken it over has its turn.
    fn hand_on(&self) {
        let next = lock(&self.task.next).take();
        next.into_iter().for_each(Waker::wake);
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_moved {
            if self.home.has_moved() {
                return Poll::Ready(());
            }
            let polled = self.poll_work(cx).unwrap_or(Poll::Pending);
            if self.home.has_moved() {
                self.hand_on();
            }
            return polled;
        }
        if let Some(polled) = self.poll_work(cx) {
            return polled;
        }
        // First the waker, then once more: the other one looks for it when it is done.
        *lock(&self.task.next) = Some(cx.waker().clone());
        self.poll_work(cx).unwrap_or(Poll::Pending)
    }
}

impl Drop for Driver {
    /// Its runtime is dropped: the task goes on elsewhere, and ends here only if there is no such place.
    fn drop(&mut self) {
        if is_copy() {
            return;
        }
        if !self.is_moved {
            let is_over = self.task.work.try_lock().is_ok_and(|work| work.is_none());
            if is_over || self.home.has_moved() {
                return;
            }
            self.home.take_over();
            if self.home.has_moved() {
                return;
            }
        }
        let work = self.task.work.try_lock().ok().and_then(|mut work| work.take());
        drop(work);
    }
}
