//! What trees leave whose root and forkserver were killed at once: it is found and ended by
//! somebody else, and nobody who lives or is a stranger is.
//!
//! Other tests leave things on purpose at the same time; each test here looks at its own alone.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio as StdStdio};
use std::time::{Duration, Instant};

use common::{BOUND, Delegated, isolated, line, park, rooted, say, spawn, tell};
use hatchery_spawn::leftovers::{self, LeftTree};
use hatchery_spawn::{
    Birth, Bounds, Cgroup, ChildId, Confinement, Forkserver, Main, Pidfd, Spec, inventory,
};

inventory::submit! { Main { name: "starter", run: starter } }
inventory::submit! { Main { name: "mark", run: mark } }

/// Starts a program by itself, behind everybody's back, and says its number.
fn starter(birth: Birth) -> i32 {
    let script = String::from_utf8(birth.payload).unwrap();
    #[allow(clippy::zombie_processes, reason = "it outlives this actor, or goes with it")]
    let child = Command::new("setsid").args(["sh", "-c", &script]).spawn().unwrap();
    tell(&mut birth.channel.unwrap(), child.id());
    park()
}

/// Says what its own programs have in their environment.
fn mark(birth: Birth) -> i32 {
    tell(&mut birth.channel.unwrap(), std::env::var("HATCHERY_ACTOR").unwrap());
    0
}

/// A root with an actor that has started `script`; says its forkserver, the actor, that program.
fn tree(script: &str, confinement: Confinement) -> ! {
    let server = Forkserver::start(Bounds::default()).unwrap();
    say(server.pid());
    let spec = Spec::main("starter").payload(script.as_bytes().to_vec()).confine(confinement);
    let (child, mut channel) = spawn(&server.fork(), spec).unwrap();
    let ChildId::Process(pid) = child.id() else { panic!("a thread") };
    say(pid);
    say(line(&mut channel));
    park()
}

/// Kills a root and its forkserver so that neither can tidy up; the kernel kills the actor.
fn kill_both(root: &common::Root, server: &Pidfd, actor: &Pidfd) {
    root.pidfd.send_signal(libc::SIGSTOP).unwrap();
    let until = Instant::now() + BOUND;
    while !is_stopped(root.process.id()) {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    server.send_signal(libc::SIGKILL).unwrap();
    assert!(server.wait_dead(BOUND) && actor.wait_dead(BOUND));
    root.pidfd.send_signal(libc::SIGKILL).unwrap();
    assert!(root.pidfd.wait_dead(BOUND));
}

/// With all of its threads: a signal is sent before it is heard.
fn is_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut states = threads.map(|thread| fs::read_to_string(thread.path().join("stat")));
    states.all(|state| state.is_ok_and(|state| state.contains(") T ")))
}

fn left_of(root: u32) -> Option<LeftTree> {
    leftovers::find().unwrap().into_iter().find(|tree| tree.root() == root)
}

fn pids(tree: &LeftTree) -> Vec<u32> {
    tree.processes().iter().map(leftovers::LeftProcess::pid).collect()
}

/// Fault 4: what an actor had started by itself is left while root and forkserver were killed at
/// once. While the root lives it is nobody's to end; then it is found, and ends on SIGTERM.
#[test]
fn what_a_killed_tree_has_left_is_found_and_ends_gracefully() {
    let test = "what_a_killed_tree_has_left_is_found_and_ends_gracefully";
    rooted(
        test,
        || tree("exec sleep 1000", Confinement::new()),
        |root| {
            let (server, actor, stray) = (root.pid(), root.pid(), root.line());
            let pid: u32 = stray.parse().unwrap();
            let held = Pidfd::open(pid).unwrap();
            let number = root.process.id();
            assert!(left_of(number).is_none(), "it lives");
            kill_both(root, &server, &actor);
            // A zombie until the test's own end of it: dead all the same.
            let tree = left_of(number).expect("it is found");
            assert_eq!(pids(&tree), [pid]);
            assert!(tree.processes()[0].command().contains("sleep 1000"), "{tree:?}");
            assert!(!held.is_dead(), "only looked at");
            let ending = tree.end(BOUND);
            assert_eq!(ending.terminated, [pid], "{ending:?}");
            assert!(ending.killed.is_empty() && ending.stayed.is_empty() && held.is_dead());
            assert!(left_of(number).is_none());
        },
    );
}

