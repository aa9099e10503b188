//! Runs cases: outside, under a bound; inside, the tree itself.

use std::process::Command;
use std::time::{Duration, Instant};

use hatchery::{Config, ExitStatus, FaultKind, Runtime, ScopeError, Stdio, Why};
use hatchery_spawn::Pidfd;
use serde::{Deserialize, Serialize};

use super::axis::{Backend, Trigger};
use super::case::Case;
use super::report::{CaseReport, Leaks, Outcome};
use super::tree::{AsTold, Leaves, Plan, Up, plant, watch};
use crate::counts::Counts;
use crate::isolate;

/// Runs one case in a process of its own: `command` must call [`inside`] with the same case.
#[must_use]
pub fn run(case: &Case, command: Command) -> CaseReport {
    let config = Config::default();
    let bound = config.budget + SLACK;
    let mut report = CaseReport {
        id: case.id(),
        backend: case.backend,
        depth: case.depth,
        breadth: case.breadth,
        actors: case.actors(),
        trigger: case.trigger,
        outcome: Outcome::Skipped,
        elapsed_ms: 0.0,
        teardown_ms: 0.0,
        bound_ms: millis(bound),
        leaks: Leaks::default(),
        detail: String::new(),
    };
    if let Some(why) = case.skipped() {
        why.clone_into(&mut report.detail);
        return report;
    }
    match isolate::run(command, HARD_BOUND + bound) {
        Ok(outcome) => judge(case, &mut report, &outcome, bound),
        Err(error) => {
            report.outcome = Outcome::Failed;
            report.detail = format!("the case could not be started: {error}");
        }
    }
    report
}

fn judge(case: &Case, report: &mut CaseReport, outcome: &isolate::Outcome, bound: Duration) {
    report.elapsed_ms = millis(outcome.elapsed);
    let Some(status) = outcome.status else {
        report.outcome = Outcome::Hung;
        report.detail = outcome.dump.clone().unwrap_or_default();
        report.leaks.processes = outcome.leftovers.len();
        return;
    };
    let line = outcome.stdout.lines().rev().find_map(|line| line.strip_prefix(PREFIX));
    let told: Option<Told> = line.and_then(|line| serde_json::from_str(line).ok());
    let mut wrong = Vec::new();
    if case.trigger == Trigger::Sigint {
        if status.code() != Some(130) {
            wrong.push(format!("{status} where 130 was due"));
        }
        report.teardown_ms = told.as_ref().map_or(0.0, |told| {
            (millis(outcome.elapsed) - told.triggered_ms).max(0.0)
        });
    } else if let Some(told) = &told {
        report.teardown_ms = told.teardown_ms;
        report.leaks = told.leaks;
        wrong.extend(told.wrong.clone());
        if !status.success() {
            wrong.push(format!("{status}"));
        }
    } else {
        wrong.push(format!("{status}, and nothing was told: {}", outcome.stderr.trim()));
    }
    if report.teardown_ms > millis(bound) {
        wrong.push(format!("teardown took {:.0} ms", report.teardown_ms));
    }
    for left in &outcome.leftovers {
        wrong.push(format!("left behind: process {} {}", left.pid, left.command));
    }
    report.leaks.processes += outcome.leftovers.len();
    report.outcome = match (report.leaks.any(), wrong.is_empty()) {
        (true, _) => Outcome::Leaked,
        (false, true) => Outcome::Passed,
        (false, false) => Outcome::Failed,
    };
    report.detail = wrong.join("\n");
}

/// What a case's process tells on its stdout.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Told {
    triggered_ms: f64,
    teardown_ms: f64,
    leaks: Leaks,
    wrong: Vec<String>,
}

/// The inside of a case's process: grows the tree, pulls the trigger, counts. Returns the exit
/// code; for SIGINT the process ends by itself, as it should.
#[must_use]
pub fn inside(case: &Case) -> i32 {
    let began = Instant::now();
    let before = Counts::now();
    let mut told = Told::default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no tokio runtime: {error}");
            return 1;
        }
    };
    runtime.block_on(scenario(case, began, &mut told));
    drop(runtime);
    if case.trigger == Trigger::Sigint {
        // The nursery has returned; the exit hook has the status.
        return 0;
    }
    if let Some(difference) = before.difference() {
        told.leaks = Leaks {
            processes: difference.children.len(),
            threads: difference.threads.len(),
            fds: difference.fds.len(),
            files: difference.files.len(),
        };
        told.wrong.push(format!("left behind:\n{difference}"));
    }
    tell(&told);
    0
}

fn tell(told: &Told) {
    if let Ok(line) = serde_json::to_string(told) {
        println!("{PREFIX}{line}");
    }
}

