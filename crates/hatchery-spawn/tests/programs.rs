//! How programs are treated: fds at their numbers, a chance to end well, strays that are kept, slow
//! disks.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]
#![allow(unsafe_code, reason = "a lease has no safe form")]

mod common;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{BOUND, Root, block_on, isolated, park, rooted, say, spawn, tell};
use hatchery_spawn::{
    Birth, Bounds, Child, Command, Ended, Exit, Forkserver, Main, Pidfd, SpawnError, Spec, Stdio,
    Step, inventory,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;

inventory::submit! { Main { name: "spawner", run: spawner } }

/// Of asm-generic/fcntl.h.
const F_SETSIG: i32 = 10;

fn sh(script: &str) -> Command {
    Command::new("sh").args(["-c", script])
}

fn out(command: Command) -> String {
    let output = block_on(command.output()).unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// A pipe with that text and its end.
fn filled(text: &str) -> OwnedFd {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    reader.into()
}

/// The next line that a child writes.
fn line(stdout: &mut File) -> String {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("hatchery-{name}-{}", std::process::id()))
}

/// C7: an fd is at the number that was asked for, in whatever order and wherever ours were, and nothing
/// is between.
#[test]
fn fds_are_at_the_numbers_asked_for_and_nothing_is_between() {
    isolated("fds_are_at_the_numbers_asked_for_and_nothing_is_between", || {
        // More than one digit needs bash. Some of these are at each other's numbers on their way.
        let script = "for fd in {5..40} 90; do cat <&$fd; done; cd /proc/$$/fd; echo; echo *";
        let numbers: Vec<i32> = (5..=40).rev().chain([90]).collect();
        let mut command = Command::new("bash").args(["-c", script]).fd(7, filled("other"));
        for number in &numbers {
            command = command.fd(*number, filled(&format!("{number} ")));
        }
        let said = out(command);
        let (texts, open) = said.split_once('\n').unwrap();
        let sorted = |text: &str| {
            let mut all: Vec<i32> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
            all.sort_unstable();
            all
        };
        let mut expected = numbers.clone();
        expected.sort_unstable();
        let read: Vec<i32> = texts.split_whitespace().map(|n| n.parse().unwrap()).collect();
        assert_eq!(read, expected);
        expected.splice(0..0, [0, 1, 2]);
        // Where bash keeps what it reads from a directory is its own affair.
        let open: Vec<i32> = sorted(open).into_iter().filter(|fd| *fd != 3 && *fd != 255).collect();
        assert_eq!(open, expected);
        assert_eq!(out(sh("cat").fd(0, filled("stdin"))), "stdin");
    });
}

/// The fd that is handed on keeps its number and its flag here, and a jobserver's are what
/// `MAKEFLAGS` says.
#[test]
fn a_jobserver_is_handed_on() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"+").unwrap();
    let kept = reader.try_clone().unwrap();
    let script = r#"set -- $(echo "$MAKEFLAGS" | sed 's/.*=//; s/,/ /')
        head -c 1 <&$1 >&$2 && echo token"#;
    let command =
        sh(script).env("MAKEFLAGS", "-j --jobserver-auth=8,9").fd(8, reader).fd(9, writer);
    assert_eq!(out(command), "token");
    let flags = fcntl(&kept, FcntlArg::F_GETFD).unwrap();
    assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
    let mut token = String::new();
    let mut kept = kept;
    kept.read_to_string(&mut token).unwrap();
    assert_eq!(token, "+");
}

/// A number that can't be is a typed error.
#[test]
fn a_number_that_can_not_be_is_a_typed_error() {
    let error = block_on(sh("true").fd(-1, filled("")).spawn()).unwrap_err();
    assert_eq!(error.io_error().unwrap().raw_os_error(), Some(libc::EBADF), "{error:?}");
    let error = block_on(sh("true").fd(i32::MAX - 1, filled("")).spawn()).unwrap_err();
    let SpawnError::Step { step: Step::Fds, cause, .. } = &error else { panic!("{error:?}") };
    assert_eq!(cause.raw_os_error(), Some(libc::EBADF));
    // Those that are given in order are there too.
    let (_, fds) = (0..300)
        .fold((3, sh("true")), |(number, command), _| (number + 1, command.fd(number, filled(""))));
    let error = block_on(fds.spawn()).unwrap_err();
    assert_eq!(error.io_error().unwrap().raw_os_error(), Some(libc::EMSGSIZE), "{error:?}");
}

