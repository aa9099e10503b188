//! Rows of figures: made by a part in its own process, passed on as JSON lines, shown as tables.

use std::fmt::Write as _;

use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};

use crate::figures::{Figure, Samples, Turns};

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    Seconds,
    PerSecond,
    BytesPerSecond,
    Bytes,
    Count,
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
    pub(crate) beside: String,
    /// Bytes or actors, for plots of cost against size.
    pub(crate) size: Option<u64>,
    pub(crate) unit: Unit,
    pub(crate) floor: Option<Figure>,
    pub(crate) ours: Option<Figure>,
    /// Of hatchery to what it was measured beside, turn by turn.
    pub(crate) ratio: Option<Figure>,
    /// Reached if any of these is.
    pub(crate) goals: Vec<Goal>,
    /// Said instead of a figure that is missing, or about one.
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
        self.floor = Some(turns.floor.figure());
        self.ours = Some(turns.ours.figure());
        self.ratio = Some(turns.ratios.figure());
        self
    }

    pub(crate) fn alone(mut self, ours: &Samples) -> Self {
        self.ours = Some(ours.figure());
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
            Goal::MaxAtMost(most) => max <= most,
            Goal::RatioAtMost(most) => ratio <= most,
            Goal::RatioAtLeast(least) => ratio >= least,
        });
        (!self.goals.is_empty()).then(|| met.any(|met| met))
    }
}

/// All rows as tables, one a part.
pub(crate) fn shown(rows: &[Row]) -> String {
    let mut parts: Vec<&str> = rows.iter().map(|row| row.part.as_str()).collect();
    parts.dedup();
    let mut out = String::new();
    for part in parts {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_BORDERS_ONLY);
        table.set_header([
            part,
            "beside",
            "floor p50",
            "p50",
            "p25–p75",
            "p99",
            "p99.9",
            "ratio",
            "of turns",
            "goal",
        ]);
        for row in rows.iter().filter(|row| row.part == part) {
            table.add_row(cells(row));
        }
        // Writing to a string can't fail.
        let _written = writeln!(out, "{table}\n");
    }
    out
}

fn cells(row: &Row) -> [String; 10] {
    let show = |value: f64| human(value, row.unit);
    let of = |figure: Option<Figure>, pick: fn(&Figure) -> f64| {
        figure.as_ref().map_or("-".to_owned(), |figure| show(pick(figure)))
    };
    let many = row.ours.is_some_and(|own| own.count >= 100);
    let few = row.ours.filter(|_| many);
    let spread = row.ours.filter(|own| own.count > 1);
    let what =
        if row.note.is_empty() { row.what.clone() } else { format!("{} ({})", row.what, row.note) };
    let goal = match row.reached() {
        None => goals(row),
        Some(true) => format!("{} ✓", goals(row)),
        Some(false) => format!("{} ✗", goals(row)),
    };
    [
        folded(&what),
        if row.beside.is_empty() { "-".to_owned() } else { row.beside.clone() },
        of(row.floor, |floor| floor.p50),
        row.ours.map_or("missing".to_owned(), |own| show(own.p50)),
        spread.map_or("-".to_owned(), |own| format!("{}–{}", show(own.p25), show(own.p75))),
        of(few, |own| own.p99),
        of(few, |own| own.p999),
        row.ratio.map_or("-".to_owned(), |ratio| format!("{:.2}", ratio.p50)),
        row.ratio.map_or("-".to_owned(), |ratio| format!("{:.2}–{:.2}", ratio.p25, ratio.p75)),
        goal,
    ]
}

/// Broken into lines between words.
fn folded(text: &str) -> String {
    let (mut out, mut width) = (String::new(), 0);
    for word in text.split(' ') {
        if width > 0 && width + word.len() > WIDTH {
            out.push('\n');
            width = 0;
        } else if width > 0 {
            out.push(' ');
        }
        out.push_str(word);
        width += word.len() + 1;
    }
    out
}

fn goals(row: &Row) -> String {
    let one = |goal: &Goal| match *goal {
        Goal::AtMost(most) => format!("≤ {}", human(most, row.unit)),
        Goal::AtLeast(least) => format!("≥ {}", human(least, row.unit)),
        Goal::P99AtMost(most) => format!("p99 ≤ {}", human(most, row.unit)),
        Goal::MaxAtMost(most) => format!("max ≤ {}", human(most, row.unit)),
        Goal::RatioAtMost(most) => format!("≤ {most} ×"),
        Goal::RatioAtLeast(least) => format!("≥ {least} ×"),
    };
    let all: Vec<String> = row.goals.iter().map(one).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(" or ") }
}

/// A figure with its unit, three digits of it.
pub(crate) fn human(value: f64, unit: Unit) -> String {
    let scaled = |steps: &[(f64, &str)]| {
        let fits = steps.iter().find(|(step, _)| value.abs() >= *step).or(steps.last());
        let (step, name) = fits.copied().unwrap_or((1.0, ""));
        let value = value / step;
        let digits = if value.abs() >= 100.0 { 0 } else { 1 + usize::from(value.abs() < 10.0) };
        format!("{value:.digits$}{name}")
    };
    match unit {
        Unit::Seconds => scaled(&[(1.0, " s"), (1e-3, " ms"), (1e-6, " µs"), (1e-9, " ns")]),
        Unit::PerSecond => scaled(&[(1e6, " M/s"), (1e3, " k/s"), (1.0, " /s")]),
        Unit::BytesPerSecond => scaled(&[(1e9, " GB/s"), (1e6, " MB/s"), (1e3, " kB/s")]),
        Unit::Bytes => scaled(&[
            (1_073_741_824.0, " GiB"),
            (1_048_576.0, " MiB"),
            (1024.0, " KiB"),
            (1.0, " B"),
        ]),
        Unit::Count => scaled(&[(1e6, " M"), (1.0, "")]),
    }
}

/// What a row is about may be this wide.
const WIDTH: usize = 90;
