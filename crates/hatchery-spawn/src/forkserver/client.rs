//! The requesting side: one thread owns the control socket, everybody else waits on channels.
//!
//! It needs no runtime: waiters may live in any, and a status is never lost because a runtime has
//! ended. Requests are written by who makes them while few are under way; the rest queues here.
//!
//! Lock order: `state` is innermost; nothing is awaited or called back while it is held.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::sync::{oneshot, watch};

use super::environment::MAX_ENVIRONMENT;
use super::gone::Gone;
use super::memory;
use super::present::OwnStatus;
use super::rights::sent_as;
use super::strays;
use super::wire::{self, Answer, MAX_BYTES, MAX_ELSEWHERE};
use crate::child::{BirthFailure, Child, Core, Ties, read_birth};
use crate::error::{PreloadError, PreloadFailure, SpawnError};
use crate::exit::Exit;
use crate::grip::Grip;
use crate::notice;
use crate::own_thread::OwnThread;
use crate::stdio::Tail;
use crate::sys::pidfd::Pidfd;
use crate::sys::scm_rights::{self, Received};

/// Who waits for a child, and what belongs to it.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) name: String,
    pub(crate) answer: oneshot::Sender<Result<Child, SpawnError>>,
    /// When it was asked for, and how long the forkserver may say nothing from then on.
    pub(crate) since: Instant,
    pub(crate) bound: Duration,
    /// How long it may then take until it is another program.
    pub(crate) exec: Duration,
    /// The reading end of the birth pipe. Shared, so that polling it needs no copy of the fd.
    pub(crate) birth: Arc<OwnedFd>,
    /// The forkserver is told when it is born.
    pub(crate) is_told: bool,
    /// Nobody but the birth pipe says when that is.
    pub(crate) is_silent: bool,
    /// Another image comes after the fork: it is only there when the birth pipe says so.
    pub(crate) execs: bool,
    pub(crate) ties: Ties,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) tail: Option<Arc<Tail>>,
}

/// One connection to the forkserver.
#[derive(Debug)]
pub(crate) struct Client {
    socket: OwnedFd,
    wake: EventFd,
    tree: Option<String>,
    /// Children are reached by pidfds; else all goes through the forkserver.
    pidfds: AtomicBool,
    state: Mutex<State>,
    /// For what each request says of this process.
    pub(crate) status: OwnStatus,
    lost: watch::Sender<Option<Gone>>,
    /// How long the program's preloads may take.
    warm_up: Duration,
    /// For its children, which must not keep it.
    me: Weak<Self>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
    queue: VecDeque<Outgoing>,
    /// For children that can't be reached from here: by number, and each once.
    signals: VecDeque<(u64, u8)>,
    /// The variables that were told last, or are about to be, before all requests after them.
    environment: Option<Arc<[u8]>>,
    /// Requests that were sent and not answered.
    outstanding: usize,
    /// When the forkserver last said something: a long queue is no silence.
    heard: Option<Instant>,
    /// Too many fds are in flight: nothing more is asked before an answer says that some of ours
    /// landed, or, for they may be others' of this user, until then.
    crowded: Option<Instant>,
    /// The preload that the forkserver runs before it can fork, and since when it runs preloads.
    warming: Option<(String, Instant)>,
    children: BTreeMap<u64, Arc<Core>>,
    /// Children whose births are under way and are told about, and whether others wait for them.
    births: BTreeMap<u64, bool>,
    /// Children that are born, to be told with the next request; the last few.
    born: VecDeque<u64>,
    /// The same, to be told at once.
    awaited: VecDeque<u64>,
    /// Forked, and on their way to another image.
    executing: Vec<(Waiting, Arc<Core>)>,
    thread: Option<OwnThread>,
    closing: bool,
}

#[derive(Debug)]
struct Outgoing {
    /// That of a request; variables have none.
    number: Option<u64>,
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    /// Who is told as born by it.
    born: Vec<u64>,
}

