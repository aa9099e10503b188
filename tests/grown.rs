//! T(3,3), grown and looked at, for those who strike at it: by hand or at a named moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hatchery::{
    Backend, Callee, Error, ExitStatus, FaultKind, Nothing, Nursery, Portal, nursery, shield,
};
use hatchery_spawn::{Birth, Forkserver, Main, Pidfd, Spawning, Spec, inventory};
use hatchery_testkit::fault::{Fault, Missed, Moment, Tree, children_of};
use nix::libc;
use nix::sys::signal::{Signal, raise};
use serde::{Deserialize, Serialize};

use crate::HANG;

/// C3, and what a loaded machine may add before a signal is even seen.
pub const GONE: Duration = Duration::from_secs(1);

/// Sends numbers for ever.
///
/// # Errors
/// The stream has ended.
#[hatchery::context]
pub async fn count(callee: Callee<Nothing, u64>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    for number in 0.. {
        stream.send(number).await?;
    }
    Ok(())
}

/// What the actors of a tree do while it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Load {
    /// Nothing.
    Idle,
    /// A stream from each child.
    Streams,
    /// Nothing, but [`LEAF`] is not yet born: it has a process, which is stopped, and has not shaken
    /// hands.
    Birth,
    /// Nothing, but [`LEAF`] ignores every cancel.
    Stubborn,
}

/// The leaf that is not as the others are.
pub const LEAF: &str = "root/a1/a1/a1";

/// Three children, with levels below them; stays.
///
/// # Errors
/// What ended one of them.
#[hatchery::function]
pub async fn grow(levels: u32, load: Load) -> Result<(), Error> {
    Ok(nursery(async |n| tend(&n, levels, load).await).await?)
}

/// The same in a nursery that is there.
///
/// # Errors
/// As [`grow`].
pub async fn tend(n: &Nursery, levels: u32, load: Load) -> hatchery::Result<()> {
    let mut all = tokio::task::JoinSet::new();
    for i in 0..3 {
        let n = n.clone();
        all.spawn(async move {
            let name = format!("a{i}");
            let is_it = format!("{}/{name}", hatchery::path()) == LEAF;
            let mut child = n.actor(&name);
            if is_it && load == Load::Birth {
                child = child.backend(Backend::Custom(Arc::new(Held)));
            }
            let child = child.start().await?;
            let below = async {
                if levels > 1 {
                    return Ok(child.call(grow(levels - 1, load)).await?);
                }
                if is_it && load == Load::Stubborn {
                    return Ok(child.call(stubborn()).await?);
                }
                std::future::pending().await
            };
            let streams = async {
                if load == Load::Streams {
                    return stream(&child).await;
                }
                std::future::pending().await
            };
            let ended: hatchery::Result<()> = tokio::select! {
                ended = below => ended,
                ended = streams => ended,
            };
            ended
        });
    }
    while let Some(ended) = all.join_next().await {
        ended??;
    }
    Ok(())
}

/// Ignores every cancel.
#[hatchery::function]
pub async fn stubborn() {
    shield(std::future::pending()).await
}

/// Children of this actor's forkserver that stop before they shake hands, and never do.
#[derive(Debug)]
pub struct Held;

impl hatchery_spawn::Backend for Held {
    fn name(&self) -> &'static str {
        "held"
    }
    fn is_process(&self) -> bool {
        true
    }
    fn spawn(&self, spec: Spec) -> Spawning {
        let server = Forkserver::inherited().ok().flatten().expect("an actor's process");
        server.fork().spawn(spec.with_main("held"))
    }
}

inventory::submit! { Main { name: "held", run: held } }

fn held(_birth: Birth) -> i32 {
    raise(Signal::SIGSTOP).expect("nobody is refused that");
    unreachable!("somebody let it go on");
}

/// The one child of a forkserver that is stopped.
#[must_use]
pub fn newborn(forkserver: u32) -> Option<Pidfd> {
    let is_stopped = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    children_of(forkserver).into_iter().find(is_stopped).and_then(|pid| Pidfd::open(pid).ok())
}

/// Reads what an actor sends for as long as it sends.
///
/// # Errors
/// What ended the stream.
pub async fn stream(child: &Portal) -> hatchery::Result<()> {
    child
        .open_context(count(), async |mut cx| {
            while cx.recv().await?.is_some() {
                tokio::task::yield_now().await;
            }
            Ok(())
        })
        .await?;
    Ok(())
}

/// Runs what waits for other processes where it holds nobody up.
///
/// # Panics
/// If `wait` does.
pub async fn aside<T: Send + 'static>(wait: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || drop(tell.send(wait())));
    let answer = told.await.expect("it waits under a bound");
    thread.join().expect("it has answered");
    answer
}

/// Waits for a moment of one actor's life, and strikes at another or the same one.
///
/// # Errors
/// The moment did not come, or passed unseen.
pub async fn at(moment: Moment, of: &str, whom: &str, fault: Fault) -> Result<Pidfd, Missed> {
    let (of, whom) = (of.to_owned(), whom.to_owned());
    aside(move || Tree::mine().at(moment, &of, HANG / 2, &whom, fault)).await
}

/// All of T(3,3) but the root, up, each held, with the forkserver.
///
/// # Panics
/// If they don't come up.
pub async fn all_up() -> Vec<(String, Pidfd)> {
    aside(|| all_up_of(Tree::mine(), Load::Idle)).await
}

/// The same of any tree, with the [`newborn`] as [`LEAF`] where there is one. Blocks.
///
/// # Panics
/// If they don't come up.
#[must_use]
pub fn all_up_of(tree: Tree, load: Load) -> Vec<(String, Pidfd)> {
    let until = Instant::now() + HANG;
    loop {
        let mut all = pids_of(tree);
        if load == Load::Birth {
            all.retain(|(path, _)| path != LEAF);
            all.extend(tree.forkserver().and_then(newborn).map(|one| (LEAF.to_owned(), one)));
        }
        if all.len() == 40 {
            return all;
        }
        assert!(Instant::now() < until, "{} of 40: {all:?}", all.len());
        #[allow(clippy::disallowed_methods, reason = "what others write down is no event")]
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Everybody but the root who has written down who it is.
fn pids_of(tree: Tree) -> Vec<(String, Pidfd)> {
    let pids = tree.pids().into_iter().filter(|(path, _)| path != "root");
    pids.filter_map(|(path, pid)| Some((path, Pidfd::open(pid).ok()?))).collect()
}

/// Strikes while the tree lives, and sees how that ends it.
///
/// # Panics
/// If it ended before it was struck.
pub async fn struck<T>(
    strike: impl Future<Output = T>,
    tree: impl Future<Output = hatchery::Result<()>>,
) -> (T, hatchery::Result<()>) {
    let (strike, mut tree) = (std::pin::pin!(strike), std::pin::pin!(tree));
    tokio::select! {
        biased;
        hit = strike => (hit, tree.await),
        ended = &mut tree => panic!("it ended before it was struck: {ended:?}"),
    }
}

/// Who lives after the second of C3.
#[must_use]
pub fn survivors(all: &[(String, Pidfd)]) -> Vec<&str> {
    let until = Instant::now() + GONE;
    let left = all
        .iter()
        .filter(|(_, process)| !process.wait_dead(until.saturating_duration_since(Instant::now())));
    left.map(|(path, _)| &**path).collect()
}

/// Whether it says that somebody was killed.
#[must_use]
pub fn killed(kind: &FaultKind) -> bool {
    *kind == FaultKind::Died(ExitStatus::Signal(libc::SIGKILL))
}
