//! The forkserver: a helper process with one thread for ever, from which children are forked.
//!
//! Why: a fork of a process with threads deadlocks sooner or later (H17), its cost grows with the
//! memory of who forks, and parent-death signals follow the forking thread (H11). This process is
//! the program's own image, executed afresh: no inherited thread, lock, fd or buffer. It is the
//! parent and reaper of all children of the tree, and ends them when whoever asked for them dies.

pub(crate) mod births;
pub(crate) mod book;
pub(crate) mod client;
pub(crate) mod confined;
pub(crate) mod crib;
pub(crate) mod environment;
pub(crate) mod exited;
pub(crate) mod fork;
pub(crate) mod gone;
pub(crate) mod manner;
pub(crate) mod memory;
pub(crate) mod pidfds;
pub(crate) mod present;
mod process;
pub(crate) mod rights;
pub(crate) mod server;
pub(crate) mod settle;
pub(crate) mod strays;
pub(crate) mod threads;
mod warm_up;
pub(crate) mod wire;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio as StdStdio};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use tokio::sync::oneshot;

use crate::backend::{Backend, Spawning};
use crate::child::Ties;
use crate::confine::cgroup;
use crate::error::SpawnError;
use crate::exit::Exit;
use crate::held::{Held, is_forbidden};
use crate::image;
use crate::own_image::OwnImage;
use crate::relay::{self, Target};
use crate::spec::{Program, Spec};
use crate::stdio::{Stdio, Tail};
use crate::sys::owner::{self, is_copy};
use crate::sys::pidfd::Pidfd;
use crate::sys::{self, fds, scm_rights, title};
use client::{Client, Waiting};
use gone::Gone;
use manner::Manner;
use present::Present;
use process::Process;
use rights::Asker;
use wire::{Request, Run};

/// Whose child a process is, as the kernel says it.
fn parent_of(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok()
}

/// The bounds of a forkserver, and what it is made of.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// How long a request may take. Default 5 s: a machine that is out of memory may need that.
    pub request: Duration,
    /// The program that a forkserver, and exec'd actors, are started from. Default: this program.
    ///
    /// For code in a shared library of somebody else's program, as in a module of Python: name a small
    /// program of yours that is linked with the same functions and the same version of this crate. A
    /// file that is none of these is refused and not executed.
    pub image: Option<PathBuf>,
    /// How long the program's preloads may take, all together, before the forkserver can fork; see
    /// [`Preload`](crate::Preload). Requests that are made meanwhile wait, and their own bound counts
    /// from the end of the preloads. Default 60 s. A program without preloads has no use for it.
    pub warm_up: Duration,
    /// How long a child may take from its fork until it is another program, or has the confinement that
    /// was asked for. Default 60 s: the program may lie on a slow disk, or on another machine's.
    pub exec: Duration,
    /// How long children may go on after their spawner has died. Default 0.5 s.
    pub orphan_grace: Duration,
    /// How long its own end may take before it is killed. Default 1 s.
    pub close: Duration,
    /// How many living children one actor may have; the root may have any number. Default 10,000:
    /// more than any tree that was measured, fewer than the machine has numbers for.
    pub children: usize,
    /// How long the end of what a child had started by itself is awaited after the child's own end.
    /// Default 1 s: they are killed at once, so only a busy machine needs any of it.
    pub strays: Duration,
    /// Whether it moves the program's code, as far as that fills huge pages, to such. Default: no.
    ///
    /// A fork then copies an entry for each 2 MiB, and the child faults in none of it: starts take an
    /// eighth less time. It costs once as much memory as the code is long, and the code is no file's
    /// any more in `/proc/PID/maps`, neither the forkserver's nor its children's: profilers and
    /// tracers that look there find no names. Debuggers and backtraces do. Where memory is not
    /// overcommitted (`vm.overcommit_memory` of 2) each child counts for as much again. Where it can't be
    /// done, or a tracer has put a probe into the code, an event of `tracing` says why, and everything
    /// else is the same.
    pub huge_pages: bool,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(5),
            exec: Duration::from_secs(60),
            image: None,
            warm_up: Duration::from_secs(60),
            orphan_grace: Duration::from_millis(500),
            close: Duration::from_secs(1),
            children: 10_000,
            strays: Duration::from_secs(1),
            huge_pages: false,
        }
    }
}

