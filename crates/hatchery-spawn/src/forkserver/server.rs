//! The forkserver's loop: read, ask the book, do what it says. One thread for ever, no tokio.
//!
//! It never blocks on a client, runs nothing of users after its start, and touches neither hash
//! keys nor generators: what is forked from it would share them.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::time::{ClockId, clock_gettime};

use super::book::{Book, Owner};
use super::confined::Confined;
use super::fork;
use super::memory;
use super::strays;
use super::wire::{self, Answer, MAX_BYTES, MAX_ELSEWHERE, Request};
use crate::confine::cgroup;
use crate::exit::Exit;
use crate::image::Preload;
use crate::prelude::{MARK, Nest};
use crate::sys::pidfd::Pidfd;
use crate::sys::{close_range, env, exit, fds, process, scm_rights, sigaction, title, waitid};

/// The forkserver's whole life. `root` is the process that started it; its socket is fd 0; `tree`
/// is what all environments below carry.
pub(crate) fn main(root: i32, tree: &str) -> ! {
    // To its place; everything else that the root's own starter left open is closed.
    let placed = fds::place(0, 3, true).and_then(|()| fds::adopt(3));
    let Ok(client) = placed else { exit::exit_now(70) };
    let started = match close_range::close_from(4) {
        Ok(()) => Server::start(root, tree, client),
        Err(errno) => Err((client, ("close_range", errno))),
    };
    match started {
        Ok(mut server) => server.serve(),
        Err((client, (call, errno))) => {
            let answer = Answer::Unfit { call: call.to_owned(), errno: errno as i32 };
            // If the root is gone nobody needs to know.
            let _gone = scm_rights::send(client.as_fd(), &answer.encode(), &[]);
            exit::exit_now(70)
        }
    }
}

struct Server {
    book: Book,
    confined: Confined,
    clients: BTreeMap<RawFd, Client>,
    epoll: Epoll,
    signals: SignalFd,
    root: Pidfd,
    root_socket: RawFd,
    shared: OwnedFd,
    /// The actors' end of the shared socket; each gets a copy of it.
    shared_actors: OwnedFd,
    image: OwnedFd,
    /// Makes room for a pidfd when the table is full.
    spare: Option<OwnedFd>,
    null: OwnedFd,
    open_files: (u64, u64),
    pid: i32,
    tree: String,
    next_mark: u64,
    grace: u64,
    /// How many living children one actor may have.
    quota: usize,
    /// Who has ended, by its signal. Signals of the same number merge, so this isn't all.
    ended: Vec<i32>,
    /// When to ask the kernel for those whose signal was merged into another's.
    scan_at: Option<u64>,
    /// Not before this: a look at all children costs more the more there are.
    scan_not_before: u64,
    /// When to look for strays of actors that died.
    sweep_at: Option<u64>,
    buffer: Vec<u8>,
}

struct Client {
    owner: Owner,
    socket: OwnedFd,
    /// What its socket did not take. Bounded: who has [`MAX_BACKLOG`] of these is not read from
    /// until it reads, so that only the ends of its children are added.
    backlog: VecDeque<(Vec<u8>, Option<Pidfd>)>,
    /// What epoll tells about it.
    watched: EpollFlags,
    /// The number of its last request; the next one's is higher.
    last: Option<u64>,
}

impl Client {
    fn is_clogged(&self) -> bool {
        self.backlog.len() >= MAX_BACKLOG
    }
}

type CallFailed = (&'static str, Errno);

/// Why a client is a client no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    Closed,
    Broken,
}

impl Server {
    fn start(root: i32, tree: &str, client: OwnedFd) -> Result<Self, (OwnedFd, CallFailed)> {
        match Self::prepare(root, tree, &client) {
            Ok(mut server) => {
                server.admit(client, Owner::Root);
                Ok(server)
            }
            Err(failed) => Err((client, failed)),
        }
    }

