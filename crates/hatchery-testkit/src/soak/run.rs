//! The soak from outside and from inside.

use std::io;
use std::time::{Duration, Instant};

use hatchery::Backend;
use hatchery_spawn::Pidfd;
use nix::libc;
use serde::{Deserialize, Serialize};

use super::curve::{Held, Sample};
use super::cycles::{Cycle, Cycled, cycled};
use super::plan::{Plan, Rng};
use super::report::{Leak, SoakReport};
use super::round::{self, Seen};
use crate::counts::Counts;
use crate::fault;
use crate::isolate::{self, End, Isolated};

/// A soak to be run; also what its processes are told, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    /// What chooses the faults.
    pub seed: u64,
    /// For how long.
    pub span: Duration,
    /// Ends earlier when so many actors have come and gone.
    pub actors: Option<u64>,
    /// The first round, to have one again.
    pub first: u64,
    /// How many rounds at most.
    pub rounds: Option<u64>,
    /// Never kill the long root's forkserver, so that its curve is one.
    pub keep_forkserver: bool,
    /// Kill short-lived roots beside it.
    pub kill_roots: bool,
    /// This process is one of those, and dies after this.
    pub dies_after: Option<Duration>,
    /// How often each [`Cycle`] is gone through afterwards, on each backend; 0 for not at all.
    pub cycles: u64,
    /// This process goes through the cycles, and through no rounds.
    pub is_cycling: bool,
}

/// Runs a soak: this program again, with the arguments that `args` makes of what is to be told to
/// [`inside`].
///
/// # Errors
/// No process could be had, or the long root told nothing.
pub fn run(options: &Options, args: fn(&str) -> Vec<String>) -> io::Result<SoakReport> {
    let isolated = |options: &Options, bound: Duration| -> io::Result<_> {
        Isolated::new(bound).args(args(&serde_json::to_string(options)?)).start()
    };
    let long = isolated(options, options.span + OVERTIME)?;
    let begun = Instant::now();
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let (killed, verdict) = std::thread::scope(|scope| {
        let killing = scope.spawn(move || {
            let mut killed = (0, Vec::new());
            // Ends with the long root, whose waiter drops the other side.
            while options.kill_roots
                && told.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty)
                && begun.elapsed() < options.span
            {
                let one = sacrifice(options, killed.0);
                let verdict = isolated(&one, OVERTIME).and_then(isolate::Running::wait);
                let wrong = match verdict {
                    Ok(verdict) if verdict.end == End::Signal(libc::SIGKILL) => {
                        (!verdict.left.is_empty()).then(|| verdict.to_string())
                    }
                    Ok(verdict) => Some(verdict.to_string()),
                    Err(error) => Some(error.to_string()),
                };
                let round = one.first;
                killed.1.extend(wrong.map(|what| Leak {
                    round,
                    what: format!("of a killed root ({:?}): {what}", one.dies_after),
                }));
                killed.0 += 1;
            }
            killed
        });
        let verdict = long.wait();
        drop(tell);
        (killing.join().unwrap_or_default(), verdict)
    });
    let verdict = verdict?;
    let mut report: SoakReport = serde_json::from_str(&verdict.said)
        .map_err(|error| io::Error::other(format!("the root told nothing: {error}\n{verdict}")))?;
    if !verdict.left.is_empty() || !verdict.files.is_empty() || verdict.end != End::Code(0) {
        report.leaks.push(Leak { round: report.rounds, what: verdict.to_string() });
    }
    report.roots_killed = killed.0;
    report.leaks.extend(killed.1);
    if options.cycles > 0 {
        let cycling = Options { is_cycling: true, ..options.clone() };
        let bound = OVERTIME + PER_CYCLE * u32::try_from(options.cycles).unwrap_or(u32::MAX);
        let verdict = isolated(&cycling, bound)?.wait()?;
        match serde_json::from_str(&verdict.said) {
            Ok(cycles) => report.cycles = cycles,
            Err(_) => report.leaks.push(Leak { round: 0, what: format!("of cycles: {verdict}") }),
        }
    }
    Ok(report)
}

/// A root that dies in one of its first rounds.
fn sacrifice(options: &Options, number: u64) -> Options {
    let mut rng = Rng::of(!options.seed, number);
    Options {
        first: number * 1000,
        rounds: None,
        actors: None,
        span: OVERTIME,
        dies_after: Some(rng.span(Duration::from_millis(600))),
        cycles: 0,
        ..options.clone()
    }
}

/// What the processes of a soak do: goes through rounds and tells what came of them. Returns the
/// exit code.
#[must_use]
pub fn inside(options: &str) -> i32 {
    // The watcher comes by here too, and leaves.
    let is_watched = isolate::is_scenario();
    let Ok(options) = serde_json::from_str::<Options>(options) else { return 2 };
    let tokio = match isolate::build_runtime() {
        Ok(tokio) => tokio,
        Err(error) => {
            eprintln!("no tokio runtime: {error}");
            return 1;
        }
    };
    if options.is_cycling {
        let all = tokio.block_on(cycles(options.cycles));
        let text = serde_json::to_string(&all).unwrap_or_default();
        return i32::from(isolate::say(&text).is_err());
    }
    drop(tokio);
    let before = Counts::now();
    let mut report = SoakReport { seed: options.seed, ..SoakReport::default() };
    let Ok(tokio) = isolate::build_runtime() else { return 1 };
    tokio.block_on(rounds(&options, &mut report));
    drop(tokio);
    if let Some(left) = Counts::now().difference(&before) {
        report.leaks.push(Leak { round: report.rounds, what: format!("at the end:\n{left}") });
    }
    match serde_json::to_string(&report) {
        Ok(text) if is_watched => i32::from(isolate::say(&text).is_err()),
        Ok(text) => {
            println!("{text}");
            i32::from(!report.is_well())
        }
        Err(_) => 1,
    }
}

