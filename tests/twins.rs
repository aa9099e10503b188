//! C20: a program in which two functions share a name is told so at its first start. A file of its own,
//! as nothing else can start in such a program.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use hatchery::{FaultKind, StartCause};
use hatchery_tests::{BACKENDS, for_each, here};

/// Twice the same text, at one place, in blocks without a name.
macro_rules! twice {
    () => {
        const _: () = {
            #[hatchery::function]
            #[allow(dead_code, reason = "that it is there is enough")]
            async fn work() {}
        };
        const _: () = {
            #[hatchery::function]
            #[allow(dead_code, reason = "that it is there is enough")]
            async fn work() {}
        };
    };
}

twice!();

/// C20: every start names both places, before anything is forked.
#[test]
fn two_functions_of_one_name_are_an_error_of_the_first_start() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let ended = runtime.nursery(async |n| {
            for _ in 0..2 {
                let error = n.start("worker").await.unwrap_err();
                let StartCause::FunctionTwice { name, places } = &error.cause else {
                    panic!("{error}");
                };
                assert!(name.starts_with("twins::") && name.ends_with("::work"), "{name}");
                for place in places {
                    let (file, at) = place.split_once(".rs:").unwrap();
                    assert!(file.ends_with("twins") && at.starts_with("24:"), "{place}");
                }
                assert_eq!(error.fault().kind, FaultKind::Refused);
                assert!(error.to_string().contains(name) && error.to_string().contains(places[0]));
            }
            Ok(())
        });
        ended.await.unwrap();
        runtime.close().await;
    });
}