async fn scenario(case: &Case, began: Instant, told: &mut Told) {
    let backend = match case.backend {
        Backend::Forkserver => hatchery::Backend::Forkserver,
        Backend::Thread => hatchery::Backend::Thread,
        Backend::Exec => hatchery::Backend::Exec,
    };
    let runtime = match Runtime::builder().backend(backend).stdio(Stdio::Null).open() {
        Ok(runtime) => runtime,
        Err(error) => return told.wrong.push(error.to_string()),
    };
    let leaves = match case.trigger {
        Trigger::LeafError => Leaves::FirstErrs,
        Trigger::AllLeavesError => Leaves::AllErr,
        Trigger::MiddleError => Leaves::MiddleErrs,
        _ => Leaves::Hold,
    };
    let plan = Plan { breadth: case.breadth, leaves };
    let pulled = std::sync::OnceLock::new();
    let (up, all_up) = tokio::sync::oneshot::channel();
    let nursery = runtime.nursery(async |n| {
        let (children, ups) = plant(&n, case.depth, plan).await?;
        if ups.len() as u64 != case.actors() {
            return Err(hatchery::Error::msg(format!("{} actors are up", ups.len())));
        }
        let holding = watch(children, case.depth, plan);
        // Nobody waits for it under most triggers.
        let _unwaited = up.send(());
        pulled.get_or_init(Instant::now);
        pull(case, &n, &ups, began, holding).await
    });
    let result = match case.trigger {
        Trigger::Timeout | Trigger::Drop => {
            let ended = async {
                // The tree is up: from here on the time-out counts.
                let _all_up = all_up.await;
                if case.trigger == Trigger::Timeout {
                    let never = std::future::pending::<()>();
                    let _elapsed = tokio::time::timeout(Duration::from_millis(1), never).await;
                }
            };
            tokio::select! {
                result = nursery => Some(result),
                () = ended => None,
            }
        }
        _ => Some(nursery.await),
    };
    if case.trigger != Trigger::Sigint {
        runtime.close().await;
    }
    told.teardown_ms = pulled.get().map_or(0.0, |at| millis(at.elapsed()));
    told.wrong.extend(check(case, result));
}

/// Pulls the trigger, if that is the root's to do.
async fn pull(
    case: &Case,
    n: &hatchery::Nursery,
    ups: &[Up],
    began: Instant,
    holding: impl Future<Output = hatchery::Result<()>>,
) -> hatchery::Result<()> {
    match case.trigger {
        Trigger::Return => return Ok(()),
        Trigger::RootError => return Err(AsTold { who: "root".to_owned() }.into()),
        Trigger::Cancel => {
            let n = n.clone();
            tokio::spawn(async move { n.cancel() });
        }
        Trigger::Sigint => {
            tell(&Told { triggered_ms: millis(began.elapsed()), ..Told::default() });
            Pidfd::open(std::process::id())?.send_signal(nix::libc::SIGINT)?;
        }
        Trigger::SigkillLeaf => kill(ups, case.depth)?,
        Trigger::SigkillMiddle => kill(ups, 1)?,
        Trigger::LeafError
        | Trigger::AllLeavesError
        | Trigger::MiddleError
        | Trigger::Timeout
        | Trigger::Drop => {}
    }
    holding.await
}

/// Kills the first actor at that depth.
fn kill(ups: &[Up], depth: u32) -> hatchery::Result<()> {
    let at_depth = |(path, _): &&Up| path.matches('/').count() == depth as usize;
    let victim = ups.iter().find(at_depth).ok_or_else(|| hatchery::Error::msg("nobody to kill"))?;
    Pidfd::open(victim.1)?.send_signal(nix::libc::SIGKILL)?;
    Ok(())
}

/// What is wrong with how the root's nursery came out.
fn check(case: &Case, result: Option<Result<(), ScopeError>>) -> Vec<String> {
    let is_leaf = |path: &hatchery::ActorPath| path.depth() == case.depth as usize;
    let result = match (case.trigger, result) {
        (Trigger::Timeout | Trigger::Drop, None) | (Trigger::Return, Some(Ok(()))) => {
            return Vec::new();
        }
        (_, Some(Err(error))) => error,
        (_, other) => return vec![format!("came out as {other:?}")],
    };
    let all = result.fault().leaves();
    let right = match case.trigger {
        Trigger::LeafError => all.iter().all(|f| f.kind == FaultKind::Failed && is_leaf(&f.path)) && all.len() == 1,
        Trigger::AllLeavesError => all.iter().all(|f| f.kind == FaultKind::Failed && is_leaf(&f.path)),
        Trigger::MiddleError => all.iter().all(|f| f.kind == FaultKind::Failed && f.path.depth() == 1) && all.len() == 1,
        Trigger::RootError => all.iter().all(|f| f.kind == FaultKind::Failed && f.path.depth() == 0),
        Trigger::Cancel => {
            matches!(&result.fault().kind, FaultKind::Cancelled(reason) if reason.why == Why::Requested)
        }
        Trigger::Sigint => true,
        Trigger::SigkillLeaf | Trigger::SigkillMiddle => {
            let depth = if case.trigger == Trigger::SigkillLeaf { case.depth } else { 1 };
            let killed = FaultKind::Died(ExitStatus::Signal(nix::libc::SIGKILL));
            all.iter().all(|f| f.kind == killed && f.path.depth() == depth as usize) && all.len() == 1
        }
        Trigger::Return | Trigger::Timeout | Trigger::Drop => false,
    };
    if right { Vec::new() } else { vec![result.render()] }
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

/// Marks the line that a case tells its result in.
const PREFIX: &str = "hatchery-case ";
/// What a teardown may take beyond its budget (C2).
const SLACK: Duration = Duration::from_millis(100);
/// What growing a tree may take before it counts as a hang.
const HARD_BOUND: Duration = Duration::from_secs(20);
