//! One row a measurement: the floor, hatchery, their ratio, the goal.

use std::time::Duration;

use comfy_table::{Table as Shown, presets};

/// Samples of one thing.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn push(&mut self, span: Duration) {
        self.0.push(span);
    }

    /// The sample that `part` of all lie below: 0.5 is the median.
    pub(crate) fn quantile(&mut self, part: f64) -> Duration {
        self.0.sort_unstable();
        let last = self.0.len().saturating_sub(1);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index into samples that fit in memory"
        )]
        let at = (last as f64 * part).round() as usize;
        self.0.get(at).copied().unwrap_or_default()
    }
}

/// The table so far.
#[derive(Debug)]
pub(crate) struct Table {
    shown: Shown,
}

impl Table {
    pub(crate) fn new() -> Self {
        let mut shown = Shown::new();
        shown.load_preset(presets::UTF8_HORIZONTAL_ONLY);
        shown.set_header(["what", "floor p50", "hatchery p50", "p99", "ratio", "goal"]);
        Self { shown }
    }

    /// A row with a floor.
    pub(crate) fn ratio(
        &mut self,
        what: &str,
        floor: &mut Samples,
        ours: &mut Samples,
        goal: &str,
    ) {
        let (floor, own) = (floor.quantile(0.5), ours.quantile(0.5));
        let ratio = own.as_secs_f64() / floor.as_secs_f64();
        self.shown.add_row([
            what.to_owned(),
            format!("{floor:.1?}"),
            format!("{own:.1?}"),
            format!("{:.1?}", ours.quantile(0.99)),
            format!("{ratio:.2}"),
            goal.to_owned(),
        ]);
    }

    /// A row without one.
    pub(crate) fn alone(&mut self, what: &str, ours: &mut Samples, goal: &str) {
        self.shown.add_row([
            what.to_owned(),
            "-".to_owned(),
            format!("{:.1?}", ours.quantile(0.5)),
            format!("{:.1?}", ours.quantile(0.99)),
            "-".to_owned(),
            goal.to_owned(),
        ]);
    }

    pub(crate) fn print(&self) {
        println!("{}", self.shown);
    }
}
