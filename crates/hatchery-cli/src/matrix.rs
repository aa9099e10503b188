//! `hatchery matrix`: selects cases, runs them side by side, shows what came of it.

use std::io::IsTerminal as _;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{Args as ClapArgs, ValueEnum};
use hatchery_testkit::matrix::{
    Backend, Case, HARD_BOUND, Load, Plan, Selection, Stop, Trigger, inside, run_all,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::sys::signal::Signal;

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
    /// What goes on between the actors meanwhile: idle, calling, streaming, peers [default: all]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    load: Vec<Load>,
    /// Only cases whose id contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// How many cases run at once [default: one a core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Seconds that a case may take in all before it is killed and counts as hung
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    bound: Option<u64>,
    /// A table for people, or one JSON object on stdout
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Human,
    Json,
}

/// One case, as [`case_args`] spells it.
#[derive(Debug, ClapArgs)]
pub(crate) struct CaseArgs {
    backend: Backend,
    depth: u32,
    breadth: u32,
    trigger: Trigger,
    load: Load,
}

/// Exit status: 0 if all is well, 1 if not, 2 if the selection makes no sense.
pub(crate) fn run(args: &Args) -> u8 {
    let cases = match select(args).cases() {
        Ok(cases) if cases.is_empty() => return usage("the selection has no case"),
        Ok(cases) => cases,
        Err(impossible) => return usage(&impossible.to_string()),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.map_or(cores, usize::from);
    let hard_bound = args.bound.map_or(HARD_BOUND, Duration::from_secs);
    let Some(jobs) = NonZeroUsize::new(jobs) else { return usage("no jobs, no matrix") };
    let plan = Plan { cases: &cases, jobs, hard_bound, args: case_args };
    let bar = bar(cases.len(), target());
    let stop = Stop::default();
    let (report, signal) = interruptible(&stop, || {
        run_all(&plan, &stop, |done| {
            bar.set_message(done.id.clone());
            bar.inc(1);
        })
    });
    bar.finish_and_clear();
    match args.format {
        Format::Human => render::human(&report),
        Format::Json => render::json(&report),
    }
    match signal {
        Some(signal) => 128 + signal,
        None => u8::from(!report.is_well()),
    }
}

/// Runs `work` while a thread that does nothing else waits for SIGINT, SIGTERM and SIGHUP, which
/// end all cases, and says which it was.
fn interruptible<T>(stop: &Stop, work: impl FnOnce() -> T) -> (T, Option<u8>) {
    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].map(|signal| signal as i32);
    let source = match hatchery_spawn::signals::install(&signals) {
        Ok(source) => source,
        Err(error) => {
            eprintln!("Ctrl-C can't be caught, cases still end with this process: {error}");
            return (work(), None);
        }
    };
    let stopper = source.stopper();
    std::thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let signal = source.recv(None);
            if signal.is_some() {
                stop.stop();
            }
            signal
        });
        let done = work();
        stopper.stop();
        let signal = watch.join().ok().flatten();
        (done, signal.and_then(|signal| u8::try_from(signal).ok()))
    })
}

/// Runs one case in this very process.
pub(crate) fn case(args: &CaseArgs) -> u8 {
    let CaseArgs { backend, depth, breadth, trigger, load } = *args;
    u8::try_from(inside(&Case { backend, depth, breadth, trigger, load })).unwrap_or(1)
}

fn select(args: &Args) -> Selection {
    let mut selection = Selection::default();
    let Args { backend, depth, breadth, trigger, load, filter, .. } = args;
    replace(&mut selection.backends, backend);
    replace(&mut selection.depths, depth);
    replace(&mut selection.breadths, breadth);
    replace(&mut selection.triggers, trigger);
    replace(&mut selection.loads, load);
    selection.filter.clone_from(filter);
    selection
}

/// What was told instead of the default, each value once.
fn replace<T: Clone + PartialEq>(default: &mut Vec<T>, told: &[T]) {
    if told.is_empty() {
        return;
    }
    default.clear();
    for value in told {
        if !default.contains(value) {
            default.push(value.clone());
        }
    }
}

/// The arguments under which this program runs one case: [`CaseArgs`].
fn case_args(case: &Case) -> Vec<String> {
    let Case { backend, depth, breadth, trigger, load } = case;
    let (depth, breadth) = (depth.to_string(), breadth.to_string());
    let words = ["case", backend.name(), &depth, &breadth, trigger.name(), load.name()];
    words.map(str::to_owned).to_vec()
}

/// Shown on a terminal only.
fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    }
}

/// How far it is. Its clock runs on while a case takes long: one that stands still looks hung.
fn bar(length: usize, target: ProgressDrawTarget) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length as u64), target);
    if !bar.is_hidden() {
        bar.enable_steady_tick(TICK);
    }
    match ProgressStyle::with_template("{bar:40} {pos}/{len} {elapsed} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Often enough for a clock that shows seconds.
const TICK: Duration = Duration::from_millis(250);

fn usage(why: &str) -> u8 {
    eprintln!(
        "error: {why}\n\nUsage: hatchery matrix [OPTIONS]\n\nFor more information, try '--help'."
    );
    2
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc::{Sender, channel};

    use indicatif::TermLike;

    use super::*;

    /// A terminal that tells what is written to it.
    #[derive(Debug)]
    struct Terminal(Sender<String>);

    impl TermLike for Terminal {
        fn width(&self) -> u16 {
            120
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            // Whoever read has seen enough.
            let _read = self.0.send(text.to_owned());
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// While no case ends, the clock goes from one second to the next.
    #[test]
    fn the_clock_of_the_bar_runs_while_one_case_does() {
        let (tell, told) = channel();
        let terminal = ProgressDrawTarget::term_like(Box::new(Terminal(tell)));
        let bar = bar(7, terminal);
        let mut clocks = Vec::new();
        while clocks.len() < 3 {
            let text = told.recv_timeout(Duration::from_secs(30)).expect("it is drawn again");
            let clock = text.split_once("0/7 ").map(|(_, clock)| clock.trim().to_owned());
            clocks.extend(clock);
            clocks.dedup();
        }
        bar.finish_and_clear();
        assert!(clocks[0] < clocks[1] && clocks[1] < clocks[2], "{clocks:?}");
    }
}
