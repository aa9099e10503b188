//! What a child shall be, parsed once: which program, which fds, which limits.

use std::ffi::{OsStr, OsString};
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::confine::Confinement;
use crate::forkserver::manner::Manner;
use crate::forkserver::wire::MAX_SIGNAL;
use crate::stdio::Stdio;
use crate::sys::scm_rights::MAX_FDS;

/// A child to be. Everything has a default but the program.
#[derive(Debug)]
pub struct Spec {
    pub(crate) program: Program,
    pub(crate) name: String,
    pub(crate) path: Option<String>,
    pub(crate) payload: Vec<u8>,
    pub(crate) args: Vec<OsString>,
    /// What a program is told that it is called.
    pub(crate) arg0: Option<OsString>,
    pub(crate) env: Vec<(OsString, Option<OsString>)>,
    pub(crate) env_clear: bool,
    pub(crate) current_dir: Option<PathBuf>,
    pub(crate) umask: Option<u32>,
    pub(crate) nice: Option<i32>,
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
    pub(crate) channel: Option<OwnedFd>,
    pub(crate) fds: Vec<OwnedFd>,
    /// Those of a program at numbers of their own, each number once.
    pub(crate) placed: Vec<(RawFd, OwnedFd)>,
    pub(crate) limits: Vec<(Resource, u64, u64)>,
    pub(crate) confine: Confinement,
    pub(crate) manner: Manner,
    pub(crate) stack_size: Option<usize>,
    pub(crate) answers: bool,
}

/// What a child runs.
#[derive(Debug, Clone)]
pub(crate) enum Program {
    /// A [`Main`](crate::Main) of our own image.
    Main(String),
    /// Any program.
    Path(OsString),
}

/// What can be limited. See setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resource {
    /// Bytes of address space.
    AddressSpace,
    /// Bytes of a core file.
    Core,
    /// Seconds of processor time.
    Cpu,
    /// Bytes of a file it writes.
    FileSize,
    /// One more than the highest fd.
    OpenFiles,
    /// Processes of the user, not of the child alone.
    Processes,
    /// Bytes of stack.
    Stack,
}

impl Spec {
    /// A child that runs one of the program's own mains; see [`Main`](crate::Main).
    #[must_use]
    pub fn main(name: &str) -> Self {
        Self::new(Program::Main(name.to_owned()), "actor")
    }

    /// A child that runs any program, found by `PATH` if it has no slash.
    #[must_use]
    pub fn program(path: impl AsRef<OsStr>) -> Self {
        let path = path.as_ref();
        let name = Path::new(path).file_name().unwrap_or(path).to_string_lossy().into_owned();
        Self::new(Program::Path(path.to_owned()), &name)
    }

    fn new(program: Program, name: &str) -> Self {
        Self {
            program,
            name: name.to_owned(),
            path: None,
            payload: Vec::new(),
            args: Vec::new(),
            arg0: None,
            env: Vec::new(),
            env_clear: false,
            current_dir: None,
            umask: None,
            nice: None,
            stdin: Stdio::Null,
            stdout: Stdio::Inherit,
            stderr: Stdio::Inherit,
            channel: None,
            fds: Vec::new(),
            placed: Vec::new(),
            limits: Vec::new(),
            confine: Confinement::default(),
            manner: Manner::default(),
            stack_size: None,
            answers: false,
        }
    }

    /// Whether the child says to its spawner that it serves, which then calls
    /// [`ChildHandle::born`](crate::ChildHandle::born): until then its birth is under way. Default: it
    /// is over when the child is forked, or its program executed.
    ///
    /// The forkserver has 40 births under way at once, in the whole tree, for no longer than 2 s each;
    /// who asks for more waits for its turn. Without effect on threads.
    #[must_use]
    pub fn answers(mut self, yes: bool) -> Self {
        self.answers = yes;
        self
    }

    /// The same child with another main of ours: for a backend that wraps another one.
    #[must_use]
    pub fn with_main(mut self, name: &str) -> Self {
        self.program = Program::Main(name.to_owned());
        self
    }

    /// What the child is called; a process of our own shows as `hatchery:NAME` in `ps`.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Where the child stands in a tree, for the ledger of abandoned threads. Default: its name.
    #[must_use]
    pub fn path(mut self, path: &str) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// Bytes that a main of ours finds in its [`Birth`](crate::Birth). Together with arguments and
    /// environment at most 8 MiB.
    #[must_use]
    pub fn payload(mut self, payload: Vec<u8>) -> Self {
        self.payload = payload;
        self
    }

