//! One round: T(3,3) grows, works, is struck, ends, and is looked at.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hatchery::{ActorReport, Error, FaultKind, Report, Runtime, ScopeError};
use hatchery_spawn::Pidfd;
use nix::libc;
use tokio::task::JoinSet;

use super::plan::{Ending, Hit, Plan, Strike};
use super::tree::tend;
use crate::dump::Process;
use crate::fault::{self, children_of};

/// What came of a round.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) actors: u64,
    pub(super) hits: BTreeMap<String, u64>,
    pub(super) missed: u64,
    pub(super) outcome: String,
    pub(super) teardown: Duration,
    pub(super) wrong: Vec<String>,
    /// The forkserver was killed: the runtime has to go too.
    pub(super) lost_server: bool,
    /// Nothing more can be said: the nursery never returned.
    pub(super) hung: bool,
}

/// What a strike has done.
struct Landed {
    what: &'static str,
    /// When it meant the end of the tree.
    deadly: Option<Instant>,
    /// Who was below the struck forkserver.
    below: Vec<Pidfd>,
}

/// Goes through one round. `server` is the forkserver's process.
pub(super) async fn go(plan: &Plan, server: u32, budget: Duration) -> Seen {
    let mut seen = Seen::default();
    let begun = Instant::now();
    let mut strikes = JoinSet::new();
    for strike in &plan.strikes {
        strikes.spawn(land(strike.clone(), server, begun));
    }
    let end = begun + plan.ends_after;
    let Ok(result) = tokio::time::timeout(HANG, tree(plan.ending, end)).await else {
        let all = Process::of(std::process::id()).map(|all| all.to_string()).unwrap_or_default();
        seen.wrong.push(format!("the nursery hangs\n{all}"));
        seen.hung = true;
        return seen;
    };
    let returned = Instant::now();
    let (mut deadly, mut below) = (end, Vec::new());
    while let Some(landed) = strikes.join_next().await {
        match landed.ok().flatten() {
            Some(landed) => {
                *seen.hits.entry(landed.what.to_owned()).or_default() += 1;
                deadly = landed.deadly.map_or(deadly, |at| at.min(deadly));
                seen.lost_server |= !landed.below.is_empty() || landed.what == SERVER_KILLED;
                below.extend(landed.below);
            }
            None => seen.missed += 1,
        }
    }
    seen.teardown = returned.saturating_duration_since(deadly);
    if seen.teardown > budget + SLACK {
        seen.wrong.push(format!("the teardown took {:?}", seen.teardown));
    }
    judge(plan, result, &mut seen);
    seen.wrong.extend(left(server, &below, &seen, budget, plan.ending).await);
    seen
}

type Came = Option<(Result<(), ScopeError>, Report)>;

/// `None`: it was dropped.
async fn tree(ending: Ending, end: Instant) -> Came {
    let nursery = hatchery::nursery_with_report(async |n| {
        let ended = async {
            tokio::time::sleep_until(end.into()).await;
            match ending {
                Ending::Return => return Ok(()),
                Ending::Error => return Err(Error::msg(AS_TOLD)),
                Ending::Cancel => n.cancel(),
                Ending::Drop => {}
            }
            std::future::pending().await
        };
        tokio::select! {
            ended = ended => ended,
            ended = tend(&n, "a", 3) => ended,
        }
    });
    if ending == Ending::Drop {
        return tokio::time::timeout_at(end.into(), nursery).await.ok();
    }
    Some(nursery.await)
}

/// Strikes when it is time; `None` if nobody was there.
async fn land(strike: Strike, server: u32, begun: Instant) -> Option<Landed> {
    tokio::time::sleep_until((begun + strike.after).into()).await;
    let process = match &strike.whom {
        None => Pidfd::open(server).ok()?,
        Some(name) => fault::find_child(server, name)?,
    };
    let below = match (&strike.whom, strike.hit) {
        (None, Hit::Kill) => {
            let pids = children_of(server).into_iter();
            pids.filter_map(|pid| Pidfd::open(pid).ok()).collect()
        }
        _ => Vec::new(),
    };
    let (signal, what) = match (strike.hit, strike.whom.is_some()) {
        (Hit::Kill, true) => (libc::SIGKILL, "actor killed"),
        (Hit::Kill, false) => (libc::SIGKILL, SERVER_KILLED),
        (Hit::Stop, true) => (libc::SIGSTOP, "actor stopped"),
        (Hit::Pause(_), true) => (libc::SIGSTOP, "actor paused"),
        (Hit::Stop | Hit::Pause(_), false) => (libc::SIGSTOP, "forkserver paused"),
    };
    process.send_signal(signal).ok()?;
    let deadly = (strike.hit == Hit::Kill).then(Instant::now);
    if let Hit::Pause(span) = strike.hit {
        tokio::time::sleep(span).await;
        // Killed meanwhile, perhaps.
        let _gone = process.send_signal(libc::SIGCONT);
    }
    Some(Landed { what, deadly, below })
}

