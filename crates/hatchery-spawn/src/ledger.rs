//! The threads that were given up on (C5).

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::notice;

/// A thread that did not end in time and is never waited for again.
#[derive(Debug, Clone)]
pub struct Abandoned {
    /// Its name.
    pub name: String,
    /// Where it stands in its tree; its name again if nobody said.
    pub path: String,
    /// Since when it is given up on.
    pub since: Instant,
    /// Why it was given up on, and what it was doing then, as far as was known: whether it ran, or
    /// where in the kernel it slept.
    pub last_state: String,
}

/// All abandoned threads of one runtime that still run. One that ends by itself is forgotten.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    entries: Arc<Mutex<Vec<Entry>>>,
}

/// Of whom an entry is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who<'a> {
    pub(crate) name: &'a str,
    pub(crate) path: &'a str,
}

#[derive(Debug, Clone)]
struct Entry {
    number: u64,
    shown: Abandoned,
    /// Where the kernel shows the thread, if its own end doesn't take it out of here.
    task: Option<PathBuf>,
}

impl Ledger {
    /// Who is abandoned now.
    #[must_use]
    pub fn list(&self) -> Vec<Abandoned> {
        let mut entries = self.lock();
        entries.retain(|entry| entry.task.as_ref().is_none_or(|task| task.exists()));
        entries.iter().map(|entry| entry.shown.clone()).collect()
    }

    pub(crate) fn enter(&self, number: u64, who: Who<'_>, last_state: &str, task: Option<PathBuf>) {
        let (name, path) = (who.name.to_owned(), who.path.to_owned());
        let last_state = last_state.to_owned();
        let shown = Abandoned { name, path, since: Instant::now(), last_state };
        self.lock().push(Entry { number, shown: shown.clone(), task });
        notice::post(move || {
            let Abandoned { name, path, last_state, .. } = shown;
            tracing::warn!(name, path, last_state, "thread abandoned");
        });
    }

    pub(crate) fn forget(&self, number: u64) {
        self.lock().retain(|entry| entry.number != number);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
