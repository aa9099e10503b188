//! The callee's side of calls: each is run once, or cancelled before it came (H27).
//!
//! A cancel travels ahead of queued data, so it may overtake the call it is for. Calls of one
//! connection come in the order of their numbers; a cancel with a number that has not come yet is
//! kept until it does.

use std::collections::{BTreeMap, HashMap};

use crate::id::CallId;
use crate::message::Reason;

/// The calls that one connection serves; `T` is how the driver reaches a running one.
#[derive(Debug)]
pub struct Served<T> {
    running: HashMap<CallId, T>,
    early: BTreeMap<CallId, Reason>,
    last: Option<CallId>,
}

/// What to do with a call that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Run it and [`Served::insert`] it.
    Run,
    /// Answer it with this: its cancel came first.
    Cancelled(Reason),
}

/// The caller's numbers go backwards, or it cancels what it has not made by the thousand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the numbers of calls don't grow, or too many are cancelled before they are made")]
pub struct OutOfOrder;

impl<T> Default for Served<T> {
    fn default() -> Self {
        Self { running: HashMap::new(), early: BTreeMap::new(), last: None }
    }
}

impl<T> Served<T> {
    /// A call has come.
    ///
    /// # Errors
    /// [`OutOfOrder`]: the connection must end (C15).
    pub fn admit(&mut self, call: CallId) -> Result<Admission, OutOfOrder> {
        if self.last.is_some_and(|last| call <= last) {
            return Err(OutOfOrder);
        }
        self.last = Some(call);
        Ok(self.early.remove(&call).map_or(Admission::Run, Admission::Cancelled))
    }

    /// An admitted call runs.
    pub fn insert(&mut self, call: CallId, running: T) {
        self.running.insert(call, running);
    }

    /// A running call.
    #[must_use]
    pub fn get(&self, call: CallId) -> Option<&T> {
        self.running.get(&call)
    }

    /// The caller no longer waits: the running call to cancel, if it came and still runs.
    ///
    /// # Errors
    /// [`OutOfOrder`]: too many cancels for calls that have not come.
    pub fn cancel(&mut self, call: CallId, reason: Reason) -> Result<Option<&mut T>, OutOfOrder> {
        if self.last.is_none_or(|last| call > last) {
            if self.early.len() >= MAX_EARLY {
                return Err(OutOfOrder);
            }
            self.early.insert(call, reason);
            return Ok(None);
        }
        Ok(self.running.get_mut(&call))
    }

    /// A call was answered.
    pub fn finished(&mut self, call: CallId) -> Option<T> {
        self.running.remove(&call)
    }

    /// How many run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Whether none runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// The connection is gone: everything that ran for it.
    pub fn take_all(&mut self) -> Vec<T> {
        std::mem::take(&mut self.running).into_values().collect()
    }
}

/// More than any honest caller queues before its first byte is read.
const MAX_EARLY: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ActorPath, Why};
    use proptest::prelude::*;

    fn reason() -> Reason {
        Reason { by: ActorPath::root(), why: Why::Dropped }
    }

    proptest! {
        /// H27: wherever the cancel comes in between, the call it is for is cancelled once.
        #[test]
        fn a_cancel_finds_its_call_wherever_it_comes(at in 0..8usize, call in 1..8u64) {
            let mut served = Served::default();
            let mut cancelled = 0;
            for step in 0..8usize {
                if step == at {
                    cancelled += usize::from(
                        served.cancel(CallId::new(call), reason()).unwrap().is_some());
                }
                let coming = CallId::new(step as u64 + 1);
                match served.admit(coming).unwrap() {
                    Admission::Run => served.insert(coming, ()),
                    Admission::Cancelled(_) => cancelled += 1,
                }
            }
            prop_assert_eq!(cancelled, 1);
        }
    }

    #[test]
    fn a_cancel_of_an_answered_call_is_harmless() {
        let mut served = Served::default();
        assert_eq!(served.admit(CallId::new(1)), Ok(Admission::Run));
        served.insert(CallId::new(1), ());
        assert_eq!(served.finished(CallId::new(1)), Some(()));
        assert_eq!(served.cancel(CallId::new(1), reason()), Ok(None));
    }

    #[test]
    fn numbers_that_go_backwards_are_refused() {
        let mut served = Served::<()>::default();
        assert_eq!(served.admit(CallId::new(2)), Ok(Admission::Run));
        assert_eq!(served.admit(CallId::new(2)), Err(OutOfOrder));
        assert_eq!(served.admit(CallId::new(1)), Err(OutOfOrder));
    }

    #[test]
    fn cancels_without_calls_are_bounded() {
        let mut served = Served::<()>::default();
        let refused = (1..=1 << 17).find(|n| served.cancel(CallId::new(*n), reason()).is_err());
        assert_eq!(refused, Some((1 << 16) + 1));
    }
}
