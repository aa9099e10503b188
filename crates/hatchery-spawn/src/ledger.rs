//! The threads that were given up on (C5).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A thread that did not end in time and is never waited for again.
#[derive(Debug, Clone)]
pub struct Abandoned {
    /// Its name.
    pub name: String,
    /// Since when it is given up on.
    pub since: Instant,
    /// What it was doing then, as far as was known.
    pub last_state: String,
}

/// All abandoned threads of one runtime that still run. One that ends by itself is forgotten.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    entries: Arc<Mutex<Vec<(u64, Abandoned)>>>,
}

impl Ledger {
    /// Who is abandoned now.
    #[must_use]
    pub fn list(&self) -> Vec<Abandoned> {
        self.lock().iter().map(|(_, entry)| entry.clone()).collect()
    }

    pub(crate) fn enter(&self, number: u64, name: &str, last_state: &str) {
        let (name, last_state) = (name.to_owned(), last_state.to_owned());
        tracing::warn!(name, last_state, "thread abandoned");
        self.lock().push((number, Abandoned { name, since: Instant::now(), last_state }));
    }

    pub(crate) fn forget(&self, number: u64) {
        self.lock().retain(|(other, _)| *other != number);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u64, Abandoned)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
