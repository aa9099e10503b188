//! Scenario 71, C13, H4 with real peers: actors that were introduced to each other.
//!
//! Each in a process of its own, which counts threads, fds and children before and after.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::future::IntoFuture as _;
use std::io::IoSlice;
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

use hatchery::{
    CallError, Callee, Config, Confinement, ContextError, Error, FaultKind, HandshakeError,
    Nothing, Peer, PeerError, PeerPortal,
};
use hatchery_testkit::{fault, isolate};
use hatchery_tests::events::Events;
use hatchery_tests::{
    BACKENDS, BUDGET, HANG, PROCESSES, for_each, for_each_with, here, sockets, within,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

#[hatchery::function]
async fn whoami() -> String {
    hatchery::path().to_string()
}

/// Asks the introduced actor who it is.
#[hatchery::function]
async fn ask(peer: Peer) -> Result<String, Error> {
    let portal = peer.connect().await?;
    Ok(portal.call(whoami()).await?)
}

/// Serves until it is cancelled, and says on the way how.
#[hatchery::context]
async fn host(callee: Callee<Nothing, Nothing>) {
    let _stream = callee.started(()).unwrap();
    std::future::pending().await
}

/// Opens a context with the introduced actor, says so, and waits for its end; returns what it was.
#[hatchery::context]
async fn visit(callee: Callee<Nothing, Nothing>, peer: Peer) -> Result<String, Error> {
    let portal = peer.connect().await?;
    let context = portal.open_context(host(), async |mut cx| {
        let _stream = callee.started(())?;
        Ok(cx.result().await?)
    });
    let end = match context.await {
        Ok(()) => "well".to_owned(),
        Err(error) => describe(&error),
    };
    let closed = portal.closed().await;
    Ok(format!("{end}; {:?}", closed.kind))
}

fn describe(error: &ContextError) -> String {
    format!("{:?}", error.fault().kind)
}

/// Stays connected to the introduced actor for ever, and never looks.
#[hatchery::function]
async fn cling(peer: Peer) -> Result<(), Error> {
    let portal = peer.connect().await?;
    // For the life of the process: a guest that doesn't leave by itself.
    std::mem::forget(portal);
    Ok(())
}

/// Hands back an introduction to itself, through a stream.
#[hatchery::context]
async fn give(callee: Callee<Nothing, Peer>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    stream.send(hatchery::here()?).await?;
    Ok(())
}

async fn well<T>(result: impl Future<Output = Result<T, hatchery::ScopeError>>) -> T {
    result.await.unwrap_or_else(|error| panic!("{}", error.render()))
}

/// A portal given away as an argument, as a message, and up to the root leads past the parents.
#[test]
fn an_introduced_actor_answers_directly() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let nursery = runtime.nursery(async |n| {
            let (a, b) = (n.start("a").await?, n.start("b").await?);
            let to_b = b.peer().await?;
            assert_eq!(to_b.path(), b.path());
            assert_eq!(a.call(ask(to_b.clone())).await?, b.path().to_string());
            let again = b
                .open_context(give(), async |mut cx| Ok(cx.recv().await?))
                .await?
                .expect("an introduction");
            assert_eq!(again, to_b, "one listener, one introduction");
            let direct = to_b.connect().await?;
            assert_eq!(direct.call(whoami()).await?, b.path().to_string());
            let to_root = hatchery::here()?;
            assert_eq!(a.call(ask(to_root)).await?, hatchery::path().to_string());
            Ok(())
        });
        well(nursery).await;
        runtime.close().await;
    });
}

