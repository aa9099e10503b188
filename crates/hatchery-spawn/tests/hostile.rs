//! C15: the forkserver takes an actor for a stranger. Whatever one says to it ends that actor's
//! connection, or that actor, and disturbs nobody else.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use common::{BOUND, block_on, isolated, line, park, process, spawn, tell};
use hatchery_spawn::{
    Backend, Birth, Bounds, Child, Exit, Forkserver, Main, Pidfd, Spec, Stdio, fuzz, inventory,
};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType,
    UnixAddr, recvmsg, sendmsg, setsockopt, shutdown, socketpair, sockopt,
};
use nix::sys::time::TimeVal;

inventory::submit! { Main { name: "hang", run: |_| park() } }
inventory::submit! { Main { name: "quit", run: |_| 3 } }
inventory::submit! { Main { name: "spawner", run: spawner } }
inventory::submit! { Main { name: "hostile", run: hostile } }

/// An actor's control socket in the hands of somebody who doesn't use it as he should.
struct Raw(OwnedFd);

impl Raw {
    /// Makes one, as an actor does when it starts its first child.
    fn adopted() -> Self {
        Self::adopted_after(|_| {})
    }

    /// The same, with something said before the forkserver listens.
    fn adopted_after(say: impl FnOnce(&Self)) -> Self {
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        let (ours, theirs) = socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let ours = Self(ours);
        // So that the kernel says who asks, also before the forkserver wants to know.
        setsockopt(&theirs, sockopt::PassCred, &true).unwrap();
        say(&ours);
        send(SHARED, b"adopt", &[theirs.as_raw_fd()], MsgFlags::empty()).unwrap();
        let patience = TimeVal::new(BOUND.as_secs().cast_signed(), 0);
        setsockopt(&ours.0, sockopt::ReceiveTimeout, &patience).unwrap();
        ours
    }

    fn send(&self, bytes: &[u8], fds: &[RawFd]) -> nix::Result<()> {
        send(self.0.as_raw_fd(), bytes, fds, MsgFlags::MSG_NOSIGNAL)
    }

    /// Asks for a child in the right way.
    fn ask(&self, number: u64, main: &str) {
        self.send(&fuzz::good_request(number, main), &good_fds()).unwrap();
    }

    /// The next answer; empty at the end.
    fn answer(&self) -> String {
        let mut bytes = [0; 4096];
        let mut data = [IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let socket = self.0.as_raw_fd();
        let received = match recvmsg::<UnixAddr>(socket, &mut data, Some(&mut space), flags) {
            // It closed on something of ours.
            Err(Errno::ECONNRESET) => return String::new(),
            received => received.unwrap(),
        };
        for message in received.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(fds) = message {
                // The pidfd: this actor has no use for it.
                fds.into_iter().for_each(|fd| nix::unistd::close(fd).unwrap());
            }
        }
        let length = received.bytes;
        if length == 0 { String::new() } else { fuzz::said(&bytes[..length]) }
    }

    /// The number of the next child that was started.
    fn spawned(&self) -> i32 {
        let said = self.answer();
        let pid = said.split("pid: ").nth(1).expect(&said);
        pid.split_once(',').unwrap().0.parse().unwrap()
    }

    /// Waits for the end of it.
    fn ends(&self) -> bool {
        while !self.answer().is_empty() {}
        true
    }
}

fn send(socket: RawFd, bytes: &[u8], fds: &[RawFd], flags: MsgFlags) -> nix::Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    sendmsg::<UnixAddr>(socket, &[IoSlice::new(bytes)], control, flags, None).map(drop)
}

/// That many fds of `/dev/null`, never closed.
fn nulls(count: usize) -> Vec<RawFd> {
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    vec![std::os::fd::IntoRawFd::into_raw_fd(null); count]
}

/// A birth pipe, and stdio; never closed.
fn good_fds() -> Vec<RawFd> {
    let (_read, write) = std::io::pipe().unwrap();
    let mut fds = nulls(4);
    fds[0] = std::os::fd::IntoRawFd::into_raw_fd(write);
    fds
}

/// Where the prelude puts the socket that all actors share, behind the channel.
const SHARED: RawFd = 4;

