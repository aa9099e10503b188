//! What the kernel says of whoever asks: files of `/proc`, kept open for those who ask often.
//!
//! An open file of a thread never shows another one, whoever has its number later (H18).

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::Mode;

use super::{Base, Right, Rights};
use crate::sys::rights as sys;

/// What was seen of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) rights: Rights,
    /// Whether its capabilities mean what the forkserver's do: it is in the same user namespace.
    pub(crate) is_at_home: bool,
}

/// Looks at spawners, and remembers where we are ourselves.
#[derive(Debug)]
pub(crate) struct Look {
    /// Who has asked lately, the latest last.
    lately: Vec<Thread>,
    home: Place,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Thread {
    process: i32,
    thread: i32,
    directory: OwnedFd,
    status: File,
}

/// Where a thread lives; `None` for what we may not ask of it.
#[derive(Debug)]
struct Place {
    user: Option<String>,
    root: Option<[u64; 3]>,
    others: [Option<String>; OTHERS.len()],
}

/// The forkserver's own rights, and what looks at those of others.
pub(crate) fn own() -> Result<(Base, Look), (&'static str, Errno)> {
    let itself = Thread::open("/proc/self", (0, 0)).map_err(|errno| ("open(/proc/self)", errno))?;
    let mut buffer = vec![0; BUFFER];
    let unreadable = ("read(/proc/self/status)", Errno::EINVAL);
    let rights = itself.rights(&mut buffer).ok_or(unreadable)?;
    let others = OTHERS.map(|kind| itself.namespace(kind));
    let home = Place { user: itself.namespace(USER), root: itself.root(), others };
    let securebits = sys::securebits().unwrap_or(0);
    let base = Base { rights, securebits, dumpable: sys::is_dumpable(), was_seen: false };
    Ok((base, Look { lately: Vec::new(), home, buffer }))
}

impl Look {
    /// Looks at a thread of a process that can't be replaced by another one meanwhile: the root, or
    /// an unreaped child. For one that has ended since its process's first one stands.
    pub(crate) fn at(&mut self, process: i32, thread: i32, own: &Rights) -> Result<Seen, Right> {
        let rights = self.find(process, thread).or_else(|| self.find(process, process));
        let (Some(rights), Some(it)) = (rights, self.lately.last()) else {
            return Err(Right::Hidden);
        };
        let is_like_us = rights == *own;
        let is_at_home = match is_same(it.namespace(USER).as_ref(), self.home.user.as_ref()) {
            Some(false) => return Err(Right::UserNamespace),
            Some(true) => true,
            // We may not ask. In another one it would have all capabilities, or would have let them go.
            None => is_like_us,
        };
        if is_same(it.root().as_ref(), self.home.root.as_ref()) == Some(false) {
            return Err(Right::Root);
        }
        // Who is like us in all that may go back into any of ours.
        let is_elsewhere = |(kind, ours): (&str, &Option<String>)| {
            is_same(it.namespace(kind).as_ref(), ours.as_ref()) == Some(false)
        };
        if !is_like_us && OTHERS.into_iter().zip(&self.home.others).any(is_elsewhere) {
            return Err(Right::Namespace);
        }
        Ok(Seen { rights, is_at_home })
    }

    /// Nobody of that process asks any more.
    pub(crate) fn forget(&mut self, process: i32) {
        self.lately.retain(|it| it.process != process);
    }

    /// The thread's rights; it is the last of the list then.
    fn find(&mut self, process: i32, thread: i32) -> Option<Rights> {
        let known = self.lately.iter().position(|it| (it.process, it.thread) == (process, thread));
        if let Some(at) = known {
            let it = self.lately.remove(at);
            if let Some(rights) = it.rights(&mut self.buffer) {
                self.lately.push(it);
                return Some(rights);
            }
            // It has ended; another one may have its number.
        }
        let path = format!("/proc/{process}/task/{thread}");
        let it = Thread::open(&path, (process, thread)).ok()?;
        let rights = it.rights(&mut self.buffer)?;
        if self.lately.len() >= MANY {
            self.lately.remove(0);
        }
        self.lately.push(it);
        Some(rights)
    }
}

impl Thread {
    fn open(path: &str, (process, thread): (i32, i32)) -> Result<Self, Errno> {
        let close = OFlag::O_CLOEXEC;
        let directory = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | close, Mode::empty())?;
        let status = openat(&directory, "status", OFlag::O_RDONLY | close, Mode::empty())?.into();
        Ok(Self { process, thread, directory, status })
    }

    fn rights(&self, buffer: &mut Vec<u8>) -> Option<Rights> {
        loop {
            let length = self.status.read_at(buffer, 0).ok()?;
            if length < buffer.len() {
                return Rights::parse(&buffer[..length]);
            }
            // A long list of groups.
            buffer.resize(Some(buffer.len() * 2).filter(|length| *length <= MAX_BUFFER)?, 0);
        }
    }

    fn namespace(&self, kind: &str) -> Option<String> {
        readlinkat(&self.directory, kind).ok()?.into_string().ok()
    }

    fn root(&self) -> Option<[u64; 3]> {
        sys::root_behind(self.directory.as_fd(), ROOT).ok()
    }
}

/// `None` if one of them isn't known.
fn is_same<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> Option<bool> {
    Some(one? == other?)
}

const USER: &str = "ns/user";
const OTHERS: [&str; 2] = ["ns/net", "ns/ipc"];
const ROOT: &CStr = c"root";
/// How many are kept open: two fds each.
const MANY: usize = 8;
/// Twice as much as a status is long whose thread has a few groups.
const BUFFER: usize = 4096;
/// More than that of a thread with the most groups that there can be.
const MAX_BUFFER: usize = 1 << 20;
