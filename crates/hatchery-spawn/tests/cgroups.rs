//! Cgroups with limits, where version 2 has memory and pids controllers and they may be used: set as
//! asked for, enforced, told, and ended as a whole. Elsewhere these say what was missing.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{
    BOUND, Delegated, block_on, isolated, line, park, process, rooted, spawn, tell, words,
};
use hatchery_spawn::{
    Backend, Birth, Bounds, Cgroup, Child, ChildId, Confinement, Exit, Forkserver, Main, Pidfd,
    SpawnError, Spec, Stdio, Step, inventory,
};
use nix::libc;
use nix::unistd::{Uid, chown};

inventory::submit! { Main { name: "quit", run: |_| 3 } }
inventory::submit! { Main { name: "hang", run: hang } }
inventory::submit! { Main { name: "hog", run: hog } }
inventory::submit! { Main { name: "pair", run: pair } }
inventory::submit! { Main { name: "has-pair", run: has_pair } }
inventory::submit! { Main { name: "loses", run: loses } }
inventory::submit! { Main { name: "leaves", run: leaves } }
inventory::submit! { Main { name: "forks", run: forks } }
inventory::submit! { Main { name: "breeds", run: breeds } }
inventory::submit! { Main { name: "nests", run: nests } }

fn hang(birth: Birth) -> i32 {
    tell(&mut birth.channel.unwrap(), "up");
    park()
}

/// Takes 64 MiB.
fn hog(birth: Birth) -> i32 {
    let taken: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 1 << 20]).collect();
    tell(&mut birth.channel.unwrap(), format!("has {}", std::hint::black_box(taken).len()));
    park()
}

/// An actor below this one, which asks for no bounds.
fn below(main: &str) -> Result<(Child, UnixStream), SpawnError> {
    let server = Forkserver::inherited().unwrap().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let spec = Spec::main(main).stdout(Stdio::Null).channel(theirs.into());
    Ok((block_on(server.fork().spawn(spec))?, ours))
}

/// A program that nothing but its cgroup leads to.
fn stray() -> u32 {
    #[allow(clippy::zombie_processes, reason = "its parent is killed with it")]
    let stray = Command::new("setsid").args(["sleep", "1000"]).env_clear().spawn();
    stray.unwrap().id()
}

/// Has a stray and an actor below it, tells both and itself, and starts another actor when it is told
/// to.
fn pair(birth: Birth) -> i32 {
    let mut channel = birth.channel.unwrap();
    let stray = stray();
    let (child, mut below_it) = below("hang").unwrap();
    assert_eq!(line(&mut below_it), "up");
    let ChildId::Process(pid) = child.id() else { panic!("a thread") };
    tell(&mut channel, stray);
    tell(&mut channel, pid);
    tell(&mut channel, std::process::id());
    let other = below(&line(&mut channel));
    // They are wanted whatever happens here.
    std::mem::forget((child, other));
    park()
}

/// Has one in a cgroup, which speaks in its place.
fn has_pair(birth: Birth) -> i32 {
    let server = Forkserver::inherited().unwrap().unwrap();
    let place = String::from_utf8(birth.payload).unwrap();
    let spec = in_cgroup("pair", Cgroup::under(place)).stdout(Stdio::Null);
    let spec = spec.channel(birth.channel.unwrap().into());
    let _wanted = block_on(server.fork().spawn(spec)).unwrap();
    park()
}

/// Goes on when an actor two levels below is killed as an orphan.
fn loses(birth: Birth) -> i32 {
    let mut channel = birth.channel.unwrap();
    let (child, mut below_it) = below("leaves").unwrap();
    let orphan = held(&mut below_it);
    assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(0));
    assert!(orphan.wait_dead(BOUND));
    tell(&mut channel, "lost");
    tell(&mut channel.try_clone().unwrap(), line(&mut channel));
    park()
}

/// Leaves an orphan and tells it.
fn leaves(birth: Birth) -> i32 {
    let (child, _channel) = below("hang").unwrap();
    let ChildId::Process(pid) = child.id() else { panic!("a thread") };
    tell(&mut birth.channel.unwrap(), pid);
    std::mem::forget(child);
    0
}

/// Starts programs until it can't, and tells how many and why.
fn forks(birth: Birth) -> i32 {
    let mut started = Vec::new();
    let error = loop {
        assert!(started.len() < 100, "no limit");
        match Command::new("sleep").arg("1000").spawn() {
            Ok(program) => started.push(program),
            Err(error) => break error,
        }
    };
    let said = format!("{} {}", started.len(), error.raw_os_error().unwrap());
    tell(&mut birth.channel.unwrap(), said);
    park()
}

