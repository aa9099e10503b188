//! Whatever the host program does with its children, signals, threads, runtimes and image (C9).
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::path::PathBuf;
use std::process::Command as StdCommand;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{block_on, isolated, spawn};
use hatchery_spawn::{
    Backend, Bounds, Command, Exit, Forkserver, Main, OwnThread, Pidfd, Spec, Stdio, inventory,
    signals, thread_count,
};
use nix::sys::wait::{WaitStatus, waitpid};

inventory::submit! { Main { name: "code", run: |birth| i32::from(birth.payload[0]) } }
inventory::submit! { Main { name: "park", run: |_| common::park() } }

fn code(number: u8) -> Spec {
    Spec::main("code").payload(vec![number]).stdout(Stdio::Null)
}

/// Statuses are exact on both process backends, and the end leaves nothing.
fn everything_works() {
    let before = thread_count().unwrap();
    let server = Forkserver::start(Bounds::default()).unwrap();
    for backend in [&server.fork() as &dyn Backend, &server.exec()] {
        for number in [0, 1, 77] {
            let child = block_on(backend.spawn(code(number))).unwrap();
            assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(i32::from(number)));
        }
        let child = block_on(backend.spawn(Spec::main("park").stdout(Stdio::Null))).unwrap();
        child.terminate().unwrap();
        assert_eq!(block_on(child.wait()).unwrap().signal(), Some(libc::SIGTERM));
    }
    let pidfd = Pidfd::open(server.pid()).unwrap();
    server.close();
    assert!(pidfd.wait_dead(Duration::ZERO));
    assert_eq!(thread_count().unwrap(), before);
}

/// This test again, in a process that ignores `signal` from its start on.
fn ignoring(signal: &str, test: &str) -> bool {
    if std::env::var_os(SECOND).is_some() {
        return true;
    }
    let status = StdCommand::new("env")
        .arg(format!("--ignore-signal={signal}"))
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(SECOND, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    false
}

/// C9: the host ignores SIGCHLD, so the kernel reaps the forkserver itself.
#[test]
fn a_host_that_ignores_sigchld_gets_exact_statuses() {
    let name = "a_host_that_ignores_sigchld_gets_exact_statuses";
    isolated(name, || {
        if ignoring("CHLD", name) {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
            let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
            assert_ne!(ignored & (1 << (libc::SIGCHLD - 1)), 0, "the situation isn't built");
            everything_works();
        }
    });
}

/// C9: the host reaps whatever it gets; we take nothing from it and miss nothing, whichever of us
/// looks first.
#[test]
#[allow(clippy::zombie_processes, reason = "the host's loop reaps them")]
fn a_host_that_waits_for_everybody_keeps_its_own_children_and_we_ours() {
    isolated("a_host_that_waits_for_everybody_keeps_its_own_children_and_we_ours", || {
        let before = thread_count().unwrap();
        let ours = || {
            let server = Forkserver::start(Bounds::default()).unwrap();
            let child = block_on(server.fork().spawn(code(9))).unwrap();
            assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(9));
            server.close();
        };
        // The host's own children, which are not ours to reap; first while it doesn't look.
        let own = || StdCommand::new("sh").args(["-c", "exit 55"]).spawn().unwrap();
        for _ in 0..5 {
            assert!(Pidfd::open(own().id()).unwrap().wait_dead(common::BOUND));
        }
        ours();
        let stop = Arc::new(AtomicBool::new(false));
        let codes = Arc::new(AtomicUsize::new(0));
        let look = {
            let (stop, codes) = (stop.clone(), codes.clone());
            move || loop {
                match waitpid(None, None) {
                    Ok(WaitStatus::Exited(_, 55)) => drop(codes.fetch_add(1, Ordering::Relaxed)),
                    Err(_) if stop.load(Ordering::Relaxed) => return,
                    Ok(_) | Err(_) => std::thread::yield_now(),
                }
            }
        };
        // One that is off the count when it was joined.
        let host = OwnThread::spawn("host", look).unwrap();
        for _ in 0..3 {
            own();
            ours();
        }
        // It goes on until it has no child.
        stop.store(true, Ordering::Relaxed);
        host.join();
        assert_eq!(codes.load(Ordering::Relaxed), 8);
        assert_eq!(thread_count().unwrap(), before);
    });
}

/// The image was deleted before the first spawn, or replaced: what runs is what was started.
#[test]
fn a_program_whose_image_was_deleted_still_spawns() {
    let name = "a_program_whose_image_was_deleted_still_spawns";
    isolated(name, || {
        let copy = std::env::temp_dir().join(format!("hatchery-spawn.{}", std::process::id()));
        if std::env::var_os(SECOND).is_none() {
            std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
            let status = StdCommand::new(&copy)
                .args([name, "--exact", "--nocapture", "--test-threads=1"])
                .env(SECOND, &copy)
                .status()
                .unwrap();
            drop(std::fs::remove_file(&copy));
            assert!(status.success(), "{status}");
            return;
        }
        let own = PathBuf::from(std::env::var_os(SECOND).unwrap());
        std::fs::remove_file(&own).unwrap();
        std::fs::write(&own, "#!/bin/sh\nexit 99\n").unwrap();
        everything_works();
    });
}

