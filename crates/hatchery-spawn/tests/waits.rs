//! Waiting, withdrawing, losing: what the requesting side promises (C9, H2, H26, H28).
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::task::Poll;
use std::time::{Duration, Instant};

use common::{BOUND, block_on, isolated, process, spawn};
use hatchery_spawn::{
    Backend, Birth, Bounds, ChildHandle, Exit, Forkserver, Main, Pidfd, SpawnError, Spec, Stdio,
    WaitError, inventory, thread_count,
};

inventory::submit! { Main { name: "end", run: end } }
inventory::submit! { Main { name: "wait", run: wait } }
inventory::submit! { Main { name: "close", run: close } }

/// Ends by a code, or by a signal if the first byte says so.
fn end(birth: Birth) -> i32 {
    let number = i32::from(birth.payload[1]);
    if birth.payload[0] == 0 {
        return number;
    }
    Pidfd::open(std::process::id()).unwrap().send_signal(number).unwrap();
    wait(birth)
}

fn wait(birth: Birth) -> i32 {
    let Some(mut channel) = birth.channel else { common::park() };
    drop(channel.read(&mut [0]));
    0
}

/// An actor that starts a child and closes its way to the forkserver all the same.
fn close(birth: Birth) -> i32 {
    let server = birth.forkserver().unwrap().unwrap();
    let child = block_on(server.fork().spawn(Spec::main("end").payload(vec![0, 3]))).unwrap();
    assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(3));
    server.close();
    let mut channel = birth.channel.unwrap();
    channel.write_all(b"x").unwrap();
    channel.read(&mut [0]).map_or(1, |_| 7)
}

fn start() -> Forkserver {
    Forkserver::start(Bounds::default()).unwrap()
}

fn quiet(name: &str) -> Spec {
    Spec::main(name).stdout(Stdio::Null)
}

/// The status that child number `number` is to have, and its spec.
fn known(number: u32) -> (Spec, Exit) {
    let signals = [libc::SIGKILL, libc::SIGTERM, libc::SIGUSR1];
    let code = u8::try_from(number % 256).unwrap();
    if number.is_multiple_of(5) {
        let signal = signals[number as usize % 3];
        let payload = vec![1, u8::try_from(signal).unwrap()];
        (
            quiet("end").payload(payload),
            Exit::Signal { signal, core_dumped: false, out_of_memory: false },
        )
    } else {
        (quiet("end").payload(vec![0, code]), Exit::Code(i32::from(code)))
    }
}

/// C9, H28: thousands of exits, each with its exact status, to every waiter, while others poll.
#[test]
fn every_exit_has_its_exact_status_for_every_waiter() {
    isolated("every_exit_has_its_exact_status_for_every_waiter", || {
        let server = start();
        let fork = server.fork();
        block_on(async {
            for round in 0..20 {
                // More than may be under way at once.
                let asked: Vec<_> = (0..100)
                    .map(|at| known(round * 100 + at))
                    .map(|(spec, exit)| (fork.spawn(spec), exit))
                    .collect();
                for (spawning, exit) in asked {
                    let child = spawning.await.unwrap();
                    let polling = polled(child.handle());
                    let waiters = [child.handle(), child.handle(), child.handle()];
                    let waiters =
                        waiters.map(|waiter| tokio::spawn(async move { waiter.wait().await }));
                    assert_eq!(child.wait().await.unwrap(), exit);
                    for waiter in waiters {
                        assert_eq!(waiter.await.unwrap().unwrap(), exit);
                    }
                    assert_eq!(polling.await.unwrap(), exit);
                    assert_eq!(child.try_wait().unwrap(), Some(exit));
                }
            }
        });
    });
}

fn polled(child: ChildHandle) -> tokio::task::JoinHandle<Exit> {
    tokio::spawn(async move {
        loop {
            if let Some(exit) = child.try_wait().unwrap() {
                return exit;
            }
            tokio::task::yield_now().await;
        }
    })
}

/// C9, H2: a wait on a stopped child can be given up, costs no thread, and loses nothing.
#[test]
fn a_wait_can_be_given_up() {
    isolated("a_wait_can_be_given_up", || {
        let server = start();
        let (child, _channel) = spawn(&server.fork(), quiet("wait")).unwrap();
        child.handle().signal(libc::SIGSTOP).unwrap();
        let threads = thread_count().unwrap();
        block_on(async {
            for _ in 0..100 {
                let mut wait = std::pin::pin!(child.wait());
                let polled =
                    std::future::poll_fn(|context| Poll::Ready(wait.as_mut().poll(context)));
                assert!(polled.await.is_pending());
            }
        });
        assert_eq!(thread_count().unwrap(), threads);
        child.kill().unwrap();
        assert_eq!(block_on(child.wait()).unwrap().signal(), Some(libc::SIGKILL));
    });
}

