//! Rows of figures: made by a part in its own process, passed on as JSON lines, shown as tables.

use serde::{Deserialize, Serialize};

use crate::figures::{Figure, Samples, Turns};

mod table;

pub(crate) use table::{human, shown};

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    Seconds,
    PerSecond,
    BytesPerSecond,
    Bytes,
    Count,
    PerCent,
}

/// What is to be reached; any one of several where it says so.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    P99AtMost(f64),
    /// Of every single sample.
    MaxAtMost(f64),
    RatioAtMost(f64),
    RatioAtLeast(f64),
}

/// One line of the report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) part: String,
    pub(crate) what: String,
    /// What it was measured beside.
    #[serde(default)]
    pub(crate) beside: String,
    /// Bytes or actors, for plots of cost against size.
    pub(crate) size: Option<u64>,
    pub(crate) unit: Unit,
    pub(crate) floor: Option<Figure>,
    pub(crate) ours: Option<Figure>,
    /// Of hatchery to what it was measured beside, turn by turn.
    pub(crate) ratio: Option<Figure>,
    /// Reached if any of these is.
    #[serde(default)]
    pub(crate) goals: Vec<Goal>,
    /// Said instead of a figure that is missing, or about one.
    #[serde(default)]
    pub(crate) note: String,
}

impl Row {
    pub(crate) fn new(part: &str, what: impl Into<String>, unit: Unit) -> Self {
        Self {
            part: part.to_owned(),
            what: what.into(),
            beside: String::new(),
            size: None,
            unit,
            floor: None,
            ours: None,
            ratio: None,
            goals: Vec::new(),
            note: String::new(),
        }
    }

    /// Measured in turn with `floor`.
    pub(crate) fn beside(mut self, floor: &str, turns: &Turns) -> Self {
        floor.clone_into(&mut self.beside);
        self.floor = turns.floor.told();
        self.ours = turns.ours.told();
        self.ratio = turns.ratios.told();
        self
    }

    pub(crate) fn alone(mut self, ours: &Samples) -> Self {
        self.ours = ours.told();
        self
    }

    pub(crate) fn size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }

    pub(crate) fn goal(mut self, goal: Goal) -> Self {
        self.goals.push(goal);
        self
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Hands the row to whoever started this part.
    pub(crate) fn tell(self) {
        match serde_json::to_string(&self) {
            Ok(line) => println!("{line}"),
            Err(error) => eprintln!("a row that is no JSON: {error}"),
        }
    }

    /// Whether the goal was reached; `None` without a goal or a figure.
    pub(crate) fn reached(&self) -> Option<bool> {
        let Figure { p50: own, p99, max, .. } = self.ours?;
        let ratio = self.ratio.map_or(f64::NAN, |ratio| ratio.p50);
        let mut met = self.goals.iter().map(|goal| match *goal {
            Goal::AtMost(most) => own <= most,
            Goal::AtLeast(least) => own >= least,
            Goal::P99AtMost(most) => p99 <= most,
            Goal::MaxAtMost(most) => max.is_some_and(|max| max <= most),
            Goal::RatioAtMost(most) => ratio <= most,
            Goal::RatioAtLeast(least) => ratio >= least,
        });
        (!self.goals.is_empty()).then(|| met.any(|met| met))
    }
}

#[cfg(test)]
mod tests {
    use super::{Row, shown};

    /// What an earlier version wrote, without what came later, can still be shown and drawn.
    #[test]
    fn rows_of_an_earlier_version_are_read() {
        let figure = r#"{"count":3,"p25":1.0,"p50":2.0,"p75":3.0,"p99":3.0,"p999":3.0}"#;
        let text = format!(
            r#"[{{"part":"starts","what":"w","unit":"seconds","ours":{figure},"goals":[{{"max-at-most":9.0}}]}}]"#
        );
        let rows: Vec<Row> = serde_json::from_str(&text).unwrap();
        assert!(shown(&rows).contains("2.00 s"));
        assert_eq!(rows[0].reached(), Some(false), "a most that isn't known reaches no goal");
    }
}
