//! C17: what the root or an actor gives up, actors that it starts from then on have not; those from
//! before come down with their nursery all the same.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::fs;

use hatchery::{Backend, Config, Runtime, StartCause, nursery};
use hatchery_spawn::{Right, SpawnError};
use hatchery_testkit::isolate;
use hatchery_tests::{HANG, PROCESSES, ROOMY, here};
use nix::unistd::{Gid, Uid, geteuid, getgroups, setgroups, setresgid, setresuid};

/// Who this actor is, in how many groups, whether it gets no new privileges, and what root can read.
#[hatchery::function]
async fn who() -> (u32, usize, bool, bool) {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let privs = status.contains("NoNewPrivs:\t1");
    // A file of the kernel's that root alone may read.
    let reads = fs::read("/proc/1/environ").is_ok();
    (geteuid().as_raw(), getgroups().unwrap().len(), privs, reads)
}

/// The same of an actor below this one, which has become nobody in between.
#[hatchery::function]
async fn who_below() -> (u32, usize, bool, bool) {
    become_nobody();
    nursery(async |n| Ok(n.start("below").await?.call(who()).await?)).await.unwrap()
}

/// Goes to another root directory, so that it can start nothing more; says why.
#[hatchery::function]
async fn jailed() -> String {
    let started = nursery(async |n| {
        n.start("before").await?;
        if let Err(errno) = nix::unistd::chroot("/tmp") {
            return Ok(Some(format!(
                "not tested: no right to go to another root directory: {errno}"
            )));
        }
        let Err(error) = n.start("below").await else { return Ok(None) };
        let StartCause::Spawn(SpawnError::Rights { right, .. }) = &error.cause else {
            return Ok(Some(error.to_string()));
        };
        assert_eq!(*right, Right::Root);
        Ok(Some(right.to_string()))
    });
    started.await.unwrap().unwrap_or_default()
}

fn become_nobody() {
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setgroups(&[]).unwrap();
    setresgid(gid, gid, gid).unwrap();
    setresuid(uid, uid, uid).unwrap();
}

/// Whether there is something to give up, and somebody to become.
fn is_root() -> bool {
    let has = |map: &str| fs::read_to_string(map).is_ok_and(|map| map.lines().any(has_nobody));
    let is_root = geteuid().is_root()
        && has("/proc/self/uid_map")
        && has("/proc/self/gid_map")
        && !fs::read_to_string("/proc/self/setgroups").is_ok_and(|may| may.trim() == "deny");
    if !is_root {
        eprintln!("not tested: not root, or of a namespace that has no user {NOBODY}");
    }
    is_root
}

/// Whether a line of user_namespaces(7)'s maps has that one: the first inside, the first outside, how many.
fn has_nobody(line: &str) -> bool {
    let mut numbers = line.split_whitespace().map_while(|number| number.parse::<u64>().ok());
    match (numbers.next(), numbers.nth(1)) {
        (Some(first), Some(count)) => (first..first + count).contains(&u64::from(NOBODY)),
        _ => false,
    }
}

async fn open(backend: &Backend) -> Runtime {
    let config = Config { budget: ROOMY, ..Config::default() };
    Runtime::builder().backend(backend.clone()).config(config).open().unwrap()
}

/// C17: a root that becomes nobody in the middle of a nursery.
#[test]
fn actors_of_a_root_that_became_nobody_are_nobody() {
    if !is_root() {
        return;
    }
    isolate::run_test(here!(), HANG, || {
        isolate::block_on(async {
            let runtimes = [open(&PROCESSES[0]).await, open(&PROCESSES[1]).await];
            let [forked, executed] = &runtimes;
            let both = forked.nursery(async |f| {
                let executed = executed.nursery(async |e| {
                    let before = [f.start("before").await?, e.start("before").await?];
                    let (root, _, privs, _) = before[0].call(who()).await?;
                    assert_eq!(root, 0);
                    let below = [f.start("below").await?, e.start("below").await?];
                    for below in below {
                        assert_eq!(below.call(who_below()).await?, (NOBODY, 0, privs, false));
                    }
                    become_nobody();
                    nix::sys::prctl::set_no_new_privs()?;
                    for after in [f.start("after").await?, e.start("after").await?] {
                        assert_eq!(after.call(who()).await?, (NOBODY, 0, true, false));
                    }
                    // What was there has what it had.
                    for before in before {
                        assert_eq!(before.call(who()).await?.0, 0);
                    }
                    Ok(())
                });
                Ok(executed.await?)
            });
            both.await.unwrap();
            for runtime in runtimes {
                runtime.close().await;
            }
        });
    });
}

/// C17, C4: what can't be carried over is the start's error, and says what to do.
#[test]
fn a_jailed_actor_starts_nothing_outside() {
    if !is_root() {
        return;
    }
    isolate::run_test(here!(), HANG, || {
        isolate::block_on(async {
            for backend in &PROCESSES {
                let runtime = open(backend).await;
                let said =
                    runtime.nursery(async |n| Ok(n.start("jailed").await?.call(jailed()).await?));
                let said = said.await.unwrap();
                assert!(said.contains("another root directory"), "{said}");
                runtime.close().await;
            }
        });
    });
}

const NOBODY: u32 = 65534;
