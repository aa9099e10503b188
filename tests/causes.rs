//! Which error is told first (C4).
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use hatchery::{Config, Error, FaultKind, Nursery, Runtime};
use hatchery_tests::{BACKENDS, PROCESSES, ROOMY, came_down, for_each_with, here};

#[hatchery::function]
async fn die() {
    std::process::exit(7)
}

#[hatchery::function]
async fn fail() -> Result<(), Error> {
    Err(Error::msg("it can't"))
}

/// Forty nurseries in each of which the first actor ends badly while the body starts others: that is told,
/// and nothing else.
async fn told_alone(
    runtime: Runtime,
    end_badly: impl AsyncFn(&Nursery) -> Result<(), Error>,
    is_right: fn(&FaultKind) -> bool,
) {
    for round in 0..40 {
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                end_badly(&n).await?;
                for next in 1.. {
                    n.start(&format!("a{next}")).await?;
                }
                Ok(())
            })
            .await;
        let error = came_down(down);
        let [fault] = error.faults() else { panic!("{round}: {}", error.render()) };
        assert_eq!(fault.path.as_str(), "root/a0", "{round}: {}", error.render());
        assert!(is_right(&fault.kind), "{round}: {}", error.render());
    }
    runtime.close().await;
}

/// C4: a sibling dies while the body waits for starts: its death is told, and nothing else.
#[test]
fn a_sibling_that_dies_beside_a_start_is_told_alone() {
    let dies = async |n: &Nursery| {
        let a0 = n.start("a0").await?;
        tokio::spawn(async move { a0.call(die()).await });
        Ok(())
    };
    for_each_with(&Config::with_budget(ROOMY), here!(), &PROCESSES, async |runtime| {
        told_alone(runtime, dies, |kind| matches!(kind, FaultKind::Died(_))).await;
    });
}

/// C4, C14: the same of one that fails, on every backend.
#[test]
fn a_sibling_that_fails_beside_a_start_is_told_alone() {
    let fails = async |n: &Nursery| {
        drop(n.run("a0", fail()));
        Ok(())
    };
    for_each_with(&Config::with_budget(ROOMY), here!(), &BACKENDS, async |runtime| {
        told_alone(runtime, fails, |kind| *kind == FaultKind::Failed).await;
    });
}
