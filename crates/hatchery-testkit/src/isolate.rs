//! A scenario in a process of its own, under a bound from outside, with nothing left of it.
//!
//! The binary that asks for it is started twice again: as a *watcher*, which is the sub-reaper of
//! all that comes, and by that as the *scenario*. Whatever the scenario leaves behind becomes a
//! child of the watcher, so that leftovers are exact, and nobody else's children are touched. The
//! watcher also notices the end of who started it, by the closing of a socket, and then kills
//! everything. Nobody relies on the scenario's goodwill.

mod watcher;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::future::Future;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hatchery_spawn::signals::unignore;
use nix::libc::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use serde::{Deserialize, Serialize};

use crate::dump::{Dump, Process};

/// Runs `scenario` in a process of its own and panics if it fails, hangs, or leaves anything.
///
/// For libtest: `name` is the test's full path (`concat!(module_path!(), "::", "its_name")`), by
/// which the same test is asked for again. After `bound` the whole tree is dumped and killed.
///
/// # Panics
/// If the scenario failed, was still running after `bound`, or left processes or files; with its
/// output, and with a dump of what was left.
pub fn run_test(name: &str, bound: Duration, scenario: impl FnOnce()) {
    if let Some(verdict) = observe(name, bound, scenario) {
        let filter = filter(name);
        assert!(verdict.is_clean(), "`{filter}` {verdict}");
    }
}

/// The same for scenarios that don't end by returning: gives back what was seen from outside, and
/// nothing inside.
///
/// # Panics
/// If the scenario does, or if it can't be started.
pub fn observe(name: &str, bound: Duration, scenario: impl FnOnce()) -> Option<Verdict> {
    let args = [filter(name), "--exact", "--nocapture", "--test-threads=1", "--include-ignored"];
    match role() {
        Role::Outside => Some(Isolated::new(bound).args(args).run().expect("the watcher starts")),
        Role::Watcher(bound) => watcher::watch(bound),
        Role::Scenario => {
            begin();
            scenario();
            None
        }
    }
}

/// A test's name as libtest knows it.
fn filter(name: &str) -> &str {
    name.split_once("::").map_or(name, |(_crate, path)| path)
}

/// The same for scenarios that close what they open: the process must hold after `scenario` what
/// it held before (C10).
///
/// # Panics
/// As [`run_test`], and if anything was left inside the process.
pub fn test(name: &str, bound: Duration, scenario: impl FnOnce()) {
    run_test(name, bound, || {
        let _nothing_left = crate::counts::guard();
        scenario();
    });
}

/// Runs a future to its end on a multi-threaded runtime of its own, with all that tokio has.
///
/// # Panics
/// If the future does, or if no runtime can be built.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    build_runtime().expect("threads and fds are there").block_on(future)
}

/// What `#[tokio::main]` gives, on two workers.
pub(crate) fn build_runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// Where a process started by [`Isolated`] says which part it plays; call it first in `main`.
///
/// Becomes the watcher and never returns, if that is the part; otherwise says whether this is the
/// scenario.
#[must_use]
pub fn is_scenario() -> bool {
    match role() {
        Role::Outside => false,
        Role::Watcher(bound) => watcher::watch(bound),
        Role::Scenario => {
            begin();
            true
        }
    }
}

/// What a scenario's process is before the scenario begins.
fn begin() {
    die_with_watcher();
    // What a runner in the background ignores is none of a scenario's business.
    unignore(&[SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP]);
}

/// Has this process killed when its watcher is: a killed watcher can't sweep any more.
///
/// The thread that started it waits for it until the watcher leaves, so that the signal means
/// the watcher and not a thread of it (H11).
fn die_with_watcher() {
    let watcher = std::os::unix::process::parent_id();
    // No kernel refuses it; without it only this second line of defence is missing.
    let _refused = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    let marked = std::env::var(WATCHER).is_ok_and(|pid| pid.parse() != Ok(watcher));
    if marked {
        // It died before the signal was armed.
        std::process::abort();
    }
}

/// Tells whoever looks on from outside; comes out as [`Verdict::said`].
///
/// # Errors
/// This is no scenario, or the watcher has gone.
pub fn say(text: &str) -> io::Result<()> {
    if role() != Role::Scenario {
        return Err(io::Error::other("nobody is looking on"));
    }
    let watcher = io::stdin().as_fd().try_clone_to_owned()?;
    UnixStream::from(watcher).write_all(text.as_bytes())
}

/// The directory that is the scenario's own; what it leaves there is seen. Also its `TMPDIR`.
#[must_use]
pub fn private_dir() -> Option<PathBuf> {
    std::env::var_os(PRIVATE_DIR).map(PathBuf::from)
}

/// A scenario to be started in a process of its own: this program, again.
#[derive(Debug, Clone)]
pub struct Isolated {
    args: Vec<OsString>,
    bound: Duration,
}

