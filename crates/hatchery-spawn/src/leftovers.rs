//! What is left of trees whose root is gone, found and ended by somebody who was no part of them.
//!
//! Nothing should be (C3); what can be is a program that an actor had started by itself, if root
//! and forkserver were SIGKILLed at once, and a cgroup. hatchery keeps no files, so nothing of it
//! outlives a reboot. All of a tree carry its root's number, start time, boot and namespaces in
//! their environment, and so does the name of a cgroup.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::confine::cgroup;
use crate::forkserver::strays;
use crate::held::Held;
use crate::identity::{Fate, Identity, World};

/// What is left of one tree.
#[derive(Debug)]
pub struct LeftTree {
    identity: Identity,
    processes: Vec<LeftProcess>,
    cgroups: Vec<PathBuf>,
}

/// A process of a tree whose root is gone.
#[derive(Debug)]
pub struct LeftProcess {
    pid: u32,
    command: String,
    /// Whatever becomes of its number.
    held: Held,
}

/// How the end of a tree's leftovers went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ending {
    /// Who ended on SIGTERM.
    pub terminated: Vec<u32>,
    /// Who had to be killed.
    pub killed: Vec<u32>,
    /// Who is still there: a process that the kernel can't end yet, or that is another user's.
    pub stayed: Vec<u32>,
    /// Cgroups that could not be removed: something is in them.
    pub kept: Vec<PathBuf>,
}

/// Finds what is left of trees whose root is gone: processes of this user (of any, for root) that
/// this process can look at, and cgroups.
///
/// Left out, whatever their environment says: whoever belongs to a tree whose root lives, living
/// roots, this process and all above it; and trees of another pid or time namespace, whose roots
/// can't be judged from here. Blocks while it reads `/proc` and the tree of cgroups.
///
/// # Errors
/// `/proc` can't be read.
pub fn find() -> io::Result<Vec<LeftTree>> {
    let world = World::own();
    let mut fates = Fates { world, known: BTreeMap::new() };
    let mut trees: BTreeMap<Identity, LeftTree> = BTreeMap::new();
    let spared = with_ancestors(std::process::id());
    let until = Instant::now() + strays::EXEC_BOUND;
    let candidates = candidates(until)?;
    // First of all, so that every root is known to live or not.
    for mark in candidates.iter().flat_map(|(_, marks)| marks) {
        fates.of(mark);
    }
    let roots = fates.living_roots();
    for (pid, marks) in candidates {
        if spared.contains(&pid) || roots.contains(&pid) {
            continue;
        }
        // One tree in another: the living one counts.
        let is_left = marks.iter().all(|mark| fates.of(mark) == Fate::Gone);
        let Some(mark) = marks.into_iter().next().filter(|_| is_left) else { continue };
        let belongs = |pid| strays::trees_of(pid, until).contains(&mark);
        if let Some(process) = LeftProcess::hold(pid, belongs) {
            trees
                .entry(mark.clone())
                .or_insert_with(|| LeftTree::new(mark))
                .processes
                .push(process);
        }
    }
    for (path, mark) in cgroups() {
        if fates.of(&mark) == Fate::Gone {
            let tree = trees.entry(mark.clone()).or_insert_with(|| LeftTree::new(mark));
            tree.adopt(path, &spared, &roots);
        }
    }
    Ok(trees.into_values().collect())
}

struct Fates {
    world: World,
    known: BTreeMap<Identity, Fate>,
}

impl Fates {
    fn of(&mut self, identity: &Identity) -> Fate {
        if let Some(fate) = self.known.get(identity) {
            return *fate;
        }
        let fate = identity.fate(&self.world);
        self.known.insert(identity.clone(), fate);
        fate
    }

    fn living_roots(&self) -> BTreeSet<u32> {
        let living = self.known.iter().filter(|(_, fate)| **fate == Fate::Lives);
        living.map(|(identity, _)| identity.pid).collect()
    }
}

impl LeftTree {
    fn new(identity: Identity) -> Self {
        Self { identity, processes: Vec::new(), cgroups: Vec::new() }
    }

    /// The number that its root had.
    #[must_use]
    pub fn root(&self) -> u32 {
        self.identity.pid
    }

    /// Its processes that live.
    #[must_use]
    pub fn processes(&self) -> &[LeftProcess] {
        &self.processes
    }

    /// Its cgroups.
    #[must_use]
    pub fn cgroups(&self) -> &[PathBuf] {
        &self.cgroups
    }

    /// Takes a cgroup with all that is in it: nobody is there who wasn't started there.
    fn adopt(&mut self, path: PathBuf, spared: &BTreeSet<u32>, roots: &BTreeSet<u32>) {
        for pid in members(&path) {
            let is_known = self.processes.iter().any(|process| process.pid == pid);
            if is_known || spared.contains(&pid) || roots.contains(&pid) {
                continue;
            }
            let process = LeftProcess::hold(pid, |pid| members(&path).contains(&pid));
            self.processes.extend(process);
        }
        self.cgroups.push(path);
    }

