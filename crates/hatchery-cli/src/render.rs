//! A matrix's report as a table for people, or as JSON.

use comfy_table::{CellAlignment, Table, presets};
use hatchery_testkit::matrix::{CaseReport, INTERRUPTED, MatrixReport, Outcome};

/// The table, what went wrong, and a verdict in one line.
pub(crate) fn human(report: &MatrixReport) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["case", "actors", "outcome", "teardown", "bound", "left behind"]);
    for case in &report.cases {
        table.add_row([
            case.id.clone(),
            case.actors.to_string(),
            word(case.outcome).to_owned(),
            if case.outcome == Outcome::NotRun {
                String::new()
            } else {
                format!("{:.1} ms", case.teardown_ms)
            },
            format!("{:.0} ms", case.bound_ms),
            if case.outcome == Outcome::NotRun { String::new() } else { left(case) },
        ]);
    }
    for column in [1, 3, 4] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{table}");
    for case in report
        .cases
        .iter()
        .filter(|case| {
            !matches!(case.outcome, Outcome::Passed | Outcome::Skipped | Outcome::NotRun)
        })
        .filter(|case| case.detail != INTERRUPTED)
    {
        println!("\n{} {}:\n{}", case.id, word(case.outcome), case.detail);
    }
    let summary = &report.summary;
    let verdict = if report.is_well() { "all is well" } else { "NOT WELL" };
    let actors: u64 = report
        .cases
        .iter()
        .filter(|case| !matches!(case.outcome, Outcome::Skipped | Outcome::NotRun))
        .map(|case| case.actors)
        .sum();
    let not_run = match summary.not_run {
        0 => String::new(),
        count => format!(", {count} not run"),
    };
    println!(
        "{verdict}: {} passed, {} failed, {} hung, {} leaked, {} skipped{not_run}; {actors} actors in \
         {:.1} s",
        summary.passed,
        summary.failed,
        summary.hung,
        summary.leaked,
        summary.skipped,
        summary.elapsed_ms / 1e3,
    );
}

/// One object on stdout.
pub(crate) fn json(report: &MatrixReport) {
    match serde_json::to_string(report) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("the report has no JSON form: {error}"),
    }
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "failed",
        Outcome::Hung => "hung",
        Outcome::Leaked => "leaked",
        Outcome::Skipped => "skipped",
        Outcome::NotRun => "not run",
    }
}

fn left(case: &CaseReport) -> String {
    let leaks = case.leaks;
    let all = [
        (leaks.processes, "processes"),
        (leaks.threads, "threads"),
        (leaks.fds, "fds"),
        (leaks.files, "files"),
    ];
    let some: Vec<String> = all
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if some.is_empty() { "nothing".to_owned() } else { some.join(", ") }
}
