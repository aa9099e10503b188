//! The caller's side of calls: open, then exactly one of answered, withdrawn, lost (C4).

use std::collections::HashMap;

use crate::error::Fault;
use crate::id::CallId;

/// The open calls of one connection; `W` is how the driver reaches a caller.
#[derive(Debug)]
pub struct Calls<W> {
    open: HashMap<CallId, W>,
    next: u64,
    closed: Option<Box<Fault>>,
}

impl<W> Default for Calls<W> {
    fn default() -> Self {
        Self { open: HashMap::new(), next: 1, closed: None }
    }
}

impl<W> Calls<W> {
    /// Opens a call.
    ///
    /// # Errors
    /// The fault that closed the connection; the waiter is dropped.
    pub fn open(&mut self, waiter: W) -> Result<CallId, Box<Fault>> {
        self.open_with(|_| waiter)
    }

    /// The same for a waiter that knows its number.
    ///
    /// # Errors
    /// As [`Calls::open`].
    pub fn open_with(&mut self, waiter: impl FnOnce(CallId) -> W) -> Result<CallId, Box<Fault>> {
        if let Some(fault) = &self.closed {
            return Err(fault.clone());
        }
        let call = CallId::new(self.next);
        self.next += 1;
        self.open.insert(call, waiter(call));
        Ok(call)
    }

    /// A reply came: whom to give it to. `None` for a call that was withdrawn, or never made.
    pub fn answered(&mut self, call: CallId) -> Option<W> {
        self.open.remove(&call)
    }

    /// The caller went away; says whether the other side still has to be told.
    pub fn withdrawn(&mut self, call: CallId) -> bool {
        self.open.remove(&call).is_some()
    }

    /// The connection is closed: whom to tell. The first fault stays for calls to come.
    pub fn close(&mut self, fault: &Fault) -> Vec<W> {
        if self.closed.is_none() {
            self.closed = Some(Box::new(fault.clone()));
        }
        std::mem::take(&mut self.open).into_values().collect()
    }

    /// Who waits for that call.
    #[must_use]
    pub fn waiting(&self, call: CallId) -> Option<&W> {
        self.open.get(&call)
    }

    /// How many are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ActorPath, FaultKind};
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Event {
        Open,
        Answer(usize),
        Withdraw(usize),
        Close,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => Just(Event::Open),
            3 => (0..20usize).prop_map(Event::Answer),
            2 => (0..20usize).prop_map(Event::Withdraw),
            1 => Just(Event::Close),
        ]
    }

    proptest! {
        /// C4: whatever the order, every call has exactly one outcome.
        #[test]
        fn every_call_has_exactly_one_outcome(events in prop::collection::vec(event(), 0..60)) {
            let mut calls = Calls::<usize>::default();
            let (mut ids, mut outcomes) = (Vec::new(), Vec::<usize>::new());
            let fault = Fault::new(1, ActorPath::root(), FaultKind::Lost, "");
            for event in events {
                match event {
                    Event::Open => {
                        if let Ok(id) = calls.open(ids.len()) {
                            ids.push(id);
                            outcomes.push(0);
                        }
                    }
                    Event::Answer(at) => {
                        if let Some(waiter) = ids.get(at).and_then(|id| calls.answered(*id)) {
                            prop_assert_eq!(waiter, at);
                            outcomes[waiter] += 1;
                        }
                    }
                    Event::Withdraw(at) => {
                        if ids.get(at).is_some_and(|id| calls.withdrawn(*id)) {
                            outcomes[at] += 1;
                        }
                    }
                    Event::Close => {
                        for waiter in calls.close(&fault) {
                            outcomes[waiter] += 1;
                        }
                    }
                }
            }
            for waiter in calls.close(&fault) {
                outcomes[waiter] += 1;
            }
            prop_assert!(outcomes.iter().all(|outcomes| *outcomes == 1));
        }
    }
}
