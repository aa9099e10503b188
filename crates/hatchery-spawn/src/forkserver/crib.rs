//! How far each birth has come, in memory that the forkserver shares with its children: what a dead
//! one knew is gone with it.
//!
//! It only names things: a child that writes what is not true there is called by a wrong step. Who is
//! born has it no more (C15).

use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;

use crate::prelude::Step;
use crate::sys::memory::InheritedWords;

#[derive(Debug)]
pub(crate) struct Crib {
    /// Each birth's mark and step; `None` where such memory can't be had, and no step is known.
    words: Option<InheritedWords>,
}

/// The place of one child.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bed<'a> {
    words: Option<&'a InheritedWords>,
    mark: u64,
}

impl Crib {
    pub(crate) fn new() -> Self {
        Self { words: InheritedWords::new(COUNT).ok() }
    }

    /// The place of the child with that mark. Others have had it before, and will have it.
    pub(crate) fn bed(&self, mark: u64) -> Bed<'_> {
        Bed { words: self.words.as_ref(), mark }
    }
}

impl Bed<'_> {
    /// The child begins that step.
    pub(crate) fn enter(&self, step: Step) {
        self.write(step as u8);
    }

    /// The child ends by itself, or becomes what can't write here.
    pub(crate) fn leave(&self) {
        self.write(0);
    }

    /// The child is born, and has no part in this any more.
    pub(crate) fn leave_for_good(&self) {
        self.leave();
        if let Some(words) = self.words {
            words.let_go();
        }
    }

    fn write(&self, step: u8) {
        if let Some(words) = self.words {
            let text = self.mark << 8 | u64::from(step);
            words.with(self.at(), |word| word.store(text, Ordering::Relaxed));
        }
    }

    fn at(&self) -> usize {
        usize::try_from(self.mark % COUNT.get() as u64).unwrap_or(0)
    }

    /// The step in which it has died, if it was in one, and as long as nobody else has its place.
    pub(crate) fn died_in(&self) -> Option<Step> {
        let word = self.words?.with(self.at(), |word| word.load(Ordering::Relaxed))?;
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
