//! Who may ask, what they say, and the answers on their way to them.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, getsockopt, setsockopt, socketpair, sockopt,
};

use super::heard::Heard;
use super::{Asked, CallFailed, Server, now};
use crate::forkserver::book::Owner;
use crate::forkserver::memory;
use crate::forkserver::wire::{
    self, Answer, MAX_BYTES, MAX_ELSEWHERE, MAX_SIGNAL, Request, SETTLE, STOP,
};
use crate::sys::environ::Entries;
use crate::sys::pidfd::Pidfd;
use crate::sys::{process, scm_rights};

pub(super) struct Client {
    pub(super) owner: Owner,
    pub(super) heard: Heard,
    socket: OwnedFd,
    /// What its socket did not take. Bounded: who has [`MAX_BACKLOG`] of these is not read from
    /// until it reads, so that only the ends of its children are added.
    backlog: VecDeque<(Answer, Option<Pidfd>)>,
    /// The kernel passes no fds on now, for too many are under way; when to try again, and how often
    /// it was tried.
    crowded: Option<(u64, u32)>,
    /// What epoll tells about it.
    watched: EpollFlags,
    /// The number of its last request; the next one's is higher.
    last: Option<u64>,
    /// Its variables, as it has told them last.
    pub(super) environment: Option<Rc<Entries>>,
    /// How many of its requests wait for their turn. Who has [`MAX_ASKED`] of these is not read from
    /// until one had its turn.
    asked: usize,
}

impl Client {
    pub(super) fn is_clogged(&self) -> bool {
        let most = if self.owner == Owner::Root { MAX_ASKED } else { MAX_ASKED_BELOW };
        self.backlog.len() >= MAX_BACKLOG || self.asked >= most
    }

