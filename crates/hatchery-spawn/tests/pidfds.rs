//! Children whose pidfds can't be had (faults 32 to 34): the table of who asked is full, the
//! machine's is, or there is no `pidfd_open`. A child that is there is waited for, signalled and
//! killed like any, through the forkserver; one for which there is no room is not forked.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;
#[path = "../../../tests/events.rs"]
#[allow(unreachable_pub, reason = "it is another crate's module too")]
mod events;
mod filters;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{BOUND, answer, block_on, isolated, line, park, rooted, say, spawn, tell};
use events::Events;
use filters::{filtered, forbid, supervise};
use hatchery_spawn::{
    Backend, Birth, Bounds, Child, ChildId, Exit, Forkserver, Main, Pidfd, SpawnError, Spec, Stdio,
    inventory,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

inventory::submit! { Main { name: "hang", run: hang } }
inventory::submit! { Main { name: "quit", run: |_| 3 } }
inventory::submit! { Main { name: "spawner", run: spawner } }
inventory::submit! { Main { name: "stray", run: stray } }

fn hang(birth: Birth) -> i32 {
    if let Some(mut channel) = birth.channel {
        tell(&mut channel, "up");
    }
    park()
}

/// Ends one child by each means, and says how all of that went.
fn spawner(birth: Birth) -> i32 {
    let server = birth.forkserver().unwrap().unwrap();
    let mut said = vec![server.has_pidfds().to_string()];
    for backend in [&server.fork() as &dyn Backend, &server.exec()] {
        said.extend(ends(backend).iter().map(ToString::to_string));
    }
    tell(&mut birth.channel.unwrap(), said.join(", "));
    0
}

/// Leaves a program in a session of its own and says its number.
fn stray(birth: Birth) -> i32 {
    let mut channel = birth.channel.unwrap();
    #[allow(clippy::zombie_processes, reason = "nobody waits for it: that is the scenario")]
    let stray = std::process::Command::new("setsid").args(["sleep", "1000"]).spawn().unwrap();
    tell(&mut channel, stray.id());
    park()
}

/// A child that goes by itself, one that is terminated, one that is stopped and killed, one that is
/// dropped.
fn ends(backend: &dyn Backend) -> Vec<Exit> {
    let mut ends = Vec::new();
    let (child, _channel) = spawn(backend, Spec::main("quit")).unwrap();
    ends.push(block_on(child.wait()).unwrap());
    let up = || {
        let (child, mut channel) = spawn(backend, Spec::main("hang")).unwrap();
        assert_eq!(line(&mut channel), "up");
        (child, channel)
    };
    let (child, _channel) = up();
    child.terminate().unwrap();
    ends.push(block_on(child.wait()).unwrap());
    // One that has ended is no error, nor is anybody hit.
    child.kill().unwrap();
    let (child, _channel) = up();
    child.handle().signal(libc::SIGSTOP).unwrap();
    reaches(pid(&child), 'T');
    child.kill().unwrap();
    ends.push(block_on(child.wait()).unwrap());
    let (child, _channel) = up();
    let handle = child.handle();
    drop(child);
    ends.push(block_on(handle.wait()).unwrap());
    ends
}

/// What [`ends`] gives where all is well.
fn good_ends() -> Vec<Exit> {
    let killed = |signal| Exit::Signal { signal, core_dumped: false, out_of_memory: false };
    vec![Exit::Code(3), killed(libc::SIGTERM), killed(libc::SIGKILL), killed(libc::SIGKILL)]
}

fn start() -> Forkserver {
    Forkserver::start(Bounds::default()).unwrap()
}

fn pid(child: &Child) -> u32 {
    let ChildId::Process(pid) = child.id() else { panic!("a thread") };
    pid
}

/// The call that an error names, with its number.
fn call(error: SpawnError) -> (String, i32) {
    let SpawnError::Call { call, cause, .. } = error else { panic!("{error:?}") };
    (call, cause.raw_os_error().unwrap())
}

fn fds() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The kernel's letter for what a process does; `None` if there is none, or a zombie.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let state = stat.rsplit_once(") ")?.1.chars().next()?;
    (state != 'Z').then_some(state)
}

/// Waits until a process is in that state: nobody is told of it.
fn reaches(pid: u32, wanted: char) {
    waits_for(|| state(pid) == Some(wanted), || format!("{pid} is {:?}", state(pid)));
}

