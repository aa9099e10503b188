//! What a process holds, counted before and after: threads, fds, children, files (C10).
//!
//! One line in a test is enough:
//!
//! ```
//! let _nothing_left = hatchery_testkit::counts::guard();
//! // Whatever the test opens is closed again, or it fails and says what was left.
//! ```
//!
//! No sleep is needed before looking. The one thing that lags is the kernel's own list of threads:
//! a joined thread stays in it until it is scheduled for the last time. Those carry a flag and are
//! not counted.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::isolate;

/// What this process holds at one moment, each with a name to recognise it by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Threads by their id, with their names. Those on their way out are left out.
    pub threads: BTreeMap<u32, String>,
    /// Open fds, with what they lead to.
    pub fds: BTreeMap<u32, String>,
    /// Children by their pid, zombies included, with name and state.
    pub children: BTreeMap<u32, String>,
    /// Files below the looked-at directory.
    pub files: BTreeMap<PathBuf, String>,
}

/// What is there now and was not before. What has gone meanwhile is no leak.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Difference {
    /// Threads by name.
    pub threads: Vec<String>,
    /// Fds with what they lead to.
    pub fds: Vec<String>,
    /// Children with name and state.
    pub children: Vec<String>,
    /// Files.
    pub files: Vec<String>,
}

/// Compares when it is dropped. Made by [`guard`].
#[derive(Debug)]
#[must_use = "it compares when it is dropped"]
pub struct Guard {
    before: Counts,
}

/// Panics at the end of the enclosing scope if the process holds more than now, and says what.
///
/// For scenarios in processes of their own: other tests of one process open things meanwhile.
pub fn guard() -> Guard {
    Guard { before: Counts::now() }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !std::thread::panicking()
            && let Some(leaked) = Counts::now().difference(&self.before)
        {
            panic!("left behind:\n{leaked}");
        }
    }
}

impl Counts {
    /// What this process holds now. Files are those of the scenario's own directory, if it runs
    /// under [`isolate`].
    #[must_use]
    pub fn now() -> Self {
        Self::with_files_of(isolate::private_dir().as_deref())
    }

    /// The same with the files below `dir`.
    #[must_use]
    pub fn with_files_of(dir: Option<&Path>) -> Self {
        let mut files = BTreeMap::new();
        if let Some(dir) = dir {
            list_files(dir, &mut files);
        }
        Self { threads: threads(), fds: fds(), children: children(), files }
    }

    /// What is there in `self` and was not in `before`; `None` if that is nothing.
    #[must_use]
    pub fn difference(&self, before: &Self) -> Option<Difference> {
        let difference = Difference {
            threads: new(&self.threads, &before.threads, is_known),
            fds: new(&self.fds, &before.fds, leads_elsewhere),
            children: new(&self.children, &before.children, is_known),
            files: new(&self.files, &before.files, is_known),
        };
        (difference != Difference::default()).then_some(difference)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            ("thread", &self.threads),
            ("fd", &self.fds),
            ("child", &self.children),
            ("file", &self.files),
        ];
        for (kind, found) in kinds {
            for one in found {
                writeln!(f, "  {kind} {one}")?;
            }
        }
        Ok(())
    }
}

/// Children of this process, zombies included.
pub(crate) fn children() -> BTreeMap<u32, String> {
    let tasks = numbers(Path::new("/proc/self/task"));
    let lists = tasks.map(|tid| read(&format!("/proc/self/task/{tid}/children")));
    let pids: Vec<u32> = lists
        .flat_map(|list| list.split_whitespace().flat_map(str::parse).collect::<Vec<_>>())
        .collect();
    pids.into_iter().map(|pid| (pid, named(&format!("/proc/{pid}")))).collect()
}

fn threads() -> BTreeMap<u32, String> {
    let tids = numbers(Path::new("/proc/self/task"));
    tids.filter(|tid| is_staying(*tid))
        .map(|tid| (tid, read(&format!("/proc/self/task/{tid}/comm")).trim().to_owned()))
        .collect()
}

fn is_staying(tid: u32) -> bool {
    stays(&read(&format!("/proc/self/task/{tid}/stat")))
}

/// Whether a thread is not yet on its way out (`PF_EXITING` in its flags).
fn stays(stat: &str) -> bool {
    // The name in brackets may itself hold brackets and blanks.
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6));
    flags.and_then(|flags| flags.parse::<u64>().ok()).is_some_and(|flags| flags & PF_EXITING == 0)
}

fn fds() -> BTreeMap<u32, String> {
    let own = format!("/proc/{}/fd", std::process::id());
    numbers(Path::new("/proc/self/fd"))
        .filter_map(|fd| {
            let target = fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
            Some((fd, target.to_string_lossy().into_owned()))
        })
        // The fd through which we are looking.
        .filter(|(_, target)| *target != own)
        .collect()
}

fn list_files(dir: &Path, files: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list_files(&path, files);
        }
        files.insert(path.clone(), path.display().to_string());
    }
}