impl Client {
    /// `tree` is told by the root: it looks after the forkserver's tree when that is gone.
    ///
    /// # Errors
    /// The call that failed, and what it said.
    pub(crate) fn start(
        socket: OwnedFd,
        tree: Option<String>,
        warm_up: Duration,
    ) -> Result<Arc<Self>, (&'static str, io::Error)> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let wake = wake.map_err(|errno| ("eventfd", errno.into()))?;
        let (lost, _) = watch::channel(None);
        let client = Arc::new_cyclic(|me| Self {
            socket,
            wake,
            tree,
            pidfds: AtomicBool::new(true),
            state: Mutex::default(),
            status: OwnStatus::open(),
            lost,
            warm_up,
            me: me.clone(),
        });
        let thread = OwnThread::spawn("hatchery-spawn", {
            let client = client.clone();
            move || client.run()
        });
        client.state().thread = Some(thread.map_err(|error| ("pthread_create", error))?);
        Ok(client)
    }

    /// Sends a request, or queues it behind others. `encode` is told its number, and who is born. The
    /// variables that go with it are told before it, unless they were told last.
    pub(crate) fn request(
        &self,
        waiting: Waiting,
        mut fds: Vec<OwnedFd>,
        environment: Option<Arc<[u8]>>,
        encode: impl FnOnce(u64, Vec<u64>) -> Vec<u8>,
    ) {
        let mut state = self.state();
        let lost = self.lost.borrow().clone();
        if let Some(gone) = lost.or_else(|| state.closing.then(|| "closed".into())) {
            drop(state);
            return waiting.fail(|name| gone.error(name));
        }
        let number = state.next;
        state.next += 1;
        let born: Vec<u64> = state.born.drain(..).collect();
        let mut bytes = encode(number, born.clone());
        if bytes.len() > MAX_BYTES {
            match elsewhere(&waiting.name, &bytes, MAX_ELSEWHERE) {
                Ok(memory) => fds.push(memory),
                Err(error) => {
                    state.untold(born);
                    drop(state);
                    return waiting.fail(|_| error);
                }
            }
            bytes = wire::encode_elsewhere(&bytes);
        }
        if let Some(texts) = environment.filter(|texts| state.environment.as_ref() != Some(texts)) {
            match Outgoing::variables(&waiting.name, &texts) {
                Ok(told) => state.queue.push_back(told),
                Err(error) => {
                    state.untold(born);
                    drop(state);
                    return waiting.fail(|_| error);
                }
            }
            state.environment = Some(texts);
        }
        state.waiting.insert(number, waiting);
        state.queue.push_back(Outgoing { number: Some(number), bytes, fds, born });
        let refused = self.send_queued(&mut state);
        drop(state);
        refuse(refused);
        // The thread has a new deadline, and maybe something to send.
        let _full = self.wake.write(1);
    }

    /// Whether children are reached by pidfds, as far as is known.
    pub(crate) fn has_pidfds(&self) -> bool {
        self.pidfds.load(Ordering::Relaxed)
    }

    /// There are none to be had; told once, at the root.
    pub(crate) fn without_pidfds(&self) {
        if self.pidfds.swap(false, Ordering::Relaxed) && self.tree.is_some() {
            notice::post(|| {
                tracing::warn!(
                    "no pidfd_open here: signals to actors, and the forkserver's own watch, go \
                     without pidfds"
                );
            });
        }
    }

    /// Why the forkserver is gone, if it is.
    pub(crate) fn lost(&self) -> watch::Receiver<Option<Gone>> {
        self.lost.subscribe()
    }

