//! Scenarios 7 to 10 and 22: births that fail, and deaths that a limit brings.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use hatchery::{
    Backend, Blob, CallError, Config, ExitStatus, FaultKind, Resource, StartCause, Stdio,
};
use hatchery_spawn::{
    Birth, Bounds, Forkserver, Main, SpawnError, Spawning, Spec, Threads, inventory,
};
use hatchery_tests::{BACKENDS, PROCESSES, SLACK, each, for_each, here};
use nix::libc;
use nix::sys::signal::{Signal, raise};

inventory::submit! { Main { name: "panics", run: |birth| panic!("{}", last_words(&birth)) } }
inventory::submit! { Main { name: "aborts", run: |birth| { last_words(&birth); std::process::abort() } } }
inventory::submit! { Main { name: "exits", run: |birth| { last_words(&birth); std::process::exit(2) } } }
inventory::submit! { Main { name: "leaves", run: |birth| { last_words(&birth); 0 } } }
inventory::submit! { Main { name: "killed", run: |birth| { last_words(&birth); end_by(Signal::SIGKILL) } } }
inventory::submit! { Main { name: "stopped", run: |_| end_by(Signal::SIGSTOP) } }
inventory::submit! { Main { name: "silent", run: silent } }
inventory::submit! { Main { name: "late", run: late } }
inventory::submit! { Main { name: "next", run: next } }

/// Its channel is still open when it speaks, and when it ends.
fn last_words(birth: &Birth) -> String {
    let words = format!("the last words of {}", birth.name);
    eprintln!("{words}");
    words
}

fn end_by(signal: Signal) -> i32 {
    raise(signal).unwrap();
    0
}

/// Never answers. A thread leaves when its channel is broken; a process has to be killed.
fn silent(birth: Birth) -> i32 {
    let process = birth.how != hatchery_spawn::BirthKind::Thread;
    let mut channel = birth.channel.unwrap();
    std::io::copy(&mut channel, &mut std::io::sink()).unwrap();
    if !process {
        return 0;
    }
    loop {
        std::thread::park();
    }
}

/// An actor that is not scheduled before the next one of its name is about to be born.
fn late(birth: Birth) -> i32 {
    NEXT_COMES.wait();
    let code = actor(birth);
    LATE_IS_OVER.wait();
    code
}

/// An actor that is not scheduled before the late one has had its turn.
fn next(birth: Birth) -> i32 {
    NEXT_COMES.wait();
    LATE_IS_OVER.wait();
    actor(birth)
}

/// What actors are.
fn actor(birth: Birth) -> i32 {
    let main = inventory::iter::<Main>.into_iter().find(|main| main.name == "hatchery");
    (main.unwrap().run)(birth)
}

static NEXT_COMES: Barrier = Barrier::new(2);
static LATE_IS_OVER: Barrier = Barrier::new(2);

/// Children of another backend that take another way than an actor's.
#[derive(Debug)]
struct Misborn {
    of: Arc<dyn hatchery_spawn::Backend>,
    main: &'static str,
}

impl hatchery_spawn::Backend for Misborn {
    fn name(&self) -> &'static str {
        self.of.name()
    }
    fn is_process(&self) -> bool {
        self.of.is_process()
    }
    fn spawn(&self, spec: Spec) -> Spawning {
        self.of.spawn(spec.with_main(self.main))
    }
}

/// The backends to wrap, and the forkserver of those with processes, to be closed.
fn wrapped() -> (Forkserver, [Arc<dyn hatchery_spawn::Backend>; 3]) {
    let server = Forkserver::start(Bounds::default()).unwrap();
    let all: [Arc<dyn hatchery_spawn::Backend>; 3] =
        [Arc::new(server.fork()), Arc::new(server.exec()), Arc::new(Threads::new())];
    (server, all)
}

#[hatchery::function]
async fn add(a: u64, b: u64) -> u64 {
    a + b
}

