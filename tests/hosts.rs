//! Scenarios 13 to 15, C7 and C9: whatever the root has open, blocks, ignores and waits for.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hatchery::{Backend, CallError, Config, ExitStatus, FaultKind, Runtime, Stdio};
use hatchery_spawn::Pidfd;
use hatchery_testkit::isolate;
use hatchery_tests::{BACKENDS, HANG, PROCESSES, for_each, here, many_fds, with};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::wait::{WaitStatus, waitpid};

#[hatchery::function]
async fn add(a: u64, b: u64) -> u64 {
    a + b
}

/// What the actor's fds lead to, without the numbers that the kernel makes up.
#[hatchery::function]
async fn fds() -> Vec<String> {
    let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = all.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    let kind = |target: &std::path::Path| {
        let text = target.to_string_lossy().into_owned();
        text.split_once(":[").map(|(kind, _)| kind.to_owned()).unwrap_or(text)
    };
    let own = format!("/proc/{}/fd", std::process::id());
    let mut kinds: Vec<_> = targets.map(|target| kind(&target)).filter(|fd| *fd != own).collect();
    kinds.sort();
    kinds
}

/// Blocked, ignored and caught signals of the actor's main thread.
#[hatchery::function]
async fn signals() -> BTreeMap<String, u64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let masks = status.lines().filter(|line| line.starts_with("Sig")).filter_map(|line| {
        let (name, mask) = line.split_once(":\t")?;
        Some((name.to_owned(), u64::from_str_radix(mask, 16).ok()?))
    });
    masks.collect()
}

#[hatchery::function]
async fn exit(code: i32) -> u64 {
    std::process::exit(code)
}

#[hatchery::function]
async fn idle() -> u64 {
    std::future::pending().await
}

/// Scenario 13, C7: with 20,000 fds open in the root, or as many as this machine gives, a child
/// holds exactly what it holds without them.
#[test]
fn what_the_root_has_open_is_in_no_child() {
    isolate::run_test(here!(), Duration::from_secs(120), || {
        many_fds();
        for backend in PROCESSES {
            with(backend.clone(), Config::default(), async |runtime| {
                let alone = fds_of_a_child(&runtime).await;
                let null = OwnedFd::from(File::open("/dev/null").unwrap());
                let mut decoys: Vec<_> = (0..20_000).map_while(|_| null.try_clone().ok()).collect();
                // Room for the runtime's own, where 20,000 is the limit.
                decoys.truncate(19_800);
                assert!(decoys.len() > 500, "{}", decoys.len());
                // The forkserver that is there already, and one that starts under these.
                assert_eq!(fds_of_a_child(&runtime).await, alone);
                runtime.close().await;
                let runtime = open(&backend);
                assert_eq!(fds_of_a_child(&runtime).await, alone);
                runtime.close().await;
            });
        }
    });
}

fn open(backend: &Backend) -> Runtime {
    let builder = Runtime::builder().backend(backend.clone()).stdio(Stdio::Null);
    builder.signals(false).open().unwrap()
}

async fn fds_of_a_child(runtime: &Runtime) -> Vec<String> {
    let fds = runtime.nursery(async |n| {
        // One that has started nothing, after one that has been there before it.
        n.start("first").await?;
        Ok(n.start("second").await?.call(fds()).await?)
    });
    let fds = fds.await.unwrap();
    assert!(fds.len() < 20, "{fds:?}");
    fds
}

/// Scenario 14, C7, C9: the root blocks every signal, ignores SIGCHLD and more, has SIGPIPE at its
/// default: children are as they always are, and statuses exact.
#[test]
fn odd_signals_of_the_root_are_in_no_child() {
    isolate::run_test(here!(), Duration::from_secs(60), || {
        for backend in PROCESSES {
            with(backend.clone(), Config::default(), async |runtime| {
                let usual = masks(&runtime).await;
                runtime.close().await;
                under_odd_signals(&backend, &usual).await;
            });
        }
    });
}