    /// Ends the thread and the connection; waits for the thread.
    pub(crate) fn close(&self) {
        let thread = {
            let mut state = self.state();
            state.closing = true;
            state.thread.take()
        };
        let _full = self.wake.write(1);
        if let Some(thread) = thread {
            thread.join();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut buffer = vec![0; MAX_BYTES + 1];
        loop {
            if self.state().closing {
                return self.gone("closed".into());
            }
            let readable = self.wait();
            let _none = self.wake.read();
            // Before it is read what has come: a thread that gets no processor must not take that for
            // the other's silence.
            let at = Instant::now();
            if readable && let Err(gone) = self.read(&mut buffer) {
                return self.gone(gone);
            }
            let mut state = self.state();
            if let Some(gone) = state.overdue_preload(self.warm_up) {
                drop(state);
                return self.gone(gone);
            }
            let refused = self.send_queued(&mut state);
            let expired = state.expired(at);
            let born = state.executed();
            drop(state);
            refuse(refused);
            for waiting in expired {
                let waited = waiting.bound;
                waiting.fail(|name| SpawnError::Unanswered { name, waited });
            }
            for (waiting, core) in born {
                finish(waiting, core);
            }
        }
    }

    /// Waits for the socket, for somebody's call, for a birth or a deadline.
    fn wait(&self) -> bool {
        let (births, may_send, until) = {
            let state = self.state();
            let births: Vec<Arc<OwnedFd>> =
                state.executing.iter().map(|(waiting, _)| waiting.birth.clone()).collect();
            let may_ask = !state.queue.is_empty() && self.may_ask(&state);
            let may_send = may_ask || !state.signals.is_empty() || !state.awaited.is_empty();
            (births, may_send, state.next_deadline(self.warm_up))
        };
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, may_send);
        let mut fds = vec![
            PollFd::new(self.socket.as_fd(), flags),
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(births.iter().map(|birth| PollFd::new(birth.as_fd(), PollFlags::POLLIN)));
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        // EINTR: look at everything again.
        let _count = poll(&mut fds, timeout);
        let got = fds[0].revents().unwrap_or(PollFlags::empty());
        got.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR)
    }

    fn read(&self, buffer: &mut [u8]) -> Result<(), Gone> {
        loop {
            let received = match scm_rights::receive(self.socket.as_fd(), buffer) {
                Ok(received) if received.length > 0 => received,
                Err(Errno::EAGAIN) => return Ok(()),
                // It died with a request of ours unread. That is told once, before what it had
                // said until then: statuses that must not be lost.
                Err(Errno::EINTR | Errno::ECONNRESET) => continue,
                Ok(_) => return Err(self.state().ended()),
                Err(errno) => return Err(format!("its socket: {errno}").into()),
            };
            let answer = Answer::decode(&buffer[..received.length])
                .map_err(|malformed| format!("it sent {malformed}"))?;
            self.state().hear();
            self.answered(answer, received)?;
        }
    }

    fn answered(&self, answer: Answer, mut received: Received) -> Result<(), Gone> {
        match answer {
            Answer::WarmingUp { preload } => self.state().warming_up(preload),
            Answer::Spoiled { preload, failure } => {
                return Err(Gone::Preload(PreloadError { preload, failure }));
            }
            Answer::Ready { pidfds, small_pages } => self.is_up(pidfds, small_pages),
            Answer::Unfit { call, errno } => {
                let why = format!("it could not start: {call}: {}", Errno::from_raw(errno));
                return Err(why.into());
            }
            Answer::Failed { number, call, errno } => {
                // It may be that it had no room for the variables.
                self.state().environment = None;
                let cause = io::Error::from_raw_os_error(errno);
                self.refused(number, |name| SpawnError::Call { name, call, cause });
            }
            Answer::Threaded { number, threads } => {
                self.refused(number, |name| SpawnError::Threaded { name, threads });
            }
            Answer::Refused { number, right } => {
                self.refused(number, |name| SpawnError::Rights { name, right });
            }
            Answer::Spawned { number, pid, withheld, tell } => {
                let withheld = withheld || received.truncated;
                let pidfd = received.fds.pop().map(Pidfd::received);
                self.spawned((number, pid), pidfd, withheld, tell);
            }
            Answer::Noted { number, note } => {
                let core = self.state().children.get(&number).cloned();
                if let Some(core) = core {
                    core.noted(note);
                }
            }
            // It was heard.
            Answer::Waits => {}
            Answer::Exited {
                number,
                code,
                signal,
                core_dumped,
                out_of_memory,
                step,
                usage,
                settled,
            } => {
                let core = {
                    let mut state = self.state();
                    // A kill is for all in its cgroup, if it had one.
                    let is_kill = |signal: u8| i32::from(signal) == libc::SIGKILL;
                    state.signals.retain(|(to, signal)| *to != number || is_kill(*signal));
                    state.births.remove(&number);
                    match settled {
                        true => state.children.remove(&number),
                        false => state.children.get(&number).cloned(),
                    }
                };
                if let Some(core) = core {
                    core.died_in(step);
                    core.used(usage);
                    let exit = match signal {
                        0 => Exit::Code(code),
                        signal => Exit::Signal { signal, core_dumped, out_of_memory },
                    };
                    core.exited(exit, settled);
                }
            }
            Answer::Settled { number, left } => {
                let core = self.state().children.remove(&number);
                if let Some(core) = core {
                    core.settled(left);
                }
            }
        }
        Ok(())
    }