    fn prepare(root: i32, tree: &str, client: &OwnedFd) -> Result<Self, CallFailed> {
        let call = |name| move |errno| (name, errno);
        let io = |name| {
            move |error: std::io::Error| {
                (name, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
            }
        };
        // If the root dies while we are stopped, this wakes us up; the pidfd below says that it
        // was the root and not just the thread that started us (H11).
        nix::sys::prctl::set_pdeathsig(Signal::SIGCONT).map_err(call("prctl(PR_SET_PDEATHSIG)"))?;
        let root_pidfd = Pidfd::open(root.cast_unsigned()).map_err(io("pidfd_open"))?;
        if nix::unistd::getppid().as_raw() != root {
            return Err(("getppid", Errno::ESRCH));
        }
        nix::sys::prctl::set_child_subreaper(true)
            .map_err(call("prctl(PR_SET_CHILD_SUBREAPER)"))?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)
            .map_err(call("sigprocmask"))?;
        let (grace, quota) = bounds();
        let null = open("/dev/null", OFlag::O_RDWR).map_err(call("open(/dev/null)"))?;
        let image = open("/proc/self/exe", OFlag::O_PATH).map_err(call("open(/proc/self/exe)"))?;
        preload()?;
        // Room for what each child carries, so that it need not move its environment for that.
        env::put(MARK, "").map_err(call("putenv"))?;
        // Inherited or made by a preload: children get none of it.
        sigaction::reset_all();
        let mut wanted = SigSet::empty();
        wanted.add(Signal::SIGCHLD);
        wanted.add(Signal::SIGTERM);
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&wanted, flags).map_err(call("signalfd"))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(call("epoll_create1"))?;
        let (shared, shared_actors) = shared_pair()?;
        let open_files = getrlimit(Resource::RLIMIT_NOFILE).map_err(call("getrlimit"))?;
        setrlimit(Resource::RLIMIT_NOFILE, open_files.1, open_files.1)
            .map_err(call("setrlimit"))?;
        for fd in [signals.as_fd(), root_pidfd.as_fd(), shared.as_fd()] {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, fd.as_raw_fd().cast_unsigned().into());
            epoll.add(fd, event).map_err(call("epoll_ctl"))?;
        }
        let spare = null.try_clone().map_err(io("dup"))?;
        title::set("hatchery:forkserver");
        let _shown = nix::sys::prctl::set_name(c"hatchery:server");
        for slot in 0..3 {
            fds::place(null.as_raw_fd(), slot, false).map_err(call("dup3"))?;
        }
        scm_rights::send(client.as_fd(), &Answer::Ready.encode(), &[]).map_err(call("sendmsg"))?;
        Ok(Self {
            book: Book::default(),
            confined: Confined::default(),
            clients: BTreeMap::new(),
            epoll,
            signals,
            root: root_pidfd,
            root_socket: client.as_raw_fd(),
            shared,
            shared_actors,
            image,
            spare: Some(spare),
            null,
            open_files,
            pid: nix::unistd::getpid().as_raw(),
            tree: tree.to_owned(),
            next_mark: 1,
            grace,
            quota,
            ended: Vec::new(),
            scan_at: None,
            scan_not_before: 0,
            sweep_at: None,
            buffer: vec![0; MAX_BYTES + 1],
        })
    }

    fn serve(&mut self) -> ! {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let timeout = self.timeout();
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(_) => self.end(),
            };
            for event in &events[..count] {
                let fd = RawFd::try_from(event.data()).unwrap_or(-1);
                self.ready(fd, event.events());
            }
            self.reap();
            let now = now();
            for pid in self.book.due(now) {
                process::kill_own_child(pid, true, libc::SIGKILL);
                process::kill_own_child(pid, false, libc::SIGKILL);
            }
            if self.sweep_at.is_some_and(|at| at <= now) {
                self.sweep_at = None;
                self.sweep_strays();
            }
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let next = [self.book.next_deadline(), self.sweep_at, self.scan_at];
        let next = next.into_iter().flatten().min();
        let Some(next) = next else { return EpollTimeout::NONE };
        let millis = next.saturating_sub(now()).div_ceil(1_000_000);
        EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
    }

    fn ready(&mut self, fd: RawFd, flags: EpollFlags) {
        if fd == self.root.as_fd().as_raw_fd() {
            self.end();
        } else if fd == self.signals.as_raw_fd() {
            while let Ok(Some(info)) = self.signals.read_signal() {
                if info.ssi_signo == Signal::SIGTERM as u32 {
                    self.end();
                }
                self.ended.push(info.ssi_pid.cast_signed());
                self.scan_at = Some(self.scan_not_before);
            }
        } else if fd == self.shared.as_raw_fd() {
            self.adopt();
        } else {
            if flags.contains(EpollFlags::EPOLLOUT) {
                self.flush(fd);
            }
            let gone = flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
            if gone && self.clients.get(&fd).is_some_and(Client::is_clogged) {
                // Nobody is there to read, so what it had asked for is nobody's.
                self.leave(fd, Leaving::Closed);
            } else if gone || flags.contains(EpollFlags::EPOLLIN) {
                self.read(fd);
            }
        }
    }

    /// Takes an actor's own control socket, which came over the shared one. Who sent it is told by
    /// the kernel, not by the sender. As many as one turn takes: epoll names it again (C15).
    fn adopt(&mut self) {
        for _ in 0..TURN {
            let received = match scm_rights::receive(self.shared.as_fd(), &mut self.buffer) {
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                // Somebody has shut it down, for all who hold it. An empty message looks the same.
                Ok(received) if received.length == 0 && is_at_end(&self.shared) => {
                    return self.renew_shared();
                }
                Err(_) => return self.renew_shared(),
                Ok(received) => received,
            };
            let known = received.sender.filter(|&pid| self.book.may_ask(pid));
            scm_rights::never_linger(&received.fds);
            let mut sent = received.fds.into_iter();
            // Anything but one fd from a living actor is closed by being dropped here (C15).
            if let (Some(pid), Some(socket), None, false) =
                (known, sent.next(), sent.next(), received.truncated)
                && !self.clients.values().any(|client| client.owner == Owner::Actor(pid))
            {
                self.admit(socket, Owner::Actor(pid));
            }
        }
    }

    /// Makes another shared socket for the actors to come. Those that have started nothing yet and
    /// hold the old one are told so when they do.
    fn renew_shared(&mut self) {
        let _gone = self.epoll.delete(&self.shared);
        let made = shared_pair();
        if let Ok((shared, shared_actors)) = made {
            let event =
                EpollEvent::new(EpollFlags::EPOLLIN, shared.as_raw_fd().cast_unsigned().into());
            let _no_memory = self.epoll.add(&shared, event);
            (self.shared, self.shared_actors) = (shared, shared_actors);
        }
    }

    fn admit(&mut self, socket: OwnedFd, owner: Owner) {
        let fd = socket.as_raw_fd();
        let watched = EpollFlags::EPOLLIN;
        let event = EpollEvent::new(watched, fd.cast_unsigned().into());
        if self.epoll.add(&socket, event).is_ok() {
            let backlog = VecDeque::new();
            self.clients.insert(fd, Client { owner, socket, backlog, watched, last: None });
        }
    }

    /// Serves one client for one turn: epoll names it again if it has more, after the others (C15).
    fn read(&mut self, fd: RawFd) {
        for _ in 0..TURN {
            let Some(client) = self.clients.get(&fd).filter(|client| !client.is_clogged()) else {
                return;
            };
            let mut received = match scm_rights::receive(client.socket.as_fd(), &mut self.buffer) {
                Ok(received) if received.length > 0 => received,
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                // An empty message looks like the end, but nobody of ours sends one.
                Ok(_) if !is_at_end(&client.socket) => return self.leave(fd, Leaving::Broken),
                Ok(_) | Err(_) => return self.leave(fd, Leaving::Closed),
            };
            let owner = client.owner;
            if owner != Owner::Root {
                scm_rights::never_linger(&received.fds);
            }
            if received.length > MAX_BYTES {
                return self.leave(fd, Leaving::Broken);
            }
            if let Some(pid) = wire::decode_kill(&self.buffer[..received.length]) {
                // Its own child, or it has none of that number any more.
                if self.book.is_child_of(pid, owner) {
                    process::kill_own_child(pid, false, libc::SIGKILL);
                }
                continue;
            }
            let message = &self.buffer[..received.length];
            let Some(request) = parse(message, &mut received.fds, received.truncated) else {
                return self.leave(fd, Leaving::Broken);
            };
            if !self.is_next(fd, request.number) {
                return self.leave(fd, Leaving::Broken);
            }
            if received.truncated {
                // Whole, but for the fds that found no room in our table.
                let (number, call) = (request.number, "recvmsg(SCM_RIGHTS)".to_owned());
                let failed = Answer::Failed { number, call, errno: Errno::EMFILE as i32 };
                self.answer(fd, &failed, None);
                continue;
            }
            if received.fds.len() < 4 + usize::from(request.has_channel) {
                return self.leave(fd, Leaving::Broken);
            }
            self.spawn(fd, owner, request, &received.fds);
        }
    }

    /// Whether that number was not there before: nothing is asked for twice.
    fn is_next(&mut self, fd: RawFd, number: u64) -> bool {
        let Some(client) = self.clients.get_mut(&fd) else { return false };
        let higher = client.last.is_none_or(|last| number > last);
        client.last = Some(number);
        higher
    }

    /// A client has closed or broke the protocol: it spawns no more, and what it spawned is
    /// orphaned as if it had died, which it does if it broke the protocol (C15).
    fn leave(&mut self, fd: RawFd, leaving: Leaving) {
        if fd == self.root_socket {
            self.end();
        }
        if let Some(client) = self.clients.remove(&fd) {
            // Closing removes it as well, but a copy may live in a child for an instant.
            let _removed = self.epoll.delete(&client.socket);
            if let Owner::Actor(pid) = client.owner {
                self.book.left(pid, now(), self.grace);
                if leaving == Leaving::Broken {
                    process::kill_own_child(pid, false, libc::SIGKILL);
                }
            }
        }
    }

    fn spawn(&mut self, fd: RawFd, owner: Owner, mut request: Request, received: &[OwnedFd]) {
        let number = request.number;
        let failed = |(call, errno): CallFailed| Answer::Failed {
            number,
            call: call.to_owned(),
            errno: errno as i32,
        };
        if request.deadline < now() {
            return self.answer(fd, &failed(("deadline", Errno::ETIMEDOUT)), None);
        }
        if self.book.count_children(owner) >= self.quota {
            return self.answer(fd, &failed(("the quota of children", Errno::EAGAIN)), None);
        }
        let mark = self.next_mark;
        self.next_mark += 1;
        let text = format!("{}.{mark}", self.tree);
        let above = match owner {
            Owner::Actor(pid) => Some(pid),
            Owner::Root => None,
        };
        let cgroup = cgroup::name(&self.tree, mark);
        let bound = match self.confined.bind(above, &mut request, &cgroup) {
            Ok(bound) => bound,
            Err(error) => return self.answer(fd, &failed(error), None),
        };
        let nest = Nest {
            server: self.pid,
            shared: self.shared_actors.as_raw_fd(),
            image: self.image.as_raw_fd(),
            open_files: self.open_files,
            mark: &text,
            cgroup: bound.cgroup.as_deref(),
        };
        let born = fork::fork(&request, received, &nest, &mut self.spare);
        match born {
            Ok((pid, pidfd)) => {
                self.confined.born(pid, bound);
                self.book.born(pid, owner, mark);
                self.answer(fd, &Answer::Spawned { number, pid }, Some(pidfd));
                if !self.clients.contains_key(&fd) {
                    process::kill_own_child(pid, false, libc::SIGKILL);
                }
            }
            Err(error) => {
                self.confined.unborn(bound);
                self.answer(fd, &failed(error), None);
            }
        }
        // After the pidfd was sent and closed its number is free again.
        if self.spare.is_none() {
            self.spare = self.null.try_clone().ok();
        }
    }

    fn answer(&mut self, fd: RawFd, answer: &Answer, pidfd: Option<Pidfd>) {
        let Some(client) = self.clients.get_mut(&fd) else { return };
        client.backlog.push_back((answer.encode(), pidfd));
        self.flush(fd);
    }

    fn flush(&mut self, fd: RawFd) {
        let Some(client) = self.clients.get_mut(&fd) else { return };
        let mut gone = false;
        while let Some((bytes, pidfd)) = client.backlog.front() {
            let fds: Vec<_> = pidfd.iter().map(AsFd::as_fd).collect();
            match scm_rights::send(client.socket.as_fd(), bytes, &fds) {
                Ok(()) => drop(client.backlog.pop_front()),
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ETOOMANYREFS | Errno::ENOBUFS) => break,
                Err(_) => {
                    gone = true;
                    break;
                }
            }
        }
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, !client.is_clogged());
        flags.set(EpollFlags::EPOLLOUT, !client.backlog.is_empty());
        if flags != client.watched {
            client.watched = flags;
            let mut event = EpollEvent::new(flags, fd.cast_unsigned().into());
            let _same = self.epoll.modify(&client.socket, &mut event);
        }
        if gone {
            self.leave(fd, Leaving::Closed);
        }
    }

    /// Reaps who has ended. By number where a signal told it; a look at all children takes time by
    /// their number, so that is done for the rest, and takes a tenth of our time at most.
    fn reap(&mut self) {
        for pid in std::mem::take(&mut self.ended) {
            if let Ok(Some(_)) = waitid::peek_at(pid) {
                self.reap_one(pid);
            }
        }
        if self.scan_at.is_some_and(|at| at <= now()) {
            self.scan_at = None;
            let (cost, done) = self.scan();
            self.scan_not_before = now() + SCAN_PAUSE * cost;
            if !done {
                self.scan_at = Some(self.scan_not_before);
            }
        }
    }

    /// Looks at all children, and gives back the processor time of looking and whether that was
    /// all. The kernel goes through all of them to find one that has ended; if there are several,
    /// asking for each by its number is less work.
    fn scan(&mut self) -> (u64, bool) {
        let mut cost = 0;
        for _ in 0..FEW {
            let since = processor_time();
            let ended = waitid::peek();
            cost += processor_time().saturating_sub(since);
            let Ok(Some((pid, _))) = ended else { return (cost, true) };
            self.reap_one(pid);
        }
        let since = processor_time();
        let mut ended = self.book.all();
        ended.retain(|pid| matches!(waitid::peek_at(*pid), Ok(Some(_))));
        cost += processor_time().saturating_sub(since);
        for pid in ended {
            self.reap_one(pid);
        }
        (cost, false)
    }

    fn reap_one(&mut self, pid: i32) {
        if self.book.knows(pid) {
            // Its group, while the zombie still holds the number: the strays that stayed in it.
            process::kill_own_child(pid, true, libc::SIGKILL);
        }
        if let Ok(Some((_, status))) = waitid::reap(pid) {
            self.died(pid, &status);
        }
    }

    fn died(&mut self, pid: i32, status: &Exit) {
        // Also after a stray's death: what it had started is our child now.
        self.sweep_at.get_or_insert(now() + SWEEP_DELAY);
        self.confined.died(pid);
        let Some(owner) = self.book.died(pid, now(), self.grace) else { return };
        let own: Vec<RawFd> = self.sockets_of(Owner::Actor(pid));
        for fd in own {
            self.clients.remove(&fd);
        }
        let (code, signal, core_dumped) = match status {
            Exit::Code(code) => (*code, 0, false),
            Exit::Signal { signal, core_dumped } => (0, *signal, *core_dumped),
            Exit::Panicked(_) => (0, 0, false),
        };
        for fd in self.sockets_of(owner) {
            self.answer(fd, &Answer::Exited { pid, code, signal, core_dumped }, None);
        }
    }

    fn sockets_of(&self, owner: Owner) -> Vec<RawFd> {
        if owner == Owner::Root {
            return vec![self.root_socket];
        }
        self.clients.iter().filter(|(_, client)| client.owner == owner).map(|(fd, _)| *fd).collect()
    }

    /// Kills what dead actors had started and what left their groups: its environment names them.
    fn sweep_strays(&mut self) {
        for pid in children() {
            if self.book.knows(pid) {
                continue;
            }
            let mark = strays::mark_of(pid, &self.tree);
            if mark.is_some_and(|mark| !self.book.has_mark(mark)) {
                process::kill_own_child(pid, false, libc::SIGKILL);
            }
        }
        if !self.confined.clear() {
            // What was killed in there is ours to reap, or was moved there and is somebody else's.
            self.sweep_at = Some(now() + SWEEP_DELAY);
        }
    }

    /// The root is gone, or wants the tree gone: everything goes, and so does this.
    fn end(&mut self) -> ! {
        let until = now() + END_BOUND;
        loop {
            let mut rest = self.book.all();
            let cleared = self.confined.end();
            rest.extend(children());
            for pid in rest {
                process::kill_own_child(pid, true, libc::SIGKILL);
                process::kill_own_child(pid, false, libc::SIGKILL);
            }
            // Strays come to us as their parents die, until nobody is left.
            loop {
                match waitid::peek() {
                    Ok(Some((pid, _))) => {
                        let _reaped = waitid::reap(pid);
                        self.book.died(pid, 0, 0);
                    }
                    Ok(None) => break,
                    Err(_) if cleared || self.confined.clear() => exit::exit_now(0),
                    Err(_) => break,
                }
            }
            if now() > until {
                exit::exit_now(1);
            }
            // Ended by the next SIGCHLD, or soon enough to look again.
            let mut events = [EpollEvent::empty()];
            let _woken = self.epoll.wait(&mut events, EpollTimeout::from(1_u8));
            while let Ok(Some(_)) = self.signals.read_signal() {}
        }
    }
}

