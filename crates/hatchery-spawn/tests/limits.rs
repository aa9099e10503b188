//! Bad surroundings: full tables, forbidden calls, a silent forkserver. Each is a typed error that
//! names the call, and nothing is left of the attempt.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{answer, block_on, isolated, park, process, spawn};
use hatchery_spawn::{
    Backend, Birth, Bounds, Child, Exit, Forkserver, Main, Pidfd, SpawnError, Spec, Stdio,
    inventory,
};
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

inventory::submit! { Main { name: "hang", run: |_| park() } }
inventory::submit! { Main { name: "quit", run: |_| 3 } }
inventory::submit! { Main { name: "length", run: length } }
inventory::submit! { Main { name: "fds", run: fds } }
inventory::submit! { Main { name: "mark", run: mark } }

fn length(birth: Birth) -> i32 {
    use std::io::Write as _;
    write!(birth.channel.expect("a channel"), "{}", birth.payload.len()).map_or(1, |()| 0)
}

fn fds(birth: Birth) -> i32 {
    use std::io::Write as _;
    // The directory itself is one of them.
    let count = fs::read_dir("/proc/self/fd").unwrap().count() - 1;
    write!(birth.channel.expect("a channel"), "{count}").map_or(1, |()| 0)
}

fn mark(birth: Birth) -> i32 {
    use std::io::Write as _;
    let mark = std::env::var("HATCHERY_ACTOR").unwrap();
    let number = mark.split('.').next_back().unwrap();
    write!(birth.channel.expect("a channel"), "{number}").map_or(1, |()| 0)
}

fn start() -> Forkserver {
    Forkserver::start(Bounds::default()).unwrap()
}

fn quits(backend: &dyn Backend) {
    let (child, _channel) = spawn(backend, Spec::main("quit")).unwrap();
    assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(3));
}

/// The call that an error names, with its number.
fn call(error: SpawnError) -> (String, i32) {
    let SpawnError::Call { call, cause, .. } = error else { panic!("{error:?}") };
    (call, cause.raw_os_error().unwrap())
}

