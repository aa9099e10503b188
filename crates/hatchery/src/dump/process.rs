//! What the kernel knows about a process and everything below it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use hatchery_proto::board::{self, Board};
use nix::libc;
use serde::{Deserialize, Serialize};

use super::sockets::{self, Queues};

/// One process, with everything below it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name, as `ps` shows it.
    pub name: String,
    /// Its command line.
    pub command: String,
    /// `R`, `S`, `D`, `T`, `Z`, as in proc(5).
    pub state: String,
    /// Signals as masks in hexadecimal.
    pub signals: Signals,
    /// Its threads.
    pub threads: Vec<Thread>,
    /// Its fds.
    pub fds: BTreeMap<u32, Fd>,
    /// What it wrote down about its actors; nothing if it has none, or is dead.
    pub board: Option<Board>,
    /// Its children.
    pub children: Vec<Self>,
}

/// One thread.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Thread {
    /// Its number.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// As for processes.
    pub state: String,
    /// Where in the kernel it waits; `0` if it doesn't, or the kernel doesn't tell.
    pub wchan: String,
    /// The system call it is in, by its name if that is known, or `running`.
    pub syscall: String,
    /// Signals for this thread alone, as a mask in hexadecimal.
    pub pending: String,
    /// Blocked by this thread, likewise.
    #[serde(default)]
    pub blocked: String,
}

/// The signal masks of a process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Signals {
    /// Waiting to be delivered to the process.
    pub pending: String,
    /// Blocked by its main thread.
    pub blocked: String,
    /// Ignored.
    pub ignored: String,
    /// Handled.
    pub caught: String,
}

/// What an fd leads to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fd {
    /// As `/proc/PID/fd` says it: a path, `pipe:[1234]`, `socket:[1234]`.
    pub target: String,
    /// More about a Unix socket.
    pub socket: Option<Socket>,
}

/// What is in the queues of a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Socket {
    /// The inode of the other end; 0 if there is none any more.
    pub peer: u32,
    /// Bytes that came and were not read.
    pub unread: u32,
    /// Bytes that the other end has not read, with the kernel's own share.
    pub unsent: u32,
}

impl Process {
    /// What `pid` and everything below it is doing; `None` if there is no such process.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let mut below: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (process, parent) in parents() {
            below.entry(parent).or_default().push(process);
        }
        Self::with(pid, &below, &sockets::queues())
    }

    fn with(pid: u32, below: &BTreeMap<u32, Vec<u32>>, queues: &Queues) -> Option<Self> {
        let dir = format!("/proc/{pid}");
        let status = fields(&read(&format!("{dir}/status")));
        let field = |key: &str| status.get(key).cloned().unwrap_or_default();
        let name = status.get("Name")?.clone();
        let children = below.get(&pid).into_iter().flatten();
        Some(Self {
            pid,
            name,
            command: shown(&read(&format!("{dir}/cmdline")).replace('\0', " ")),
            state: field("State"),
            signals: Signals {
                pending: field("ShdPnd"),
                blocked: field("SigBlk"),
                ignored: field("SigIgn"),
                caught: field("SigCgt"),
            },
            threads: numbers(&format!("{dir}/task")).map(|tid| Thread::of(&dir, tid)).collect(),
            fds: numbers(&format!("{dir}/fd"))
                .filter_map(|fd| {
                    let target = fs::read_link(format!("{dir}/fd/{fd}")).ok()?;
                    Some((fd, Fd::of(shown(&target.to_string_lossy()), queues)))
                })
                .collect(),
            board: super::board_of(pid),
            children: children.filter_map(|child| Self::with(*child, below, queues)).collect(),
        })
    }

    /// How many processes these are.
    #[must_use]
    pub fn count(&self) -> usize {
        1 + self.children.iter().map(Self::count).sum::<usize>()
    }

    /// This process and all below it.
    #[must_use]
    pub fn flatten(&self) -> Vec<&Self> {
        let below = self.children.iter().flat_map(Self::flatten);
        std::iter::once(self).chain(below).collect()
    }
}

