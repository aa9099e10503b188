//! What the root has under way in others, and whether it may begin more: a drain closes the gate and
//! waits until all are through.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use hatchery_proto::Reason;
use tokio::sync::Notify;

use crate::copied::is_copy;

/// One root's gate.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// Twice the number of those inside, and one if it is closed: in one word, so that nobody slips in
    /// while it is closed and counted (H27).
    state: AtomicUsize,
    /// Why it is closed; set before it is.
    reason: OnceLock<Reason>,
    /// Rung by the last one that leaves a closed gate.
    empty: Notify,
}

impl Gate {
    /// Counts one that begins, until the pass is dropped; or says why it may not.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Pass, Reason> {
        let pass = Pass { gate: self.clone() };
        if self.state.fetch_add(ONE, Ordering::SeqCst) & CLOSED == 0 {
            return Ok(pass);
        }
        drop(pass);
        Err(self.reason.get().cloned().expect("the reason is set before the gate is closed"))
    }

    /// Nobody enters any more.
    pub(crate) fn close(&self, reason: Reason) {
        // The first reason stays.
        let _first = self.reason.set(reason);
        self.state.fetch_or(CLOSED, Ordering::SeqCst);
    }

    /// How many are inside.
    pub(crate) fn inside(&self) -> usize {
        self.state.load(Ordering::SeqCst) / ONE
    }

    /// Waits until nobody is inside of a closed gate. Ended by those who are.
    pub(crate) async fn empty(&self) {
        loop {
            let rung = self.empty.notified();
            tokio::pin!(rung);
            // From here on no ring is missed.
            rung.as_mut().enable();
            if self.inside() == 0 {
                return;
            }
            rung.await;
        }
    }
}

/// One that is inside.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        if is_copy() {
            return;
        }
        if self.gate.state.fetch_sub(ONE, Ordering::SeqCst) == ONE | CLOSED {
            self.gate.empty.notify_waiters();
        }
    }
}

const CLOSED: usize = 1;
const ONE: usize = 2;

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use hatchery_proto::{ActorPath, Why};

    use super::*;

    /// Nobody slips in once it is closed, and the last one out ends the wait.
    #[test]
    fn a_closed_gate_lets_out_and_not_in() {
        let gate = Arc::new(Gate::default());
        let (one, two) = (gate.enter().unwrap(), gate.enter().unwrap());
        let reason = Reason { by: ActorPath::root(), why: Why::Draining };
        gate.close(reason.clone());
        assert_eq!(gate.enter().unwrap_err(), reason);
        assert_eq!(gate.inside(), 2);
        let mut empty = pin!(gate.empty());
        let mut context = Context::from_waker(Waker::noop());
        assert!(empty.as_mut().poll(&mut context).is_pending());
        drop(one);
        assert!(empty.as_mut().poll(&mut context).is_pending());
        drop(two);
        assert!(empty.as_mut().poll(&mut context).is_ready());
    }
}
