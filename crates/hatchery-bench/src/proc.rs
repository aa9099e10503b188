//! What `/proc` says of processes: memory and time.

use std::fs;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::figures::float;

/// The private memory of a process in bytes.
pub(crate) fn private(pid: u32) -> Option<f64> {
    rollup(pid, "Private_")
}

/// Its proportional share of all memory it maps, in bytes.
pub(crate) fn pss(pid: u32) -> Option<f64> {
    rollup(pid, "Pss:")
}

fn rollup(pid: u32, begins: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let lines = text.lines().filter(|line| line.starts_with(begins));
    let kib: u64 =
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum();
    Some(float(kib) * 1024.0)
}

/// What a process has in memory, and how much of that is no file's, in bytes.
pub(crate) fn resident(pid: u32) -> Option<(f64, f64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let bytes = |begins: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(begins))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(float(kib) * 1024.0)
    };
    bytes("VmRSS:").zip(bytes("RssAnon:"))
}

/// The time that all threads of a process have run, in seconds; not a number if none can be read,
/// so that it is told as missing.
pub(crate) fn run_time(pid: u32) -> f64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return f64::NAN };
    // One that ends meanwhile can't be read either.
    let each = tasks.flatten().filter_map(|task| one_run_time(&task.path()));
    each.reduce(|sum, one| sum + one).unwrap_or(f64::NAN)
}

fn one_run_time(task: &Path) -> Option<f64> {
    let text = fs::read_to_string(task.join("schedstat")).ok()?;
    let nanos: u64 = text.split_whitespace().next()?.parse().ok()?;
    Some(float(nanos) / 1e9)
}

/// How many fds this process holds.
pub(crate) fn own_fds() -> Option<u64> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count() as u64)
}

/// Allows this process as many fds as it may have.
pub(crate) fn raise_fd_limit() {
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    // More than that is the administrator's to allow.
    let most = hard.max(FDS);
    let _refused = setrlimit(Resource::RLIMIT_NOFILE, most, most)
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
}

/// Enough for 10,000 actors and 10,000 fds besides.
const FDS: u64 = 32 * 1024;
