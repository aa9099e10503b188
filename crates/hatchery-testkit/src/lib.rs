//! For tests of actor trees: exact counts before and after, scenarios in processes of their own
//! under a bound from outside, dumps of whole trees, and the nested-cancel matrix.
#![forbid(unsafe_code)]

pub mod counts;
pub mod dump;
pub mod isolate;
pub mod leftovers;
pub mod matrix;