/// A handle to the forkserver of a tree. Clones lead to the same one.
///
/// In the root it is closed by [`Forkserver::close`] or when the last clone is dropped; every
/// child goes with it. In an actor it is the way to the tree's one forkserver.
#[derive(Debug, Clone)]
pub struct Forkserver {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Arc<Client>,
    bounds: Bounds,
    null: OwnedFd,
    relays: relay::Group,
    /// The process itself, where this is its root.
    process: Option<Process>,
    closed: Once,
}

impl Forkserver {
    /// Starts one, by executing this program's image. Doesn't wait until it is up: requests may be
    /// made at once, and learn if it could not start.
    ///
    /// # Errors
    /// [`SpawnError::Call`] names the call that failed; [`SpawnError::NoConstructor`];
    /// [`SpawnError::Image`]: there is no program to start it from.
    /// [`SpawnError::Copied`].
    pub fn start(bounds: Bounds) -> Result<Self, SpawnError> {
        let name = "forkserver";
        if !owner::claim() {
            return Err(SpawnError::Copied { name: name.to_owned() });
        }
        if !image::is_prepared() {
            return Err(SpawnError::NoConstructor { name: name.to_owned() });
        }
        let image = bounds.image.as_deref().map_or_else(OwnImage::find, OwnImage::named);
        let image = image.map_err(|cause| {
            let (name, cause) = (name.to_owned(), Box::new(cause));
            SpawnError::Image { name, cause }
        })?;
        if sys::rights::is_raised() {
            return Err(SpawnError::Raised { name: name.to_owned() });
        }
        let (ours, theirs) = control_pair().map_err(failed(name, "socketpair"))?;
        let null = open_null().map_err(failed(name, "open(/dev/null)"))?;
        let pages = if bounds.huge_pages { "huge" } else { "small" };
        let (grace, strays) = (bounds.orphan_grace.as_nanos(), bounds.strays.as_nanos());
        let told = format!("{grace},{},{pages},{strays}", bounds.children);
        let tree = strays::new_tree();
        let mut server = Command::new(image.path());
        if std::env::var_os(image::BIND_NOW.0).is_none() {
            server.env(image::BIND_NOW.0, image::BIND_NOW.1);
        }
        // The program's own, which its children find again; then room, for they write their names there.
        let mut arguments = std::env::args_os();
        if let Some(first) = arguments.next() {
            server.arg0(first).args(arguments);
        }
        let child = server
            .arg(OsStr::from_bytes(title::ROOM.to_bytes()))
            .env(image::SERVER_MARKER, format!("{}.{tree}", std::process::id()))
            .env(server::BOUNDS, told)
            .stdin(StdStdio::from(theirs))
            .stdout(StdStdio::null())
            .spawn()
            .map_err(|cause| {
                let call = format!("posix_spawn({})", image.path().display());
                SpawnError::Call { name: name.to_owned(), call, cause }
            })?;
        let pid = child.id();
        let held = match Held::open(pid) {
            Ok(held) => held,
            Err(error) => {
                // Without its socket's other end it ends by itself.
                drop(ours);
                let mut child = child;
                let _reaped = child.wait();
                return Err(failed(name, "pidfd_open")(error));
            }
        };
        let has_pidfds = matches!(held, Held::Pidfd(_));
        let process = Process { pid, held, tree: tree.clone() };
        let client = Client::start(ours, Some(tree), bounds.warm_up).map_err(|(call, cause)| {
            process.end(Duration::ZERO);
            process.reap();
            failed(name, call)(cause)
        })?;
        if !has_pidfds {
            client.without_pidfds();
        }
        let process = Some(process);
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                bounds,
                null,
                relays: relay::Group::new(),
                process,
                closed: Once::new(),
            }),
        })
    }

    /// The tree's forkserver, in a process that was born from it; `None` anywhere else.
    ///
    /// The process's own control socket is made here, at the first use: an actor that starts
    /// nothing costs the forkserver no fd. After an error the next use tries again.
    ///
    /// # Errors
    /// [`SpawnError::ServerGone`]; [`SpawnError::Call`] names the call that failed: no fd, no
    /// thread, or a forkserver that doesn't read.
    pub fn inherited() -> Result<Option<Self>, SpawnError> {
        static ADOPTED: Mutex<Option<Forkserver>> = Mutex::new(None);
        let shared = image::shared_socket();
        if shared < 0 {
            return Ok(None);
        }
        let name = "forkserver";
        if !owner::claim() {
            return Err(SpawnError::Copied { name: name.to_owned() });
        }
        let mut adopted = ADOPTED.lock().unwrap_or_else(PoisonError::into_inner);
        if adopted.is_none() {
            let null = open_null().map_err(failed(name, "open(/dev/null)"))?;
            let (ours, theirs) = control_pair().map_err(failed(name, "socketpair"))?;
            // The forkserver takes the end of an adopted socket for the end of this actor: so it is
            // sent when nothing of ours can fail any more.
            let client = Client::start(ours, None, Duration::ZERO)
                .map_err(|(call, cause)| failed(name, call)(cause))?;
            if let Err(errno) = send_blocking(fds::shared(shared), &theirs) {
                client.close();
                return Err(not_adopted(name)(errno));
            }
            let own = Pidfd::open(std::process::id());
            if own.is_err_and(|error| is_forbidden(&error)) {
                client.without_pidfds();
            }
            let bounds = Bounds::default();
            *adopted = Some(Self {
                inner: Arc::new(Inner {
                    client,
                    bounds,
                    null,
                    relays: relay::Group::new(),
                    process: None,
                    closed: Once::new(),
                }),
            });
        }
        Ok(adopted.clone())
    }

    /// Children by fork alone: fastest.
    #[must_use]
    pub fn fork(&self) -> Fork {
        Fork { server: self.clone() }
    }

    /// Children in a fresh image, for programs that can't live with a fork.
    #[must_use]
    pub fn exec(&self) -> Exec {
        Exec { server: self.clone() }
    }

    /// Its process id; in an actor, 0: the forkserver isn't this process's to look at.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inner.process.as_ref().map_or(0, |process| process.pid)
    }

    /// Whether processes are held by pidfds here. `false`: neither the kernel nor a filter lets us
    /// have any, and all that concerns children goes through the forkserver.
    ///
    /// What works then is the same, with these differences. Signals to children reach them by the
    /// forkserver, so they wait while that is stopped. The forkserver is told of its root's end by
    /// the end of its socket and by the parent-death signal. The root looks every millisecond
    /// whether a forkserver that it ends has ended. What actors have started by themselves, and what
    /// is left of other trees, is held by its directory in `/proc`: where `pidfd_send_signal` is
    /// forbidden as well, nobody ends such programs after a SIGKILL of the forkserver.
    ///
    /// Known at the start if the root has none, and else from the forkserver's first word on.
    #[must_use]
    pub fn has_pidfds(&self) -> bool {
        self.inner.client.has_pidfds()
    }

    /// Whether it is gone; for a [copy](crate::is_copy) of this process it is.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        is_copy() || self.inner.client.lost().borrow().is_some()
    }

    /// Waits until it is gone, and says why. Ended by its death or by [`Forkserver::close`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn lost(&self) -> String {
        if is_copy() {
            return "this process is a copy, made by fork".to_owned();
        }
        let mut lost = self.inner.client.lost();
        let gone = lost.wait_for(Option::is_some).await;
        gone.ok().and_then(|gone| gone.as_ref().map(Gone::why)).unwrap_or_default()
    }

    /// Kills every child and everything below, and the forkserver. Needs no runtime and takes no
    /// lock; blocks at most the bound of a close.
    pub fn kill_tree(&self) {
        if let Some(process) = self.inner.process.as_ref().filter(|_| !is_copy()) {
            if process.is_out_of_reach() {
                self.inner.client.hang_up();
            }
            process.end(self.inner.bounds.close);
        }
    }

    /// Stops the forkserver and every child, or lets all go on. Needs no runtime and takes no lock;
    /// reads `/proc`. What children start is theirs to stop.
    pub fn hold_tree(&self, stopped: bool) {
        let Some(server) = self.inner.process.as_ref().filter(|_| !is_copy()) else { return };
        if !self.has_pidfds() || server.is_out_of_reach() {
            // It stays awake itself, with nobody left to ask it for anything.
            return self.inner.client.hold(stopped);
        }
        let signal = if stopped { libc::SIGSTOP } else { libc::SIGCONT };
        // First the one that could start more of them, and that alone gives numbers free.
        server.signal(signal);
        let list = format!("/proc/{0}/task/{0}/children", server.pid);
        let children = std::fs::read_to_string(list).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let Ok(child) = Pidfd::open(pid) else { continue };
            let is_ours = parent_of(pid) == Some(server.pid);
            if is_ours && !strays::is_left_alone(pid, server.pid, &server.tree) {
                let _gone = child.send_signal(signal);
            }
        }
    }

    /// Ends the forkserver and all that lives below it, and what served it here: its thread at
    /// once, its fds with the last clone (C10). Blocks at most the bound of a close and half a
    /// second. A second close does nothing.
    ///
    /// In an actor this does nothing: there its connection ends with its process, and ending it
    /// earlier would end the actor.
    pub fn close(&self) {
        if self.inner.process.is_some() {
            self.inner.close();
        }
    }

    fn spawn(&self, spec: Spec, execs: bool) -> Spawning {
        let name = spec.name.clone();
        if is_copy() {
            return Spawning::failed(SpawnError::Copied { name });
        }
        if let Err((call, errno)) = spec.check() {
            let (call, cause) = (call.to_owned(), errno.into());
            return Spawning::failed(SpawnError::Call { name, call, cause });
        }
        match self.try_spawn(spec, execs) {
            Ok(answer) => Spawning::waiting(name, answer),
            Err((call, cause)) => {
                Spawning::failed(SpawnError::Call { name, call: call.to_owned(), cause })
            }
        }
    }

    fn try_spawn(
        &self,
        spec: Spec,
        execs: bool,
    ) -> Result<oneshot::Receiver<Result<crate::Child, SpawnError>>, (&'static str, io::Error)>
    {
        let bound = self.inner.bounds.request;
        let run = match (&spec.program, execs) {
            (Program::Main(main), false) => Run::Main(main.clone()),
            (Program::Main(main), true) => Run::Image(main.clone()),
            (Program::Path(_), _) => Run::Program,
        };
        let environment = (!spec.env_clear).then(environment::own);
        if run == Run::Program && environment::exceeds(&spec, environment.as_deref()) {
            return Err(("execve", Errno::E2BIG.into()));
        }
        let present = Present {
            has_environment: environment.is_some(),
            has_directory: spec.current_dir.as_ref().is_none_or(|path| path.is_relative()),
            ..Present::own(&self.inner.client.status, spec.umask)
        };
        let directory = present.has_directory.then(present::directory).transpose();
        let directory = directory.map_err(|error| ("open(.)", error))?;
        let (birth, birth_end) = pipe().map_err(|error| ("pipe2", error))?;
        let (answer, answered) = oneshot::channel();
        let mut waiting = Waiting {
            name: spec.name.clone(),
            answer,
            since: Instant::now(),
            bound,
            exec: self.inner.bounds.exec,
            birth: Arc::new(birth),
            // What was asked for on top of a plain fork is answered for at the start.
            execs: !matches!(run, Run::Main(_)) || !spec.confine.is_empty(),
            ties: Ties {
                is_program: run == Run::Program,
                has_cgroup: spec.confine.cgroup.is_some(),
                lingers: spec.manner.linger > 0,
                has_stop: spec.manner.stop.is_some(),
                has_terminal: spec.manner.foreground,
                is_detached: spec.manner.detach,
            },
            is_told: spec.answers || !matches!(run, Run::Main(_)),
            is_silent: !spec.answers,
            stdin: None,
            stdout: None,
            stderr: None,
            tail: None,
        };
        if let Some(cgroup) = &spec.confine.cgroup {
            cgroup::remember(cgroup);
        }
        let mut fds = vec![birth_end];
        let server = self.inner.process.as_ref().map(|process| process.pid.cast_signed());
        let asker = Asker::now(server);
        let (request, stdio, rest) = describe(spec, run, bound, (present, asker));
        self.stdio(stdio, &mut fds, &mut waiting)?;
        fds.extend(rest.into_iter().chain(directory));
        let request = Request { is_told: waiting.is_told, ..request };
        let encode = |number, born| Request { number, born, ..request }.encode();
        self.inner.client.request(waiting, fds, environment, encode);
        Ok(answered)
    }

    /// Opens what the three of a child are connected to.
    fn stdio(
        &self,
        stdio: [Stdio; 3],
        fds: &mut Vec<OwnedFd>,
        waiting: &mut Waiting,
    ) -> Result<(), (&'static str, io::Error)> {
        let null = || self.inner.null.try_clone().map_err(|error| ("dup(/dev/null)", error));
        let pipe = || {
            let made = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC);
            made.map_err(|errno| ("pipe2", errno.into()))
        };
        let mut relayed = Vec::new();
        for ((number, stdio), inherited) in (0..).zip(stdio).zip(INHERITED) {
            let theirs = match stdio {
                Stdio::Null => null()?,
                Stdio::Inherit => {
                    let copy = fds::stdio(number).try_clone_to_owned();
                    copy.map_err(|error| (inherited, error))?
                }
                Stdio::Fd(fd) => fd,
                Stdio::Piped => {
                    let (read, write) = pipe()?;
                    match number {
                        0 => {
                            waiting.stdin = Some(write);
                            read
                        }
                        1 => {
                            waiting.stdout = Some(read);
                            write
                        }
                        _ => {
                            waiting.stderr = Some(read);
                            write
                        }
                    }
                }
                Stdio::Relay(_) if number == 0 => null()?,
                Stdio::Relay(relay) => {
                    let (read, write) = pipe()?;
                    let target = if number == 1 { Target::Stdout } else { Target::Stderr };
                    relayed.push((read, relay, target));
                    write
                }
            };
            fds.push(theirs);
        }
        // Last: the relay closes what it has got in its own time, so a start that fails here would
        // leave fds for a moment.
        for (read, relay, target) in relayed {
            let tail: Arc<Tail> = self.inner.relays.add(read, relay, target)?;
            if target == Target::Stderr {
                waiting.tail = Some(tail);
            }
        }
        Ok(())
    }
}

