//! Rows as people read them.

use std::fmt::Write as _;

use comfy_table::{Table, presets};

use super::{Goal, Row, Unit};
use crate::figures::{Figure, Spread};

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
        spread(row.ours, show),
        of(few, |own| own.p99),
        of(few, |own| own.p999),
        row.ratio.map_or("-".to_owned(), |ratio| format!("{:.2}", ratio.p50)),
        spread(row.ratio, |ratio| format!("{ratio:.2}")),
        goal,
    ]
}

/// The middle half of the samples; of few all of them, which is said.
fn spread(figure: Option<Figure>, show: impl Fn(f64) -> String) -> String {
    match figure.and_then(|figure| figure.spread()) {
        None => "-".to_owned(),
        Some(Spread::All(min, max)) => format!("min–max {}–{}", show(min), show(max)),
        Some(Spread::MiddleHalf(p25, p75)) => format!("{}–{}", show(p25), show(p75)),
    }
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
        Unit::PerCent => format!("{value:.3} %"),
        Unit::Count => scaled(&[(1e6, " M"), (1.0, "")]),
    }
}

/// What a row is about may be this wide.
const WIDTH: usize = 90;
