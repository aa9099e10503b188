//! A child has no right that its spawner has given up, on both process backends and for foreign
//! programs; what can't be carried over is refused before the fork (C17).
//!
//! Each scenario is a process of its own: what it gives up is gone. Most need root to have something
//! to give up; else they say that they were not run.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;
mod raised;

use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use common::{BOUND, answer, block_on, isolated, line, park, process, rooted, say, spawn, tell};
use hatchery_spawn::{
    Access, Backend, Birth, Bounds, Cgroup, Command, Confinement, Exit, Forkserver, Main, Right,
    SpawnError, Spec, Step, inventory,
};
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::{Gid, Uid, geteuid, getpid, setgroups, setresgid, setresuid};
use raised::{Sets, forbid, on_a_thread, prctl, restrict, set_sets, sets};

inventory::submit! { Main { name: "look", run: look } }
inventory::submit! { Main { name: "hang", run: hang } }
inventory::submit! { Main { name: "drops", run: drops } }
inventory::submit! { Main { name: "leaves", run: leaves } }

/// What of a process stands for its rights, and whether it may read a file.
fn seen(file: &str) -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let kinds = ["Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"];
    let all: Vec<String> = kinds.iter().map(|kind| format!("{kind} {}", of(kind))).collect();
    let bits = prctl(libc::PR_GET_SECUREBITS, 0);
    let reads = fs::read(file).is_ok();
    format!("{} privs {} bits {bits:?} reads {reads}", all.join(" "), of("NoNewPrivs:"))
}

fn look(birth: Birth) -> i32 {
    let file = String::from_utf8(birth.payload).unwrap();
    birth.channel.unwrap().write_all(seen(&file).as_bytes()).map_or(1, |()| 0)
}

fn hang(birth: Birth) -> i32 {
    tell(&mut birth.channel.unwrap(), "up");
    park()
}

/// Gives up what it has, then says what it is itself and what both of its children are.
fn drops(birth: Birth) -> i32 {
    let file = String::from_utf8(birth.payload).unwrap();
    become_nobody();
    let server = Forkserver::inherited().unwrap().unwrap();
    let mut said = vec![seen(&file)];
    said.extend(both(&server).iter().map(|backend| found(&**backend, &file)));
    birth.channel.unwrap().write_all(said.join("\n").as_bytes()).map_or(1, |()| 0)
}

/// Goes to another user namespace, and asks from there.
fn leaves(birth: Birth) -> i32 {
    // An actor that has asked for nothing yet has one thread.
    let left = unshare(CloneFlags::CLONE_NEWUSER);
    let server = Forkserver::inherited().unwrap().unwrap();
    let said = match left {
        Ok(()) => format!("{:?}", refused(&server.fork())),
        Err(errno) => errno.to_string(),
    };
    birth.channel.unwrap().write_all(said.as_bytes()).map_or(1, |()| 0)
}

fn start() -> Forkserver {
    Forkserver::start(Bounds::default()).unwrap()
}

fn both(server: &Forkserver) -> [Box<dyn Backend>; 2] {
    [Box::new(server.fork()), Box::new(server.exec())]
}

/// What a child of that backend is and may read.
fn found(backend: &dyn Backend, file: &str) -> String {
    answer(backend, Spec::main("look").payload(file.into()))
}

/// Which right a child would have had.
fn refused(backend: &dyn Backend) -> Option<Right> {
    match spawn(backend, Spec::main("hang")) {
        Err(SpawnError::Rights { right, .. }) => Some(right),
        Err(other) => panic!("{other:?}"),
        Ok(_) => None,
    }
}

