//! From an error in every leaf to the return of the root's nursery.

use std::process::Command;

use hatchery_testkit::matrix::{Backend, Case, Load, Outcome as End, Trigger, run};

use crate::Outcome;
use crate::cli::Extent;
use crate::figures::Samples;
use crate::report::{Goal, Row, Unit};

pub(crate) fn measure(extent: Extent) -> Outcome {
    for depth in [3, 4] {
        let (backend, trigger) = (Backend::Forkserver, Trigger::AllLeavesError);
        let case = Case { backend, depth, breadth: 2, trigger, load: Load::Idle };
        let mut samples = Samples::default();
        for turn in 0..=extent.pick(3, 30) {
            let mut command = Command::new("/proc/self/exe");
            command.args(["case", backend.name(), &depth.to_string(), "2", trigger.name()]);
            let report = run(&case, command);
            if report.outcome != End::Passed {
                return Err(report.detail.into());
            }
            // The first warms up.
            if turn > 0 {
                samples.push(report.teardown_ms / 1e3);
            }
        }
        let what = format!("T({depth},2), all leaves err, to the runtime closed");
        let row = Row::new("errors", what, Unit::Seconds).alone(&samples);
        if depth == 3 { row.goal(Goal::AtMost(10e-3)) } else { row }.tell();
    }
    crate::cuts::measure(extent)
}
