//! The runner against scenarios that pass, fail, hang and leave things behind.

use std::process::{Command, Stdio};
use std::time::Instant;

use hatchery_spawn::Pidfd;

use super::*;

/// Runs `scenario` isolated and hands its verdict to `check`, outside.
fn judge(name: &str, bound: Duration, scenario: impl FnOnce(), check: impl FnOnce(Verdict)) {
    match role() {
        Role::Outside => {
            let name = format!("isolate::tests::{name}");
            let args = [&*name, "--exact", "--nocapture", "--test-threads=1"];
            check(Isolated::new(bound).args(args).run().unwrap());
        }
        Role::Watcher(bound) => watcher::watch(bound),
        Role::Scenario => scenario(),
    }
}

#[test]
fn a_scenario_that_passes_is_clean_and_is_heard() {
    judge(
        "a_scenario_that_passes_is_clean_and_is_heard",
        LONG,
        || say("hello").unwrap(),
        |verdict| {
            assert!(verdict.is_clean(), "{verdict}");
            assert_eq!(verdict.said, "hello");
        },
    );
}

#[test]
fn a_scenario_that_panics_fails_with_its_output() {
    judge(
        "a_scenario_that_panics_fails_with_its_output",
        LONG,
        || panic!("on purpose"),
        |verdict| {
            assert_eq!(verdict.end, End::Code(101), "{verdict}");
            assert!(verdict.output.contains("on purpose"), "{verdict}");
        },
    );
}

#[test]
fn a_scenario_that_hangs_is_dumped_and_killed_at_its_bound() {
    judge(
        "a_scenario_that_hangs_is_dumped_and_killed_at_its_bound",
        Duration::from_millis(300),
        || {
            let child = keep_a_child();
            say(&child.to_string()).unwrap();
            park()
        },
        |verdict| {
            assert_eq!(verdict.end, End::Hung, "{verdict}");
            assert_eq!(verdict.tree.as_ref().unwrap().process.count(), 2, "{verdict}");
            assert!(is_gone(verdict.said.parse().unwrap()));
        },
    );
}

/// What those have started becomes the watcher's once they are killed, and is killed too.
#[test]
fn what_is_below_a_leftover_goes_with_it() {
    judge(
        "what_is_below_a_leftover_goes_with_it",
        LONG,
        || {
            let script = ["-c", "sleep 1000 & echo $!; wait"];
            let (mut echoed, theirs) = io::pipe().unwrap();
            // Nobody waits for it: the watcher reaps what its end leaves.
            let _shell = Command::new("sh").args(script).stdout(theirs).spawn().unwrap().id();
            let mut pid = [0; 16];
            let length = echoed.read(&mut pid).unwrap();
            say(std::str::from_utf8(&pid[..length]).unwrap().trim()).unwrap();
        },
        |verdict| {
            assert_eq!((verdict.end, verdict.left.len()), (End::Code(0), 1), "{verdict}");
            assert!(is_gone(verdict.said.parse().unwrap()));
        },
    );
}

#[test]
fn processes_that_outlive_a_scenario_are_named_and_killed() {
    judge(
        "processes_that_outlive_a_scenario_are_named_and_killed",
        LONG,
        || say(&keep_a_child().to_string()).unwrap(),
        |verdict| {
            let pid = verdict.said.parse().unwrap();
            assert_eq!((verdict.end, verdict.left.len()), (End::Code(0), 1), "{verdict}");
            assert_eq!((verdict.left[0].pid, &*verdict.left[0].name), (pid, "sleep"));
            assert!(!verdict.is_clean() && is_gone(pid));
        },
    );
}

#[test]
fn a_death_by_signal_is_told_as_one() {
    judge(
        "a_death_by_signal_is_told_as_one",
        LONG,
        || drop(crate::fault::sigkill(std::process::id())),
        |verdict| assert_eq!(verdict.end, End::Signal(9), "{verdict}"),
    );
}

#[test]
fn files_that_outlive_a_scenario_are_named_and_removed() {
    judge(
        "files_that_outlive_a_scenario_are_named_and_removed",
        LONG,
        || {
            let file = std::env::temp_dir().join("left");
            std::fs::write(&file, "").unwrap();
            say(&file.display().to_string()).unwrap();
        },
        |verdict| {
            assert_eq!(verdict.files, ["left"], "{verdict}");
            assert!(!verdict.is_clean() && !PathBuf::from(verdict.said).exists());
        },
    );
}

/// C3, for the harness itself: nobody wants to know any more.
#[test]
fn a_scenario_that_is_stopped_is_killed_long_before_its_bound() {
    match role() {
        Role::Outside => {
            let name = "isolate::tests::a_scenario_that_is_stopped_is_killed_long_before_its_bound";
            let args = [name, "--exact", "--nocapture", "--test-threads=1"];
            let running = Isolated::new(LONG).args(args).start().unwrap();
            running.stopper().unwrap().stop();
            let verdict = running.wait().unwrap();
            assert_eq!(verdict.end, End::Stopped, "{verdict}");
            assert!(verdict.elapsed < LONG, "{verdict}");
        }
        Role::Watcher(bound) => watcher::watch(bound),
        Role::Scenario => park(),
    }
}

/// C3, for the harness itself.
#[test]
fn a_scenario_dies_with_its_watcher() {
    if is_scenario() {
        // A dead watcher removes nothing.
        std::fs::remove_dir(private_dir().unwrap()).unwrap();
        drop(crate::fault::sigkill(std::os::unix::process::parent_id()));
        park();
    }
    let name = "isolate::tests::a_scenario_dies_with_its_watcher";
    let args = [name, "--exact", "--nocapture", "--test-threads=1"];
    let begun = Instant::now();
    let lost = Isolated::new(LONG).args(args).run().unwrap_err();
    assert!(begun.elapsed() < LONG, "{lost}");
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let of_this_test = all.filter(|process| {
        let read = |file| std::fs::read_to_string(process.path().join(file)).unwrap_or_default();
        read("environ").contains("HATCHERY_ISOLATED=scenario") && read("cmdline").contains(name)
    });
    for process in of_this_test {
        let pid: u32 = process.file_name().to_str().unwrap().parse().unwrap();
        assert!(
            Pidfd::open(pid).is_ok_and(|left| left.wait_dead(LONG)) || is_gone(pid),
            "{pid} lives"
        );
    }
}

fn keep_a_child() -> u32 {
    Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap().id()
}

fn park() -> ! {
    loop {
        std::thread::park();
    }
}

fn is_gone(pid: u32) -> bool {
    Pidfd::open(pid).is_err()
}

const LONG: Duration = Duration::from_secs(20);