fn waits_for(done: impl Fn() -> bool, describe: impl Fn() -> String) {
    let until = Instant::now() + BOUND;
    while !done() {
        assert!(Instant::now() < until, "{}", describe());
        std::thread::yield_now();
    }
}

fn children_of(server: u32) -> Vec<u32> {
    let list = format!("/proc/{server}/task/{server}/children");
    let list = fs::read_to_string(list).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn has_no_children(server: &Forkserver) {
    let children = || children_of(server.pid());
    waits_for(|| children().is_empty(), || format!("still there: {:?}", children()));
}

/// What a sandbox forbids that has not heard of pidfds.
const ALL_OF_THEM: [i64; 2] = [libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal];

/// Fault 32: RLIMIT_NOFILE of the root is reached when it asks, or when the answer comes. What it
/// can't ask for is a typed error; what was forked is a child like any, with a warning, while the
/// table is still full. Nothing is left of either.
#[test]
fn a_full_table_of_the_root_takes_no_child_from_it() {
    isolated("a_full_table_of_the_root_takes_no_child_from_it", || {
        let events = Events::capture();
        let server = start();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 200, hard).unwrap();
        let null = OwnedFd::from(fs::File::open("/dev/null").unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let forkserver = Pidfd::open(server.pid()).unwrap();
        // Nothing was asked for yet, so nothing is on its way.
        let before = fds();
        assert_eq!(ends(&server.fork()), good_ends());
        let mut calls = Vec::new();
        let mut fill = Vec::new();
        let fill_up = |fill: &mut Vec<OwnedFd>| {
            while let Ok(one) = null.try_clone() {
                fill.push(one);
            }
        };
        for room in (0..16).rev() {
            for (backend, signal) in [
                (&server.fork() as &dyn Backend, libc::SIGTERM),
                (&server.fork(), libc::SIGKILL),
                (&server.exec(), libc::SIGTERM),
                (&server.exec(), libc::SIGKILL),
            ] {
                fill_up(&mut fill);
                fill.truncate(fill.len() - room);
                // Full once more before the answer can come.
                forkserver.send_signal(libc::SIGSTOP).unwrap();
                let spec = Spec::main("hang").stdin(Stdio::Null).stdout(Stdio::Null);
                let spawning = backend.spawn(spec);
                fill_up(&mut fill);
                forkserver.send_signal(libc::SIGCONT).unwrap();
                match runtime.block_on(spawning) {
                    Ok(child) => {
                        child.handle().signal(signal).unwrap();
                        let exit = runtime.block_on(child.wait()).unwrap();
                        assert_eq!(
                            exit,
                            Exit::Signal { signal, core_dumped: false, out_of_memory: false }
                        );
                    }
                    Err(error) => calls.push(call(error)),
                }
            }
        }
        drop(fill);
        assert!(calls.iter().any(|(call, _)| call == "pipe2"), "{calls:?}");
        let before_the_fork =
            |(call, errno): &(String, i32)| *errno == libc::EMFILE && call != "recvmsg(SCM_RIGHTS)";
        assert!(calls.iter().all(before_the_fork), "{calls:?}");
        assert!(!events.with("no room for a pidfd").is_empty());
        assert!(server.has_pidfds());
        assert_eq!(ends(&server.fork()), good_ends());
        has_no_children(&server);
        // What belonged to a child is closed by whoever looks at it last.
        waits_for(|| fds() <= before, || format!("{} fds, {before} before", fds()));
    });
}

/// Fault 33: the machine's table is full: refused by name before the fork, and all is well when
/// there is room again. The one that has its place already is still born.
#[test]
fn a_full_table_of_the_machine_is_refused_before_the_fork() {
    isolated("a_full_table_of_the_machine_is_refused_before_the_fork", || {
        filtered(|| {
            let (full, forks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
            let own = std::process::id();
            let judge = {
                let (full, forks) = (full.clone(), forks.clone());
                move |by: u32, call: i64, [whom, ..]: [u64; 6]| {
                    if call != libc::SYS_pidfd_open {
                        forks.fetch_add(usize::from(by != own), SeqCst);
                        return None;
                    }
                    // A child's takes the place of the forkserver's own, which was just closed.
                    let another = u64::from(by) == whom && by != own;
                    (another && full.load(SeqCst)).then_some(libc::ENFILE)
                }
            };
            let calls = [libc::SYS_pidfd_open, libc::SYS_clone, libc::SYS_clone3];
            supervise(&calls, Arc::new(judge));
            let server = start();
            for round in 0..3 {
                full.store(false, SeqCst);
                assert_eq!(ends(&server.fork()), good_ends(), "round {round}");
                full.store(true, SeqCst);
                let (last, _channel) = spawn(&server.fork(), Spec::main("hang")).unwrap();
                let before = forks.load(SeqCst);
                for backend in [&server.fork() as &dyn Backend, &server.exec()] {
                    for _ in 0..5 {
                        let error = spawn(backend, Spec::main("hang")).map(drop).unwrap_err();
                        assert_eq!(call(error), ("pidfd_open".to_owned(), libc::ENFILE));
                    }
                }
                assert_eq!(forks.load(SeqCst), before, "nothing was forked");
                assert_eq!(children_of(server.pid()), [pid(&last)]);
                drop(last);
                has_no_children(&server);
            }
            full.store(false, SeqCst);
            assert_eq!(ends(&server.exec()), good_ends());
            has_no_children(&server);
        });
    });
}

/// Fault 33, at the one moment that nobody can rule out: somebody else takes the place between the
/// fork and the pidfd. The same error; the child is gone, and the next one is born.
#[test]
fn a_child_whose_place_is_taken_is_gone() {
    isolated("a_child_whose_place_is_taken_is_gone", || {
        filtered(|| {
            let taken = Arc::new(AtomicBool::new(false));
            let own = std::process::id();
            let judge = {
                let taken = taken.clone();
                move |by: u32, _, [whom, ..]: [u64; 6]| {
                    let a_child = by != own && u64::from(by) != whom;
                    (a_child && taken.load(SeqCst)).then_some(libc::ENFILE)
                }
            };
            supervise(&[libc::SYS_pidfd_open], Arc::new(judge));
            let server = start();
            // It has its root's pidfd when it has answered.
            assert_eq!(ends(&server.fork()), good_ends());
            for backend in [&server.fork() as &dyn Backend, &server.exec()] {
                for _ in 0..5 {
                    taken.store(true, SeqCst);
                    let error = spawn(backend, Spec::main("hang")).map(drop).unwrap_err();
                    assert_eq!(call(error), ("pidfd_open".to_owned(), libc::ENFILE));
                    assert_eq!(children_of(server.pid()), []);
                    taken.store(false, SeqCst);
                    let (child, _channel) = spawn(backend, Spec::main("quit")).unwrap();
                    assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(3));
                }
            }
            has_no_children(&server);
        });
    });
}

/// Whether a message that process `by` is about to send has something beside its bytes.
fn has_fds(by: u32, message: u64) -> bool {
    let mut length = [0; 8];
    let memory = fs::File::open(format!("/proc/{by}/mem")).unwrap();
    memory.read_exact_at(&mut length, message + CONTROL_LENGTH).unwrap();
    u64::from_ne_bytes(length) > 0
}

/// Where `msghdr` has it.
const CONTROL_LENGTH: u64 = std::mem::offset_of!(libc::msghdr, msg_controllen) as u64;

/// H15: this user has too many fds under way elsewhere, so the kernel passes none on. The forkserver
/// tries again at its leisure, and if that takes long the child does without a pidfd: it and what is
/// told behind it wait for nobody.
#[test]
fn fds_that_are_under_way_elsewhere_hold_nothing_up() {
    isolated("fds_that_are_under_way_elsewhere_hold_nothing_up", || {
        let events = Events::capture();
        filtered(|| {
            let (refusals, tries) = (Arc::new(Mutex::new(0_usize)), Arc::new(AtomicUsize::new(0)));
            let forkserver = Arc::new(AtomicU32::new(0));
            let judge = {
                let (refusals, tries) = (refusals.clone(), tries.clone());
                let forkserver = forkserver.clone();
                move |by: u32, _, [_, message, ..]: [u64; 6]| {
                    if by != forkserver.load(SeqCst) || !has_fds(by, message) {
                        return None;
                    }
                    tries.fetch_add(1, SeqCst);
                    let mut left = refusals.lock().unwrap();
                    let refused = (*left > 0).then_some(libc::ETOOMANYREFS);
                    *left = left.saturating_sub(1);
                    refused
                }
            };
            supervise(&[libc::SYS_sendmsg], Arc::new(judge));
            let server = start();
            forkserver.store(server.pid(), SeqCst);
            // For a moment.
            *refusals.lock().unwrap() = 5;
            let (child, _channel) = spawn(&server.fork(), Spec::main("quit")).unwrap();
            assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(3));
            assert!(events.with("no room for a pidfd").is_empty());
            // For ever.
            for backend in [&server.fork() as &dyn Backend, &server.exec()] {
                *refusals.lock().unwrap() = usize::MAX;
                tries.store(0, SeqCst);
                assert_eq!(ends(backend), good_ends());
                let tries = tries.load(SeqCst);
                assert!(tries < 100 * good_ends().len(), "tried {tries} times: that is a loop");
            }
            assert_eq!(events.with("no room for a pidfd").len(), 2 * good_ends().len());
            *refusals.lock().unwrap() = 0;
            assert!(server.has_pidfds());
            has_no_children(&server);
        });
    });
}

