//! The forkserver's start: what it is from then on, and what it answers for to its root.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::Server;
use super::clients::shared_pair;
use super::programs::Programs;
use super::settle::Strays;
use crate::forkserver::births::Births;
use crate::forkserver::book::{Book, Owner};
use crate::forkserver::confined::Confined;
use crate::forkserver::crib::Crib;
use crate::forkserver::pidfds::Pidfds;
use crate::forkserver::rights::Keeper;
use crate::forkserver::threads;
use crate::forkserver::warm_up::{self, Unfit};
use crate::forkserver::wire::{Answer, MAX_BYTES};
use crate::held::is_forbidden;
use crate::sys::pidfd::Pidfd;
use crate::sys::rlimit::{self, Limits};
use crate::sys::{env, fds, huge, owner, scm_rights, sigaction};

impl Server {
    pub(super) fn start(root: i32, tree: &str, client: OwnedFd) -> Result<Self, (OwnedFd, Unfit)> {
        match Self::prepare(root, tree, &client) {
            Ok(mut server) => {
                server.admit(client, Owner::Root);
                Ok(server)
            }
            Err(failed) => Err((client, failed)),
        }
    }

    fn prepare(root: i32, tree: &str, client: &OwnedFd) -> Result<Self, Unfit> {
        let call = |name| move |errno| (name, errno);
        let io = |name| {
            move |error: std::io::Error| {
                (name, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
            }
        };
        // That it was the root that died, and not just the thread that started us, is told by this, or by
        // having another parent (H11).
        let root_pidfd = match Pidfd::open(root.cast_unsigned()) {
            Ok(pidfd) => Some(pidfd),
            // The end of its socket and that signal have to do.
            Err(error) if is_forbidden(&error) => None,
            Err(error) => return Err(io("pidfd_open")(error).into()),
        };
        if nix::unistd::getppid().as_raw() != root {
            return Err(("getppid", Errno::ESRCH).into());
        }
        nix::sys::prctl::set_child_subreaper(true)
            .map_err(call("prctl(PR_SET_CHILD_SUBREAPER)"))?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)
            .map_err(call("sigprocmask"))?;
        let (grace, quota, huge_pages, strays_bound) = bounds();
        let null = open("/dev/null", OFlag::O_RDWR).map_err(call("open(/dev/null)"))?;
        let image = open("/proc/self/exe", OFlag::O_PATH).map_err(call("open(/proc/self/exe)"))?;
        warm_up::run(client.as_fd(), root_pidfd.as_ref().map(AsFd::as_fd))?;
        let company = threads::silent_company()?;
        // The page by which its children know copies of theirs: none of them need map one.
        let _its_own = owner::claim();
        // Inherited or made by a preload: children get none of it.
        sigaction::reset_all();
        let wanted = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGCONT]);
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&wanted, flags).map_err(call("signalfd"))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(call("epoll_create1"))?;
        let (shared, shared_actors) = shared_pair()?;
        let limits = raise_open_files()?;
        let root_fd = root_pidfd.as_ref().map(AsFd::as_fd);
        for fd in [signals.as_fd(), shared.as_fd()].into_iter().chain(root_fd) {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, fd.as_raw_fd().cast_unsigned().into());
            epoll.add(fd, event).map_err(call("epoll_ctl"))?;
        }
        let pidfds = Pidfds::new(root_pidfd.is_some());
        let rights = Keeper::new(image.as_fd())?;
        for slot in 0..3 {
            fds::place(null.as_raw_fd(), slot, false).map_err(call("dup3"))?;
        }
        say_ready(client, &pidfds, huge_pages).map_err(call("sendmsg"))?;
        Ok(Self {
            book: Book::default(),
            births: Births::default(),
            confined: Confined::default(),
            programs: Programs::default(),
            clients: BTreeMap::new(),
            epoll,
            signals,
            root,
            root_pidfd,
            root_socket: client.as_raw_fd(),
            shared,
            shared_actors,
            image,
            pidfds,
            rights,
            crib: Crib::new(),
            company,
            held: false,
            last_environment: None,
            limits,
            pid: nix::unistd::getpid().as_raw(),
            tree: tree.to_owned(),
            next_mark: 1,
            grace,
            quota,
            ended: Vec::new(),
            scan_at: None,
            scan_not_before: 0,
            crowded_at: None,
            strays: Strays::new(strays_bound),
            buffer: vec![0; MAX_BYTES + 1],
        })
    }
}

/// Has as many files open as it may, and says which limits it has then.
fn raise_open_files() -> Result<Limits, (&'static str, Errno)> {
    let mut limits = rlimit::of(0).map_err(|errno| ("prlimit", errno))?;
    let (soft, hard) = &mut limits[libc::RLIMIT_NOFILE as usize];
    *soft = *hard;
    let raised = rlimit::set(libc::RLIMIT_NOFILE, (*soft, *hard));
    raised.map_err(|errno| ("prlimit", errno))?;
    Ok(limits)
}

fn open(path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
}

/// The last step of the start: from here on requests are served.
fn say_ready(client: &OwnedFd, pidfds: &Pidfds, huge_pages: bool) -> Result<(), Errno> {
    let small_pages = if huge_pages { why_small() } else { String::new() };
    let ready = Answer::Ready { pidfds: pidfds.are_available(), small_pages };
    scm_rights::send(client.as_fd(), &ready.encode(), &[])
}

/// Moves the code to huge pages, and says why not if that can't be done: a wish, and no need.
fn why_small() -> String {
    huge::move_code().err().map_or_else(String::new, |(step, error)| format!("{step}: {error}"))
}

/// What the root has told: the orphan grace, the quota of children, whether to ask for huge pages, how
/// long to wait for strays.
fn bounds() -> (u64, usize, bool, u64) {
    let text = std::env::var(BOUNDS).unwrap_or_default();
    env::remove(BOUNDS.as_ref());
    let mut told = text.split(',');
    let mut next = || told.next();
    let (grace, quota, huge, strays) = (next(), next(), next(), next());
    let grace = grace.and_then(|text| text.parse().ok()).unwrap_or(500_000_000);
    let quota = quota.and_then(|text| text.parse().ok()).unwrap_or(10_000);
    let strays = strays.and_then(|text| text.parse().ok()).unwrap_or(1_000_000_000);
    (grace, quota, huge == Some("huge"), strays)
}

/// The variable that carries the orphan grace in nanoseconds, the quota of children, `huge` or `small`
/// for the pages of the code, and the bound for strays in nanoseconds.
pub(crate) const BOUNDS: &str = "HATCHERY_BOUNDS";