async fn under_odd_signals(backend: &Backend, usual: &BTreeMap<String, u64>) {
    let ignored = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGHUP];
    for signal in ignored {
        set_handler(signal, SigHandler::SigIgn);
    }
    set_handler(Signal::SIGPIPE, SigHandler::SigDfl);
    let (mut old, all) = (SigSet::empty(), SigSet::all());
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_BLOCK, Some(&all), Some(&mut old)).unwrap();
    let odd = open(backend);
    assert_eq!(masks(&odd).await, *usual);
    let died = odd.nursery(async |n| Ok(n.start("a").await?.call(exit(77)).await?)).await;
    assert_eq!(died.unwrap_err().fault().kind, FaultKind::Died(ExitStatus::Code(77)));
    let killed: Result<(), _> = odd
        .nursery(async |n| {
            let actor = n.start("a").await?;
            Pidfd::open(actor.pid().unwrap())?.send_signal(nix::libc::SIGKILL)?;
            let error = actor.call(idle()).await.unwrap_err();
            assert!(matches!(error, CallError::Died(_)), "{error:?}");
            Ok(())
        })
        .await;
    let error = killed.unwrap_err();
    assert_eq!(error.fault().kind, FaultKind::Died(ExitStatus::Signal(nix::libc::SIGKILL)));
    odd.close().await;
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&old), None).unwrap();
    for signal in ignored {
        set_handler(signal, SigHandler::SigDfl);
    }
    set_handler(Signal::SIGPIPE, SigHandler::SigIgn);
}

async fn masks(runtime: &Runtime) -> BTreeMap<String, u64> {
    let masks = runtime.nursery(async |n| Ok(n.start("a").await?.call(signals()).await?));
    masks.await.unwrap()
}

#[allow(unsafe_code, reason = "the scenario is a root with odd dispositions")]
fn set_handler(signal: Signal, handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: none of them is a function.
    unsafe { nix::sys::signal::sigaction(signal, &action) }.unwrap();
}

/// Scenario 15, C9: the host waits for whatever it gets, in a loop: no status is lost either way, also
/// of those that ended before it has looked.
#[test]
#[allow(clippy::zombie_processes, reason = "the host's loop reaps them")]
fn a_host_that_waits_for_everybody_loses_no_status_and_takes_none() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let exits = async |code| {
            let died = runtime.nursery(async |n| Ok(n.start("a").await?.call(exit(code)).await?));
            let error = died.await.unwrap_err();
            assert_eq!(error.fault().kind, FaultKind::Died(ExitStatus::Code(code)));
        };
        let early = own_of_the_host();
        assert!(Pidfd::open(early.id()).unwrap().wait_dead(HANG));
        exits(ROUNDS + 1).await;
        let stop = Arc::new(AtomicBool::new(false));
        let host = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let mut own = 0;
                while !stop.load(Ordering::Relaxed) || own <= ROUNDS {
                    match waitpid(None, None) {
                        Ok(WaitStatus::Exited(_, 55)) => own += 1,
                        // It has lost one, and would look for it for ever.
                        Err(Errno::ECHILD) if stop.load(Ordering::Relaxed) => break,
                        Ok(_) | Err(_) => std::thread::yield_now(),
                    }
                }
                own
            }
        });
        for code in 1..=ROUNDS {
            own_of_the_host();
            exits(code).await;
        }
        // The forkserver is the host's child too, and may be its last.
        runtime.close().await;
        stop.store(true, Ordering::Relaxed);
        assert_eq!(host.join().unwrap(), ROUNDS + 1);
    });
}

/// A process that the host's loop will reap.
#[allow(clippy::disallowed_types, reason = "the scenario is a host that uses it")]
fn own_of_the_host() -> std::process::Child {
    std::process::Command::new("sh").args(["-c", "exit 55"]).spawn().unwrap()
}

/// Scenario 15, C9: the same beside processes that the host starts and waits for itself.
#[test]
fn a_host_with_processes_of_its_own_loses_no_status_and_takes_none() {
    isolate::run_test(here!(), Duration::from_secs(90), || {
        for backend in BACKENDS {
            with(backend, Config::default(), async |runtime| {
                for code in 1..=10 {
                    let ours = runtime.nursery(async |n| {
                        let actor = n.start("a").await?;
                        match actor.pid() {
                            Some(_) => Ok(actor.call(exit(code)).await?),
                            None => Ok(actor.call(add(1, 1)).await?),
                        }
                    });
                    let ((), ours) = tokio::join!(own(code), ours);
                    if let Err(error) = ours {
                        assert_eq!(error.fault().kind, FaultKind::Died(ExitStatus::Code(code)));
                    }
                }
                runtime.close().await;
            });
        }
    });
}

/// A process of the host's own, waited for as `std` does.
async fn own(code: i32) {
    let (tell, told) = tokio::sync::oneshot::channel();
    let run = move || {
        #[allow(clippy::disallowed_types, reason = "the scenario is a host that uses it")]
        let mut process = std::process::Command::new("sh");
        tell.send(process.args(["-c", &format!("exit {code}")]).status()).unwrap();
    };
    let waits = std::thread::spawn(run);
    assert_eq!(told.await.unwrap().unwrap().code(), Some(code));
    waits.join().unwrap();
}

const ROUNDS: i32 = 10;
