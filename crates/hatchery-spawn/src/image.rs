//! What this image is, asked before `main`: the program itself, a forkserver, or an exec'd actor.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{BorrowedFd, IntoRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::MFdFlags;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::getppid;

use crate::error::SpawnError;
use crate::forkserver::Forkserver;
use crate::forkserver::server;
use crate::forkserver::wire::{Request, Run};
use crate::sys::{env, exit, fds, overflow, owner, rights, sigaction, title};

/// From birth to exit code: 0 to 255.
pub type ActorMain = fn(Birth) -> i32;

/// A main of one's own, found by name in every process of the image. Submit it with
/// [`inventory::submit!`].
#[derive(Debug)]
pub struct Main {
    /// What [`Spec::main`](crate::Spec::main) names.
    pub name: &'static str,
    /// What runs.
    pub run: ActorMain,
}

inventory::collect!(Main);

/// State that is warmed up once, in the forkserver, and shared copy-on-write by all children that
/// are forked. Use [`preload!`](crate::preload!).
///
/// It runs on a thread of its own that has ended before the first fork, so that nothing that is
/// kept for each thread, such as hash keys, is shared. What it leaves in statics is.
/// All preloads together may take [`Bounds::warm_up`](crate::Bounds::warm_up); starts wait for them.
/// A preload that panics, hangs, ends its process or leaves a thread running is an error of every
/// start, [`SpawnError::Preload`](crate::SpawnError::Preload), with its name.
#[derive(Debug)]
pub struct Preload {
    /// For errors.
    pub name: &'static str,
    /// What runs.
    pub run: fn(),
}

inventory::collect!(Preload);

/// Runs a function once in the forkserver; see [`Preload`].
#[macro_export]
macro_rules! preload {
    ($run:path) => {
        $crate::inventory::submit! {
            $crate::Preload { name: stringify!($run), run: $run }
        }
    };
}

/// What a main of one's own is given.
#[derive(Debug)]
pub struct Birth {
    /// The name it was given.
    pub name: String,
    /// The bytes it was given.
    pub payload: Vec<u8>,
    /// Its end of the channel, if one was given.
    pub channel: Option<UnixStream>,
    /// The other fds it was given, in order.
    pub fds: Vec<OwnedFd>,
    /// How it came to life.
    pub how: BirthKind,
}

/// How an actor came to life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BirthKind {
    /// Forked, and nothing else.
    Forked,
    /// Forked, then a fresh image.
    Executed,
    /// A thread.
    Thread,
}

impl Birth {
    /// The tree's forkserver, for children of this actor's own. A thread uses its process's.
    ///
    /// # Errors
    /// As [`Forkserver::inherited`].
    pub fn forkserver(&self) -> Result<Option<Forkserver>, SpawnError> {
        match self.how {
            BirthKind::Thread => Ok(None),
            BirthKind::Forked | BirthKind::Executed => Forkserver::inherited(),
        }
    }
}

/// Finds a main by name.
pub(crate) fn find_main(name: &str) -> Result<ActorMain, Errno> {
    let main = inventory::iter::<Main>.into_iter().find(|main| main.name == name);
    main.map(|main| main.run).ok_or(Errno::ENOENT)
}

/// Runs a main; its panic is an exit code of 101, as in any Rust program.
pub(crate) fn run_main(run: ActorMain, birth: Birth) -> i32 {
    catch_unwind(AssertUnwindSafe(|| run(birth))).unwrap_or(PANICKED)
}

/// Flushes what std buffers, then ends the process. At most twice [`LAST_WORDS`], whatever its
/// other threads do and whoever doesn't read us (H8).
pub(crate) fn leave(code: i32) -> ! {
    flush(LAST_WORDS);
    // The last words of its children, which are gone; a stray of theirs may hold a pipe.
    if !owner::is_copy() {
        crate::relay::settle_all(LAST_WORDS);
    }
    exit::exit_now(code)
}

fn flush(bound: Duration) {
    let flush = || drop(std::io::stdout().flush());
    let mut output = [PollFd::new(fds::stdio(1), PollFlags::POLLOUT)];
    // `.`, `..` and this thread: nobody else holds the lock; and a line fits where there is room.
    let is_alone = std::fs::metadata("/proc/self/task").is_ok_and(|task| task.nlink() == 3);
    if is_alone && matches!(poll(&mut output, PollTimeout::ZERO), Ok(1..)) {
        return flush();
    }
    let (tell, told) = mpsc::channel();
    let flusher = std::thread::Builder::new().spawn(move || {
        flush();
        // Nobody waits any more if it took too long.
        let _late = tell.send(());
    });
    if flusher.is_ok() {
        // It is left behind where it waits, and ends with the process.
        let _late = told.recv_timeout(bound);
    }
}

/// Whether the constructor has run: if not, an exec of this image would run `main` again.
pub(crate) fn is_prepared() -> bool {
    PREPARED.load(Ordering::Relaxed)
}

/// The shared socket of an actor's process; -1 in any other.
pub(crate) fn shared_socket() -> i32 {
    SHARED.load(Ordering::Relaxed)
}

/// Remembers the shared socket of this actor's process.
pub(crate) fn set_shared_socket(fd: i32) {
    SHARED.store(fd, Ordering::Relaxed);
}

