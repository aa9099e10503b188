//! The forkserver's loop: read, ask the book, do what it says. One thread for ever, no tokio.
//!
//! It never blocks on a client, runs nothing of users after its start, and touches neither hash
//! keys nor generators: what is forked from it would share them.

mod boot;
mod children;
mod clients;
mod environments;
mod foreground;
mod heard;
mod programs;
mod root;
mod settle;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::time::{ClockId, clock_gettime};

use super::births::Births;
use super::book::{Book, Owner};
use super::confined::Confined;
use super::crib::Crib;
use super::pidfds::Pidfds;
use super::rights::Keeper;
use super::warm_up::Unfit;
use super::wire::{Answer, Request};
use crate::sys::environ::Entries;
use crate::sys::pidfd::Pidfd;
use crate::sys::rlimit::Limits;
use crate::sys::{close_range, exit, fds, process, scm_rights};
pub(crate) use boot::BOUNDS;
use clients::{Client, Leaving};
use programs::Programs;

/// The forkserver's whole life. `root` is the process that started it; its socket is fd 0; `tree`
/// is what all environments below carry.
pub(crate) fn main(root: i32, tree: &str) -> ! {
    // If the root dies while we are stopped, this wakes us up. Before all else, so that a stop can come before
    // it only while the image is being loaded.
    let wakes = nix::sys::prctl::set_pdeathsig(Signal::SIGCONT);
    // To its place; everything else that the root's own starter left open is closed.
    let placed = fds::place(0, 3, true).and_then(|()| fds::adopt(3));
    let Ok(client) = placed else { exit::exit_now(70) };
    let closed = || close_range::close_from(4).map_err(|errno| ("close_range", errno));
    let ready = wakes.map_err(|errno| ("prctl(PR_SET_PDEATHSIG)", errno)).and_then(|()| closed());
    let started = match ready {
        Ok(()) => Server::start(root, tree, client),
        Err((call, errno)) => Err((client, Unfit::Call(call, errno))),
    };
    match started {
        Ok(mut server) => server.serve(),
        Err((client, unfit)) => {
            let answer = match unfit {
                Unfit::Call(call, errno) => {
                    Answer::Unfit { call: call.to_owned(), errno: errno as i32 }
                }
                Unfit::Preload { preload, failure } => Answer::Spoiled { preload, failure },
            };
            // If the root is gone nobody needs to know.
            let _gone = scm_rights::send(client.as_fd(), &answer.encode(), &[]);
            exit::exit_now(70)
        }
    }
}

struct Server {
    book: Book,
    births: Births<RawFd, Asked>,
    confined: Confined,
    programs: Programs,
    clients: BTreeMap<RawFd, Client>,
    epoll: Epoll,
    signals: SignalFd,
    /// The root's number, and its pidfd if there are any.
    root: i32,
    root_pidfd: Option<Pidfd>,
    root_socket: RawFd,
    shared: OwnedFd,
    /// The actors' end of the shared socket; each gets a copy of it.
    shared_actors: OwnedFd,
    image: OwnedFd,
    pidfds: Pidfds,
    rights: Keeper,
    crib: Crib,
    /// Threads that were there before `main`: with them only what is executed at once is forked.
    company: Option<String>,
    /// The root wants all of them stopped, who is still to be born too.
    held: bool,
    /// The last that a client has told.
    last_environment: Option<Rc<Entries>>,
    /// Its own: of its children's only those that differ are set.
    limits: Limits,
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
    /// When to try again what the kernel would not pass on.
    crowded_at: Option<u64>,
    strays: settle::Strays,
    buffer: Vec<u8>,
}

/// A request that waits for its turn, with its fds.
struct Asked {
    owner: Owner,
    request: Request,
    /// Its fds, and who sent it.
    received: scm_rights::Received,
    /// The variables that its client had told last, when this was read.
    environment: Option<Rc<Entries>>,
}

type CallFailed = (&'static str, Errno);

impl Server {
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
            self.look_at_lingering();
            self.ask_to_end();
            self.give_turns();
            let now = now();
            for pid in self.book.due(now) {
                process::kill_own_child(pid, true, libc::SIGKILL);
                process::kill_own_child(pid, false, libc::SIGKILL);
                self.confined.kill(pid);
            }
            if self.crowded_at.is_some_and(|at| at <= now) {
                self.crowded_at = None;
                self.flush_crowded();
            }
            self.settle_strays();
        }
    }

    fn signalled(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            match Signal::try_from(info.ssi_signo.cast_signed()) {
                Ok(Signal::SIGTERM) => self.end(),
                Ok(Signal::SIGCONT) => self.look_after_root(),
                _child => {
                    self.ended.push(info.ssi_pid.cast_signed());
                    self.scan_at = Some(self.scan_not_before);
                }
            }
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let births = self.births.next_deadline().into_iter().chain(self.next_word()).min();
        let next = [self.book.next_deadline(), self.next_settling(), self.scan_at, self.crowded_at];
        let next = next.into_iter().chain([self.programs.next_deadline(), births]).flatten().min();
        let Some(next) = next else { return EpollTimeout::NONE };
        let millis = next.saturating_sub(now()).div_ceil(1_000_000);
        EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
    }

    fn ready(&mut self, fd: RawFd, flags: EpollFlags) {
        if self.root_pidfd.as_ref().is_some_and(|root| root.as_fd().as_raw_fd() == fd) {
            self.end();
        } else if fd == self.signals.as_raw_fd() {
            self.signalled();
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
}

fn now() -> u64 {
    monotonic()
}

/// CLOCK_MONOTONIC in nanoseconds: the clock that requests' deadlines are told in.
pub(crate) fn monotonic() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
