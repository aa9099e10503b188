//! The runner against cases that pass, fail, hang and leak, played by this test binary.

use std::process::{Command, Stdio};

use super::super::axis::{Backend, Load};
use super::*;
use crate::isolate;

/// Runs one case whose process is this very test, where it plays `part`.
fn play(name: &'static str, trigger: Trigger, part: impl FnOnce(), check: impl FnOnce(CaseReport)) {
    if isolate::is_scenario() {
        return part();
    }
    let (backend, load) = (Backend::Forkserver, Load::Idle);
    let case = Case { backend, depth: 1, breadth: 1, trigger, load };
    let args =
        [&format!("matrix::run::tests::{name}"), "--exact", "--nocapture", "--test-threads=1"];
    let stop = Stop::default();
    let isolated = Isolated::new(Duration::from_secs(3)).args(args);
    let running = stop.admit(0, || isolated.start()).unwrap().unwrap();
    let mut report = CaseReport::skipped(&case, millis(teardown_bound()));
    judge(&case, &mut report, &running.wait().unwrap());
    check(report);
}

fn tell(told: &Told) {
    isolate::say(&serde_json::to_string(told).unwrap()).unwrap();
}

#[test]
fn a_case_that_tells_nothing_wrong_passes() {
    play(
        "a_case_that_tells_nothing_wrong_passes",
        Trigger::Return,
        || tell(&Told { teardown_ms: 7.0, ..Told::default() }),
        |report| {
            assert_eq!(report.outcome, Outcome::Passed, "{}", report.detail);
            assert!((report.teardown_ms - 7.0).abs() < f64::EPSILON);
        },
    );
}

#[test]
fn a_case_that_tells_nothing_fails() {
    play(
        "a_case_that_tells_nothing_fails",
        Trigger::Return,
        || (),
        |report| assert_eq!(report.outcome, Outcome::Failed),
    );
}

#[test]
fn a_case_of_sigint_must_end_with_130() {
    play(
        "a_case_of_sigint_must_end_with_130",
        Trigger::Sigint,
        || tell(&Told::default()),
        |report| {
            assert_eq!(report.outcome, Outcome::Failed);
            assert!(report.detail.contains("130"), "{}", report.detail);
        },
    );
}

/// C2
#[test]
fn a_case_over_its_teardown_bound_fails() {
    play(
        "a_case_over_its_teardown_bound_fails",
        Trigger::Return,
        || tell(&Told { teardown_ms: 3101.0, ..Told::default() }),
        |report| assert_eq!(report.outcome, Outcome::Failed),
    );
}

#[test]
fn a_case_that_hangs_is_told_with_a_dump() {
    play(
        "a_case_that_hangs_is_told_with_a_dump",
        Trigger::Return,
        || loop {
            std::thread::park();
        },
        |report| {
            assert_eq!(report.outcome, Outcome::Hung);
            assert!(report.detail.contains("syscall"), "{}", report.detail);
        },
    );
}

/// C10
#[test]
fn a_process_that_outlives_its_case_is_a_leak() {
    play(
        "a_process_that_outlives_its_case_is_a_leak",
        Trigger::Return,
        || {
            drop(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap());
            tell(&Told::default());
        },
        |report| {
            assert_eq!((report.outcome, report.leaks.processes), (Outcome::Leaked, 1));
        },
    );
}

/// C10
#[test]
fn what_a_case_counts_itself_is_a_leak() {
    play(
        "what_a_case_counts_itself_is_a_leak",
        Trigger::Return,
        || {
            tell(&Told {
                leaks: Leaks { threads: 1, fds: 2, ..Leaks::default() },
                ..Told::default()
            })
        },
        |report| assert_eq!((report.outcome, report.leaks.fds), (Outcome::Leaked, 2)),
    );
}

/// What was not run has not failed.
#[test]
fn after_a_stop_no_case_starts() {
    let (backend, trigger, load) = (Backend::Forkserver, Trigger::Return, Load::Idle);
    let case = Case { backend, depth: 1, breadth: 1, trigger, load };
    let stop = Stop::default();
    stop.stop();
    let plan = Plan {
        cases: &[case],
        jobs: NonZeroUsize::MIN,
        hard_bound: Duration::from_secs(3),
        args: |_| Vec::new(),
    };
    let report = run_all(&plan, &stop, |_| ());
    assert_eq!((report.cases[0].outcome, &*report.cases[0].detail), (Outcome::NotRun, ""));
    assert_eq!((report.summary.not_run, report.summary.failed), (1, 0));
    assert!(!report.is_well());
}
