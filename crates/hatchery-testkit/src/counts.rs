//! What a process holds, counted before and after: threads, fds, children, shared memory, files,
//! and values that move from thread to thread (C10).
//!
//! One line in a test is enough:
//!
//! ```
//! let _nothing_left = hatchery_testkit::counts::guard();
//! // Whatever the test opens is closed again, or it fails and says what was left.
//! ```
//!
//! What is left is named, one line each:
//!
//! ```text
//! left behind:
//!   thread 4711 reader
//!   fd 7 socket:[31337]
//!   child 4712 sleep (S) of 4709 hatchery:server
//!   memory 0x7f03c8a00000 /memfd:frames (deleted), 8192 bytes
//!   file "/tmp/x/left" /tmp/x/left
//! ```
//!
//! Look in a process that runs nothing else, as [`isolate`] gives it: what another test opens
//! meanwhile is this one's leak. No sleep is needed before looking. The one thing that lags is the
//! kernel's own list of threads: a joined thread stays in it until it is scheduled for the last
//! time. Those carry a flag and are not counted.
//!
//! tokio keeps a socket pair for ever once a process has built its first runtime with I/O, if any
//! crate of the program has asked for tokio's features `signal` or `process`. So such a runtime is
//! built and dropped before the first look, and what it keeps is there before and after.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Once;

use serde::{Deserialize, Serialize};

use crate::isolate;

mod own;

pub(crate) use own::{children, files};

/// What this process holds at one moment, each with a name to recognise it by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Threads by their id, with their names. Those on their way out are left out.
    pub threads: BTreeMap<u32, String>,
    /// Open fds, with what they lead to.
    pub fds: BTreeMap<u32, String>,
    /// Children by their pid, and all below them, zombies included, with name and state. So
    /// those of a forkserver are there too, and what it has taken over as their sub-reaper.
    pub children: BTreeMap<u32, String>,
    /// Mapped memory that others may share, by address: memfds, POSIX and System V segments,
    /// anonymous shared memory, files that are mapped to be written. With what it is and its size.
    pub memory: BTreeMap<Address, String>,
    /// Files below the looked-at directory.
    pub files: BTreeMap<PathBuf, String>,
    /// Values on their way to a thread of this process, or from one, that nobody has taken yet:
    /// those that move as they are (`Config::move_from_bytes`).
    pub values: usize,
}

/// Where a mapping begins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address(pub u64);

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What is there now and was not before. What has gone meanwhile is no leak.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Difference {
    /// Threads by name.
    pub threads: Vec<String>,
    /// Fds with what they lead to.
    pub fds: Vec<String>,
    /// Children, and those below them, with name and state.
    pub children: Vec<String>,
    /// Shared memory with what it is and its size.
    pub memory: Vec<String>,
    /// Files.
    pub files: Vec<String>,
    /// How many values more are on their way between threads.
    pub values: Vec<String>,
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
        warm_up();
        Self {
            threads: own::threads(),
            fds: own::fds(),
            children: own::descendants(),
            memory: own::shared_memory(),
            files: dir.map(files).unwrap_or_default(),
            values: hatchery_proto::on_their_way(),
        }
    }

    /// What is there in `self` and was not in `before`; `None` if that is nothing.
    #[must_use]
    pub fn difference(&self, before: &Self) -> Option<Difference> {
        let difference = Difference {
            threads: new(&self.threads, &before.threads, is_known),
            fds: new(&self.fds, &before.fds, leads_elsewhere),
            children: new(&self.children, &before.children, is_known),
            memory: new(&self.memory, &before.memory, leads_elsewhere),
            files: new(&self.files, &before.files, is_known),
            values: more(self.values, before.values),
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
            ("memory", &self.memory),
            ("file", &self.files),
            ("values", &self.values),
        ];
        for (kind, found) in kinds {
            for one in found {
                writeln!(f, "  {kind} {one}")?;
            }
        }
        Ok(())
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

/// One has no name, so how many there are more.
fn more(now: usize, before: usize) -> Vec<String> {
    let more = now.saturating_sub(before);
    (more > 0).then(|| format!("on their way between threads: {more}")).into_iter().collect()
}

/// The kernel counts threads and processes up, so a number says who it is; names and states come
/// and go. A new thread bears its starter's name until it runs.
fn is_known(_before: &str, _now: &str) -> bool {
    false
}

/// The lowest free number is given out again at once, and a freed address soon.
fn leads_elsewhere(before: &str, now: &str) -> bool {
    before != now
}

/// What the first tokio runtime with I/O of a process leaves to the later ones is there from here
/// on: it is nobody's leak.
fn warm_up() {
    static WARM: Once = Once::new();
    WARM.call_once(|| {
        let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Ok(runtime) = built {
            // It has no thread to wait for, and may be dropped inside of another one.
            runtime.shutdown_background();
        }
    });
}

#[cfg(test)]
mod tests;