type Attack = (&'static str, fn(u16));

/// What a hostile actor does; each then waits for its end. Nobody reads what is sent to the port.
const ATTACKS: &[Attack] = &[
    ("an oversized message", |_| {
        let raw = Raw::adopted();
        setsockopt(&raw.0, sockopt::SndBuf, &400_000).unwrap();
        raw.send(&vec![0; 190_000], &nulls(4)).unwrap();
        park()
    }),
    ("an empty message", |_| {
        let raw = Raw::adopted();
        raw.send(&[], &[]).unwrap();
        park()
    }),
    ("no fds", |_| {
        let raw = Raw::adopted();
        raw.send(&fuzz::good_request(1, "quit"), &[]).unwrap();
        park()
    }),
    ("too few fds", |_| {
        let raw = Raw::adopted();
        raw.send(&fuzz::good_request(1, "quit"), &nulls(3)).unwrap();
        park()
    }),
    ("the same request twice", |_| {
        let raw = Raw::adopted();
        raw.ask(5, "hang");
        raw.spawned();
        raw.ask(5, "hang");
        park()
    }),
    ("a word that is the root's", |_| {
        let raw = Raw::adopted();
        raw.send(&fuzz::hold(true), &[]).unwrap();
        park()
    }),
    ("a signal that is none", |_| {
        let raw = Raw::adopted();
        let mut none = fuzz::kill(1);
        none[1] = 0;
        raw.send(&none, &[]).unwrap();
        park()
    }),
    ("a request that is cut", |_| {
        let raw = Raw::adopted();
        let whole = fuzz::good_request(1, "quit");
        raw.send(&whole[..whole.len() - 1], &nulls(4)).unwrap();
        park()
    }),
    ("fds that take their time to close", |port| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nonblocking(true).unwrap();
        // Nobody reads, so the rest of it stays unsent; a close waits a minute for that.
        while stream.write(&[0; 65_536]).is_ok() {}
        let linger = libc::linger { l_onoff: 1, l_linger: 60 };
        setsockopt(&stream, sockopt::Linger, &linger).unwrap();
        let _raw = Raw::adopted_after(|raw| {
            raw.send(&[1], &[stream.as_raw_fd()]).unwrap();
            // It is in flight: the last one to close it is the forkserver.
            drop(stream);
        });
        park()
    }),
];

/// Runs the attack that it is named after.
fn hostile(birth: Birth) -> i32 {
    let attack = ATTACKS.iter().find(|(known, _)| birth.name == *known);
    let port = birth.payload.try_into().map(u16::from_ne_bytes).unwrap();
    attack.unwrap().1(port);
    77
}

/// A good actor: starts a child at each line and says how that ended.
fn spawner(birth: Birth) -> i32 {
    let server = birth.forkserver().unwrap().unwrap();
    let mut channel = birth.channel.unwrap();
    loop {
        if line(&mut channel).is_empty() {
            return 0;
        }
        let since = Instant::now();
        let spec = Spec::main("quit").stdout(Stdio::Null).stderr(Stdio::Null);
        let child = block_on(server.fork().spawn(spec)).unwrap();
        assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(3));
        tell(&mut channel, since.elapsed().as_micros());
    }
}

/// A tree with somebody in it who must not be disturbed.
struct Tree {
    server: Forkserver,
    other: Child,
    channel: std::os::unix::net::UnixStream,
}

impl Tree {
    fn new(bounds: Bounds) -> Self {
        let server = Forkserver::start(bounds).unwrap();
        let (other, channel) = spawn(&server.fork(), Spec::main("spawner")).unwrap();
        let mut tree = Self { server, other, channel };
        tree.undisturbed();
        tree
    }

