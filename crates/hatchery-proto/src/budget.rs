//! How much time a teardown has, what a level keeps of it and what it hands down (C2, H14).

use std::time::Duration;

use crate::Config;

/// The rungs of one actor's teardown, cut out of one budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rungs {
    /// From the cancel to SIGTERM.
    pub graceful: Duration,
    /// From SIGTERM to SIGKILL.
    pub terminate: Duration,
    /// From SIGKILL to giving up.
    pub kill: Duration,
    /// What the actor is told it has: less than `graceful`, so that it can give up on its own
    /// children before its spawner gives up on it.
    pub handed_down: Duration,
}

impl Rungs {
    /// Cuts a budget. The configured one gives the configured rungs; of a smaller one force takes
    /// at most a quarter, so that depth leaves time to be graceful: a twentieth after SIGTERM, which
    /// helps few, and a fifth after SIGKILL. On a busy machine the killed, the forkserver that reaps
    /// them and whoever hears of it wait for their turns one after the other in that fifth.
    #[must_use]
    pub fn cut(budget: Duration, config: &Config) -> Self {
        let (terminate, kill) = if budget >= config.budget {
            (config.terminate, config.kill)
        } else {
            (config.terminate.min(budget / 20), config.kill.min(budget / 5))
        };
        let spare = budget.saturating_sub(terminate).saturating_sub(kill);
        let graceful = if budget >= config.budget { config.graceful.min(spare) } else { spare };
        let margin = config.level_margin.min(graceful / 20);
        Self { graceful, terminate, kill, handed_down: graceful.saturating_sub(margin) }
    }

    /// All rungs together: never more than the budget they were cut from.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.graceful + self.terminate + self.kill
    }
}

/// What is left of a budget that was so long on its way. Who is given it counts from there, as its
/// spawner does, or levels that a busy machine lets wait would each add that to what is below them.
/// Nothing is on its way for longer than a second unless everybody stood still, which is counted
/// against nobody (C2).
#[must_use]
pub fn after(budget: Duration, late: Duration) -> Duration {
    if late > PAUSE { budget } else { budget.saturating_sub(late) }
}

/// What is this late was not delayed by load.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// C2, H14: what a cancel's way took is gone, but for a pause of everybody.
    #[test]
    fn the_way_of_a_cancel_counts() {
        let (second, millis) = (Duration::from_secs(1), Duration::from_millis(1));
        assert_eq!(after(3 * second, 450 * millis), 2550 * millis);
        assert_eq!(after(300 * millis, second), Duration::ZERO);
        assert_eq!(after(3 * second, 10 * second), 3 * second);
    }

    /// C2, H14: depth costs nothing, and no level is given up on for having waited.
    #[test]
    fn each_level_of_twenty_finishes_before_its_spawner_loses_patience() {
        let config = Config::default();
        let mut budget = config.budget;
        for _ in 0..20 {
            let rungs = Rungs::cut(budget, &config);
            assert!(rungs.total() <= budget);
            let below = Rungs::cut(rungs.handed_down, &config);
            assert!(below.total() <= rungs.handed_down);
            assert!(rungs.handed_down < rungs.graceful);
            assert!(!rungs.graceful.is_zero(), "{budget:?} leaves no time to be graceful");
            budget = rungs.handed_down;
        }
    }

    /// C2: a level that was left little is not the one that calls its actors unreapable.
    #[test]
    fn a_fifth_of_what_is_left_is_for_the_kernel() {
        let config = Config::default();
        let mut budget = Rungs::cut(config.budget, &config).handed_down;
        for _ in 0..6 {
            let rungs = Rungs::cut(budget, &config);
            assert_eq!(rungs.kill, (budget / 5).min(config.kill));
            budget = rungs.handed_down;
        }
        assert_eq!(Rungs::cut(Duration::from_millis(2999), &config).kill, config.kill);
    }

    #[test]
    fn the_configured_budget_gives_the_configured_rungs() {
        let config = Config::default();
        let rungs = Rungs::cut(config.budget, &config);
        assert_eq!(rungs.graceful, config.graceful);
        assert_eq!(rungs.terminate, config.terminate);
        assert_eq!(rungs.kill, config.kill);
    }
}