/// Whether the nursery came out as it had to.
fn judge(plan: &Plan, result: Came, seen: &mut Seen) {
    // An actor that is only paused is no excuse: it goes on.
    let was_struck = seen.hits.keys().any(|what| what != "actor paused");
    let Some((result, report)) = result else {
        "dropped".clone_into(&mut seen.outcome);
        return;
    };
    seen.actors = report.actors.iter().map(count).sum();
    let kind = match &result {
        Ok(()) => "returned".to_owned(),
        Err(error) if error.is_cancelled() => "cancelled".to_owned(),
        Err(error) => name(&format!("{:?}", error.fault().kind)),
    };
    let right = match (plan.ending, &result) {
        (Ending::Return, Ok(())) => true,
        (Ending::Cancel, Err(error)) => error.is_cancelled() || was_struck,
        (Ending::Error, Err(error)) => error.fault().message == AS_TOLD || was_struck,
        (Ending::Return | Ending::Drop, Err(_)) => was_struck,
        (_, Ok(())) => false,
    };
    // On a machine that gives a process no time it is given up on, which says nothing wrong; that
    // it goes all the same is looked at below.
    let starved =
        |error: &ScopeError| error.faults().iter().any(|fault| fault.kind == FaultKind::Unreapable);
    let right = right || result.as_ref().is_err_and(starved);
    if !right {
        let shown = result.map_or_else(
            |error| format!("{}\n{}", error.render(), error.report()),
            |()| "it returned".to_owned(),
        );
        seen.wrong.push(format!("{:?} came out as {shown}", plan.ending));
    }
    seen.outcome = kind;
}

/// The first word of a `Debug` rendering.
fn name(debug: &str) -> String {
    debug.chars().take_while(|letter| letter.is_alphanumeric()).collect()
}

fn count(actor: &ActorReport) -> u64 {
    1 + actor.below.iter().map(count).sum::<u64>()
}

/// Who is left below the forkserver, or below the one that was killed, after the second of C3.
async fn left(
    server: u32,
    below: &[Pidfd],
    seen: &Seen,
    budget: Duration,
    ending: Ending,
) -> Vec<String> {
    // Who drops a nursery has not waited for it: its budget comes first.
    let grace = if ending == Ending::Drop { budget + ORPHANS_GONE } else { ORPHANS_GONE };
    let until = Instant::now() + grace;
    loop {
        let pids = if seen.lost_server { Vec::new() } else { children_of(server) };
        let alive = below.iter().filter(|one| !one.is_dead()).count();
        if pids.is_empty() && alive == 0 {
            return Vec::new();
        }
        if Instant::now() > until {
            let shown = pids.into_iter().filter_map(Process::of);
            let shown = shown.map(|process| format!("an actor is left:\n{process}"));
            let orphans = (alive > 0).then(|| format!("{alive} outlived their forkserver"));
            return shown.chain(orphans).collect();
        }
        // The end of a stranger's child is no event here.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Opens a runtime and goes through one round without faults, so that all that comes with the
/// first use is there.
pub(super) async fn open(budget: Duration) -> Result<(Runtime, u32), String> {
    let config = hatchery::Config::with_budget(budget);
    let runtime = Runtime::builder().config(config).stdio(hatchery::Stdio::Null).signals(false);
    let runtime = runtime.open().map_err(|error| error.to_string())?;
    // The tree's time may be over before its first actor has been asked for.
    let first = hatchery::nursery(async |n| Ok(n.start("first").await.map(drop)?)).await;
    first.map_err(|error| error.render())?;
    let end = Instant::now() + Duration::from_millis(100);
    match tree(Ending::Return, end).await {
        Some((Ok(()), _)) => {}
        Some((Err(error), _)) => return Err(error.render()),
        None => return Err("dropped".to_owned()),
    }
    let server = runtime.forkserver_pid().ok_or("no forkserver")?;
    Ok((runtime, server))
}

const AS_TOLD: &str = "as told";
const SERVER_KILLED: &str = "forkserver killed";

/// What a loaded machine may add to a budget.
const SLACK: Duration = Duration::from_secs(2);
/// C3
const ORPHANS_GONE: Duration = Duration::from_secs(1);
/// Nothing takes this long unless it hangs.
const HANG: Duration = Duration::from_secs(30);
