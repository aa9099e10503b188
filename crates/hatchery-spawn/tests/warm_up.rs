//! Preloads: how long they may take, what is told of one that fails, and who ends one that hangs.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{BOUND, block_on, isolated, park, rooted, say, spawn};
use hatchery_spawn::{
    Backend as _, Bounds, Exit, Forkserver, Main, Pidfd, PreloadFailure, SpawnError, Spec,
    inventory, preload,
};
use nix::sys::stat::Mode;

inventory::submit! { Main { name: "quit", run: |_| 3 } }

preload!(well);
preload!(as_told);

/// One that ends well before the one that does not.
fn well() {}

/// What the test wants; nothing in the other processes of this file.
fn as_told() {
    match std::env::var(TOLD).unwrap_or_default().as_str() {
        "" => {}
        "panic" => panic!("no table to load"),
        "thread" => {
            let left = std::thread::Builder::new().name("left-over".to_owned());
            left.spawn(|| park()).unwrap();
        }
        "exit" => std::process::exit(0),
        // Opened by the test when it has seen enough.
        gate => drop(File::open(gate).unwrap()),
    }
}

const TOLD: &str = "HATCHERY_TEST_PRELOAD";

/// A forkserver whose preload does that.
fn told(what: &str, bounds: Bounds) -> Forkserver {
    #[allow(unsafe_code, reason = "an environment is inherited or nothing")]
    // SAFETY: no other thread of a scenario looks at the environment meanwhile.
    unsafe {
        std::env::set_var(TOLD, what);
    }
    Forkserver::start(bounds).unwrap()
}

#[allow(clippy::disallowed_methods, reason = "a bound that must not count has no event at its end")]
fn let_pass(bound: Duration) {
    std::thread::sleep(bound);
}

fn failure(server: &Forkserver) -> (String, PreloadFailure) {
    match spawn(&server.fork(), Spec::main("quit")) {
        Err(SpawnError::Preload { cause, .. }) => (cause.preload, cause.failure),
        other => panic!("{other:?}"),
    }
}

/// A preload waits there until the gate is opened for writing.
struct Gate(PathBuf);

impl Gate {
    fn new() -> Self {
        let name = format!("hatchery-gate-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        Self(path)
    }

    fn name(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn open(&self) {
        drop(File::options().write(true).open(&self.0).unwrap());
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.0);
    }
}

/// H26: a preload under way is a sign of life: requests that were made before it began wait longer
/// than their own bound, and are all served when it has ended.
#[test]
fn requests_wait_for_a_preload_beyond_their_own_bound() {
    isolated("requests_wait_for_a_preload_beyond_their_own_bound", || {
        let gate = Gate::new();
        let request = Duration::from_millis(100);
        let server = told(gate.name(), Bounds { request, ..Bounds::default() });
        let backend = server.fork();
        let children = (0..5).map(|_| backend.spawn(Spec::main("quit")));
        let mut children: Vec<_> = children.collect();
        let_pass(request * 2);
        // One more has everybody's bounds looked at.
        children.push(backend.spawn(Spec::main("quit")));
        let_pass(request * 2);
        gate.open();
        block_on(async {
            for child in children {
                assert_eq!(child.await.unwrap().wait().await.unwrap(), Exit::Code(3));
            }
        });
        server.close();
    });
}

/// H26: preloads have a bound of their own; what was under way then is named, to those who wait and
/// to those who come later, and the forkserver is gone at once.
#[test]
fn a_preload_that_hangs_is_named_at_its_bound() {
    isolated("a_preload_that_hangs_is_named_at_its_bound", || {
        let (gate, bound) = (Gate::new(), Duration::from_millis(150));
        let server = told(gate.name(), Bounds { warm_up: bound, ..Bounds::default() });
        let process = Pidfd::open(server.pid()).unwrap();
        let expected = ("as_told".to_owned(), PreloadFailure::TookTooLong { bound });
        assert_eq!(failure(&server), expected);
        assert_eq!(failure(&server), expected);
        assert!(process.wait_dead(BOUND));
        server.close();
    });
}

/// C4: what a preload did instead of coming to its end is told with its name.
#[test]
fn a_preload_that_fails_is_named_with_what_it_did() {
    isolated("a_preload_that_fails_is_named_with_what_it_did", || {
        for what in ["panic", "thread", "exit"] {
            let server = told(what, Bounds::default());
            let (preload, failure) = failure(&server);
            assert_eq!(preload, "as_told");
            match (what, &failure) {
                ("panic", PreloadFailure::Panicked { message }) => {
                    assert_eq!(message, "no table to load");
                }
                ("thread", PreloadFailure::LeftThread { thread }) => {
                    let here = std::env::current_exe().unwrap();
                    assert!(thread.contains("left-over"), "{thread}");
                    assert!(thread.ends_with(here.to_str().unwrap()), "{thread}");
                }
                ("exit", PreloadFailure::Ended) => {}
                (_, other) => panic!("{what}: {other:?}"),
            }
            server.close();
        }
        let server = told("", Bounds::default());
        let (child, _channel) = spawn(&server.fork(), Spec::main("quit")).unwrap();
        assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(3));
        server.close();
    });
}

/// C3: the root dies while a preload hangs in its forkserver: that one goes too.
#[test]
fn a_hung_preload_does_not_outlive_its_root() {
    let scenario = || {
        let gate = Gate::new();
        let server = told(gate.name(), Bounds::default());
        say(server.pid());
        say(gate.name());
        park();
    };
    rooted("a_hung_preload_does_not_outlive_its_root", scenario, |root| {
        let (server, gate) = (root.pid(), root.line());
        // Open for reading and not for writing: so the preload is there.
        let until = Instant::now() + BOUND;
        let held = || fs::read_link(format!("/proc/{}/exe", root.process.id())).is_ok();
        while !is_waiting(&gate) {
            assert!(Instant::now() < until && held());
            std::thread::yield_now();
        }
        root.process.kill().unwrap();
        assert!(server.wait_dead(Duration::from_secs(1)));
        fs::remove_file(gate).unwrap();
    });
}

/// Whether a process waits at that gate: opening it to write does not block then, but would let it
/// go on; so it is looked for by what it sleeps in.
fn is_waiting(gate: &str) -> bool {
    let named = |pid: u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.windows(gate.len()).any(|found| found == gate.as_bytes())
    };
    let asleep = |pid: u32| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let calls = tasks.filter_map(|task| fs::read_to_string(task.path().join("syscall")).ok());
        // openat(2), which only the preload is in.
        calls.into_iter().any(|call| call.starts_with(&format!("{} ", libc::SYS_openat)))
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .any(|pid| named(pid) && asleep(pid))
}
