//! T(3,3), grown and looked at, for those who strike at it: by hand or at a named moment.

use std::time::{Duration, Instant};

use hatchery::{Callee, Error, ExitStatus, FaultKind, Nothing, Nursery, Portal, nursery};
use hatchery_spawn::Pidfd;
use hatchery_testkit::fault::{Fault, Missed, Moment, Tree};
use nix::libc;

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

/// Three children, with levels below them; stays, with a stream from each child under way if it is
/// busy.
///
/// # Errors
/// What ended one of them.
#[hatchery::function]
pub async fn grow(levels: u32, busy: bool) -> Result<(), Error> {
    Ok(nursery(async |n| tend(&n, levels, busy).await).await?)
}

/// The same in a nursery that is there.
///
/// # Errors
/// As [`grow`].
pub async fn tend(n: &Nursery, levels: u32, busy: bool) -> hatchery::Result<()> {
    let mut all = tokio::task::JoinSet::new();
    for i in 0..3 {
        let n = n.clone();
        all.spawn(async move {
            let child = n.start(&format!("a{i}")).await?;
            let below = async {
                if levels > 1 {
                    return Ok(child.call(grow(levels - 1, busy)).await?);
                }
                std::future::pending().await
            };
            let load = async {
                if busy {
                    return stream(&child).await;
                }
                std::future::pending().await
            };
            let ended: hatchery::Result<()> = tokio::select! {
                ended = below => ended,
                ended = load => ended,
            };
            ended
        });
    }
    while let Some(ended) = all.join_next().await {
        ended??;
    }
    Ok(())
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
    aside(|| {
        let until = Instant::now() + HANG;
        loop {
            let pids = Tree::mine().pids();
            if pids.len() == 41 {
                let held = pids.into_iter().filter(|(path, _)| path != "root");
                return held
                    .map(|(path, pid)| (path, Pidfd::open(pid).expect("it is up")))
                    .collect();
            }
            assert!(Instant::now() < until, "{} of 41: {pids:?}", pids.len());
            #[allow(clippy::disallowed_methods, reason = "what others write down is no event")]
            std::thread::sleep(Duration::from_millis(5));
        }
    })
    .await
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
