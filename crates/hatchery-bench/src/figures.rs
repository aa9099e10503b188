//! Samples, what is told of them, and ratios of samples taken in turn.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Samples of one thing, in one unit.
#[derive(Debug, Default, Clone)]
pub(crate) struct Samples(Vec<f64>);

/// What is told of samples.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) count: usize,
    pub(crate) p25: f64,
    pub(crate) p50: f64,
    pub(crate) p75: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn span(&mut self, span: Duration) {
        self.push(span.as_secs_f64());
    }

    pub(crate) fn one(value: f64) -> Self {
        Self(vec![value])
    }

    pub(crate) fn append(&mut self, more: &Self) {
        self.0.extend_from_slice(&more.0);
    }

    pub(crate) fn median(&self) -> f64 {
        self.figure().p50
    }

    pub(crate) fn figure(&self) -> Figure {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = |part: f64| {
            let last = sorted.len().saturating_sub(1);
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "an index into samples that fit in memory"
            )]
            let at = (last as f64 * part).round() as usize;
            sorted.get(at).copied().unwrap_or(f64::NAN)
        };
        Figure {
            count: sorted.len(),
            p25: at(0.25),
            p50: at(0.5),
            p75: at(0.75),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        }
    }
}

/// Two things measured in turn, A B A B: a ratio for each turn, so that a machine that is slow for
/// a while is slow for both.
#[derive(Debug, Default, Clone)]
pub(crate) struct Turns {
    pub(crate) floor: Samples,
    pub(crate) ours: Samples,
    pub(crate) ratios: Samples,
}

impl Turns {
    /// One turn of each.
    pub(crate) fn turn(&mut self, floor: &Samples, ours: &Samples) {
        self.ratios.push(ours.median() / floor.median());
        self.floor.append(floor);
        self.ours.append(ours);
    }

    /// The same in another unit; ratios have none.
    pub(crate) fn scaled(&self, by: f64) -> Self {
        let scale = |samples: &Samples| Samples(samples.0.iter().map(|one| one * by).collect());
        Self { floor: scale(&self.floor), ours: scale(&self.ours), ratios: self.ratios.clone() }
    }
}

/// A count as a number that can be divided.
#[allow(clippy::cast_precision_loss, reason = "no count here comes near 2^52")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}
