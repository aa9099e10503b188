//! C7: what a new child holds, whatever its root holds.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fmt::Write as _;
use std::fs;
use std::os::fd::OwnedFd;

use common::{answer, isolated, spawn};
use hatchery_spawn::{
    Backend, Birth, BirthKind, Bounds, Forkserver, Main, Resource, SpawnError, Spec, Stdio, Step,
    inventory,
};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};

inventory::submit! { Main { name: "fds", run: fds } }
inventory::submit! { Main { name: "status", run: status } }
inventory::submit! { Main { name: "look", run: look } }
inventory::submit! { Main { name: "maps", run: maps } }

/// Each open fd and what it is.
fn fds(birth: Birth) -> i32 {
    let mut list: Vec<(i32, String)> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, target.to_string_lossy().into_owned()))
        })
        // The directory itself.
        .filter(|(_, target)| !target.ends_with("/fd"))
        .collect();
    list.sort();
    let text = list.into_iter().fold(String::new(), |mut text, (number, target)| {
        let kind = target.split(':').next().unwrap_or_default();
        writeln!(text, "{number} {kind}").unwrap();
        text
    });
    say(&birth, &text)
}

/// What the kernel says of this process.
fn status(birth: Birth) -> i32 {
    say(&birth, &fs::read_to_string("/proc/thread-self/status").unwrap())
}

/// The memory that it shares with others and may write to.
fn maps(birth: Birth) -> i32 {
    let all = fs::read_to_string("/proc/self/maps").unwrap();
    let shared = |line: &&str| {
        let access = line.split(' ').nth(1).unwrap();
        access.contains('w') && access.ends_with('s')
    };
    let shared: Vec<&str> = all.lines().filter(shared).collect();
    say(&birth, &shared.join("\n"))
}

/// What a process can see of itself.
fn look(birth: Birth) -> i32 {
    let environment: Vec<(String, String)> = std::env::vars().collect();
    let (soft, hard) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let group = nix::unistd::getpgrp() == nix::unistd::getpid();
    let directory = std::env::current_dir().unwrap();
    let command = fs::read("/proc/self/cmdline").unwrap();
    let command = String::from_utf8_lossy(&command).trim_end_matches('\0').trim_end().to_owned();
    let comm = fs::read_to_string("/proc/self/comm").unwrap();
    let threads = hatchery_spawn::thread_count().unwrap();
    let text = format!(
        "{:?}|{}|{}|{soft} {hard}|{group}|{}|{command}|{}|{threads}|{environment:?}",
        birth.how,
        birth.name,
        birth.payload.len(),
        directory.display(),
        comm.trim_end(),
    );
    say(&birth, &text)
}

fn say(birth: &Birth, text: &str) -> i32 {
    use std::io::Write as _;
    birth.channel.as_ref().expect("a channel").write_all(text.as_bytes()).map_or(1, |()| 0)
}

fn start() -> Forkserver {
    Forkserver::start(Bounds::default()).unwrap()
}

/// C7: with 0, 1,000 and 19,000 fds open in the root, some of them at high numbers and all of them
/// kept over an exec, a child holds its slots and nothing else.
#[test]
fn a_child_holds_exactly_what_was_asked_for_whatever_the_root_holds() {
    isolated("a_child_holds_exactly_what_was_asked_for_whatever_the_root_holds", || {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        let null = OwnedFd::from(fs::File::open("/dev/null").unwrap());
        let most = i32::try_from(hard).unwrap_or(i32::MAX);
        let mut decoys = Vec::new();
        for (count, lowest) in [(0, 0), (1000, most.min(20_000) - 5), (19_000, 100)] {
            while decoys.len() < count {
                let from = if decoys.len() % 7 == 0 { lowest.min(most - 1) } else { 50 };
                let copied = fcntl(&null, FcntlArg::F_DUPFD(from))
                    .or_else(|_| fcntl(&null, FcntlArg::F_DUPFD(50)));
                // The limit of this machine may be lower than the count.
                let Ok(copied) = copied else { break };
                decoys.push(copied);
            }
            assert!(decoys.len() >= count.min(most as usize - 1100), "{}", decoys.len());
            let server = start();
            for backend in [&server.fork() as &dyn Backend, &server.exec()] {
                let (kept, _other) = std::os::unix::net::UnixStream::pair().unwrap();
                let spec = Spec::main("fds").fd(null.try_clone().unwrap()).fd(kept.into());
                let expected = "0 /dev/null\n1 /dev/null\n2 /dev/null\n3 socket\n4 socket\n\
                                5 /dev/null\n6 socket\n";
                let found = answer(backend, spec.stderr(Stdio::Null));
                assert_eq!(found, expected, "{} with {count} decoys", backend.name());
            }
            // A second one after the first: nothing of a sibling is in it.
            let (_first, _channel) = spawn(&server.fork(), Spec::main("fds")).unwrap();
            let found = answer(&server.fork(), Spec::main("fds").stderr(Stdio::Null));
            assert_eq!(found.lines().count(), 5, "{found}");
            let held = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
            assert!(held < 20, "the forkserver has none either: {held}");
            server.close();
        }
        assert!(decoys.contains(&(most.min(20_000) - 5)), "a high number");
    });
}

