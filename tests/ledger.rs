//! C5, C16: threads that were given up on below the root: who is told of them, and where they stand.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::collections::BTreeSet;
use std::future::pending;

use hatchery::{Backend, Config, Error, FaultKind, Nursery, Step, abandoned, nursery};
use hatchery_tests::{PROCESSES, came_down, for_each_with, here};
use tokio::sync::Semaphore;

/// One for each thread of this process that is stuck.
static STUCK: Semaphore = Semaphore::const_new(0);

/// Blocks the thread of its actor for ever.
#[hatchery::function]
async fn stick() -> u64 {
    STUCK.add_permits(1);
    loop {
        std::thread::park();
    }
}

/// Has a thread below it that is stuck when this returns.
async fn stuck_below(n: &Nursery) -> hatchery::Result<()> {
    let leaf = n.actor("leaf").backend(Backend::Thread).start().await?;
    tokio::spawn(async move { drop(leaf.call(stick()).await) });
    STUCK.acquire().await?.forget();
    Ok(())
}

/// Goes down over a stuck thread, and sees its own ledger after it and a second one.
#[hatchery::function]
async fn survive_two() -> Result<Vec<(String, String)>, Error> {
    for _ in 0..2 {
        let down = nursery(async |n| stuck_below(&n).await).await.unwrap_err();
        assert_eq!(down.fault().kind, FaultKind::Abandoned, "{}", down.render());
    }
    Ok(abandoned().into_iter().map(|one| (one.path, one.last_state)).collect())
}

/// Tells when its thread is stuck, and stays.
#[hatchery::context]
async fn stay_above(callee: hatchery::Callee<hatchery::Nothing, hatchery::Nothing>) {
    let down: Result<(), _> = nursery(async |n| {
        stuck_below(&n).await?;
        callee.started(()).map_err(Error::from)?;
        pending().await
    })
    .await;
    drop(down);
}

/// C5: a nursery of the root names every thread that was given up on in the processes below it; the
/// threads themselves have gone with those.
#[test]
fn threads_abandoned_in_processes_below_are_all_named_in_the_result() {
    for_each_with(&Config::default(), here!(), &PROCESSES, async |runtime| {
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                let mut held = Vec::new();
                for name in ["a", "b", "c"] {
                    let middle = n.start(name).await?;
                    held.push(middle.context(stay_above()).handle().await?);
                }
                n.cancel();
                pending().await
            })
            .await;
        let error = came_down(down);
        let paths = ["a", "b", "c"].map(|name| format!("root/{name}/leaf"));
        let paths = BTreeSet::from(paths);
        let leaves = error.faults().iter().flat_map(|fault| fault.leaves());
        let of_result = leaves.filter(|fault| fault.kind == FaultKind::Abandoned);
        let of_result: Vec<_> = of_result.map(|fault| fault.path.to_string()).collect();
        assert_eq!(of_result.len(), 3, "{}", error.render());
        assert_eq!(BTreeSet::from_iter(of_result), paths, "{}", error.render());
        let all = error.report().actors.iter().flat_map(hatchery::ActorReport::flatten);
        let of_report = all
            .filter(|one| one.steps.iter().any(|taken| taken.step == Step::Abandoned))
            .map(|one| one.path.to_string());
        assert_eq!(of_report.collect::<BTreeSet<_>>(), paths, "{}", error.report());
        assert!(runtime.abandoned().is_empty(), "{:?}", runtime.abandoned());
        runtime.close().await;
    });
}

/// C5: an actor's process has a ledger of its own, which what runs in it sees, and the root doesn't.
#[test]
fn an_actor_sees_the_threads_that_were_abandoned_in_its_process() {
    let config = Config::with_budget(hatchery_tests::BUDGET);
    for_each_with(&config, here!(), &PROCESSES, async |runtime| {
        assert!(abandoned().is_empty());
        let seen = runtime.nursery(async |n| {
            let middle = n.start("middle").await?;
            let seen = middle.call(survive_two()).await?;
            // They are still there, in another process.
            assert!(runtime.abandoned().is_empty() && abandoned().is_empty());
            Ok(seen)
        });
        let seen = seen.await.unwrap();
        let paths: Vec<_> = seen.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["root/middle/leaf"; 2]);
        let sleeps = seen.iter().all(|(_, state)| state.contains("it sleeps in "));
        assert!(sleeps, "{seen:?}");
        runtime.close().await;
    });
}