/// A spec as a request, its stdio, and its other fds.
fn describe(
    spec: Spec,
    run: Run,
    bound: Duration,
    (present, asker): (Present, Asker),
) -> (Request, [Stdio; 3], Vec<OwnedFd>) {
    let bytes = std::ffi::OsString::into_encoded_bytes;
    let mut argv = Vec::new();
    if let Program::Path(path) = spec.program {
        argv.push(bytes(path));
    }
    argv.extend(spec.args.into_iter().map(bytes));
    let (places, placed): (Vec<_>, Vec<_>) = spec.placed.into_iter().unzip();
    let bound = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
    let request = Request {
        number: 0,
        deadline: server::monotonic().saturating_add(bound),
        patience: bound,
        run,
        name: spec.name,
        payload: spec.payload,
        argv,
        arg0: spec.arg0.map(bytes),
        env: spec.env.into_iter().map(|(key, value)| (bytes(key), value.map(bytes))).collect(),
        env_clear: spec.env_clear,
        current_dir: spec.current_dir.map(|path| bytes(path.into_os_string())),
        has_channel: spec.channel.is_some(),
        nice: spec.nice,
        is_told: false,
        born: Vec::new(),
        limits: spec.limits.iter().map(|(what, soft, hard)| (*what as u32, *soft, *hard)).collect(),
        confine: spec.confine,
        manner: Manner { places, ..spec.manner },
        present,
        asker,
    };
    let rest = spec.channel.into_iter().chain(spec.fds).chain(placed).collect();
    (request, [spec.stdin, spec.stdout, spec.stderr], rest)
}

