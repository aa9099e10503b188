//! What happens in a round, drawn from the seed and the round's number alone: so a round can be
//! had again, whatever the machine did meanwhile.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Numbers from a seed (SplitMix64): small, and the same everywhere.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The numbers of one round of one seed.
    #[must_use]
    pub fn of(seed: u64, round: u64) -> Self {
        let mut rng = Self(seed);
        let mixed = rng.next() ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(mixed)
    }

    /// The next one.
    #[allow(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// A span below `end`, to the microsecond.
    pub fn span(&mut self, end: Duration) -> Duration {
        let micros = u64::try_from(end.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.below(micros))
    }
}

/// What is done to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hit {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, for good: its tree has to end it by force.
    Stop,
    /// SIGSTOP, and SIGCONT after this.
    Pause(Duration),
}

/// One fault of a round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strike {
    /// When, counted from the beginning of the round.
    pub after: Duration,
    /// The actor's name; `None` is the forkserver.
    pub whom: Option<String>,
    /// What.
    pub hit: Hit,
}

/// How a round's nursery is ended if nothing else does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// Its body returns.
    Return,
    /// Its body errs.
    Error,
    /// It is cancelled from another task.
    Cancel,
    /// Its future is dropped.
    Drop,
}

/// One round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Its number.
    pub round: u64,
    /// What is done to whom.
    pub strikes: Vec<Strike>,
    /// How it ends.
    pub ending: Ending,
    /// When, counted from its beginning: also in the midst of the tree's boot.
    pub ends_after: Duration,
}

impl Plan {
    /// The plan of a round. `keep_forkserver`: it is never killed, so that its curve is one.
    #[must_use]
    pub fn new(seed: u64, round: u64, keep_forkserver: bool) -> Self {
        let mut rng = Rng::of(seed, round);
        let ending = match rng.below(4) {
            0 => Ending::Return,
            1 => Ending::Error,
            2 => Ending::Cancel,
            _ => Ending::Drop,
        };
        let ends_after = rng.span(LONGEST);
        let strikes = rng.below(4);
        let strikes = (0..strikes).map(|_| strike(&mut rng, keep_forkserver)).collect();
        Self { round, strikes, ending, ends_after }
    }
}

fn strike(rng: &mut Rng, keep_forkserver: bool) -> Strike {
    // Up to half as much again: some come in the teardown, some too late.
    let after = rng.span(LONGEST * 3 / 2);
    let pause = Duration::from_millis(1) + rng.span(PAUSE);
    let kind = rng.below(16);
    let name = some_name(rng);
    let (whom, hit) = match kind {
        0 if !keep_forkserver => (None, Hit::Kill),
        0..=2 => (None, Hit::Pause(pause)),
        3 => (Some(name), Hit::Stop),
        4..=7 => (Some(name), Hit::Pause(pause)),
        _ => (Some(name), Hit::Kill),
    };
    Strike { after, whom, hit }
}

/// One of T(3,3): its name says its place, so it can be found from outside.
fn some_name(rng: &mut Rng) -> String {
    let depth = 1 + rng.below(3);
    let digits = (0..depth).map(|_| rng.below(3).to_string());
    std::iter::once("a".to_owned()).chain(digits).collect()
}

/// The longest round before its end: booting T(3,3) takes a third of it on an idle machine.
const LONGEST: Duration = Duration::from_millis(150);
/// The longest pause: longer than a teardown, shorter than its budget.
const PAUSE: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_rounds_and_another_gives_others() {
        let rounds = |seed| (0..100).map(|n| Plan::new(seed, n, false)).collect::<Vec<_>>();
        assert_eq!(rounds(7), rounds(7));
        assert_ne!(rounds(7), rounds(8));
        let all = rounds(1);
        let strikes: Vec<&Strike> = all.iter().flat_map(|plan| &plan.strikes).collect();
        assert!(strikes.iter().any(|strike| strike.whom.is_none() && strike.hit == Hit::Kill));
        assert!(strikes.iter().any(|strike| strike.hit == Hit::Stop));
        for ending in [Ending::Return, Ending::Error, Ending::Cancel, Ending::Drop] {
            assert!(all.iter().any(|plan| plan.ending == ending), "{ending:?}");
        }
    }

    #[test]
    fn a_forkserver_that_is_to_be_kept_is_never_killed() {
        let plans = (0..1000).map(|round| Plan::new(3, round, true));
        let mut strikes = plans.flat_map(|plan| plan.strikes);
        assert!(strikes.all(|strike| strike.whom.is_some() || strike.hit != Hit::Kill));
    }
}