    /// The root and the bystander are served; says how long that took.
    fn undisturbed(&mut self) -> Duration {
        tell(&mut self.channel, "go");
        let took = line(&mut self.channel).parse().expect("the bystander's answer");
        let since = Instant::now();
        let (child, _channel) = spawn(&self.server.fork(), Spec::main("quit")).unwrap();
        assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(3));
        assert!(!process(&self.other).is_dead());
        Duration::from_micros(took).max(since.elapsed())
    }

    /// Waits until the forkserver has that many children.
    fn has_children(&self, count: usize) {
        let path = format!("/proc/{0}/task/{0}/children", self.server.pid());
        let children = || fs::read_to_string(&path).unwrap();
        let until = Instant::now() + BOUND;
        while children().split_whitespace().count() != count {
            assert!(Instant::now() < until, "{} in place of {count}", children());
            std::thread::yield_now();
        }
    }

    fn fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.server.pid())).unwrap().count()
    }

    /// Waits until the forkserver holds that many fds: it closes what came after it answered.
    fn settles_at(&self, fds: usize) {
        let until = Instant::now() + BOUND;
        while self.fds() != fds {
            assert!(Instant::now() < until, "{} fds in place of {fds}", self.fds());
            std::thread::yield_now();
        }
    }
}

/// C15, faults 42 to 47: who breaks the protocol is ended, whatever hangs below it goes too, the
/// forkserver keeps nothing of it, and nobody else is kept waiting.
#[test]
fn who_breaks_the_protocol_ends_alone() {
    isolated("who_breaks_the_protocol_ends_alone", || {
        let mut tree = Tree::new(Bounds::default());
        let before = tree.fds();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for (name, _) in ATTACKS {
            eprintln!("{name}");
            let spec = Spec::main("hostile").name(name).payload(port.to_ne_bytes().to_vec());
            let (child, _channel) = spawn(&tree.server.fork(), spec).unwrap();
            let exit = block_on(child.wait()).unwrap();
            assert_eq!(exit.signal(), Some(libc::SIGKILL), "{name}: {exit:?}");
            tree.undisturbed();
            tree.settles_at(before);
            // What hangs below it has its grace, and no more.
            tree.has_children(1);
        }
    });
}

inventory::submit! { Main { name: "crowd", run: crowd } }

/// Too many fds for any request of ours, then fds of the wrong kinds.
fn crowd(birth: Birth) -> i32 {
    let raw = Raw::adopted();
    raw.send(&fuzz::good_request(1, "quit"), &nulls(253)).unwrap();
    let refused = raw.answer();
    let directory = File::open("/").unwrap();
    let memory = nix::sys::memfd::memfd_create(c"x", nix::sys::memfd::MFdFlags::empty()).unwrap();
    let epoll = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty()).unwrap();
    let mut odd =
        [directory.as_raw_fd(), memory.as_raw_fd(), epoll.0.as_raw_fd(), raw.0.as_raw_fd()];
    raw.send(&fuzz::good_request(2, "quit"), &odd).unwrap();
    let wrong = raw.answer();
    // As stdio they are the child's affair.
    odd[0] = good_fds()[0];
    raw.send(&fuzz::good_request(3, "quit"), &odd).unwrap();
    let started = raw.answer();
    tell(&mut birth.channel.unwrap(), format!("{refused}|{wrong}|{started}"));
    park()
}

/// C15, fault 45: too many fds are refused and closed, and so are fds of the wrong kind.
#[test]
fn fds_of_any_number_and_kind_are_closed() {
    isolated("fds_of_any_number_and_kind_are_closed", || {
        let mut tree = Tree::new(Bounds::default());
        let before = tree.fds();
        let (child, mut channel) = spawn(&tree.server.fork(), Spec::main("crowd")).unwrap();
        let said = line(&mut channel);
        let [refused, wrong, started] = said.split('|').collect::<Vec<_>>()[..] else {
            panic!("{said}")
        };
        assert!(refused.contains("recvmsg(SCM_RIGHTS)"), "{said}");
        assert!(wrong.contains("fcntl(F_GETPIPE_SZ)"), "{said}");
        assert!(started.starts_with("Spawned"), "{said}");
        tree.undisturbed();
        // Its control socket and two by which its rights are looked at are all that is held.
        tree.settles_at(before + 3);
        drop(child);
        tree.settles_at(before);
    });
}

inventory::submit! { Main { name: "murderer", run: murderer } }

