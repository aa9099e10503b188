//! Which error is told first (C4).
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use hatchery::{Config, FaultKind};
use hatchery_tests::{BACKENDS, PROCESSES, ROOMY, came_down, for_each_with, here};

#[hatchery::function]
async fn die() {
    std::process::exit(7)
}

#[hatchery::function]
async fn fail() -> Result<(), hatchery::Error> {
    Err(hatchery::Error::msg("it can't"))
}

/// C4: a sibling dies while the body waits for starts: its death is told, and nothing else.
#[test]
fn a_sibling_that_dies_beside_a_start_is_told_alone() {
    let roomy = Config::with_budget(ROOMY);
    for_each_with(&roomy, here!(), &PROCESSES, async |runtime| {
        for round in 0..40 {
            let down: Result<(), _> = runtime
                .nursery(async |n| {
                    let a0 = n.start("a0").await?;
                    tokio::spawn(async move { a0.call(die()).await });
                    for next in 1.. {
                        n.start(&format!("a{next}")).await?;
                    }
                    Ok(())
                })
                .await;
            let error = came_down(down);
            let [fault] = error.faults() else { panic!("{round}: {}", error.render()) };
            assert_eq!(fault.path.as_str(), "root/a0", "{round}: {}", error.render());
            assert!(matches!(fault.kind, FaultKind::Died(_)), "{round}: {}", error.render());
        }
        runtime.close().await;
    });
}

/// C4, C14: the same of one that fails, on every backend.
#[test]
fn a_sibling_that_fails_beside_a_start_is_told_alone() {
    let roomy = Config::with_budget(ROOMY);
    for_each_with(&roomy, here!(), &BACKENDS, async |runtime| {
        for round in 0..40 {
            let down: Result<(), _> = runtime
                .nursery(async |n| {
                    drop(n.run("a0", fail()));
                    for next in 1.. {
                        n.start(&format!("a{next}")).await?;
                    }
                    Ok(())
                })
                .await;
            let error = came_down(down);
            let [fault] = error.faults() else { panic!("{round}: {}", error.render()) };
            assert_eq!(fault.path.as_str(), "root/a0", "{round}: {}", error.render());
            assert_eq!(fault.kind, FaultKind::Failed, "{round}: {}", error.render());
        }
        runtime.close().await;
    });
}
