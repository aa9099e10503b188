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

/// All others that hold one of these pipes, in order of their numbers. A thread of its own looks, as it
/// may take as long as [`BOUND`]; where there is none to be had nobody is found.
pub(super) async fn of(pipes: [Option<BorrowedFd<'_>>; 2]) -> Vec<Holder> {
    let inodes = pipes.into_iter().flatten().filter_map(|pipe| fstat(pipe).ok());
    let wanted: Vec<String> = inodes.map(|stat| format!("pipe:[{}]", stat.st_ino)).collect();
    let (tell, told) = oneshot::channel();
    let until = Instant::now() + BOUND;
    let thread = OwnThread::spawn("hatchery-look", move || {
        // Whoever asked may have been dropped.
        let _gone = tell.send(look(&wanted, until));
    });
    let Ok(thread) = thread else { return Vec::new() };
    let found = told.await.unwrap_or_default();
    // It has said what it had to: this takes microseconds.
    thread.join();
    found
}

fn look(wanted: &[String], until: Instant) -> Vec<Holder> {
    let own = std::process::id();
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<Holder> = pids
        .filter(|pid| *pid != own)
        .take_while(|_| Instant::now() < until)
        .filter(|pid| holds(*pid, wanted))
        .map(|pid| Holder { pid, name: name_of(pid) })
        .collect();
    found.sort_by_key(|holder| holder.pid);
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

/// How long to look.
const BOUND: Duration = Duration::from_millis(250);
