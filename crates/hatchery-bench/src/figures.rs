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
    /// Earlier versions wrote none.
    #[serde(default)]
    pub(crate) min: Option<f64>,
    #[serde(default)]
    pub(crate) max: Option<f64>,
}

impl Figure {
    /// From where to where the middle half of the samples reaches; of few samples, all of them.
    /// Nothing if that isn't known.
    pub(crate) fn spread(&self) -> Option<Spread> {
        match self.count {
            0 | 1 => None,
            2..QUARTILES => Some(Spread::All(self.min?, self.max?)),
            _ => Some(Spread::MiddleHalf(self.p25, self.p75)),
        }
    }
}

/// What lies between two bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Spread {
    All(f64, f64),
    MiddleHalf(f64, f64),
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

    pub(crate) fn of(span: Duration) -> Self {
        Self::one(span.as_secs_f64())
    }

    pub(crate) fn sum(&self) -> f64 {
        self.0.iter().sum()
    }

    pub(crate) fn append(&mut self, more: &Self) {
        self.0.extend_from_slice(&more.0);
    }

    pub(crate) fn median(&self) -> f64 {
        self.figure().p50
    }

    /// Nothing if there is no sample that is a number.
    pub(crate) fn told(&self) -> Option<Figure> {
        Some(self.figure()).filter(|figure| figure.count > 0)
    }

    pub(crate) fn figure(&self) -> Figure {
        // What was divided by nothing is no figure.
        let mut sorted: Vec<f64> = self.0.iter().copied().filter(|one| one.is_finite()).collect();
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
            min: sorted.first().copied(),
            max: sorted.last().copied(),
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

/// Fewer samples than that have no quartiles.
const QUARTILES: usize = 5;

/// A count as a number that can be divided.
#[allow(clippy::cast_precision_loss, reason = "no count here comes near 2^52")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::{Samples, Spread};

    fn of(values: &[f64]) -> Option<Spread> {
        let mut samples = Samples::default();
        values.iter().for_each(|value| samples.push(*value));
        samples.told()?.spread()
    }

    /// Of four samples a quarter is one: that it is the first quartile would be a lie.
    #[test]
    fn few_samples_are_told_from_the_least_to_the_most() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[1.0]), None);
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some(Spread::All(1.0, 3.0)));
        assert_eq!(of(&[5.0, 1.0, 2.0, 4.0, 3.0]), Some(Spread::MiddleHalf(2.0, 4.0)));
    }

    /// A ratio to nothing is none, and JSON couldn't carry it.
    #[test]
    fn what_is_no_number_is_no_sample() {
        assert!(Samples::one(f64::NAN).told().is_none());
        assert_eq!(of(&[f64::INFINITY, 1.0, 2.0]), Some(Spread::All(1.0, 2.0)));
    }
}