fn open(path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
}

/// A client's request; one that is elsewhere is read from the memory that came last. `None` if it
/// is none. Memory that found no room in our table leaves an empty request of that number.
fn parse(message: &[u8], fds: &mut Vec<OwnedFd>, truncated: bool) -> Option<Request> {
    let Some((number, deadline)) = wire::decode_elsewhere(message) else {
        return Request::decode(message).ok();
    };
    if truncated {
        return Some(Request { number, deadline, ..Request::default() });
    }
    let bytes = memory::read(&fds.pop()?, MAX_ELSEWHERE).ok()?;
    let request = Request::decode(&bytes).ok()?;
    Some(Request { number, deadline, ..request })
}

/// All children of this process, strays included.
fn children() -> Vec<i32> {
    let text = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Runs the program's preloads on a thread that has ended before the first fork.
fn preload() -> Result<(), CallFailed> {
    if inventory::iter::<Preload>.into_iter().next().is_some() {
        let preloads = || {
            for preload in inventory::iter::<Preload> {
                (preload.run)();
            }
        };
        let thread = std::thread::Builder::new().spawn(preloads);
        let joined = thread.map_err(|_| ("pthread_create", Errno::EAGAIN))?.join();
        joined.map_err(|_| ("a preload that panicked", Errno::ECANCELED))?;
    }
    match crate::thread_count() {
        Ok(1) => Ok(()),
        Ok(_) => Err(("a preload that started a thread", Errno::EBUSY)),
        Err(_) => Err(("open(/proc/self/task)", Errno::ENOENT)),
    }
}

/// The socket over which actors bring their own: ours, and theirs.
fn shared_pair() -> Result<(OwnedFd, OwnedFd), CallFailed> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
    let (ours, theirs) =
        socketpair(family, kind, None, flags).map_err(|errno| ("socketpair", errno))?;
    setsockopt(&ours, sockopt::PassCred, &true)
        .map_err(|errno| ("setsockopt(SO_PASSCRED)", errno))?;
    Ok((ours, theirs))
}