/// Fault 34: a filter forbids pidfds, or the kernel has none: the tree is up without them and says
/// so, and children of the root and of an actor end in every way in which they end with them.
#[test]
fn without_pidfds_all_goes_through_the_forkserver() {
    isolated("without_pidfds_all_goes_through_the_forkserver", || {
        let events = Events::capture();
        for (round, errno) in [libc::EPERM, libc::ENOSYS].into_iter().enumerate() {
            for calls in [&ALL_OF_THEM[..1], &ALL_OF_THEM] {
                filtered(|| {
                    forbid(calls, errno);
                    let server = start();
                    assert!(!server.has_pidfds());
                    for backend in [&server.fork() as &dyn Backend, &server.exec()] {
                        assert_eq!(ends(backend), good_ends());
                        let said = answer(backend, Spec::main("spawner"));
                        let all: Vec<_> = [good_ends(), good_ends()]
                            .concat()
                            .iter()
                            .map(Exit::to_string)
                            .collect();
                        assert_eq!(said.trim(), format!("false, {}", all.join(", ")));
                    }
                    stops_and_goes_on(&server);
                    server.close();
                    assert_eq!(state(server.pid()), None);
                });
            }
            assert_eq!(events.with("no pidfd_open").len(), 2 * (round + 1), "once a tree");
        }
    });
}

