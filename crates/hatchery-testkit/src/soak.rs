//! The soak: T(3,3) under load, round after round, with faults that a seed chooses; afterwards
//! nothing may be left, and what the root and its forkserver hold must be flat.
//!
//! A run has three parts, each in processes of their own under [`isolate`](crate::isolate). One long
//! root goes through the rounds and is hit everywhere but in itself; beside it, short-lived roots
//! are killed in the midst of theirs, half of them with their forkserver stopped. After that another
//! root goes through thousands of nurseries and of actors that nothing is done to (see [`cycled`]).

mod curve;
mod cycles;
mod plan;
mod report;
mod round;
mod run;
mod tree;

pub use curve::{Curve, Held, Sample};
pub use cycles::{Cycle, Cycled, cycled};
pub use plan::{Ending, Hit, Plan, Rng, Strike};
pub use report::{Leak, SoakReport};
pub use run::{Options, inside, run};
