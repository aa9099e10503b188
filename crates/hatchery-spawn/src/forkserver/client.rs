//! The requesting side: one thread owns the control socket, everybody else waits on channels.
//!
//! It needs no runtime: waiters may live in any, and a status is never lost because a runtime has
//! ended. Requests are written by who makes them while few are under way; the rest queues here.
//!
//! Lock order: `state` is innermost; nothing is awaited or called back while it is held.

mod state;
mod waiting;

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::sync::watch;

use super::exited::Exited;
use super::gone::Gone;
use super::present::OwnStatus;
use super::rights::sent_as;
use super::strays;
use super::wire::{self, Answer, MAX_BYTES, MAX_ELSEWHERE};
use crate::child::Core;
use crate::error::{PreloadError, SpawnError};
use crate::grip::Grip;
use crate::notice;
use crate::own_thread::OwnThread;
use crate::sys::pidfd::Pidfd;
use crate::sys::scm_rights::{self, Received};
use state::{MAX_BORN, Outgoing, State, elsewhere};
pub(crate) use waiting::Waiting;
use waiting::finish;

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
            Answer::Exited(Exited { number, exit, step, usage, settled }) => {
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

/// Tells those whose request could not be sent.
fn refuse(refused: Vec<(Waiting, Errno)>) {
    for (waiting, errno) in refused {
        let (call, cause) = ("sendmsg(SCM_RIGHTS)".to_owned(), io::Error::from(errno));
        waiting.fail(|name| SpawnError::Call { name, call, cause });
    }
}

/// How long a request waits for others' fds to land before it is tried again. Its own bound ends that.
const CROWDED_PAUSE: Duration = Duration::from_millis(1);
/// Fds in flight count against a limit of their own; these are at most a few hundred.
const MAX_OUTSTANDING: usize = 64;
/// The same in an actor: one that is forked, and one that can be forked next.
const MAX_OUTSTANDING_BELOW: usize = 2;
#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;
    use crate::exit::Exit;

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
        let (waiting, mut answered) = Waiting::for_test(Instant::now());
        client.request(waiting, Vec::new(), None, |_, _| vec![0; 16]);
        let number = 0;
        let pidfd = Pidfd::open(std::process::id()).unwrap();
        let (exit, usage) = (Exit::Code(3), crate::Usage::default());
        let exited = Answer::Exited(Exited { number, exit, step: None, usage, settled: true });
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
