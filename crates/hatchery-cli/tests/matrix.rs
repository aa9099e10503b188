//! The `hatchery matrix` command as its users meet it: real trees, exit statuses, bad input.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::fs;
use std::io::Read as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use hatchery_spawn::Pidfd;
use serde_json::Value;

fn matrix(args: &[&str]) -> Output {
    Command::new(PROGRAM).arg("matrix").args(args).output().unwrap()
}

fn json(args: &[&str]) -> (Value, Option<i32>) {
    let output = matrix(&[args, &["--format", "json"]].concat());
    (serde_json::from_slice(&output.stdout).unwrap(), output.status.code())
}

/// C1, C2, C3, C4, C10
#[test]
fn every_backend_comes_down_from_every_trigger_with_nothing_left() {
    let (report, code) = json(&["--depth", "2", "--breadth", "2"]);
    let wrong: Vec<&Value> =
        cases(&report).filter(|case| !is_one_of(case, &["passed", "skipped"])).collect();
    assert!(wrong.is_empty() && code == Some(0), "{code:?} {wrong:#?}");
    assert_eq!(report["summary"]["passed"], 4 * 31, "{report}");
    assert_eq!(report["summary"]["skipped"], 4 * 2, "{report}");
}

#[test]
fn the_json_is_one_object_with_exactly_the_promised_fields() {
    let (report, _) = json(&["--filter", "thread/d1b1/return/peers"]);
    assert_eq!(keys(&report), ["cases", "summary"]);
    assert_eq!(
        keys(&report["cases"][0]),
        [
            "actors",
            "backend",
            "bound_ms",
            "breadth",
            "depth",
            "detail",
            "elapsed_ms",
            "id",
            "leaks",
            "load",
            "outcome",
            "teardown_ms",
            "trigger",
        ]
    );
    assert_eq!(report["cases"][0]["load"], "peers");
    assert_eq!(keys(&report["cases"][0]["leaks"]), ["fds", "files", "processes", "threads"]);
    assert_eq!(
        keys(&report["summary"]),
        ["elapsed_ms", "failed", "hung", "leaked", "not_run", "passed", "skipped"]
    );
}

#[test]
fn combinations_without_sense_are_skipped_with_a_reason() {
    let (report, code) = json(&["--backend=thread", "--depth=1", "--breadth=1", "--load=idle"]);
    let skipped: Vec<&str> = cases(&report)
        .filter(|case| is_one_of(case, &["skipped"]))
        .map(|case| case["detail"].as_str().unwrap())
        .collect();
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(skipped.len(), 3, "{skipped:?}");
    assert!(skipped.iter().all(|why| !why.is_empty()), "{skipped:?}");
}

#[test]
fn lists_may_be_separated_by_commas_or_repeated_and_hold_each_value_once() {
    let args = ["--trigger=return,drop", "--trigger", "return", "--backend=thread", "--depth=1"];
    let more = ["--breadth", "1,1", "--load=streaming,idle", "--load", "idle"];
    let (report, _) = json(&[&args[..], &more].concat());
    let ids: Vec<&str> = cases(&report).map(|case| case["id"].as_str().unwrap()).collect();
    let due = ["return/streaming", "return/idle", "drop/streaming", "drop/idle"];
    assert_eq!(ids, due.map(|way| format!("thread/d1b1/{way}")));
}

