//! Confinement of whole actors: they work inside their bounds, so do those below them, and what
//! can't be had comes back to the spawner by name.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hatchery::{
    Access, Backend, Cgroup, Config, Confinement, Error, ExitStatus, FaultKind, StartCause,
    StartError, SyscallFilter, nursery,
};
use hatchery_spawn::{Pidfd, SpawnError, Step};
use hatchery_testkit::isolate;
use hatchery_tests::{BACKENDS, HANG, PROCESSES, ROOMY, for_each, here, within};
use nix::unistd::{Uid, getuid};

/// Who this actor is, what it may read, and whether it may change its directory.
#[hatchery::function]
async fn bounds() -> (u32, bool, bool) {
    let reads = fs::read_to_string("/etc/hostname").is_ok();
    (getuid().as_raw(), reads, nix::unistd::chdir("/").is_ok())
}

/// The same of an actor below this one, which asks for nothing.
#[hatchery::function]
async fn bounds_below() -> (u32, bool, bool) {
    let below = nursery(async |n| Ok(n.start("below").await?.call(bounds()).await?));
    below.await.unwrap()
}

fn all() -> Confinement {
    let code = ["/usr", "/lib", "/lib64"]
        .into_iter()
        .filter(|path| fs::exists(path).is_ok_and(|is_there| is_there));
    let own = std::env::current_exe().unwrap();
    let files = code.map(|path| (path.into(), Access::Execute)).chain([
        (own, Access::Execute),
        // For what it starts to read nothing from.
        ("/dev/null".into(), Access::Write),
    ]);
    let confinement = Confinement::new()
        .files(files)
        .syscalls(SyscallFilter::deny([nix::libc::SYS_chdir], nix::libc::EPERM));
    match other_user() {
        Some(user) => confinement.user(user, 65534),
        None => confinement,
    }
}

/// Who else an actor can be made: nobody, if we are the superuser and our image lies where nobody else
/// is let in, as in root's own home.
fn other_user() -> Option<u32> {
    let image = std::env::current_exe().unwrap();
    let open = |dir: &Path| fs::metadata(dir).unwrap().mode() & 0o001 != 0;
    (Uid::effective().is_root() && image.ancestors().all(open)).then_some(65534)
}

/// C15: an actor works inside all of its bounds, and starts others, which are inside them too.
#[test]
fn an_actor_and_those_below_it_are_inside_its_bounds() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let done = runtime.nursery(async |n| {
            let free = n.start("free").await?.call(bounds()).await?;
            let confined = match n.actor("confined").confine(all()).start().await {
                Err(StartError { cause: StartCause::Spawn(cause), .. })
                    if is_landlock(&cause, &NO_LANDLOCK) =>
                {
                    eprintln!("not tested: {cause}");
                    return Ok(None);
                }
                confined => confined?,
            };
            let (own, below) =
                (confined.call(bounds()).await?, confined.call(bounds_below()).await?);
            Ok(Some((free, own, below)))
        });
        let Some((free, confined, below)) = done.await.unwrap() else { return };
        let user = getuid().as_raw();
        let other = other_user().unwrap_or(user);
        assert_eq!((free.0, free.2), (user, true));
        assert_eq!(confined, (other, false, false));
        assert_eq!(below, (other, false, false));
        runtime.close().await;
    });
}

/// What can't be had is the start's error, by name, on every backend; others go on.
#[test]
fn what_can_not_be_had_fails_the_start() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let nowhere = Confinement::new().files([("/no/where", Access::Read)]);
            let error = n.actor("nowhere").confine(nowhere).start().await.unwrap_err();
            let StartCause::Spawn(cause) = &error.cause else { panic!("{error:?}") };
            if n.start("other").await?.call(bounds()).await?.0 == getuid().as_raw() {
                return Ok((error.backend, format!("{cause:?}"), refused(cause)));
            }
            panic!("the other one is somebody else")
        });
        let (backend, cause, is_landlock) = done.await.unwrap();
        if backend == Backend::Thread.name() {
            assert!(cause.contains("Unsupported"), "{cause}");
        } else {
            assert!(is_landlock, "{cause}");
        }
        runtime.close().await;
    });
}

