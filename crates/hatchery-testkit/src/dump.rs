//! What a whole process tree is doing right now, read from `/proc`: for the end of a bound.
//!
//! Reading races with processes that come and go; what can't be read is left empty.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// One process, with everything below it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name, as `ps` shows it.
    pub name: String,
    /// Its command line.
    pub command: String,
    /// `R`, `S`, `D`, `T`, `Z`, as in proc(5).
    pub state: String,
    /// Signals as masks in hexadecimal.
    pub signals: Signals,
    /// Its threads.
    pub threads: Vec<Thread>,
    /// Its fds, with what they lead to.
    pub fds: BTreeMap<u32, String>,
    /// Its children.
    pub children: Vec<Self>,
}

/// One thread.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Thread {
    /// Its number.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// As for processes.
    pub state: String,
    /// Where in the kernel it waits.
    pub wchan: String,
    /// The system call it is in, with its arguments, or `running`.
    pub syscall: String,
}

/// The signal masks of a process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Signals {
    /// Waiting to be delivered to the process.
    pub pending: String,
    /// Blocked by its main thread.
    pub blocked: String,
    /// Ignored.
    pub ignored: String,
    /// Handled.
    pub caught: String,
}

impl Process {
    /// What `pid` and everything below it is doing; `None` if there is no such process.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let mut below: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (process, parent) in parents() {
            below.entry(parent).or_default().push(process);
        }
        Self::with(pid, &below)
    }

    fn with(pid: u32, below: &BTreeMap<u32, Vec<u32>>) -> Option<Self> {
        let dir = format!("/proc/{pid}");
        let status = fields(&read(&format!("{dir}/status")));
        let field = |key: &str| status.get(key).cloned().unwrap_or_default();
        let name = status.get("Name")?.clone();
        let children = below.get(&pid).into_iter().flatten();
        Some(Self {
            pid,
            name,
            command: read(&format!("{dir}/cmdline")).replace('\0', " ").trim().to_owned(),
            state: field("State"),
            signals: Signals {
                pending: field("ShdPnd"),
                blocked: field("SigBlk"),
                ignored: field("SigIgn"),
                caught: field("SigCgt"),
            },
            threads: numbers(&format!("{dir}/task")).map(|tid| Thread::of(&dir, tid)).collect(),
            fds: numbers(&format!("{dir}/fd"))
                .filter_map(|fd| {
                    let target = fs::read_link(format!("{dir}/fd/{fd}")).ok()?;
                    Some((fd, target.to_string_lossy().into_owned()))
                })
                .collect(),
            children: children.filter_map(|child| Self::with(*child, below)).collect(),
        })
    }

    /// How many processes these are.
    #[must_use]
    pub fn count(&self) -> usize {
        1 + self.children.iter().map(Self::count).sum::<usize>()
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        let pad = "  ".repeat(depth);
        let Signals { pending, blocked, ignored, caught } = &self.signals;
        writeln!(f, "{pad}{} {} [{}] {}", self.pid, self.name, self.state, self.command)?;
        writeln!(
            f,
            "{pad}  signals: pending {pending}, blocked {blocked}, ignored {ignored}, caught {caught}"
        )?;
        for Thread { tid, name, state, wchan, syscall } in &self.threads {
            writeln!(f, "{pad}  thread {tid} {name} [{state}] in {wchan}, syscall {syscall}")?;
        }
        for (fd, target) in &self.fds {
            writeln!(f, "{pad}  fd {fd} {target}")?;
        }
        self.children.iter().try_for_each(|child| child.write(f, depth + 1))
    }
}

impl Thread {
    fn of(process: &str, tid: u32) -> Self {
        let dir = format!("{process}/task/{tid}");
        let status = fields(&read(&format!("{dir}/status")));
        let field = |key: &str| status.get(key).cloned().unwrap_or_default();
        Self {
            tid,
            name: field("Name"),
            state: field("State"),
            wchan: read(&format!("{dir}/wchan")),
            syscall: read(&format!("{dir}/syscall")).trim().to_owned(),
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}

/// All processes with their parents.
fn parents() -> Vec<(u32, u32)> {
    let all = numbers("/proc");
    all.filter_map(|pid| {
        let stat = read(&format!("/proc/{pid}/stat"));
        // The name in brackets may itself hold brackets and blanks.
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        Some((pid, parent))
    })
    .collect()
}

fn fields(status: &str) -> BTreeMap<String, String> {
    let lines = status.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

fn numbers(dir: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(Path::new(dir)).into_iter().flatten().flatten();
    let mut found: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    found.sort_unstable();
    found.into_iter()
}

fn read(path: &str) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_dump_shows_the_child_of_a_child_and_survives_json() {
        let script = "exec 3<&0; cat <&3 & echo ready; wait";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = std::io::BufReader::new(shell.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();

        let tree = Process::of(shell.id()).unwrap();
        assert_eq!((tree.count(), tree.children.len()), (2, 1), "{tree}");
        assert!(!tree.threads.is_empty() && tree.fds.contains_key(&0), "{tree}");
        assert_eq!(tree.to_string().matches("signals:").count(), 2);
        let json = serde_json::to_string(&tree).unwrap();
        assert_eq!(serde_json::from_str::<Process>(&json).unwrap(), tree);

        let below = crate::fault::sigkill(tree.children[0].pid).unwrap();
        assert!(below.wait_dead(std::time::Duration::from_secs(5)));
        shell.wait().unwrap();
    }
}