/// A request that is dropped leaves no child, whatever it had come to.
#[test]
fn a_dropped_request_leaves_no_child() {
    isolated("a_dropped_request_leaves_no_child", || {
        let server = start();
        for backend in [&server.fork() as &dyn Backend, &server.exec()] {
            block_on(async {
                for round in 0..300_usize {
                    let mut spawning = backend.spawn(quiet("wait"));
                    if round % 3 == 1 {
                        // Sent, and looked at once.
                        let polled = std::future::poll_fn(|context| {
                            Poll::Ready(std::pin::Pin::new(&mut spawning).poll(context))
                        });
                        drop(polled.await);
                    } else if round % 3 == 2 {
                        // Answered, and not looked at: answers come in the order of requests.
                        drop(backend.spawn(quiet("end").payload(vec![0, 0])).await.unwrap());
                    }
                }
                // Answers come in the order of requests: whatever was to appear has appeared.
                let (spec, exit) = known(1);
                assert_eq!(backend.spawn(spec).await.unwrap().wait().await.unwrap(), exit);
            });
            none_left(&server);
        }
    });
}

/// Waits until the forkserver has no child.
fn none_left(server: &Forkserver) {
    let path = format!("/proc/{0}/task/{0}/children", server.pid());
    let until = Instant::now() + BOUND;
    loop {
        let children = std::fs::read_to_string(&path).unwrap();
        if children.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "left: {children}");
        std::thread::yield_now();
    }
}

/// C3, H26: when the forkserver dies, every wait and every request ends, and says why.
#[test]
fn the_death_of_the_forkserver_ends_every_wait_and_request() {
    isolated("the_death_of_the_forkserver_ends_every_wait_and_request", || {
        let server = start();
        let fork = server.fork();
        block_on(async {
            let mut children = Vec::new();
            for _ in 0..50 {
                children.push(fork.spawn(quiet("wait")).await.unwrap());
            }
            let mut waits = tokio::task::JoinSet::new();
            for child in &children {
                let handle = child.handle();
                waits.spawn(async move { handle.wait().await });
            }
            let pidfd = Pidfd::open(server.pid()).unwrap();
            pidfd.send_signal(libc::SIGSTOP).unwrap();
            let requests: Vec<_> = (0..200).map(|_| fork.spawn(quiet("wait"))).collect();
            pidfd.send_signal(libc::SIGKILL).unwrap();
            for request in requests {
                let error = request.await.unwrap_err();
                assert!(matches!(error, SpawnError::ServerGone { .. }), "{error:?}");
            }
            while let Some(wait) = waits.join_next().await {
                assert!(matches!(wait.unwrap(), Err(WaitError::ServerGone { .. })));
            }
            assert!(!server.lost().await.is_empty());
            for child in &children {
                assert!(child.handle().try_wait().is_err());
            }
        });
        assert!(server.is_lost());
        let next = start();
        let (spec, exit) = known(1);
        let child = block_on(next.fork().spawn(spec)).unwrap();
        assert_eq!(block_on(child.wait()).unwrap(), exit);
    });
}

/// H26: a forkserver that doesn't answer is a typed error in time, and a child that comes of it
/// later is nobody's and is gone.
#[test]
fn a_silent_forkserver_is_a_typed_error_in_time() {
    isolated("a_silent_forkserver_is_a_typed_error_in_time", || {
        let request = Duration::from_millis(200);
        let server = Forkserver::start(Bounds { request, ..Bounds::default() }).unwrap();
        let (spec, _) = known(1);
        block_on(server.fork().spawn(spec)).unwrap();
        let pidfd = Pidfd::open(server.pid()).unwrap();
        pidfd.send_signal(libc::SIGSTOP).unwrap();
        let asked = Instant::now();
        let requests: Vec<_> = (0..100).map(|_| server.fork().spawn(quiet("wait"))).collect();
        for request in requests {
            let error = block_on(request).unwrap_err();
            assert!(matches!(error, SpawnError::Unanswered { .. }), "{error:?}");
        }
        let waited = asked.elapsed();
        assert!(waited >= request && waited < request * 5, "{waited:?}");
        pidfd.send_signal(libc::SIGCONT).unwrap();
        let (spec, exit) = known(2);
        let child = block_on(server.fork().spawn(spec)).unwrap();
        assert_eq!(block_on(child.wait()).unwrap(), exit);
        none_left(&server);
    });
}

