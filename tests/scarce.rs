//! Whatever runs out: threads, processes, fds. A start then fails with a typed error that names the
//! call, the same on every backend; nothing panics, and with room again a start works (C4, C14, H26).
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::error::Error as _;
use std::time::Duration;

use hatchery::{
    Backend, Error, Nursery, OpenError, Runtime, StartCause, StartError, Stdio, nursery,
};
use hatchery_spawn::SpawnError;
use hatchery_testkit::isolate;
use hatchery_tests::{BACKENDS, PROCESSES, become_nobody, here};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[hatchery::function]
async fn square(x: u64) -> u64 {
    x * x
}

/// What a limit of this many threads and processes allows: one call, or a typed refusal.
#[derive(Debug)]
enum Came {
    Up,
    NotOpened,
    NotStarted,
}

fn tokio() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A limit of this process, until it is dropped.
struct Few {
    resource: Resource,
    before: (u64, u64),
}

impl Few {
    fn new(resource: Resource, most: u64) -> Self {
        let before = getrlimit(resource).unwrap();
        setrlimit(resource, most, before.1).unwrap();
        Self { resource, before }
    }
}

impl Drop for Few {
    fn drop(&mut self) {
        setrlimit(self.resource, self.before.0, self.before.1).unwrap();
    }
}

/// Opens a runtime and makes one start and one call with default stdio, inside of tokio as users are,
/// while `resource` is limited to `most`.
fn one_start(backend: &Backend, resource: Resource, most: u64, errno: Errno) -> Came {
    let said = |error: &std::io::Error| error.raw_os_error().map(Errno::from_raw) == Some(errno);
    tokio().block_on(async {
        let _few = Few::new(resource, most);
        let builder = Runtime::builder().backend(backend.clone()).stdio(Stdio::Relay);
        let runtime = match builder.open() {
            Ok(runtime) => runtime,
            Err(OpenError::System { cause, .. }) => {
                assert!(said(&cause), "{cause}");
                return Came::NotOpened;
            }
            Err(error) => panic!("{error:?}"),
        };
        let mut refused = None;
        let came = runtime
            .nursery(async |n| {
                match n.start("one").await {
                    Ok(one) => assert_eq!(one.call(square(7)).await?, 49),
                    Err(error) => refused = Some(error),
                }
                Ok(())
            })
            .await;
        // A refused start is its caller's own: nothing else went wrong in the nursery.
        came.unwrap();
        runtime.close().await;
        let Some(error) = refused else { return Came::Up };
        let StartCause::Spawn(SpawnError::Call { call, cause, .. }) = &error.cause else {
            panic!("{most}: {error:?}")
        };
        assert!(said(cause), "{most}: {error:?}");
        let threads = ["pthread_create", "fork", "posix_spawn(/proc/self/exe)"];
        assert!(errno != Errno::EAGAIN || threads.contains(&call.as_str()), "{error:?}");
        Came::NotStarted
    })
}

/// H26, C14: at every limit of threads and processes, from the one that this process has reached
/// already upwards, a start on each backend works or says which thread or process it lacked.
#[test]
fn at_every_limit_of_threads_a_start_works_or_is_a_typed_error() {
    isolate::run_test(here!(), Duration::from_secs(120), || {
        if !become_nobody() {
            return;
        }
        for backend in BACKENDS {
            let mut seen = [0; 3];
            for most in 2..=16 {
                seen[one_start(&backend, Resource::RLIMIT_NPROC, most, Errno::EAGAIN) as usize] +=
                    1;
            }
            let [up, not_opened, not_started] = seen;
            assert!(up > 0 && not_opened > 0 && not_started > 0, "{backend:?}: {seen:?}");
        }
    });
}

#[hatchery::function]
async fn start_below_without_threads() -> Result<String, Error> {
    let few = Few::new(Resource::RLIMIT_NPROC, 1);
    let mut said = String::new();
    nursery(async |n| {
        for name in ["first", "again"] {
            let StartCause::Spawn(SpawnError::Call { call, .. }) =
                n.start(name).await.expect_err("no thread is to be had").cause
            else {
                panic!("another cause")
            };
            said = call;
        }
        Ok(())
    })
    .await?;
    drop(few);
    nursery(async |n| Ok(n.run("below", square(5)).await?)).await?;
    Ok(said)
}