/// The root stops its tree and lets it go on, with whoever is born meanwhile.
fn stops_and_goes_on(server: &Forkserver) {
    let (child, mut channel) = spawn(&server.fork(), Spec::main("hang")).unwrap();
    assert_eq!(line(&mut channel), "up");
    server.hold_tree(true);
    reaches(pid(&child), 'T');
    let (ours, theirs) = UnixStream::pair().unwrap();
    let spec = Spec::main("hang").stdout(Stdio::Null).channel(theirs.into());
    let late = block_on(server.fork().spawn(spec)).unwrap();
    reaches(pid(&late), 'T');
    server.hold_tree(false);
    assert_eq!(line(&mut { ours }), "up");
    reaches(pid(&child), 'S');
    for child in [child, late] {
        child.terminate().unwrap();
        assert_eq!(block_on(child.wait()).unwrap().signal(), Some(libc::SIGTERM));
    }
    has_no_children(server);
}

/// Fault 34 in the forkserver alone: it says so, and its root goes by what it says.
#[test]
fn a_forkserver_without_pidfds_says_so() {
    isolated("a_forkserver_without_pidfds_says_so", || {
        let events = Events::capture();
        filtered(|| {
            let own = std::process::id();
            let judge = move |by: u32, _, _| (by != own).then_some(libc::ENOSYS);
            supervise(&[libc::SYS_pidfd_open], Arc::new(judge));
            let server = start();
            assert_eq!(ends(&server.fork()), good_ends());
            assert_eq!(ends(&server.exec()), good_ends());
            assert!(!server.has_pidfds());
            assert_eq!(events.with("no pidfd_open").len(), 1);
            stops_and_goes_on(&server);
        });
    });
}

