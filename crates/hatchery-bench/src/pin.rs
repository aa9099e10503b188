//! Placement: a round trip between cores costs ten times one on a core, so both sides of a ratio
//! stand in the same places.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Where the two sides of a conversation run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub(crate) enum Place {
    /// Both on one core.
    One,
    /// Each on a core of its own.
    Two,
}

impl Place {
    /// Those that this machine has.
    pub(crate) fn all() -> Vec<Self> {
        if cores().len() > 1 { vec![Self::One, Self::Two] } else { vec![Self::One] }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::One => "one core",
            Self::Two => "two cores",
        }
    }

    /// As the command line calls it.
    pub(crate) fn argument(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Two => "two",
        }
    }

    /// Keeps this thread, and all that it starts, where the asking side belongs.
    pub(crate) fn here(self) -> nix::Result<()> {
        to(0)
    }

    /// The same for the answering side.
    pub(crate) fn there(self) -> nix::Result<()> {
        match self {
            Self::One => to(0),
            Self::Two => to(1),
        }
    }
}

/// Lets this thread, and all that it starts, run on each of the program's cores.
pub(crate) fn anywhere() -> nix::Result<()> {
    let mut all = CpuSet::new();
    for core in cores() {
        all.set(core)?;
    }
    sched_setaffinity(Pid::from_raw(0), &all)
}

/// Keeps this thread on one core of those that the program was given.
fn to(nth: usize) -> nix::Result<()> {
    let allowed = cores();
    let Some(core) = allowed.get(nth).or(allowed.last()) else { return Ok(()) };
    let mut one = CpuSet::new();
    one.set(*core)?;
    sched_setaffinity(Pid::from_raw(0), &one)
}

/// The cores of the whole program: a part's process tells those it starts, whose own are fewer.
fn cores() -> Vec<usize> {
    if let Ok(told) = std::env::var(CORES) {
        return told.split(',').filter_map(|core| core.parse().ok()).collect();
    }
    let Ok(allowed) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..CpuSet::count()).filter(|&core| allowed.is_set(core).unwrap_or(false)).collect()
}

/// The variable and value by which processes below this one know its cores.
pub(crate) fn told() -> (&'static str, String) {
    let cores: Vec<String> = cores().iter().map(ToString::to_string).collect();
    (CORES, cores.join(","))
}

const CORES: &str = "HATCHERY_BENCH_CORES";