/// H26: an actor that can have no thread for the first start of its own is told so as often as it
/// tries, lives on, and can start others when there is room.
#[test]
fn an_actor_without_threads_for_its_first_start_lives_on() {
    isolate::run_test(here!(), Duration::from_secs(60), || {
        if !become_nobody() {
            return;
        }
        for backend in PROCESSES {
            tokio().block_on(async {
                let runtime = Runtime::builder().backend(backend).open().unwrap();
                let said = runtime
                    .nursery(async |n| {
                        let child = n.start("child").await?;
                        let said = child.call(start_below_without_threads()).await?;
                        assert_eq!(child.call(square(2)).await?, 4);
                        Ok(said)
                    })
                    .await;
                assert_eq!(said.unwrap(), "pthread_create");
                runtime.close().await;
            });
        }
    });
}

/// H26, C14: at every limit of fds, from the first start of a process on, a start on each backend
/// works or says which call had none to be had.
#[test]
fn at_every_limit_of_fds_a_first_start_works_or_is_a_typed_error() {
    isolate::run_test(here!(), Duration::from_secs(120), || {
        for backend in BACKENDS {
            let mut seen = [0; 3];
            for most in 3..open_fds() + 24 {
                seen[one_start(&backend, Resource::RLIMIT_NOFILE, most, Errno::EMFILE) as usize] +=
                    1;
            }
            let [up, _, not_started] = seen;
            assert!(up > 0 && not_started > 0, "{backend:?}: {seen:?}");
        }
    });
}

/// H26, C14, C10: in a tree that is up, with fewer fds than it has and with a few more, a start on each
/// backend works or says which call had none. A refused start has given back its fds and its name when
/// its error is told: on one core, where no other thread gives them back meanwhile, the next one works.
#[test]
fn at_every_limit_of_fds_a_later_start_works_or_is_a_typed_error() {
    isolate::run_test(here!(), Duration::from_secs(120), || {
        on_one_core();
        for backend in BACKENDS {
            tokio().block_on(async {
                let builder = Runtime::builder().backend(backend.clone()).stdio(Stdio::Relay);
                let runtime = builder.open().unwrap();
                let (up, refused) = runtime
                    .nursery(async |n| {
                        // What is started once and stays: the forkserver, the supervisor, the relay.
                        n.run("warm", square(1)).await?;
                        let seen = starts_at_limits(&n).await?;
                        assert_eq!(n.run("again", square(4)).await?, 16);
                        Ok(seen)
                    })
                    .await
                    .unwrap();
                runtime.close().await;
                assert!(up > 0 && refused > 0, "{backend:?}: {up} {refused}");
            });
        }
    });
}

async fn starts_at_limits(n: &Nursery) -> Result<(u32, u32), Error> {
    let (mut up, mut refused) = (0, 0);
    for most in 3..open_fds() + 24 {
        let few = Few::new(Resource::RLIMIT_NOFILE, most);
        let started = n.start("again-and-again").await;
        drop(few);
        match started {
            Ok(actor) => {
                up += 1;
                assert_eq!(actor.call(square(3)).await?, 9);
                actor.cancel();
                actor.settled().await;
            }
            Err(error) => {
                refused += 1;
                lacks_fds(&error);
            }
        }
    }
    Ok((up, refused))
}

/// This process, and all threads that it makes from now on, use one of the cores that they may use.
fn on_one_core() {
    let me = nix::unistd::Pid::from_raw(0);
    let allowed = sched_getaffinity(me).unwrap();
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    sched_setaffinity(me, &one).unwrap();
}

/// How many fds are open here: new ones get the lowest numbers that are free, below a limit of as many and
/// a few, however high the numbers are that somebody has left us.
fn open_fds() -> u64 {
    std::fs::read_dir("/proc/self/fd").unwrap().count() as u64
}

fn lacks_fds(error: &StartError) {
    let StartCause::Spawn(SpawnError::Call { cause, .. }) = &error.cause else {
        panic!("{error:?}, because {:?}", error.source().map(ToString::to_string))
    };
    assert_eq!(cause.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE), "{error:?}");
}