/// Who does something else on SIGTERM is killed when its grace is over, with what it started.
#[test]
fn who_does_not_go_by_itself_is_killed_after_its_grace() {
    let test = "who_does_not_go_by_itself_is_killed_after_its_grace";
    rooted(
        test,
        || tree("trap 'sleep 999 &' TERM; while :; do sleep 1000 & wait; done", Confinement::new()),
        |root| {
            let (server, actor, stray) = (root.pid(), root.pid(), root.line());
            let pid: u32 = stray.parse().unwrap();
            // Until its shell ignores it.
            let until = Instant::now() + BOUND;
            while !handles_sigterm(pid) {
                assert!(Instant::now() < until, "it is a shell");
                std::thread::yield_now();
            }
            kill_both(root, &server, &actor);
            let tree = left_of(root.process.id()).expect("it is found");
            let ending = tree.end(Duration::from_millis(200));
            assert!(ending.killed.contains(&pid), "{ending:?}");
            assert!(ending.stayed.is_empty());
            // What it has started on the SIGTERM is gone too.
            assert!(left_of(root.process.id()).is_none());
        },
    );
}

fn handles_sigterm(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let handled = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
    u64::from_str_radix(handled.trim(), 16).unwrap() & (1 << (libc::SIGTERM - 1)) != 0
}

/// A program with a mark of our choice. It says when it runs.
struct Marked(Child);

impl Marked {
    fn new(mark: &str) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", "echo up; exec sleep 1000"])
            .env("HATCHERY_ACTOR", mark)
            .stdout(StdStdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        Self(child)
    }

