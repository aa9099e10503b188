//! The figures that somebody looked at and found right, kept in the repository.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::ACCEPT;
use crate::Outcome;

/// What was counted, and by whose code.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Accepted {
    /// Another compiler makes other instructions.
    compiler: String,
    /// Instructions a round.
    pub(super) paths: BTreeMap<String, f64>,
}

impl Accepted {
    pub(super) fn of_this_compiler() -> Self {
        Self { compiler: compiler(), paths: BTreeMap::new() }
    }

    pub(super) fn read() -> Outcome<Self> {
        match std::fs::read(Path::new(FILE)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn write(&self) -> Outcome {
        Ok(std::fs::write(FILE, serde_json::to_string_pretty(self)? + "\n")?)
    }

    /// By how much a path may have grown.
    pub(super) fn tolerance(&self, accepted: &Self) -> f64 {
        if self.compiler == accepted.compiler { SAME_COMPILER } else { ANOTHER_COMPILER }
    }

    /// A path that costs more than was accepted fails the run, in words that say what to do.
    pub(super) fn say_what_is_new(&self, accepted: &Self) -> Outcome {
        let tolerance = self.tolerance(accepted);
        let mut grown = 0;
        for (path, &now) in &self.paths {
            let Some(&before) = accepted.paths.get(path) else { continue };
            let change = (now / before - 1.0) * 100.0;
            let (was, is) = (grouped(before), grouped(now));
            if now > before * tolerance {
                grown += 1;
                eprintln!("{path}: {was} → {is} instructions ({change:+.1} %)");
            } else if now * tolerance < before {
                eprintln!("{path}: {was} → {is} instructions ({change:+.1} %): better; accept it");
            }
        }
        if grown == 0 {
            return Ok(());
        }
        if self.compiler != accepted.compiler {
            eprintln!("accepted were those of {}; this is {}", accepted.compiler, self.compiler);
        }
        let allowed = (tolerance - 1.0) * 100.0;
        eprintln!(
            "up to {allowed:.0} % more than accepted are let pass; to accept what it is now:"
        );
        eprintln!("  {ACCEPT}=1 cargo run --release -p hatchery-bench -- --only instructions");
        Err(format!("hot paths that take more instructions than accepted: {grown}").into())
    }
}

fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

/// With commas between thousands.
fn grouped(count: f64) -> String {
    let digits = format!("{count:.0}");
    let mut out = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Allocators and hashes are not quite the same each time.
const SAME_COMPILER: f64 = 1.05;
/// Enough to let a compiler's own changes pass, and to see what was made twice as slow.
const ANOTHER_COMPILER: f64 = 1.3;
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.json");
