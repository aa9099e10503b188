//! The outside of the cases: runs them side by side, each in a process of its own, and judges.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hatchery::Config;

use super::axis::Trigger;
use super::case::Case;
use super::report::{CaseReport, Leaks, MatrixReport, Outcome};
use super::scenario::{Told, millis};
use crate::isolate::{End, Isolated, Running, Stopper, Verdict};

/// How cases are run. Each process is started by `isolated`, which knows the arguments under
/// which this program calls [`inside`](super::inside) with the same case.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// What to run, in order.
    pub cases: &'a [Case],
    /// How many at once.
    pub jobs: NonZeroUsize,
    /// What a case may take, growing included, before it counts as hung and is killed.
    pub hard_bound: Duration,
    /// The arguments of the process that runs a case.
    pub args: fn(&Case) -> Vec<String>,
}

/// Ends a running matrix from another thread, once and for all.
#[derive(Debug, Default)]
pub struct Stop {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    running: BTreeMap<usize, Stopper>,
}

impl Stop {
    /// Kills every case under way, with all that came of it; no other case starts.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        state.running.values().for_each(Stopper::stop);
    }

    /// Whether somebody has asked for it.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Publishes a case and asks whether it may run, as one step (H27).
    fn admit(
        &self,
        at: usize,
        start: impl FnOnce() -> io::Result<Running>,
    ) -> io::Result<Option<Running>> {
        let mut state = self.lock();
        if state.stopped {
            return Ok(None);
        }
        let running = start()?;
        state.running.insert(at, running.stopper()?);
        Ok(Some(running))
    }

    fn done(&self, at: usize) {
        self.lock().running.remove(&at);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs one case in a process of its own: this program with the arguments of `command`, under which
/// it calls [`inside`](super::inside) with the same case.
#[must_use]
pub fn run(case: &Case, command: Command) -> CaseReport {
    let isolated = Isolated::new(HARD_BOUND).args(command.get_args());
    run_one(case, isolated, 0, &Stop::default())
}

/// Runs all cases and returns what came of them, in their order. `on_done` hears of each as it
/// ends, on whichever thread.
#[must_use]
pub fn run_all(plan: &Plan<'_>, stop: &Stop, on_done: impl Fn(&CaseReport) + Sync) -> MatrixReport {
    let begun = Instant::now();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..plan.jobs.get().min(plan.cases.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(case) = plan.cases.get(at) else { return };
                    let isolated = Isolated::new(plan.hard_bound).args((plan.args)(case));
                    let report = run_one(case, isolated, at, stop);
                    on_done(&report);
                    done.lock().unwrap_or_else(PoisonError::into_inner).insert(at, report);
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    MatrixReport::new(done.into_values().collect(), millis(begun.elapsed()))
}

fn run_one(case: &Case, isolated: Isolated, at: usize, stop: &Stop) -> CaseReport {
    let mut report = CaseReport::skipped(case, millis(teardown_bound()));
    if let Some(why) = case.skipped() {
        why.clone_into(&mut report.detail);
        return report;
    }
    match stop.admit(at, || isolated.start()) {
        Ok(Some(running)) => {
            let verdict = running.wait();
            stop.done(at);
            match verdict {
                Ok(verdict) => judge(case, &mut report, &verdict),
                Err(error) => fail(&mut report, &format!("its watcher was lost: {error}")),
            }
        }
        Ok(None) => report.outcome = Outcome::NotRun,
        Err(error) => fail(&mut report, &format!("it could not be started: {error}")),
    }
    report
}

fn fail(report: &mut CaseReport, why: &str) {
    report.outcome = Outcome::Failed;
    why.clone_into(&mut report.detail);
}

fn judge(case: &Case, report: &mut CaseReport, verdict: &Verdict) {
    report.elapsed_ms = millis(verdict.elapsed);
    let told: Option<Told> = serde_json::from_str(&verdict.said).ok();
    match verdict.end {
        End::Hung => {
            report.outcome = Outcome::Hung;
            report.detail = verdict.to_string();
            return;
        }
        End::Stopped => return fail(report, INTERRUPTED),
        End::Code(_) | End::Signal(_) => {}
    }
    let mut wrong = Vec::new();
    let due = if case.trigger == Trigger::Sigint { End::Code(130) } else { End::Code(0) };
    if verdict.end != due {
        wrong.push(format!(
            "it {} where it should have {due}\n{}",
            verdict.end,
            verdict.output.trim()
        ));
    }
    match told {
        Some(told) => {
            report.teardown_ms = told.teardown_ms;
            report.leaks = told.leaks;
            wrong.extend(told.wrong);
        }
        None => wrong.push(format!("it told nothing\n{}", verdict.output.trim())),
    }
    if report.teardown_ms > report.bound_ms {
        wrong.push(format!("its teardown took {:.0} ms", report.teardown_ms));
    }
    count(&mut report.leaks, verdict, &mut wrong);
    report.outcome = match (report.leaks.any(), wrong.is_empty()) {
        (true, _) => Outcome::Leaked,
        (false, true) => Outcome::Passed,
        (false, false) => Outcome::Failed,
    };
    report.detail = wrong.join("\n");
}

/// Adds what outlived the process to what it counted itself.
fn count(leaks: &mut Leaks, verdict: &Verdict, wrong: &mut Vec<String>) {
    for process in &verdict.left {
        leaks.processes += process.count();
        wrong.push(format!("it left a process:\n{process}"));
    }
    leaks.files = leaks.files.max(verdict.files.len());
    wrong.extend(verdict.files.iter().map(|file| format!("it left the file {file}")));
}

/// C2: the budget and 100 ms.
fn teardown_bound() -> Duration {
    Config::default().budget + Duration::from_millis(100)
}

/// The detail of cases that somebody stopped while they ran.
pub const INTERRUPTED: &str = "interrupted";

/// What a case may take by default: seconds to grow on a loaded machine, and its teardown.
pub const HARD_BOUND: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests;
