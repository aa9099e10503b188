//! The `hatchery soak` command: a short run leaves nothing, a seed means the same rounds.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::process::{Command, Output};

use serde_json::Value;

fn soak(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hatchery")).arg("soak").args(args).output().unwrap()
}

/// C3, C10, C21, scenario 48: seconds of what is run for minutes by hand.
#[test]
fn a_short_soak_leaves_nothing() {
    let rounds = ["--seed", "4", "--for", "10s", "--rounds", "12", "--cycles", "64"];
    let output = soak(&[&rounds[..], &["--format", "json"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["leaks"].as_array().unwrap().len(), 0, "{report:#}");
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!(report["seed"], 4);
    assert!(report["rounds"].as_u64().unwrap() > 0, "{report:#}");
    assert!(!report["curve"].as_array().unwrap().is_empty(), "{report:#}");
    // C21: three kinds of cycles on three backends.
    let cycles = report["cycles"].as_array().unwrap();
    assert_eq!(cycles.len(), 9, "{report:#}");
    assert!(cycles.iter().all(|one| one["curve"].as_array().unwrap().len() == 64), "{report:#}");
}

#[test]
fn what_is_no_time_is_refused() {
    for time in ["x", "10d", "", "99999999999999999999s"] {
        let output = soak(&["--for", time]);
        assert_eq!(output.status.code(), Some(2), "{time}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("Usage:"), "{time}");
    }
}
