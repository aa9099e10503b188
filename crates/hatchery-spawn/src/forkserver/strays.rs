//! Strays: what an actor has started by itself, wherever it went. Its environment names its tree
//! and its actor, if it was started by an exec and has kept the variable.
//!
//! The forkserver uses this for its own children; the root for the whole tree, when the
//! forkserver was killed and can't.

use std::fs;
use std::time::{Duration, Instant};

use crate::confine::cgroup;
use crate::held::Held;
use crate::identity::Identity;
use crate::image::SERVER_MARKER;
use crate::prelude::MARK;

/// What tells this tree's processes from those of all others, also in other pid namespaces.
pub(crate) fn new_tree() -> String {
    Identity::new().to_string()
}

/// The trees that a process says it belongs to: its own, and maybe one around that.
pub(crate) fn trees_of(pid: u32) -> Vec<Identity> {
    let path = format!("/proc/{pid}/environ");
    let mut environment = fs::read(&path).unwrap_or_default();
    let mut tries = 0;
    while environment.is_empty() && tries < 10 && is_amid_exec(pid) {
        std::thread::yield_now();
        environment = fs::read(&path).unwrap_or_default();
        tries += 1;
    }
    let mut trees: Vec<Identity> = entries(&environment).filter_map(tree_of).collect();
    trees.dedup();
    trees
}

fn tree_of(entry: &[u8]) -> Option<Identity> {
    let (key, value) = std::str::from_utf8(entry).ok()?.split_once('=')?;
    let tree = match key {
        MARK => value.rsplit_once('.')?.0,
        SERVER_MARKER => value.split_once('.')?.1,
        _ => return None,
    };
    Identity::parse(tree)
}

/// The mark of the actor that a process belongs to.
pub(crate) fn mark_of(pid: i32, tree: &str) -> Option<u64> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let prefix = format!("{MARK}={tree}.");
    let mark = entries(&environment).find_map(|entry| entry.strip_prefix(prefix.as_bytes()))?;
    std::str::from_utf8(mark).ok()?.parse().ok()
}

/// Kills all that is left of a tree whose forkserver is gone (C3); `bound` is for a machine that
/// can't kill at once. Processes that can't be looked at are not found.
pub(crate) fn sweep(tree: &str, bound: Duration) {
    let until = Instant::now() + bound;
    // Whoever was found may have started another one meanwhile.
    while Instant::now() < until {
        let (left, all_seen) = all_of(tree);
        if left.is_empty() && all_seen {
            break;
        }
        for process in &left {
            let _gone = process.send_signal(libc::SIGKILL);
        }
        for process in &left {
            let _bounded = process.wait_dead(until.saturating_duration_since(Instant::now()));
        }
    }
    cgroup::sweep(tree, until);
}

/// All of a tree that live, and whether everybody could be looked at.
fn all_of(tree: &str) -> (Vec<Held>, bool) {
    let (mut found, mut all_seen) = (Vec::new(), true);
    let Ok(all) = fs::read_dir("/proc") else { return (found, all_seen) };
    let pids = all.flatten().filter_map(|file| file.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        let look = || {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            if environment.is_empty() && is_amid_exec(pid) {
                return None;
            }
            Some(is_of(&environment, tree))
        };
        // Held first, looked at second: should the number change hands, the signal goes nowhere.
        let held = match look() {
            Some(false) => continue,
            Some(true) => Held::open(pid),
            None => {
                all_seen = false;
                continue;
            }
        };
        match (held, look()) {
            (Ok(process), Some(true)) if !process.is_dead() => found.push(process),
            (Ok(process), None) if !process.is_dead() => all_seen = false,
            (_, _) => {}
        }
    }
    (found, all_seen)
}

/// Whether a process is amid an exec, when it has no environment for a moment. What was started with
/// an empty one has a place for it, and the kernel's own have no image.
pub(crate) fn is_amid_exec(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Field 51: where its environment ends. The name, which may hold anything, is the second.
    let end = stat.rsplit_once(')').and_then(|(_, after)| after.split_whitespace().nth(48));
    end == Some("0") && fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

/// Whether an environment is one of that tree: of something that an actor has started, or of the
/// forkserver and what was forked from it without an exec.
fn is_of(environment: &[u8], tree: &str) -> bool {
    let started = format!("{MARK}={tree}.");
    let server = format!("{SERVER_MARKER}=");
    let ends = format!(".{tree}");
    entries(environment).any(|entry| {
        entry.starts_with(started.as_bytes())
            || (entry.starts_with(server.as_bytes()) && entry.ends_with(ends.as_bytes()))
    })
}

fn entries(environment: &[u8]) -> impl Iterator<Item = &[u8]> {
    environment.split(|byte| *byte == 0)
}

/// How long a sweep may take: C3 has a second.
pub(crate) const SWEEP_BOUND: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_tells_its_tree() {
        assert!(is_of(b"A=1\0HATCHERY_ACTOR=abc.7\0", "abc"));
        assert!(is_of(b"HATCHERY_FORKSERVER=12.abc\0", "abc"));
        for other in
            [&b"HATCHERY_ACTOR=abcd.7\0"[..], b"HATCHERY_FORKSERVER=abc.12\0", b"", b"X=.abc"]
        {
            assert!(!is_of(other, "abc"));
        }
        assert_ne!(new_tree(), new_tree());
    }
}
