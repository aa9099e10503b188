//! Tasks that wait for one thing, in the order of coming.

use std::collections::HashSet;
use std::task::Waker;

/// Each task once, however often it looks. Finding a task takes the same time however many wait.
#[derive(Debug, Default)]
pub struct Wakers {
    order: Vec<Waker>,
    known: HashSet<(usize, usize)>,
}

impl Wakers {
    /// Adds a task, if it isn't there.
    pub fn add(&mut self, waker: &Waker) {
        if self.known.insert(key(waker)) {
            self.order.push(waker.clone());
        }
    }

    /// All of them, the first to come first; none is left.
    #[must_use]
    pub fn take(&mut self) -> Vec<Waker> {
        self.known.clear();
        // A crowd that waited once leaves nothing.
        self.known.shrink_to(MANY);
        std::mem::take(&mut self.order)
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

/// The same for wakers that wake the same task, as [`Waker::will_wake`] says.
fn key(waker: &Waker) -> (usize, usize) {
    (waker.data().addr(), std::ptr::from_ref(waker.vtable()).addr())
}

/// Room for so many is kept.
const MANY: usize = 64;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Wake;

    use super::*;

    struct Nothing;

    impl Wake for Nothing {
        fn wake(self: Arc<Self>) {}
    }

    /// C21: each is kept once, and woken in the order of coming; a crowd leaves no room behind.
    #[test]
    fn each_waits_once_and_in_its_order() {
        let all: Vec<Waker> = (0..100).map(|_| Arc::new(Nothing).into()).collect();
        let mut wakers = Wakers::default();
        for _ in 0..2 {
            all.iter().for_each(|waker| wakers.add(&waker.clone()));
        }
        let taken = wakers.take();
        assert!(wakers.is_empty() && taken.len() == all.len());
        assert!(taken.iter().zip(&all).all(|(taken, added)| taken.will_wake(added)));
        wakers.add(&all[7]);
        assert_eq!(wakers.take().len(), 1, "it may come again");
        let crowd: Vec<Waker> = (0..10_000).map(|_| Arc::new(Nothing).into()).collect();
        crowd.iter().for_each(|waker| wakers.add(waker));
        assert_eq!(wakers.take().len(), crowd.len());
        assert!(wakers.known.capacity() < MANY * 4 && wakers.order.capacity() == 0);
    }
}
