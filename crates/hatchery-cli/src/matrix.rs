//! `hatchery matrix`: selects cases, runs them side by side, shows what came of it.

use std::io::IsTerminal as _;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use clap::{Args as ClapArgs, ValueEnum};
use hatchery_testkit::matrix::{
    Backend, Case, CaseReport, MatrixReport, Selection, Trigger, inside, run as run_case,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::render;

/// What `hatchery matrix` is told. Lists are separated by commas.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// forkserver, thread, exec [default: all]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    backend: Vec<Backend>,
    /// Levels below the root [default: 1,2,3]
    #[arg(long, value_delimiter = ',', value_name = "LIST", value_parser = clap::value_parser!(u32).range(1..=64))]
    depth: Vec<u32>,
    /// Children of each actor that has some [default: 1,3]
    #[arg(long, value_delimiter = ',', value_name = "LIST", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    breadth: Vec<u32>,
    /// What ends the tree [default: all]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    trigger: Vec<Trigger>,
    /// Only cases whose id contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// How many cases run at once [default: one a core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// A table for people, or one JSON object on stdout
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Human,
    Json,
}

/// One case, as [`command`] spells it.
#[derive(Debug, ClapArgs)]
pub(crate) struct CaseArgs {
    backend: Backend,
    depth: u32,
    breadth: u32,
    trigger: Trigger,
}

/// Exit status: 0 if all is well, 1 if not, 2 if the selection makes no sense.
pub(crate) fn run(args: &Args) -> u8 {
    let cases = match select(args).cases() {
        Ok(cases) if cases.is_empty() => return usage("the selection has no case"),
        Ok(cases) => cases,
        Err(impossible) => return usage(&impossible.to_string()),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.map_or(cores, usize::from).min(cases.len());
    let began = Instant::now();
    let reports = run_all(&cases, jobs, &bar(cases.len()));
    let report = MatrixReport::new(reports, began.elapsed().as_secs_f64() * 1e3);
    match args.format {
        Format::Human => render::human(&report),
        Format::Json => render::json(&report),
    }
    u8::from(!report.is_well())
}

/// Runs one case in this very process.
pub(crate) fn case(args: &CaseArgs) -> u8 {
    let CaseArgs { backend, depth, breadth, trigger } = *args;
    u8::try_from(inside(&Case { backend, depth, breadth, trigger })).unwrap_or(1)
}

fn select(args: &Args) -> Selection {
    let mut selection = Selection::default();
    let Args { backend, depth, breadth, trigger, filter, .. } = args;
    replace(&mut selection.backends, backend);
    replace(&mut selection.depths, depth);
    replace(&mut selection.breadths, breadth);
    replace(&mut selection.triggers, trigger);
    selection.filter.clone_from(filter);
    selection
}

fn replace<T: Clone>(default: &mut Vec<T>, told: &[T]) {
    if !told.is_empty() {
        *default = told.to_vec();
    }
}

fn run_all(cases: &[Case], jobs: usize, bar: &ProgressBar) -> Vec<CaseReport> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(cases.len()));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    bar.set_message(case.id());
                    let report = run_case(case, command(case));
                    bar.inc(1);
                    done.lock().unwrap_or_else(|error| error.into_inner()).push(report);
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut reports = done.into_inner().unwrap_or_else(|error| error.into_inner());
    reports.sort_by_key(|report| cases.iter().position(|case| case.id() == report.id));
    reports
}

fn command(case: &Case) -> Command {
    // The magic link: it works also when the file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    let Case { backend, depth, breadth, trigger } = case;
    command.arg("case").arg(backend.name()).arg(depth.to_string()).arg(breadth.to_string());
    command.arg(trigger.name());
    command
}

/// Shown on a terminal only.
fn bar(length: usize) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(length as u64), target);
    match ProgressStyle::with_template("{bar:40} {pos}/{len} {elapsed} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn usage(why: &str) -> u8 {
    eprintln!("error: {why}\n\nUsage: hatchery matrix [OPTIONS]\n\nFor more information, try '--help'.");
    2
}
