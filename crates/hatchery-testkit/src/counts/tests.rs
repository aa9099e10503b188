use std::fs;
use std::io::{BufRead as _, BufReader};
use std::num::NonZeroUsize;
use std::process::{Command, Stdio};

use hatchery_spawn::{Bounds, ChildId, Forkserver, Pidfd, SharedWords};

use super::own::{shared, stays};
use super::*;
use crate::isolate::{block_on, run_test};

/// C10
#[test]
fn every_kind_of_leak_is_seen_by_name() {
    run_test(concat!(module_path!(), "::every_kind_of_leak_is_seen_by_name"), BOUND, || {
        let before = Counts::now();
        let (gate, closed) = std::sync::mpsc::channel::<()>();
        let builder = std::thread::Builder::new().name("lingering".to_owned());
        let (up, is_up) = std::sync::mpsc::channel();
        let thread = builder
            .spawn(move || {
                // It has its name by now; before this it has that of its starter.
                up.send(()).unwrap();
                closed.recv().is_err()
            })
            .unwrap();
        is_up.recv().unwrap();
        let file = fs::File::open("/dev/zero").unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let left = isolate::private_dir().unwrap().join("left");
        fs::write(&left, "").unwrap();
        let page = NonZeroUsize::new(512).unwrap();
        // Its fd is closed: the mapping alone is left.
        let memory = SharedWords::new(c"frames", page).unwrap().0;

        let value = hatchery_proto::Encoded::moved("on its way", 0).unwrap();

        let found = Counts::now().difference(&before).unwrap();
        assert!(found.threads[0].ends_with("lingering"), "{found}");
        assert!(found.to_string().contains("values on their way between threads: 1"), "{found}");
        assert!(found.fds.iter().any(|fd| fd.ends_with("/dev/zero")), "{found}");
        assert!(found.children[0].contains(&child.id().to_string()), "{found}");
        assert!(found.files[0].ends_with("left"), "{found}");
        let [frames] = &found.memory[..] else { panic!("{found}") };
        assert!(frames.contains("/memfd:frames") && frames.ends_with(" 4096 bytes"), "{found}");

        drop((gate, file, stdin, memory, value));
        assert!(thread.join().unwrap());
        child.wait().unwrap();
        fs::remove_file(left).unwrap();
        assert_eq!(Counts::now().difference(&before), None);
    });
}

#[test]
fn a_zombie_is_a_child_that_is_left() {
    run_test(concat!(module_path!(), "::a_zombie_is_a_child_that_is_left"), BOUND, || {
        let before = Counts::now();
        let mut child = Command::new("true").spawn().unwrap();
        let ended = Pidfd::open(child.id()).unwrap();
        assert!(ended.wait_dead(BOUND));
        assert_eq!(Counts::now().difference(&before).unwrap().children.len(), 1);
        drop(ended);
        child.wait().unwrap();
        assert_eq!(Counts::now().difference(&before), None);
    });
}

/// One that a child of ours has left behind is named with who is to answer for it.
#[test]
fn who_is_further_below_is_a_child_that_is_left() {
    run_test(
        concat!(module_path!(), "::who_is_further_below_is_a_child_that_is_left"),
        BOUND,
        || {
            let before = Counts::now();
            let shell = ["-c", "sleep 1000 & echo $!; wait"];
            let mut child = Command::new("sh").args(shell).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            let found = Counts::now().difference(&before).unwrap();
            let of_shell = format!(" of {} sh", child.id());
            // It is called `sh` too until it has become that program.
            let is_it = |one: &String| one.starts_with(line.trim()) && one.ends_with(&of_shell);
            assert!(found.children.len() == 2 && found.children.iter().any(is_it), "{found}");

            let sleep = Pidfd::open(line.trim().parse().unwrap()).unwrap();
            sleep.send_signal(nix::libc::SIGKILL).unwrap();
            drop(sleep);
            child.wait().unwrap();
            assert_eq!(Counts::now().difference(&before), None);
        },
    );
}

