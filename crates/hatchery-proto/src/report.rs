//! How a nursery came down: what was done to whom, and how long it took (C16). Data only.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::ExitStatus;
use crate::id::ActorPath;

/// A nursery's way down.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Report {
    /// Every actor of the nursery, in the order of their starts.
    pub actors: Vec<ActorReport>,
    /// From the first cancel, or the body's return, until all had settled.
    pub teardown: Duration,
}

/// One actor's way down.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ActorReport {
    /// Who.
    pub path: ActorPath,
    /// How it was brought to life.
    pub backend: String,
    /// What was done, in order.
    pub steps: Vec<StepTaken>,
    /// The hardest means that was needed, if the cancel alone did not do.
    pub forced: Option<Forced>,
    /// How it ended; `None` if it was given up on.
    pub end: Option<ExitStatus>,
    /// Peers of it that did not leave within `peer_drain` and were closed on (C13).
    pub undrained: Vec<ActorPath>,
    /// What it told about the actors below it.
    pub below: Vec<Self>,
}

/// One step of a teardown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StepTaken {
    /// Which.
    pub step: Step,
    /// When, counted from the actor's cancel.
    pub after: Duration,
}

/// A step of a teardown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Step {
    /// The cancel was sent.
    Asked,
    /// The cancel was acknowledged (C11).
    Acknowledged,
    /// No acknowledgement inside its bound: a slow actor, not a dead channel. One that comes later is
    /// noted as well.
    Unacknowledged,
    /// The channel broke.
    ChannelDead,
    /// SIGTERM.
    Terminated,
    /// SIGKILL.
    Killed,
    /// The clock jumped: the whole tree had been stopped, and nobody is blamed (C2).
    Paused,
    /// Reaped or joined.
    Settled,
    /// A thread was given up on (C5).
    Abandoned,
    /// A process was given up on.
    Unreapable,
}

/// That a cancel alone did not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Forced {
    /// What had to be done.
    pub step: Step,
    /// When, counted from the actor's cancel.
    pub after: Duration,
}

impl ActorReport {
    /// This report and all below it, depth first.
    #[must_use]
    pub fn flatten(&self) -> Vec<&Self> {
        let below = self.below.iter().flat_map(Self::flatten);
        std::iter::once(self).chain(below).collect()
    }
}

impl Report {
    /// Every actor that the report knows of, at any depth.
    #[must_use]
    pub fn flatten(&self) -> Vec<&ActorReport> {
        self.actors.iter().flat_map(ActorReport::flatten).collect()
    }

    /// Those that did not go on the cancel alone.
    #[must_use]
    pub fn forced(&self) -> Vec<&ActorReport> {
        self.flatten().into_iter().filter(|actor| actor.forced.is_some()).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.flatten();
        writeln!(f, "{} actors came down in {:?}", all.len(), self.teardown)?;
        for actor in all {
            write!(f, "  {} ({}):", actor.path, actor.backend)?;
            for taken in &actor.steps {
                write!(f, " {:?} +{:?}", taken.step, taken.after)?;
            }
            match &actor.end {
                Some(end) => write!(f, ", {end}")?,
                None => write!(f, ", given up on")?,
            }
            for peer in &actor.undrained {
                write!(f, ", closed on its peer {peer}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
