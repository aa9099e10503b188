//! C3: whoever dies, what is below goes, without help from its goodwill: nothing here listens.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio as StdStdio};
use std::time::{Duration, Instant};

use common::{Root, block_on, isolated, line, park, process, rooted, say, spawn, tell};
use hatchery_spawn::{
    Backend, Birth, Bounds, Child, Exit, Forkserver, Main, Pidfd, Spec, Stdio, inventory,
};

inventory::submit! { Main { name: "nest", run: nest } }
inventory::submit! { Main { name: "quit", run: |_| 3 } }
inventory::submit! { Main { name: "abuse", run: abuse } }

/// An actor that hangs for ever, and another below it until the depth in its payload is used up.
/// With strays, each starts programs by itself: one in its group, one in a session of its own, and
/// one that was let go by its parent, which has a child that was let go once more.
fn nest(birth: Birth) -> i32 {
    let [depth, strays] = birth.payload[..] else { return 1 };
    let mut channel = birth.channel.as_ref().expect("a channel").try_clone().unwrap();
    tell(&mut channel, std::process::id());
    let mut started = Vec::new();
    if strays > 0 {
        for words in [
            &["sh", "-c", "echo $$; exec sleep 1000"][..],
            &["setsid", "sh", "-c", "echo $$; exec sleep 1000"],
            &["sh", "-c", "setsid sh -c 'echo $$; exec sleep 1000' &"],
            &["setsid", "sh", "-c", "setsid sh -c 'echo $$; exec sleep 1000' & wait"],
        ] {
            let mut stray = Command::new(words[0])
                .args(&words[1..])
                .stdout(StdStdio::piped())
                .stderr(StdStdio::null())
                .spawn()
                .unwrap();
            let mut pid = String::new();
            BufReader::new(stray.stdout.take().unwrap()).read_line(&mut pid).unwrap();
            tell(&mut channel, pid.trim());
            started.push(stray);
        }
    }
    let mut below = Vec::new();
    if depth > 0 {
        let server = birth.forkserver().unwrap().expect("a forkserver");
        let (child, mut answers) = deeper(&server.fork(), depth - 1, strays > 0);
        for _ in 0..told(depth - 1, strays > 0) {
            tell(&mut channel, line(&mut answers));
        }
        below.push((child, answers));
    }
    tell(&mut channel, "up");
    park();
}

/// How many lines a nest of that depth tells.
fn told(depth: u8, strays: bool) -> usize {
    // Its strays and itself, and a word when all that is up.
    usize::from(depth + 1) * if strays { 6 } else { 2 }
}

fn deeper(backend: &dyn Backend, depth: u8, strays: bool) -> (Child, UnixStream) {
    let payload = vec![depth, u8::from(strays)];
    spawn(backend, Spec::main("nest").payload(payload).stderr(Stdio::Null)).unwrap()
}

/// The processes of a nest of that depth, from the top: each with its strays.
fn processes(mut channel: &UnixStream, depth: u8) -> Vec<Pidfd> {
    let mut lines = BufReader::new(&mut channel).lines().map(Result::unwrap);
    let mut found = Vec::new();
    for _ in 0..=depth {
        let pids = lines.by_ref().take_while(|line| line != "up");
        found.extend(pids.map(|pid| Pidfd::open(pid.parse().unwrap()).unwrap()));
    }
    found
}

fn start() -> Forkserver {
    Forkserver::start(Bounds::default()).unwrap()
}

/// A root with a nest of three, forked and executed, and a program; says how many and hangs.
fn full_root(with_strays: bool) {
    let server = start();
    say(server.pid());
    let mut kept = Vec::new();
    for backend in [&server.fork() as &dyn Backend, &server.exec()] {
        let (child, channel) = deeper(backend, 2, with_strays);
        processes(&channel, 2);
        kept.push((child, channel));
    }
    let program = Spec::program("sleep").arg("1000").stdout(Stdio::Null);
    let _program = block_on(server.fork().spawn(program)).unwrap();
    say("up");
    park();
}

