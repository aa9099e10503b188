//! One case, and which of them are selected.

use serde::{Deserialize, Serialize};

use super::axis::{Backend, Load, Trigger};
use super::limits::{self, Impossible};

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
    /// What goes on in it meanwhile.
    pub load: Load,
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
    /// Loads.
    pub loads: Vec<Load>,
    /// Only ids that contain this.
    pub filter: Option<String>,
}

impl Case {
    /// `forkserver/d3b3/leaf-error/idle`.
    #[must_use]
    pub fn id(&self) -> String {
        let Self { backend, depth, breadth, trigger, load } = self;
        format!("{backend}/d{depth}b{breadth}/{trigger}/{load}")
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
                    cases.extend(self.of_tree(backend, depth, breadth)?);
                }
            }
        }
        Ok(cases)
    }

    /// Every way to end one tree.
    fn of_tree(&self, backend: Backend, depth: u32, breadth: u32) -> Result<Vec<Case>, Impossible> {
        let ways = self.triggers.iter().flat_map(|trigger| {
            self.loads.iter().map(move |&load| {
                let trigger = *trigger;
                Case { backend, depth, breadth, trigger, load }
            })
        });
        let is_wanted =
            |case: &Case| self.filter.as_ref().is_none_or(|part| case.id().contains(part));
        let wanted = ways.filter(is_wanted);
        wanted.map(|case| limits::check(&case).map(|()| case)).collect()
    }
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            backends: Backend::ALL.to_vec(),
            depths: vec![1, 2, 3],
            breadths: vec![1, 3],
            triggers: Trigger::ALL.to_vec(),
            loads: Load::ALL.to_vec(),
            filter: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_that_is_too_large_is_an_error_before_anything_starts() {
        let huge = Selection { depths: vec![60], breadths: vec![9], ..Selection::default() };
        let error = huge.cases().unwrap_err();
        assert_eq!((error.depth, error.breadth, error.needs), (60, 9, u64::MAX));
    }

    #[test]
    fn actors_are_counted_level_by_level() {
        let (backend, trigger, load) = (Backend::Exec, Trigger::Return, Load::Idle);
        assert_eq!(Case { backend, depth: 3, breadth: 3, trigger, load }.actors(), 39);
        assert_eq!(Case { backend, depth: 4, breadth: 1, trigger, load }.actors(), 4);
    }
}