    /// One more argument of a program.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments of a program.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable; all others are the spawner's at the moment of the start, in its order, and
    /// one more, by which hatchery finds what the child starts: `HATCHERY_ACTOR`.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Removes a variable.
    #[must_use]
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), None));
        self
    }

    /// Removes all variables but those that are set after this: the child has these and no other.
    ///
    /// What such a child starts by itself, and what then leaves its process group, carries no mark: it
    /// ends with the tree, not with the child, and nobody finds it if the tree's forkserver is killed
    /// (C3).
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.env.clear();
        self.env_clear = true;
        self
    }

    /// Where it starts; a relative path is seen from the spawner's directory. Default: the spawner's
    /// directory at the moment of the start, also if it was renamed or deleted.
    #[must_use]
    pub fn current_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.current_dir = Some(path.as_ref().to_owned());
        self
    }

    /// Its umask, 0 to 0o777. Default: the spawner's at the moment of the start.
    #[must_use]
    pub fn umask(mut self, umask: u32) -> Self {
        self.umask = Some(umask);
        self
    }

    /// Its nice value, -20 to 19; what is below the spawner's needs the right to it. Default: that of
    /// the thread that starts it, at that moment.
    #[must_use]
    pub fn nice(mut self, nice: i32) -> Self {
        self.nice = Some(nice);
        self
    }

    /// What it reads. Default: nothing.
    #[must_use]
    pub fn stdin(mut self, stdio: Stdio) -> Self {
        self.stdin = stdio;
        self
    }

    /// Where its stdout goes. Default: where ours goes.
    #[must_use]
    pub fn stdout(mut self, stdio: Stdio) -> Self {
        self.stdout = stdio;
        self
    }

    /// Where its stderr goes. Default: where ours goes.
    #[must_use]
    pub fn stderr(mut self, stdio: Stdio) -> Self {
        self.stderr = stdio;
        self
    }

    /// The child's end of a socket that a main of ours finds in its [`Birth`](crate::Birth).
    #[must_use]
    pub fn channel(mut self, end: OwnedFd) -> Self {
        self.channel = Some(end);
        self
    }

    /// One more fd. A program finds them from number 3 on, in the order of these calls.
    #[must_use]
    pub fn fd(mut self, fd: OwnedFd) -> Self {
        self.fds.push(fd);
        self
    }

    /// Limits a resource, of the child and of each that it asks for. Default: the spawner's limits at
    /// the moment of the start.
    #[must_use]
    pub fn limit(mut self, resource: Resource, soft: u64, hard: u64) -> Self {
        self.limits.push((resource, soft, hard));
        self
    }

    /// Bounds what it may do, and all that it starts. Default: nothing is bounded. Replaces what
    /// was said before.
    #[must_use]
    pub fn confine(mut self, confinement: Confinement) -> Self {
        self.confine = confinement;
        self
    }

    /// Bytes of stack of a thread actor. Default: 2 MiB. Processes have the root's limit.
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// Whether the spawner is to read something from it.
    pub(crate) fn has_piped_output(&self) -> bool {
        [&self.stdout, &self.stderr].iter().any(|stdio| matches!(stdio, Stdio::Piped))
    }

    /// Parses at the door what a child could only fail over, far from who asked for it.
    pub(crate) fn check(&self) -> Result<(), (&'static str, Errno)> {
        let has_nul = |bytes: &OsStr| bytes.as_encoded_bytes().contains(&0);
        for (key, value) in &self.env {
            let bytes = key.as_encoded_bytes();
            if bytes.is_empty() || bytes.contains(&b'=') || has_nul(key) {
                return Err(("setenv", Errno::EINVAL));
            }
            if value.as_ref().is_some_and(|value| has_nul(value)) {
                return Err(("setenv", Errno::EINVAL));
            }
        }
        if self.name.contains('\0') || self.args.iter().chain(&self.arg0).any(|arg| has_nul(arg)) {
            return Err(("execve", Errno::EINVAL));
        }
        if self.umask.is_some_and(|umask| umask > 0o777) {
            return Err(("umask", Errno::EINVAL));
        }
        if self.nice.is_some_and(|nice| !(-20..=19).contains(&nice)) {
            return Err(("setpriority", Errno::EINVAL));
        }
        self.confine.check()?;
        if self.manner.stop.is_some_and(|(signal, _)| !(1..=MAX_SIGNAL).contains(&signal)) {
            return Err(("kill", Errno::EINVAL));
        }
        let leads = self.manner.session || self.manner.detach || self.manner.foreground;
        if self.manner.group.is_some_and(|group| group < 0 || leads) {
            return Err(("setpgid", Errno::EINVAL));
        }
        if self.manner.session && self.manner.foreground {
            return Err(("a program in the foreground with a session of its own", Errno::EINVAL));
        }
        let is_alone = self.manner.detach;
        if is_alone && (self.manner.foreground || self.confine.cgroup.is_some()) {
            let call = "a detached program in the foreground or in a cgroup of the tree";
            return Err((call, Errno::EINVAL));
        }
        if self.placed.iter().any(|(number, _)| *number < 0) {
            return Err(("dup3", Errno::EBADF));
        }
        // The birth pipe, stdio, the channel, the directory and what is too long for a message go beside
        // these.
        if self.fds.len() + self.placed.len() + 7 > MAX_FDS {
            return Err(("sendmsg(SCM_RIGHTS)", Errno::EMSGSIZE));
        }
        Ok(())
    }
}