impl Inner {
    /// Once: who comes second waits for the first.
    fn close(&self) {
        if is_copy() {
            return;
        }
        self.closed.call_once(|| self.end());
    }

    fn end(&self) {
        self.client.close();
        if let Some(process) = &self.process {
            if !process.held.wait_dead(self.bounds.close) {
                process.end(Duration::ZERO);
            }
            if process.reap() != Some(Exit::Code(0)) {
                // It did not end by itself, so it may have left something.
                strays::sweep(&process.tree, strays::SWEEP_BOUND);
            }
        }
        self.relays.settle(RELAY_WAIT);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// Children of a [`Forkserver`] by fork alone.
#[derive(Debug, Clone)]
pub struct Fork {
    server: Forkserver,
}

impl Backend for Fork {
    fn name(&self) -> &'static str {
        "forkserver"
    }
    fn is_process(&self) -> bool {
        true
    }
    fn spawn(&self, spec: Spec) -> Spawning {
        self.server.spawn(spec, false)
    }
}

/// Children of a [`Forkserver`] in a fresh image: the same birth, then an exec.
#[derive(Debug, Clone)]
pub struct Exec {
    server: Forkserver,
}

impl Backend for Exec {
    fn name(&self) -> &'static str {
        "exec"
    }
    fn is_process(&self) -> bool {
        true
    }
    fn spawn(&self, spec: Spec) -> Spawning {
        self.server.spawn(spec, true)
    }
}