    /// The forkserver is up, and has said what it can't do.
    fn is_up(&self, pidfds: bool, small_pages: String) {
        self.state().warming = None;
        if !pidfds {
            self.without_pidfds();
        }
        if !small_pages.is_empty() {
            notice::post(move || {
                tracing::warn!(why = small_pages, "no huge pages for the forkserver's code");
            });
        }
    }

    /// No child came of a request.
    fn refused(&self, number: u64, error: impl FnOnce(String) -> SpawnError) {
        if let Some(waiting) = self.take_waiting(number) {
            waiting.fail(error);
        }
    }

    fn spawned(&self, (number, pid): (u64, i32), pidfd: Option<Pidfd>, withheld: bool, tell: bool) {
        let waiting = self.take_waiting(number);
        let Some(mut waiting) = waiting else {
            // Withdrawn or expired: nobody wants it.
            if pidfd.is_none_or(|pidfd| pidfd.send_signal(libc::SIGKILL).is_err()) {
                let _unsent = self.signal(number, libc::SIGKILL);
            }
            return;
        };
        let birth = (!waiting.execs).then(|| waiting.birth.clone());
        let name = std::mem::take(&mut waiting.name);
        match &pidfd {
            None if withheld => {
                let name = name.clone();
                notice::post(move || {
                    tracing::warn!(name, pid, "no room for a pidfd: signals go by the forkserver");
                });
            }
            None => self.without_pidfds(),
            Some(_) => {}
        }
        let who = (number, pid.cast_unsigned());
        let grip = Grip::new(who.1, pidfd);
        let core = Core::process(name, who, (grip, waiting.ties), self.me.clone(), birth);
        let mut state = self.state();
        state.children.insert(number, core.clone());
        if waiting.is_told {
            state.births.insert(number, tell);
        }
        if waiting.execs {
            // From here on it is the child's time.
            waiting.since = Instant::now();
            waiting.bound = waiting.exec;
            state.executing.push((waiting, core));
            return;
        }
        drop(state);
        finish(waiting, core);
    }

    /// Asks the forkserver to signal a child of ours, which it knows by that number. `EINVAL`: there
    /// is no such signal.
    pub(crate) fn signal(&self, number: u64, signal: i32) -> Result<(), Errno> {
        let signal = match u8::try_from(signal) {
            // Whether it is there; it may be.
            Ok(0) => return Ok(()),
            Ok(signal) if signal <= wire::MAX_SIGNAL => signal,
            Ok(_) | Err(_) => return Err(Errno::EINVAL),
        };
        self.order(number, signal);
        Ok(())
    }

    /// The same for what is no signal: [`wire::STOP`], [`wire::SETTLE`].
    pub(crate) fn order(&self, number: u64, signal: u8) {
        let mut state = self.state();
        if !state.signals.contains(&(number, signal)) {
            state.signals.push_back((number, signal));
        }
        self.send_signals(&mut state);
        drop(state);
        // The thread sends what found no room.
        let _full = self.wake.write(1);
    }