fn fds_of(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// The forkserver answers before it closes what came with the request.
fn settles(mut settled: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(2);
    while !settled() {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
}

/// Waits until the forkserver has no child: each that it has is on its way out.
fn has_no_children(server: &Forkserver) {
    let pid = server.pid();
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let Some(child) = children.split_whitespace().next() else { return };
        assert!(Instant::now() < until, "still there: {children}");
        if let Ok(child) = Pidfd::open(child.parse().unwrap()) {
            assert!(child.wait_dead(until.saturating_duration_since(Instant::now())), "{children}");
        }
    }
}

/// RLIMIT_NPROC at its limit: `fork`, EAGAIN, and the next one works when there is room.
#[test]
fn a_process_limit_is_a_typed_error_of_fork() {
    isolated("a_process_limit_is_a_typed_error_of_fork", || {
        // The limit doesn't bind root; and it counts all processes of the user.
        if !common::become_nobody() {
            return;
        }
        setrlimit(Resource::RLIMIT_NPROC, 10, 10).unwrap();
        meets_its_limit(&start(), 10);
    });
}

/// Starts children until there may be no more; one that goes makes room for another.
fn meets_its_limit(server: &Forkserver, most: usize) {
    let mut living: Vec<(Child, _)> = Vec::new();
    let error = loop {
        match spawn(&server.fork(), Spec::main("hang")) {
            Ok(child) => living.push(child),
            Err(error) => break error,
        }
        assert!(living.len() < most);
    };
    assert_eq!(call(error), ("fork".to_owned(), libc::EAGAIN));
    assert!(!living.is_empty());
    let (child, _channel) = living.pop().unwrap();
    child.kill().unwrap();
    block_on(child.wait()).unwrap();
    quits(&server.fork());
    assert!(living.iter().all(|(child, _)| !process(child).is_dead()), "others live");
}

/// A cgroup of this process's own in which so many processes and threads may be; gone with it.
struct Few {
    above: PathBuf,
    own: PathBuf,
}

impl Few {
    /// `None` where there is no such controller, or no right to it.
    fn new(most: usize) -> Option<Self> {
        let v1 = PathBuf::from("/sys/fs/cgroup/pids");
        let above = if v1.exists() { v1 } else { PathBuf::from("/sys/fs/cgroup") };
        let own = above.join(format!("hatchery-test-{}", std::process::id()));
        fs::create_dir(&own).ok()?;
        let few = Self { above, own };
        fs::write(few.own.join("pids.max"), most.to_string()).ok()?;
        fs::write(few.own.join("cgroup.procs"), "0").ok()?;
        Some(few)
    }
}

impl Drop for Few {
    fn drop(&mut self) {
        let _not_in = fs::write(self.above.join("cgroup.procs"), "0");
        // Those who have just ended may still be counted.
        let until = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(&self.own).is_err() && Instant::now() < until {
            std::thread::yield_now();
        }
    }
}

/// Fault 29: the same with `pids.max` of a cgroup.
#[test]
fn a_pids_limit_is_a_typed_error_of_fork() {
    isolated("a_pids_limit_is_a_typed_error_of_fork", || {
        let Some(_few) = Few::new(12) else {
            eprintln!("not tested: no pids controller, or no right to it");
            return;
        };
        meets_its_limit(&start(), 12);
    });
}

/// RLIMIT_NOFILE of the forkserver at its limit: each spawn works or is refused by name, no fd and
/// no child stays, nobody else is disturbed, and all is well when there is room again.
#[test]
fn a_full_table_of_the_forkserver_is_a_typed_error_and_leaks_nothing() {
    isolated("a_full_table_of_the_forkserver_is_a_typed_error_and_leaks_nothing", || {
        let server = start();
        let (other, _channel) = spawn(&server.fork(), Spec::main("hang")).unwrap();
        quits(&server.fork());
        let before = fds_of(server.pid());
        let mut refused = Vec::new();
        for limit in before - 1..before + 20 {
            set_limit(server.pid(), &format!("{limit}:20000"));
            for _ in 0..20 {
                match spawn(&server.fork(), Spec::main("quit")) {
                    Ok((child, _channel)) => {
                        let exit = block_on(child.wait()).unwrap();
                        if exit != Exit::Code(3) {
                            let failure = child.handle().birth_failure().expect("a reason");
                            assert_eq!(failure.errno, Some(libc::EMFILE));
                        }
                    }
                    Err(error) => refused.push(call(error)),
                }
            }
            settles(|| fds_of(server.pid()) <= before);
        }
        assert!(!refused.is_empty());
        for (call, errno) in refused {
            assert_eq!((call.as_str(), errno), ("recvmsg(SCM_RIGHTS)", libc::EMFILE));
        }
        quits(&server.fork());
        quits(&server.exec());
        settles(|| fds_of(server.pid()) == before);
        assert!(!process(&other).is_dead());
        drop(other);
        has_no_children(&server);
    });
}

fn set_limit(pid: u32, limits: &str) {
    let status = std::process::Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--nofile={limits}")])
        .status()
        .unwrap();
    assert!(status.success());
}

/// A filter is for ever, but only for the thread that asks for it and what comes of it.
fn filtered(scenario: impl FnOnce() + Send + 'static) {
    std::thread::spawn(scenario).join().unwrap();
}

/// Forbids a system call, or one kind of it, to this thread and all that comes of it.
fn forbid(call: i64, rules: Vec<SeccompRule>, errno: i32) {
    let filter = SeccompFilter::new(
        [(call, rules)].into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// Fault 36: no memory for a request that is too long for a message: a typed error, and nothing is
/// forked. What fits into a message needs none.
#[test]
fn no_memory_for_a_long_request_is_a_typed_error_before_the_fork() {
    isolated("no_memory_for_a_long_request_is_a_typed_error_before_the_fork", || {
        let server = start();
        quits(&server.fork());
        forbid(libc::SYS_memfd_create, vec![], libc::ENOSPC);
        // One that has the filter too: else it forks nothing for who has it (C17).
        let server = start();
        let children = format!("/proc/{0}/task/{0}/children", server.pid());
        for _ in 0..5 {
            let spec = Spec::main("hang").payload(vec![0; 1 << 20]);
            let error = spawn(&server.fork(), spec).map(drop).unwrap_err();
            assert_eq!(call(error), ("memfd_create".to_owned(), libc::ENOSPC));
            assert_eq!(fs::read_to_string(&children).unwrap(), "");
        }
        quits(&server.fork());
    });
}

/// A filter that forbids `fork`, but not the start of programs and threads.
#[test]
fn a_forbidden_clone_is_a_typed_error() {
    isolated("a_forbidden_clone_is_a_typed_error", || {
        let without_vm = SeccompCondition::new(
            0,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(u64::from(libc::CLONE_VM.cast_unsigned())),
            0,
        );
        let rule = SeccompRule::new(vec![without_vm.unwrap()]).unwrap();
        forbid(libc::SYS_clone, vec![rule], libc::EPERM);
        let server = start();
        for backend in [&server.fork() as &dyn Backend, &server.exec()] {
            let error = spawn(backend, Spec::main("quit")).map(drop).unwrap_err();
            assert_eq!(call(error), ("fork".to_owned(), libc::EPERM));
        }
        has_no_children(&server);
    });
}

/// C7: without `close_range` the scrub is as thorough.
#[test]
fn without_close_range_a_child_still_holds_exactly_its_fds() {
    isolated("without_close_range_a_child_still_holds_exactly_its_fds", || {
        let null = OwnedFd::from(fs::File::open("/dev/null").unwrap());
        let decoy = |at| nix::fcntl::fcntl(&null, nix::fcntl::FcntlArg::F_DUPFD(at));
        let _decoys: Vec<_> = (100..600).map(decoy).collect();
        for errno in [libc::ENOSYS, libc::EPERM] {
            filtered(move || {
                forbid(libc::SYS_close_range, vec![], errno);
                let server = start();
                let (_sibling, _channel) = spawn(&server.fork(), Spec::main("hang")).unwrap();
                for backend in [&server.fork() as &dyn Backend, &server.exec()] {
                    assert_eq!(answer(backend, Spec::main("fds").stderr(Stdio::Null)), "5");
                }
            });
        }
    });
}

/// Without `/proc` there is no forkserver, and the error says what was missed.
#[test]
fn without_proc_the_error_names_the_call() {
    isolated("without_proc_the_error_names_the_call", || {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("not tested: only the superuser takes `/proc` away");
        }
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        for words in [&["--make-rprivate", "/"][..], &["-t", "tmpfs", "none", "/proc"]] {
            assert!(std::process::Command::new("mount").args(words).status().unwrap().success());
        }
        let error = Forkserver::start(Bounds::default()).unwrap_err();
        assert_eq!(call(error), ("posix_spawn(/proc/self/exe)".to_owned(), libc::ENOENT));
    });
}

/// An executable that is deleted and replaced while it runs: spawns still work, in the old image.
#[test]
fn an_executable_that_is_replaced_while_it_runs_still_spawns() {
    const COPY: &str = "HATCHERY_TEST_COPY";
    let test = "an_executable_that_is_replaced_while_it_runs_still_spawns";
    isolated(test, || match std::env::var_os(COPY) {
        Some(copy) => {
            fs::remove_file(&copy).unwrap();
            fs::write(&copy, "something else").unwrap();
            let server = start();
            quits(&server.fork());
            quits(&server.exec());
        }
        None => {
            let copy = std::env::temp_dir().join(format!("{test}.{}", std::process::id()));
            fs::copy("/proc/self/exe", &copy).unwrap();
            let status = std::process::Command::new(&copy)
                .args([test, "--exact", "--nocapture"])
                .env(COPY, &copy)
                .status();
            fs::remove_file(&copy).unwrap();
            assert!(status.unwrap().success());
        }
    });
}

/// H26: a forkserver that does not answer is waited for within the bound; when it goes on, what
/// nobody waits for is not forked.
#[test]
fn a_silent_forkserver_costs_one_bound_and_leaves_no_child() {
    isolated("a_silent_forkserver_costs_one_bound_and_leaves_no_child", || {
        let request = Duration::from_millis(200);
        let server = Forkserver::start(Bounds { request, ..Bounds::default() }).unwrap();
        quits(&server.fork());
        let forkserver = Pidfd::open(server.pid()).unwrap();
        forkserver.send_signal(libc::SIGSTOP).unwrap();
        let since = Instant::now();
        let error = spawn(&server.fork(), Spec::main("hang")).map(drop).unwrap_err();
        assert!(matches!(error, SpawnError::Unanswered { .. }), "{error:?}");
        assert!(since.elapsed() >= request);
        assert!(since.elapsed() < request * 3, "{:?}", since.elapsed());
        forkserver.send_signal(libc::SIGCONT).unwrap();
        // Each fork is counted in its mark: that one was never made.
        assert_eq!(answer(&server.fork(), Spec::main("mark")), "2");
        has_no_children(&server);
    });
}

/// The longest payload that is promised arrives on both backends; more than a request can hold is
/// a typed error.
#[test]
fn the_longest_payload_arrives_and_a_longer_one_is_refused() {
    isolated("the_longest_payload_arrives_and_a_longer_one_is_refused", || {
        let server = start();
        for backend in [&server.fork() as &dyn Backend, &server.exec()] {
            let text = answer(backend, Spec::main("length").payload(vec![0xff; 64 * 1024]));
            assert_eq!(text, "65536");
            // Longer than a message.
            let text = answer(backend, Spec::main("length").payload(vec![0xff; 4 << 20]));
            assert_eq!(text, (4 << 20).to_string());
            let spec = Spec::main("length").payload(vec![0; 8 << 20]);
            let error = spawn(backend, spec).map(drop).unwrap_err();
            assert!(matches!(error, SpawnError::TooLarge { .. }), "{error:?}");
        }
        has_no_children(&server);
    });
}

/// C10: the forkserver keeps nothing of children that are gone.
#[test]
fn two_thousand_children_leave_the_forkserver_as_it_was() {
    isolated("two_thousand_children_leave_the_forkserver_as_it_was", || {
        let server = start();
        let resident = || {
            let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let some = |count: usize| {
            block_on(async {
                for _ in 0..count / 20 {
                    let quit = || Spec::main("quit").stdout(Stdio::Null).stderr(Stdio::Null);
                    let spawning: Vec<_> = (0..20).map(|_| server.fork().spawn(quit())).collect();
                    for child in spawning {
                        assert_eq!(child.await.unwrap().wait().await.unwrap(), Exit::Code(3));
                    }
                }
            });
        };
        some(200);
        let (fds, before) = (fds_of(server.pid()), resident());
        some(2000);
        settles(|| fds_of(server.pid()) == fds);
        let after = resident();
        assert!(after < before + 256, "{before} to {after} KiB");
        has_no_children(&server);
    });
}