/// What says that this kernel has none that can do what is asked for (Linux 6.2), or not in force.
const NO_LANDLOCK: [i32; 2] = [nix::libc::ENOSYS, nix::libc::EOPNOTSUPP];

fn refused(cause: &SpawnError) -> bool {
    is_landlock(cause, &[nix::libc::ENOENT]) || is_landlock(cause, &NO_LANDLOCK)
}

fn is_landlock(cause: &SpawnError, errnos: &[i32]) -> bool {
    matches!(cause, SpawnError::Step { step: Step::Landlock, cause, .. }
        if cause.raw_os_error().is_some_and(|errno| errnos.contains(&errno)))
}

/// Says in a file that it serves, and stays.
#[hatchery::function]
async fn settles(says: PathBuf) -> u64 {
    fs::write(says, "").unwrap();
    std::future::pending().await
}

/// Waits for an actor in a cgroup of its own.
#[hatchery::function]
async fn waits_for_one_in(place: PathBuf, says: PathBuf) -> Result<u64, Error> {
    let done = nursery(async |n| {
        let cgroup = Confinement::new().cgroup(Cgroup::under(&place));
        Ok(n.actor("hog").confine(cgroup).start().await?.call(settles(says)).await?)
    });
    Ok(done.await?)
}

/// Fault 17, C4: an actor that was killed as its cgroup was out of memory is told as such, also two
/// levels up. The cgroup's count is one that is written here.
#[test]
fn an_actor_out_of_memory_is_told_two_levels_up() {
    isolate::run_test(here!(), HANG * 2, || {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" cgroup2 "));
        let Some(mount) = mount.and_then(|line| line.split(' ').nth(1)) else {
            return eprintln!("not tested: no cgroup v2 is mounted");
        };
        let place = Path::new(mount).join(format!("test-tree-oom-{}", std::process::id()));
        // Mounts that nobody else sees.
        let own = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS);
        if let Err(error) = own.map_err(Into::into).and_then(|()| fs::create_dir(&place)) {
            return eprintln!("not tested: {error}");
        }
        runs("mount", &["--make-rprivate", "/"]);
        for backend in PROCESSES {
            within(HANG, backend, Config::with_budget(ROOMY), async |runtime| {
                let says = format!("hatchery-hog-{}", std::process::id());
                let (place, says) = (place.clone(), std::env::temp_dir().join(says));
                let inside = tokio::spawn(kill_with_a_count(place.clone(), says.clone()));
                let down = runtime
                    .nursery(async |n| {
                        Ok(n.start("middle").await?.call(waits_for_one_in(place, says)).await?)
                    })
                    .await;
                let error = down.unwrap_err();
                let text = error.render();
                assert!(text.contains("killed by SIGKILL, out of memory in its cgroup"), "{text}");
                assert!(text.contains("root/middle/hog"), "{text}");
                let died = FaultKind::Died(ExitStatus::OutOfMemory);
                assert_eq!(error.fault().kind, died);
                runs("umount", &[inside.await.unwrap().to_str().unwrap()]);
                runtime.close().await;
            });
        }
        let until = std::time::Instant::now() + HANG;
        while fs::remove_dir(&place).is_err() {
            assert!(std::time::Instant::now() < until, "{}", place.display());
            std::thread::yield_now();
        }
    });
}

fn runs(program: &str, words: &[&str]) {
    assert!(Command::new(program).args(words).status().unwrap().success(), "{program} {words:?}");
}