    /// Ends it: SIGTERM for all of it at once, SIGKILL for who is still there after `grace` and for
    /// who was started meanwhile, then its cgroups. Whatever was found and has ended meanwhile is
    /// nobody else by now: processes are held, not numbered. Blocks `grace` and two and a half
    /// seconds at most.
    #[must_use]
    pub fn end(self, grace: Duration) -> Ending {
        let mut ending = Ending::default();
        let until = Instant::now() + grace;
        for process in &self.processes {
            // Who refuses is looked at again below.
            let _refused = process.held.send_signal(libc::SIGTERM);
            // A stopped one doesn't hear it.
            let _refused = process.held.send_signal(libc::SIGCONT);
        }
        let mut alive = Vec::new();
        for process in self.processes {
            if process.held.wait_dead(until.saturating_duration_since(Instant::now())) {
                ending.terminated.push(process.pid);
            } else {
                alive.push(process);
            }
        }
        let until = Instant::now() + KILL_WAIT;
        loop {
            ending.kill(alive, until);
            // Whom they have started while they went.
            let again = find().unwrap_or_default();
            let again = again.into_iter().find(|tree| tree.identity == self.identity);
            alive = again.map(|tree| tree.processes).unwrap_or_default();
            if alive.is_empty() || !ending.stayed.is_empty() {
                break;
            }
        }
        ending.kept =
            self.cgroups.into_iter().filter(|path| !cgroup::remove_until(path, until)).collect();
        ending
    }
}

impl Ending {
    fn kill(&mut self, processes: Vec<LeftProcess>, until: Instant) {
        for process in &processes {
            let _refused = process.held.send_signal(libc::SIGKILL);
        }
        for process in processes {
            let is_dead = process.held.wait_dead(until.saturating_duration_since(Instant::now()));
            let list = if is_dead { &mut self.killed } else { &mut self.stayed };
            list.push(process.pid);
        }
    }
}

impl LeftProcess {
    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its command line.
    #[must_use]
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Held first, looked at second: should the number have changed hands, this is nobody. Of
    /// another user's, only root may have one.
    fn hold(pid: u32, belongs: impl FnOnce(u32) -> bool) -> Option<Self> {
        let held = Held::open(pid).ok()?;
        let own = nix::unistd::geteuid().as_raw();
        let is_ours = own == 0 || owner_of(pid) == Some(own);
        if !is_ours || !belongs(pid) {
            return None;
        }
        let command = command_of(pid);
        (!held.is_dead()).then_some(Self { pid, command, held })
    }
}

/// All processes that belong to a tree, with the trees that they say.
fn candidates(until: Instant) -> io::Result<Vec<(u32, Vec<Identity>)>> {
    let all = fs::read_dir("/proc")?.flatten();
    let pids = all.filter_map(|file| file.file_name().to_str()?.parse::<u32>().ok());
    let marked = pids.map(|pid| (pid, strays::trees_of(pid, until)));
    Ok(marked.filter(|(_, marks)| !marks.is_empty()).collect())
}

/// A process and all above it: whoever looks may be what a gone tree has left.
fn with_ancestors(pid: u32) -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    let mut next = Some(pid);
    while let Some(pid) = next.filter(|pid| *pid != 0) {
        if !all.insert(pid) {
            break;
        }
        next = status_of(pid, "PPid:");
    }
    all
}

fn owner_of(pid: u32) -> Option<u32> {
    status_of(pid, "Uid:")
}

/// The first number of a line of a process's status.
fn status_of(pid: u32, key: &str) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

fn command_of(pid: u32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    command.trim_end().to_owned()
}

/// All cgroups that are named as ours are, of this user (of any, for root).
fn cgroups() -> Vec<(PathBuf, Identity)> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (path, kind) = (words.nth(1)?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    named_below(mounts.collect())
}

/// Those in any of these directories, which may be one and the same, mounted several times: by the
/// first.
fn named_below(mut below: Vec<PathBuf>) -> Vec<(PathBuf, Identity)> {
    below.reverse();
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    while let Some(path) = below.pop() {
        // What is removed meanwhile, or closed to us, is not ours to remove.
        let (Ok(own), Ok(entries)) = (fs::symlink_metadata(&path), fs::read_dir(&path)) else {
            continue;
        };
        if !seen.insert((own.dev(), own.ino())) {
            continue;
        }
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            match entry.file_name().to_str().and_then(cgroup::tree_of).and_then(Identity::parse) {
                Some(identity) if is_ours(&entry.path()) => found.push((entry.path(), identity)),
                Some(_) => {}
                None => below.push(entry.path()),
            }
        }
    }
    found
}

fn is_ours(path: &Path) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    own == 0 || fs::symlink_metadata(path).is_ok_and(|found| found.uid() == own)
}

/// Who is in it, or in one that was made in it.
pub(crate) fn members(path: &Path) -> Vec<u32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let own = text.lines().filter_map(|pid| pid.parse().ok());
    own.chain(cgroup::inside(path).iter().flat_map(|inner| members(inner))).collect()
}

/// How long a kill may take: it needs nobody's consent.
const KILL_WAIT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// A cgroup that is seen through two mounts, as of a container's, is one.
    #[test]
    fn what_is_mounted_twice_is_found_once() {
        let name = format!("hatchery-mounts-{}", std::process::id());
        let place = std::env::temp_dir().join(name);
        let gone = place.join("a.slice/hatchery-0123456789abcdef-4000000-7-0123456789abcdef-7.1");
        fs::create_dir_all(&gone).unwrap();
        let found = named_below(vec![place.clone(), place.join("."), place.join("a.slice")]);
        fs::remove_dir_all(&place).unwrap();
        let found: Vec<_> = found.into_iter().map(|(path, _)| path).collect();
        assert_eq!(found, [gone]);
    }
}
