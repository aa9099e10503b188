//! The soak: T(3,3) under load, round after round, with faults that a seed chooses; afterwards
//! nothing may be left, and what the root and its forkserver hold must be flat.
//!
//! A run has two parts, each in processes of their own under [`isolate`](crate::isolate). One long
//! root goes through the rounds and is hit everywhere but in itself; beside it, short-lived roots
//! are killed in the midst of theirs, half of them with their forkserver stopped.

mod curve;
mod plan;
mod report;
mod round;
mod run;
mod tree;

pub use curve::{Curve, Held, Sample};
pub use plan::{Ending, Hit, Plan, Rng, Strike};
pub use report::{Leak, SoakReport};
pub use run::{Options, inside, run};
