//! What an error says in one line, as people print it with `{e}`: the path, what was attempted, the cause;
//! nothing twice on the way down its sources, and the story whole on its way up (C4).
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::error::Error as _;
use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use hatchery::{Backend, CallError, Error, FaultKind, Portal, Runtime};
use hatchery_tests::{BACKENDS, PROCESSES, came_down, for_each, here};

#[hatchery::function]
async fn exec_over_itself() {
    let error = std::process::Command::new("sleep").arg("1000").exec();
    panic!("{error}");
}

#[hatchery::function]
async fn close_all_fds() {
    for fd in 3..1000 {
        let _not_open = nix::unistd::close(fd);
    }
    loop {
        std::thread::park();
    }
}

#[hatchery::function]
async fn kill_itself() {
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[hatchery::function]
async fn fail() -> Result<(), Error> {
    let number = "x".parse::<u8>();
    number.map(drop).map_err(Error::from)
}

#[hatchery::function]
async fn panic_here() {
    panic!("on purpose\nin two lines");
}

#[hatchery::function]
async fn never() {
    std::future::pending().await
}

#[derive(Debug, thiserror::Error)]
#[error("the job went wrong")]
struct Job(#[source] CallError);

/// C4: whoever loses its channel and lives on is ended by hatchery, and its death says so; one that others
/// have killed was not.
#[test]
fn an_end_of_our_own_making_is_told_as_ours() {
    for_each(here!(), &PROCESSES, async |runtime| {
        for (call, is_ours) in [
            (exec_over_itself as fn() -> hatchery::Call<()>, true),
            (close_all_fds, true),
            (kill_itself, false),
        ] {
            let down: Result<(), _> = runtime
                .nursery(async |n| {
                    let it = n.start("it").await?;
                    drop(it.call(call()).await);
                    std::future::pending().await
                })
                .await;
            let error = came_down(down);
            let [fault] = error.faults() else { panic!("{}", error.render()) };
            assert!(matches!(fault.kind, FaultKind::Died(_)), "{fault:?}");
            let says_so = fault.message.contains("hatchery ended it, as its channel broke");
            assert_eq!(says_so, is_ours, "{fault}");
            assert_eq!(fault.message == "nobody asked it to", !is_ours, "{fault}");
        }
        runtime.close().await;
    });
}

/// One line, with nothing left to tell for whoever walks down the sources.
fn is_whole(error: &dyn std::error::Error, parts: &[&str]) {
    let line = error.to_string();
    for part in parts {
        assert_eq!(line.matches(part).count(), 1, "{part:?} in {line:?}");
    }
    assert_eq!(line.lines().count(), 1, "{line:?}");
    assert!(error.source().is_none(), "{line:?}, and again: {:?}", error.source());
}

async fn calls(it: &Portal) {
    let error = it.call(fail()).await.unwrap_err();
    is_whole(&error, &["calling actor `root/it`: failed: invalid digit found in string"]);
    assert_eq!((error.path().as_str(), error.place()), ("root/it", None));
    let error = it.call(panic_here()).await.unwrap_err();
    is_whole(&error, &["calling actor `root/it`: panicked: on purpose in two lines"]);
    assert!(error.place().unwrap().contains("lines.rs:"), "{:?}", error.place());
    let error = it.call(never()).within(Duration::from_millis(1)).await.unwrap_err();
    is_whole(&error, &["calling actor `root/it`: was too slow: ", "did not answer within 1ms"]);

    // In a user's own error it is told once, and its story stays whole.
    let job = Job(it.call(panic_here()).await.unwrap_err());
    is_whole(job.source().unwrap(), &["panicked: on purpose"]);
    let error = Error::from(job);
    assert_eq!(error.fault().below[0].kind, FaultKind::Panicked, "{error:?}");
    let story = format!("{error:?}");
    assert_eq!(story.matches("on purpose").count(), 1, "{story}");
    assert!(story.contains("the job went wrong") && story.contains("lines.rs:"), "{story}");
}

/// C4, C14: the errors of calls, starts and nurseries are one line with path, attempt and cause.
#[test]
fn an_error_says_path_attempt_and_cause_in_one_line() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                calls(&n.start("it").await?).await;
                let taken = n.start("it").await.unwrap_err();
                is_whole(&taken, &["starting actor `root/it` by ", "the name is taken"]);
                Err(Error::from(taken))
            })
            .await;
        let error = came_down(down);
        is_whole(&error, &["actor `root/it` refused: the name is taken in this nursery"]);
        runtime.close().await;
    });
}

/// C4: a start that the system refuses names the call and what it said.
#[test]
fn a_refused_start_says_what_the_system_said() {
    hatchery_testkit::isolate::run_test(here!(), Duration::from_secs(60), || {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async {
            let runtime = Runtime::builder().backend(Backend::Exec).open().unwrap();
            let done = runtime.nursery(async |n| {
                let actor = n.actor("it").current_dir("/nowhere/at/all");
                let error = actor.start().await.unwrap_err();
                is_whole(
                    &error,
                    &["starting actor `root/it` by exec: ", "No such file or directory"],
                );
                Ok(())
            });
            done.await.unwrap();
            runtime.close().await;
        });
    });
}
