//! Processes that a scenario left behind, known by a mark in their environment.

use std::fs;
use std::time::{Duration, Instant};

use hatchery_spawn::Pidfd;

/// The variable that marks every process of a scenario.
pub const MARK: &str = "HATCHERY_SCENARIO";

/// A process that carries a mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Its process id.
    pub pid: u32,
    /// Its name and arguments.
    pub command: String,
}

/// A mark that nobody else has.
#[must_use]
pub fn new_mark() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Every living process with that mark. Zombies have no environment any more and don't count.
#[must_use]
pub fn find(mark: &str) -> Vec<Leftover> {
    let wanted = format!("{MARK}={mark}");
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
        })
        .map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned();
            Leftover { pid, command }
        })
        .collect()
}

/// The processes with that mark that are still there after `grace`: what dies in a moment, as an
/// orphan of a killed root does, is no leftover (C3 grants a second).
#[must_use]
pub fn find_after(mark: &str, grace: Duration) -> Vec<Leftover> {
    let until = Instant::now() + grace;
    loop {
        let found = find(mark);
        let watched = found.first().and_then(|first| Pidfd::open(first.pid).ok());
        if found.is_empty() || Instant::now() >= until {
            return found;
        }
        // Ended by the death of one of them, or by the grace.
        if let Some(watched) = watched {
            let _dead = watched.wait_dead(until.saturating_duration_since(Instant::now()));
        }
    }
}

/// Kills every process with that mark, through pidfds, until none is left or `bound` is over.
pub fn kill(mark: &str, bound: Duration) {
    let until = Instant::now() + bound;
    loop {
        let found = find(mark);
        if found.is_empty() || Instant::now() > until {
            return;
        }
        for leftover in found {
            let Ok(pidfd) = Pidfd::open(leftover.pid) else { continue };
            // The number may have changed hands since the search: look again, now that it can't.
            if find(mark).iter().any(|still| still.pid == leftover.pid) {
                let _dead = pidfd.send_signal(9);
                let _ended = pidfd.wait_dead(Duration::from_millis(200));
            }
        }
    }
}