/// Scenario 71: a context to a third actor, which is cancelled from its own side of the tree: both
/// sides and the connection tell the same canceller.
#[test]
fn a_peer_that_goes_down_tells_every_holder_why() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let nursery = runtime.nursery(async |n| {
            let (a, b) = (n.start("a").await?, n.start("b").await?);
            let peer = b.peer().await?;
            let direct = peer.connect().await?;
            let told = a
                .open_context(visit(peer.clone()), async |mut cx| {
                    b.cancel();
                    Ok(cx.result().await?)
                })
                .await?;
            let by_root = "Cancelled(Reason { by: ActorPath(\"root\"), why: Requested })";
            assert_eq!(told, format!("{by_root}; {by_root}"));
            assert_eq!(format!("{:?}", direct.closed().await.kind), by_root);
            let error = direct.call(whoami()).await.unwrap_err();
            assert!(matches!(error, CallError::Cancelled(_)), "{error:?}");
            b.settled().await;
            let error = peer.connect().await.unwrap_err();
            assert!(matches!(&error, PeerError::Gone { path } if path == b.path()), "{error:?}");
            Ok(())
        });
        well(nursery).await;
        runtime.close().await;
    });
}

/// The death of the target is seen by every holder, whoever it is and whatever it was doing.
#[test]
fn a_peer_that_is_killed_is_lost_to_every_holder() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let nursery = runtime.nursery(async |n| {
            let a = n.start("a").await?;
            let mut held = None;
            // In a nursery of its own, so that its death ends nobody else's.
            let killed: Result<(), _> = hatchery::nursery(async |n| {
                let b = n.start("b").await?;
                let peer = b.peer().await?;
                let direct = peer.connect().await?;
                let visit = a.context(visit(peer.clone())).handle().await?;
                held = Some((peer, direct, visit));
                fault::sigkill(b.pid().unwrap()).unwrap();
                std::future::pending().await
            })
            .await;
            let killed = killed.unwrap_err();
            assert!(matches!(killed.fault().kind, FaultKind::Died(_)), "{}", killed.render());
            let (peer, direct, mut visit) = held.unwrap();
            let told = soon(visit.result()).await?;
            assert_eq!(told, "Lost; Lost");
            assert_eq!(soon(direct.closed()).await.kind, FaultKind::Lost);
            let error = soon(direct.call(whoami()).into_future()).await.unwrap_err();
            assert!(matches!(error, CallError::Lost(_)), "{error:?}");
            let error = peer.connect().await.unwrap_err();
            assert!(matches!(error, PeerError::Gone { .. }), "{error:?}");
            Ok(())
        });
        well(nursery).await;
        runtime.close().await;
    });
}

/// What is told without anybody's help; the bound catches hangs.
async fn soon<T>(told: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), told).await.expect("nobody told it")
}

/// What a context of this process was told at its end, and that there is something.
static NOTE: std::sync::Mutex<Option<String>> = std::sync::Mutex::new(None);
static NOTED: tokio::sync::Notify = tokio::sync::Notify::const_new();

/// Serves until it is dropped, and remembers why.
#[hatchery::context]
async fn confide(callee: Callee<Nothing, Nothing>) {
    struct OnDrop(hatchery::Watch);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            let why = self.0.cancelled().map_or("nobody".to_owned(), |reason| reason.to_string());
            *NOTE.lock().unwrap() = Some(why);
            NOTED.notify_one();
        }
    }
    let _on_drop = OnDrop(callee.watch());
    let _stream = callee.started(()).unwrap();
    std::future::pending().await
}

#[hatchery::function]
async fn noted() -> String {
    loop {
        if let Some(note) = NOTE.lock().unwrap().take() {
            return note;
        }
        NOTED.notified().await;
    }
}

/// Opens a context with the introduced actor, says so, and dies with it.
#[hatchery::context]
async fn hold(callee: Callee<Nothing, Nothing>, peer: Peer) -> Result<(), Error> {
    let portal = peer.connect().await?;
    let held = portal.context(confide()).handle().await?;
    let _stream = callee.started(())?;
    std::future::pending::<()>().await;
    drop(held);
    Ok(())
}

