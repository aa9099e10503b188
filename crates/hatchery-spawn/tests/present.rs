//! C18: a child sees its spawner as that one is at the moment of the start.
#![allow(unsafe_code, reason = "scenarios change variables, and what nix has no safe form for")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "their reason is the same")]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::ffi::{CString, OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;

use common::{answer, block_on, isolated, spawn};
use hatchery_spawn::{
    Backend, Birth, Bounds, Command, Confinement, Forkserver, Main, Resource, SpawnError, Spec,
    Threads, inventory,
};
use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource as Limit, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;

inventory::submit! { Main { name: "state", run: tell_state } }
inventory::submit! { Main { name: "vars", run: tell_vars } }
inventory::submit! { Main { name: "spawner", run: tell_of_children } }

/// What a process can see of itself and a child of it shall see too.
fn state() -> String {
    let mut text = String::new();
    let vars = std::env::vars_os().filter(|(key, _)| key != "HATCHERY_ACTOR");
    let here = fs::metadata(".").unwrap();
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let known = ["Umask", "Cpus_allowed_list"];
    let status: Vec<&str> =
        status.lines().filter(|line| known.iter().any(|known| line.starts_with(known))).collect();
    writeln!(text, "{:?}", vars.collect::<Vec<_>>()).unwrap();
    writeln!(text, "{:?}", std::env::args_os().collect::<Vec<_>>()).unwrap();
    writeln!(text, "{} {} {:?}", here.dev(), here.ino(), std::env::current_dir().ok()).unwrap();
    writeln!(text, "{status:?}\n{}", fs::read_to_string("/proc/self/limits").unwrap()).unwrap();
    let mut sched = [0_u8; 48];
    // SAFETY: only numbers are passed, and room that is as long as is said.
    let numbers = unsafe {
        libc::syscall(libc::SYS_sched_getattr, 0, sched.as_mut_ptr(), 48, 0);
        [
            libc::prctl(libc::PR_GET_TIMERSLACK, 0, 0, 0, 0).into(),
            libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0).into(),
            libc::personality(0xffff_ffff).into(),
            libc::syscall(libc::SYS_ioprio_get, 1, 0),
        ]
    };
    // Policy, flags, nice value, priority; the rest depends on the kernel's own mind.
    writeln!(text, "{:?} {numbers:?}", &sched[4..24]).unwrap();
    text
}

fn say(birth: &Birth, text: &str) -> i32 {
    birth.channel.as_ref().expect("a channel").write_all(text.as_bytes()).map_or(1, |()| 0)
}

fn tell_state(birth: Birth) -> i32 {
    say(&birth, &state())
}

fn tell_vars(birth: Birth) -> i32 {
    let vars = std::env::vars_os().collect::<Vec<_>>();
    say(&birth, &format!("{vars:?}"))
}

/// Changes itself, starts a child of each kind, and tells of those that see something else.
fn tell_of_children(birth: Birth) -> i32 {
    let server = birth.forkserver().unwrap().unwrap();
    change("/usr/lib", 11);
    all_see_it(&server);
    say(&birth, "all see it")
}