/// Starts actors until it can't, and tells how many and why.
fn breeds(birth: Birth) -> i32 {
    let mut started = Vec::new();
    let failure = loop {
        assert!(started.len() < 100, "no limit");
        let (child, mut channel) = below("hang").unwrap();
        if line(&mut channel) != "up" {
            block_on(child.wait()).unwrap();
            break child.handle().birth_failure().unwrap();
        }
        started.push((child, channel));
    };
    let (step, errno) = (failure.step.name(), failure.errno.unwrap());
    tell(&mut birth.channel.unwrap(), format!("{} {step} {errno}", started.len()));
    park()
}

/// Makes cgroups in its own and puts a stray into the innermost.
fn nests(birth: Birth) -> i32 {
    let own = PathBuf::from(String::from_utf8(birth.payload).unwrap());
    let own = fs::read_dir(own).unwrap().flatten().find(|it| it.file_type().unwrap().is_dir());
    let inner = own.unwrap().path().join("one/in-it");
    fs::create_dir_all(&inner).unwrap();
    let stray = stray();
    fs::write(inner.join("cgroup.procs"), stray.to_string()).unwrap();
    tell(&mut birth.channel.unwrap(), stray);
    park()
}

fn start() -> Forkserver {
    Forkserver::start(Bounds::default()).unwrap()
}

fn both(server: &Forkserver) -> [Box<dyn Backend>; 2] {
    [Box::new(server.fork()), Box::new(server.exec())]
}

fn in_cgroup(main: &str, cgroup: Cgroup) -> Spec {
    Spec::main(main).confine(Confinement::new().cgroup(cgroup))
}

fn held(channel: &mut UnixStream) -> Pidfd {
    Pidfd::open(line(channel).parse().unwrap()).unwrap()
}

fn killed(out_of_memory: bool) -> Exit {
    Exit::Signal { signal: libc::SIGKILL, core_dumped: false, out_of_memory }
}

/// What was asked for is what the kernel was told, and the child is where it holds.
#[test]
fn limits_are_set_as_asked_for() {
    isolated("limits_are_set_as_asked_for", || {
        let Some(place) = Delegated::with(&["memory", "pids"], "limits") else { return };
        let server = start();
        for backend in both(&server) {
            let cgroup = Cgroup::under(&place.0).memory(64 << 20).pids(20);
            let (child, mut channel) = spawn(&*backend, in_cgroup("hang", cgroup)).unwrap();
            assert_eq!(line(&mut channel), "up");
            let own = place.inside().remove(0);
            for (file, value) in
                [("memory.max", "67108864"), ("memory.oom.group", "1"), ("pids.max", "20")]
            {
                assert_eq!(words(&own, file), [value], "{file}");
            }
            let swap = words(&own, "memory.swap.max");
            assert!(swap.is_empty() || swap == ["0"], "{swap:?}");
            let ChildId::Process(pid) = child.id() else { panic!("a thread") };
            assert_eq!(words(&own, "cgroup.procs"), [pid.to_string()]);
            child.kill().unwrap();
            assert_eq!(block_on(child.wait()).unwrap(), killed(false), "by nobody's want");
            place.is_empty_soon();
        }
    });
}

/// Fault 17: over its memory a whole cgroup dies, whoever has taken it, and that is told; others go
/// on.
#[test]
fn over_its_memory_a_cgroup_dies_as_a_whole() {
    isolated("over_its_memory_a_cgroup_dies_as_a_whole", || {
        let Some(place) = Delegated::with(&["memory"], "whole") else { return };
        let server = start();
        let (other, mut other_channel) =
            spawn(&server.fork(), in_cgroup("hang", Cgroup::under(&place.0).memory(32 << 20)))
                .unwrap();
        assert_eq!(line(&mut other_channel), "up");
        for backend in both(&server) {
            let cgroup = Cgroup::under(&place.0).memory(32 << 20);
            let (child, mut channel) = spawn(&*backend, in_cgroup("pair", cgroup)).unwrap();
            let all = [held(&mut channel), held(&mut channel), held(&mut channel)];
            tell(&mut channel, "hog");
            assert_eq!(block_on(child.wait()).unwrap(), killed(true));
            assert!(all.iter().all(|it| it.wait_dead(BOUND)));
            place.holds_soon(1);
        }
        assert!(!process(&other).is_dead());
        drop(other);
        place.is_empty_soon();
    });
}

