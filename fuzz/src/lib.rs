//! Hostile input (C15): a target for each decoder, and an engine that spoils good input for it.
//!
//! A target is a plain function of bytes that panics if the decoder breaks a promise, and says
//! otherwise what it took the bytes for. The engine keeps whatever was taken for something new and
//! spoils it further; so it comes from good messages to rare ones without a compiler's help. Each
//! run is told by its seed. See `README.md` for how to run it.
#![forbid(unsafe_code)]

mod engine;
mod shape;
pub mod targets;

pub use engine::{Corpus, Found, Fuzzer, Rng};
pub use targets::{TARGETS, Target};