/// What runs for a guest ends with the guest, and is told so.
#[test]
fn what_runs_for_a_peer_that_died_is_cancelled() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let nursery = runtime.nursery(async |n| {
            let b = n.start("b").await?;
            let (peer, mut held) = (b.peer().await?, None);
            // In a nursery of its own, so that its death cancels nothing in `b` but that.
            let killed: Result<(), _> = hatchery::nursery(async |n| {
                let a = n.start("a").await?;
                held = Some(a.context(hold(peer)).handle().await?);
                fault::sigkill(a.pid().unwrap()).unwrap();
                std::future::pending().await
            })
            .await;
            let killed = killed.unwrap_err();
            assert!(matches!(killed.fault().kind, FaultKind::Died(_)), "{}", killed.render());
            let note = soon(b.call(noted()).into_future()).await?;
            assert!(note.contains("root/a") && note.contains("peer"), "{note}");
            Ok(())
        });
        well(nursery).await;
        runtime.close().await;
    });
}

/// C13, H4: a guest that never leaves costs the drain bound, is closed on, and is named.
#[test]
fn a_peer_that_never_leaves_is_closed_on_within_the_bound_and_named() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let (result, report) = hatchery::nursery_with_report(async |n| {
            let (a, b) = (n.start("a").await?, n.start("b").await?);
            a.call(cling(b.peer().await?)).await?;
            let stopped = fault::sigstop(a.pid().unwrap()).unwrap();
            let began = Instant::now();
            b.cancel();
            b.settled().await;
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
            drop(stopped);
            fault::sigcont(a.pid().unwrap()).unwrap();
            Ok(())
        })
        .await;
        result.unwrap_or_else(|error| panic!("{}", error.render()));
        let b = report.flatten().into_iter().find(|actor| actor.path.name() == "b").unwrap();
        assert_eq!(b.undrained.iter().map(|path| path.name()).collect::<Vec<_>>(), ["a"]);
        assert!(b.forced.is_none(), "{report}");
        runtime.close().await;
    });
}

/// C15: who was not introduced, or says anything else, ends its own connection only.
#[test]
fn strangers_at_the_door_are_turned_away() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let nursery = runtime.nursery(async |n| {
            let b = n.start("b").await?;
            let peer = b.peer().await?;
            let direct = peer.connect().await?;
            let (path, address, mut token): (String, [u8; 16], [u8; 16]) = parts(&peer);
            token[3] ^= 1;
            let bytes = rmp_serde::to_vec(&(path, address, token)).unwrap();
            let forged: Peer = rmp_serde::from_slice(&bytes).unwrap();
            let error = forged.connect().await.unwrap_err();
            assert!(
                matches!(error, PeerError::Refused { cause: HandshakeError::Stranger, .. }),
                "{error:?}"
            );
            for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0, 0, 0, 1, 0xC1], &[]] {
                knock(&address, garbage);
            }
            assert_eq!(direct.call(whoami()).await?, b.path().to_string());
            Ok(())
        });
        well(nursery).await;
        runtime.close().await;
    });
}

/// C15: however many connections say nothing, or half a word, who was introduced comes in.
#[test]
fn silent_connections_shut_the_door_on_nobody() {
    // They may be silent for longer than this test may take.
    let config = Config { handshake: HANG * 4, ..Config::with_budget(BUDGET) };
    for_each_with(&config, here!(), &BACKENDS, async |runtime| {
        let nursery = runtime.nursery(async |n| {
            use std::io::Write as _;
            let b = n.start("b").await?;
            let peer = b.peer().await?;
            let address = SocketAddr::from_abstract_name(name(&parts(&peer).1))?;
            let mut silent = Vec::new();
            for number in 0..300 {
                let mut stream = UnixStream::connect_addr(&address)?;
                if number % 2 == 0 {
                    stream.write_all(&[0, 0])?;
                }
                silent.push(stream);
            }
            let direct = peer.connect().await?;
            assert_eq!(direct.call(whoami()).await?, b.path().to_string());
            Ok(())
        });
        well(nursery).await;
        runtime.close().await;
    });
}

