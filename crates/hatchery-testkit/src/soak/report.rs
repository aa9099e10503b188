//! What came of a soak.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::curve::Curve;
use super::cycles::Cycled;

/// Something that was left, or went wrong, and the round in which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leak {
    /// The round's number; with the seed it can be had again.
    pub round: u64,
    /// What.
    pub what: String,
}

/// What came of a soak.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SoakReport {
    /// What chose the faults.
    pub seed: u64,
    /// Rounds gone through.
    pub rounds: u64,
    /// Actors that had shaken hands, as far as their spawners lived to tell.
    pub actors: u64,
    /// Seconds in all.
    pub seconds: f64,
    /// How often what was done to a process that was there.
    pub hits: BTreeMap<String, u64>,
    /// Strikes at a process that was not there yet, or no more.
    pub missed: u64,
    /// How often the root's nursery came out how.
    pub outcomes: BTreeMap<String, u64>,
    /// From the round's end, or its first fault, until the nursery had returned, in milliseconds:
    /// median, 99th percentile, worst.
    pub teardown_ms: [f64; 3],
    /// Roots that were killed in the midst of a round.
    pub roots_killed: u64,
    /// What was left.
    pub leaks: Vec<Leak>,
    /// What the long root and its forkserver held.
    pub curve: Curve,
    /// What grew over the run.
    pub grown: Vec<String>,
    /// What came of many cycles of one kind.
    pub cycles: Vec<Cycled>,
}

impl SoakReport {
    /// Whether nothing is left and nothing grew.
    #[must_use]
    pub fn is_well(&self) -> bool {
        let are_flat = self.cycles.iter().all(Cycled::is_well);
        self.leaks.is_empty() && self.grown.is_empty() && are_flat
    }
}

impl fmt::Display for SoakReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, rounds, actors, seconds, hits, missed, .. } = self;
        writeln!(f, "seed {seed}: {rounds} rounds, {actors} actors in {seconds:.0} s")?;
        let all: Vec<String> = hits.iter().map(|(what, count)| format!("{what} {count}")).collect();
        writeln!(f, "faults: {}; missed {missed}", all.join(", "))?;
        let all: Vec<String> =
            self.outcomes.iter().map(|(what, count)| format!("{what} {count}")).collect();
        writeln!(f, "outcomes: {}", all.join(", "))?;
        let [median, p99, worst] = self.teardown_ms;
        writeln!(f, "teardown: median {median:.1} ms, p99 {p99:.1} ms, worst {worst:.1} ms")?;
        writeln!(f, "roots killed beside it: {}", self.roots_killed)?;
        write!(f, "{}", self.curve)?;
        for grown in &self.grown {
            writeln!(f, "GREW {grown}")?;
        }
        self.cycles.iter().try_for_each(|cycled| write!(f, "{cycled}"))?;
        for Leak { round, what } in &self.leaks {
            writeln!(f, "LEFT in round {round}: {}", what.trim())?;
        }
        writeln!(f, "{} leaks", self.leaks.len())
    }
}
