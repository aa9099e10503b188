//! The one thread that reads what children write and passes whole lines on (C8).
//!
//! It always reads, so no child is ever blocked by who does or doesn't read us; what our own
//! stdout and stderr don't take is dropped with a count. It exists while there is something to
//! read, and a moment longer while there is something to write. Who comes after it joins it, so
//! that however many there have been, at most one waits to be joined (C21).

mod sink;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::own_thread::OwnThread;
use crate::stdio::{Relay, Tail};
use crate::sys::{fds, sigpipe};
use sink::Sink;
pub use sink::write_stderr;

/// Our own output that lines are passed on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Stdout,
    Stderr,
}

/// The children of one forkserver: what they write is settled together.
#[derive(Debug)]
pub(crate) struct Group(u64);

impl Group {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Reads `pipe` until its writers have closed it, and passes its lines on.
    ///
    /// # Errors
    /// The call that failed, and what it said.
    pub(crate) fn add(
        &self,
        pipe: OwnedFd,
        relay: Relay,
        target: Target,
    ) -> Result<Arc<Tail>, (&'static str, io::Error)> {
        let tail = Arc::new(Tail::new(relay.keep));
        let source = Source {
            group: self.0,
            pipe: File::from(pipe),
            prefix: relay.prefix,
            target,
            tail: tail.clone(),
            partial: Vec::new(),
        };
        let mut state = state();
        let wake = match &state.running {
            Some(running) => running.wake.clone(),
            None => start(&mut state)?,
        };
        state.new.push(source);
        *state.open.entry(self.0).or_default() += 1;
        drop(state);
        // Full means awake.
        let _full = wake.write(1);
        Ok(tail)
    }

    /// Waits until all has been read, or `bound` is over: a stray may hold a pipe for ever; then
    /// it is closed. If nobody else relays, the thread is gone afterwards (C10).
    pub(crate) fn settle(&self, bound: Duration) {
        let state = state();
        let is_open = |state: &mut State| state.open.contains_key(&self.0);
        let mut state = wait_while(state, bound, is_open);
        if is_open(&mut state) {
            state.given_up.push(self.0);
            if let Some(running) = &state.running {
                let _full = running.wake.write(1);
            }
            state = wait_while(state, bound, is_open);
        }
        ended(state);
    }
}

/// Waits until all that this process relays has been read and written; at most `bound`.
pub(crate) fn settle_all(bound: Duration) {
    let state = state();
    if state.running.is_some() {
        ended(wait_while(state, bound, |state| !state.open.is_empty()));
    }
}

/// Waits until the thread is gone, unless it has sources left.
fn ended(state: MutexGuard<'static, State>) {
    let mut state =
        wait_while(state, LINGER * 2, |state| state.open.is_empty() && state.running.is_some());
    let thread = state.ended.take();
    drop(state);
    if let Some(thread) = thread {
        thread.join();
    }
}

fn wait_while(
    state: MutexGuard<'static, State>,
    bound: Duration,
    condition: impl FnMut(&mut State) -> bool,
) -> MutexGuard<'static, State> {
    CHANGED.wait_timeout_while(state, bound, condition).unwrap_or_else(PoisonError::into_inner).0
}

/// Lock order: innermost; nothing is called back while it is held.
#[derive(Debug)]
struct State {
    new: Vec<Source>,
    /// How many sources of a group are not at their end.
    open: BTreeMap<u64, usize>,
    /// Groups whose sources are closed without waiting for their end.
    given_up: Vec<u64>,
    running: Option<Running>,
    /// Has nothing left to do. Its stack is there until it is joined: by the next one, or by who
    /// waits for the end of all.
    ended: Option<OwnThread>,
}

#[derive(Debug)]
struct Running {
    wake: Arc<EventFd>,
    thread: OwnThread,
}

#[derive(Debug)]
struct Source {
    group: u64,
    pipe: File,
    prefix: String,
    target: Target,
    tail: Arc<Tail>,
    partial: Vec<u8>,
}

static STATE: Mutex<State> = Mutex::new(State {
    new: Vec::new(),
    open: BTreeMap::new(),
    given_up: Vec::new(),
    running: None,
    ended: None,
});

/// A source has come to its end, or the thread has.
static CHANGED: Condvar = Condvar::new();

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(state: &mut State) -> Result<Arc<EventFd>, (&'static str, io::Error)> {
    let call = |name| move |errno: Errno| (name, errno.into());
    let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
    let wake = Arc::new(wake.map_err(call("eventfd"))?);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(call("epoll_create1"))?;
    let event = EpollEvent::new(EpollFlags::EPOLLIN, WAKE);
    epoll.add(&wake, event).map_err(call("epoll_ctl"))?;
    let before = state.ended.take();
    let thread = OwnThread::spawn("hatchery-relay", {
        let wake = wake.clone();
        move || {
            if let Some(before) = before {
                // It is past its last look at the state, so this takes microseconds.
                before.join();
            }
            Reader::new(wake, epoll).run();
        }
    });
    let thread = thread.map_err(|error| ("pthread_create", error))?;
    state.running = Some(Running { wake: wake.clone(), thread });
    Ok(wake)
}

/// The thread's own.
struct Reader {
    wake: Arc<EventFd>,
    epoll: Epoll,
    sources: BTreeMap<u64, Source>,
    next: u64,
    out: Sink,
    err: Sink,
    buffer: Vec<u8>,
}

