//! What a signal on a process does to the trees that have their roots in it (C6, C19).
//!
//! Any number of roots come and go, in any order. A first signal takes all those down that want that,
//! side by side; a second one, or the end of the longest budget, kills what is left of them and ends the
//! process. A root that only wants to be told is told of each signal, and while there is one its program
//! decides when the process ends: the others come down, and are killed in time, and that is all.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::Time;

/// One root of a tree in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootId(pub u64);

/// What a signal shall do to a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wish {
    /// Take its tree down, and end the process.
    TakeDown {
        /// What the teardown may take.
        budget: Duration,
        /// What the process may take to end after it; for ever if `None`.
        watchdog: Option<Duration>,
    },
    /// Tell it.
    Notify,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A runtime is open.
    Opened(RootId, Wish),
    /// A runtime is closed; its tree is down.
    Closed(RootId),
    /// A signal that ends programs has come.
    Signal(i32),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Take these trees down, side by side.
    TakeDown {
        /// Whose.
        roots: Vec<RootId>,
        /// By which signal.
        signal: i32,
        /// If nothing is open in any of them, the process ends at once.
        ends: bool,
    },
    /// Tell this root of the signal.
    Tell(RootId, i32),
    /// Kill what is left of this tree.
    Kill(RootId),
    /// Kill what is left of all trees and end the process, by the signal that began it.
    End(i32),
    /// Nobody is left to be told: the signals are given back.
    Stop,
}

/// What has come of a signal for one root that it takes down while the process goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Down {
    No,
    Until(Time),
    Killed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Root {
    wish: Wish,
    down: Down,
}

/// That the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ending {
    signal: i32,
    until: Time,
    /// What it may take once all trees are down.
    watchdog: Option<Duration>,
    /// The last runtime was closed.
    is_last: bool,
}

/// All roots of a process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Signals {
    roots: BTreeMap<RootId, Root>,
    ending: Option<Ending>,
}

impl Signals {
    /// Nobody yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { roots: BTreeMap::new(), ending: None }
    }

    /// Whether there is a root, or the process is to end.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        !self.roots.is_empty() || self.ending.is_some_and(|ending| ending.is_last)
    }

    /// The signal that ends the process, once one does.
    #[must_use]
    pub fn ending(&self) -> Option<i32> {
        self.ending.map(|ending| ending.signal)
    }

    /// When [`Signals::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let of_root = |root: &Root| match root.down {
            Down::Until(until) => Some(until),
            Down::No | Down::Killed => None,
        };
        let roots = self.roots.values().filter_map(of_root);
        roots.chain(self.ending.map(|ending| ending.until)).min()
    }

    /// Takes an event.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        match event {
            Event::Opened(id, wish) => self.opened(id, wish),
            Event::Closed(id) => self.closed(id),
            Event::Signal(signal) => self.signal(signal, now),
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) -> Vec<Action> {
        if let Some(ending) = self.ending.filter(|ending| ending.until <= now) {
            return vec![Action::End(ending.signal)];
        }
        let mut actions = Vec::new();
        for (id, root) in &mut self.roots {
            if matches!(root.down, Down::Until(until) if until <= now) {
                root.down = Down::Killed;
                actions.push(Action::Kill(*id));
            }
        }
        actions
    }

    /// One that is opened while the process ends learns of it at once.
    fn opened(&mut self, id: RootId, wish: Wish) -> Vec<Action> {
        self.roots.insert(id, Root { wish, down: Down::No });
        let Some(Ending { signal, .. }) = self.ending else { return Vec::new() };
        match wish {
            Wish::TakeDown { .. } => {
                vec![Action::TakeDown { roots: vec![id], signal, ends: false }]
            }
            Wish::Notify => vec![Action::Tell(id, signal)],
        }
    }

    fn closed(&mut self, id: RootId) -> Vec<Action> {
        if self.roots.remove(&id).is_none() || !self.roots.is_empty() {
            return Vec::new();
        }
        match &mut self.ending {
            None => vec![Action::Stop],
            // All are down, and the program ends by itself; or it doesn't.
            Some(Ending { is_last: true, .. }) => Vec::new(),
            Some(ending) => match ending.watchdog {
                Some(watchdog) => {
                    (ending.until, ending.is_last) = (ending.until + watchdog, true);
                    Vec::new()
                }
                None => {
                    self.ending = None;
                    vec![Action::Stop]
                }
            },
        }
    }

    fn signal(&mut self, signal: i32, now: Time) -> Vec<Action> {
        if let Some(ending) = self.ending {
            return vec![Action::End(ending.signal)];
        }
        let mut actions = Vec::new();
        let (mut roots, mut longest, mut dog, mut goes_on) = (Vec::new(), None, None, false);
        for (id, root) in &mut self.roots {
            match (root.wish, root.down) {
                (Wish::Notify, _) => {
                    goes_on = true;
                    actions.push(Action::Tell(*id, signal));
                }
                (Wish::TakeDown { budget, watchdog }, Down::No) => {
                    root.down = Down::Until(now + budget);
                    (longest, dog) = (longest.max(Some(budget)), dog.max(watchdog));
                    roots.push(*id);
                }
                (Wish::TakeDown { watchdog, .. }, Down::Until(_) | Down::Killed) => {
                    root.down = Down::Killed;
                    dog = dog.max(watchdog);
                    actions.push(Action::Kill(*id));
                }
            }
        }
        if !goes_on && !self.roots.is_empty() {
            let Some(budget) = longest else { return vec![Action::End(signal)] };
            self.ending =
                Some(Ending { signal, until: now + budget, watchdog: dog, is_last: false });
            self.roots.values_mut().for_each(|root| root.down = Down::No);
        }
        if !roots.is_empty() {
            actions.push(Action::TakeDown { roots, signal, ends: !goes_on });
        }
        actions
    }
}
