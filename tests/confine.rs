//! Confinement of whole actors: they work inside their bounds, so do those below them, and what
//! can't be had comes back to the spawner by name.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use hatchery::{Access, Backend, Confinement, StartCause, SyscallFilter, nursery};
use hatchery_spawn::{SpawnError, Step};
use hatchery_tests::{BACKENDS, PROCESSES, for_each, here};
use nix::unistd::{Uid, getuid};

/// Who this actor is, what it may read, and whether it may change its directory.
#[hatchery::function]
async fn bounds() -> (u32, bool, bool) {
    let reads = std::fs::read_to_string("/etc/hostname").is_ok();
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
        .filter(|path| std::fs::exists(path).is_ok_and(|is_there| is_there));
    let own = std::env::current_exe().unwrap();
    let files = code.map(|path| (path.into(), Access::Execute)).chain([
        (own, Access::Execute),
        // For what it starts to read nothing from.
        ("/dev/null".into(), Access::Write),
    ]);
    let confinement = Confinement::new()
        .files(files)
        .syscalls(SyscallFilter::deny([nix::libc::SYS_chdir], nix::libc::EPERM));
    if Uid::effective().is_root() { confinement.user(65534, 65534) } else { confinement }
}

/// C15: an actor works inside all of its bounds, and starts others, which are inside them too.
#[test]
fn an_actor_and_those_below_it_are_inside_its_bounds() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let done = runtime.nursery(async |n| {
            let free = n.start("free").await?.call(bounds()).await?;
            let confined = n.actor("confined").confine(all()).start().await?;
            Ok((free, confined.call(bounds()).await?, confined.call(bounds_below()).await?))
        });
        let (free, confined, below) = done.await.unwrap();
        let user = getuid().as_raw();
        let other = if user == 0 { 65534 } else { user };
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
                return Ok((error.backend, format!("{cause:?}"), is_landlock(cause)));
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

fn is_landlock(cause: &SpawnError) -> bool {
    let gone = Some(nix::libc::ENOENT);
    matches!(cause, SpawnError::Step { step: Step::Landlock, cause, .. }
        if cause.raw_os_error() == gone)
}