impl Reader {
    fn new(wake: Arc<EventFd>, epoll: Epoll) -> Self {
        let (out, err) = (Sink::new(fds::stdio(1)), Sink::new(fds::stdio(2)));
        let buffer = vec![0; CHUNK];
        Self { wake, epoll, sources: BTreeMap::new(), next: 0, out, err, buffer }
    }

    fn run(mut self) {
        // Whose output we write to may be gone, and the program may have SIGPIPE at its default.
        sigpipe::block();
        let mut idle_since = None;
        loop {
            self.take_in();
            let idle =
                self.sources.is_empty().then(|| *idle_since.get_or_insert_with(Instant::now));
            if idle.is_none() {
                idle_since = None;
            }
            let left = idle.map(|since| LINGER.saturating_sub(since.elapsed()));
            let is_written = self.out.is_empty() && self.err.is_empty();
            if left.is_some_and(|left| left.is_zero() || is_written) && self.leave() {
                return;
            }
            self.wait(left);
            self.out.write();
            self.err.write();
        }
    }

    /// Ends this thread's time, unless a source has come at this moment.
    fn leave(&self) -> bool {
        let mut state = state();
        if !state.new.is_empty() {
            return false;
        }
        if let Some(running) = state.running.take() {
            // Whoever was there before it was joined when it began.
            state.ended = Some(running.thread);
        }
        CHANGED.notify_all();
        true
    }

    /// New sources come in, given-up ones go.
    fn take_in(&mut self) {
        let _none = self.wake.read();
        let (new, given_up) = {
            let mut state = state();
            (std::mem::take(&mut state.new), std::mem::take(&mut state.given_up))
        };
        for source in new {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, self.next);
            // Out of memory or watches: it ends here, and its writer gets EPIPE instead of a hang.
            match self.epoll.add(&source.pipe, event) {
                Ok(()) => drop(self.sources.insert(self.next, source)),
                Err(_) => end(source),
            }
            self.next += 1;
        }
        if !given_up.is_empty() {
            let (gone, kept) = std::mem::take(&mut self.sources)
                .into_iter()
                .partition(|(_, source)| given_up.contains(&source.group));
            self.sources = kept;
            let gone: BTreeMap<u64, Source> = gone;
            gone.into_values().for_each(end);
        }
    }

    /// Waits for something to read or a sink that takes more, at most `bound`; reads a piece of
    /// each source that has something.
    fn wait(&mut self, bound: Option<Duration>) {
        let mut fds = vec![PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
        for sink in [&self.out, &self.err] {
            if !sink.is_empty() {
                fds.push(PollFd::new(sink.output, PollFlags::POLLOUT));
            }
        }
        let timeout = bound.map_or(PollTimeout::NONE, |bound| {
            PollTimeout::try_from(bound + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        // EINTR: look at everything again.
        let _count = poll(&mut fds, timeout);
        let mut events = [EpollEvent::empty(); 64];
        let ready = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        for event in &events[..ready] {
            let key = event.data();
            let Some(source) = self.sources.get_mut(&key) else { continue };
            let sink = match source.target {
                Target::Stdout => &mut self.out,
                Target::Stderr => &mut self.err,
            };
            if !source.read(&mut self.buffer, sink)
                && let Some(source) = self.sources.remove(&key)
            {
                end(source);
            }
        }
    }
}

/// A source is at its end: whoever waits for its tail has it.
fn end(source: Source) {
    let Source { group, pipe, tail, .. } = source;
    drop(pipe);
    tail.end();
    let mut state = state();
    if let Some(open) = state.open.get_mut(&group) {
        *open -= 1;
        if *open == 0 {
            state.open.remove(&group);
        }
    }
    CHANGED.notify_all();
}

impl Source {
    /// Reads once; says whether there may be more.
    fn read(&mut self, buffer: &mut [u8], sink: &mut Sink) -> bool {
        match self.pipe.read(buffer) {
            Ok(length) if length > 0 => {
                self.feed(&buffer[..length], sink);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Ok(_) | Err(_) => {
                self.cut(sink);
                false
            }
        }
    }

    fn feed(&mut self, mut bytes: &[u8], sink: &mut Sink) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            if self.partial.is_empty() {
                self.line(&bytes[..end], sink);
            } else {
                self.partial.extend_from_slice(&bytes[..end]);
                self.end_of_line(sink);
            }
            bytes = &bytes[end + 1..];
        }
        self.partial.extend_from_slice(bytes);
        if self.partial.len() > MAX_LINE {
            self.cut(sink);
        }
    }

    /// What there is of a line counts as one.
    fn cut(&mut self, sink: &mut Sink) {
        if !self.partial.is_empty() {
            self.end_of_line(sink);
        }
    }

    fn end_of_line(&mut self, sink: &mut Sink) {
        let line = std::mem::take(&mut self.partial);
        self.line(&line, sink);
    }

    fn line(&self, line: &[u8], sink: &mut Sink) {
        self.tail.push(line);
        let from_below = line
            .strip_prefix(b"[")
            .and_then(|rest| rest.strip_prefix(self.prefix.as_bytes()))
            .is_some_and(|rest| rest.starts_with(b"/"));
        sink.push(if from_below { "" } else { &self.prefix }, line);
    }
}

/// The eventfd's place among the sources' numbers.
const WAKE: u64 = u64::MAX;
const CHUNK: usize = 16 * 1024;
/// A line without an end is cut here.
const MAX_LINE: usize = 128 * 1024;
/// How long the last words may wait for a reader of ours that is slow.
const LINGER: Duration = Duration::from_millis(100);