/// Fault 29: so many processes and no more, those that a program starts by itself and actors alike.
#[test]
fn more_processes_than_allowed_can_not_be_started() {
    isolated("more_processes_than_allowed_can_not_be_started", || {
        let Some(place) = Delegated::with(&["pids"], "pids") else { return };
        let server = start();
        for backend in both(&server) {
            for (main, why) in [
                ("forks", format!("{}", libc::EAGAIN)),
                ("breeds", format!("{} {}", Step::Cgroup.name(), libc::EAGAIN)),
            ] {
                let cgroup = Cgroup::under(&place.0).pids(12);
                let (child, mut channel) = spawn(&*backend, in_cgroup(main, cgroup)).unwrap();
                let said = line(&mut channel);
                let (started, error) = said.split_once(' ').unwrap();
                assert!((1..12).contains(&started.parse().unwrap()), "{main}: {said}");
                assert_eq!(error, why, "{main}: {said}");
                let own = place.inside().remove(0);
                let current: u64 = words(&own, "pids.current")[0].parse().unwrap();
                assert!(current <= 12, "{current}");
                child.kill().unwrap();
                assert_eq!(block_on(child.wait()).unwrap(), killed(false));
                place.is_empty_soon();
            }
            let none = Cgroup::under(&place.0).pids(0);
            let error = spawn(&*backend, in_cgroup("quit", none)).map(drop).unwrap_err();
            let SpawnError::Step { step: Step::Cgroup, cause, .. } = error else {
                panic!("{error:?}")
            };
            assert_eq!(cause.raw_os_error(), Some(libc::EAGAIN));
            place.is_empty_soon();
        }
    });
}

/// The kill of an actor is one of all in its cgroup: it doesn't wait for the last actor in there, who
/// may go on for a while when its spawner has died.
#[test]
fn the_kill_of_an_actor_is_one_of_its_cgroup() {
    isolated("the_kill_of_an_actor_is_one_of_its_cgroup", || {
        let Some(place) = Delegated::new("kill") else { return };
        let orphan_grace = BOUND * 10;
        let server = Forkserver::start(Bounds { orphan_grace, ..Bounds::default() }).unwrap();
        for backend in both(&server) {
            for is_dropped in [false, true] {
                let spec = in_cgroup("pair", Cgroup::under(&place.0));
                let (child, mut channel) = spawn(&*backend, spec).unwrap();
                let others = [held(&mut channel), held(&mut channel)];
                let handle = child.handle();
                if is_dropped {
                    drop(child);
                } else {
                    child.kill().unwrap();
                }
                assert_eq!(block_on(handle.wait()).unwrap(), killed(false));
                assert!(others.iter().all(|it| it.wait_dead(BOUND)), "{}", backend.name());
                place.is_empty_soon();
            }
        }
    });
}

/// The same at once where the actor itself can't die, also if nobody but the forkserver is there to
/// kill it: here, as it is in a frozen cgroup of version 1.
#[test]
fn the_cgroup_of_an_actor_that_can_not_die_is_killed() {
    isolated("the_cgroup_of_an_actor_that_can_not_die_is_killed", || {
        let Some(place) = Delegated::new("unkillable") else { return };
        let payload = place.0.to_str().unwrap().as_bytes().to_vec();
        let server = start();
        for spec in [
            in_cgroup("pair", Cgroup::under(&place.0)),
            // Killed, it leaves an orphan with a grace.
            Spec::main("has-pair").payload(payload),
        ] {
            let Some(frozen) = Frozen::new() else { return };
            let (child, mut channel) = spawn(&server.fork(), spec).unwrap();
            let others = [held(&mut channel), held(&mut channel)];
            let pid = line(&mut channel);
            let own = Pidfd::open(pid.parse().unwrap()).unwrap();
            frozen.holds(&pid);
            child.kill().unwrap();
            // Before the scenario's own bound, or the frozen one is left behind.
            assert!(others.iter().all(|it| it.wait_dead(BOUND / 8)));
            assert!(!own.is_dead());
            drop(frozen);
            assert_eq!(block_on(child.wait()).unwrap(), killed(false));
            assert!(own.wait_dead(BOUND));
            place.is_empty_soon();
        }
    });
}