#[test]
fn bad_arguments_get_a_usage_line_and_exit_status_2() {
    let bad: [&[&str]; 12] = [
        &["--backend", "carrier-pigeon"],
        &["--depth", "0"],
        &["--depth", "65"],
        &["--breadth", "-1"],
        &["--breadth", "many"],
        &["--trigger", "return,boredom"],
        &["--load", "idle,heavy"],
        &["--jobs", "0"],
        &["--format", "xml"],
        &["--nonsense"],
        &["--filter", "matches no case at all"],
        &["--depth"],
    ];
    for args in bad {
        let output = matrix(args);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
        assert!(told.contains("Usage: hatchery matrix"), "{args:?}: {told}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn an_impossible_tree_is_refused_before_the_first_spawn() {
    let begun = Instant::now();
    let output = matrix(&["--depth", "1,20", "--breadth", "9"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("needs") && told.contains("allows"), "{told}");
    assert!(output.stdout.is_empty() && begun.elapsed() < Duration::from_secs(1));
}

/// C3, C6
#[test]
fn interrupted_by_a_signal_all_cases_end_and_nothing_is_left() {
    for (signal, code) in [(2, 130), (15, 143)] {
        let mark = format!("{}.{signal}", std::process::id());
        let mut command = Command::new(PROGRAM);
        command.args(["matrix", "--depth=3", "--breadth=3,4", "--format=json"]).env(MARK, &mark);
        let mut program = command.stdout(Stdio::piped()).spawn().unwrap();
        stop_a_case(&mark);
        Pidfd::open(program.id()).unwrap().send_signal(signal).unwrap();
        let mut stdout = String::new();
        program.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        assert_eq!(program.wait().unwrap().code(), Some(code), "{stdout}");
        let report: Value = serde_json::from_str(&stdout).unwrap();
        let interrupted = |case: &&Value| case["detail"] == "interrupted";
        let begun = |case: &Value| case["elapsed_ms"].as_f64().unwrap() > 0.0;
        // Those under way; those that had not begun have not failed.
        assert!(cases(&report).filter(interrupted).all(begun), "{stdout}");
        assert!(cases(&report).any(|case| interrupted(&case)), "{stdout}");
        let not_run: Vec<_> = cases(&report).filter(|case| case["outcome"] == "not run").collect();
        assert!(!not_run.is_empty() && !not_run.iter().any(|case| begun(case)), "{stdout}");
        assert_eq!(marked(&mark).len(), 0);
    }
}

/// C3
#[test]
fn killed_it_takes_all_its_trees_along() {
    let mark = format!("{}.kill", std::process::id());
    let mut command = Command::new(PROGRAM);
    command.args(["matrix", "--depth=3", "--breadth=3,4"]).env(MARK, &mark);
    let mut program = command.stdout(Stdio::null()).spawn().unwrap();
    stop_a_case(&mark);
    program.kill().unwrap();
    program.wait().unwrap();
    let begun = Instant::now();
    loop {
        let left = marked(&mark);
        if left.is_empty() {
            return;
        }
        // Half of what the case that stands still may take. That actors are gone in a second (C3) is
        // for others to say: these are their watchers too, which kill, reap and remove files.
        assert!(begun.elapsed() < Duration::from_secs(10), "{left:?} are left");
        std::thread::yield_now();
    }
}

/// Waits until trees are up, and stops the root of one of them: that case does not end by itself.
fn stop_a_case(mark: &str) {
    let until = Instant::now() + HANG;
    let is_stopped = |all: Vec<u32>| {
        assert!(Instant::now() < until, "no tree that stays: {all:?}");
        all.len() >= 10 && all.into_iter().filter(|&pid| is_a_case(pid)).any(stop)
    };
    while !is_stopped(marked(mark)) {
        std::thread::yield_now();
    }
}

/// Whether it runs a case, and is none of those below it.
fn is_a_case(pid: u32) -> bool {
    let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let inside = |pid| carries(pid, "HATCHERY_ISOLATED=scenario");
    args.split(|byte| *byte == 0).any(|arg| arg == b"case")
        && inside(pid)
        && stat(pid).is_some_and(|(_, parent)| !inside(parent))
}

/// Says whether it stands still; it may have ended before.
fn stop(pid: u32) -> bool {
    let Ok(pidfd) = Pidfd::open(pid) else { return false };
    let _gone = pidfd.send_signal(nix::libc::SIGSTOP);
    while !pidfd.is_dead() {
        if stat(pid).is_some_and(|(state, _)| state == "T") {
            return true;
        }
    }
    false
}

/// The processes that carry the mark in their environment.
fn marked(mark: &str) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|process| process.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| carries(pid, &format!("{MARK}={mark}"))).collect()
}

/// A process that is gone or a zombie has no environment.
fn carries(pid: u32, entry: &str) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|found| found == entry.as_bytes())
}

/// Its state and its parent.
fn stat(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut words = stat.rsplit_once(") ")?.1.split(' ');
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
}

fn cases(report: &Value) -> impl Iterator<Item = &Value> {
    report["cases"].as_array().unwrap().iter()
}

fn is_one_of(case: &Value, outcomes: &[&str]) -> bool {
    outcomes.iter().any(|outcome| case["outcome"] == *outcome)
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_hatchery");
const MARK: &str = "HATCHERY_CLI_TEST";
/// Nothing here takes this long.
const HANG: Duration = Duration::from_secs(60);
