//! From an error in every leaf to the return of the root's nursery.

use std::error::Error;
use std::process::Command;
use std::time::Duration;

use hatchery_testkit::matrix::{Backend, Case, Outcome, Trigger, run};

use crate::table::{Samples, Table};

pub(crate) fn measure(table: &mut Table, count: usize) -> Result<(), Box<dyn Error>> {
    for depth in [3, 4] {
        let case = Case {
            backend: Backend::Forkserver,
            depth,
            breadth: 2,
            trigger: Trigger::AllLeavesError,
        };
        let mut samples = Samples::default();
        for _ in 0..count {
            let mut command = Command::new("/proc/self/exe");
            command.args(["case", "forkserver", &depth.to_string(), "2", "all-leaves-error"]);
            let report = run(&case, command);
            if report.outcome != Outcome::Passed {
                return Err(report.detail.into());
            }
            samples.push(Duration::from_secs_f64(report.teardown_ms / 1e3));
        }
        let goal = if depth == 3 { "≤ 20 ms" } else { "-" };
        table.alone(
            &format!("T({depth},2), all leaves err, to the runtime closed"),
            &mut samples,
            goal,
        );
    }
    Ok(())
}