    fn is_found(&self) -> bool {
        leftovers::find().unwrap().iter().any(|tree| pids(tree).contains(&self.0.id()))
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A tree is its root's number, start, boot and namespaces: who carries those of a living root is
/// left alone, and so is who says something that can't be judged. Any other's root is gone.
#[test]
fn only_who_belongs_to_a_root_that_is_gone_is_found() {
    isolated("only_who_belongs_to_a_root_that_is_gone_is_found", || {
        let server = Forkserver::start(Bounds::default()).unwrap();
        let (_child, mut channel) = spawn(&server.fork(), Spec::main("mark")).unwrap();
        let living = line(&mut channel);
        let (tree, number) = living.rsplit_once('.').unwrap();
        let parts: Vec<&str> = tree.split('-').collect();
        let with = |at: usize, part: &str| {
            let mut parts = parts.clone();
            parts[at] = part;
            format!("{}.{number}", parts.join("-"))
        };
        let later = (parts[2].parse::<u64>().unwrap() + 1).to_string();
        let space = format!("{:x}", u64::from_str_radix(parts[4], 16).unwrap() ^ 1);
        let elsewhere = [parts[0], parts[1], &later, parts[3], &space].join("-") + ".1";
        for (mark, found) in [
            (living.clone(), false),
            (with(2, &later), true),
            (with(1, "4000000"), true),
            (with(3, "0123456789abcdef"), true),
            // Nobody here has that number and start either.
            (elsewhere, false),
            ("nonsense".to_owned(), false),
            ("7.8".to_owned(), false),
        ] {
            assert_eq!(Marked::new(&mark).is_found(), found, "{mark} beside {living}");
        }
        // One tree in another: it lives as long as either does.
        let own = format!("{}.{tree}", std::process::id());
        let both = Command::new("sleep")
            .arg("1000")
            .env("HATCHERY_ACTOR", with(2, &later))
            .env("HATCHERY_FORKSERVER", own)
            .spawn();
        let both = Marked(both.unwrap());
        assert!(!both.is_found());
    });
}

/// Whoever looks may be left of a tree itself, and is in no danger from itself.
#[test]
fn who_looks_and_all_above_it_are_spared() {
    const LOOKS: &str = "HATCHERY_LOOKS";
    let test = "who_looks_and_all_above_it_are_spared";
    if std::env::var_os(LOOKS).is_some() {
        let found: Vec<u32> = leftovers::find().unwrap().iter().flat_map(pids).collect();
        assert!(!found.contains(&std::process::id()));
        assert!(!found.contains(&std::os::unix::process::parent_id()));
        return;
    }
    let gone = "0000000000000007-4000000-7-0123456789abcdef-7.1";
    let looked = Command::new("sh")
        // A second command, or the shell would become the first.
        .args(["-c", "\"$0\" \"$@\"; exit $?"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env("HATCHERY_ACTOR", gone)
        .env(LOOKS, "1")
        .status();
    assert!(looked.unwrap().success());
}

/// Who is not the superuser finds its own and nobody else's: neither by what another user's process
/// says, nor by the cgroup that it was put into.
#[test]
fn what_is_another_users_is_not_found() {
    const LOOKS: &str = "HATCHERY_LOOKS_AT";
    let test = "what_is_another_users_is_not_found";
    if let Ok(expected) = std::env::var(LOOKS) {
        let trees = leftovers::find().unwrap();
        let mine = |tree: &&LeftTree| tree.root() == 4_000_000;
        let found: Vec<u32> = trees.iter().filter(mine).flat_map(pids).collect();
        assert_eq!(format!("{found:?}"), expected);
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("not tested: nobody here can be another user");
    }
    // For another user to run it.
    let image = Copy::of_this_image();
    isolated(test, || {
        let gone = "0123456789abcdef-4000000-7-0123456789abcdef-7";
        let start = |user: u32| {
            let mut program = Command::new("sleep");
            program.arg("1000").env("HATCHERY_ACTOR", format!("{gone}.1")).uid(user);
            // It is that program, of that user, when this returns.
            Marked(program.spawn().unwrap())
        };
        let (theirs, own) = (start(0), start(NOBODY));
        let cgroup = Delegated::new("owners").map(|place| {
            let path = place.0.join(format!("hatchery-{gone}.1"));
            fs::create_dir(&path).unwrap();
            std::os::unix::fs::chown(&path, Some(NOBODY), None).unwrap();
            fs::write(path.join("cgroup.procs"), theirs.0.id().to_string()).unwrap();
            (place, path)
        });
        let looked = Command::new(&image.0)
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(LOOKS, format!("[{}]", own.0.id()))
            .uid(NOBODY)
            .status();
        drop((theirs, own));
        if let Some((place, path)) = cgroup {
            fs::remove_dir(path).unwrap();
            drop(place);
        }
        assert!(looked.unwrap().success());
    });
}

/// This image where everybody may run it: our own may lie in a home that nobody else is let into.
struct Copy(PathBuf);

impl Copy {
    fn of_this_image() -> Self {
        let copy = std::env::temp_dir().join(format!("hatchery-leftovers.{}", std::process::id()));
        fs::copy("/proc/self/exe", &copy).unwrap();
        Self(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// A user that has nothing.
const NOBODY: u32 = 65534;

/// A cgroup of a tree that is gone is removed with all that is in it, named or not.
#[test]
fn a_cgroup_is_removed_with_who_has_no_name() {
    let test = "a_cgroup_is_removed_with_who_has_no_name";
    rooted(
        test,
        || {
            let Some(place) = Delegated::new("left") else {
                say("");
                return;
            };
            say(place.0.display());
            let confinement = Confinement::new().cgroup(Cgroup::under(&place.0));
            tree("exec env -i sleep 1000", confinement)
        },
        |root| {
            let place = root.line();
            if place.is_empty() {
                return;
            }
            let place = Delegated(place.into());
            let (server, actor, stray) = (root.pid(), root.pid(), root.line());
            let held = Pidfd::open(stray.parse().unwrap()).unwrap();
            let until = Instant::now() + BOUND;
            // Until it has lost its name.
            while !fs::read(format!("/proc/{stray}/cmdline")).unwrap().starts_with(b"sleep") {
                assert!(Instant::now() < until);
                std::thread::yield_now();
            }
            // Into one that was made in it.
            let inner = place.inside().remove(0).join("one/in-it");
            fs::create_dir_all(&inner).unwrap();
            fs::write(inner.join("cgroup.procs"), stray).unwrap();
            kill_both(root, &server, &actor);
            let tree = left_of(root.process.id()).expect("it is found");
            assert_eq!(tree.cgroups(), place.inside());
            assert_eq!(pids(&tree).len(), 1, "{tree:?}");
            let ending = tree.end(BOUND);
            assert!(ending.stayed.is_empty() && ending.kept.is_empty(), "{ending:?}");
            assert!(held.is_dead() && place.inside().is_empty());
        },
    );
}