/// H26: the time that a request waits behind others, in our queue and in the forkserver's socket, is
/// not the forkserver's silence.
#[test]
fn a_long_queue_is_no_silence() {
    isolated("a_long_queue_is_no_silence", || {
        let request = Duration::from_secs(5);
        let server = Forkserver::start(Bounds { request, ..Bounds::default() }).unwrap();
        let process = Pidfd::open(server.pid()).unwrap();
        let fork = server.fork();
        let (spec, exit) = known(1);
        assert_eq!(block_on(block_on(fork.spawn(spec)).unwrap().wait()).unwrap(), exit);
        let since = Instant::now();
        process.send_signal(libc::SIGSTOP).unwrap();
        // Several times what may be under way.
        let asked: Vec<_> =
            (2..302).map(known).map(|(spec, exit)| (fork.spawn(spec), exit)).collect();
        let mut waits = tokio::task::JoinSet::new();
        block_on(async {
            for (mut child, exit) in asked {
                let polled = std::future::poll_fn(|context| {
                    Poll::Ready(std::pin::Pin::new(&mut child).poll(context))
                });
                let child = match polled.await {
                    Poll::Ready(child) => child.unwrap(),
                    Poll::Pending => {
                        // So that each takes its time, of which the bound is about: none of them as
                        // long as a silence, together longer.
                        if since.elapsed() < request * 3 / 2 {
                            tokio::time::sleep(request / 5).await;
                        }
                        process.send_signal(libc::SIGCONT).unwrap();
                        let child = child.await.unwrap();
                        if since.elapsed() < request * 3 / 2 {
                            process.send_signal(libc::SIGSTOP).unwrap();
                        }
                        child
                    }
                };
                waits.spawn(async move { assert_eq!(child.wait().await.unwrap(), exit) });
            }
            process.send_signal(libc::SIGCONT).unwrap();
            while let Some(wait) = waits.join_next().await {
                wait.unwrap();
            }
        });
    });
}

/// C15: what can't be sent is refused at the door, and disturbs nobody.
#[test]
fn a_spec_that_can_not_be_sent_is_refused_at_the_door() {
    isolated("a_spec_that_can_not_be_sent_is_refused_at_the_door", || {
        let server = start();
        let fork = server.fork();
        let null = || File::open("/dev/null").unwrap().into();
        let crowd = (0..64).fold(quiet("wait"), |spec, _| spec.fd(null()));
        let bad = [
            (crowd, libc::EMSGSIZE),
            (Spec::program("true").env("A=B", "x"), libc::EINVAL),
            (Spec::program("true").env("", "x"), libc::EINVAL),
            (Spec::program("true").env("A", "x\0"), libc::EINVAL),
            (Spec::program("true").arg("\0"), libc::EINVAL),
        ];
        for (spec, errno) in bad {
            let error = block_on(fork.spawn(spec)).unwrap_err();
            assert_eq!(error.io_error().and_then(|error| error.raw_os_error()), Some(errno));
        }
        let huge = block_on(fork.spawn(quiet("wait").payload(vec![0; 9_000_000]))).unwrap_err();
        assert!(matches!(huge, SpawnError::TooLarge { .. }), "{huge:?}");
        let (spec, exit) = known(3);
        assert_eq!(block_on(block_on(fork.spawn(spec)).unwrap().wait()).unwrap(), exit);
    });
}

/// In an actor, closing the way to the forkserver does not end the actor.
#[test]
fn an_actor_that_closes_its_forkserver_lives_on() {
    isolated("an_actor_that_closes_its_forkserver_lives_on", || {
        let server = start();
        for backend in [&server.fork() as &dyn Backend, &server.exec()] {
            let (child, mut channel) = spawn(backend, Spec::main("close").name("a,b")).unwrap();
            channel.read_exact(&mut [0]).unwrap();
            // The forkserver has been round its loop: it would have noticed.
            for number in 1..4 {
                block_on(block_on(backend.spawn(known(number).0)).unwrap().wait()).unwrap();
            }
            drop(channel);
            assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(7), "{}", backend.name());
        }
    });
}

/// C10: opening and closing costs nothing that stays.
#[test]
fn two_hundred_forkservers_leave_nothing() {
    isolated("two_hundred_forkservers_leave_nothing", || {
        let before = counts();
        for round in 0..200 {
            let server = start();
            let (spec, exit) = known(round + 1);
            let child = block_on(server.fork().spawn(spec)).unwrap();
            assert_eq!(block_on(child.wait()).unwrap(), exit);
            let running = block_on(server.fork().spawn(quiet("wait"))).unwrap();
            server.close();
            server.close();
            drop((child, running, server));
            assert_eq!(counts(), before, "round {round}");
        }
    });
}

/// Threads, fds, children.
fn counts() -> (usize, usize, String) {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let children = threads
        .map(|thread| std::fs::read_to_string(thread.unwrap().path().join("children")).unwrap())
        .collect();
    (thread_count().unwrap(), fds, children)
}

/// C6: the tree can be killed from any thread at any time, without a runtime.
#[test]
fn killing_the_tree_needs_no_runtime() {
    isolated("killing_the_tree_needs_no_runtime", || {
        let server = start();
        let children: Vec<_> =
            (0..20).map(|_| block_on(server.fork().spawn(quiet("wait"))).unwrap()).collect();
        let all: Vec<Pidfd> = children.iter().map(process).collect();
        let own = Pidfd::open(server.pid()).unwrap();
        server.kill_tree();
        assert!(own.wait_dead(Duration::ZERO));
        assert!(all.iter().all(|one| one.wait_dead(Duration::from_secs(1))));
    });
}
