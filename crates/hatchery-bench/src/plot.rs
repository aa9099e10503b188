//! Cost against size: one chart for each thing that was measured at several sizes.

use std::collections::BTreeMap;
use std::path::Path;

use plotters::prelude::*;

use crate::Outcome;
use crate::report::{Row, human};

/// Points of hatchery and of what stands beside it.
#[derive(Default)]
struct Chart {
    unit: Option<crate::report::Unit>,
    lines: BTreeMap<String, Vec<(f64, f64)>>,
}

/// Draws all rows that have a size.
pub(crate) fn draw(rows: &[Row], file: &Path) -> Outcome {
    let charts = charts(rows);
    if charts.is_empty() {
        return Err("nothing was measured at several sizes: there is nothing to draw".into());
    }
    let columns = 2;
    let lines = charts.len().div_ceil(columns);
    let height = u32::try_from(lines)?.saturating_mul(HEIGHT);
    let area = SVGBackend::new(file, (2 * WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    for ((title, chart), area) in charts.iter().zip(area.split_evenly((lines, columns))) {
        one(title, chart, &area)?;
    }
    area.present()?;
    Ok(())
}

/// Rows that differ in their size alone, and have at least two.
fn charts(rows: &[Row]) -> BTreeMap<String, Chart> {
    let mut charts: BTreeMap<String, Chart> = BTreeMap::new();
    for row in rows {
        // A logarithm has no place for none.
        let (Some(size @ 1..), Some(ours)) = (row.size, row.ours) else { continue };
        let size = crate::figures::float(size);
        let chart = charts.entry(title(row)).or_default();
        chart.unit = Some(row.unit);
        chart.lines.entry("hatchery".to_owned()).or_default().push((size, ours.p50));
        if let Some(floor) = row.floor {
            chart.lines.entry(row.beside.clone()).or_default().push((size, floor.p50));
        }
    }
    for chart in charts.values_mut() {
        chart.lines.values_mut().for_each(|points| points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    }
    charts.retain(|_, chart| chart.lines.values().any(|points| has_two_sizes(points)));
    charts
}

fn has_two_sizes(points: &[(f64, f64)]) -> bool {
    points.windows(2).any(|two| two[0].0 < two[1].0)
}

/// What sizes are of.
fn sizes(part: &str) -> &'static str {
    match part {
        "crowd" => "actors",
        "streams" => "bytes a message",
        "calls" => "calls in flight",
        "stalled" => "streams",
        "stuck" => "stuck actors",
        _ => "size",
    }
}

/// What a row measures, without its size.
fn title(row: &Row) -> String {
    let size = row.size.map(|size| size.to_string()).unwrap_or_default();
    let words = row.what.split(' ').filter(|word| *word != size);
    // A tree's breadth is its size too.
    let words: Vec<&str> =
        words.map(|word| if word.starts_with("T(2,") { "T(2,b)," } else { word }).collect();
    format!("{}: {}", row.part, words.join(" "))
}

fn one(
    title: &str,
    chart: &Chart,
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
) -> Outcome {
    let points = || chart.lines.values().flatten();
    let span = |pick: fn(&(f64, f64)) -> f64| {
        let (least, most) = points()
            .map(pick)
            .fold((f64::MAX, f64::MIN_POSITIVE), |(a, b), x| (a.min(x), b.max(x)));
        (least * 0.8)..(most * 1.25)
    };
    let unit = chart.unit.unwrap_or(crate::report::Unit::Count);
    let mut canvas = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(76)
        .build_cartesian_2d(span(|point| point.0).log_scale(), span(|point| point.1).log_scale())?;
    canvas
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(LABELS)
        .y_labels(LABELS)
        .x_desc(sizes(title.split(':').next().unwrap_or_default()))
        .x_label_formatter(&|size| format!("{size}"))
        .y_label_formatter(&|value| human(*value, unit))
        .draw()?;
    for (nth, (name, points)) in chart.lines.iter().enumerate() {
        let color = Palette99::pick(nth).to_rgba();
        let line = LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(3);
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color);
        canvas.draw_series(line)?.label(name).legend(legend);
    }
    if chart.lines.len() > 1 {
        canvas
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()?;
    }
    Ok(())
}

const WIDTH: u32 = 560;
const HEIGHT: u32 = 320;
/// Of an axis, about.
const LABELS: usize = 6;