/// What a program writes.
fn output(server: &Forkserver, program: &str, args: &[&str]) -> String {
    let output = block_on(Command::new(program).args(args).on(server).output()).unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn become_nobody() {
    setgroups(&[]).unwrap();
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setresgid(gid, gid, gid).unwrap();
    setresuid(uid, uid, uid).unwrap();
}

/// Runs a scenario that has rights to give up, with a file that only root may read.
fn as_root(test: &str, scenario: impl FnOnce(&Forkserver, &str)) {
    if !geteuid().is_root() {
        eprintln!("not tested: not root");
        return;
    }
    isolated(test, || {
        let secret = Secret::new();
        // One that is to be given up, whatever this process was started with.
        setgroups(&[Gid::from_raw(4242)]).unwrap();
        let server = start();
        // It takes its rights from before, whatever is given up from here on.
        assert!(found(&server.fork(), secret.path()).ends_with("reads true"));
        scenario(&server, secret.path());
    });
}

/// A file in a directory that all may search.
struct Secret(PathBuf);

impl Secret {
    fn new() -> Self {
        let directory = std::env::temp_dir().join(format!("hatchery-rights-{}", getpid()));
        // One of the same number may have been killed before it could remove its own.
        let _left = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        let path = directory.join("secret");
        fs::write(&path, "secret").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        let directory = self.0.parent().unwrap();
        let _gone = fs::remove_dir_all(directory);
        // Who may not remove it any more leaves an empty file.
        let _kept = fs::write(&self.0, "");
    }
}

/// C17, C2: who has become another user has children that are that user and no more, and ends them.
#[test]
fn children_of_a_root_that_became_nobody_are_nobody() {
    as_root("children_of_a_root_that_became_nobody_are_nobody", |server, secret| {
        become_nobody();
        let own = seen(secret);
        assert!(own.starts_with("Uid: 65534 65534 65534 65534 Gid: 65534 "), "{own}");
        assert!(own.contains(" Groups:  CapInh") && own.ends_with("reads false"), "{own}");
        for backend in both(server) {
            assert_eq!(found(&*backend, secret), own, "{}", backend.name());
        }
        assert_eq!(output(server, "id", &["-u"]), "65534\n");
        assert_eq!(output(server, "cat", &[secret]), "");
        let (child, mut channel) = spawn(&server.fork(), Spec::main("hang")).unwrap();
        assert_eq!(line(&mut channel), "up");
        let hung = process(&child);
        server.kill_tree();
        assert!(hung.wait_dead(BOUND));
    });
}

/// C3: the kernel forgets the parent-death signal with the rights; the child still dies with the
/// forkserver.
#[test]
fn a_child_without_rights_dies_with_the_forkserver() {
    if !geteuid().is_root() {
        eprintln!("not tested: not root");
        return;
    }
    rooted(
        "a_child_without_rights_dies_with_the_forkserver",
        || {
            let server = start();
            say(server.pid());
            become_nobody();
            // By a plain fork: a fresh image would be found by its environment.
            let (child, mut channel) = spawn(&server.fork(), Spec::main("hang")).unwrap();
            assert_eq!(line(&mut channel), "up");
            let hatchery_spawn::ChildId::Process(pid) = child.id() else { panic!() };
            say(pid);
            park()
        },
        |root| {
            let (server, child) = (root.pid(), root.pid());
            // Nobody is left who could look for it.
            root.pidfd.send_signal(libc::SIGSTOP).unwrap();
            server.send_signal(libc::SIGKILL).unwrap();
            assert!(child.wait_dead(BOUND), "it outlived the forkserver");
            root.pidfd.send_signal(libc::SIGKILL).unwrap();
        },
    );
}

/// C17: the saved user brings everything back, for who has it.
#[test]
fn a_root_that_is_nobody_for_a_while_is_followed_both_ways() {
    as_root("a_root_that_is_nobody_for_a_while_is_followed_both_ways", |server, secret| {
        let (root, nobody) = (Uid::from_raw(0), Uid::from_raw(NOBODY));
        for real in [root, nobody] {
            setresuid(real, nobody, root).unwrap();
            let own = seen(secret);
            assert!(own.ends_with("reads false"), "{own}");
            assert_eq!(found(&server.fork(), secret), own);
            if real == root {
                assert_eq!(refused(&server.exec()), Some(Right::Exec));
            }
            assert_eq!(output(server, "id", &["-u"]), "65534\n");
            setresuid(root, root, root).unwrap();
            let own = seen(secret);
            assert!(own.ends_with("reads true"), "{own}");
            for backend in both(server) {
                assert_eq!(found(&*backend, secret), own, "{}", backend.name());
            }
        }
    });
}

/// C17: capabilities alone, of the thread that asks; what is out of its bounding set no exec brings
/// back.
#[test]
fn a_capability_that_was_given_up_does_not_come_back() {
    as_root("a_capability_that_was_given_up_does_not_come_back", |server, secret| {
        chown(secret, Some(NOBODY), Some(NOBODY)).unwrap();
        for capability in [CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH] {
            prctl(libc::PR_CAPBSET_DROP, capability.into()).unwrap();
        }
        let kept = !(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH);
        let all = sets();
        set_sets(Sets { permitted: all.permitted & kept, effective: all.effective & kept, ..all });
        let own = seen(secret);
        assert!(own.ends_with("reads false"), "{own}");
        for backend in both(server) {
            assert_eq!(found(&*backend, secret), own, "{}", backend.name());
        }
        assert_eq!(output(server, "cat", &[secret]), "");
        // Another thread of this process still may.
        let other = std::thread::scope(|scope| {
            scope.spawn(|| found(&server.fork(), secret)).join().unwrap()
        });
        assert_eq!(other, own, "a thread has the rights of who has started it");
    });
}

/// C17: what a user that is not root has kept, its children have, the ambient set over an exec.
#[test]
fn capabilities_that_nobody_has_kept_are_carried_over() {
    as_root("capabilities_that_nobody_has_kept_are_carried_over", |server, secret| {
        prctl(libc::PR_SET_KEEPCAPS, 1).unwrap();
        become_nobody();
        let kept = 1 << CAP_NET_BIND_SERVICE;
        set_sets(Sets { permitted: kept, effective: kept, inheritable: kept });
        let plain = seen(secret);
        assert_eq!(found(&server.fork(), secret), plain);
        prctl(libc::PR_SET_KEEPCAPS, 0).unwrap();
        raised::raise_ambient(CAP_NET_BIND_SERVICE);
        let own = seen(secret);
        assert!(own.contains("CapAmb: 0000000000000400"), "{own}");
        for backend in both(server) {
            assert_eq!(found(&*backend, secret), own, "{}", backend.name());
        }
        let status = output(server, "cat", &["/proc/self/status"]);
        assert!(status.contains("CapEff:\t0000000000000400"), "{status}");
    });
}

/// C17: securebits, by the word of who asks; with them, root is a user like others.
#[test]
fn securebits_are_carried_over() {
    as_root("securebits_are_carried_over", |server, secret| {
        let no_root = 0b11;
        prctl(libc::PR_SET_SECUREBITS, no_root).unwrap();
        set_sets(Sets { permitted: 0, effective: 0, inheritable: 0 });
        let own = seen(secret);
        assert!(own.contains("CapPrm: 0000000000000000") && own.contains("bits Ok(3)"), "{own}");
        for backend in both(server) {
            assert_eq!(found(&*backend, secret), own, "{}", backend.name());
        }
        let status = output(server, "cat", &["/proc/self/status"]);
        assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    });
}

/// C17: `no_new_privs`, which anybody may give up, of the thread that asks.
#[test]
fn who_gets_no_new_privileges_has_children_that_get_none() {
    isolated("who_gets_no_new_privileges_has_children_that_get_none", || {
        let server = start();
        let privs = |text: &str| text.split(" privs ").nth(1).unwrap()[..1].to_owned();
        assert_eq!(privs(&found(&server.fork(), "/")), "0");
        nix::sys::prctl::set_no_new_privs().unwrap();
        for backend in both(&server) {
            assert_eq!(privs(&found(&*backend, "/")), "1", "{}", backend.name());
        }
        assert!(output(&server, "cat", &["/proc/self/status"]).contains("NoNewPrivs:\t1"));
    });
}

/// C17: a filter can't be handed on, so it is a refusal; of the thread alone that has it.
#[test]
fn who_has_a_filter_of_its_own_starts_nothing() {
    isolated("who_has_a_filter_of_its_own_starts_nothing", || {
        let server = start();
        on_a_thread(|| {
            forbid(libc::SYS_acct);
            for backend in both(&server) {
                assert_eq!(refused(&*backend), Some(Right::Seccomp), "{}", backend.name());
            }
            let error = block_on(Command::new("true").on(&server).status()).unwrap_err();
            assert!(error.to_string().contains("filter of system calls"), "{error}");
            let kind = std::io::Error::from(error).kind();
            assert_eq!(kind, std::io::ErrorKind::PermissionDenied);
            // A forkserver that starts under it has it as well.
            let server = start();
            assert_eq!(refused(&server.fork()), None);
        });
        assert_eq!(refused(&server.fork()), None);
    });
}

/// C17: landlock of its own, likewise.
#[test]
fn who_has_landlock_of_its_own_starts_nothing() {
    isolated("who_has_landlock_of_its_own_starts_nothing", || {
        let server = start();
        if !common::has_landlock(&server) {
            return;
        }
        // One request without it: then the forkserver knows that it is seen.
        assert_eq!(refused(&server.fork()), None);
        on_a_thread(|| {
            restrict();
            for backend in both(&server) {
                assert_eq!(refused(&*backend), Some(Right::Landlock), "{}", backend.name());
            }
        });
        assert_eq!(refused(&server.fork()), None);
        // Who has it by hatchery has children that have it.
        let files = [("/", Access::Execute), ("/dev", Access::Write)];
        let confinement = Confinement::new().files(files);
        let spec = Spec::main("drops").payload("/".into()).confine(confinement);
        if geteuid().is_root() {
            let said = answer(&server.fork(), spec);
            assert!(said.contains("Uid: 65534"), "{said}");
        }
    });
}

/// C17: who has gone to another root, mount, network or user namespace.
#[test]
fn who_lives_elsewhere_starts_nothing_here() {
    as_root("who_lives_elsewhere_starts_nothing_here", |server, _| {
        let of_thread = |go: &(dyn Fn() + Sync)| {
            on_a_thread(|| {
                go();
                both(server).map(|backend| refused(&*backend))
            })
        };
        let root = || {
            unshare(CloneFlags::CLONE_FS).unwrap();
            nix::unistd::chroot("/tmp").unwrap();
        };
        assert_eq!(of_thread(&root), [Some(Right::Root); 2]);
        let mounts = || unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        assert_eq!(of_thread(&mounts), [Some(Right::Root); 2]);
        let network = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            set_sets(Sets { permitted: 0, effective: 0, inheritable: 0 });
        };
        assert_eq!(of_thread(&network), [Some(Right::Namespace); 2]);
        let said = answer(&server.fork(), Spec::main("leaves"));
        if said == format!("{:?}", Some(Right::UserNamespace)) {
            return;
        }
        eprintln!("not tested: unshare(CLONE_NEWUSER): {said}");
        assert!(!said.contains("Some") && !said.contains("None"), "{said}");
    });
}

