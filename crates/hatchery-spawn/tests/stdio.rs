//! Relayed output: whole lines, complete tails, and nobody who blocks anybody (C8, H5).
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio as StdStdio};
use std::time::{Duration, Instant};

use common::{BOUND, block_on, isolated, say};
use hatchery_spawn::{
    Backend, Birth, Bounds, Child, ChildId, Forkserver, Main, Pidfd, Relay, Spec, Stdio, inventory,
    thread_count,
};

inventory::submit! { Main { name: "half a line", run: half_a_line } }

/// Scenario output is read from outside, so a test of what a process writes starts itself again.
fn written_by(test: &str) -> Option<String> {
    if std::env::var_os(SECOND).is_some() {
        return None;
    }
    let mut process = Command::new("/proc/self/exe")
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(SECOND, "1")
        .stdin(StdStdio::null())
        .stdout(StdStdio::null())
        .stderr(StdStdio::piped())
        .spawn()
        .unwrap();
    let pidfd = Pidfd::open(process.id()).unwrap();
    let mut stderr = process.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let in_time = pidfd.wait_dead(BOUND);
    let _ended = process.kill();
    assert!(process.wait().unwrap().success() && in_time, "`{test}`");
    Some(reader.join().unwrap().unwrap())
}

fn relayed(server: &Forkserver, prefix: &str, script: &str) -> Child {
    let spec = Spec::program("sh")
        .arg("-c")
        .arg(script)
        .stdout(Stdio::Null)
        .stderr(Stdio::Relay(Relay::new(prefix)));
    block_on(server.fork().spawn(spec)).unwrap()
}

fn tail(child: &Child, bound: Duration) -> Vec<String> {
    block_on(async {
        child.wait().await.unwrap();
        child.stderr_tail(bound).await
    })
}

/// The tail is complete when it is asked for after the exit, also without a last newline.
#[test]
fn the_tail_has_the_last_lines_whole() {
    isolated("the_tail_has_the_last_lines_whole", || {
        let server = Forkserver::start(Bounds::default()).unwrap();
        let child = relayed(
            &server,
            "a",
            "for i in $(seq 1 500); do echo line $i >&2; done; printf end >&2",
        );
        let tail = tail(&child, BOUND);
        let expected: Vec<String> =
            (482..=500).map(|i| format!("line {i}")).chain(["end".to_owned()]).collect();
        assert_eq!(tail, expected);
    });
}

/// Every line comes out once, whole and with its prefix; what comes from below keeps its own.
#[test]
fn lines_are_passed_on_whole_and_those_from_below_as_they_are() {
    let name = "lines_are_passed_on_whole_and_those_from_below_as_they_are";
    let Some(text) = written_by(name) else {
        let server = Forkserver::start(Bounds::default()).unwrap();
        let children: Vec<Child> = ["a", "b"]
            .map(|prefix| {
                relayed(
                    &server,
                    prefix,
                    "for i in $(seq 1 300); do echo $i >&2; done; echo '[a/x] from below' >&2; \
                     head -c 65536 /dev/zero | tr '\\0' x >&2; echo >&2; printf 'no end' >&2",
                )
            })
            .into();
        for child in &children {
            tail(child, BOUND);
        }
        return server.close();
    };
    for prefix in ["a", "b"] {
        let own = |line: &str| text.lines().filter(|found| *found == line).count();
        for i in 1..=300 {
            assert_eq!(own(&format!("[{prefix}] {i}")), 1, "line {i} of {prefix}");
        }
        assert_eq!(own(&format!("[{prefix}] {}", "x".repeat(65536))), 1);
        assert_eq!(own(&format!("[{prefix}] no end")), 1);
    }
    assert_eq!(text.lines().filter(|line| *line == "[a/x] from below").count(), 1);
    assert_eq!(text.lines().filter(|line| *line == "[b] [a/x] from below").count(), 1);
}

/// Points our own stderr to a pipe that nobody reads, for the rest of this process.
fn nobody_reads_stderr() -> OwnedFd {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    nix::unistd::dup2_stderr(&write).unwrap();
    read
}

/// C8, H5: children write far more than a pipe holds, and nobody reads us: all of them end.
#[test]
fn a_reader_of_ours_that_never_reads_blocks_no_child() {
    isolated("a_reader_of_ours_that_never_reads_blocks_no_child", || {
        let _unread = nobody_reads_stderr();
        let server = Forkserver::start(Bounds::default()).unwrap();
        let script = "head -c 4000000 /dev/zero | tr '\\0' '\\n' >&2; exit 3";
        let children: Vec<Child> = (0..4).map(|_| relayed(&server, "a", script)).collect();
        for child in children {
            assert_eq!(block_on(child.wait()).unwrap().code(), Some(3));
        }
        let asked = Instant::now();
        server.close();
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    });
}

/// C8: a foreign writer that keeps taking the room that poll saw doesn't block the relay either.
#[test]
fn another_writer_to_our_full_pipe_blocks_no_child() {
    isolated("another_writer_to_our_full_pipe_blocks_no_child", || {
        let unread = nobody_reads_stderr();
        let server = Forkserver::start(Bounds::default()).unwrap();
        // It fills whatever is free in the pipe, for ever.
        let greedy = Spec::program("sh").arg("-c").arg("yes >&2").stdout(Stdio::Null);
        let greedy = block_on(server.fork().spawn(greedy)).unwrap();
        // A reader that frees a little at a time, so that both writers race for it.
        let reading = std::thread::spawn(move || {
            let mut file = File::from(unread);
            let mut piece = [0; 4096];
            for _ in 0..2_000 {
                file.read_exact(&mut piece).unwrap();
            }
            file
        });
        let child = relayed(&server, "a", "seq 1 200000 >&2; exit 3");
        assert_eq!(block_on(child.wait()).unwrap().code(), Some(3));
        let _unread = reading.join().unwrap();
        let child = relayed(&server, "a", "seq 1 200000 >&2; exit 4");
        assert_eq!(block_on(child.wait()).unwrap().code(), Some(4));
        drop(greedy);
        server.close();
    });
}