/// Whether the other side of a socket has closed it, or its sending half.
fn is_at_end(socket: &OwnedFd) -> bool {
    let hangup = PollFlags::from_bits_retain(libc::POLLRDHUP);
    let mut fds = [PollFd::new(socket.as_fd(), hangup)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
}

/// The orphan grace and the quota of children that the root has told.
fn bounds() -> (u64, usize) {
    let text = std::env::var(BOUNDS).unwrap_or_default();
    env::remove(BOUNDS.as_ref());
    let told = text
        .split_once(',')
        .and_then(|(grace, quota)| Some((grace.parse().ok()?, quota.parse().ok()?)));
    told.unwrap_or((500_000_000, 10_000))
}

fn now() -> u64 {
    monotonic()
}

/// CLOCK_MONOTONIC in nanoseconds: the clock that requests' deadlines are told in.
pub(crate) fn monotonic() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// What this thread has had of the processor, in nanoseconds. On a busy machine much less than the
/// time that has passed: a pause reckoned in the latter would let dead actors wait for their turn
/// as often as the forkserver did.
fn processor_time() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(std::time::Duration::from);
    time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// The variable that carries the orphan grace in nanoseconds and the quota of children.
pub(crate) const BOUNDS: &str = "HATCHERY_BOUNDS";

/// How many messages of one client are served before the others have their turn.
const TURN: usize = 8;
/// How many answers may wait for a client that doesn't read.
const MAX_BACKLOG: usize = 64;
/// Deaths come in bursts; strays are looked for once after each.
const SWEEP_DELAY: u64 = 20_000_000;
/// How much longer than a look at all children the time until the next one is, by the processor
/// time of the look.
const SCAN_PAUSE: u64 = 9;
/// How many of the ended a scan finds one by one before it asks for each by its number.
const FEW: usize = 8;
/// What the last sweep may take.
const END_BOUND: u64 = 2_000_000_000;
