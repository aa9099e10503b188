//! Carries out what `hatchery-proto` decides: the only place where its actions become deeds.

pub(crate) mod door;
pub(crate) mod framed;
pub(crate) mod gate;
pub(crate) mod home;
mod item;
pub(crate) mod lanes;
mod lines;
pub(crate) mod link;
pub(crate) mod pipe;
mod push;
mod queue;
pub(crate) mod reader;
pub(crate) mod scope;
pub(crate) mod socket;
pub(crate) mod visit;
pub(crate) mod writer;
