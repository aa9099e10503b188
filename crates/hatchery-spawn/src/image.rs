//! What this image is, asked before `main`: the program itself, a forkserver, or an exec'd actor.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use nix::errno::Errno;

use crate::forkserver::Forkserver;
use crate::forkserver::server;
use crate::sys::{env, exit, fds, overflow, sigaction};

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
/// A preload that leaves a thread running is an error at the first start.
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
    #[must_use]
    pub fn forkserver(&self) -> Option<Forkserver> {
        match self.how {
            BirthKind::Thread => None,
            BirthKind::Forked | BirthKind::Executed => Forkserver::inherited(),
        }
    }
}

/// Runs a main by name; its panic is an exit code of 101, as in any Rust program.
pub(crate) fn run_main(name: &str, birth: Birth) -> Result<i32, Errno> {
    let main = inventory::iter::<Main>.into_iter().find(|main| main.name == name);
    let run = main.ok_or(Errno::ENOENT)?.run;
    Ok(catch_unwind(AssertUnwindSafe(|| run(birth))).unwrap_or(PANICKED))
}

/// Flushes what std buffers, then ends the process.
pub(crate) fn leave(code: i32) -> ! {
    use std::io::Write as _;
    // Stdout may be closed or full for ever; a line buffer holds little, and nobody is waiting.
    let _lost = std::io::stdout().flush();
    exit::exit_now(code)
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
    if let Some(root) = take(SERVER_MARKER) {
        server::main(root.parse().unwrap_or(0));
    }
    if let Some(birth) = take(BIRTH_MARKER) {
        executed(&birth);
    }
}

/// An actor in a fresh image.
fn executed(marker: &str) -> ! {
    let code = parse(marker).and_then(|(main, birth)| {
        sigaction::ignore_sigpipe();
        overflow::install().ok()?;
        run_main(&main, birth).ok()
    });
    leave(code.unwrap_or(UNFIT))
}

/// How an exec'd actor is told what it is: channel, shared, first, count; main, name and payload
/// in hexadecimal digits.
pub(crate) fn describe(
    main: &str,
    name: &str,
    slots: &crate::prelude::Slots,
    payload: &[u8],
) -> String {
    use std::fmt::Write as _;
    let channel = slots.channel.unwrap_or(-1);
    let shared = slots.shared.unwrap_or(-1);
    let mut text = format!("{channel},{shared},{},{}", slots.first, slots.count);
    for bytes in [main.as_bytes(), name.as_bytes(), payload] {
        text.push(',');
        for byte in bytes {
            // Writing to a String can't fail.
            let _infallible = write!(text, "{byte:02x}");
        }
    }
    text
}

fn parse(marker: &str) -> Option<(String, Birth)> {
    let mut parts = marker.split(',');
    let mut number = || parts.next()?.parse::<i32>().ok();
    let (channel, shared, first, count) = (number()?, number()?, number()?, number()?);
    let mut bytes = || unhex(parts.next()?);
    let (main, name, payload) = (bytes()?, bytes()?, bytes()?);
    let (main, name) = (String::from_utf8(main).ok()?, String::from_utf8(name).ok()?);
    for fd in 3..first + count {
        fds::close_on_exec(fd);
    }
    set_shared_socket(shared);
    let channel = (channel >= 0).then(|| fds::adopt(channel).ok().map(UnixStream::from)).flatten();
    let fds = (first..first + count).map(|fd| fds::adopt(fd).ok()).collect::<Option<Vec<_>>>()?;
    Some((main, Birth { name, payload, channel, fds, how: BirthKind::Executed }))
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    (0..digits.len() / 2)
        .map(|at| u8::from_str_radix(digits.get(at * 2..at * 2 + 2)?, 16).ok())
        .collect()
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
/// Tells an image that it is an actor; see [`describe`].
pub(crate) const BIRTH_MARKER: &str = "HATCHERY_BIRTH";

const PANICKED: i32 = 101;
/// EX_SOFTWARE: what was asked for isn't in this image.
const UNFIT: i32 = 70;