fn failed(name: &str, call: &'static str) -> impl FnOnce(io::Error) -> SpawnError {
    let (name, call) = (name.to_owned(), call.to_owned());
    move |cause| SpawnError::Call { name, call, cause }
}

/// A forkserver that has died has closed its end.
fn not_adopted(name: &str) -> impl FnOnce(Errno) -> SpawnError {
    move |errno| {
        let closed = [Errno::EPIPE, Errno::ECONNRESET, Errno::ECONNREFUSED, Errno::ENOTCONN];
        if closed.contains(&errno) {
            let why = format!("its socket says {}", errno.desc());
            return SpawnError::ServerGone { name: name.to_owned(), why };
        }
        failed(name, "sendmsg(SCM_RIGHTS)")(errno.into())
    }
}

fn control_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
    let (ours, theirs) = socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC)?;
    // Whoever asks over it is told by the kernel, from the first message on (C17).
    setsockopt(&theirs, sockopt::PassCred, &true)?;
    Ok((ours, theirs))
}

/// The shared socket may be full for a moment when many actors start to spawn at once.
fn send_blocking(shared: std::os::fd::BorrowedFd<'_>, socket: &OwnedFd) -> Result<(), Errno> {
    let until = Instant::now() + Bounds::default().request;
    loop {
        match scm_rights::send(shared, b"adopt", &[socket.as_fd()]) {
            Ok(()) => return Ok(()),
            Err(Errno::EAGAIN) if Instant::now() < until => {
                let mut fds = [nix::poll::PollFd::new(shared, nix::poll::PollFlags::POLLOUT)];
                let _ready = nix::poll::poll(&mut fds, 10_u8);
            }
            Err(errno) => return Err(errno),
        }
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::fcntl::OFlag;
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?)
}

fn open_null() -> io::Result<OwnedFd> {
    let file = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    debug_assert!(file.as_raw_fd() >= 0);
    Ok(file.into())
}

/// What fails when the child shall inherit one of the three and it is closed here.
const INHERITED: [&str; 3] = ["dup(stdin)", "dup(stdout)", "dup(stderr)"];

/// How long the relay's last words may take at a close.
const RELAY_WAIT: Duration = Duration::from_millis(200);