/// Waits until a full root is up; gives its forkserver and the processes of all of it.
fn is_up(root: &Root, least: usize) -> (Pidfd, Vec<Pidfd>) {
    let server = root.pid();
    assert_eq!(root.line(), "up");
    let all: Vec<Pidfd> = root.marked().into_iter().map(|pid| Pidfd::open(pid).unwrap()).collect();
    assert!(all.len() >= least, "{} of {least}", all.len());
    (server, all)
}

fn all_dead(all: &[Pidfd], bound: Duration) -> bool {
    let until = Instant::now() + bound;
    all.iter().all(|one| one.wait_dead(until.saturating_duration_since(Instant::now())))
}

/// C3 promises a second, which `hatchery-bench --only deaths` measures; this only tells who never
/// goes from who waits for a processor beside a hundred others.
const SOON: Duration = Duration::from_secs(10);

/// C3, H12: the root's SIGKILL takes everything, strays of every kind included.
#[test]
fn sigkill_of_the_root_takes_the_whole_tree_and_all_strays() {
    let test = "sigkill_of_the_root_takes_the_whole_tree_and_all_strays";
    rooted(
        test,
        || full_root(true),
        |root| {
            let (_, all) = is_up(root, 2 + 2 * 15 + 1);
            root.pidfd.send_signal(libc::SIGKILL).unwrap();
            assert!(all_dead(&all, SOON));
        },
    );
}

/// C3: a forkserver that is stopped is woken by the root's death.
#[test]
fn sigkill_of_the_root_wakes_a_stopped_forkserver() {
    let test = "sigkill_of_the_root_wakes_a_stopped_forkserver";
    rooted(
        test,
        || full_root(true),
        |root| {
            let (server, all) = is_up(root, 2 + 2 * 15 + 1);
            server.send_signal(libc::SIGSTOP).unwrap();
            root.pidfd.send_signal(libc::SIGKILL).unwrap();
            assert!(all_dead(&all, SOON));
        },
    );
}

/// C3: the forkserver's SIGKILL takes everything but the root, strays included.
#[test]
fn sigkill_of_the_forkserver_takes_everything_below_the_root() {
    let test = "sigkill_of_the_forkserver_takes_everything_below_the_root";
    rooted(
        test,
        || full_root(true),
        |root| {
            let (server, all) = is_up(root, 2 + 2 * 15 + 1);
            server.send_signal(libc::SIGKILL).unwrap();
            let own = root.process.id();
            let own = Pidfd::open(own).unwrap();
            let below: Vec<Pidfd> = all.into_iter().collect();
            let until = Instant::now() + SOON;
            while root.marked().len() > 1 && Instant::now() < until {
                let left = root.marked();
                for pid in left.into_iter().filter(|pid| *pid != root.process.id()) {
                    let Ok(one) = Pidfd::open(pid) else { continue };
                    assert!(
                        one.wait_dead(until.saturating_duration_since(Instant::now())),
                        "{pid}"
                    );
                }
            }
            assert!(!own.is_dead(), "the root lives");
            assert_eq!(below.iter().filter(|one| !one.is_dead()).count(), 1);
        },
    );
}

/// C3: the root and the forkserver at once: the kernel kills all actors.
#[test]
fn sigkill_of_root_and_forkserver_at_once_takes_all_actors() {
    let test = "sigkill_of_root_and_forkserver_at_once_takes_all_actors";
    rooted(
        test,
        || full_root(false),
        |root| {
            let (server, all) = is_up(root, 2 + 2 * 3 + 1);
            server.send_signal(libc::SIGSTOP).unwrap();
            root.pidfd.send_signal(libc::SIGSTOP).unwrap();
            server.send_signal(libc::SIGKILL).unwrap();
            root.pidfd.send_signal(libc::SIGKILL).unwrap();
            assert!(all_dead(&all, SOON));
        },
    );
}