/// Kills whoever comes into a cgroup below `place`, once it serves, as the file `says` does: before, it would be
/// a death in its birth. The cgroup counts that as for want of memory. Gives back what is to be unmounted then.
async fn kill_with_a_count(place: PathBuf, says: PathBuf) -> PathBuf {
    while fs::remove_file(&says).is_err() {
        // Another process makes it.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    loop {
        let inside = fs::read_dir(&place).unwrap().flatten().map(|entry| entry.path());
        let member = inside.filter(|path| path.is_dir()).find_map(|path| {
            let pid = fs::read_to_string(path.join("cgroup.procs")).ok()?.trim().parse().ok()?;
            Some((path, pid))
        });
        let Some((path, pid)) = member else {
            // Nobody tells when one is made.
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        runs("mount", &["-t", "tmpfs", "none", path.to_str().unwrap()]);
        fs::write(path.join("memory.events"), "oom_kill 1\n").unwrap();
        Pidfd::open(pid).unwrap().send_signal(nix::libc::SIGKILL).unwrap();
        return path;
    }
}

#[hatchery::function]
async fn takes(mebibytes: usize) -> usize {
    let taken: Vec<Vec<u8>> = (0..mebibytes).map(|_| vec![1; 1 << 20]).collect();
    std::hint::black_box(taken).len()
}

/// Starts actors until it can't; how many, and why.
#[hatchery::function]
async fn crowd() -> (usize, String) {
    let mut started = Vec::new();
    let refused = nursery(async |n| {
        Ok(loop {
            assert!(started.len() < 100, "no limit");
            match n.start(&format!("below-{}", started.len())).await {
                Ok(portal) => started.push(portal),
                Err(error) => break error.fault().to_string(),
            }
        })
    });
    let refused = refused.await.unwrap();
    (started.len(), refused)
}

/// Faults 17 and 29, with the kernel's own hand, where its controllers are in version 2: over its
/// memory an actor is told as such; over its processes it can start no other, and goes on.
#[test]
fn limits_of_a_cgroup_are_told_to_who_meets_them() {
    isolate::run_test(here!(), HANG * 2, || {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" cgroup2 "));
        let Some(mount) = mount.and_then(|line| line.split(' ').nth(1)) else {
            return eprintln!("not tested: no cgroup v2 is mounted");
        };
        let enabled = fs::read_to_string(Path::new(mount).join("cgroup.subtree_control")).unwrap();
        if !(enabled.contains("memory") && enabled.contains("pids")) {
            return eprintln!("not tested: no memory and pids controllers at {mount}");
        }
        let place = Path::new(mount).join(format!("test-limits-{}", std::process::id()));
        if let Err(error) = fs::create_dir(&place) {
            return eprintln!("not tested: {}: {error}", place.display());
        }
        for backend in PROCESSES {
            let confined = |cgroup: Cgroup| Confinement::new().cgroup(cgroup);
            within(HANG, backend, Config::with_budget(ROOMY), async |runtime| {
                let down = runtime.nursery(async |n| {
                    let few = confined(Cgroup::under(&place).pids(20));
                    let crowded = n.actor("crowded").confine(few).start().await?;
                    let (started, refused) = crowded.call(crowd()).await?;
                    assert!((1..20).contains(&started), "{started}: {refused}");
                    assert!(refused.contains("cgroup"), "{refused}");
                    assert_eq!(crowded.call(takes(1)).await?, 1, "it goes on");
                    let small = confined(Cgroup::under(&place).memory(48 << 20));
                    Ok(n.actor("hog").confine(small).start().await?.call(takes(96)).await?)
                });
                let error = down.await.unwrap_err();
                assert_eq!(error.fault().kind, FaultKind::Died(ExitStatus::OutOfMemory));
                let text = error.render();
                assert!(text.contains("killed by SIGKILL, out of memory in its cgroup"), "{text}");
                runtime.close().await;
            });
        }
        let until = std::time::Instant::now() + HANG;
        while fs::remove_dir(&place).is_err() {
            assert!(std::time::Instant::now() < until, "{}", place.display());
            std::thread::yield_now();
        }
    });
}