    /// Ends the connection, by which the root's forkserver ends with all of its tree. Takes no lock.
    pub(crate) fn hang_up(&self) {
        // Ended before.
        let _gone = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    /// Asks the forkserver to stop every child, or to let all go on. Takes no lock.
    pub(crate) fn hold(&self, stopped: bool) {
        // Full or ended: a tree in such a state is not held.
        let _unsent = scm_rights::send(self.socket.as_fd(), &wire::encode_hold(stopped), &[]);
    }

    /// A child of ours that was asked for under that number is born: it wants no more of the processor
    /// than others. Told at once if others wait for it, else with the next request.
    pub(crate) fn born(&self, number: u64) {
        let mut state = self.state();
        let Some(tell) = state.births.remove(&number) else { return };
        if !tell {
            if state.born.len() == MAX_BORN {
                // Counted until its time is over; nobody waited for it.
                state.born.pop_front();
            }
            return state.born.push_back(number);
        }
        state.awaited.push_back(number);
        self.send_awaited(&mut state);
        let is_full = !state.awaited.is_empty();
        drop(state);
        if is_full {
            // The thread sends what found no room.
            let _full = self.wake.write(1);
        }
    }

    fn send_awaited(&self, state: &mut State) {
        while let Some(number) = state.awaited.front() {
            match scm_rights::send(self.socket.as_fd(), &wire::encode_born(*number), &[]) {
                Ok(()) => drop(state.awaited.pop_front()),
                // Writable again, or ended: the thread will find out.
                Err(_) => break,
            }
        }
    }

    /// Whether another request may be under way. The forkserver holds their fds until it is their turn,
    /// and each fork copies its table; so actors, of which there are many, have two.
    fn may_ask(&self, state: &State) -> bool {
        let most = if self.tree.is_some() { MAX_OUTSTANDING } else { MAX_OUTSTANDING_BELOW };
        let is_crowded = state.crowded.is_some_and(|until| Instant::now() < until);
        state.outstanding < most && !is_crowded
    }

    fn send_signals(&self, state: &mut State) {
        while let Some((number, signal)) = state.signals.front() {
            let message = wire::encode_signal(*number, *signal);
            match scm_rights::send(self.socket.as_fd(), &message, &[]) {
                Ok(()) => drop(state.signals.pop_front()),
                // Writable again, or ended: the thread will find out.
                Err(_) => break,
            }
        }
    }

    fn take_waiting(&self, number: u64) -> Option<Waiting> {
        let mut state = self.state();
        state.outstanding = state.outstanding.saturating_sub(1);
        let waiting = state.waiting.remove(&number)?;
        (!waiting.answer.is_closed()).then_some(waiting)
    }

    /// Writes what may be under way; gives back who can't be sent at all, and why.
    #[must_use]
    fn send_queued(&self, state: &mut State) -> Vec<(Waiting, Errno)> {
        self.send_signals(state);
        self.send_awaited(state);
        let mut refused = Vec::new();
        while self.may_ask(state)
            && let Some(next) = state.queue.front()
        {
            let number = next.number;
            if let Some(number) = number
                && state.waiting.get(&number).is_none_or(|waiting| waiting.answer.is_closed())
            {
                // Withdrawn before it was sent.
                let born = state.queue.pop_front().map(|next| next.born);
                state.untold(born.unwrap_or_default());
                state.waiting.remove(&number);
                continue;
            }
            let fds: Vec<BorrowedFd<'_>> = next.fds.iter().map(AsFd::as_fd).collect();
            match scm_rights::send_as(self.socket.as_fd(), &next.bytes, &fds, sent_as()) {
                Ok(()) => {
                    state.queue.pop_front();
                    state.outstanding += usize::from(number.is_some());
                }
                // Writable again, or ended: the thread will find out.
                Err(Errno::EAGAIN | Errno::EINTR | Errno::EPIPE | Errno::ECONNRESET) => break,
                Err(Errno::ETOOMANYREFS) => state.crowded = Some(Instant::now() + CROWDED_PAUSE),
                Err(errno) => {
                    refused.extend(state.refuse_next().into_iter().map(|it| (it, errno)));
                }
            }
        }
        refused
    }

    /// The connection is over: everybody is told, nobody waits for ever.
    fn gone(&self, gone: Gone) {
        self.lost.send_replace(Some(gone.clone()));
        let mut state = self.state();
        if let Some(tree) = &self.tree
            && !state.closing
        {
            drop(state);
            // The kernel kills all actors; what they have started is for us. Told after that, so
            // that who is told finds nobody.
            strays::sweep(tree, strays::SWEEP_BOUND);
            state = self.state();
        }
        let waiting = std::mem::take(&mut state.waiting);
        let children = std::mem::take(&mut state.children);
        let executing = std::mem::take(&mut state.executing);
        state.queue.clear();
        state.signals.clear();
        state.awaited.clear();
        drop(state);
        // It sees the end of our connection also while its own is held in this struct.
        self.hang_up();
        let executing = executing.into_iter().map(|(waiting, _)| waiting);
        for waiting in waiting.into_values().chain(executing) {
            waiting.fail(|name| gone.error(name));
        }
        for core in children.into_values() {
            core.lost();
        }
    }
}

impl Outgoing {
    /// Variables, in the message or in memory beside it.
    fn variables(name: &str, texts: &[u8]) -> Result<Self, SpawnError> {
        let bytes = wire::encode_environment(texts);
        if bytes.len() <= MAX_BYTES {
            return Ok(Self { number: None, bytes, fds: Vec::new(), born: Vec::new() });
        }
        let fds = vec![elsewhere(name, texts, MAX_ENVIRONMENT)?];
        Ok(Self { number: None, bytes: wire::encode_environment(&[]), fds, born: Vec::new() })
    }
}

impl State {
    /// What is next can't be sent. If it is variables, neither can the requests that go with them.
    fn refuse_next(&mut self) -> Vec<Waiting> {
        let Some(next) = self.queue.pop_front() else { return Vec::new() };
        self.untold(next.born);
        if let Some(number) = next.number {
            return self.waiting.remove(&number).into_iter().collect();
        }
        if !self.queue.iter().any(|next| next.number.is_none()) {
            // To be told again.
            self.environment = None;
        }
        let mut refused = Vec::new();
        while let Some(number) = self.queue.front().and_then(|next| next.number) {
            let born = self.queue.pop_front().map(|next| next.born);
            self.untold(born.unwrap_or_default());
            refused.extend(self.waiting.remove(&number));
        }
        refused
    }