/// Says that it is up, and ends well when it gets that signal, after a while: it says so in the file.
///
/// A shell that waits for a command in the foreground runs no trap; and that command may have lost
/// the signal, amid its exec.
fn ends_well(signal: &str, file: &str) -> Command {
    let script = format!(
        "trap 'sleep 0.05; echo well > {file}; exit 7' {signal}; sleep 1000 & echo up; wait"
    );
    sh(&script).stdout(Stdio::Piped)
}

/// It is up and has set its trap.
fn up(command: Command) -> (Child, Pidfd) {
    let mut child = block_on(command.spawn()).unwrap();
    let mut stdout = File::from(child.take_stdout().unwrap());
    assert_eq!(line(&mut stdout), "up");
    let pidfd = common::process(&child);
    (child, pidfd)
}

/// A program is asked to end when its child is dropped, by the signal of its choice, and has its grace.
#[test]
fn a_dropped_child_is_asked_to_end() {
    isolated("a_dropped_child_is_asked_to_end", || {
        let file = file("drop");
        let path = file.to_str().unwrap();
        let graced = ends_well("TERM", path).grace(BOUND);
        let signalled = ends_well("INT", path).stop_signal(libc::SIGINT).grace(BOUND);
        for command in [graced, signalled] {
            let (child, pidfd) = up(command);
            let handle = child.handle();
            drop(child);
            assert!(pidfd.wait_dead(BOUND));
            assert_eq!(block_on(handle.wait()).unwrap(), Exit::Code(7));
            assert_eq!(fs::read_to_string(&file).unwrap(), "well\n");
            fs::remove_file(&file).unwrap();
        }
        // A stopped one is woken for it.
        let (child, pidfd) = up(ends_well("TERM", path).grace(BOUND));
        child.handle().signal(libc::SIGSTOP).unwrap();
        child.handle().stop().unwrap();
        assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(7));
        assert!(pidfd.is_dead());
        fs::remove_file(&file).unwrap();
    });
}

/// Who doesn't end in its grace is killed; without a grace at once.
#[test]
fn a_grace_ends_by_sigkill() {
    isolated("a_grace_ends_by_sigkill", || {
        let deaf =
            || sh("trap '' TERM; echo up; while :; do sleep 1000; done").stdout(Stdio::Piped);
        let grace = Duration::from_millis(200);
        for (command, least) in [(deaf().grace(grace), grace), (deaf(), Duration::ZERO)] {
            let (child, _) = up(command);
            let handle = child.handle();
            let since = Instant::now();
            drop(child);
            assert_eq!(block_on(handle.wait()).unwrap().signal(), Some(libc::SIGKILL));
            assert!(since.elapsed() >= least);
        }
        let error = block_on(sh("true").stop_signal(0).spawn()).unwrap_err();
        assert_eq!(error.io_error().unwrap().raw_os_error(), Some(libc::EINVAL), "{error:?}");
    });
}

/// The end of the root, whatever it was, and a close of its forkserver ask too; the kill of the
/// first is carried out by the forkserver, which is all that is left.
#[test]
fn the_end_of_the_root_asks_first() {
    let scenario = || {
        let file = file("root");
        let bounds = Bounds { orphan_grace: BOUND, close: BOUND, ..Bounds::default() };
        let server = Forkserver::start(bounds).unwrap();
        let (_child, _) = up(ends_well("TERM", file.to_str().unwrap()).grace(BOUND).on(&server));
        let (_deaf, deaf) = up(sh("echo up; sleep 1000").stdout(Stdio::Piped).on(&server));
        say(file.display());
        let mut how = String::new();
        std::io::stdin().read_line(&mut how).unwrap();
        match how.trim() {
            "close" => {
                server.close();
                assert!(deaf.is_dead());
            }
            "exit" => {}
            _ => park(),
        }
        std::process::exit(0);
    };
    let outside = |how: &'static str, signal: Option<i32>| {
        move |root: &mut Root| {
            let file = PathBuf::from(root.line());
            root.hear(how);
            if let Some(signal) = signal {
                root.pidfd.send_signal(signal).unwrap();
            }
            assert!(root.pidfd.wait_dead(BOUND));
            let until = Instant::now() + BOUND;
            while fs::read_to_string(&file).unwrap_or_default() != "well\n" {
                assert!(Instant::now() < until, "{how}, {signal:?}: it had no time");
                std::thread::yield_now();
            }
            fs::remove_file(&file).unwrap();
        }
    };
    let test = "the_end_of_the_root_asks_first";
    for (how, signal) in
        [("close", None), ("exit", None), ("", Some(libc::SIGKILL)), ("", Some(libc::SIGTERM))]
    {
        rooted(test, scenario, outside(how, signal));
    }
}