#[hatchery::function]
async fn overflow(on_a_thread: bool) -> u64 {
    if on_a_thread {
        let named = std::thread::Builder::new().name("deep".to_owned());
        let thread = named.spawn(|| {
            hatchery::guard_stack();
            deeper(0)
        });
        return thread.unwrap().join().unwrap();
    }
    deeper(0)
}

#[hatchery::function]
async fn overflow_in_the_pool() -> u64 {
    #[allow(clippy::disallowed_methods, reason = "its stack is the point")]
    tokio::task::spawn_blocking(|| deeper(0)).await.unwrap()
}

#[allow(unconditional_recursion, reason = "the stack's end is the point")]
fn deeper(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    deeper(depth + 1) + frame[0]
}

#[hatchery::function]
async fn hoard(bytes: usize) -> u8 {
    std::hint::black_box(vec![1_u8; bytes])[bytes / 2]
}

#[hatchery::function]
async fn length(blob: Blob) -> usize {
    blob.len()
}

/// Scenario 7: a function that the child's image doesn't have is named, and the actor lives.
#[test]
fn an_unknown_function_is_named() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let done = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            let name = hatchery::__private::Name::new("no::such::function", "no.rs:1:1");
            let unknown = hatchery::__private::call_plain(name, (1,), |_| async {});
            let error = worker.call(unknown).await.unwrap_err();
            assert!(matches!(error, CallError::Refused(_)), "{error:?}");
            assert_eq!(error.fault().kind, FaultKind::UnknownFunction);
            assert!(error.fault().message.contains("`no::such::function`"), "{error:?}");
            assert_eq!(error.fault().path.as_str(), "root/worker");
            let once = hatchery::__private::call_plain(name, (1,), |_| async {});
            assert_eq!(worker.call(add(1, 1)).await?, 2);
            drop(n.run("once", once));
            Ok(())
        });
        let error = done.await.unwrap_err();
        assert_eq!(error.faults().len(), 1, "{}", error.render());
        assert_eq!(error.fault().kind, FaultKind::UnknownFunction);
        assert_eq!(error.fault().path.as_str(), "root/once");
        runtime.close().await;
    });
}

/// Scenario 8, C4, H12: whatever ends a child between its birth and its handshake, the start fails
/// with the status and the last lines of stderr, and long before the handshake's bound.
#[test]
fn a_death_before_the_handshake_is_told_by_status_and_last_words() {
    let bound = Duration::from_secs(25);
    // Room for a backtrace after the words.
    let config = Config { handshake: bound, stderr_tail_lines: 500, ..Config::default() };
    each(bound, here!(), &[Backend::Forkserver], &config, async |runtime| {
        let (server, [fork, exec, threads]) = wrapped();
        let deaths = [
            ("panics", ExitStatus::Code(101)),
            ("aborts", ExitStatus::Signal(libc::SIGABRT)),
            ("exits", ExitStatus::Code(2)),
            // Fault 12: it has not been what it was to be, however well it went.
            ("leaves", ExitStatus::Code(0)),
            ("killed", ExitStatus::Signal(libc::SIGKILL)),
        ];
        let all = deaths.iter().flat_map(|death| [(&fork, death), (&exec, death)]);
        let done = runtime.nursery(async |n| {
            for (of, &(main, status)) in all.chain([(&threads, &deaths[0])]) {
                let backend = Backend::Custom(Arc::new(Misborn { of: of.clone(), main }));
                let child = n.actor(main).backend(backend).stderr(Stdio::Relay);
                let error = child.start().await.unwrap_err();
                assert!(matches!(error.cause, StartCause::Died), "{main} by {of:?}: {error}");
                assert_eq!(error.fault().kind, FaultKind::Died(status), "{main} by {of:?}");
                // Of who went well nothing is quoted.
                if of.is_process() && status != ExitStatus::Code(0) {
                    let words = format!("the last words of {main}");
                    let output = &error.fault().output;
                    assert!(output.contains(&words), "{output:?}");
                }
            }
            // The tree goes on working.
            Ok(n.start("worker").await?.call(add(1, 1)).await?)
        });
        assert_eq!(done.await.unwrap(), 2);
        runtime.close().await;
        server.close();
    });
}

