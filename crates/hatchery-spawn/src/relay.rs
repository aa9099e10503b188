//! The one thread that reads what children write and passes whole lines on (C8).
//!
//! It always reads, so no child is ever blocked by who does or doesn't read us; what our own
//! stdout and stderr don't take is dropped with a count. It exists while there is something to
//! read.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::own_thread::OwnThread;
use crate::stdio::{Relay, Tail};
use crate::sys::fds;

/// Our own output that lines are passed on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Stdout,
    Stderr,
}

/// Reads `pipe` until its writers have closed it, and passes its lines on.
pub(crate) fn add(pipe: OwnedFd, relay: Relay, target: Target) -> io::Result<Arc<Tail>> {
    let tail = Arc::new(Tail::new(relay.keep));
    let pipe = std::fs::File::from(pipe);
    let source =
        Source { pipe, prefix: relay.prefix, target, tail: tail.clone(), partial: Vec::new() };
    let mut state = state();
    state.new.push(source);
    match &state.running {
        Some(running) => running.wake.write(1).map(drop)?,
        None => {
            let wake =
                Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
            let thread = OwnThread::spawn("hatchery-relay", {
                let wake = wake.clone();
                move || run(&wake)
            });
            match thread {
                Ok(thread) => state.running = Some(Running { wake, thread: Some(thread) }),
                Err(error) => {
                    state.new.clear();
                    return Err(error);
                }
            }
        }
    }
    Ok(tail)
}

/// Waits until the thread has ended, if nothing is left to relay; at most `bound`.
pub(crate) fn settle(bound: Duration) {
    let until = Instant::now() + bound;
    loop {
        let ended = {
            let mut state = state();
            std::mem::take(&mut state.ended)
        };
        let any = !ended.is_empty();
        for thread in ended {
            thread.join();
        }
        if any || state().running.is_none() || Instant::now() > until {
            return;
        }
        std::thread::yield_now();
    }
}

#[derive(Debug)]
struct State {
    new: Vec<Source>,
    running: Option<Running>,
    ended: Vec<OwnThread>,
}

#[derive(Debug)]
struct Running {
    wake: Arc<EventFd>,
    thread: Option<OwnThread>,
}

#[derive(Debug)]
struct Source {
    pipe: std::fs::File,
    prefix: String,
    target: Target,
    tail: Arc<Tail>,
    partial: Vec<u8>,
}

/// What waits to be written to one of our own outputs.
#[derive(Debug, Default)]
struct Sink {
    queue: Vec<u8>,
    dropped: u64,
}

static STATE: Mutex<State> =
    Mutex::new(State { new: Vec::new(), running: None, ended: Vec::new() });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(wake: &EventFd) {
    let mut sources: Vec<Source> = Vec::new();
    let (mut out, mut err) = (Sink::default(), Sink::default());
    let mut buffer = vec![0; CHUNK];
    loop {
        let _none = wake.read();
        {
            let mut state = state();
            sources.append(&mut state.new);
            if sources.is_empty() {
                // The last words, if they are taken at once; then this thread is over.
                out.write(fds::stdio(1));
                err.write(fds::stdio(2));
                if let Some(mut running) = state.running.take() {
                    state.ended.extend(running.thread.take());
                }
                return;
            }
        }
        let ready = wait(wake, &sources, &out, &err);
        out.write(fds::stdio(1));
        err.write(fds::stdio(2));
        let mut at = 0;
        sources.retain_mut(|source| {
            let readable = ready.get(at).copied().unwrap_or(false);
            at += 1;
            !readable || source.read(&mut buffer, &mut out, &mut err)
        });
    }
}

/// Waits for a source, a sink that is waited for, or a new source; says which sources are ready.
fn wait(wake: &EventFd, sources: &[Source], out: &Sink, err: &Sink) -> Vec<bool> {
    let mut fds: Vec<PollFd<'_>> =
        sources.iter().map(|source| PollFd::new(source.pipe.as_fd(), PollFlags::POLLIN)).collect();
    fds.push(PollFd::new(wake.as_fd(), PollFlags::POLLIN));
    for (sink, number) in [(out, 1), (err, 2)] {
        if !sink.queue.is_empty() {
            fds.push(PollFd::new(fds::stdio(number), PollFlags::POLLOUT));
        }
    }
    if poll(&mut fds, PollTimeout::NONE).is_err() {
        return Vec::new();
    }
    fds[..sources.len()].iter().map(|fd| fd.revents().is_some_and(|got| !got.is_empty())).collect()
}

impl Source {
    /// Reads once; says whether there may be more.
    fn read(&mut self, buffer: &mut [u8], out: &mut Sink, err: &mut Sink) -> bool {
        let sink = match self.target {
            Target::Stdout => out,
            Target::Stderr => err,
        };
        match self.pipe.read(buffer) {
            Ok(length) if length > 0 => {
                self.partial.extend_from_slice(&buffer[..length]);
                while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = self.partial.drain(..=end).collect();
                    self.line(&line[..end], sink);
                }
                if self.partial.len() > MAX_LINE {
                    let line = std::mem::take(&mut self.partial);
                    self.line(&line, sink);
                }
                true
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Ok(_) | Err(_) => {
                let line = std::mem::take(&mut self.partial);
                if !line.is_empty() {
                    self.line(&line, sink);
                }
                self.tail.end();
                false
            }
        }
    }

    fn line(&self, line: &[u8], sink: &mut Sink) {
        self.tail.push(line);
        let from_below = line
            .strip_prefix(b"[")
            .and_then(|rest| rest.strip_prefix(self.prefix.as_bytes()))
            .is_some_and(|rest| rest.starts_with(b"/"));
        let prefix = if from_below { String::new() } else { format!("[{}] ", self.prefix) };
        sink.push(prefix.as_bytes(), line);
    }
}

impl Sink {
    fn push(&mut self, prefix: &[u8], line: &[u8]) {
        if self.queue.len() + prefix.len() + line.len() > MAX_QUEUE {
            self.dropped += 1;
            return;
        }
        if self.dropped > 0 {
            let note = format!("[hatchery] {} lines were dropped\n", self.dropped);
            self.queue.extend_from_slice(note.as_bytes());
            self.dropped = 0;
        }
        self.queue.extend_from_slice(prefix);
        self.queue.extend_from_slice(line);
        self.queue.push(b'\n');
    }

    /// Writes what our output takes without waiting. It is shared with whoever started us, so it
    /// isn't made non-blocking: a pipe that polls writable has room for `PIPE_BUF` bytes.
    fn write(&mut self, output: BorrowedFd<'_>) {
        while !self.queue.is_empty() {
            let mut fds = [PollFd::new(output, PollFlags::POLLOUT)];
            match poll(&mut fds, PollTimeout::ZERO) {
                Ok(1..) => {}
                Ok(_) | Err(_) => return,
            }
            let length = self.queue.len().min(PIPE_BUF);
            match nix::unistd::write(output, &self.queue[..length]) {
                Ok(written) => drop(self.queue.drain(..written)),
                Err(nix::errno::Errno::EINTR) => {}
                // Our reader is gone: nobody misses the rest.
                Err(_) => self.queue.clear(),
            }
        }
    }
}

const CHUNK: usize = 16 * 1024;
const PIPE_BUF: usize = 4096;
/// A line without an end is cut here.
const MAX_LINE: usize = 256 * 1024;
/// What waits for a reader of ours at most.
const MAX_QUEUE: usize = 1 << 20;