/// Called by the constructor, on the only thread, before std's own start.
pub(crate) fn before_main() {
    PREPARED.store(true, Ordering::Relaxed);
    if rights::is_raised() {
        // Whoever has set the environment may not have the rights that this exec gave.
        return;
    }
    if let Some(root) = take(SERVER_MARKER) {
        if !is_of_parent(fds::stdio(0)) {
            refuse(SERVER_MARKER, fds::stdio(0));
        }
        if std::env::var_os(BIND_NOW.0).is_some_and(|value| value == BIND_NOW.1) {
            env::remove(OsStr::new(BIND_NOW.0));
        }
        let (root, tree) = root.split_once('.').unwrap_or((&root, ""));
        // What it inherits are the root's arguments, so that they are its children's too.
        title::claim();
        title::set("hatchery:forkserver");
        let _shown = nix::sys::prctl::set_name(c"hatchery:server");
        server::main(root.parse().unwrap_or(0), tree);
    }
    if let Some(birth) = take(BIRTH_MARKER) {
        executed(&birth);
    }
}

/// Whether a socket's other end was made by the process that has started this one: nobody else is
/// served, whatever the environment says.
fn is_of_parent(socket: BorrowedFd<'_>) -> bool {
    maker_of(socket) == Some(getppid().as_raw())
}

fn maker_of(socket: BorrowedFd<'_>) -> Option<i32> {
    getsockopt(&socket, sockopt::PeerCredentials).ok().map(|maker| maker.pid())
}

/// The environment says what is not so. To run the program's own main would be no better: who has
/// set it wanted none.
fn refuse(marker: &str, socket: BorrowedFd<'_>) -> ! {
    // Where it is a socket the parent has just died, as a rule: nobody needs to be told.
    if maker_of(socket).is_none_or(|maker| maker == 0) {
        let text = format!(
            "{marker} is set, but this program was not started by hatchery: remove it from the \
             environment"
        );
        crate::relay::write_stderr(&text, LAST_WORDS);
    }
    exit::exit_now(UNFIT)
}

/// An actor in a fresh image.
fn executed(marker: &str) -> ! {
    let code = parse(marker).and_then(|(main, birth)| {
        // An exec gives a process its file's name.
        let name = format!("hatchery:{}", birth.name);
        title::claim();
        title::set(&name);
        let name = CString::new(name).ok()?;
        nix::sys::prctl::set_name(&name).ok()?;
        sigaction::ignore_sigpipe();
        let _its_own = owner::claim();
        overflow::install().ok()?;
        Some(run_main(find_main(&main).ok()?, birth))
    });
    leave(code.unwrap_or(UNFIT))
}

/// How an exec'd actor is told what it is, as an entry of its environment: where its fds are by a variable (channel, shared, first,
/// count, memory), the rest by memory that only it has.
pub(crate) fn describe(request: &Request, slots: &crate::prelude::Slots) -> Result<CString, Errno> {
    let memory = nix::sys::memfd::memfd_create(c"hatchery-birth", MFdFlags::empty())?;
    let told = Request {
        run: request.run.clone(),
        name: request.name.clone(),
        payload: request.payload.clone(),
        ..Request::default()
    };
    let mut file = File::from(memory);
    file.write_all(&told.encode())
        .and_then(|()| file.rewind())
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    let channel = slots.channel.unwrap_or(-1);
    let shared = slots.shared.unwrap_or(-1);
    let memory = file.into_raw_fd();
    let text =
        format!("{BIRTH_MARKER}={channel},{shared},{},{},{memory}", slots.first, slots.count);
    CString::new(text).map_err(|_| Errno::EINVAL)
}

fn parse(marker: &str) -> Option<(String, Birth)> {
    let numbers: Vec<i32> =
        marker.split(',').map(|number| number.parse().ok()).collect::<Option<_>>()?;
    let [channel, shared, first, count, memory] = numbers[..] else { return None };
    if !is_of_parent(fds::shared(shared)) {
        refuse(BIRTH_MARKER, fds::shared(shared));
    }
    let mut told = Vec::new();
    File::from(fds::adopt(memory).ok()?).read_to_end(&mut told).ok()?;
    let told = Request::decode(&told).ok()?;
    let Run::Image(main) = told.run else { return None };
    for fd in 3..first + count {
        fds::close_on_exec(fd);
    }
    set_shared_socket(shared);
    let channel = (channel >= 0).then(|| fds::adopt(channel).ok().map(UnixStream::from)).flatten();
    let fds = (first..first + count).map(|fd| fds::adopt(fd).ok()).collect::<Option<Vec<_>>>()?;
    let (name, payload) = (told.name, told.payload);
    Some((main, Birth { name, payload, channel, fds, how: BirthKind::Executed }))
}

/// Takes a marker out of the environment, so that no child of ours sees it.
fn take(key: &str) -> Option<String> {
    let value = std::env::var(key).ok()?;
    env::remove(OsStr::new(key));
    Some(value)
}

static PREPARED: AtomicBool = AtomicBool::new(false);
static SHARED: AtomicI32 = AtomicI32::new(-1);

/// Tells an image that it is a forkserver, and whose: the root's pid.
pub(crate) const SERVER_MARKER: &str = "HATCHERY_FORKSERVER";
/// Has the dynamic linker look up every symbol when the forkserver starts, rather than one by one
/// in each of its children. Any value does; by this one we know it as ours.
pub(crate) const BIND_NOW: (&str, &str) = ("LD_BIND_NOW", "hatchery");
/// Tells an image that it is an actor; see [`describe`].
pub(crate) const BIRTH_MARKER: &str = "HATCHERY_BIRTH";

const PANICKED: i32 = 101;
/// What was not written by then is not waited for.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// EX_SOFTWARE: what was asked for isn't in this image.
const UNFIT: i32 = 70;