/// What hangs below a forkserver, which is the sub-reaper of its tree.
#[test]
fn a_child_of_the_forkserver_is_counted() {
    run_test(concat!(module_path!(), "::a_child_of_the_forkserver_is_counted"), BOUND, || {
        block_on(async {
            let server = Forkserver::start(Bounds::default()).unwrap();
            // The first answer: it is up, and called what it is called.
            let quick = hatchery_spawn::Command::new("true").on(&server).status().await.unwrap();
            assert!(quick.success());
            let before = Counts::now();
            let child = hatchery_spawn::Command::new("sleep").arg("1000").on(&server);
            let child = child.spawn().await.unwrap();
            let ChildId::Process(pid) = child.id() else { panic!("a thread") };
            let found = Counts::now().difference(&before).unwrap();
            let left = &found.children[0];
            assert!(left.starts_with(&format!("{pid} sleep")), "{found}");
            assert!(left.ends_with(" hatchery:server"), "{found}");
            child.kill().unwrap();
            child.wait().await.unwrap();
            drop(child);
            assert_eq!(Counts::now().difference(&before), None);
        });
    });
}

/// What tokio keeps for signals and children is there from the first look on, and nothing that a
/// program does with either is hidden by that.
#[cfg(feature = "tokio-signals")]
#[test]
fn what_tokio_keeps_for_ever_is_no_leak() {
    run_test(concat!(module_path!(), "::what_tokio_keeps_for_ever_is_no_leak"), BOUND, || {
        let before = Counts::now();
        let build = || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(2).enable_all().build().unwrap()
        };
        for _ in 0..3 {
            let runtime = build();
            runtime.block_on(async {
                use tokio::signal::unix::{SignalKind, signal};
                let hangup = signal(SignalKind::hangup()).unwrap();
                #[allow(clippy::disallowed_types, reason = "what tokio does is the point")]
                let mut program = tokio::process::Command::new("true");
                assert!(program.status().await.unwrap().success());
                // From inside of a runtime as well.
                let _now = Counts::now();
                drop(hangup);
            });
            let held = Counts::now().difference(&before).unwrap();
            assert!(held.fds.iter().any(|fd| fd.contains("eventpoll")), "{held}");
            drop(runtime);
            assert_eq!(Counts::now().difference(&before), None);
        }
    });
}

#[test]
fn what_others_may_write_is_shared_memory() {
    let line = |rights: &str, what: &str| format!("10000-12000 {rights} 00000000 00:01 77  {what}");
    let is_shared = |rights: &str, what: &str| shared(&line(rights, what)).is_some();
    assert_eq!(
        shared(&line("rw-s", "/memfd:a name (deleted)")),
        Some((Address(0x1_0000), "/memfd:a name (deleted), 8192 bytes".to_owned()))
    );
    for segment in ["/memfd:x (deleted)", "/dev/shm/x", "/SYSV00000000 (deleted)"] {
        assert!(is_shared("r--p", segment) && is_shared("rw-s", segment), "{segment}");
    }
    assert!(is_shared("rw-s", "/var/lib/db"));
    assert!(!is_shared("r--s", "/usr/lib/gconv/gconv-modules.cache"));
    assert!(!is_shared("rw-p", "[heap]") && !is_shared("rw-p", ""));
}

#[test]
fn a_change_of_name_or_state_is_no_leak_and_a_change_of_an_fd_is_one() {
    let all = |state: &str, target: &str| Counts {
        threads: BTreeMap::from([(3, format!("thread {state}"))]),
        fds: BTreeMap::from([(4, target.to_owned())]),
        children: BTreeMap::from([(5, format!("child ({state})"))]),
        memory: BTreeMap::new(),
        files: BTreeMap::new(),
        values: 0,
    };
    assert_eq!(all("R", "x").difference(&all("S", "x")), None);
    let found = all("R", "x").difference(&all("R", "y")).unwrap();
    assert_eq!(found.to_string(), "  fd 4 x\n");
}

/// What the kernel says of a thread before, in and after its end.
#[test]
fn who_is_on_its_way_out_is_not_counted() {
    let stat = |flags: u64| format!("7 (a) b) S 1 7 7 0 -1 {flags} 0 0 0 0");
    assert!(stays(&stat(0x40_0040)));
    assert!(!stays(&stat(0x40_0044)));
    assert!(!stays(""));
}

/// The same with real ones: a joined thread is still listed for a moment, now and then.
#[test]
fn a_joined_thread_is_never_counted() {
    run_test(concat!(module_path!(), "::a_joined_thread_is_never_counted"), BOUND, || {
        for _ in 0..200 {
            let _nothing_left = guard();
            std::thread::spawn(|| ()).join().unwrap();
        }
    });
}

/// Only hangs take so long.
const BOUND: std::time::Duration = std::time::Duration::from_secs(60);