impl Fd {
    fn of(target: String, queues: &Queues) -> Self {
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        let socket = inode.and_then(|inode| queues.get(&inode.parse().ok()?).copied());
        Self { target, socket }
    }
}

impl Thread {
    fn of(process: &str, tid: u32) -> Self {
        let dir = format!("{process}/task/{tid}");
        let status = fields(&read(&format!("{dir}/status")));
        let field = |key: &str| status.get(key).cloned().unwrap_or_default();
        Self {
            tid,
            name: field("Name"),
            state: field("State"),
            wchan: read(&format!("{dir}/wchan")),
            syscall: named(read(&format!("{dir}/syscall")).trim()),
            pending: field("SigPnd"),
            blocked: field("SigBlk"),
        }
    }

    /// Where it waits, as far as the kernel tells.
    #[must_use]
    pub fn place(&self) -> &str {
        match &*self.wchan {
            "" | "0" => self.syscall.split_whitespace().next().unwrap_or_default(),
            wchan => wchan,
        }
    }
}

/// The root of the tree that a process is part of: two levels up, over the forkserver.
pub(super) fn root_of(pid: u32) -> u32 {
    let parents: BTreeMap<u32, u32> = parents().into_iter().collect();
    let is_forkserver = |pid: &u32| read(&format!("/proc/{pid}/cmdline")).contains(FORKSERVER);
    let server = if is_forkserver(&pid) { Some(pid) } else { parents.get(&pid).copied() };
    server.filter(is_forkserver).and_then(|server| parents.get(&server).copied()).unwrap_or(pid)
}

/// A line of `/proc/PID/syscall` with the call's name for its number.
fn named(line: &str) -> String {
    let Some((number, rest)) = line.split_once(' ') else { return line.to_owned() };
    let known = number.parse().ok().and_then(|number: libc::c_long| {
        CALLS.iter().find(|(known, _)| *known == number).map(|(_, name)| *name)
    });
    known.map_or_else(|| line.to_owned(), |name| format!("{name} {rest}"))
}

/// All processes with their parents.
fn parents() -> Vec<(u32, u32)> {
    let all = numbers("/proc");
    all.filter_map(|pid| {
        let stat = read(&format!("/proc/{pid}/stat"));
        // The name in brackets may itself hold brackets and blanks.
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        Some((pid, parent))
    })
    .collect()
}

fn fields(status: &str) -> BTreeMap<String, String> {
    let lines = status.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(key, value)| (key.to_owned(), shown(value))).collect()
}

fn numbers(dir: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(Path::new(dir)).into_iter().flatten().flatten();
    let mut found: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    found.sort_unstable();
    found.into_iter()
}

fn read(path: &str) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A text that others have chosen, for a line of a terminal (C15).
fn shown(text: &str) -> String {
    board::plain(text.trim().to_owned())
}

/// What a forkserver calls itself.
pub(super) const FORKSERVER: &str = "hatchery:forkserver";

/// The calls in which threads wait.
const CALLS: &[(libc::c_long, &str)] = &[
    (libc::SYS_accept4, "accept4"),
    (libc::SYS_clock_nanosleep, "clock_nanosleep"),
    (libc::SYS_connect, "connect"),
    (libc::SYS_epoll_pwait, "epoll_pwait"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_wait, "epoll_wait"),
    (libc::SYS_fcntl, "fcntl"),
    (libc::SYS_flock, "flock"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_futex, "futex"),
    (libc::SYS_nanosleep, "nanosleep"),
    (libc::SYS_openat, "openat"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_pause, "pause"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, "poll"),
    (libc::SYS_ppoll, "ppoll"),
    (libc::SYS_read, "read"),
    (libc::SYS_recvfrom, "recvfrom"),
    (libc::SYS_recvmsg, "recvmsg"),
    (libc::SYS_rt_sigtimedwait, "rt_sigtimedwait"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_select, "select"),
    (libc::SYS_sendmsg, "sendmsg"),
    (libc::SYS_sendto, "sendto"),
    (libc::SYS_wait4, "wait4"),
    (libc::SYS_waitid, "waitid"),
    (libc::SYS_write, "write"),
    (libc::SYS_writev, "writev"),
];