/// C15: a process of another user is turned away before it could say a word, though it knows the
/// token; one of ours is let in.
#[test]
fn a_process_of_another_user_is_turned_away_whatever_it_knows() {
    if !nix::unistd::Uid::effective().is_root() {
        // Nobody else could become another user.
        return;
    }
    for_each(here!(), &PROCESSES, async |runtime| {
        let nursery = runtime.nursery(async |n| {
            let b = n.start("b").await?;
            let peer = b.peer().await?;
            let other = Confinement::new().user(65534, 65534);
            let other = n.actor("other").confine(other).start().await?;
            let error = other.call(ask(peer.clone())).await.unwrap_err();
            let said = format!("{error:?}");
            assert!(matches!(error, CallError::Failed { .. }) && said.contains("root/b"), "{said}");
            let ours = n.start("ours").await?;
            assert_eq!(ours.call(ask(peer)).await?, b.path().to_string());
            Ok(())
        });
        well(nursery).await;
        runtime.close().await;
    });
}

/// C15: fds that nobody asked for end the connection they came on, and are closed.
#[test]
fn fds_that_nobody_asked_for_are_closed_with_their_connection() {
    // Closed for what they are, and not for having said nothing in time.
    let config = Config { handshake: HANG * 4, ..Config::with_budget(BUDGET) };
    for_each_with(&config, here!(), &BACKENDS, async |runtime| {
        let nursery = runtime.nursery(async |n| {
            let b = n.start("b").await?;
            let peer = b.peer().await?;
            let direct = peer.connect().await?;
            let address: [u8; 16] = parts(&peer).1;
            // No memory file; and more than one of anything.
            for count in [1, 2, 5, 200] {
                knock_with_fds(&address, count);
            }
            assert_eq!(direct.call(whoami()).await?, b.path().to_string());
            Ok(())
        });
        well(nursery).await;
        runtime.close().await;
    });
}

/// Sends so many ends of a pipe, and waits until all of them are closed.
fn knock_with_fds(address: &[u8; 16], count: usize) {
    use std::io::Read as _;
    let (mut kept, sent) = std::io::pipe().unwrap();
    let address = SocketAddr::from_abstract_name(name(address)).unwrap();
    let stream = UnixStream::connect_addr(&address).unwrap();
    let fds = vec![sent.as_raw_fd(); count];
    let (bytes, rights) = ([IoSlice::new(&[0])], [ControlMessage::ScmRights(&fds)]);
    sendmsg::<()>(stream.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).unwrap();
    drop(sent);
    if count == 1 {
        // It could be the memory that a message comes with, and is waited for.
        drop(stream);
    }
    assert_eq!(kept.read(&mut [0]).unwrap(), 0);
}

/// C15: no listener exists unless someone asked for one, and none is left (C10).
#[test]
fn nobody_listens_unless_somebody_asked() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let nursery = runtime.nursery(async |n| {
            let b = n.start("b").await?;
            b.call(whoami()).await?;
            let address: [u8; 16] = parts(&b.peer().await?).1;
            assert!(listens(&address));
            b.cancel();
            b.settled().await;
            assert!(!listens(&address));
            Ok(())
        });
        well(nursery).await;
        runtime.close().await;
    });
}

/// Asks a connected actor who it is, whenever the opener wants to know.
#[hatchery::context]
async fn stay_friends(callee: Callee<(), String>, peer: Peer) -> Result<(), Error> {
    let portal = peer.connect().await?;
    let mut stream = callee.started(())?;
    while stream.recv().await?.is_some() {
        stream.send(portal.call(whoami()).await?).await?;
    }
    Ok(())
}

/// How much of a processor this process has used.
fn used() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().into()
}