/// Scenario 9, H12: a child that lives and never answers fails its start at the handshake's bound.
#[test]
fn a_child_that_never_answers_fails_its_start_at_the_bound() {
    let handshake = Duration::from_millis(300);
    let config = Config { handshake, ..Config::with_budget(hatchery_tests::BUDGET) };
    let hang = Duration::from_secs(30);
    each(hang, here!(), &[Backend::Forkserver], &config, async |runtime| {
        let (server, [fork, exec, threads]) = wrapped();
        let all = [(&fork, "silent"), (&exec, "silent"), (&fork, "stopped"), (&threads, "silent")];
        for (of, main) in all {
            let done = runtime.nursery(async |n| {
                let backend = Backend::Custom(Arc::new(Misborn { of: of.clone(), main }));
                let since = Instant::now();
                let error = n.actor(main).backend(backend).start().await.unwrap_err();
                let took = since.elapsed();
                let StartCause::Handshake { waited } = error.cause else { panic!("{error}") };
                assert!(waited >= handshake && took < handshake + SLACK, "{waited:?} {took:?}");
                Ok(())
            });
            done.await.unwrap();
        }
        runtime.close().await;
        server.close();
    });
}

/// C14, H13: a thread that comes to its greeting long after its start was given up takes nothing
/// from the next actor of its path: that one's large blobs arrive.
#[test]
fn a_late_thread_takes_nothing_from_the_next_of_its_path() {
    let handshake = Duration::from_millis(300);
    let config = Config { handshake, ..Config::with_budget(hatchery_tests::BUDGET) };
    let hang = Duration::from_secs(30);
    each(hang, here!(), &[Backend::Thread], &config, async |runtime| {
        let of: Arc<dyn hatchery_spawn::Backend> = Arc::new(Threads::new());
        let backend = |main| Backend::Custom(Arc::new(Misborn { of: of.clone(), main }));
        let given_up = runtime.nursery(async |n| {
            let error = n.actor("worker").backend(backend("late")).start().await.unwrap_err();
            assert!(matches!(error.cause, StartCause::Handshake { .. }), "{error}");
            Ok(())
        });
        // Its thread is abandoned, and its name free.
        given_up.await.unwrap_err();
        let done = runtime.nursery(async |n| {
            let worker = n.actor("worker").backend(backend("next")).start().await?;
            Ok(worker.call(length(vec![1; 100_000].into())).await?)
        });
        assert_eq!(done.await.unwrap(), 100_000);
        runtime.close().await;
    });
}

/// Scenario 10: no fds left in the forkserver: a typed error, the tree works on, and when there is
/// room again a start succeeds.
#[test]
fn a_start_without_fds_is_a_typed_error_and_a_later_one_succeeds() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let done = runtime.nursery(async |n| {
            let worker = n.start("worker").await?;
            let server = runtime.forkserver_pid().unwrap();
            set_limit(server, "nofile", "5:20000");
            let error = n.start("late").await.unwrap_err();
            let StartCause::Spawn(SpawnError::Call { call, cause, .. }) = &error.cause else {
                panic!("{error:?}")
            };
            assert_eq!(call, "recvmsg(SCM_RIGHTS)", "{error:?}");
            assert_eq!(cause.raw_os_error(), Some(libc::EMFILE), "{error:?}");
            assert_eq!(worker.call(add(1, 1)).await?, 2);
            set_limit(server, "nofile", "20000:20000");
            Ok(n.start("late").await?.call(add(1, 2)).await?)
        });
        assert_eq!(done.await.unwrap(), 3);
        runtime.close().await;
    });
}