impl Isolated {
    /// A scenario that is killed, and counts as hung, after `bound`.
    #[must_use]
    pub fn new(bound: Duration) -> Self {
        Self { args: Vec::new(), bound }
    }

    /// With which arguments this program is started.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Starts it and waits for its end.
    ///
    /// # Errors
    /// As [`Isolated::start`] and [`Running::wait`].
    pub fn run(self) -> io::Result<Verdict> {
        self.start()?.wait()
    }

    /// Starts it.
    ///
    /// # Errors
    /// No process or fd could be had.
    pub fn start(self) -> io::Result<Running> {
        let (ours, theirs) = UnixStream::pair()?;
        let watcher = Command::new("/proc/self/exe")
            .args(&self.args)
            .env(ROLE, format!("watch:{}", self.bound.as_millis()))
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            // The terminal's Ctrl-C is for us: the watcher hears of it by the socket.
            .process_group(0)
            .spawn()?;
        Ok(Running { watcher, socket: ours, bound: self.bound })
    }
}

/// A scenario under way. Dropping it ends it: the watcher kills everything and leaves.
#[derive(Debug)]
pub struct Running {
    watcher: Child,
    /// Its closing tells the watcher that nobody wants to know any more.
    socket: UnixStream,
    bound: Duration,
}

/// Ends a scenario from another thread.
#[derive(Debug)]
pub struct Stopper(UnixStream);

impl Running {
    /// What ends it early.
    ///
    /// # Errors
    /// No fd could be had.
    pub fn stopper(&self) -> io::Result<Stopper> {
        self.socket.try_clone().map(Stopper)
    }

    /// Waits for its end, bounded by its bound and a second.
    ///
    /// # Errors
    /// The watcher died or went silent, which only a fault from outside can bring about.
    pub fn wait(mut self) -> io::Result<Verdict> {
        self.socket.set_read_timeout(Some(self.bound + WATCHER_SLACK))?;
        let mut text = String::new();
        let read = self.socket.read_to_string(&mut text);
        if read.is_err() {
            // Not reaped yet, so the number is still its own.
            self.watcher.kill()?;
        }
        let status = self.watcher.wait()?;
        read?;
        serde_json::from_str(&text)
            .map_err(|error| io::Error::other(format!("the watcher ended with {status}: {error}")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if the watcher has gone, or been waited for, already.
        let _gone = self.socket.shutdown(Shutdown::Both);
        let _gone = self.watcher.wait();
    }
}

impl Stopper {
    /// Has the watcher kill the scenario and all that came of it.
    pub fn stop(&self) {
        // It fails only if the watcher has gone.
        let _gone = self.0.shutdown(Shutdown::Write);
    }
}

/// How a scenario ended, as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// How its process ended.
    pub end: End,
    /// From its start until its end.
    pub elapsed: Duration,
    /// Processes that outlived it; killed since.
    pub left: Vec<Process>,
    /// Files in its private directory; removed since.
    pub files: Vec<String>,
    /// What it told by [`say`].
    pub said: String,
    /// The end of what it wrote to stdout and stderr.
    pub output: String,
    /// What its tree was doing when the bound was spent.
    pub tree: Option<Dump>,
}

/// How a scenario's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It returned or called `exit`.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It was still there at the end of its bound.
    Hung,
    /// It was stopped from outside.
    Stopped,
}

impl Verdict {
    /// Did it succeed and leave nothing?
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.end == End::Code(0) && self.left.is_empty() && self.files.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} after {:?}", self.end, self.elapsed)?;
        for file in &self.files {
            writeln!(f, "left file {file}")?;
        }
        for process in &self.left {
            write!(f, "left process {process}")?;
        }
        if let Some(tree) = &self.tree {
            write!(f, "its processes at the end of the bound:\n{tree}")?;
        }
        write!(f, "--- its output\n{}---", self.output)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "ended with exit status {code}"),
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
            Self::Hung => f.write_str("hung"),
            Self::Stopped => f.write_str("was stopped"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Outside,
    Watcher(Duration),
    Scenario,
}

fn role() -> Role {
    let Ok(role) = std::env::var(ROLE) else { return Role::Outside };
    match role.strip_prefix("watch:").map(str::parse) {
        Some(Ok(millis)) => Role::Watcher(Duration::from_millis(millis)),
        _ => Role::Scenario,
    }
}

const ROLE: &str = "HATCHERY_ISOLATED";
/// The watcher's process id, for the scenario to compare.
const WATCHER: &str = "HATCHERY_ISOLATED_BY";
const PRIVATE_DIR: &str = "HATCHERY_ISOLATED_DIR";

/// How long a watcher may take, beyond the bound of its scenario, to kill and describe a tree.
const WATCHER_SLACK: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