/// Asks for the death of others, and of a child of its own.
fn murderer(birth: Birth) -> i32 {
    let mut channel = birth.channel.unwrap();
    let victims: Vec<i64> =
        line(&mut channel).split(' ').map(|victim| victim.parse().unwrap()).collect();
    let raw = Raw::adopted();
    // Others have asked for theirs under these numbers too.
    for victim in victims.into_iter().chain(0..100) {
        raw.send(&fuzz::kill(victim.cast_unsigned()), &[]).unwrap();
    }
    raw.ask(1, "hang");
    raw.spawned();
    raw.send(&fuzz::kill(1), &[]).unwrap();
    tell(&mut channel, raw.answer());
    park()
}

/// C15, fault 48: an actor's word kills its own children and nobody else.
#[test]
fn nobody_is_killed_at_the_word_of_a_stranger() {
    isolated("nobody_is_killed_at_the_word_of_a_stranger", || {
        let mut tree = Tree::new(Bounds::default());
        let (sibling, _kept) = spawn(&tree.server.fork(), Spec::main("hang")).unwrap();
        let (_child, mut channel) = spawn(&tree.server.fork(), Spec::main("murderer")).unwrap();
        let number = |child: &Child| match child.id() {
            hatchery_spawn::ChildId::Process(pid) => pid,
            hatchery_spawn::ChildId::Thread(_) => 0,
        };
        let victims = [number(&sibling), number(&tree.other), tree.server.pid()];
        let root = std::process::id();
        tell(&mut channel, format!("{} {} {} {root} 1 0 -1", victims[0], victims[1], victims[2]));
        let said = line(&mut channel);
        assert!(said.contains("signal: 9"), "its own child: {said}");
        assert!(!process(&sibling).is_dead());
        assert!(!Pidfd::open(tree.server.pid()).unwrap().is_dead());
        tree.undisturbed();
    });
}

inventory::submit! { Main { name: "deaf", run: deaf } }

/// Asks without end and never listens; half of it is too late from the start.
fn deaf(birth: Birth) -> i32 {
    let raw = Raw::adopted();
    setsockopt(&raw.0, sockopt::RcvBuf, &1).unwrap();
    let null = good_fds();
    let mut channel = birth.channel.unwrap();
    let mut refused = 0;
    for number in 1.. {
        let mut bytes = fuzz::good_request(number, "hang");
        if number % 8 != 0 {
            bytes[8..16].fill(0);
        }
        // Full: nobody reads it any more. Tried on for long enough to see whether it stays so.
        while send(raw.0.as_raw_fd(), &bytes, &null, MsgFlags::MSG_DONTWAIT) == Err(Errno::EAGAIN) {
            refused += 1;
            if refused == 20_000 {
                tell(&mut channel, number);
                park();
            }
            std::thread::yield_now();
        }
    }
    0
}

/// C15, fault 49: who doesn't read is not read from: a bounded backlog, and nobody else waits.
#[test]
fn who_does_not_read_is_not_read_from() {
    isolated("who_does_not_read_is_not_read_from", || {
        let mut tree = Tree::new(Bounds::default());
        let before = tree.fds();
        let (child, mut channel) = spawn(&tree.server.fork(), Spec::main("deaf")).unwrap();
        let asked: usize = line(&mut channel).parse().expect("it was refused in the end");
        // What its socket, our backlog and our socket hold.
        assert!(asked < 3_000, "{asked}");
        assert!(tree.fds() < before + 80, "{} fds of {before}", tree.fds());
        tree.undisturbed();
        drop(child);
        tree.settles_at(before);
        tree.undisturbed();
    });
}

inventory::submit! { Main { name: "leaver", run: leaver } }

/// Closes its socket, or half of it, lives on, and asks for another one.
fn leaver(birth: Birth) -> i32 {
    let raw = Raw::adopted();
    raw.ask(1, "hang");
    let below = raw.spawned();
    let mut channel = birth.channel.unwrap();
    tell(&mut channel, below);
    // The name says which; what is told is that the other side has ended too.
    if birth.name == "half" {
        shutdown(raw.0.as_raw_fd(), Shutdown::Write).unwrap();
        assert!(raw.ends());
    } else {
        drop(raw);
    }
    let again = Raw::adopted();
    let _refused = again.send(&fuzz::good_request(1, "quit"), &good_fds());
    tell(&mut channel, again.ends());
    park()
}

