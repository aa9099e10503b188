//! The `hatchery reap` command: shows what a tree has left that is gone, and ends it when told to.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A number that no process has: over the kernel's own limit.
const GONE: &str = "4194999";

fn reap(args: &[&str]) -> Output {
    // Other tests leave things on purpose: only what is left of that root.
    let hatchery = env!("CARGO_BIN_EXE_hatchery");
    Command::new(hatchery).args(["reap", "--root", GONE]).args(args).output().unwrap()
}

/// A program that says to belong to a tree whose root is gone.
fn left(script: &str) -> Child {
    let mut child = Command::new("sh")
        .args(["-c", script])
        .env("HATCHERY_ACTOR", format!("0123456789abcdef-{GONE}-7-0123456789abcdef-7.1"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    child
}

/// Shown first and only ended with `--yes`; the status says whether anything is left.
#[test]
fn what_is_left_is_shown_and_ended_when_told_to() {
    let nothing = reap(&[]);
    assert_eq!(nothing.status.code(), Some(0), "{nothing:?}");
    assert!(String::from_utf8_lossy(&nothing.stdout).contains("nothing is left"));
    let mut polite = left("echo up; while :; do read line; done </dev/zero");
    let mut rude = left("trap '' TERM; echo up; while :; do sleep 0.01; done");
    let shown = reap(&[]);
    assert_eq!(shown.status.code(), Some(1), "{shown:?}");
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(text.contains(&format!("{}  lives", polite.id())), "{text}");
    assert!(polite.try_wait().unwrap().is_none() && rude.try_wait().unwrap().is_none());
    let json: Value = serde_json::from_slice(&reap(&["--json"]).stdout).unwrap();
    assert_eq!(json[0]["root"].to_string(), GONE, "{json:#}");
    let ended = reap(&["--yes", "--grace", "1", "--json"]);
    let json: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(ended.status.code(), Some(0), "{json:#}");
    let has = |list: &str, pid: u32| json[0][list].as_array().unwrap().contains(&pid.into());
    assert!(has("terminated", polite.id()) && has("killed", rude.id()), "{json:#}");
    polite.wait().unwrap();
    rude.wait().unwrap();
}
