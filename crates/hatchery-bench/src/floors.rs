//! What the kernel asks for a process: bare, with a tokio runtime in it, and as a new image.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;

use crate::figures::Samples;
use crate::pin::Place;
use crate::report::{Unit, human};
use crate::worker::Mode;
use crate::{Outcome, proc, sockets};

/// A small process with one thread that forks when it is asked to.
pub(crate) struct Forks {
    socket: UnixStream,
    child: Child,
}

impl Forks {
    /// On one core, or wherever the kernel puts it and its children.
    pub(crate) fn start(place: Place) -> Outcome<Self> {
        let (socket, child) = sockets::start(Mode::Fork, place)?;
        Ok(Self { socket, child })
    }

    /// Fork, `_exit`, `waitid`: nothing else.
    pub(crate) fn bare(&mut self, count: usize) -> Outcome<Samples> {
        self.ask(BARE, count)
    }

    /// From the fork to a message from a tokio runtime in the child.
    pub(crate) fn with_tokio(&mut self, count: usize) -> Outcome<Samples> {
        self.ask(WITH_TOKIO, count)
    }

    /// How large the process is that forks: only what is its own is copied, the rest is its image.
    pub(crate) fn size(&self) -> String {
        let Some((all, own)) = proc::resident(self.child.id()) else {
            return "forked from a process whose size can't be read".to_owned();
        };
        let [all, own] = [all, own].map(|bytes| human(bytes, Unit::Bytes));
        format!("forked from a process of {all}, {own} of it its own")
    }

    fn ask(&mut self, what: u8, count: usize) -> Outcome<Samples> {
        let mut samples = Samples::default();
        for _ in 0..count {
            self.socket.write_all(&[what])?;
            let mut nanos = [0; 8];
            self.socket.read_exact(&mut nanos)?;
            samples.span(Duration::from_nanos(u64::from_ne_bytes(nanos)));
        }
        Ok(samples)
    }

    pub(crate) fn end(mut self) -> Outcome {
        drop(self.socket);
        self.child.wait()?;
        Ok(())
    }
}

/// The other side of that.
pub(crate) fn serve_forks() -> Outcome {
    let mut socket = sockets::given()?;
    let mut what = [0];
    while socket.read_exact(&mut what).is_ok() {
        let span = if what == [BARE] { bare()? } else { with_message()? };
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        socket.write_all(&nanos.to_ne_bytes())?;
    }
    Ok(())
}

fn bare() -> Outcome<Duration> {
    let (child, began) = hatchery_spawn::fork_floor(|| {})?;
    reap(child)?;
    Ok(began.elapsed())
}

fn with_message() -> Outcome<Duration> {
    let began = Instant::now();
    let (mut ours, theirs) = UnixStream::pair()?;
    let paired = began.elapsed();
    let (child, began) = hatchery_spawn::fork_floor(move || one_message(theirs))?;
    let said = ours.read(&mut [0])?;
    let span = paired + began.elapsed();
    reap(child)?;
    if said == 1 { Ok(span) } else { Err("a child that said nothing".into()) }
}

fn reap(child: u32) -> Outcome {
    waitid(Id::Pid(Pid::from_raw(child.cast_signed())), WaitPidFlag::WEXITED)?;
    Ok(())
}

fn one_message(socket: UnixStream) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        let nonblocking = socket.set_nonblocking(true);
        if let (Ok(()), Ok(mut socket)) = (nonblocking, tokio::net::UnixStream::from_std(socket)) {
            // The reader is the benchmark itself.
            let _written = socket.write_all(b"x").await;
        }
    });
}

/// This image started anew until its first message: `posix_spawn` is what the standard library
/// does here.
pub(crate) fn new_images(count: usize) -> Outcome<Samples> {
    let mut samples = Samples::default();
    for _ in 0..count {
        let began = Instant::now();
        let (mut socket, mut child) = sockets::start(Mode::Hello, Place::One)?;
        socket.read_exact(&mut [0])?;
        samples.span(began.elapsed());
        child.wait()?;
    }
    Ok(samples)
}

const BARE: u8 = 0;
const WITH_TOKIO: u8 = 1;