/// C15: who is born shares no memory with the forkserver and its other children.
#[test]
fn a_child_shares_no_memory_that_it_may_write_to() {
    isolated("a_child_shares_no_memory_that_it_may_write_to", || {
        let server = start();
        for backend in [&server.fork() as &dyn Backend, &server.exec()] {
            assert_eq!(answer(backend, Spec::main("maps")), "", "{}", backend.name());
        }
    });
}

/// C7: a foreign program has stdio, then its channel, then its fds.
#[test]
fn a_program_finds_its_fds_from_three_on() {
    isolated("a_program_finds_its_fds_from_three_on", || {
        let server = start();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let script = "for fd in /proc/self/fd/*; do echo ${fd##*/}; done; echo there >&3";
        let spec = Spec::program("sh").arg("-c").arg(script);
        let spec = spec.stdout(Stdio::Piped).stderr(Stdio::Null).fd(theirs.into());
        let mut child = common::block_on(server.fork().spawn(spec)).unwrap();
        let mut text = String::new();
        let mut stdout = fs::File::from(child.take_stdout().unwrap());
        std::io::Read::read_to_string(&mut stdout, &mut text).unwrap();
        // The shell has the directory open while it lists it, as 4.
        assert!(text.starts_with("0\n1\n2\n3\n"), "{text}");
        assert!(text.lines().count() <= 5, "{text}");
        assert_eq!(common::line(&mut { ours }), "there");
        assert_eq!(common::block_on(child.wait()).unwrap().code(), Some(0));
    });
}

/// C7: masks and dispositions are those of a fresh Rust program, whatever the root blocks, ignores
/// and handles; a foreign program has SIGPIPE at its default too.
#[test]
fn signals_are_those_of_a_fresh_program_whatever_the_root_blocks_and_ignores() {
    isolated("signals_are_those_of_a_fresh_program_whatever_the_root_blocks_and_ignores", || {
        extern "C" fn handler(_: i32) {}
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGHUP] {
            set_handler(signal, SigHandler::SigIgn);
        }
        set_handler(Signal::SIGUSR2, SigHandler::Handler(handler));
        let mask = Some(SigSet::all());
        nix::sys::signal::sigprocmask(SigmaskHow::SIG_BLOCK, mask.as_ref(), None).unwrap();
        let server = start();
        for backend in [&server.fork() as &dyn Backend, &server.exec()] {
            let text = answer(backend, Spec::main("status"));
            let name = backend.name();
            assert_eq!(field(&text, "SigBlk"), 0, "{name}");
            assert_eq!(field(&text, "SigPnd") | field(&text, "ShdPnd"), 0, "{name}");
            assert_eq!(field(&text, "SigIgn"), bit(Signal::SIGPIPE), "{name}");
            let caught = bit(Signal::SIGSEGV) | bit(Signal::SIGBUS);
            assert_eq!(field(&text, "SigCgt"), caught, "{name}");
        }
        let spec = Spec::program("cat").arg("/proc/self/status").stdout(Stdio::Piped);
        let mut child = common::block_on(server.fork().spawn(spec)).unwrap();
        let mut text = String::new();
        let mut stdout = fs::File::from(child.take_stdout().unwrap());
        std::io::Read::read_to_string(&mut stdout, &mut text).unwrap();
        assert_eq!(field(&text, "SigBlk"), 0);
        assert_eq!(field(&text, "SigIgn"), 0);
        assert_eq!(field(&text, "SigCgt"), 0);
    });
}

#[allow(unsafe_code, reason = "the scenario is a root with odd dispositions")]
fn set_handler(signal: Signal, handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler is empty.
    unsafe { nix::sys::signal::sigaction(signal, &action) }.unwrap();
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    // Not for programs to set: the two that glibc keeps for itself.
    u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap() & !(3 << 31)
}

