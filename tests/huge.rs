//! Code on huge pages, which only makes starts cheaper: where it can't be had all is as without.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::time::Duration;

use hatchery::{Backend, Config, Runtime, Stdio};
use hatchery_testkit::counts::Counts;
use hatchery_testkit::isolate;
use hatchery_tests::events::Events;
use hatchery_tests::{BUDGET, HANG, here};

/// The names of what called this, as a panic would show them.
#[hatchery::function]
async fn whence() -> String {
    std::backtrace::Backtrace::force_capture().to_string()
}

/// How much of a process's code lies on huge pages of no file, in KiB.
fn huge_code(pid: u32) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut runs = false;
    let mut all = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match (words.next().unwrap_or(""), words.next().unwrap_or("")) {
            ("AnonHugePages:", size) if runs => all += size.parse::<u64>().unwrap(),
            (range, rights) if range.contains('-') => runs = rights.contains('x'),
            _ => {}
        }
    }
    all
}

/// A tree whose forkserver was asked for huge pages comes up, is called and goes, and nothing is left;
/// what it has of them is returned, and what an actor has.
fn with_huge_pages(huge: bool) -> [u64; 2] {
    let before = Counts::now();
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let seen = tokio.block_on(async {
        let runtime = Runtime::builder().config(Config::with_budget(BUDGET)).signals(false);
        let runtime = runtime.stdio(Stdio::Null).huge_pages(huge).open().unwrap();
        let seen = runtime.nursery(async |n| {
            let child = n.start("child").await?;
            let other = n.actor("other").backend(Backend::Exec).start().await?;
            for actor in [&child, &other] {
                let trace = actor.call(whence()).within(Duration::from_secs(20)).await?;
                assert!(trace.contains("whence"), "{trace}");
            }
            assert_eq!(huge_code(other.pid().unwrap()), 0, "an image of its own");
            Ok([runtime.forkserver_pid().unwrap(), child.pid().unwrap()].map(huge_code))
        });
        let seen = seen.await.unwrap();
        runtime.close().await;
        seen
    });
    drop(tokio);
    let left = Counts::now().difference(&before);
    assert!(left.is_none(), "{}", left.unwrap());
    seen
}

/// The forkserver's code and that of all that it forks lies on the same huge pages, and what runs
/// there knows its names; unasked it stays where it was.
#[test]
fn code_lies_on_huge_pages_where_they_were_asked_for() {
    isolate::run_test(here!(), HANG * 2, || {
        let events = Events::capture();
        assert_eq!(with_huge_pages(false), [0, 0]);
        let [server, actor] = with_huge_pages(true);
        let refused = events.with("no huge pages");
        if refused.is_empty() {
            assert!(server >= 2048, "{server} KiB");
            assert_eq!(actor, server);
        } else {
            // This machine has none: policy, no free one, another architecture.
            assert_eq!([server, actor], [0, 0], "{refused:?}");
        }
    });
}

/// Where the kernel gives none, that is said once, with the reason, and nothing else is different.
#[test]
fn huge_pages_that_are_not_given_are_done_without() {
    isolate::run_test(here!(), HANG * 2, || {
        let events = Events::capture();
        // For this process and all that comes of it.
        nix::sys::prctl::set_thp_disable(true).unwrap();
        assert_eq!(with_huge_pages(true), [0, 0]);
        let refused = events.with("no huge pages");
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(refused[0].contains("why="), "{refused:?}");
    });
}