/// The same beside a forkserver that is busy with others, and may have reaped the actor by the time
/// it comes to read that it was killed.
#[test]
fn the_kill_of_an_actor_that_is_dead_already_is_one_of_its_cgroup() {
    isolated("the_kill_of_an_actor_that_is_dead_already_is_one_of_its_cgroup", || {
        let Some(place) = Delegated::new("busy-kill") else { return };
        let orphan_grace = BOUND * 10;
        let server = Forkserver::start(Bounds { orphan_grace, ..Bounds::default() }).unwrap();
        let (others, is_done) = (server.clone(), Arc::new(AtomicBool::new(false)));
        let until = Arc::clone(&is_done);
        let busy = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let quits = || others.fork().spawn(Spec::main("quit").stdout(Stdio::Null));
                let all: Vec<_> = (0..10).map(|_| quits()).collect();
                all.into_iter().for_each(|one| drop(block_on(one).map(|one| block_on(one.wait()))));
            }
        });
        for _ in 0..20 {
            let spec = in_cgroup("pair", Cgroup::under(&place.0));
            let (child, mut channel) = spawn(&server.fork(), spec).unwrap();
            let others = [held(&mut channel), held(&mut channel)];
            child.kill().unwrap();
            assert_eq!(block_on(child.wait()).unwrap(), killed(false));
            assert!(others.iter().all(|it| it.wait_dead(BOUND)));
        }
        is_done.store(true, Ordering::Relaxed);
        busy.join().unwrap();
        place.is_empty_soon();
    });
}

/// But nobody's in it but that of the actor that it was made for.
#[test]
fn the_kill_of_another_actor_in_a_cgroup_is_its_own_alone() {
    isolated("the_kill_of_another_actor_in_a_cgroup_is_its_own_alone", || {
        let Some(place) = Delegated::new("alone") else { return };
        let server = start();
        for backend in both(&server) {
            let spec = in_cgroup("loses", Cgroup::under(&place.0));
            let (child, mut channel) = spawn(&*backend, spec).unwrap();
            assert_eq!(line(&mut channel), "lost");
            tell(&mut channel, "there?");
            assert_eq!(line(&mut channel), "there?");
            child.kill().unwrap();
            assert_eq!(block_on(child.wait()).unwrap(), killed(false));
            place.is_empty_soon();
        }
    });
}

/// What an actor has made in its cgroup goes with it, at its end and at that of the forkserver.
#[test]
fn cgroups_that_an_actor_has_made_in_its_own_go_with_it() {
    isolated("cgroups_that_an_actor_has_made_in_its_own_go_with_it", || {
        let Some(place) = Delegated::new("nested") else { return };
        let payload = place.0.to_str().unwrap().as_bytes().to_vec();
        let nests = || in_cgroup("nests", Cgroup::under(&place.0)).payload(payload.clone());
        let server = start();
        for backend in both(&server) {
            let (child, mut channel) = spawn(&*backend, nests()).unwrap();
            let stray = held(&mut channel);
            child.kill().unwrap();
            assert!(stray.wait_dead(BOUND));
            place.is_empty_soon();
        }
        let (_child, mut channel) = spawn(&server.fork(), nests()).unwrap();
        let stray = held(&mut channel);
        server.close();
        assert!(stray.is_dead() && place.inside().is_empty(), "{:?}", place.inside());
    });
}

/// The kernel's rule: with a process in the parent itself no controller can be enabled below it.
#[test]
fn a_process_in_the_parent_is_a_typed_error() {
    isolated("a_process_in_the_parent_is_a_typed_error", || {
        let Some(place) = Delegated::with(&["memory", "pids"], "busy") else { return };
        fs::write(place.0.join("cgroup.subtree_control"), "+memory +pids").unwrap();
        let busy = place.0.join("busy");
        fs::create_dir(&busy).unwrap();
        let mut member = Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(busy.join("cgroup.procs"), member.id().to_string()).unwrap();
        let server = start();
        for (limited, controller) in [
            (Cgroup::under(&busy).memory(64 << 20), "memory"),
            (Cgroup::under(&busy).pids(10), "pids"),
        ] {
            let error = spawn(&server.fork(), in_cgroup("quit", limited)).map(drop).unwrap_err();
            let SpawnError::Call { call, cause, .. } = error else { panic!("{error:?}") };
            assert_eq!(call, format!("write(cgroup.subtree_control, +{controller})"));
            assert_eq!(cause.raw_os_error(), Some(libc::EBUSY));
        }
        // Without a limit it is none.
        let unlimited = in_cgroup("quit", Cgroup::under(&busy));
        let (child, _channel) = spawn(&server.fork(), unlimited).unwrap();
        assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(3));
        drop(server);
        member.kill().unwrap();
        member.wait().unwrap();
        fs::remove_dir(&busy).unwrap();
    });
}