/// C3: what a program asks for is no longer than what orphans have.
#[test]
fn a_grace_is_never_longer_than_an_orphans() {
    let scenario = || {
        let script = "trap '' TERM; echo up; while :; do sleep 1000; done";
        let (child, _) = up(sh(script).stdout(Stdio::Piped).grace(BOUND));
        say(match child.id() {
            hatchery_spawn::ChildId::Process(pid) => pid,
            hatchery_spawn::ChildId::Thread(_) => 0,
        });
        park();
    };
    rooted("a_grace_is_never_longer_than_an_orphans", scenario, |root| {
        let deaf = root.pid();
        root.pidfd.send_signal(libc::SIGKILL).unwrap();
        assert!(deaf.wait_dead(Duration::from_secs(1)), "C3 has a second");
    });
}

/// Starts a program that ends well, says so, and lives on.
fn spawner(birth: Birth) -> i32 {
    let file = String::from_utf8(birth.payload.clone()).unwrap();
    let (_child, _) = up(ends_well("TERM", &file).grace(BOUND));
    let mut channel = birth.channel.unwrap();
    tell(&mut channel, "up");
    let _end = channel.read(&mut [0]);
    0
}

/// The programs of an actor are asked when it has ended, killed or not.
#[test]
fn the_end_of_an_actor_asks_first() {
    isolated("the_end_of_an_actor_asks_first", || {
        let bounds = Bounds { orphan_grace: BOUND, ..Bounds::default() };
        let server = Forkserver::start(bounds).unwrap();
        for is_killed in [true, false] {
            let file = file("actor");
            let payload = file.to_str().unwrap().as_bytes().to_vec();
            let (child, mut channel) =
                spawn(&server.fork(), Spec::main("spawner").payload(payload)).unwrap();
            assert_eq!(common::line(&mut channel), "up");
            if is_killed {
                child.kill().unwrap();
            }
            drop(channel);
            block_on(child.wait()).unwrap();
            let until = Instant::now() + BOUND;
            while fs::read_to_string(&file).unwrap_or_default() != "well\n" {
                assert!(Instant::now() < until, "killed: {is_killed}");
                std::thread::yield_now();
            }
            fs::remove_file(&file).unwrap();
        }
    });
}

/// With `keep_strays` an output is what tokio's is, and what goes on does so until the end of who
/// started it.
#[test]
fn strays_that_are_kept_write_to_their_end() {
    isolated("strays_that_are_kept_write_to_their_end", || {
        // Longer than anything that is read by default.
        let late = "(sleep 0.8; echo late) & echo hi";
        let output = block_on(sh(late).keep_strays().output()).unwrap();
        assert_eq!((&output.ended, &*output.stdout), (&Ended::Exited, &b"hi\nlate\n"[..]));
        let output = block_on(sh(late).output()).unwrap();
        assert_eq!(output.stdout, b"hi\n");
        let server = Forkserver::start(Bounds::default()).unwrap();
        let strays = "sleep 1000 >&- 2>&- & echo $!; setsid sleep 1000 >&- 2>&- & echo $!";
        let pids = out(sh(strays).keep_strays().on(&server));
        let kept: Vec<Pidfd> =
            pids.lines().map(|pid| Pidfd::open(pid.parse().unwrap()).unwrap()).collect();
        // Others come and go, and what they left is swept.
        let swept = out(sh("setsid sleep 1000 >&- 2>&- & echo $!").on(&server));
        if let Ok(swept) = Pidfd::open(swept.parse().unwrap()) {
            assert!(swept.wait_dead(BOUND));
        }
        assert!(kept.iter().all(|kept| !kept.is_dead()));
        server.close();
        assert!(kept.iter().all(Pidfd::is_dead));
    });
}