    /// What a request that was never sent would have told goes with the next one: until then the tree holds
    /// places for those births.
    fn untold(&mut self, born: Vec<u64>) {
        let room = MAX_BORN.saturating_sub(self.born.len());
        born.into_iter().rev().take(room).for_each(|number| self.born.push_front(number));
    }

    fn hear(&mut self) {
        self.heard = Some(Instant::now());
        self.crowded = None;
    }

    /// A preload has begun; all of them share one bound, which counts from the first.
    fn warming_up(&mut self, preload: String) {
        let since = self.warming.take().map_or_else(Instant::now, |(_, since)| since);
        self.warming = Some((preload, since));
    }

    /// The end of a forkserver whose preloads take longer than they may.
    fn overdue_preload(&self, bound: Duration) -> Option<Gone> {
        let (preload, since) = self.warming.as_ref()?;
        let (preload, failure) = (preload.clone(), PreloadFailure::TookTooLong { bound });
        (since.elapsed() >= bound).then_some(Gone::Preload(PreloadError { preload, failure }))
    }

    /// It has closed its socket.
    fn ended(&self) -> Gone {
        match &self.warming {
            Some((preload, _)) => {
                let (preload, failure) = (preload.clone(), PreloadFailure::Ended);
                Gone::Preload(PreloadError { preload, failure })
            }
            None => "it has ended".into(),
        }
    }