/// Changes all that a process can change of itself.
fn change(directory: &str, nice: i32) {
    // SAFETY: the process has this thread and others that don't look at variables; and only numbers
    // are passed.
    unsafe {
        std::env::set_var("ADDED", directory);
        std::env::set_var("CHANGED", directory);
        std::env::remove_var("SECRET");
        assert_eq!(libc::setpriority(libc::PRIO_PROCESS, 0, nice), 0);
        assert_eq!(libc::prctl(libc::PR_SET_TIMERSLACK, 60_000 + i64::from(nice), 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);
        // ADDR_NO_RANDOMIZE: it needs no right.
        assert!(libc::personality(0x004_0000) >= 0);
        // The class "best effort", at that level.
        assert_eq!(libc::syscall(libc::SYS_ioprio_set, 1, 0, 2 << 13 | (nice % 8)), 0);
    }
    std::env::set_current_dir(directory).unwrap();
    umask(Mode::from_bits_truncate(0o20 + nice.cast_unsigned() % 8));
    let (_, hard) = getrlimit(Limit::RLIMIT_NOFILE).unwrap();
    setrlimit(Limit::RLIMIT_NOFILE, hard / 2, hard - 1).unwrap();
    let (_, hard) = getrlimit(Limit::RLIMIT_CORE).unwrap();
    setrlimit(Limit::RLIMIT_CORE, 0, hard).unwrap();
    let most = 1 << (40 - nice);
    setrlimit(Limit::RLIMIT_FSIZE, most - 4096, most).unwrap();
    let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let last = (0..CpuSet::count()).rev().find(|cpu| all.is_set(*cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(last).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
}

fn all_see_it(server: &Forkserver) {
    for backend in [&server.fork() as &dyn Backend, &server.exec()] {
        assert_eq!(answer(backend, Spec::main("state")), state(), "{}", backend.name());
    }
    let script = "pwd -P; umask; ulimit -Sn; ulimit -Hn; nice; echo $ADDED,$CHANGED,$SECRET";
    let command = || {
        let script = format!("{script}; grep Cpus_allowed_list /proc/self/status");
        Command::new("sh").args(["-c", &script])
    };
    let ours = block_on(command().on(server).output()).unwrap();
    let theirs = std::process::Command::new("sh")
        .args(["-c", &format!("{script}; grep Cpus_allowed_list /proc/self/status")])
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    assert_eq!(text(ours.stdout), text(theirs.stdout));
}

/// C18: of all that a process can change of itself after its first start, its children see the new, and
/// so do those of an actor.
#[test]
fn a_child_sees_its_spawner_as_it_is_at_its_start() {
    isolated("a_child_sees_its_spawner_as_it_is_at_its_start", || {
        // SAFETY: the scenario's other thread does nothing.
        unsafe { std::env::set_var("SECRET", "1") };
        let server = Forkserver::start(Bounds::default()).unwrap();
        all_see_it(&server);
        change("/usr", 3);
        all_see_it(&server);
        for backend in [&server.fork() as &dyn Backend, &server.exec()] {
            assert_eq!(answer(backend, Spec::main("spawner")), "all see it");
            // Who was bound, and has bound itself more since: the bounds of its birth are no wish.
            let bound = Spec::main("spawner").confine(Confinement::new().nice(5));
            let bound = bound.limit(Resource::OpenFiles, 5000, 5000);
            assert_eq!(answer(backend, bound), "all see it");
        }
        all_see_it(&server);
    });
}

/// C18: what is asked for comes on top of that, and the thread backend says that it can't.
#[test]
fn what_is_asked_for_comes_on_top_of_what_is_inherited() {
    isolated("what_is_asked_for_comes_on_top_of_what_is_inherited", || {
        let server = Forkserver::start(Bounds::default()).unwrap();
        std::env::set_current_dir("/usr").unwrap();
        umask(Mode::from_bits_truncate(0o77));
        let spec = || {
            let spec = Spec::main("state").umask(0o12).nice(5).current_dir("lib");
            spec.env("A", "x").limit(Resource::OpenFiles, 50, 60)
        };
        for backend in [&server.fork() as &dyn Backend, &server.exec()] {
            let text = answer(backend, spec());
            for part in ["\"Umask:\\t0012\"", "(\"A\", \"x\")", "\"/usr/lib\"", " 0, 0, 5, 0, 0, 0"]
            {
                assert!(text.contains(part), "{part} in {text}");
            }
            let files = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
            assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["50", "60"]);
        }
        let script = Command::new("sh").args(["-c", "umask; nice; pwd"]).umask(0o12).nice(5);
        let told = block_on(script.current_dir("lib").output()).unwrap();
        assert_eq!(String::from_utf8(told.stdout).unwrap(), "0012\n5\n/usr/lib\n");
        for spec in [Spec::main("state").umask(0), Spec::main("state").nice(1)] {
            let refused = spawn(&Threads::new(), spec).map(drop).unwrap_err();
            assert!(matches!(refused, SpawnError::Unsupported { .. }), "{refused:?}");
        }
        for spec in [Spec::main("state").umask(0o1000), Spec::main("state").nice(20)] {
            let refused = spawn(&server.fork(), spec).map(drop).unwrap_err();
            let errno = refused.io_error().and_then(io::Error::raw_os_error);
            assert_eq!(errno, Some(libc::EINVAL), "{refused:?}");
        }
    });
}

/// C18: a directory is the same one whatever it is called by now, and also without any name.
#[test]
fn a_directory_that_was_renamed_or_deleted_is_still_the_childs() {
    isolated("a_directory_that_was_renamed_or_deleted_is_still_the_childs", || {
        let server = Forkserver::start(Bounds::default()).unwrap();
        let place = std::env::temp_dir().join(format!("hatchery-present-{}", std::process::id()));
        let moved = place.with_extension("moved");
        fs::create_dir(&place).unwrap();
        std::env::set_current_dir(&place).unwrap();
        for step in ["there", "renamed", "deleted"] {
            match step {
                "renamed" => fs::rename(&place, &moved).unwrap(),
                "deleted" => fs::remove_dir(&moved).unwrap(),
                _ => {}
            }
            for backend in [&server.fork() as &dyn Backend, &server.exec()] {
                let name = backend.name();
                assert_eq!(answer(backend, Spec::main("state")), state(), "{step}, {name}");
            }
            let inode = Command::new("stat").args(["-L", "-c", "%i", "."]).on(&server);
            let told = block_on(inode.output()).unwrap().stdout;
            let told = String::from_utf8(told).unwrap();
            assert_eq!(told.trim().parse(), Ok(fs::metadata(".").unwrap().ino()), "{step}");
        }
    });
}

/// C18: who clears the variables has none, and what is set after that is all.
#[test]
fn cleared_variables_are_all_gone() {
    isolated("cleared_variables_are_all_gone", || {
        let server = Forkserver::start(Bounds::default()).unwrap();
        for backend in [&server.fork() as &dyn Backend, &server.exec()] {
            assert_eq!(answer(backend, Spec::main("vars").env_clear()), "[]", "{}", backend.name());
            let one = Spec::main("vars").env("B", "1").env_clear().env("A", "2");
            assert_eq!(answer(backend, one), r#"[("A", "2")]"#);
        }
        let env = || Command::new("/usr/bin/env").on(&server).env_clear();
        assert_eq!(block_on(env().output()).unwrap().stdout, b"");
        assert_eq!(block_on(env().env("A", "2").output()).unwrap().stdout, b"A=2\n");
    });
}

/// C18: entries that are no variables, and names that begin with `=`, pass through in their order; a
/// user's own name with a `=` is refused.
#[test]
fn odd_entries_pass_through_in_their_order() {
    isolated("odd_entries_pass_through_in_their_order", || {
        const AGAIN: &str = "HATCHERY_TEST_ODD";
        if std::env::var_os(AGAIN).is_none() {
            let text = |text: &OsStr| CString::new(text.as_bytes()).unwrap();
            let args: Vec<CString> = std::env::args_os().map(|arg| text(&arg)).collect();
            let mut all = vec![c"odd".to_owned(), c"=A=b".to_owned(), c"Z=first".to_owned()];
            for (key, value) in std::env::vars_os() {
                let entry: OsString = [key, "=".into(), value].into_iter().collect();
                all.push(text(&entry));
            }
            all.extend([
                c"=".to_owned(),
                c"".to_owned(),
                CString::new(format!("{AGAIN}=1")).unwrap(),
            ]);
            nix::unistd::execve(c"/proc/self/exe", &args, &all).unwrap();
        }
        let own = fs::read("/proc/self/environ").unwrap();
        assert!(own.starts_with(b"odd\0=A=b\0Z=first\0"));
        let told = |command: Command| {
            let mut told = block_on(command.output()).unwrap().stdout;
            let entry = told.windows(15).position(|part| part == b"HATCHERY_ACTOR=");
            // The mark comes last.
            told.truncate(entry.unwrap_or(told.len()));
            told
        };
        let cat = || Command::new("cat").arg("/proc/self/environ");
        assert_eq!(told(cat()), own);
        let changed = told(cat().env("Z", "second").env("NEW", "1").env_remove(AGAIN));
        let text = String::from_utf8(own).unwrap().replace("Z=first\0", "Z=second\0");
        let text = text.replace(&format!("{AGAIN}=1\0"), "") + "NEW=1\0";
        assert_eq!(String::from_utf8(changed).unwrap(), text);
        for key in ["", "=A", "A=B"] {
            let refused = block_on(cat().env(key, "1").status()).unwrap_err();
            assert_eq!(io::Error::from(refused).kind(), io::ErrorKind::InvalidInput, "{key}");
        }
    });
}

/// What no kernel takes is the same error as what this one doesn't take.
#[test]
fn too_many_arguments_are_told_as_that() {
    for (count, length) in [(1, 200_000), (25, 100_000), (90, 100_000), (200, 100_000)] {
        let command = Command::new("true").args(vec!["x".repeat(length); count]);
        let error = io::Error::from(block_on(command.status()).unwrap_err());
        assert_eq!(
            error.kind(),
            io::ErrorKind::ArgumentListTooLong,
            "{count} of {length}: {error}"
        );
    }
    let (key, value) = ("LONG", "x".repeat(100_000));
    let command = (0..90).fold(Command::new("true"), |it, at| it.env(format!("{key}{at}"), &value));
    let error = io::Error::from(block_on(command.status()).unwrap_err());
    assert_eq!(error.kind(), io::ErrorKind::ArgumentListTooLong, "{error}");
}

/// C18, C10: many variables, which change with each start, reach the child, and the forkserver keeps
/// no more than the last.
#[test]
fn many_variables_that_change_reach_the_child_and_pile_up_nowhere() {
    isolated("many_variables_that_change_reach_the_child_and_pile_up_nowhere", || {
        let server = Forkserver::start(Bounds::default()).unwrap();
        let resident = || {
            let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
            let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        let value = "x".repeat(60);
        let mut first = 0;
        for round in 0..40 {
            for at in 0..3000 {
                // SAFETY: the scenario's other thread does nothing.
                unsafe { std::env::set_var(format!("MANY_{at}"), format!("{value}{round}")) };
            }
            let backend: &dyn Backend =
                if round % 2 == 0 { &server.fork() } else { &server.exec() };
            let told = answer(backend, Spec::main("vars"));
            assert_eq!(told.matches(&format!("{value}{round}\"")).count(), 3000);
            if round == 5 {
                first = resident();
            }
        }
        // 230 KB each; the allocator may keep one or two.
        assert!(resident() < first + 1500, "{} kB after {first} kB", resident());
    });
}
