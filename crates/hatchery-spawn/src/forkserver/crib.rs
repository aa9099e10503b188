//! How far each birth has come, in memory that the forkserver shares with its children: what a dead
//! one knew is gone with it.
//!
//! It only names things. A child that writes what is not true there is called by a wrong step.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::prelude::Step;
use crate::sys::memory::SharedWords;

#[derive(Debug)]
pub(crate) struct Crib {
    /// Each birth's mark and step; `None` where such memory can't be had, and no step is known.
    words: Option<SharedWords>,
}

/// The place of one child.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bed<'a> {
    word: Option<&'a AtomicU64>,
    mark: u64,
}

impl Crib {
    pub(crate) fn new() -> Self {
        Self { words: SharedWords::inherited(COUNT).ok() }
    }

    /// The place of the child with that mark. Others have had it before, and will have it.
    pub(crate) fn bed(&self, mark: u64) -> Bed<'_> {
        let at = usize::try_from(mark % COUNT.get() as u64).unwrap_or(0);
        Bed { word: self.words.as_ref().map(|words| &words[at]), mark }
    }
}

impl Bed<'_> {
    /// The child begins that step.
    pub(crate) fn enter(&self, step: Step) {
        self.write(step as u8);
    }

    /// The child is born, or becomes what can't write here.
    pub(crate) fn leave(&self) {
        self.write(0);
    }

    fn write(&self, step: u8) {
        if let Some(word) = self.word {
            word.store(self.mark << 8 | u64::from(step), Ordering::Relaxed);
        }
    }

    /// The step in which it has died, if it was in one, and as long as nobody else has its place.
    pub(crate) fn died_in(&self) -> Option<Step> {
        let word = self.word?.load(Ordering::Relaxed);
        let [step, ..] = word.to_le_bytes();
        Step::from_number(step).filter(|_| word >> 8 == self.mark & (u64::MAX >> 8))
    }
}

/// A page of them: many more than are ever born at once.
const COUNT: NonZeroUsize = NonZeroUsize::new(512).expect("it is not zero");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_known_until_it_is_over_or_somebody_else_has_the_place() {
        let crib = Crib::new();
        let (first, later) = (crib.bed(7), crib.bed(7 + 512));
        assert_eq!(first.died_in(), None);
        first.enter(Step::Limits);
        assert_eq!((first.died_in(), later.died_in()), (Some(Step::Limits), None));
        later.enter(Step::Fds);
        assert_eq!((first.died_in(), later.died_in()), (None, Some(Step::Fds)));
        later.leave();
        assert_eq!(later.died_in(), None);
    }
}
