//! Faults from outside: the signals that no process can refuse, through pidfds (H18), to any
//! process of a tree by its actor's path, at named moments.
//!
//! ```no_run
//! use std::time::Duration;
//! use hatchery_testkit::fault::{Fault, Moment, Tree};
//!
//! // `root/worker` dies as soon as it answers a call.
//! let tree = Tree::mine();
//! let bound = Duration::from_secs(10);
//! tree.at(Moment::InCall, "root/worker", bound, "root/worker", Fault::Kill)?;
//! # Ok::<(), hatchery_testkit::fault::Missed>(())
//! ```

mod tree;

use std::fs;
use std::io;

use hatchery_spawn::Pidfd;
use nix::libc;

pub use tree::{FORKSERVER, Fault, Missed, Moment, Tree};

/// Kills a process as the out-of-memory killer would, and returns the handle to wait for its end.
///
/// # Errors
/// `ESRCH`: it is gone already.
pub fn sigkill(pid: u32) -> io::Result<Pidfd> {
    send(pid, libc::SIGKILL)
}

/// Stops a process where it is; it keeps everything it holds.
///
/// # Errors
/// `ESRCH`: it is gone already.
pub fn sigstop(pid: u32) -> io::Result<Pidfd> {
    send(pid, libc::SIGSTOP)
}

/// Lets a stopped process go on.
///
/// # Errors
/// `ESRCH`: it is gone already.
pub fn sigcont(pid: u32) -> io::Result<Pidfd> {
    send(pid, libc::SIGCONT)
}

/// Sends any signal.
///
/// # Errors
/// `ESRCH`: the process is gone already. `EINVAL`: no such signal.
pub fn send(pid: u32, signal: i32) -> io::Result<Pidfd> {
    let process = Pidfd::open(pid)?;
    process.send_signal(signal)?;
    Ok(process)
}

/// The children of a process, zombies included; none if it is gone.
#[must_use]
pub fn children_of(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids = lists.map(|list| list.split_whitespace().flat_map(str::parse).collect::<Vec<_>>());
    pids.flatten().collect()
}

/// Whether a process is a forkserver that has booted.
#[must_use]
pub fn is_up(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "hatchery:server\n")
}

/// The actor called `name` among the children of `forkserver`, held so that the number can't
/// change hands. Names are cut after 15 bytes with their `hatchery:`, so take short ones.
#[must_use]
pub fn find_child(forkserver: u32, name: &str) -> Option<Pidfd> {
    let title: String = format!("hatchery:{name}").chars().take(15).collect();
    let is_it = |pid: u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == title)
    };
    children_of(forkserver).into_iter().find_map(|pid| {
        // Held first, looked at second.
        let process = Pidfd::open(pid).ok()?;
        (is_it(pid) && !process.is_dead()).then_some(process)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_stopped_process_still_dies_of_a_kill() {
        let mut cat = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        sigstop(cat.id()).unwrap();
        sigcont(cat.id()).unwrap();
        sigstop(cat.id()).unwrap();
        assert!(sigkill(cat.id()).unwrap().wait_dead(Duration::from_secs(5)));
        assert_eq!(cat.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