/// H11: who asks may be a thread that is gone a moment later.
#[test]
fn children_outlive_the_threads_that_asked_for_them() {
    isolated("children_outlive_the_threads_that_asked_for_them", || {
        // The forkserver too is started by a thread that ends.
        let server = std::thread::spawn(|| Forkserver::start(Bounds::default()).unwrap());
        let server = server.join().unwrap();
        let children: Vec<_> = (0..20)
            .map(|_| {
                let fork = server.fork();
                let asked = move || spawn(&fork, Spec::main("park")).unwrap().0;
                std::thread::spawn(asked).join().unwrap()
            })
            .collect();
        // A few rounds through the forkserver: had a thread's end been told, it had been heard.
        for number in 0..20 {
            let child = block_on(server.exec().spawn(code(number))).unwrap();
            assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(i32::from(number)));
        }
        for child in &children {
            assert_eq!(child.try_wait().unwrap(), None);
        }
    });
}

/// Waiters live in runtimes that come and go; the connection depends on none of them.
#[test]
fn a_child_outlives_the_runtime_that_asked_for_it() {
    isolated("a_child_outlives_the_runtime_that_asked_for_it", || {
        let many = tokio::runtime::Builder::new_multi_thread().worker_threads(3).build().unwrap();
        let server = Forkserver::start(Bounds::default()).unwrap();
        let fork = server.fork();
        let child = many.block_on(async {
            let one = tokio::spawn({
                let fork = fork.clone();
                async move { fork.spawn(Spec::main("park").stdout(Stdio::Null)).await.unwrap() }
            });
            let tasks: Vec<_> = (0..50_u8)
                .map(|number| (number, fork.spawn(code(number))))
                .map(|(number, asked)| {
                    let ended = async move { asked.await.unwrap().wait().await.unwrap() };
                    (number, tokio::spawn(ended))
                })
                .collect();
            for (number, task) in tasks {
                assert_eq!(task.await.unwrap(), Exit::Code(i32::from(number)));
            }
            one.await.unwrap()
        });
        drop(many);
        child.kill().unwrap();
        assert_eq!(block_on(child.wait()).unwrap().signal(), Some(libc::SIGKILL));
    });
}

/// The process-wide forkserver of commands comes back when it was killed.
#[test]
fn a_command_works_again_after_the_forkserver_was_killed() {
    isolated("a_command_works_again_after_the_forkserver_was_killed", || {
        let parent = || {
            let output = block_on(Command::new("sh").args(["-c", "echo $PPID"]).output()).unwrap();
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap().trim().parse::<u32>().unwrap()
        };
        let first = parent();
        let pidfd = Pidfd::open(first).unwrap();
        pidfd.send_signal(libc::SIGKILL).unwrap();
        assert!(pidfd.wait_dead(common::BOUND));
        // Its death is noticed at the next start at the latest, which may fail once for it.
        let again = (0..100).find_map(|_| {
            let status = block_on(Command::new("true").status());
            status.is_ok().then(parent)
        });
        assert_ne!(again.unwrap(), first);
    });
}

/// C6: signals that come together are all told, and the old dispositions come back.
#[test]
fn signals_that_come_together_are_all_told() {
    let name = "signals_that_come_together_are_all_told";
    isolated(name, || {
        let dispositions = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            // Ignored and caught: what is blocked is each thread's own business.
            let kept = |line: &&str| line.starts_with("SigIgn") || line.starts_with("SigCgt");
            let lines = status.lines().filter(kept).collect::<Vec<_>>();
            lines.join("\n")
        };
        let before = dispositions();
        let source = signals::install(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP]).unwrap();
        let own = Pidfd::open(std::process::id()).unwrap();
        for _ in 0..100 {
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                own.send_signal(signal).unwrap();
            }
            let mut told: Vec<_> =
                (0..3).map(|_| source.recv(Some(common::BOUND)).unwrap()).collect();
            told.sort_unstable();
            assert_eq!(told, [libc::SIGHUP, libc::SIGINT, libc::SIGTERM]);
        }
        assert_eq!(source.recv(Some(Duration::ZERO)), None);
        let stopper = source.stopper();
        let waiting = std::thread::spawn(move || {
            let told = source.recv(None);
            (told, source.is_stopped())
        });
        stopper.stop();
        assert_eq!(waiting.join().unwrap(), (None, true));
        assert_eq!(dispositions(), before);
    });
}

const SECOND: &str = "HATCHERY_SPAWN_SECOND";