/// C3: an actor's death takes what was below it after the grace, its strays at once, and nobody
/// else; its exact status is told.
#[test]
fn sigkill_of_an_actor_takes_what_is_below_it_and_nobody_else() {
    isolated("sigkill_of_an_actor_takes_what_is_below_it_and_nobody_else", || {
        let server = start();
        let (other, other_channel) = deeper(&server.fork(), 1, true);
        let others = processes(&other_channel, 1);
        let (top, channel) = deeper(&server.fork(), 3, true);
        let all = processes(&channel, 3);
        assert_eq!(all.len(), 20);
        // A hung one and a stopped one are no different.
        all[10].send_signal(libc::SIGSTOP).unwrap();
        // The second of the four: itself, its strays, then those below it.
        all[5].send_signal(libc::SIGKILL).unwrap();
        assert!(all_dead(&all[5..], SOON));
        assert!(all[..5].iter().all(|one| !one.is_dead()), "those above live");
        assert!(others.iter().all(|one| !one.is_dead()), "others live");
        top.kill().unwrap();
        assert_eq!(block_on(top.wait()).unwrap().signal(), Some(libc::SIGKILL));
        assert!(all_dead(&all, SOON));
        drop(other);
        assert!(all_dead(&others, SOON));
    });
}

/// C3: a program that an actor started without its environment goes with the actor's group.
#[test]
fn a_stray_that_nothing_names_goes_with_its_group() {
    inventory::submit! { Main { name: "bare", run: bare } }
    #[allow(clippy::zombie_processes, reason = "left behind on purpose")]
    fn bare(birth: Birth) -> i32 {
        let script = "echo $$; exec sleep 1000";
        let mut command = Command::new("/bin/sh");
        let command = command.args(["-c", script]).env_clear().stdout(StdStdio::piped());
        let mut stray = command.spawn().unwrap();
        let mut pid = String::new();
        BufReader::new(stray.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        tell(&mut birth.channel.expect("a channel"), pid.trim());
        park();
    }
    isolated("a_stray_that_nothing_names_goes_with_its_group", || {
        let server = start();
        let (child, mut channel) = spawn(&server.fork(), Spec::main("bare")).unwrap();
        let stray = Pidfd::open(line(&mut channel).parse().unwrap()).unwrap();
        child.kill().unwrap();
        assert!(stray.wait_dead(SOON));
    });
}

/// C3: those below a dead actor have their grace, and no more.
#[test]
fn orphans_have_their_grace_and_no_more() {
    isolated("orphans_have_their_grace_and_no_more", || {
        let orphan_grace = Duration::from_millis(300);
        let server = Forkserver::start(Bounds { orphan_grace, ..Bounds::default() }).unwrap();
        let (top, channel) = deeper(&server.fork(), 2, false);
        let all = processes(&channel, 2);
        let since = Instant::now();
        top.kill().unwrap();
        assert!(all[0].wait_dead(SOON));
        assert!(!all[2].wait_dead(orphan_grace / 2), "the grace is theirs");
        assert!(all_dead(&all, SOON));
        assert!(since.elapsed() >= orphan_grace - Duration::from_millis(20));
    });
}

/// C9: an actor's own children are told to it, not to the root.
#[test]
fn an_actor_that_spawns_is_told_of_its_children() {
    inventory::submit! { Main { name: "parent", run: parent } }
    fn parent(birth: Birth) -> i32 {
        let server = birth.forkserver().unwrap().expect("a forkserver");
        let (child, _channel) = spawn(&server.fork(), Spec::main("quit")).unwrap();
        let forked = block_on(child.wait()).unwrap();
        let (child, _channel) = spawn(&server.exec(), Spec::main("quit")).unwrap();
        let executed = block_on(child.wait()).unwrap();
        i32::from(forked == Exit::Code(3) && executed == Exit::Code(3)) * 7
    }
    isolated("an_actor_that_spawns_is_told_of_its_children", || {
        let server = start();
        for backend in [&server.fork() as &dyn Backend, &server.exec()] {
            let (child, _channel) = spawn(backend, Spec::main("parent")).unwrap();
            assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(7), "{}", backend.name());
        }
    });
}

/// H11: the forkserver and its children outlive the thread that started it.
#[test]
fn the_tree_outlives_the_thread_that_started_it() {
    isolated("the_tree_outlives_the_thread_that_started_it", || {
        let (server, child, channel) = std::thread::spawn(|| {
            let server = start();
            let (child, channel) = deeper(&server.fork(), 1, false);
            (server, child, channel)
        })
        .join()
        .unwrap();
        let all = processes(&channel, 1);
        assert!(!all[1].wait_dead(Duration::from_millis(100)));
        assert!(child.try_wait().unwrap().is_none());
        let (child, _channel) = spawn(&server.fork(), Spec::main("quit")).unwrap();
        assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(3));
    });
}

