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

/// The time that all threads of a process have run, in seconds.
pub(crate) fn run_time(pid: u32) -> f64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0.0 };
    tasks.flatten().map(|task| one_run_time(&task.path())).sum()
}

fn one_run_time(task: &Path) -> f64 {
    let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    let nanos = text.split_whitespace().next().and_then(|nanos| nanos.parse::<u64>().ok());
    float(nanos.unwrap_or(0)) / 1e9
}

/// How many fds this process holds.
pub(crate) fn own_fds() -> u64 {
    fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count() as u64)
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