/// Fault 34, C3: without pidfds the root's SIGKILL takes the whole tree: at rest, with the
/// forkserver stopped, and with somebody who still holds the root's end of its socket.
#[test]
fn without_pidfds_sigkill_of_the_root_takes_the_whole_tree() {
    for how in ["at rest", "stopped", "copied"] {
        rooted(
            "without_pidfds_sigkill_of_the_root_takes_the_whole_tree",
            || {
                let mut how = String::new();
                std::io::stdin().read_line(&mut how).unwrap();
                forbid(&ALL_OF_THEM, libc::ENOSYS);
                let server = start();
                let children: Vec<_> = [&server.fork() as &dyn Backend, &server.exec()]
                    .into_iter()
                    .map(|backend| spawn(backend, Spec::main("hang")).unwrap())
                    .collect();
                if how.trim() == "copied" {
                    copy_that_outlives(server.pid());
                }
                say(server.pid());
                children.iter().for_each(|(child, _)| say(pid(child)));
                park();
            },
            |root| {
                root.hear(how);
                let server = root.pid();
                let children = [root.pid(), root.pid()];
                if how == "stopped" {
                    server.send_signal(libc::SIGSTOP).unwrap();
                }
                root.pidfd.send_signal(libc::SIGKILL).unwrap();
                for process in children.iter().chain([&server]) {
                    assert!(process.wait_dead(Duration::from_secs(1)), "{how}");
                }
            },
        );
    }
}

/// A copy of this process, with all its fds, that goes when the forkserver has.
fn copy_that_outlives(server: u32) {
    #[allow(unsafe_code, reason = "the scenario is a raw fork")]
    // SAFETY: the other threads of this process wait, and the copy only looks at files.
    if unsafe { nix::unistd::fork() }.unwrap().is_child() {
        let until = Instant::now() + BOUND;
        while state(server).is_some() && Instant::now() < until {
            std::thread::yield_now();
        }
        hatchery_spawn::exit_now(0);
    }
}

/// Fault 34, C3: without pidfds the forkserver's SIGKILL takes all below it, what actors have started
/// by themselves too, and whoever waits is told.
#[test]
fn without_pidfds_sigkill_of_the_forkserver_takes_everything_below_the_root() {
    rooted(
        "without_pidfds_sigkill_of_the_forkserver_takes_everything_below_the_root",
        || {
            forbid(&ALL_OF_THEM[..1], libc::EPERM);
            let server = start();
            let (child, mut channel) = spawn(&server.fork(), Spec::main("stray")).unwrap();
            let stray = line(&mut channel);
            say(server.pid());
            say(pid(&child));
            say(stray);
            block_on(child.wait()).unwrap_err();
            child.kill().unwrap();
            say(block_on(server.lost()));
            let error = spawn(&server.fork(), Spec::main("quit")).map(drop).unwrap_err();
            assert!(matches!(error, SpawnError::ServerGone { .. }), "{error:?}");
            server.close();
            assert_eq!(ends(&start().fork()), good_ends());
        },
        |root| {
            let server = root.pid();
            let below = [root.pid(), root.pid()];
            server.send_signal(libc::SIGKILL).unwrap();
            root.line();
            let dead = below.each_ref().map(Pidfd::is_dead);
            assert_eq!(dead, [true; 2], "told after they are gone");
            assert!(root.pidfd.wait_dead(BOUND));
            assert!(root.process.wait().unwrap().success());
        },
    );
}

/// Fault 34, C2: without pidfds a forkserver that is stopped is ended within its bound, and the
/// tree with it.
#[test]
fn without_pidfds_a_stuck_forkserver_is_ended() {
    isolated("without_pidfds_a_stuck_forkserver_is_ended", || {
        // Nobody who is filtered can stop it.
        let (tell_pid, stopper) = std::sync::mpsc::channel::<u32>();
        let (stopped, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for pid in stopper {
                Pidfd::open(pid).unwrap().send_signal(libc::SIGSTOP).unwrap();
                stopped.send(()).unwrap();
            }
        });
        filtered(move || {
            forbid(&ALL_OF_THEM, libc::ENOSYS);
            for by_force in [false, true] {
                let server = start();
                let (child, _channel) = spawn(&server.fork(), Spec::main("hang")).unwrap();
                tell_pid.send(server.pid()).unwrap();
                told.recv().unwrap();
                if by_force {
                    server.kill_tree();
                }
                server.close();
                assert_eq!((state(server.pid()), state(pid(&child))), (None, None));
            }
        });
    });
}
