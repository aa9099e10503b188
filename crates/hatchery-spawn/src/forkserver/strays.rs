//! Strays: what an actor has started by itself, wherever it went. Its environment names its tree
//! and its actor, if it was started by an exec and has kept the variable.
//!
//! The forkserver uses this for its own children; the root for the whole tree, when the
//! forkserver was killed and can't.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::{Pid, getsid};

use super::settle::Says;
use super::wire::Left;
use crate::confine::cgroup;
use crate::held::Held;
use crate::identity::Identity;
use crate::image::SERVER_MARKER;
use crate::leftovers;
use crate::prelude::{DETACHED, MARK};
use crate::sys::process;

/// What tells this tree's processes from those of all others, also in other pid namespaces.
pub(crate) fn new_tree() -> String {
    Identity::new().to_string()
}

/// The trees that a process says it belongs to: its own, and maybe one around that. Who is amid an exec
/// is waited for until then.
pub(crate) fn trees_of(pid: u32, until: Instant) -> Vec<Identity> {
    let environment = loop {
        match environment_of(pid) {
            Ok(environment) => break environment,
            Err(AmidExec) if Instant::now() >= until => return Vec::new(),
            Err(AmidExec) => std::thread::yield_now(),
        }
    };
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

/// It has no environment for a moment, or none any more while it holds its fds still: look again.
#[derive(Debug)]
pub(crate) struct AmidExec;

/// The group of a child of this process that nobody asked for, and what its environment says.
pub(crate) fn says(pid: i32, tree: &str) -> Result<(i32, Says), AmidExec> {
    let number = pid.cast_unsigned();
    let said = match mark_of(number, tree)? {
        Some(mark) => Says::Mark(mark),
        None if is_closed(number) => Says::Closed,
        None if is_dying(number) => return Err(AmidExec),
        None => Says::Nothing,
    };
    let group = nix::unistd::getpgid(Some(Pid::from_raw(pid)));
    Ok((group.map_or(0, Pid::as_raw), said))
}

/// The mark of the actor that a process belongs to.
pub(crate) fn mark_of(pid: u32, tree: &str) -> Result<Option<u64>, AmidExec> {
    let environment = environment_of(pid)?;
    let prefix = format!("{MARK}={tree}.");
    let mark = entries(&environment).find_map(|entry| entry.strip_prefix(prefix.as_bytes()));
    Ok(mark.and_then(|mark| std::str::from_utf8(mark).ok()?.parse().ok()))
}

/// Whether a process was started by a program that the tree leaves alone, and has kept the variable.
pub(crate) fn is_detached(pid: u32, tree: &str) -> bool {
    let entry = format!("{DETACHED}={tree}");
    let until = Instant::now() + EXEC_BOUND;
    loop {
        match environment_of(pid) {
            Ok(environment) => return entries(&environment).any(|it| it == entry.as_bytes()),
            Err(AmidExec) if Instant::now() < until => std::thread::yield_now(),
            Err(AmidExec) => return false,
        }
    }
}

/// The same, quickly of those that can't be: they are in the forkserver's session.
pub(crate) fn is_left_alone(pid: u32, server: u32, tree: &str) -> bool {
    let session = |pid: u32| getsid(Some(Pid::from_raw(pid.cast_signed())));
    session(pid) != session(server) && is_detached(pid, tree)
}

/// Whether nobody of ours may read its environment.
fn is_closed(pid: u32) -> bool {
    let read = fs::File::open(format!("/proc/{pid}/environ"));
    read.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Whether it is amid its end: its memory is gone, and what it has opened may not be yet.
fn is_dying(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_zombie = stat.rsplit_once(") ").is_some_and(|(_, after)| after.starts_with(['Z', 'X']));
    let image = fs::read_link(format!("/proc/{pid}/exe"));
    !is_zombie && image.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Whether it has begun its exit, as everybody may know: it is not dead yet.
pub(crate) fn is_exiting(pid: i32) -> bool {
    const PF_EXITING: u64 = 4;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Field 9; the name, which may hold anything, is the second.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let flags = after.split_whitespace().nth(6).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

/// A process that lives, by what the kernel tells everybody.
pub(crate) fn describe(pid: i32) -> Option<Left> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let is_dead = field("State:").is_some_and(|state| state.starts_with(['Z', 'X']));
    if is_dead {
        return None;
    }
    let uid = field("Uid:").and_then(|uids| uids.split_whitespace().next()?.parse().ok());
    let name = field("Name:").unwrap_or_default().to_owned();
    let (uid, refused) = (uid.unwrap_or(u32::MAX), process::is_refused(pid));
    Some(Left { pid: pid.cast_unsigned(), uid, name, refused })
}

/// All that are in a group. Reads all of `/proc`: for who has waited in vain.
pub(crate) fn in_group(group: i32) -> Vec<i32> {
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.flatten().filter_map(|file| file.file_name().to_str()?.parse::<i32>().ok());
    let is_in = |pid: &i32| {
        nix::unistd::getpgid(Some(Pid::from_raw(*pid))).is_ok_and(|of| of.as_raw() == group)
    };
    pids.filter(is_in).collect()
}

/// All that are in a cgroup.
pub(crate) fn in_cgroup(path: &Path) -> Vec<i32> {
    leftovers::members(path).into_iter().map(u32::cast_signed).collect()
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
        let look = || environment_of(pid).map(|environment| is_of(&environment, tree));
        // Held first, looked at second: should the number change hands, the signal goes nowhere.
        let held = match look() {
            Ok(false) => continue,
            Ok(true) => Held::open(pid),
            Err(AmidExec) => {
                all_seen = false;
                continue;
            }
        };
        match (held, look()) {
            (Ok(process), Ok(true)) if !process.is_dead() => found.push(process),
            (Ok(process), Err(AmidExec)) if !process.is_dead() => all_seen = false,
            (_, _) => {}
        }
    }
    (found, all_seen)
}

/// What a process has in its environment; nothing if that is closed to us.
///
/// Who execs while it is read shows nothing, or the beginning of what it had. Where it lies is another
/// place after each exec.
fn environment_of(pid: u32) -> Result<Vec<u8>, AmidExec> {
    let place = place_of(pid);
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    // The kernel's own have no image. That of who is closed to us is not told.
    let is_amid = || place.code == 0 && fs::read_link(format!("/proc/{pid}/exe")).is_ok();
    if place_of(pid) != place || is_amid() { Err(AmidExec) } else { Ok(environment) }
}

/// Where a process has what it was started with.
#[derive(PartialEq)]
struct Place {
    /// The last that an exec sets.
    code: u64,
    environment: [u64; 2],
}

fn place_of(pid: u32) -> Place {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Fields 26, 50 and 51. The name, which may hold anything, is the second.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let fields: Vec<u64> =
        after.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    Place { code: field(26), environment: [field(50), field(51)] }
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

/// How long execs may be waited for in a look at all processes: each needs microseconds of a processor,
/// which others may have.
pub(crate) const EXEC_BOUND: Duration = Duration::from_millis(250);
/// How long a sweep may take: C3 has a second.
pub(crate) const SWEEP_BOUND: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Who becomes one program after another is never seen without his mark (C3).
    #[test]
    fn an_exec_hides_nobody() {
        const AGAIN: &str = r#"[ $N = 0 ] && exec sleep 1000; N=$((N-1)) exec sh -c "$AGAIN""#;
        let mut busy = Command::new("sh")
            .args(["-c", AGAIN])
            .envs([("AGAIN", AGAIN), ("N", "400"), (MARK, "abc.7")])
            .spawn()
            .unwrap();
        let name = || fs::read_to_string(format!("/proc/{}/comm", busy.id())).unwrap();
        let mut seen = Vec::new();
        while name() != "sleep\n" {
            seen.extend(mark_of(busy.id(), "abc").ok());
        }
        busy.kill().unwrap();
        busy.wait().unwrap();
        let unseen = seen.iter().filter(|mark| **mark != Some(7)).count();
        assert_eq!((unseen, seen.len() > 100), (0, true), "of {}", seen.len());
    }

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
