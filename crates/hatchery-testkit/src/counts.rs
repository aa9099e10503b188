//! What a process holds, counted exactly, and the difference by name (C10).

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

/// Threads, fds, children and runtime files of this process at one moment.
///
/// ```
/// let before = hatchery_testkit::counts::Counts::now();
/// // … a scenario …
/// before.assert_same();
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Thread ids and names.
    pub threads: BTreeMap<u32, String>,
    /// Fd numbers and what they are.
    pub fds: BTreeMap<u32, String>,
    /// Children's pids with name and state, zombies included.
    pub children: BTreeMap<u32, String>,
    /// Files of ours where runtime files go.
    pub files: BTreeMap<String, ()>,
}

/// What is there now and was not before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Difference {
    /// Threads by name.
    pub threads: Vec<String>,
    /// Fds with what they are.
    pub fds: Vec<String>,
    /// Children with name and state.
    pub children: Vec<String>,
    /// Files by path.
    pub files: Vec<String>,
}

impl Counts {
    /// Counts now. Needs no pause before: what a closed runtime had is gone when it has closed.
    #[must_use]
    pub fn now() -> Self {
        Self { threads: threads(), fds: fds(), children: children(), files: files() }
    }

    /// What has come since; `None` if nothing has.
    #[must_use]
    pub fn difference(&self) -> Option<Difference> {
        let until = Instant::now() + OFF_THE_COUNT;
        loop {
            let difference = self.difference_now();
            let only_threads = difference.as_ref().is_some_and(|difference| {
                let Difference { threads, fds, children, files } = difference;
                !threads.is_empty() && fds.is_empty() && children.is_empty() && files.is_empty()
            });
            if !only_threads || Instant::now() > until {
                return difference;
            }
            // A join returns a moment before the kernel takes the thread off its list.
            std::thread::yield_now();
        }
    }

    fn difference_now(&self) -> Option<Difference> {
        let now = Self::now();
        let difference = Difference {
            threads: added(&self.threads, &now.threads),
            fds: added(&self.fds, &now.fds),
            children: added(&self.children, &now.children),
            files: now.files.keys().filter(|file| !self.files.contains_key(*file)).cloned().collect(),
        };
        (difference != Difference::default()).then_some(difference)
    }

    /// Panics if anything has come since, and says exactly what.
    ///
    /// # Panics
    /// If there is a difference.
    pub fn assert_same(&self) {
        if let Some(difference) = self.difference() {
            panic!("something was left behind:\n{difference}");
        }
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
        for (kind, all) in kinds {
            for one in all {
                writeln!(f, "{kind} {one}")?;
            }
        }
        Ok(())
    }
}

fn added(before: &BTreeMap<u32, String>, now: &BTreeMap<u32, String>) -> Vec<String> {
    let new = now.iter().filter(|(number, what)| before.get(number) != Some(what));
    new.map(|(number, what)| format!("{number}: {what}")).collect()
}

fn threads() -> BTreeMap<u32, String> {
    numbered("/proc/self/task", |path| {
        fs::read_to_string(format!("{path}/comm")).ok().map(|name| name.trim().to_owned())
    })
}

fn fds() -> BTreeMap<u32, String> {
    let listing = fs::canonicalize("/proc/self").map(|path| path.join("fd"));
    let listing = listing.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    numbered("/proc/self/fd", |path| {
        let target = fs::read_link(path).ok()?.to_string_lossy().into_owned();
        // The fd that this very listing holds open.
        (target != listing).then_some(target)
    })
}

fn children() -> BTreeMap<u32, String> {
    let mut all = BTreeMap::new();
    for (tid, _) in threads() {
        let path = format!("/proc/self/task/{tid}/children");
        let Ok(text) = fs::read_to_string(path) else { continue };
        for pid in text.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let shown = stat.split_once(' ').map(|(_, rest)| {
                rest.split_once(") ").map_or(rest, |(_, state)| &rest[..rest.len() - state.len() + 1])
            });
            all.insert(pid, shown.unwrap_or_default().to_owned());
        }
    }
    all
}

fn files() -> BTreeMap<String, ()> {
    let places = [
        Some(std::env::temp_dir()),
        std::env::var_os("XDG_RUNTIME_DIR").map(Into::into),
        Some("/dev/shm".into()),
    ];
    let entries = places.into_iter().flatten().filter_map(|place| fs::read_dir(place).ok()).flatten();
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("hatchery"))
        .map(|entry| (entry.path().to_string_lossy().into_owned(), ()))
        .collect()
}

fn numbered(folder: &str, read: impl Fn(&str) -> Option<String>) -> BTreeMap<u32, String> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeMap::new() };
    let numbers: Vec<u32> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    numbers
        .into_iter()
        .filter_map(|number| Some((number, read(&format!("{folder}/{number}"))?)))
        .collect()
}

/// How long the kernel may take to forget a thread that was joined.
const OFF_THE_COUNT: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    /// C10: a new fd is named; the same number with another meaning is new too.
    #[test]
    fn a_new_fd_is_named() {
        let before = Counts::now();
        let file = fs::File::open("/dev/zero").unwrap();
        let difference = before.difference().unwrap();
        assert!(difference.fds.iter().any(|fd| fd.ends_with("/dev/zero")), "{difference}");
        drop(file);
    }
}
