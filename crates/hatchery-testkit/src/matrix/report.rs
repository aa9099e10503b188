//! What came of a matrix: data for JSON and for tables.

use serde::{Deserialize, Serialize};

use super::axis::{Backend, Load, Trigger};
use super::case::Case;

/// How one case came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should.
    Passed,
    /// Another outcome, or over its bound.
    Failed,
    /// It had to be killed from outside.
    Hung,
    /// It left something behind.
    Leaked,
    /// The combination makes no sense.
    Skipped,
    /// Somebody stopped the matrix before it was its turn.
    #[serde(rename = "not run")]
    NotRun,
}

/// How many of what were left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Leaks {
    /// Processes.
    pub processes: usize,
    /// Threads.
    pub threads: usize,
    /// Fds.
    pub fds: usize,
    /// Files.
    pub files: usize,
}

impl Leaks {
    /// Whether there is any.
    #[must_use]
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// One case.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CaseReport {
    /// `forkserver/d3b3/leaf-error/idle`.
    pub id: String,
    /// How actors are brought to life.
    pub backend: Backend,
    /// Levels below the root.
    pub depth: u32,
    /// Children of each actor that has some.
    pub breadth: u32,
    /// How many actors below the root.
    pub actors: u64,
    /// What ended it.
    pub trigger: Trigger,
    /// What went on in it meanwhile.
    pub load: Load,
    /// How it came out.
    pub outcome: Outcome,
    /// The whole case, in milliseconds.
    pub elapsed_ms: f64,
    /// From the trigger to the return of the root's nursery, in milliseconds.
    pub teardown_ms: f64,
    /// What the teardown may take, in milliseconds.
    pub bound_ms: f64,
    /// What was left behind.
    pub leaks: Leaks,
    /// Why it didn't pass; a dump if it hung.
    pub detail: String,
}

impl CaseReport {
    /// A case that has not been run.
    pub(super) fn skipped(case: &Case, bound_ms: f64) -> Self {
        Self {
            id: case.id(),
            backend: case.backend,
            depth: case.depth,
            breadth: case.breadth,
            actors: case.actors(),
            trigger: case.trigger,
            load: case.load,
            outcome: Outcome::Skipped,
            elapsed_ms: 0.0,
            teardown_ms: 0.0,
            bound_ms,
            leaks: Leaks::default(),
            detail: String::new(),
        }
    }
}

/// All cases.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MatrixReport {
    /// In the order of the selection.
    pub cases: Vec<CaseReport>,
    /// Counted.
    pub summary: Summary,
}

/// How many came out how.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Summary {
    /// As they should.
    pub passed: usize,
    /// Otherwise.
    pub failed: usize,
    /// Killed from outside.
    pub hung: usize,
    /// Left something behind.
    pub leaked: usize,
    /// Made no sense.
    pub skipped: usize,
    /// Had no turn any more.
    pub not_run: usize,
    /// The whole matrix, in milliseconds.
    pub elapsed_ms: f64,
}

impl MatrixReport {
    /// Counts the cases.
    #[must_use]
    pub fn new(cases: Vec<CaseReport>, elapsed_ms: f64) -> Self {
        let count = |outcome| cases.iter().filter(|case| case.outcome == outcome).count();
        let summary = Summary {
            passed: count(Outcome::Passed),
            failed: count(Outcome::Failed),
            hung: count(Outcome::Hung),
            leaked: count(Outcome::Leaked),
            skipped: count(Outcome::Skipped),
            not_run: count(Outcome::NotRun),
            elapsed_ms,
        };
        Self { cases, summary }
    }

    /// Whether every case passed or was skipped, and at least one passed. One that was not run says
    /// nothing, so then it is not well.
    #[must_use]
    pub fn is_well(&self) -> bool {
        let Summary { passed, failed, hung, leaked, not_run, .. } = self.summary;
        passed > 0 && failed + hung + leaked + not_run == 0
    }
}
