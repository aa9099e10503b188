//! What tests of actor trees need: exact counts, scenarios in processes of their own under a bound
//! from outside, dumps of whole trees, faults, and the nested-cancel matrix.
//!
//! It pulls in what users' programs shouldn't carry, so it belongs into `dev-dependencies`.
#![forbid(unsafe_code)]

pub mod await_points;
pub mod counts;
pub mod dump;
pub mod fault;
pub mod isolate;
pub mod matrix;
pub mod soak;
