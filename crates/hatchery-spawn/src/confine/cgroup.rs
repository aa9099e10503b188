//! A cgroup of one's own, below one that was delegated: made by the forkserver before the fork,
//! joined by the child, killed and removed by the forkserver after the last of its actors.
//!
//! Only version 2. The forkserver does this as it is there before and after, whatever becomes of
//! the spawner; if it was killed itself, the root or `hatchery reap` finds the directory by name.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// A cgroup (version 2) for one child and all that it starts, below a directory that somebody with
/// the right to do so has delegated to this user.
///
/// What isn't there fails the start with [`SpawnError::Call`](crate::SpawnError::Call), which names
/// the file: a directory of another kind, `cgroup.kill` (Linux 5.14), a controller that is neither
/// enabled below the parent nor can be enabled there (ENOENT: it was not delegated; EBUSY: a process
/// is in the parent itself). Who is not the superuser may only move processes inside of what was
/// delegated: the whole tree must live there, or the start fails with step `cgroup`, EACCES.
///
/// A SIGKILL by the spawner, or of an orphan, is one of all that is in it: of actors further down
/// and of strays too, also if the actor itself can't die (uninterruptible sleep).
///
/// An actor of the same user may write there what it likes. So this keeps a mistake within bounds,
/// and malice only together with [`Confinement::user`](crate::Confinement::user).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    pub(crate) parent: PathBuf,
    pub(crate) memory: Option<u64>,
    pub(crate) pids: Option<u64>,
}

impl Cgroup {
    /// One below `parent`, such as `/sys/fs/cgroup/my.slice/my.service/actors`. No process may be
    /// in the parent itself if memory or pids shall be limited; that is the kernel's rule.
    #[must_use]
    pub fn under(parent: impl AsRef<Path>) -> Self {
        Self { parent: parent.as_ref().to_owned(), memory: None, pids: None }
    }

    /// At most so many bytes of memory, without swap. Over it, the kernel ends the whole cgroup, and
    /// each that it ends there says so ([`Exit::Signal`](crate::Exit::Signal)).
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// At most so many processes and threads. With so many, its actor can't start any (EAGAIN), and
    /// the start of another actor further down fails with step `cgroup`, EAGAIN. Of starts that are
    /// under way at once, and do not all fit, all may fail.
    #[must_use]
    pub fn pids(mut self, count: u64) -> Self {
        self.pids = Some(count);
        self
    }

    /// Makes it under that name, with its limits. Of a failed one nothing is left.
    pub(crate) fn make(&self, name: &str) -> Result<PathBuf, (&'static str, Errno)> {
        if !is_cgroup(&self.parent) {
            return Err(("statfs(a cgroup v2 directory)", Errno::EOPNOTSUPP));
        }
        let path = self.parent.join(name);
        fs::create_dir(&path).map_err(failed("mkdir(cgroup)"))?;
        self.limit(&path).inspect_err(|_| {
            // Empty, as nobody has joined it.
            let _removed = fs::remove_dir(&path);
        })?;
        Ok(path)
    }

