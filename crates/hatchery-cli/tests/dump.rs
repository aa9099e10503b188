//! The `hatchery dump` command: text for people, JSON for programs, a status that tells.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::process::{Command, Output, Stdio};

use hatchery_testkit::dump::Dump;

fn dump(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hatchery")).arg("dump").args(args).output().unwrap()
}

#[test]
fn a_process_is_shown_as_text_and_as_json() {
    // It reads until we close its stdin.
    let mut cat = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let pid = cat.id().to_string();
    let text = dump(&[&pid]);
    let shown = String::from_utf8(text.stdout).unwrap();
    assert!(text.status.success() && shown.starts_with("nobody waits for anybody\n"), "{shown}");
    assert!(shown.contains("thread") && shown.contains("fd 0 pipe:["), "{shown}");
    let json = dump(&["--json", "--alone", &pid]);
    let read: Dump = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((read.process.pid, read.process.count()), (cat.id(), 1));
    drop(cat.stdin.take());
    cat.wait().unwrap();
}

#[test]
fn who_is_not_there_is_an_error() {
    // The kernel gives no process this number.
    let none = dump(&["4294967295"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8(none.stderr).unwrap().contains("no process 4294967295"));
    assert_eq!(dump(&["root"]).status.code(), Some(2));
}
