//! All that is `unsafe` in hatchery, one family of calls a file, behind safe functions.
//!
//! Why it is enough: everything above works with owned or borrowed fds and with values; what is
//! left here are calls that nix has no safe form for, each in a block of its own with its reason.
#![allow(unsafe_code, reason = "the one home of unsafe code; every block argues for itself")]

pub(crate) mod auxv;
pub(crate) mod close_range;
pub(crate) mod ctor;
pub(crate) mod env;
pub(crate) mod environ;
pub(crate) mod exit;
pub(crate) mod fds;
pub(crate) mod huge;
pub(crate) mod landlock;
pub(crate) mod memfd;
pub(crate) mod memory;
pub(crate) mod mode;
pub(crate) mod nowait;
pub(crate) mod overflow;
pub(crate) mod owner;
pub(crate) mod pidfd;
pub(crate) mod priority;
pub(crate) mod process;
pub(crate) mod pty;
pub(crate) mod rights;
pub(crate) mod rlimit;
pub(crate) mod sched;
pub(crate) mod scm_rights;
pub(crate) mod seccomp;
pub(crate) mod sigaction;
pub(crate) mod sigchain;
pub(crate) mod sigpipe;
pub(crate) mod silence;
pub(crate) mod socket;
pub(crate) mod title;
pub(crate) mod waitid;
