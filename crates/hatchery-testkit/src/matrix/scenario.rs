//! The inside of a case's process: grows the tree, pulls the trigger, counts.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hatchery::{Runtime, Stdio};
use hatchery_spawn::Pidfd;
use serde::{Deserialize, Serialize};

use super::axis::{Backend, Trigger};
use super::case::Case;
use super::load::{self, Busy};
use super::outcome::{Down, check};
use super::report::Leaks;
use super::tree::{AsTold, Leaves, Plan, Up, Watching, plant};
use crate::counts::Counts;
use crate::isolate;

/// What a case's process tells whoever looks on.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) teardown_ms: f64,
    pub(super) leaks: Leaks,
    pub(super) wrong: Vec<String>,
}

/// Runs the case in this process and tells what came of it. Returns the exit code; after SIGINT
/// the process leaves with 130 whatever that is.
#[must_use]
pub fn inside(case: &Case) -> i32 {
    // The watcher comes by here too, and leaves.
    let is_watched = isolate::is_scenario();
    let before = Counts::now();
    let mut told = Told::default();
    if let Err(error) = isolate::build_runtime().map(|tokio| {
        tokio.block_on(scenario(case, &mut told));
    }) {
        told.wrong.push(format!("no tokio runtime: {error}"));
    }
    if let Some(difference) = Counts::now().difference(&before) {
        told.leaks = Leaks {
            processes: difference.children.len(),
            threads: difference.threads.len(),
            fds: difference.fds.len(),
            // Shared memory is a file, to the kernel too.
            files: difference.files.len() + difference.memory.len(),
        };
        told.wrong.push(format!("left behind:\n{difference}"));
    }
    let text = serde_json::to_string(&told).unwrap_or_default();
    if !is_watched {
        println!("{text}");
        return i32::from(!told.wrong.is_empty());
    }
    match isolate::say(&text) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

async fn scenario(case: &Case, told: &mut Told) {
    let backend = match case.backend {
        Backend::Forkserver => hatchery::Backend::Forkserver,
        Backend::Thread => hatchery::Backend::Thread,
        Backend::Exec => hatchery::Backend::Exec,
    };
    // After a signal a watchdog stays until the process ends; here all that stays is counted.
    let builder = Runtime::builder().backend(backend).stdio(Stdio::Null).watchdog(None);
    let runtime = match builder.open() {
        Ok(runtime) => runtime,
        Err(error) => return told.wrong.push(error.to_string()),
    };
    let leaves = match case.trigger {
        Trigger::LeafError => Leaves::FirstErrs,
        Trigger::AllLeavesError => Leaves::AllErr,
        Trigger::MiddleError => Leaves::MiddleErrs,
        Trigger::Return
        | Trigger::RootError
        | Trigger::Cancel
        | Trigger::Timeout
        | Trigger::Drop
        | Trigger::Sigint
        | Trigger::SigkillLeaf
        | Trigger::SigkillMiddle => Leaves::Hold,
    };
    let pause = load::pause(case.actors());
    let plan = Plan { breadth: case.breadth, leaves, load: case.load, pause };
    let mut watching = Watching::default();
    let (pulled, watched) = (OnceLock::new(), OnceLock::new());
    let (up, all_up) = tokio::sync::oneshot::channel();
    let nursery = runtime.nursery(async |n| {
        let (children, ups) = plant(&n, case.depth, plan).await?;
        if ups.len() as u64 != case.actors() {
            return Err(hatchery::Error::msg(format!("{} actors are up", ups.len())));
        }
        let busy = Busy::begin(plan.load, plan.pause, &children).await?;
        let holding = watching.watch(children, case.depth, plan, busy);
        // Nobody waits for it under most triggers.
        let _unwaited = up.send(());
        watched.get_or_init(|| Watched::open(case, &ups));
        pulled.get_or_init(Instant::now);
        pull(case, &n, &ups, holding).await
    });
    let result = if matches!(case.trigger, Trigger::Timeout | Trigger::Drop) {
        let ended = async {
            // The tree is up: from here on the time-out counts.
            let _all_up = all_up.await;
            if case.trigger == Trigger::Timeout {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            result = nursery => Some(result),
            () = ended => None,
        }
    } else {
        Some(nursery.await)
    };
    if let (Some(Ok(watched)), Some(pulled), Some(_)) = (watched.get(), pulled.get(), &result) {
        told.wrong.extend(watched.survivors(case, *pulled));
    }
    let result = match result {
        Some(Err(error)) => {
            let report = error.report().clone();
            let mut error = hatchery::Error::from(error);
            if case.trigger == Trigger::AllLeavesError {
                error = watching.all_told(error).await;
            }
            Some(Err(Down { fault: error.into_fault(), report }))
        }
        Some(Ok(())) => Some(Ok(())),
        None => None,
    };
    runtime.close().await;
    told.teardown_ms = pulled.get().map_or(0.0, |at| millis(at.elapsed()));
    told.wrong.extend(check(case, result));
    if let Some(Err(error)) = watched.get() {
        told.wrong.push(format!("an actor had gone before the trigger: {error}"));
    }
}

/// The processes of a tree, held so that their end can be seen.
struct Watched(Vec<(String, Pidfd)>);

impl Watched {
    fn open(case: &Case, ups: &[Up]) -> std::io::Result<Self> {
        if case.backend == Backend::Thread {
            return Ok(Self(Vec::new()));
        }
        ups.iter()
            .map(|(path, pid)| Ok((path.clone(), Pidfd::open(*pid)?)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Who lives although the root's nursery has returned (C1). Below a killed actor a second is
    /// granted, counted from the kill (C3).
    fn survivors(&self, case: &Case, pulled: Instant) -> Vec<String> {
        let until = pulled + ORPHANS_GONE;
        let late = |(path, process): &&(String, Pidfd)| {
            let is_orphan = case.trigger == Trigger::SigkillMiddle && path.starts_with("root/a0/");
            let left = until.saturating_duration_since(Instant::now());
            !process.wait_dead(if is_orphan { left } else { Duration::ZERO })
        };
        let late = self.0.iter().filter(late);
        late.map(|(path, _)| format!("`{path}` outlived the nursery")).collect()
    }
}

/// Pulls the trigger, if that is the root's to do.
async fn pull(
    case: &Case,
    n: &hatchery::Nursery,
    ups: &[Up],
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

pub(super) fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

/// C3
const ORPHANS_GONE: Duration = Duration::from_secs(1);