/// Says half a line; what becomes of it is not its business.
fn half_a_line(birth: Birth) -> i32 {
    let threads = birth.payload[0];
    print!("half a line");
    for _ in 0..threads {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _held = std::io::stdout().lock();
            tell.send(()).unwrap();
            common::park();
        });
        told.recv().unwrap();
    }
    4
}

/// H8: neither a full output nor a thread that holds it for ever keeps an actor from leaving; and
/// where there is a reader, nothing that was said is lost.
#[test]
fn nobody_and_nothing_keeps_an_actor_from_leaving() {
    isolated("nobody_and_nothing_keeps_an_actor_from_leaving", || {
        let server = Forkserver::start(Bounds::default()).unwrap();
        for backend in [&server.fork() as &dyn Backend, &server.exec()] {
            for (threads, full) in [(0, false), (0, true), (1, false)] {
                let (mut read, mut write) = std::io::pipe().unwrap();
                if full {
                    write.write_all(&[b'x'; 65536]).unwrap();
                }
                let spec = Spec::main("half a line").payload(vec![threads]);
                let child = backend.spawn(spec.stdout(Stdio::Fd(write.into())));
                let child = block_on(child).unwrap();
                assert_eq!(block_on(child.wait()).unwrap().code(), Some(4));
                if !full && threads == 0 {
                    let mut text = String::new();
                    read.read_to_string(&mut text).unwrap();
                    assert_eq!(text, "half a line");
                }
            }
        }
    });
}

/// What was not written is counted, and told when there is room again.
#[test]
fn dropped_lines_are_counted() {
    let Some(text) = written_by("dropped_lines_are_counted") else {
        let server = Forkserver::start(Bounds::default()).unwrap();
        let child = relayed(&server, "a", "seq 1 1000000 >&2");
        tail(&child, BOUND);
        return server.close();
    };
    let mut lines = 0_u64;
    for line in text.lines().filter(|line| line.starts_with('[')) {
        match line
            .strip_prefix("[hatchery] ")
            .and_then(|rest| rest.strip_suffix(" lines were dropped"))
        {
            Some(count) => lines += count.parse::<u64>().unwrap(),
            None => lines += 1,
        }
    }
    assert_eq!(lines, 1_000_000);
}

/// A stray that holds the pipe delays neither the tail nor the close by more than their bounds,
/// and the thread and its fds are gone all the same (C10).
#[test]
fn a_stray_that_holds_the_pipe_is_not_waited_for() {
    isolated("a_stray_that_holds_the_pipe_is_not_waited_for", || {
        let (threads, fds) = (thread_count().unwrap(), fds());
        let server = Forkserver::start(Bounds::default()).unwrap();
        let (child, held) = said_and_held(&server);
        child.kill().unwrap();
        let asked = Instant::now();
        assert_eq!(tail(&child, Duration::from_millis(50)), ["said"]);
        drop(child);
        server.close();
        drop(server);
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        assert_eq!((thread_count().unwrap(), self::fds()), (threads, fds + 1));
        drop(held);
    });
}

/// A child whose words are out, and the writing end of its stderr, which survives in this very
/// process: the forkserver can't kill that.
fn said_and_held(server: &Forkserver) -> (Child, File) {
    let spec = Spec::program("sh")
        .args(["-c", "echo said >&2; echo; exec sleep 60"])
        .stdout(Stdio::Piped)
        .stderr(Stdio::Relay(Relay::new("a")));
    let mut child = block_on(server.fork().spawn(spec)).unwrap();
    // It has said it.
    File::from(child.take_stdout().unwrap()).read_exact(&mut [0]).unwrap();
    let ChildId::Process(pid) = child.id() else { panic!("a process") };
    let held = File::options().write(true).open(format!("/proc/{pid}/fd/2")).unwrap();
    (child, held)
}

/// A tail is given when the last writer has closed, not when the child has ended.
#[test]
fn the_tail_waits_for_the_last_writer() {
    isolated("the_tail_waits_for_the_last_writer", || {
        let server = Forkserver::start(Bounds::default()).unwrap();
        let (child, mut held) = said_and_held(&server);
        child.kill().unwrap();
        let last_words = async {
            child.wait().await.unwrap();
            held.write_all(b"later").unwrap();
            drop(held);
        };
        // Polled in this order: the tail is asked for before the last words are written.
        let (tail, ()) =
            block_on(async { tokio::join!(biased; child.stderr_tail(BOUND), last_words) });
        assert_eq!(tail, ["said", "later"]);
    });
}

/// C10: the thread and its fds are there only while something is relayed.
#[test]
fn the_relay_is_gone_with_the_last_child() {
    isolated("the_relay_is_gone_with_the_last_child", || {
        let (threads, fds) = (thread_count().unwrap(), fds());
        for _ in 0..20 {
            let server = Forkserver::start(Bounds::default()).unwrap();
            let children: Vec<Child> =
                (0..5).map(|_| relayed(&server, "a", "echo x >&2; exec sleep 60")).collect();
            drop(children);
            server.close();
            drop(server);
            assert_eq!((thread_count().unwrap(), self::fds()), (threads, fds));
        }
        say("done");
    });
}

fn fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

const SECOND: &str = "HATCHERY_SPAWN_SECOND";
