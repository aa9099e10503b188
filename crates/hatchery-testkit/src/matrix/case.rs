//! One case, and which of them are selected.

use nix::sys::resource::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use super::axis::{Backend, Trigger};

/// One tree and what ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// How actors are brought to life.
    pub backend: Backend,
    /// Levels below the root.
    pub depth: u32,
    /// Children of each actor that has some.
    pub breadth: u32,
    /// What ends it.
    pub trigger: Trigger,
}

/// Which cases to run: every combination of the values.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Backends.
    pub backends: Vec<Backend>,
    /// Depths.
    pub depths: Vec<u32>,
    /// Breadths.
    pub breadths: Vec<u32>,
    /// Triggers.
    pub triggers: Vec<Trigger>,
    /// Only ids that contain this.
    pub filter: Option<String>,
}

/// A tree that this machine can't hold. Found before anything is started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a tree of depth {depth} and breadth {breadth} has {actors} actors, over the limit of {limit} ({what}); choose a smaller one or raise the limit"
)]
pub struct Impossible {
    /// Levels.
    pub depth: u32,
    /// Children of each.
    pub breadth: u32,
    /// How many that would be; `u64::MAX` if it can't be counted.
    pub actors: u64,
    /// How many there may be.
    pub limit: u64,
    /// By what.
    pub what: &'static str,
}

impl Case {
    /// `forkserver/d3b3/leaf-error`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}/d{}b{}/{}", self.backend, self.depth, self.breadth, self.trigger)
    }

    /// How many actors the tree has below the root; `u64::MAX` if they can't be counted.
    #[must_use]
    pub fn actors(&self) -> u64 {
        let level = |depth| u64::from(self.breadth).checked_pow(depth);
        let sum = (1..=self.depth).try_fold(0_u64, |sum, depth| sum.checked_add(level(depth)?));
        sum.unwrap_or(u64::MAX)
    }

    /// Why this combination makes no sense, if it doesn't.
    #[must_use]
    pub fn skipped(&self) -> Option<&'static str> {
        match (self.trigger, self.backend) {
            (Trigger::SigkillLeaf | Trigger::SigkillMiddle, Backend::Thread) => {
                Some("a thread can't be killed")
            }
            (Trigger::MiddleError | Trigger::SigkillMiddle, _) if self.depth < 2 => {
                Some("a tree of depth 1 has no middle")
            }
            _ => None,
        }
    }

    fn check(&self) -> Result<(), Impossible> {
        let actors = self.actors();
        let (limit, what) = limit(self.backend);
        let (depth, breadth) = (self.depth, self.breadth);
        if actors > limit {
            Err(Impossible { depth, breadth, actors, limit, what })
        } else {
            Ok(())
        }
    }
}

impl Selection {
    /// The selected cases.
    ///
    /// # Errors
    /// [`Impossible`]: one of them is too large for this machine; nothing has been started.
    pub fn cases(&self) -> Result<Vec<Case>, Impossible> {
        let mut cases = Vec::new();
        for &backend in &self.backends {
            for &depth in &self.depths {
                for &breadth in &self.breadths {
                    for &trigger in &self.triggers {
                        let case = Case { backend, depth, breadth, trigger };
                        let wanted =
                            self.filter.as_ref().is_none_or(|part| case.id().contains(part));
                        if wanted {
                            case.check()?;
                            cases.push(case);
                        }
                    }
                }
            }
        }
        Ok(cases)
    }
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            backends: Backend::ALL.to_vec(),
            depths: vec![1, 2, 3],
            breadths: vec![1, 3],
            triggers: Trigger::ALL.to_vec(),
            filter: None,
        }
    }
}

/// The tightest limit on how many actors a tree may have, with a tenth kept for everybody else.
fn limit(backend: Backend) -> (u64, &'static str) {
    let read = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limit = |what| getrlimit(what).map_or(u64::MAX, |(soft, _)| soft);
    let tasks = match backend {
        Backend::Forkserver | Backend::Exec => (read("/proc/sys/kernel/pid_max"), "pid_max"),
        Backend::Thread => (read("/proc/sys/kernel/threads-max"), "threads-max"),
    };
    let all = [
        (tasks.0.unwrap_or(u64::MAX), tasks.1),
        (limit(Resource::RLIMIT_NPROC), "RLIMIT_NPROC"),
        // A spawner holds two fds an actor; a thread's tree has both ends in one process.
        (limit(Resource::RLIMIT_NOFILE) / 2, "RLIMIT_NOFILE"),
    ];
    let (limit, what) = all.into_iter().min().unwrap_or((u64::MAX, "nothing"));
    (limit / 10 * 9, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_that_is_too_large_is_an_error_before_anything_starts() {
        let huge = Selection { depths: vec![60], breadths: vec![9], ..Selection::default() };
        let error = huge.cases().unwrap_err();
        assert_eq!((error.depth, error.breadth, error.actors), (60, 9, u64::MAX));
    }

    #[test]
    fn actors_are_counted_level_by_level() {
        let (backend, trigger) = (Backend::Exec, Trigger::Return);
        assert_eq!(Case { backend, depth: 3, breadth: 3, trigger }.actors(), 39);
        assert_eq!(Case { backend, depth: 4, breadth: 1, trigger }.actors(), 4);
    }
}