    /// Sends what the socket takes.
    fn send_backlog(&mut self) -> Result<(), Errno> {
        if self.crowded.is_some_and(|(until, _)| now() < until) {
            return Ok(());
        }
        while let Some((answer, pidfd)) = self.backlog.front_mut() {
            let fds: Vec<_> = pidfd.iter().map(AsFd::as_fd).collect();
            match scm_rights::send(self.socket.as_fd(), &answer.encode(), &fds) {
                Ok(()) => {
                    self.heard.told(now());
                    self.backlog.pop_front();
                    self.crowded = None;
                }
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                Err(Errno::ETOOMANYREFS | Errno::ENOBUFS) => {
                    let tries = self.crowded.map_or(1, |(_, tries)| tries + 1);
                    self.crowded = Some((now() + CROWDED_PAUSE, tries));
                    // The deaths behind it don't wait for ever: this child does without.
                    if let (Answer::Spawned { withheld, .. }, CROWDED_TRIES..) = (answer, tries) {
                        *withheld = true;
                        *pidfd = None;
                    }
                    break;
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

/// Why a client is a client no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    Closed,
    Broken,
}

impl Server {
    /// Takes an actor's own control socket, which came over the shared one. Who sent it is told by
    /// the kernel, not by the sender. As many as one turn takes: epoll names it again (C15).
    pub(super) fn adopt(&mut self) {
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

    pub(super) fn admit(&mut self, socket: OwnedFd, owner: Owner) {
        let fd = socket.as_raw_fd();
        if owner != Owner::Root {
            // Who writes there is told by the kernel from now on.
            let _no_socket = setsockopt(&socket, sockopt::PassCred, &true);
        }
        let watched = EpollFlags::EPOLLIN;
        let event = EpollEvent::new(watched, fd.cast_unsigned().into());
        if self.epoll.add(&socket, event).is_ok() {
            let backlog = VecDeque::new();
            // The root is told that this is up.
            let said = if owner == Owner::Root { now() } else { 0 };
            let (crowded, last, heard, asked) = (None, None, Heard::greeted(said), 0);
            let environment = None;
            let client = Client {
                owner,
                heard,
                socket,
                backlog,
                crowded,
                watched,
                last,
                environment,
                asked,
            };
            self.clients.insert(fd, client);
        }
    }

    /// Serves one client for one turn: epoll names it again if it has more, after the others (C15).
    pub(super) fn read(&mut self, fd: RawFd) {
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
            match owner {
                Owner::Actor(actor) => {
                    scm_rights::never_linger(&received.fds);
                    // A copy of it that speaks in its name. What was under way before anybody asked
                    // for credentials has none.
                    if received.sender.is_some_and(|sender| sender > 0 && sender != actor) {
                        return self.leave(fd, Leaving::Broken);
                    }
                }
                // A copy of the root, or whom it has handed its socket to, is nobody's spawner.
                Owner::Root | Owner::Nobody if received.sender != Some(self.root) => continue,
                Owner::Root | Owner::Nobody => {}
            }
            if received.length > MAX_BYTES {
                return self.leave(fd, Leaving::Broken);
            }
            let message = &self.buffer[..received.length];
            if let Some((number, signal)) = wire::decode_signal(message) {
                self.signal(owner, number, signal.into());
                continue;
            }
            if let Some(number) = wire::decode_born(message) {
                self.born(owner, number);
                continue;
            }
            if let (Some(stopped), Owner::Root) = (wire::decode_hold(message), owner) {
                self.hold(stopped);
                continue;
            }
            if let Some(told) = wire::decode_environment(message) {
                let told = told.to_vec();
                if !self.take_environment(fd, told, received.fds.pop(), received.truncated) {
                    return self.leave(fd, Leaving::Broken);
                }
                continue;
            }
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
                self.answer(fd, failed, None);
                continue;
            }
            let more = [request.has_channel, request.present.has_directory];
            if received.fds.len() < 4 + more.map(usize::from).iter().sum::<usize>() {
                return self.leave(fd, Leaving::Broken);
            }
            if owner != Owner::Root
                && let Err((call, errno)) = of_their_kind(&received.fds, request.has_channel)
            {
                let (number, call, errno) = (request.number, call.to_owned(), errno as i32);
                self.answer(fd, Answer::Failed { number, call, errno }, None);
                continue;
            }
            request.born.iter().for_each(|number| self.born(owner, *number));
            let environment = self.clients.get(&fd).and_then(|client| client.environment.clone());
            self.ask(fd, Asked { owner, request, received, environment });
        }
    }

    /// Queues a request, and gives a turn to whoever is next: mostly this one, at once.
    fn ask(&mut self, fd: RawFd, asked: Asked) {
        self.births.ask(fd, asked);
        self.give_turns();
        self.count_asked(fd);
    }

    /// Forks for whoever is next, as long as there is room, and tells those who have to wait so.
    pub(super) fn give_turns(&mut self) {
        while let Some((fd, asked)) = self.births.next(now()) {
            self.spawn(fd, asked);
            self.count_asked(fd);
        }
        let now = now();
        if self.next_word().is_some_and(|at| at <= now) {
            let due = |(fd, at): (RawFd, u64)| (at <= now).then_some(fd);
            let due: Vec<_> = self.words().filter_map(due).collect();
            due.into_iter().for_each(|fd| self.answer(fd, Answer::Waits, None));
        }
    }

    /// When somebody who waits for its turn must hear that this lives.
    pub(super) fn next_word(&self) -> Option<u64> {
        self.words().map(|(_, at)| at).min()
    }

    fn words(&self) -> impl Iterator<Item = (RawFd, u64)> {
        self.births.waiting().filter_map(|(fd, Asked { request, .. })| {
            let heard = &self.clients.get(&fd)?.heard;
            Some((fd, heard.next_word(request.deadline, request.patience)))
        })
    }

    /// Reads on, or not, by how many requests wait.
    fn count_asked(&mut self, fd: RawFd) {
        let count = self.births.count(fd);
        let Some(client) = self.clients.get_mut(&fd) else { return };
        let was_clogged = client.is_clogged();
        client.asked = count;
        if client.is_clogged() != was_clogged {
            self.flush(fd);
        }
    }

    /// A client's own child is born.
    fn born(&mut self, owner: Owner, number: u64) {
        let child = self.book.child_of(owner, number);
        if let Some(mark) = child.and_then(|pid| self.book.mark_of(pid)) {
            self.births.over(mark);
        }
    }

    /// Signals a client's own child that nobody has reaped, or it has none of that number any more.
    fn signal(&mut self, owner: Owner, number: u64, signal: i32) {
        let child = self.book.child_of(owner, number);
        let is_settled = [libc::SIGKILL, SETTLE.into(), STOP.into()].contains(&signal);
        if let (Some(pid), true) = (child, is_settled) {
            self.settle(pid);
        }
        if signal > MAX_SIGNAL.into() {
            if let (Some(pid), true) = (child, signal == STOP.into()) {
                self.book.stop(pid, now(), u64::MAX);
            }
            return;
        }
        // It may have been reaped just now.
        let child = self.book.child_of(owner, number);
        if let Some(pid) = child {
            let has_terminal = self.programs.manner(pid).is_some_and(|manner| manner.foreground);
            let wakes = has_terminal && signal == libc::SIGCONT;
            if wakes {
                self.give_terminal_again(pid);
            }
            // As a shell does: a whole job.
            process::kill_own_child(pid, wakes, signal);
        }
        match child {
            Some(pid) if signal == libc::SIGKILL => self.confined.kill(pid),
            None if signal == libc::SIGKILL => self.confined.kill_survivors((owner, number)),
            Some(_) | None => {}
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
    pub(super) fn leave(&mut self, fd: RawFd, leaving: Leaving) {
        if fd == self.root_socket {
            self.end();
        }
        drop(self.births.left(fd));
        if let Some(client) = self.clients.remove(&fd) {
            // Closing removes it as well, but a copy may live in a child for an instant.
            let _removed = self.epoll.delete(&client.socket);
            if let Owner::Actor(pid) = client.owner {
                self.rights.forget(pid);
                self.book.left(pid, now(), self.grace);
                if leaving == Leaving::Broken {
                    process::kill_own_child(pid, false, libc::SIGKILL);
                }
            }
        }
    }

    pub(super) fn answer(&mut self, fd: RawFd, answer: Answer, pidfd: Option<Pidfd>) {
        let Some(client) = self.clients.get_mut(&fd) else { return };
        client.backlog.push_back((answer, pidfd));
        self.flush(fd);
    }

    pub(super) fn flush(&mut self, fd: RawFd) {
        let Some(client) = self.clients.get_mut(&fd) else { return };
        let gone = client.send_backlog().is_err();
        let again = client.crowded.map(|(at, _)| at);
        self.crowded_at = self.crowded_at.into_iter().chain(again).min();
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, !client.is_clogged());
        flags.set(EpollFlags::EPOLLOUT, !client.backlog.is_empty() && client.crowded.is_none());
        if flags != client.watched {
            client.watched = flags;
            let mut event = EpollEvent::new(flags, fd.cast_unsigned().into());
            let _same = self.epoll.modify(&client.socket, &mut event);
        }
        if gone {
            self.leave(fd, Leaving::Closed);
        }
    }

    /// Tries again what the kernel did not pass on, though the sockets had room.
    pub(super) fn flush_crowded(&mut self) {
        let crowded = self.clients.iter().filter(|(_, client)| client.crowded.is_some());
        let crowded: Vec<_> = crowded.map(|(fd, _)| *fd).collect();
        crowded.into_iter().for_each(|fd| self.flush(fd));
    }

    pub(super) fn sockets_of(&self, owner: Owner) -> Vec<RawFd> {
        if owner == Owner::Root {
            return vec![self.root_socket];
        }
        self.clients.iter().filter(|(_, client)| client.owner == owner).map(|(fd, _)| *fd).collect()
    }
}

/// A client's request; one that is elsewhere is read from the memory that came last. `None` if it
/// is none. Memory that found no room in our table leaves an empty request of that number.
fn parse(message: &[u8], fds: &mut Vec<OwnedFd>, truncated: bool) -> Option<Request> {
    let Some((number, deadline, patience)) = wire::decode_elsewhere(message) else {
        return Request::decode(message).ok();
    };
    if truncated {
        return Some(Request { number, deadline, patience, ..Request::default() });
    }
    let bytes = memory::read(&fds.pop()?, MAX_ELSEWHERE).ok()?;
    let request = Request::decode(&bytes).ok()?;
    Some(Request { number, deadline, patience, ..request })
}

/// Whether the birth pipe is a pipe and the channel a socket; the others may be anything. Asked of the
/// kernel and not of a file system, whose answer may never come.
fn of_their_kind(fds: &[OwnedFd], has_channel: bool) -> Result<(), CallFailed> {
    fcntl(&fds[0], FcntlArg::F_GETPIPE_SZ).map_err(|errno| ("fcntl(F_GETPIPE_SZ)", errno))?;
    if has_channel {
        getsockopt(&fds[4], sockopt::SockType).map_err(|errno| ("getsockopt(SO_TYPE)", errno))?;
    }
    Ok(())
}

/// The socket over which actors bring their own: ours, and theirs.
pub(super) fn shared_pair() -> Result<(OwnedFd, OwnedFd), CallFailed> {
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

/// How many messages of one client are served before the others have their turn.
const TURN: usize = 8;
/// How long an answer waits until fewer fds are under way, in nanoseconds, and how often.
const CROWDED_PAUSE: u64 = 1_000_000;
const CROWDED_TRIES: u32 = 50;
/// How many requests of the root, and of an actor, may wait for their turn: more than they ever send
/// before an answer, so that what else they say is read. Each holds its fds here.
const MAX_ASKED: usize = 128;
const MAX_ASKED_BELOW: usize = 8;
/// How many answers may wait for a client that doesn't read.
const MAX_BACKLOG: usize = 64;
