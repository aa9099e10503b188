//! Who holds a pipe: `/proc` lists each process's fds with their inodes.

use std::fmt;
use std::fs;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::sys::stat::fstat;
use tokio::sync::oneshot;

use crate::own_thread::OwnThread;

/// A process that holds a pipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its number, at the time.
    pub pid: u32,
    /// Its name, as `ps` shows it.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.pid, self.name)
    }
}

/// All others that hold one of these pipes, in order of their numbers; `server` is the forkserver. A thread of its own looks, as it
/// may take as long as [`BOUND`]; where there is none to be had nobody is found.
pub(crate) async fn of(pipes: [Option<BorrowedFd<'_>>; 2], server: u32) -> Vec<Holder> {
    let inodes = pipes.into_iter().flatten().filter_map(|pipe| fstat(pipe).ok());
    let wanted: Vec<String> = inodes.map(|stat| format!("pipe:[{}]", stat.st_ino)).collect();
    let (tell, told) = oneshot::channel();
    let until = Instant::now() + BOUND;
    let thread = OwnThread::spawn("hatchery-look", move || {
        // Whoever asked may have been dropped.
        let _gone = tell.send(look(&wanted, server, until));
    });
    let Ok(thread) = thread else { return Vec::new() };
    let found = told.await.unwrap_or_default();
    // It has said what it had to: this takes microseconds.
    thread.join();
    found
}

fn look(wanted: &[String], server: u32, until: Instant) -> Vec<Holder> {
    let own = std::process::id();
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut rest: Vec<u32> = pids.collect();
    rest.sort_unstable_by(|one, other| other.cmp(one));
    // The likely ones first, should there be no time for all: what the forkserver has, then what is new.
    let list = fs::read_to_string(format!("/proc/{server}/task/{server}/children"));
    let mut pids: Vec<u32> = list.map_or_else(
        |_| Vec::new(),
        |list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
    );
    pids.extend(rest);
    let mut found: Vec<Holder> = pids
        .into_iter()
        .filter(|pid| *pid != own)
        .take_while(|_| Instant::now() < until)
        .filter(|pid| holds(*pid, wanted))
        .map(|pid| Holder { pid, name: name_of(pid) })
        .collect();
    found.sort_by_key(|holder| holder.pid);
    found.dedup();
    found
}

fn holds(pid: u32, wanted: &[String]) -> bool {
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let mut links = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    links.any(|link| wanted.iter().any(|pipe| link.as_os_str() == pipe.as_str()))
}

fn name_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// How long to look: a few milliseconds, on a machine that is free.
const BOUND: Duration = Duration::from_secs(1);