/// A program that is slow to load takes as long as it takes, within a bound of its own.
#[test]
fn an_exec_has_a_bound_of_its_own() {
    isolated("an_exec_has_a_bound_of_its_own", || {
        let path = file("slow");
        fs::copy("/bin/true", &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let leased = File::open(&path).unwrap();
        // Whoever opens it waits until the lease is given back; the holder is told by a signal that
        // is ignored.
        let lease = |kind: i32| {
            // SAFETY: only numbers are passed, and the file is open.
            let told = unsafe { libc::fcntl(leased.as_raw_fd(), F_SETSIG, libc::SIGURG) };
            assert_eq!(told, 0);
            // SAFETY: as above.
            unsafe { libc::fcntl(leased.as_raw_fd(), libc::F_SETLEASE, kind) }
        };
        if lease(libc::F_WRLCK) != 0 {
            eprintln!("not tested: no leases on {}", path.display());
            return fs::remove_file(&path).unwrap();
        }
        let request = Duration::from_millis(100);
        let bounds = Bounds { request, exec: BOUND, ..Bounds::default() };
        let server = Forkserver::start(bounds).unwrap();
        assert_eq!(block_on(Command::new("true").on(&server).status()).unwrap(), Exit::Code(0));
        let slow = block_on(async {
            let slow = tokio::spawn(Command::new(&path).on(&server).spawn());
            // The forkserver has been silent for longer than a request may take.
            tokio::time::sleep(request * 3).await;
            assert!(!slow.is_finished());
            assert_eq!(lease(libc::F_UNLCK), 0);
            slow.await.unwrap().unwrap().wait().await.unwrap()
        });
        assert_eq!(slow, Exit::Code(0));
        assert_eq!(lease(libc::F_WRLCK), 0);
        let bounds = Bounds { exec: request, ..Bounds::default() };
        let server = Forkserver::start(bounds).unwrap();
        let error = block_on(Command::new(&path).on(&server).spawn()).unwrap_err();
        let SpawnError::StillStarting { waited, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*waited, request);
        assert_eq!(lease(libc::F_UNLCK), 0);
        fs::remove_file(&path).unwrap();
    });
}

/// C10: nothing is left of all this, here and in the forkserver, however often it was asked for.
#[test]
fn programs_that_come_and_go_leave_nothing() {
    isolated("programs_that_come_and_go_leave_nothing", || {
        let server = Forkserver::start(Bounds::default()).unwrap();
        let count = |what: String| fs::read_dir(what).unwrap().count();
        let counts = || {
            let (own, served) = (std::process::id(), server.pid());
            let children = format!("/proc/{served}/task/{served}/children");
            let children = fs::read_to_string(children).unwrap().split_whitespace().count();
            let fds = [own, served].map(|pid| count(format!("/proc/{pid}/fd")));
            [fds[0], fds[1], count(format!("/proc/{own}/task")), children]
        };
        let round = || {
            block_on(async {
                let drained = sh("sleep 1000 & echo hi").drain(Duration::from_millis(1));
                let drained = drained.on(&server).output().await.unwrap();
                assert!(matches!(drained.ended, Ended::Incomplete { .. }), "{drained:?}");
                let kept = sh("true & echo hi").keep_strays().on(&server).output().await.unwrap();
                assert_eq!(kept.stdout, b"hi\n");
                let placed = sh("cat <&9").fd(9, filled("nine")).on(&server).output();
                assert_eq!(placed.await.unwrap().stdout, b"nine");
                let asked = sh("exec sleep 1000").grace(BOUND).on(&server).spawn().await.unwrap();
                let handle = asked.handle();
                drop(asked);
                assert_eq!(handle.wait().await.unwrap().signal(), Some(libc::SIGTERM));
                let left = sh("true").detach().on(&server).spawn().await.unwrap();
                assert_eq!(left.wait().await.unwrap(), Exit::Code(0));
            });
        };
        round();
        let before = counts();
        // Few, as each looks through all processes of the machine.
        (0..10).for_each(|_| round());
        let until = Instant::now() + BOUND;
        // A stray is reaped a moment after its program, before the first count too: that one is the most.
        let has_grown = || counts().iter().zip(before).any(|(now, before)| *now > before);
        while has_grown() {
            assert!(Instant::now() < until, "{:?}, and before {before:?}", counts());
            std::thread::yield_now();
        }
    });
}
