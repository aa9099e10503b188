//! How a nursery came down: what was done to whom, and how long it took (C16). Data only.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::ExitStatus;
use crate::id::ActorPath;

/// A nursery's way down.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Report {
    /// The actors of the nursery: the last of those that were over before it came down, in the order
    /// of their ends, then all the others, in the order of their starts.
    pub actors: Vec<ActorReport>,
    /// How many actors are not named any more, at any depth: they were over before it came down, and
    /// others after them. How many are named then says
    /// [`Config::report_tail_actors`](crate::Config::report_tail_actors).
    pub dropped: u64,
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
    /// Processes that it had started by itself and that could not be ended.
    pub left_behind: Vec<String>,
    /// What it told about the actors below it.
    pub below: Vec<Self>,
    /// How many below it are not named any more: see [`Report::dropped`].
    pub dropped: u64,
}

/// The reports of actors that are over, as many as are kept: what came first is dropped, and counted
/// (C21).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Past {
    kept: VecDeque<ActorReport>,
    /// How many actors are named in there, at all depths.
    named: usize,
    dropped: u64,
}

impl Past {
    /// One more is over. Of all that are named there, `most` may be kept.
    pub fn push(&mut self, mut report: ActorReport, most: usize) {
        let mut size = report.count();
        if size > most {
            // What is below it is the oldest of it.
            self.dropped += u64::try_from(size - 1).unwrap_or(u64::MAX) + report.dropped;
            (report.below, report.dropped, size) = (Vec::new(), 0, 1);
        }
        self.kept.push_back(report);
        self.named += size;
        while self.named > most
            && let Some(oldest) = self.kept.pop_front()
        {
            let size = oldest.count();
            self.named -= size;
            self.dropped += u64::try_from(size).unwrap_or(u64::MAX) + oldest.dropped;
        }
    }

    /// Those that are not named, and never were.
    pub fn drop_unseen(&mut self, count: u64) {
        self.dropped += count;
    }

    /// What is kept, and how many are not.
    #[must_use]
    pub fn into_parts(self) -> (Vec<ActorReport>, u64) {
        (self.kept.into(), self.dropped)
    }
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
    /// How many actors are named in it, itself included.
    #[must_use]
    pub fn count(&self) -> usize {
        1 + self.below.iter().map(Self::count).sum::<usize>()
    }

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
        let below: u64 = all.iter().map(|actor| actor.dropped).sum();
        if self.dropped + below > 0 {
            writeln!(f, "  {} more were over before that", self.dropped + below)?;
        }
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
            for process in &actor.left_behind {
                write!(f, ", left behind: {process}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(below: usize) -> ActorReport {
        ActorReport {
            path: ActorPath::root(),
            backend: "test".to_owned(),
            steps: Vec::new(),
            forced: None,
            end: Some(ExitStatus::Code(0)),
            undrained: Vec::new(),
            left_behind: Vec::new(),
            below: (0..below).map(|_| report(0)).collect(),
            dropped: 0,
        }
    }

    /// C21: however many there were, and however many each had below it, what is kept is bounded, and
    /// what is kept and what was dropped are all.
    #[test]
    fn all_are_named_or_counted_and_few_are_named() {
        for most in [0, 1, 7, 100] {
            let (mut past, mut all) = (Past::default(), 0);
            for below in (0..500).map(|at| at % 13) {
                past.push(report(below), most);
                all += below as u64 + 1;
                assert!(past.named <= most, "{} of {most}", past.named);
            }
            let (kept, dropped) = past.into_parts();
            let named: usize = kept.iter().map(ActorReport::count).sum();
            assert_eq!(named as u64 + dropped, all, "of {most}");
            assert!(named + 13 > most, "{named} of {most}");
        }
    }
}