async fn cycles(count: u64) -> Vec<Cycled> {
    let mut all = Vec::new();
    for backend in [Backend::Forkserver, Backend::Exec, Backend::Thread] {
        for cycle in Cycle::ALL {
            all.push(cycled(cycle, backend.clone(), count).await);
        }
    }
    all
}

/// The root's own end, if it is to have one.
fn die(after: Duration, seed: u64) {
    std::thread::spawn(move || {
        #[allow(clippy::disallowed_methods, reason = "the moment is the point: the seed draws it")]
        std::thread::sleep(after);
        let root = std::process::id();
        if Rng::of(seed, 1).below(2) == 0 {
            // Once it is up: one that is stopped before it has asked to be woken up by the root's
            // death sleeps on, unless the kernel wakes the group (docs/faults.md, 3).
            for server in fault::children_of(root).into_iter().filter(|pid| fault::is_up(*pid)) {
                let _gone = fault::sigstop(server);
            }
        }
        let _gone = Pidfd::open(root).and_then(|root| root.send_signal(libc::SIGKILL));
    });
}

async fn rounds(options: &Options, report: &mut SoakReport) {
    if let Some(after) = options.dies_after {
        die(after, options.seed ^ options.first);
    }
    let begun = Instant::now();
    let mut teardowns = Vec::new();
    let mut number = options.first;
    let due = |report: &SoakReport| {
        begun.elapsed() < options.span
            && options.actors.is_none_or(|most| report.actors < most)
            && options.rounds.is_none_or(|most| report.rounds < most)
    };
    'runtime: while due(report) {
        let outer = Counts::now();
        let (runtime, server) = match round::open(BUDGET).await {
            Ok(open) => open,
            Err(error) => return report.leaks.push(Leak { round: number, what: error }),
        };
        let inner = Counts::now();
        let mut sampled = None;
        while due(report) {
            let plan = Plan::new(options.seed, number, options.keep_forkserver);
            let seen = round::go(&plan, server, BUDGET).await;
            teardowns.push(seen.teardown.as_secs_f64() * 1e3);
            let (lost, hung) = (seen.lost_server, seen.hung);
            take(report, &plan, seen);
            if !lost && !hung {
                let left = left(&inner).await;
                report.leaks.extend(left.map(|what| Leak { round: number, what }));
            }
            number += 1;
            if hung || report.leaks.len() > MAX_LEAKS {
                std::mem::forget(runtime);
                break 'runtime;
            }
            if lost {
                break;
            }
            if sampled.is_none_or(|at: Instant| at.elapsed() >= SAMPLES) {
                sampled = Some(Instant::now());
                report.curve.0.push(sample(begun, report.actors, server));
            }
        }
        runtime.close().await;
        if let Some(left) = Counts::now().difference(&outer) {
            let what = format!("of a runtime:\n{left}");
            report.leaks.push(Leak { round: number, what });
        }
    }
    report.seconds = begun.elapsed().as_secs_f64();
    teardowns.sort_unstable_by(f64::total_cmp);
    let at = |part: usize| teardowns.get(teardowns.len().saturating_sub(1) * part / 100);
    report.teardown_ms = [50, 99, 100].map(|part| at(part).copied().unwrap_or_default());
    report.grown = report.curve.grown();
}

/// What a round has left in the root. C10 promises exactness where a runtime closes, and that is
/// looked at without a pause; here tasks of the root may still have to be polled for the last time.
async fn left(before: &Counts) -> Option<String> {
    let until = Instant::now() + LAST_POLLS;
    loop {
        let now = Counts::now();
        let left = now.difference(before)?;
        let is_more = |now: usize, before: usize| now > before;
        if !is_more(now.fds.len(), before.fds.len())
            && !is_more(now.threads.len(), before.threads.len())
            && left.children.is_empty()
        {
            return None;
        }
        if Instant::now() > until {
            return Some(left.to_string());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn take(report: &mut SoakReport, plan: &Plan, seen: Seen) {
    report.rounds += 1;
    report.actors += seen.actors;
    report.missed += seen.missed;
    for (what, count) in seen.hits {
        *report.hits.entry(what).or_default() += count;
    }
    *report.outcomes.entry(seen.outcome).or_default() += 1;
    report.leaks.extend(
        seen.wrong
            .into_iter()
            .map(|what| Leak { round: plan.round, what: format!("{what}\n{plan:?}") }),
    );
}

fn sample(begun: Instant, actors: u64, server: u32) -> Sample {
    Sample {
        at_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        actors,
        server_pid: server,
        root: Held::by(std::process::id()),
        server: Held::by(server),
    }
}

/// The teardown budget of the trees: the default.
const BUDGET: Duration = Duration::from_secs(3);
/// As the second of C3.
const LAST_POLLS: Duration = Duration::from_secs(1);
/// How much longer than asked the long root may take: its last round, and a runtime's end.
const OVERTIME: Duration = Duration::from_secs(60);
/// Nine of a debug build on a busy machine, and of each some more.
const PER_CYCLE: Duration = Duration::from_millis(500);
/// How often is looked at what root and forkserver hold.
const SAMPLES: Duration = Duration::from_secs(1);
/// A run that leaks everywhere need not go on.
const MAX_LEAKS: usize = 20;