/// What is in `now` and is not the same as anything `before`.
fn new<K: Ord + fmt::Debug>(
    now: &BTreeMap<K, String>,
    before: &BTreeMap<K, String>,
    is_other: fn(&str, &str) -> bool,
) -> Vec<String> {
    let is_new = |(key, name): &(&K, &String)| {
        before.get(*key).is_none_or(|old| is_other(old.as_str(), name.as_str()))
    };
    now.iter().filter(is_new).map(|(key, name)| format!("{key:?} {name}")).collect()
}

/// The kernel counts threads and processes up, so a number says who it is; names and states come
/// and go. A new thread bears its starter's name until it runs.
fn is_known(_before: &str, _now: &str) -> bool {
    false
}

/// The lowest free number is given out again at once.
fn leads_elsewhere(before: &str, now: &str) -> bool {
    before != now
}

/// Name and state of a process or thread, from its directory in `/proc`.
fn named(dir: &str) -> String {
    let stat = read(&format!("{dir}/stat"));
    let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'));
    let Some((name, rest)) = name else { return "gone".to_owned() };
    format!("{name} ({})", rest.split_whitespace().next().unwrap_or("?"))
}

/// The entries of a directory that are numbers. Read to the end first, so that it is closed.
fn numbers(dir: &Path) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let found: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    found.into_iter()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// `include/linux/sched.h`
const PF_EXITING: u64 = 0x4;

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::isolate::run_test;

    /// C10
    #[test]
    fn every_kind_of_leak_is_seen_by_name() {
        run_test(concat!(module_path!(), "::every_kind_of_leak_is_seen_by_name"), BOUND, || {
            let before = Counts::now();
            let (gate, closed) = std::sync::mpsc::channel::<()>();
            let builder = std::thread::Builder::new().name("lingering".to_owned());
            let (up, is_up) = std::sync::mpsc::channel();
            let thread = builder
                .spawn(move || {
                    // It has its name by now; before this it has that of its starter.
                    up.send(()).unwrap();
                    closed.recv().is_err()
                })
                .unwrap();
            is_up.recv().unwrap();
            let file = fs::File::open("/dev/zero").unwrap();
            let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
            let stdin = child.stdin.take();
            let left = isolate::private_dir().unwrap().join("left");
            fs::write(&left, "").unwrap();

            let found = Counts::now().difference(&before).unwrap();
            assert!(found.threads[0].ends_with("lingering"), "{found}");
            assert!(found.fds.iter().any(|fd| fd.ends_with("/dev/zero")), "{found}");
            assert!(found.children[0].contains(&child.id().to_string()), "{found}");
            assert!(found.files[0].ends_with("left"), "{found}");

            drop((gate, file, stdin));
            assert!(thread.join().unwrap());
            child.wait().unwrap();
            fs::remove_file(left).unwrap();
            assert_eq!(Counts::now().difference(&before), None);
        });
    }

    #[test]
    fn a_zombie_is_a_child_that_is_left() {
        run_test(concat!(module_path!(), "::a_zombie_is_a_child_that_is_left"), BOUND, || {
            let before = Counts::now();
            let mut child = Command::new("true").spawn().unwrap();
            let ended = hatchery_spawn::Pidfd::open(child.id()).unwrap();
            assert!(ended.wait_dead(BOUND));
            assert_eq!(Counts::now().difference(&before).unwrap().children.len(), 1);
            drop(ended);
            child.wait().unwrap();
            assert_eq!(Counts::now().difference(&before), None);
        });
    }

    #[test]
    fn a_change_of_name_or_state_is_no_leak_and_a_change_of_an_fd_is_one() {
        let all = |state: &str, target: &str| Counts {
            threads: BTreeMap::from([(3, format!("thread {state}"))]),
            fds: BTreeMap::from([(4, target.to_owned())]),
            children: BTreeMap::from([(5, format!("child ({state})"))]),
            files: BTreeMap::new(),
        };
        assert_eq!(all("R", "x").difference(&all("S", "x")), None);
        let found = all("R", "x").difference(&all("R", "y")).unwrap();
        assert_eq!(found.to_string(), "  fd 4 x\n");
    }

    /// What the kernel says of a thread before, in and after its end.
    #[test]
    fn who_is_on_its_way_out_is_not_counted() {
        let stat = |flags: u64| format!("7 (a) b) S 1 7 7 0 -1 {flags} 0 0 0 0");
        assert!(stays(&stat(0x40_0040)));
        assert!(!stays(&stat(0x40_0044)));
        assert!(!stays(""));
    }

    /// The same with real ones: a joined thread is still listed for a moment, now and then.
    #[test]
    fn a_joined_thread_is_never_counted() {
        run_test(concat!(module_path!(), "::a_joined_thread_is_never_counted"), BOUND, || {
            for _ in 0..200 {
                let _nothing_left = guard();
                std::thread::spawn(|| ()).join().unwrap();
            }
        });
    }

    /// Only hangs take so long.
    const BOUND: std::time::Duration = std::time::Duration::from_secs(60);
}