#[allow(unconditional_recursion, reason = "that is the point")]
fn overflow(depth: u64) -> u64 {
    let page = std::hint::black_box([depth; 512]);
    overflow(depth + 1) + page[3]
}

/// C3: however the root leaves, nothing stays.
#[test]
fn a_root_that_leaves_without_a_word_leaves_nothing() {
    for way in ["exit", "abort", "panic", "overflow"] {
        rooted(
            "a_root_that_leaves_without_a_word_leaves_nothing",
            || {
                let server = start();
                let (child, channel) = deeper(&server.fork(), 1, true);
                processes(&channel, 1);
                say(server.pid());
                let mut way = String::new();
                std::io::stdin().read_line(&mut way).unwrap();
                let _kept = (server, child, channel);
                match way.trim() {
                    "exit" => std::process::exit(0),
                    "abort" => std::process::abort(),
                    "overflow" => {
                        overflow(1);
                    }
                    _ => panic!("as asked"),
                }
            },
            |root| {
                let server = root.pid();
                root.hear(way);
                assert!(root.pidfd.wait_dead(SOON), "{way}");
                assert!(server.wait_dead(SOON), "{way}");
            },
        );
    }
}

/// C10: after a close the process has the threads, fds and children that it had before.
#[test]
fn a_close_leaves_the_counts_as_they_were() {
    fn counts() -> (usize, usize, String) {
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
        (hatchery_spawn::thread_count().unwrap(), fds, children)
    }
    isolated("a_close_leaves_the_counts_as_they_were", || {
        let before = counts();
        for _ in 0..10 {
            let server = start();
            let (kept, channel) = deeper(&server.fork(), 1, true);
            processes(&channel, 1);
            for _ in 0..20 {
                // Withdrawn: some before they are sent, some after.
                drop(server.fork().spawn(Spec::main("quit")));
            }
            let (gone, _channel) = spawn(&server.exec(), Spec::main("quit")).unwrap();
            block_on(gone.wait()).unwrap();
            drop((gone, _channel));
            server.close();
            server.close();
            block_on(kept.wait()).unwrap_err();
            drop((kept, channel, server));
            assert_eq!(counts(), before);
        }
    });
}

/// An actor that breaks the protocol in the way that its payload names.
fn abuse(birth: Birth) -> i32 {
    use nix::sys::socket::{MsgFlags, send};
    use std::os::fd::AsRawFd as _;
    let server = birth.forkserver().unwrap().expect("a forkserver");
    let (child, _channel) = spawn(&server.fork(), Spec::main("quit")).unwrap();
    block_on(child.wait()).unwrap();
    let channel = birth.channel.as_ref().expect("a channel").as_raw_fd();
    let shared = 4;
    let garbage = vec![0xa5; 1 + usize::from(birth.payload[0]) * 100];
    match birth.payload[0] {
        // Over the socket that all share: nobody listens to such.
        0 | 1 => {
            for bytes in [&garbage[..], &[]] {
                let _refused = send(shared, bytes, MsgFlags::empty());
            }
            0
        }
        // Over its own.
        _ => {
            for fd in 5..20 {
                if fd != channel {
                    let _refused = send(fd, &garbage, MsgFlags::MSG_NOSIGNAL);
                }
            }
            park()
        }
    }
}

/// C15: garbage ends who sent it, and disturbs nobody else.
#[test]
fn an_actor_that_sends_garbage_disturbs_only_itself() {
    isolated("an_actor_that_sends_garbage_disturbs_only_itself", || {
        let server = start();
        let (other, channel) = deeper(&server.fork(), 1, false);
        let others = processes(&channel, 1);
        for how in [0, 1, 2, 255] {
            let spec = Spec::main("abuse").payload(vec![how]);
            let (child, _channel) = spawn(&server.fork(), spec).unwrap();
            let exit = block_on(child.wait()).unwrap();
            let expected = (how > 1).then_some(libc::SIGKILL);
            assert_eq!(exit.signal(), expected, "{how}");
            let (child, _channel) = spawn(&server.fork(), Spec::main("quit")).unwrap();
            assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(3));
        }
        assert!(others.iter().all(|one| !one.is_dead()));
        assert!(!process(&other).is_dead());
    });
}
