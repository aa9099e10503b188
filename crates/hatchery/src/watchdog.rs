//! The last resort of a process that is about to end and doesn't (H8): armed by the exit hook, or
//! earlier, by a program that knows what else is to come.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::copied::is_copy;
use crate::current::Actor;
use crate::lock::lock;
use crate::root;
use crate::runtime::{CLOSE_SLACK, WATCHDOG};
use crate::signal;

/// Says that this process is about to end with `status`: brings down what is still open, and arms the
/// watchdog ([`Builder::watchdog`](crate::Builder::watchdog)).
///
/// For the line before [`std::process::exit`], and for the end of a `main` that is not under
/// [`#[hatchery::main]`](macro@crate::main), which does it:
///
/// ```no_run
/// let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
/// // …
/// hatchery::arm_watchdog(0);
/// drop(tokio); // waits for its blocking tasks
/// ```
///
/// From here on the process ends, whatever it waits for: nurseries that are open are cancelled, and at
/// the end of the longest budget of the runtimes that are open, and the watchdog's own bound, the tree
/// is killed and the process left with `status`, or with 128 + signal if one has ended the tree. If no
/// runtime is open any more, the bound is the watchdog's alone. Without this call the watchdog of a
/// process that no signal ended is armed by an exit hook, and can't see what comes before that.
///
/// Does not block. Only the first call counts; a runtime that is opened later is not waited for. It
/// does nothing where the watchdog is switched off, or in an actor's process, which ends by its
/// spawner's bounds.
pub fn arm_watchdog(status: i32) {
    if is_copy() {
        return;
    }
    let roots = root::roots();
    if roots.is_empty() && crate::current::actor().is_some() {
        return;
    }
    for root in &roots {
        root.cancel_scopes();
    }
    arm(&roots, status);
}

/// Ends the process at the end of its bound if it is still there then, unless that is under way.
pub(crate) fn arm(roots: &[impl AsRef<Actor>], status: i32) {
    static ARMED: AtomicBool = AtomicBool::new(false);
    let inners = || roots.iter().map(|root| root.as_ref().runtime.clone());
    let bounds = inners().filter_map(|one| Some(one.config.budget + CLOSE_SLACK + one.watchdog?));
    let none_open = || if roots.is_empty() { *lock(&LAST) } else { None };
    let Some(bound) = bounds.max().or_else(none_open) else { return };
    if !ARMED.swap(true, Ordering::SeqCst) {
        signal::watch_exit(inners().collect(), status, Instant::now() + bound);
    }
}

/// Remembers what a runtime asks for, for a process that closes it before it ends.
pub(crate) fn asked_for(bound: Option<Duration>) {
    *lock(&LAST) = bound;
}

/// The bound of the runtime that was opened last.
static LAST: Mutex<Option<Duration>> = Mutex::new(Some(WATCHDOG));