/// Faults 50 and 52: a closed control socket, or half of one, orphans what is below and is the last
/// one; its actor lives.
#[test]
fn who_closes_its_socket_speaks_for_nobody_any_more() {
    isolated("who_closes_its_socket_speaks_for_nobody_any_more", || {
        let mut tree = Tree::new(Bounds::default());
        for name in ["whole", "half"] {
            let spec = Spec::main("leaver").name(name);
            let (child, mut channel) = spawn(&tree.server.fork(), spec).unwrap();
            let below = Pidfd::open(line(&mut channel).parse().unwrap());
            assert_eq!(line(&mut channel), "true", "{name}: no second socket");
            // It may have been over before it was looked for.
            assert!(below.is_err() || below.unwrap().wait_dead(Duration::from_secs(2)), "{name}");
            assert!(!process(&child).is_dead(), "{name}");
            tree.undisturbed();
        }
    });
}

inventory::submit! { Main { name: "shutter", run: shutter } }

/// Shuts the socket that all actors share, and stays.
fn shutter(birth: Birth) -> i32 {
    let how = [Shutdown::Both, Shutdown::Write, Shutdown::Read][usize::from(birth.payload[0])];
    shutdown(SHARED, how).unwrap();
    tell(&mut birth.channel.unwrap(), "shut");
    park()
}

/// C15: who shuts the socket that all share holds up neither the forkserver nor who has its own;
/// those that are born later have another one.
#[test]
fn who_shuts_the_shared_socket_holds_up_nobody() {
    isolated("who_shuts_the_shared_socket_holds_up_nobody", || {
        let mut tree = Tree::new(Bounds::default());
        let fds = tree.fds();
        for how in 0..3 {
            let (child, mut channel) =
                spawn(&tree.server.fork(), Spec::main("shutter").payload(vec![how])).unwrap();
            assert_eq!(line(&mut channel), "shut");
            tree.undisturbed();
            let (late, mut late_channel) =
                spawn(&tree.server.fork(), Spec::main("spawner")).unwrap();
            tell(&mut late_channel, "go");
            assert!(line(&mut late_channel).parse::<u64>().is_ok(), "{how}: it starts its own");
            drop((late, child));
        }
        tree.settles_at(fds);
    });
}

inventory::submit! { Main { name: "bomb", run: bomb } }

/// Starts children as fast as it can and counts who came and who was refused.
fn bomb(birth: Birth) -> i32 {
    let raw = Raw::adopted();
    let mut channel = birth.channel.unwrap();
    let null = good_fds();
    let (mut came, mut refused) = (0, 0);
    for round in 0..u64::MAX {
        for number in 0..16 {
            raw.send(&fuzz::good_request(1 + round * 16 + number, "hang"), &null).unwrap();
        }
        for _ in 0..16 {
            let said = raw.answer();
            came += usize::from(said.starts_with("Spawned"));
            refused += usize::from(said.contains("the quota of children"));
        }
        if round == 4 {
            tell(&mut channel, format!("{came} {refused}"));
        }
    }
    0
}

/// C15, fault 51: a fork bomb meets its quota, and everybody else is served meanwhile.
#[test]
fn a_fork_bomb_meets_its_quota_and_nobody_waits_for_it() {
    isolated("a_fork_bomb_meets_its_quota_and_nobody_waits_for_it", || {
        let mut tree = Tree::new(Bounds { children: 30, ..Bounds::default() });
        let (child, mut channel) = spawn(&tree.server.fork(), Spec::main("bomb")).unwrap();
        assert_eq!(line(&mut channel), "30 50");
        let mut took: Vec<Duration> = (0..50).map(|_| tree.undisturbed()).collect();
        took.sort();
        // Without the bomb this takes one; a queue of its requests would take for ever.
        assert!(took[49] < Duration::from_secs(2), "{took:?}");
        drop(child);
        tree.undisturbed();
    });
}

inventory::submit! { Main { name: "flood", run: flood } }

/// Starts children as fast as it can, for ever.
fn flood(birth: Birth) -> i32 {
    let raw = Raw::adopted();
    let null = good_fds();
    std::thread::scope(|scope| {
        scope.spawn(|| raw.ends());
        let mut number = 0;
        loop {
            number += 1;
            if number == 1_000 {
                tell(&mut birth.channel.as_ref().unwrap().try_clone().unwrap(), "flooded");
            }
            while raw.send(&fuzz::good_request(number, "quit"), &null).is_err() {
                // Too many fds are on their way.
                std::thread::yield_now();
            }
        }
    });
    0
}

