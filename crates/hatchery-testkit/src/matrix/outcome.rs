//! How a case's tree should come out: which faults, and nobody forced.

use std::collections::BTreeSet;

use hatchery::{ExitStatus, Fault, FaultKind, Report, Step, Why};

use super::axis::Trigger;
use super::case::Case;

/// A tree that came down with an error.
#[derive(Debug)]
pub(super) struct Down {
    pub(super) fault: Fault,
    pub(super) report: Report,
}

/// What is wrong with how the root's nursery came out; `None` is a nursery that nobody waited for.
pub(super) fn check(case: &Case, result: Option<Result<(), Down>>) -> Vec<String> {
    let down = match (case.trigger, result) {
        (Trigger::Timeout | Trigger::Drop, None) | (Trigger::Return, Some(Ok(()))) => {
            return Vec::new();
        }
        (_, Some(Err(down))) => down,
        (_, other) => return vec![format!("came out as {other:?}")],
    };
    let forced = check_forced(&down.report);
    if !forced.is_empty() {
        return forced;
    }
    let all = down.fault.leaves();
    let paths: BTreeSet<_> = all.iter().map(|fault| &fault.path).collect();
    let failed_at = |depth: u32| {
        !all.is_empty()
            && paths.len() == all.len()
            && all.iter().all(|f| f.kind == FaultKind::Failed && f.path.depth() == depth as usize)
    };
    let killed_at = |depth: u32| {
        let killed = FaultKind::Died(ExitStatus::Signal(nix::libc::SIGKILL));
        all.len() == 1 && all[0].kind == killed && all[0].path.depth() == depth as usize
    };
    let right = match case.trigger {
        Trigger::LeafError => failed_at(case.depth) && all.len() == 1,
        Trigger::AllLeavesError => return check_leaves(case, &down.fault),
        Trigger::MiddleError => failed_at(1) && all.len() == 1,
        Trigger::RootError => failed_at(0) && all.len() == 1,
        Trigger::Cancel => {
            matches!(&down.fault.kind, FaultKind::Cancelled(reason) if reason.why == Why::Requested)
        }
        Trigger::Sigint => down.fault.kind == FaultKind::Interrupted { signal: nix::libc::SIGINT },
        Trigger::SigkillLeaf => killed_at(case.depth),
        Trigger::SigkillMiddle => killed_at(1),
        Trigger::Return | Trigger::Timeout | Trigger::Drop => false,
    };
    if right { Vec::new() } else { vec![down.fault.render()] }
}

fn check_forced(report: &Report) -> Vec<String> {
    // A dead channel means that the actor had unwound; a loaded machine may be slow to end it.
    let had_left = |step: &hatchery::StepTaken| step.step == Step::ChannelDead;
    let mut forced = report.forced();
    forced.retain(|actor| !actor.steps.iter().any(had_left));
    let told = |actor: &&hatchery::ActorReport| {
        format!("`{}` had to be forced: {:?}", actor.path, actor.steps)
    };
    forced.iter().map(told).collect()
}

/// C4: every leaf has erred, or it or one actor above it was cancelled for the error of another.
/// Each is told once.
#[allow(clippy::wildcard_enum_match_arm, reason = "nothing else has a place in it")]
fn check_leaves(case: &Case, fault: &Fault) -> Vec<String> {
    let told = fault.leaves();
    let mut wrong = Vec::new();
    for fault in &told {
        let right = match &fault.kind {
            FaultKind::Failed => fault.path.depth() == case.depth as usize,
            // By an actor that was itself told to go, or whose body had failed.
            FaultKind::Cancelled(reason) => {
                let is_above = |path: &str| path.starts_with(&format!("{}/", reason.by));
                reason.why == Why::BodyFailed && is_above(fault.path.as_str())
            }
            _ => false,
        };
        if !right {
            wrong.push(format!("told beside the leaves' errors: {fault}"));
        }
    }
    if !told.iter().any(|fault| fault.kind == FaultKind::Failed) {
        wrong.push("no leaf's error was told".to_owned());
    }
    for leaf in leaves("root", case.depth, case.breadth) {
        let of_it = |fault: &&&Fault| {
            let above = format!("{}/", fault.path);
            fault.path.as_str() == leaf || leaf.starts_with(&above)
        };
        let times = told.iter().filter(of_it).count();
        if times != 1 {
            wrong.push(format!("what became of `{leaf}` was told {times} times"));
        }
    }
    if !wrong.is_empty() {
        wrong.push(fault.render());
    }
    wrong
}

fn leaves(above: &str, depth: u32, breadth: u32) -> Vec<String> {
    if depth == 0 {
        return vec![above.to_owned()];
    }
    let below = |i| leaves(&format!("{above}/a{i}"), depth - 1, breadth);
    (0..breadth).flat_map(below).collect()
}