/// Row 40 of the faults: no fd is left for who knocks. It waits, those who are in are served as
/// ever, nobody spins, and it is told once; when there is room, it is let in.
#[test]
fn who_knocks_while_there_is_no_fd_waits_and_is_let_in() {
    let scenario = || {
        let events = Events::capture();
        for backend in PROCESSES {
            within(HANG, backend, Config::with_budget(BUDGET), async |runtime| {
                let told = events.with(LOCKED_OUT).len();
                let nursery = runtime.nursery(async |n| {
                    let (friend, late) = (n.start("friend").await?, n.start("late").await?);
                    let here = hatchery::here()?;
                    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
                    let served = friend.open_context(stay_friends(here.clone()), async |mut cx| {
                        cx.send(()).await?;
                        assert_eq!(cx.recv().await?.as_deref(), Some("root"));
                        // What is open stays open.
                        setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
                        let asks = late.call(ask(here.clone()));
                        let look = async {
                            while events.with(LOCKED_OUT).len() == told {
                                tokio::task::yield_now().await;
                            }
                            let before = used();
                            cx.send(()).await?;
                            assert_eq!(cx.recv().await?.as_deref(), Some("root"));
                            // The span in which nothing happens is the point.
                            tokio::time::sleep(Duration::from_millis(500)).await;
                            let used = used() - before;
                            assert!(used < Duration::from_millis(100), "{used:?} of 500 ms");
                            assert_eq!(events.with(LOCKED_OUT).len(), told + 1);
                            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
                            Ok::<_, Error>(())
                        };
                        let (late, looked) = tokio::join!(asks, look);
                        looked?;
                        assert_eq!(late?, "root");
                        Ok(())
                    });
                    Ok(served.await?)
                });
                well(nursery).await;
                runtime.close().await;
            });
        }
    };
    isolate::run_test(here!(), HANG * 3, scenario);
}

const LOCKED_OUT: &str = "a peer could not be let in";

/// A connection lives as long as it is used, and no longer.
#[test]
fn the_last_handle_closes_the_connection() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let nursery = runtime.nursery(async |n| {
            let b = n.start("b").await?;
            let peer = b.peer().await?;
            // On both sides: in this process, and in the other if it is another.
            let here = std::process::id();
            let there = b.pid().unwrap_or(here);
            let before = (sockets(here), sockets(there));
            let portal: PeerPortal = peer.connect().await?;
            let context = portal.context(host()).handle().await?;
            drop(portal);
            let watch = context.watch();
            assert!(watch.cancelled().is_none(), "the context holds the connection");
            drop(context);
            for _ in 0..200 {
                let one = peer.connect().await?;
                assert_eq!(one.call(whoami()).await?, b.path().to_string());
            }
            let open = async {
                while sockets(here) > before.0 || sockets(there) > before.1 {
                    tokio::task::yield_now().await;
                }
            };
            soon(open).await;
            assert!(watch.cancelled().is_some(), "who watched what has ended may do so still");
            Ok(())
        });
        well(nursery).await;
        runtime.close().await;
    });
}

fn parts(peer: &Peer) -> (String, [u8; 16], [u8; 16]) {
    rmp_serde::from_slice(&rmp_serde::to_vec(peer).unwrap()).unwrap()
}

fn name(address: &[u8; 16]) -> String {
    let hex: String = address.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("hatchery-peer-{hex}")
}

fn listens(address: &[u8; 16]) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    sockets.lines().any(|line| line.ends_with(&name(address)))
}

/// Says something else than an actor would, and reads until the door is closed on it.
fn knock(address: &[u8; 16], what: &[u8]) {
    use std::io::{Read as _, Write as _};
    let address = SocketAddr::from_abstract_name(name(address)).unwrap();
    let mut stream = UnixStream::connect_addr(&address).unwrap();
    stream.write_all(what).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // A reset is as good an end.
    let mut rest = Vec::new();
    let _end = stream.read_to_end(&mut rest);
    assert!(!rest.windows(5).any(|part| part == b"Ready"));
}