fn bit(signal: Signal) -> u64 {
    1 << (signal as u64 - 1)
}

/// Name, group, directory, variables, limits, payload: all as asked for, on both backends.
#[test]
fn a_child_is_what_its_spec_says() {
    isolated("a_child_is_what_its_spec_says", || {
        let here = std::env::current_dir().unwrap();
        use nix::sys::resource::{Resource as Limit, getrlimit, setrlimit};
        let (_, hard) = getrlimit(Limit::RLIMIT_NOFILE).unwrap();
        setrlimit(Limit::RLIMIT_NOFILE, hard / 2, hard).unwrap();
        let server = start();
        for (backend, how) in [
            (&server.fork() as &dyn Backend, BirthKind::Forked),
            (&server.exec(), BirthKind::Executed),
        ] {
            let name = "a-worker-with-a-long-name";
            let spec = Spec::main("look").name(name).payload(vec![7; 50_000]);
            let spec = spec.env("ADDED", "=yes").env_remove("PATH");
            let spec = spec.limit(Resource::OpenFiles, 64, 128);
            let text = answer(backend, spec.current_dir("/usr"));
            let parts: Vec<&str> = text.splitn(10, '|').collect();
            let full = format!("hatchery:{name}");
            assert_eq!(parts[0], format!("{how:?}"));
            assert_eq!(parts[1], name);
            assert_eq!(parts[2], "50000");
            assert_eq!(parts[3], "64 128");
            assert_eq!(parts[4], "true", "a group of its own");
            assert_eq!(parts[5], "/usr");
            assert_eq!(parts[6], full);
            assert_eq!(parts[7], &full[..15]);
            assert_eq!(parts[8], "1", "threads");
            assert!(parts[9].contains(r#"("ADDED", "=yes")"#), "{text}");
            assert!(!parts[9].contains(r#"("PATH""#), "{text}");
            assert!(!parts[9].contains("HATCHERY_FORKSERVER"), "{text}");
            assert!(!parts[9].contains("HATCHERY_BIRTH"), "{text}");
            // By default it starts where the root was.
            let text = answer(backend, Spec::main("look"));
            assert_eq!(text.split('|').nth(5).unwrap(), here.to_str().unwrap());
            // And may open as many files, though the forkserver has raised its own limit.
            assert_eq!(text.split('|').nth(3).unwrap(), format!("{} {hard}", hard / 2));
            let text = answer(backend, Spec::main("look").env_clear().env("ONLY", "1"));
            let left = text.splitn(10, '|').nth(9).unwrap();
            assert_eq!(left.matches("(\"").count(), 1, "ONLY: {left}");
        }
    });
}

/// C4: a step that fails in the child is named, with its errno, and the next child is born.
#[test]
fn a_step_that_fails_is_named() {
    isolated("a_step_that_fails_is_named", || {
        let server = start();
        let exec = server.exec();
        let fork = server.fork();
        let cases: [(&dyn Backend, Spec, Step, i32); 4] = [
            (
                &exec,
                Spec::main("look").current_dir("/no/such"),
                Step::WorkingDirectory,
                libc::ENOENT,
            ),
            (
                &fork,
                Spec::program("cat").current_dir("/no/such"),
                Step::WorkingDirectory,
                libc::ENOENT,
            ),
            (&fork, Spec::program("/etc/passwd"), Step::Exec, libc::EACCES),
            (
                &exec,
                Spec::main("look").limit(Resource::OpenFiles, 9, 8),
                Step::Limits,
                libc::EINVAL,
            ),
        ];
        for (backend, spec, expected, errno) in cases {
            let error = spawn(backend, spec).map(drop).unwrap_err();
            let SpawnError::Step { step, cause, .. } = error else { panic!("{error:?}") };
            assert_eq!((step, cause.raw_os_error()), (expected, Some(errno)));
        }
        // A child that is only forked is there already; it says so when it has ended.
        let (child, _channel) = spawn(&fork, Spec::main("look").current_dir("/no/such")).unwrap();
        assert_eq!(common::block_on(child.wait()).unwrap().code(), Some(127));
        let failure = child.handle().birth_failure().unwrap();
        assert_eq!((failure.step, failure.errno), (Step::WorkingDirectory, Some(libc::ENOENT)));
        let (child, _channel) = spawn(&fork, Spec::main("no such main")).unwrap();
        common::block_on(child.wait()).unwrap();
        assert_eq!(child.handle().birth_failure().map(|failure| failure.step), Some(Step::Main));
        answer(&fork, Spec::main("look"));
        answer(&exec, Spec::main("look"));
    });
}