    fn limit(&self, path: &Path) -> Result<(), (&'static str, Errno)> {
        if !path.join("cgroup.kill").exists() {
            return Err(("open(cgroup.kill)", Errno::EOPNOTSUPP));
        }
        if let Some(bytes) = self.memory {
            self.set(path, &MEMORY, bytes)?;
            // Or one of them dies alone, and the others wait for it.
            write(&path.join("memory.oom.group"), "1")
                .map_err(failed("write(memory.oom.group)"))?;
            // A machine without swap has no such file, and needs none.
            match write(&path.join("memory.swap.max"), "0") {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("write(memory.swap.max)")(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        if let Some(count) = self.pids {
            self.set(path, &PIDS, count)?;
        }
        Ok(())
    }

    /// Writes a limit, after enabling its controller if that was not done.
    fn set(
        &self,
        path: &Path,
        controller: &Controller,
        limit: u64,
    ) -> Result<(), (&'static str, Errno)> {
        let file = path.join(controller.file);
        if !file.exists() {
            // With a process in the parent the kernel refuses memory, but not pids: and lets nobody
            // into any cgroup below it from then on, limited or not.
            if has_processes(&self.parent) {
                return Err((controller.enabling, Errno::EBUSY));
            }
            let enabled = write(&self.parent.join("cgroup.subtree_control"), controller.enabled_by);
            enabled.map_err(failed(controller.enabling))?;
        }
        write(&file, &limit.to_string()).map_err(failed(controller.limiting))
    }
}

/// What limits something, and what the calls for it are named in an error.
struct Controller {
    file: &'static str,
    enabled_by: &'static str,
    enabling: &'static str,
    limiting: &'static str,
}

const MEMORY: Controller = Controller {
    file: "memory.max",
    enabled_by: "+memory",
    enabling: "write(cgroup.subtree_control, +memory)",
    limiting: "write(memory.max)",
};

const PIDS: Controller = Controller {
    file: "pids.max",
    enabled_by: "+pids",
    enabling: "write(cgroup.subtree_control, +pids)",
    limiting: "write(pids.max)",
};

/// Whether a process is in it itself. In the root of all that is no matter, which has no type.
fn has_processes(path: &Path) -> bool {
    let processes = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    !processes.is_empty() && path.join("cgroup.type").exists()
}

/// Moves this process into it. EAGAIN: more are in it than may be. The kernel refuses a fork in
/// there for that, but no move into it, and all actors were forked elsewhere.
pub(crate) fn join(path: &Path) -> Result<(), Errno> {
    write(&path.join("cgroup.procs"), "0").map_err(|error| errno(&error))?;
    let number = |file| fs::read_to_string(path.join(file)).ok()?.trim().parse::<u64>().ok();
    // No limit is "max", and without the controller there are no such files.
    match (number("pids.current"), number("pids.max")) {
        (Some(current), Some(most)) if current > most => Err(Errno::EAGAIN),
        (_, _) => Ok(()),
    }
}

/// Ends all that is in it.
pub(crate) fn kill(path: &Path) {
    // Gone, or the next look finds it again.
    let _gone = write(&path.join("cgroup.kill"), "1");
}

/// Removes it with those that were made in it; says whether it is gone. Not while anything is in
/// any of them.
pub(crate) fn remove(path: &Path) -> bool {
    let gone = || match fs::remove_dir(path) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    // Nobody but its actors makes others in there, and they seldom do.
    gone() || (inside(path).iter().filter(|inner| remove(inner)).count() > 0 && gone())
}

/// The same once all in it are gone, of which the kernel's books may know a little later.
pub(crate) fn remove_until(path: &Path, until: Instant) -> bool {
    while !remove(path) {
        if Instant::now() >= until {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// The cgroups in one. None if it is covered by a mount: what is in that is somebody else's.
pub(crate) fn inside(path: &Path) -> Vec<PathBuf> {
    let entries = is_cgroup(path).then(|| fs::read_dir(path).ok()).flatten();
    let entries = entries.into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).collect()
}

/// How many processes of it the kernel has killed for want of memory. 0 without a memory controller:
/// nobody counts there.
pub(crate) fn oom_kills(path: &Path) -> u64 {
    fs::read_to_string(path.join("memory.events")).map_or(0, |events| parse_oom_kills(&events))
}

/// The same, from the text of `memory.events`.
fn parse_oom_kills(events: &str) -> u64 {
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Whether a path is a directory of cgroup v2.
pub(crate) fn is_cgroup(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    statfs(path.as_c_str()).is_ok_and(|kind| kind.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Opened for writing and never made: in a plain directory this must not succeed.
fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::File::options().write(true).open(path)?.write_all(text.as_bytes())
}

fn failed(call: &'static str) -> impl FnOnce(io::Error) -> (&'static str, Errno) {
    move |error| (call, errno(&error))
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Remembers where this process has asked for cgroups, for [`sweep`].
pub(crate) fn remember(cgroup: &Cgroup) {
    PARENTS.lock().unwrap_or_else(PoisonError::into_inner).insert(cgroup.parent.clone());
}

/// Ends and removes what is left of a tree whose forkserver is gone, where this process has asked
/// for cgroups. What actors have asked for elsewhere is left to `hatchery reap`.
pub(crate) fn sweep(tree: &str, until: Instant) {
    // Held for an instant only, but the end of a tree waits for nothing at all (H6).
    let Ok(parents) = PARENTS.try_lock() else { return };
    let prefix = format!("{PREFIX}{tree}.");
    let is_of = |entry: &fs::DirEntry| entry.file_name().as_bytes().starts_with(prefix.as_bytes());
    let inside = parents.iter().filter_map(|parent| fs::read_dir(parent).ok()).flatten().flatten();
    let left: Vec<PathBuf> = inside.filter(is_of).map(|entry| entry.path()).collect();
    drop(parents);
    for path in left {
        kill(&path);
        let _gone = remove_until(&path, until);
    }
}

static PARENTS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// What an actor's cgroup is called. The tree says whose it is when nobody of it is left.
pub(crate) fn name(tree: &str, mark: u64) -> String {
    format!("{PREFIX}{tree}.{mark}")
}

/// The tree of an actor's cgroup, by its name; `None` for any other's.
pub(crate) fn tree_of(name: &str) -> Option<&str> {
    Some(name.strip_prefix(PREFIX)?.rsplit_once('.')?.0)
}

const PREFIX: &str = "hatchery-";

#[cfg(test)]
mod tests {
    use super::*;

    /// Fault 17: the one line that counts, in files of all kernels.
    #[test]
    fn only_kills_are_counted() {
        let events = "low 0\nhigh 4\nmax 812\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(parse_oom_kills(events), 2);
        // Version 1 has another file for it, with a line alike.
        assert_eq!(parse_oom_kills("oom_kill_disable 1\nunder_oom 1\noom_kill 12\n"), 12);
        for none in ["", "oom 3\n", "oom_kill\n", "oom_kill many\n", "oom_group_kill 1\n"] {
            assert_eq!(parse_oom_kills(none), 0, "{none:?}");
        }
        assert_eq!(oom_kills(Path::new("/no/where")), 0);
    }
}