/// Another user than root needs no more than what was delegated to it, and has no more.
#[test]
fn who_was_delegated_a_cgroup_needs_no_other_right() {
    let test = "who_was_delegated_a_cgroup_needs_no_other_right";
    rooted(test, as_somebody_else, |root| {
        let wanted = ["memory", "pids"];
        let places = Uid::effective()
            .is_root()
            .then(|| Some((Delegated::with(&wanted, "user")?, Delegated::new("elsewhere")?)));
        if places.is_none() {
            eprintln!("not tested: nobody here can be another user");
        }
        let Some((place, elsewhere)) = places.flatten() else { return root.hear("") };
        let own = place.0.join("own");
        fs::create_dir(&own).unwrap();
        [&place.0, &own, &elsewhere.0].into_iter().for_each(|path| delegate(path));
        root.hear(place.0.to_str().unwrap());
        root.hear(elsewhere.0.to_str().unwrap());
        let status = root.process.wait().unwrap();
        fs::remove_dir(&own).unwrap();
        assert!(status.success(), "{status}");
    });
}

/// Gives a cgroup away, as `systemd` and the kernel's manual have it.
fn delegate(path: &Path) {
    for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
        chown(&path.join(file), Some(SOMEBODY.into()), None).unwrap();
    }
}

const SOMEBODY: u32 = 1_234_567;

fn as_somebody_else() {
    let mut heard = std::io::stdin().lines();
    let place = PathBuf::from(heard.next().unwrap().unwrap());
    if place.as_os_str().is_empty() {
        return;
    }
    let elsewhere = PathBuf::from(heard.next().unwrap().unwrap());
    fs::write(place.join("own/cgroup.procs"), "0").unwrap();
    nix::unistd::setgid(SOMEBODY.into()).unwrap();
    nix::unistd::setuid(SOMEBODY.into()).unwrap();
    let server = start();
    for backend in both(&server) {
        let limited = Cgroup::under(&place).memory(32 << 20).pids(20);
        let (child, _channel) = spawn(&*backend, in_cgroup("hog", limited)).unwrap();
        assert_eq!(block_on(child.wait()).unwrap(), killed(true));
        // It was made for others, who live elsewhere.
        let spec = in_cgroup("quit", Cgroup::under(&elsewhere));
        let error = spawn(&*backend, spec).map(drop).unwrap_err();
        let SpawnError::Step { step: Step::Cgroup, cause, .. } = error else { panic!("{error:?}") };
        assert_eq!(cause.raw_os_error(), Some(libc::EACCES));
        let not_ours = place.parent().unwrap();
        let spec = in_cgroup("quit", Cgroup::under(not_ours));
        let error = spawn(&*backend, spec).map(drop).unwrap_err();
        let SpawnError::Call { call, cause, .. } = error else { panic!("{error:?}") };
        assert_eq!((&*call, cause.raw_os_error()), ("mkdir(cgroup)", Some(libc::EACCES)));
    }
    server.close();
    assert_eq!((cgroups_in(&place), cgroups_in(&elsewhere)), (1, 0));
}

fn cgroups_in(path: &Path) -> usize {
    let entries = fs::read_dir(path).unwrap().flatten();
    entries.filter(|entry| entry.file_type().unwrap().is_dir()).count()
}

/// A cgroup of version 1 in which nobody does anything, not even die; thawed and removed at the end.
#[derive(Debug)]
struct Frozen(PathBuf);

impl Frozen {
    /// `None` says why not.
    fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let is_freezer = |line: &&str| line.contains(" cgroup ") && line.contains(",freezer");
        let mount = mounts.lines().find(is_freezer).and_then(|line| line.split(' ').nth(1));
        let path = mount.map(|it| Path::new(it).join(format!("test-{}", std::process::id())));
        match path.map(|path| fs::create_dir(&path).map(|()| Self(path))) {
            Some(Ok(frozen)) => Some(frozen),
            failed => {
                eprintln!("not tested: no freezer of version 1, or no right to it: {failed:?}");
                None
            }
        }
    }

    fn holds(&self, pid: &str) {
        fs::write(self.0.join("cgroup.procs"), pid).unwrap();
        fs::write(self.0.join("freezer.state"), "FROZEN").unwrap();
        let until = Instant::now() + BOUND;
        while words(&self.0, "freezer.state") != ["FROZEN"] {
            assert!(Instant::now() < until);
            std::thread::yield_now();
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _thawed = fs::write(self.0.join("freezer.state"), "THAWED");
        let until = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < until {
            std::thread::yield_now();
        }
    }
}
