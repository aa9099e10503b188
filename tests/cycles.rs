//! C21: what serves for ever holds what lives and a bounded rest. Each of these goes
//! a few hundred times through what a long-lived program does all day; what the root and its
//! forkserver hold must be flat. `hatchery soak --cycles` does the same for longer.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::time::Duration;

use hatchery::{Backend, Config, Error, Nursery, StartCause, nursery, nursery_with_report};
use hatchery_testkit::isolate;
use hatchery_testkit::soak::{Cycle, cycled};
use hatchery_tests::{BACKENDS, ROOMY, for_each_with, here, many_fds};

/// Looked at 64 times, and judged by the second and the last quarter: what each of them leaves behind
/// is seen half as often as there are cycles. Nothing is taken for grown that is only kept.
fn are_flat(test: &str, backend: &Backend, count: u64) {
    isolate::run_test(test, BOUND, || {
        many_fds();
        for cycle in Cycle::ALL {
            let all = isolate::block_on(cycled(cycle, backend.clone(), count));
            println!("{all}");
            assert!(all.is_well(), "{all}");
        }
    });
}

/// C21: mappings, address space, memory, fds and threads of both, on a forkserver.
#[test]
fn cycles_of_forked_actors_leave_nothing() {
    are_flat(here!(), &Backend::Forkserver, 960);
}

/// C21: the same with fresh images, which take longer.
#[test]
fn cycles_of_executed_actors_leave_nothing() {
    are_flat(here!(), &Backend::Exec, 192);
}

/// C21: the same with threads.
#[test]
fn cycles_of_thread_actors_leave_nothing() {
    are_flat(here!(), &Backend::Thread, 960);
}

/// C21: a name is free as soon as its actor has settled, and the limit counts who lives.
#[test]
fn a_name_is_free_when_its_actor_has_settled_and_limits_count_the_living() {
    let config = Config { max_actors: 2, ..Config::with_budget(ROOMY) };
    for_each_with(&config, here!(), &BACKENDS, async |runtime| {
        let ended = runtime.nursery(async |n| {
            let stays = n.start("stays").await?;
            for _ in 0..10 {
                let actor = n.start("w").await?;
                let taken = n.start("w").await.unwrap_err();
                assert!(matches!(taken.cause, StartCause::TooMany { limit: 2, .. }), "{taken}");
                actor.cancel();
                actor.settled().await;
            }
            let again = n.start("stays").await.unwrap_err();
            assert!(matches!(again.cause, StartCause::NameTaken), "{again}");
            Ok(stays.call(open_nurseries(0)).await?)
        });
        ended.await.unwrap_or_else(|error| panic!("{}", error.render()));
        runtime.close().await;
    });
}

/// Opens that many nurseries with one actor each.
#[hatchery::function]
async fn open_nurseries(count: u32) -> Result<(), Error> {
    for _ in 0..count {
        nursery(async |n| Ok(n.start("below").await.map(drop)?)).await?;
    }
    Ok(())
}

/// C21, C16: an actor that opens nurseries for ever says of the last ones how they came down, and of how
/// many others it doesn't.
#[test]
fn the_report_of_an_actor_is_as_long_as_its_tail() {
    let config = Config { report_tail_actors: 5, ..Config::with_budget(ROOMY) };
    for_each_with(&config, here!(), &BACKENDS, async |runtime| {
        let body = async |n: Nursery| Ok(n.start("w").await?.call(open_nurseries(12)).await?);
        let (ended, report) = nursery_with_report(body).await;
        ended.unwrap_or_else(|error| panic!("{}", error.render()));
        let worker = &report.actors[0];
        assert_eq!((worker.below.len(), worker.dropped), (5, 7), "{report}");
        assert!(report.to_string().contains("7 more were over before that"), "{report}");
        runtime.close().await;
    });
}

/// Catches hangs.
const BOUND: Duration = Duration::from_secs(180);