/// C17: an actor that gives up rights itself, and what it starts.
#[test]
fn what_an_actor_gives_up_its_children_have_not() {
    as_root("what_an_actor_gives_up_its_children_have_not", |server, secret| {
        for backend in both(server) {
            let said = answer(&*backend, Spec::main("drops").payload(secret.into()));
            let said: Vec<&str> = said.lines().collect();
            assert!(said[0].starts_with("Uid: 65534 "), "{said:#?}");
            assert_eq!(said, [said[0]; 3], "{}", backend.name());
        }
        // Its spawner has them still.
        assert!(found(&server.fork(), secret).ends_with("reads true"));
    });
}

/// C17: what is asked for a child takes the spawner's rights and not the forkserver's.
#[test]
fn nobody_asks_for_what_only_the_forkserver_may() {
    as_root("nobody_asks_for_what_only_the_forkserver_may", |server, secret| {
        become_nobody();
        let spec = || Spec::main("look").payload(secret.into());
        let step = |backend: &dyn Backend, spec: Spec| {
            let (child, _channel) = match spawn(backend, spec) {
                Ok(born) => born,
                Err(SpawnError::Step { step, .. }) => return Some(step),
                Err(other) => panic!("{other:?}"),
            };
            block_on(child.wait()).unwrap();
            child.handle().birth_failure().map(|failure| failure.step)
        };
        for backend in both(server) {
            for user in [Confinement::new().user(0, 0), Confinement::new().user(NOBODY, 0)] {
                match spawn(&*backend, spec().confine(user)) {
                    Err(SpawnError::Rights { right: Right::Become, .. }) => {}
                    other => panic!("{other:?}"),
                }
            }
            let nice = Confinement::new().nice(-5);
            assert_eq!(step(&*backend, spec().confine(nice)), Some(Step::Nice));
            let same = Confinement::new().user(NOBODY, NOBODY).nice(19);
            assert_eq!(step(&*backend, spec().confine(same)), None);
            let cgroup = spec().confine(Confinement::new().cgroup(Cgroup::under("/sys")));
            match spawn(&*backend, cgroup) {
                Err(SpawnError::Rights { right: Right::Cgroup, .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    });
}

/// C2, C3: children from before are still its own: they are signalled, waited for, and gone with it.
#[test]
fn children_from_before_are_ended_all_the_same() {
    as_root("children_from_before_are_ended_all_the_same", |server, _| {
        for backend in both(server) {
            let (child, mut channel) = spawn(&*backend, Spec::main("hang")).unwrap();
            assert_eq!(line(&mut channel), "up");
            // The thread alone: the next one has something to give up again.
            let ended = on_a_thread(|| {
                raised::set_thread_user(NOBODY);
                child.kill().unwrap();
                block_on(child.wait()).unwrap()
            });
            assert_eq!(ended.signal(), Some(libc::SIGKILL));
        }
        let (child, mut channel) = spawn(&server.exec(), Spec::main("hang")).unwrap();
        assert_eq!(line(&mut channel), "up");
        let hung = process(&child);
        become_nobody();
        server.kill_tree();
        assert!(hung.is_dead(), "the tree was not killed at once");
        server.close();
        assert!(matches!(block_on(child.wait()), Ok(Exit::Signal { .. }) | Err(_)));
    });
}

/// C17: a root that was nobody when it started its forkserver has nothing to carry over.
#[test]
fn a_root_that_was_nobody_from_the_start_works_as_ever() {
    as_root("a_root_that_was_nobody_from_the_start_works_as_ever", |first, secret| {
        first.close();
        become_nobody();
        let server = start();
        let own = seen(secret);
        for backend in both(&server) {
            assert_eq!(found(&*backend, secret), own, "{}", backend.name());
        }
    });
}

/// C17: a set-user-id copy of this program, started by nobody, does nothing that its environment says:
/// it neither serves as a forkserver nor is an actor, and starts no forkserver of its own.
#[test]
fn a_set_user_id_program_obeys_no_mark() {
    const NAME: &str = "a_set_user_id_program_obeys_no_mark";
    if std::env::var_os(RAISED).is_some() {
        // This is that copy, which runs its own main.
        let error = Forkserver::start(Bounds::default()).unwrap_err();
        assert!(matches!(error, SpawnError::Raised { .. }), "{error:?}");
        println!("raised {} {}", nix::unistd::getuid(), geteuid());
        return;
    }
    as_root(NAME, |_, secret| {
        let copy = PathBuf::from(secret).with_file_name("raised");
        fs::copy("/proc/self/exe", &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o4755)).unwrap();
        for (marker, value) in [
            ("HATCHERY_FORKSERVER", format!("{}.tree", getpid())),
            ("HATCHERY_BIRTH", "-1,3,4,0,5".into()),
        ] {
            // Its other end is its own parent's: that alone would be served.
            let (ours, theirs) = raised::seqpacket();
            let mut started = std::process::Command::new(&copy);
            let started = started.args([NAME, "--exact", "--nocapture", "--test-threads=1"]);
            let started = started.env(marker, value).env(RAISED, "1").stdin(theirs);
            let output = started.uid(NOBODY).gid(NOBODY).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            if said.contains("raised 65534 65534") {
                eprintln!("not tested: set-user-id bits don't count here");
                return;
            }
            assert!(said.contains("raised 65534 0"), "{output:?}");
            let mut word = [0; 8];
            let heard = recv(ours.as_raw_fd(), &mut word, MsgFlags::MSG_DONTWAIT);
            assert!(!matches!(heard, Ok(1..)), "it has served: {word:?}");
        }
    });
}

/// C17: a mark that somebody else has set makes no forkserver and no actor.
#[test]
fn whose_parent_made_no_socket_serves_nobody() {
    isolated("whose_parent_made_no_socket_serves_nobody", || {
        let tree = format!("{}.tree", getpid());
        let run = |marker: &str, value: &str, stdin: std::process::Stdio| {
            let mut started = std::process::Command::new("/proc/self/exe");
            started.arg("--list").env(marker, value).stdin(stdin).output().unwrap()
        };
        for (marker, value) in [("HATCHERY_FORKSERVER", &*tree), ("HATCHERY_BIRTH", "-1,0,4,0,5")] {
            let output = run(marker, value, std::process::Stdio::null());
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(70), "{output:?}");
            assert!(said.contains(marker) && said.contains("remove it"), "{said}");
            // Made by a process that is not the parent of who is asked to serve it.
            let (_ours, theirs) = raised::seqpacket();
            let shell =
                format!("exec 4<&0; {marker}={value} /proc/{}/exe --list <&4 & wait $!", getpid());
            let mut between = std::process::Command::new("sh");
            let output = between.args(["-c", &shell]).stdin(theirs).output().unwrap();
            assert_eq!(output.status.code(), Some(70), "{output:?}");
            assert!(output.stdout.is_empty(), "{output:?}");
        }
    });
}

const RAISED: &str = "HATCHERY_TEST_RAISED";
const NOBODY: u32 = 65534;
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_NET_BIND_SERVICE: u32 = 10;