/// C15, fault 51: who floods has its turn, as everybody has.
#[test]
fn who_floods_has_its_turn_and_no_more() {
    isolated("who_floods_has_its_turn_and_no_more", || {
        let mut tree = Tree::new(Bounds::default());
        let (child, mut channel) = spawn(&tree.server.fork(), Spec::main("flood")).unwrap();
        assert_eq!(line(&mut channel), "flooded");
        let mut took: Vec<Duration> = (0..50).map(|_| tree.undisturbed()).collect();
        took.sort();
        eprintln!("{took:?}");
        assert!(took[49] < Duration::from_secs(2), "{took:?}");
        drop(child);
        tree.undisturbed();
    });
}

inventory::submit! { Main { name: "twin", run: twin } }

/// Makes a copy of itself that asks for a socket in its name.
fn twin(birth: Birth) -> i32 {
    #[allow(unsafe_code, reason = "the scenario is a raw fork")]
    // SAFETY: this process has one thread.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            let raw = Raw::adopted();
            let _refused = raw.send(&fuzz::good_request(1, "quit"), &good_fds());
            tell(&mut birth.channel.unwrap(), raw.ends());
            park()
        }
        nix::unistd::ForkResult::Parent { .. } => park(),
    }
}

/// C15, fault 16: whom the forkserver did not start has no word, and goes with the actor whose
/// copy it is.
#[test]
fn a_copy_of_an_actor_is_not_that_actor() {
    isolated("a_copy_of_an_actor_is_not_that_actor", || {
        let mut tree = Tree::new(Bounds::default());
        let before = tree.fds();
        let (child, mut channel) = spawn(&tree.server.fork(), Spec::main("twin")).unwrap();
        assert_eq!(line(&mut channel), "true", "it was refused");
        tree.undisturbed();
        tree.settles_at(before);
        child.kill().unwrap();
        // Both held the channel.
        assert_eq!(line(&mut channel), "");
    });
}

inventory::submit! { Main { name: "twins", run: twins } }

/// Makes a copy of itself that asks by the socket of both, and tells what became of it: nobody does.
fn twins(birth: Birth) -> i32 {
    let raw = Raw::adopted();
    // That it is adopted, so that who writes is known.
    raw.send(&fuzz::good_request(1, "quit"), &good_fds()).unwrap();
    assert!(!raw.answer().is_empty());
    #[allow(unsafe_code, reason = "the scenario is a raw fork")]
    // SAFETY: this process has one thread.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            raw.send(&fuzz::good_request(2, "quit"), &good_fds()).unwrap();
            tell(&mut birth.channel.unwrap(), raw.ends());
            park()
        }
        nix::unistd::ForkResult::Parent { .. } => park(),
    }
}

/// Fault 16: two processes that speak in one name end together.
#[test]
fn a_copy_that_speaks_in_an_actors_name_ends_with_it() {
    isolated("a_copy_that_speaks_in_an_actors_name_ends_with_it", || {
        let mut tree = Tree::new(Bounds::default());
        let before = tree.fds();
        let (child, mut channel) = spawn(&tree.server.fork(), Spec::main("twins")).unwrap();
        assert_eq!(block_on(child.wait()).unwrap().signal(), Some(9));
        // Both held the channel. The copy may have heard that their socket was closed.
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut channel, &mut rest).unwrap();
        tree.undisturbed();
        tree.settles_at(before);
    });
}

#[test]
fn the_slots_are_where_these_tests_look() {
    isolated("the_slots_are_where_these_tests_look", || {
        inventory::submit! { Main { name: "slots", run: slots } }
        fn slots(birth: Birth) -> i32 {
            let channel = birth.channel.as_ref().unwrap().as_fd().as_raw_fd();
            i32::from(channel + 1 == SHARED)
        }
        let server = Forkserver::start(Bounds::default()).unwrap();
        let (child, _channel) = spawn(&server.fork(), Spec::main("slots")).unwrap();
        assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(1));
    });
}
