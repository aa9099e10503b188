//! What only its owner may drop: in a copy of the process it is left as it is.

use std::ops::{Deref, DerefMut};

use crate::sys::owner::is_copy;

/// A value whose destructor runs in the process that made it, and in no [copy](is_copy) of that.
///
/// For what a destructor shares with the other process: an epoll is one for both, so that a copy which
/// takes a socket out of it takes it out of the owner's.
#[derive(Debug)]
pub struct Kept<T>(Option<T>);

impl<T> Kept<T> {
    /// Keeps it.
    pub fn new(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is taken out by the drop alone")
    }
}

impl<T> DerefMut for Kept<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("it is taken out by the drop alone")
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        if is_copy() {
            std::mem::forget(self.0.take());
        }
    }
}