    /// When the forkserver has been silent for too long. All bounds of a client are the same, so
    /// the first to ask is the first to be due. While preloads run, only their own bound counts.
    fn next_deadline(&self, warm_up: Duration) -> Option<Instant> {
        if let Some((_, since)) = self.warming {
            return Some(since + warm_up);
        }
        let waiting = self.waiting.first_key_value().map(|(_, waiting)| self.due(waiting));
        let executing = self.executing.first().map(|(waiting, _)| waiting.since + waiting.bound);
        let again = self.crowded.filter(|_| !self.queue.is_empty());
        waiting.into_iter().chain(executing).chain(again).min()
    }

    fn due(&self, waiting: &Waiting) -> Instant {
        self.heard.map_or(waiting.since, |heard| heard.max(waiting.since)) + waiting.bound
    }

    /// Those whom nobody answered in time. A late child finds nobody waiting and is killed.
    fn expired(&mut self, now: Instant) -> Vec<Waiting> {
        let mut expired = Vec::new();
        while self.warming.is_none()
            && let Some((&number, first)) = self.waiting.first_key_value()
            && self.due(first) <= now
        {
            expired.extend(self.waiting.remove(&number));
        }
        expired
    }

    /// Those whose birth pipe says how it went, and those whose time is over.
    fn executed(&mut self) -> Vec<(Waiting, Arc<Core>)> {
        let is_done = |waiting: &Waiting| {
            let mut fds = [PollFd::new(waiting.birth.as_fd(), PollFlags::POLLIN)];
            matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
        };
        let now = Instant::now();
        self.executing
            .extract_if(.., |(waiting, _)| is_done(waiting) || waiting.since + waiting.bound <= now)
            .collect()
    }
}

impl Waiting {
    /// No child comes of it. Its fds are closed before that is told: whoever hears of it may try again
    /// (C10).
    fn fail(self, error: impl FnOnce(String) -> SpawnError) {
        let Self { name, answer, birth, stdin, stdout, stderr, .. } = self;
        drop((birth, stdin, stdout, stderr));
        tell(answer, Err(error(name)));
    }
}

/// Puts what is too long for a message into memory.
fn elsewhere(name: &str, bytes: &[u8], limit: usize) -> Result<OwnedFd, SpawnError> {
    let (name, length) = (name.to_owned(), bytes.len());
    if length > limit {
        return Err(SpawnError::TooLarge { name, length, limit });
    }
    let call = "memfd_create".to_owned();
    memory::write(bytes).map_err(|cause| SpawnError::Call { name, call, cause })
}

/// Tells those whose request could not be sent.
fn refuse(refused: Vec<(Waiting, Errno)>) {
    for (waiting, errno) in refused {
        let (call, cause) = ("sendmsg(SCM_RIGHTS)".to_owned(), io::Error::from(errno));
        waiting.fail(|name| SpawnError::Call { name, call, cause });
    }
}

/// The child is there, or its birth pipe says why not.
fn finish(waiting: Waiting, core: Arc<Core>) {
    let Waiting { answer, bound, birth, execs, is_silent, stdin, stdout, stderr, tail, .. } =
        waiting;
    let mut child = Child::new(core);
    if is_silent {
        child.handle().told_born();
    }
    if execs {
        let name = child.handle().name().to_owned();
        let error = match read_birth(&birth) {
            // A death is told by its status.
            Ok(None | Some(BirthFailure { errno: None, .. })) => None,
            Ok(Some(BirthFailure { step, errno: Some(errno) })) => {
                let cause = io::Error::from_raw_os_error(errno);
                Some(SpawnError::Step { name, step, cause })
            }
            // Neither born nor failed: it hangs in one of the steps.
            Err(_) => Some(SpawnError::StillStarting { name, waited: bound }),
        };
        if let Some(error) = error {
            // The child is killed by its drop. First the fds: whoever is told may try again (C10).
            drop((child, birth, stdin, stdout, stderr));
            return tell(answer, Err(error));
        }
    }
    *child.stdin.get_mut().unwrap_or_else(PoisonError::into_inner) = stdin;
    child.stdout = stdout;
    child.stderr = stderr;
    child.tail = tail;
    tell(answer, Ok(child));
}

/// Answers; a child that nobody takes is killed by being dropped.
fn tell(answer: oneshot::Sender<Result<Child, SpawnError>>, result: Result<Child, SpawnError>) {
    drop(answer.send(result));
}

/// How long a request waits for others' fds to land before it is tried again. Its own bound ends that.
const CROWDED_PAUSE: Duration = Duration::from_millis(1);
/// Fds in flight count against a limit of their own; these are at most a few hundred.
const MAX_OUTSTANDING: usize = 64;
/// The same in an actor: one that is forked, and one that can be forked next.
const MAX_OUTSTANDING_BELOW: usize = 2;
/// How many births are told with one request.
const MAX_BORN: usize = 64;

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    /// C16: what a request was to tell is told by another one if that is withdrawn before it is sent.
    #[test]
    fn births_that_a_withdrawn_request_was_to_tell_are_told_by_the_next() {
        let mut state = State { born: VecDeque::from([5, 6]), ..State::default() };
        let born: Vec<u64> = state.born.drain(..).collect();
        state.born.push_back(7);
        state.queue.push_back(Outgoing { number: Some(1), bytes: vec![], fds: vec![], born });
        assert!(state.refuse_next().is_empty(), "nobody waits for it");
        assert_eq!(state.born, [5, 6, 7]);
        let many: Vec<u64> = (100..).take(MAX_BORN).collect();
        state.untold(many);
        assert_eq!((state.born.len(), state.born.back()), (MAX_BORN, Some(&7)));
    }

