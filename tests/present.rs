//! C18: an actor sees its spawner as that one is at the moment of the start, on every backend.
#![allow(unsafe_code, reason = "scenarios change variables, and what nix has no safe form for")]
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use hatchery::{Backend, Error, StartCause, StartError, nursery};
use hatchery_spawn::SpawnError;
use hatchery_tests::{BACKENDS, PROCESSES, for_each, here};
use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;

/// What a process can see of itself and those below it shall see too.
fn state() -> String {
    let mut text = String::new();
    let vars = std::env::vars_os().filter(|(key, _)| key != "HATCHERY_ACTOR");
    let here = fs::metadata(".").unwrap();
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let known = ["Umask", "Cpus_allowed_list"];
    let is_known = |line: &&str| known.iter().any(|known| line.starts_with(known));
    writeln!(text, "{:?}", vars.collect::<Vec<_>>()).unwrap();
    writeln!(text, "{:?}", std::env::args_os().collect::<Vec<_>>()).unwrap();
    writeln!(text, "{} {} {:?}", here.dev(), here.ino(), std::env::current_dir().ok()).unwrap();
    writeln!(text, "{:?}", status.lines().filter(is_known).collect::<Vec<_>>()).unwrap();
    writeln!(text, "{}", fs::read_to_string("/proc/self/limits").unwrap()).unwrap();
    // SAFETY: only numbers are passed.
    writeln!(text, "nice {}", unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }).unwrap();
    text
}

#[hatchery::function]
async fn see() -> String {
    state()
}

/// Changes itself, and says what it is by then and what an actor of each backend below it sees.
#[hatchery::function]
async fn change_and_see(directory: String, nice: i32) -> Result<Vec<String>, Error> {
    change(&directory, nice);
    seen_below().await
}

async fn seen_below() -> Result<Vec<String>, Error> {
    let below = nursery(async |n| {
        let mut seen = vec![state()];
        for backend in BACKENDS {
            let name = backend.name();
            seen.push(n.actor(name).backend(backend).start().await?.call(see()).await?);
        }
        Ok(seen)
    });
    Ok(below.await?)
}

/// Changes what a process can change of itself; its nice value to no less than it has.
fn change(directory: &str, nice: i32) {
    // SAFETY: only numbers are passed.
    let nice = nice.max(unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) });
    // SAFETY: no other thread of the scenario looks at variables.
    unsafe { std::env::set_var("ADDED", directory) };
    // SAFETY: as above.
    unsafe { std::env::remove_var("SECRET") };
    // SAFETY: only numbers are passed.
    assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }, 0);
    std::env::set_current_dir(directory).unwrap();
    umask(Mode::from_bits_truncate(0o20 + nice.cast_unsigned() % 8));
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft - 1, hard - 1).unwrap();
    let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let last = (0..CpuSet::count()).rev().find(|cpu| all.is_set(*cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(last).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
}

/// C18, C14: whatever has changed since the first start, the next actor sees it, by every backend, also
/// below an actor that has changed itself.
#[test]
fn an_actor_sees_its_spawner_as_it_is_at_its_start() {
    for_each(here!(), &PROCESSES, async |runtime| {
        // SAFETY: no other thread of the scenario looks at variables.
        unsafe { std::env::set_var("SECRET", "1") };
        let mut rounds = Vec::new();
        for round in 0..2 {
            let seen = runtime.nursery(async |n| {
                let mut seen = vec![seen_below().await?];
                let actor = n.start("actor").await?;
                seen.push(actor.call(change_and_see("/usr/lib".to_owned(), 11)).await?);
                Ok(seen)
            });
            rounds.extend(seen.await.unwrap_or_else(|error| panic!("{}", error.render())));
            if round == 0 {
                change("/usr", 5);
            }
        }
        for seen in &rounds {
            for (other, name) in seen[1..].iter().zip(["forkserver", "exec", "thread"]) {
                assert_eq!(*other, seen[0], "{name}");
            }
        }
        assert!(rounds[0][0].contains("SECRET") && !rounds[2][0].contains("SECRET"));
        assert!(!rounds[1][0].contains("SECRET") && rounds[1][0].contains("\"/usr/lib\""));
        // As it was for the next backend.
        std::env::set_current_dir("/").unwrap();
    });
}

/// C18: what one actor is given of its own is its own, and a thread says that it can't.
#[test]
fn an_actor_is_given_a_state_of_its_own() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let done = runtime.nursery(async |n| {
            let own = n.actor("own").env("A", "0").env_clear().env("A", "1").env("B", "2");
            let own = own.env_remove("B").current_dir("/usr/lib").umask(0o12).nice(19);
            let own = own.start().await?.call(see()).await?;
            assert!(own.starts_with("[(\"A\", \"1\")]\n"), "{own}");
            for part in ["\"/usr/lib\"", "\"Umask:\\t0012\"", "nice 19"] {
                assert!(own.contains(part), "{part} in {own}");
            }
            assert_eq!(n.start("plain").await?.call(see()).await?, state());
            for which in 0..6 {
                let actor = n.actor(&format!("thread{which}")).backend(Backend::Thread);
                let actor = match which {
                    0 => actor.env("A", "1"),
                    1 => actor.env_remove("A"),
                    2 => actor.env_clear(),
                    3 => actor.current_dir("/"),
                    4 => actor.umask(0),
                    _ => actor.nice(1),
                };
                let refused = actor.start().await.map(drop).unwrap_err();
                let StartError { cause: StartCause::Spawn(cause), .. } = refused else {
                    panic!("{which}: {refused:?}")
                };
                assert!(matches!(cause, SpawnError::Unsupported { .. }), "{which}: {cause:?}");
            }
            Ok(())
        });
        done.await.unwrap_or_else(|error| panic!("{}", error.render()));
    });
}