/// Scenario 10, H26: `fork` fails with EAGAIN, and so does the start of a thread: the same.
#[test]
fn a_start_without_processes_is_a_typed_error_and_a_later_one_succeeds() {
    // Nothing is counted: who gave up its rights can't look at itself any more.
    hatchery_testkit::isolate::run_test(here!(), Duration::from_secs(60), || {
        // The limit doesn't bind root; and it counts all processes and threads of the user.
        if !hatchery_tests::become_nobody() {
            return;
        }
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NPROC, 16, 16).unwrap();
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async {
            for (backend, call) in
                [(Backend::Forkserver, "fork"), (Backend::Thread, "pthread_create")]
            {
                starts_until_refused(backend, call).await;
            }
        });
    });
}

/// Starts actors until there is no room, and one more when there is room again.
async fn starts_until_refused(backend: Backend, refused: &str) {
    let runtime = hatchery::Runtime::builder().backend(backend).signals(false);
    let runtime = runtime.stdio(Stdio::Null).open().unwrap();
    let done = runtime.nursery(async |n| {
        let mut living = Vec::new();
        let error = loop {
            match n.start(&format!("a{}", living.len())).await {
                Ok(actor) => living.push(actor),
                Err(error) => break error,
            }
            assert!(living.len() < 16);
        };
        let StartCause::Spawn(SpawnError::Call { call, cause, .. }) = &error.cause else {
            panic!("{error:?}")
        };
        assert_eq!((call.as_str(), cause.raw_os_error()), (refused, Some(libc::EAGAIN)));
        let gone = living.pop().expect("some are there");
        gone.cancel();
        gone.settled().await;
        assert_eq!(living[0].call(add(1, 1)).await?, 2);
        Ok(n.start("late").await?.call(add(1, 2)).await?)
    });
    assert_eq!(done.await.unwrap(), 3);
    runtime.close().await;
}

fn set_limit(pid: u32, what: &str, limits: &str) {
    let status = std::process::Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--{what}={limits}")])
        .status();
    assert!(status.unwrap().success());
}

/// Scenario 22, C4: the end of the stack, on the actor's own thread, on one that it started and on
/// one of its blocking pool, is told by its signal and by what Rust says of it.
#[test]
fn a_stack_overflow_is_told_by_signal_and_message() {
    for_each(here!(), &PROCESSES, async |runtime| {
        for (which, name) in ["thread 'main'", "thread 'deep'", "thread 'tokio-"].iter().enumerate()
        {
            let died = runtime.nursery(async |n| {
                let worker = n.actor("worker").stderr(Stdio::Relay).start().await?;
                match which {
                    0 | 1 => Ok(worker.call(overflow(which == 1)).await?),
                    _ => Ok(worker.call(overflow_in_the_pool()).await?),
                }
            });
            let error = died.await.unwrap_err();
            let fault = error.fault();
            assert_eq!(fault.kind, FaultKind::Died(ExitStatus::Signal(libc::SIGABRT)));
            let told = |line: &String| line.starts_with(name) && line.contains("has overflowed");
            assert!(fault.output.iter().any(told), "{}", error.render());
        }
        runtime.close().await;
    });
}

/// Scenario 22, C4: a limit of memory: the same.
#[test]
fn a_limit_of_memory_is_told_by_signal_and_message() {
    let hang = Duration::from_secs(30);
    // Room for a backtrace after the message.
    let config = Config { stderr_tail_lines: 500, ..Config::default() };
    each(hang, here!(), &PROCESSES, &config, async |runtime| {
        let died = runtime.nursery(async |n| {
            let limit = 2 << 30;
            let worker = n.actor("worker").limit(Resource::AddressSpace, limit, limit);
            let worker = worker.stderr(Stdio::Relay).start().await?;
            assert_eq!(worker.call(hoard(1 << 20)).await?, 1);
            Ok(worker.call(hoard(3 << 30)).await?)
        });
        let error = died.await.unwrap_err();
        assert_eq!(error.faults().len(), 1, "{}", error.render());
        assert_eq!(error.fault().kind, FaultKind::Died(ExitStatus::Signal(libc::SIGABRT)));
        let told = |line: &String| line.contains("memory allocation of 3221225472 bytes failed");
        assert!(error.fault().output.iter().any(told), "{}", error.render());
        runtime.close().await;
    });
}