    /// H28: statuses that the forkserver told before it died with a request of ours unread, which
    /// the kernel reports first and as a reset, are not lost.
    #[test]
    fn what_it_said_before_its_death_is_heard() {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
        let (lost, _) = watch::channel(None);
        let (state, me) = (Mutex::default(), Weak::new());
        let pidfds = AtomicBool::new(true);
        let (tree, warm_up) = (None, Duration::ZERO);
        let status = OwnStatus::open();
        let client = Client { socket: ours, wake, pidfds, state, status, lost, tree, warm_up, me };
        let (answer, mut answered) = oneshot::channel();
        let birth: OwnedFd = io::pipe().unwrap().0.into();
        let waiting = Waiting {
            name: "early".to_owned(),
            answer,
            since: Instant::now(),
            bound: Duration::from_secs(5),
            exec: Duration::from_secs(5),
            birth: Arc::new(birth),
            execs: false,
            ties: Ties::default(),
            is_told: false,
            is_silent: true,
            stdin: None,
            stdout: None,
            stderr: None,
            tail: None,
        };
        client.request(waiting, Vec::new(), None, |_, _| vec![0; 16]);
        let number = 0;
        let pidfd = Pidfd::open(std::process::id()).unwrap();
        let (core_dumped, out_of_memory) = (false, false);
        let exited = Answer::Exited {
            number,
            code: 3,
            signal: 0,
            core_dumped,
            out_of_memory,
            step: None,
            usage: crate::Usage::default(),
            settled: true,
        };
        let spawned = Answer::Spawned { number, pid: 7, withheld: false, tell: false }.encode();
        scm_rights::send(theirs.as_fd(), &spawned, &[pidfd.as_fd()]).unwrap();
        scm_rights::send(theirs.as_fd(), &exited.encode(), &[]).unwrap();
        drop(theirs);
        client.read(&mut vec![0; MAX_BYTES + 1]).unwrap_err();
        client.gone("it has ended".into());
        let child = answered.try_recv().unwrap().unwrap();
        assert_eq!(child.try_wait().unwrap(), Some(Exit::Code(3)));
    }
}
