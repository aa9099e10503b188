//! What the kernel knows of the processes of a scenario, for a hang to explain itself.

use std::fmt;
use std::fs;

use serde::Serialize;

use crate::leftovers;

/// One process of a tree at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct ProcessState {
    /// Its process id.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// What `ps` shows.
    pub command: String,
    /// Its threads.
    pub threads: Vec<ThreadState>,
    /// Its fds: number and target.
    pub fds: Vec<String>,
    /// Pending, blocked, ignored and caught signals as the kernel prints them.
    pub signals: Vec<String>,
}

/// One thread at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct ThreadState {
    /// Its name.
    pub name: String,
    /// R, S, D, T, Z …
    pub state: String,
    /// Where in the kernel it waits.
    pub waits_in: String,
    /// The system call it is in, with its arguments.
    pub call: String,
}

/// All processes that carry a scenario's mark.
#[must_use]
pub fn of_mark(mark: &str) -> Vec<ProcessState> {
    leftovers::find(mark).into_iter().map(|found| of_process(found.pid, found.command)).collect()
}

fn of_process(pid: u32, command: String) -> ProcessState {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = |key: &str| {
        status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim().to_owned()
    };
    let signals = ["SigPnd:", "ShdPnd:", "SigBlk:", "SigIgn:", "SigCgt:"];
    ProcessState {
        pid,
        parent: line("PPid:").parse().unwrap_or(0),
        command,
        threads: list(&format!("/proc/{pid}/task")).map(|task| thread(&task)).collect(),
        fds: list(&format!("/proc/{pid}/fd"))
            .map(|fd| {
                let target = fs::read_link(&fd).unwrap_or_default();
                let number = fd.rsplit('/').next().unwrap_or_default();
                format!("{number} -> {}", target.display())
            })
            .collect(),
        signals: signals.iter().map(|key| format!("{key} {}", line(key))).collect(),
    }
}

fn thread(task: &str) -> ThreadState {
    let read = |file: &str| {
        fs::read_to_string(format!("{task}/{file}")).unwrap_or_default().trim().to_owned()
    };
    let stat = read("stat");
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.get(..1)).unwrap_or("?").to_owned();
    ThreadState { name: read("comm"), state, waits_in: read("wchan"), call: read("syscall") }
}

fn list(folder: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.path().to_string_lossy().into_owned())
}

impl fmt::Display for ProcessState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} (parent {}) {}", self.pid, self.parent, self.command)?;
        for thread in &self.threads {
            let ThreadState { name, state, waits_in, call } = thread;
            writeln!(f, "  thread {name}: {state} in {waits_in}, call {call}")?;
        }
        writeln!(f, "  signals {}", self.signals.join(" "))?;
        for fd in &self.fds {
            writeln!(f, "  fd {fd}")?;
        }
        Ok(())
    }
}
