//! Whose code runs: a thread's own actor, the root whose nursery's body is being polled, or the process's own.
//!
//! Lock order: the process's own actor before `Actor::inside`.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, Weak};

use super::{Actor, Closing};
use crate::copied::is_copy;
use crate::lock::lock;
use crate::root::House;

thread_local! {
    /// A thread actor's for its whole life; else that of the nursery whose body is polled here and now.
    static THREADS: RefCell<Option<Entered>> = const { RefCell::new(None) };
}

static PROCESS: Mutex<Option<Own>> = Mutex::new(None);

/// The process's own actor.
struct Own {
    actor: Arc<Actor>,
    /// If it is a root.
    house: Weak<House>,
}

/// The actor that code is in, and what keeps it open for that long if it is a root that others may close.
#[derive(Debug, Clone)]
pub(crate) struct Entered {
    pub(crate) actor: Arc<Actor>,
    pub(crate) guest: Option<Arc<House>>,
}

/// Makes `actor` the calling thread's own.
pub(crate) fn enter_thread(actor: Arc<Actor>) {
    THREADS.with(|slot| *slot.borrow_mut() = Some(Entered { actor, guest: None }));
}

/// The calling thread has no actor of its own any more.
pub(crate) fn leave_thread() {
    THREADS.with(|slot| slot.borrow_mut().take());
}

/// Runs code that belongs to an actor: what asks where it is finds that one. Several roots may be in one
/// process, and a body belongs to the root that it was opened in, whichever is the process's own.
pub(crate) fn within<T>(entered: &Entered, run: impl FnOnce() -> T) -> T {
    /// Puts back what was there before, also when a user's code panics.
    struct Before(Option<Entered>);
    impl Drop for Before {
        fn drop(&mut self) {
            let before = self.0.take();
            let within = THREADS.try_with(|slot| slot.replace(before));
            drop(within);
        }
    }
    // A thread that is ending has no slot any more; then it is in the process's own.
    let before = THREADS.try_with(|slot| slot.replace(Some(entered.clone())));
    let _before = before.ok().map(Before);
    run()
}

/// Makes `actor` the process's own, if it has none. `house` if it is a root.
pub(crate) fn enter_process(actor: &Arc<Actor>, house: Weak<House>) {
    let mut process = lock(&PROCESS);
    if process.is_none() {
        *process = Some(Own { actor: actor.clone(), house });
    }
}

/// The process has no actor any more, if it was this one.
pub(crate) fn leave_process(actor: &Arc<Actor>) {
    let mut process = lock(&PROCESS);
    if process.as_ref().is_some_and(|own| Arc::ptr_eq(&own.actor, actor)) {
        *process = None;
    }
}

/// The same for a root that closes: in one step with that it opens nothing any more, so that whoever has
/// found it here before is let in, and nobody finds it later.
pub(crate) fn close_process(root: &Arc<Actor>) {
    let mut process = lock(&PROCESS);
    {
        let mut inside = lock(&root.inside);
        let guests_may = inside.closing.as_ref().is_none_or(|closing| closing.guests_may);
        inside.closing = Some(Closing { reason: root.closed(), guests_may });
    }
    if process.as_ref().is_some_and(|own| Arc::ptr_eq(&own.actor, root)) {
        *process = None;
    }
}

/// The actor this code runs in, if a runtime is open.
pub(crate) fn actor() -> Option<Arc<Actor>> {
    // Before the lock.
    if is_copy() {
        return None;
    }
    let own = || lock(&PROCESS).as_ref().map(|own| own.actor.clone());
    threads(|entered| entered.actor.clone()).or_else(own)
}

/// The same, to open a scope in it.
pub(crate) fn entered() -> Option<Entered> {
    if is_copy() {
        return None;
    }
    if let Some(entered) = threads(Entered::clone) {
        return Some(entered);
    }
    let process = lock(&PROCESS);
    let own = process.as_ref()?;
    let guest = own.house.upgrade();
    if guest.is_none() && own.actor.parent.is_none() {
        // It is being closed by its last guest.
        return None;
    }
    Some(Entered { actor: own.actor.clone(), guest })
}

fn threads<T>(of: impl FnOnce(&Entered) -> T) -> Option<T> {
    THREADS.try_with(|slot| slot.borrow().as_ref().map(of)).ok().flatten()
}
