//! Faults of `docs/faults.md` that no other file here stands for: deaths at named moments, calls
//! that fail in the forkserver or in a step of a birth, limits of the machine.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{BOUND, block_on, isolated, line, park, process, rooted, say, say_whole, spawn, tell};
use hatchery_spawn::{
    Access, Backend, Birth, Bounds, Child, ChildId, Confinement, Exit, Forkserver, Main, Pidfd,
    Resource, SpawnError, Spec, Stdio, Step, SyscallFilter, inventory,
};
use nix::sys::resource::{Resource as Limit, getrlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

inventory::submit! { Main { name: "hang", run: |_| park() } }
inventory::submit! { Main { name: "quit", run: |_| 3 } }
inventory::submit! { Main { name: "stamp", run: stamp } }
inventory::submit! { Main { name: "clock", run: clock } }
inventory::submit! { Main { name: "become", run: becomes } }
inventory::submit! { Main { name: "daemon", run: daemon } }
inventory::submit! { Main { name: "complain", run: complain } }

/// Says on its channel that it has come to code of ours.
fn stamp(birth: Birth) -> i32 {
    let mut channel = birth.channel.unwrap();
    tell(&mut channel, "here");
    park()
}

/// Becomes another program, behind everybody's back.
/// Says when its code begins, on the stdout that it shares with its root.
fn clock(_: Birth) -> i32 {
    say_whole(monotonic().as_nanos());
    park()
}

/// A clock that all processes share.
fn monotonic() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap().into()
}

fn becomes(birth: Birth) -> i32 {
    use std::os::unix::process::CommandExt as _;
    tell(&mut birth.channel.as_ref().unwrap().try_clone().unwrap(), "soon");
    panic!("{}", Command::new("sleep").arg("1000").exec());
}

/// Leaves a copy of itself behind, in a session of its own.
fn daemon(birth: Birth) -> i32 {
    #[allow(unsafe_code, reason = "the scenario is a raw fork")]
    // SAFETY: this process has one thread.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            nix::unistd::setsid().unwrap();
            tell(&mut birth.channel.unwrap(), std::process::id());
            park()
        }
        nix::unistd::ForkResult::Parent { child } => {
            // The copy has said so when its session is there.
            while nix::unistd::getsid(Some(child)) != Ok(child) {
                std::thread::yield_now();
            }
            0
        }
    }
}

/// Writes where nothing can be written, then panics.
fn complain(_: Birth) -> i32 {
    use std::io::Write as _;
    for _ in 0..1_000 {
        let _full = writeln!(std::io::stdout(), "{}", "x".repeat(100));
        let _full = writeln!(std::io::stderr(), "{}", "x".repeat(100));
    }
    panic!("as asked");
}

fn start() -> Forkserver {
    Forkserver::start(Bounds::default()).unwrap()
}

fn quits(backend: &dyn Backend) {
    let (child, _channel) = spawn(backend, Spec::main("quit")).unwrap();
    assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(3));
}

fn call(error: SpawnError) -> (String, i32) {
    let SpawnError::Call { call, cause, .. } = error else { panic!("{error:?}") };
    (call, cause.raw_os_error().unwrap())
}

/// Faults 1 and 2: the root's SIGKILL, with that many spawns asked for, and waited for or not. The
/// forkserver may be stopped meanwhile, so that it finds them all when the root is dead.
fn root_with(test: &str, count: usize, wait: bool, stopped: bool) {
    rooted(
        test,
        || {
            // It is told: in there every round is the first.
            let mut told = String::new();
            std::io::stdin().read_line(&mut told).unwrap();
            let told: Vec<&str> = told.split_whitespace().collect();
            let [count, wait, stopped] = told[..] else { panic!("{told:?}") };
            let (count, wait): (usize, bool) = (count.parse().unwrap(), wait.parse().unwrap());
            let stopped = stopped.parse().unwrap();
            let server = start();
            say(server.pid());
            let forkserver = Pidfd::open(server.pid()).unwrap();
            quits(&server.fork());
            if stopped {
                forkserver.send_signal(libc::SIGSTOP).unwrap();
            }
            let asked: Vec<_> = (0..count)
                .map(|_| server.fork().spawn(Spec::main("hang").stdout(Stdio::Null)))
                .collect();
            let mut children = Vec::new();
            if wait {
                children.extend(asked.into_iter().map(|asked| block_on(asked).unwrap()));
            }
            say("up");
            park();
        },
        |root| {
            root.hear(&format!("{count} {wait} {stopped}"));
            let server = root.pid();
            assert_eq!(root.line(), "up");
            root.pidfd.send_signal(libc::SIGKILL).unwrap();
            assert!(root.pidfd.wait_dead(BOUND));
            // The rest is looked at when this returns.
            assert!(server.wait_dead(Duration::from_secs(1)), "{count} {wait} {stopped}");
        },
    );
}

/// Fault 1: idle, with no actor, one and a hundred.
#[test]
fn sigkill_of_a_root_takes_any_number_of_actors() {
    for count in [0, 1, 100] {
        root_with("sigkill_of_a_root_takes_any_number_of_actors", count, true, false);
    }
}

/// Fault 2: with fifty spawns in flight.
#[test]
fn sigkill_of_a_root_with_spawns_in_flight_leaves_none_of_them() {
    let test = "sigkill_of_a_root_with_spawns_in_flight_leaves_none_of_them";
    for round in 0..10 {
        root_with(test, 50, false, round % 2 == 0);
    }
}

/// Fault 2: whoever of them is under way when the root dies reaches no code of a user's much later; on a
/// quiet machine within a few milliseconds.
#[test]
fn no_user_code_begins_long_after_the_death_of_its_root() {
    let test = "no_user_code_begins_long_after_the_death_of_its_root";
    let scenario = || {
        let server = start();
        quits(&server.fork());
        let clock = || Spec::main("clock").stdout(Stdio::Inherit);
        let _asked: Vec<_> = (0..50).map(|_| server.fork().spawn(clock())).collect();
        park()
    };
    for _ in 0..10 {
        rooted(test, scenario, |root| {
            // Some have begun, and the others are on their way.
            let first: u64 = root.line().parse().unwrap();
            root.pidfd.send_signal(libc::SIGKILL).unwrap();
            let died = monotonic();
            let begun: Vec<u64> = root.rest().iter().map(|line| line.parse().unwrap()).collect();
            let last = Duration::from_nanos(begun.iter().copied().max().unwrap_or(first));
            eprintln!("{} of 50, the last {:?} later", begun.len() + 1, last.saturating_sub(died));
            assert!(last < died + Duration::from_secs(1), "{last:?}, and it died at {died:?}");
        });
    }
}

/// Fault 6, H11: the root's main thread ends while others run: that is not the root's death.
#[test]
fn the_end_of_the_main_thread_is_not_the_end_of_the_root() {
    extern "C" fn leave(_: i32) {
        #[allow(unsafe_code, reason = "the scenario is a thread that ends like that")]
        // SAFETY: ends the calling thread at once; nobody joins the main thread.
        unsafe {
            libc::syscall(libc::SYS_exit, 0)
        };
    }
    let scenario = || {
        let own = std::process::id().cast_signed();
        if nix::unistd::gettid().as_raw() == own {
            // Here tests run on the main thread, which nobody could end and look on.
            eprintln!("skipped: this harness has no other thread");
            return say(DONE);
        }
        let server = start();
        let (child, mut channel) = spawn(&server.fork(), Spec::main("stamp")).unwrap();
        assert_eq!(line(&mut channel), "here");
        use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
        let action = SigAction::new(SigHandler::Handler(leave), SaFlags::empty(), SigSet::empty());
        #[allow(unsafe_code, reason = "as above")]
        // SAFETY: the handler makes one system call and doesn't return.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
        #[allow(unsafe_code, reason = "as above")]
        // SAFETY: only numbers are passed.
        unsafe {
            libc::syscall(libc::SYS_tgkill, own, own, libc::SIGUSR1)
        };
        let state = || fs::read_to_string(format!("/proc/{own}/task/{own}/stat")).unwrap();
        let until = Instant::now() + BOUND;
        while !state().contains(") Z ") {
            assert!(Instant::now() < until);
            std::thread::yield_now();
        }
        quits(&server.fork());
        assert!(!process(&child).is_dead());
        let forkserver = Pidfd::open(server.pid()).unwrap();
        server.close();
        assert!(forkserver.is_dead());
        say(DONE);
        // The harness waits on the thread that is gone.
        hatchery_spawn::exit_now(0);
    };
    let test = "the_end_of_the_main_thread_is_not_the_end_of_the_root";
    rooted(test, scenario, |root| {
        // The status says nothing: it is that of the main thread, also after a panic of the other.
        assert_eq!(root.line(), DONE);
        assert!(root.pidfd.wait_dead(BOUND));
    });
}

/// That a scenario has come to its end.
const DONE: &str = "done";

/// Fault 8: the forkserver dies between the fork and its answer: a typed error, and no child.
#[test]
fn sigkill_of_the_forkserver_between_fork_and_answer_leaves_no_child() {
    isolated("sigkill_of_the_forkserver_between_fork_and_answer_leaves_no_child", || {
        for backend in ["forkserver", "exec"] {
            // The first call after the fork: `setpgid` of the child by its parent.
            let other = condition(0, SeccompCmpOp::Ne, 0);
            let server = filtered(libc::SYS_setpgid, vec![other], SeccompAction::KillProcess);
            let error = if backend == "exec" {
                spawn(&server.exec(), Spec::main("hang")).map(drop).unwrap_err()
            } else {
                spawn(&server.fork(), Spec::main("hang")).map(drop).unwrap_err()
            };
            assert!(matches!(error, SpawnError::ServerGone { .. }), "{error:?}");
            block_on(server.lost());
            // That there is no child is seen from outside, when this process has ended.
        }
        quits(&start().fork());
    });
}

/// A call that each step of a birth makes, and nobody else after the forkserver is up.
fn steps() -> Vec<(Step, i64, Vec<SeccompCondition>)> {
    let is = |at, value: i32| condition(at, SeccompCmpOp::Eq, u64::from(value.cast_unsigned()));
    let core = i32::try_from(libc::RLIMIT_CORE).unwrap();
    let arms = vec![is(0, libc::PR_SET_PDEATHSIG), is(1, libc::SIGKILL)];
    vec![
        (Step::ParentDeathSignal, libc::SYS_prctl, arms),
        (Step::ProcessGroup, libc::SYS_setpgid, vec![is(0, 0)]),
        (Step::Fds, libc::SYS_dup3, vec![is(1, 3)]),
        (Step::FdScrub, libc::SYS_close_range, vec![]),
        // Only to set it.
        (
            Step::Limits,
            libc::SYS_prlimit64,
            vec![is(0, 0), is(1, core), condition(2, SeccompCmpOp::Ne, 0)],
        ),
        (Step::WorkingDirectory, libc::SYS_chdir, vec![]),
        (Step::ProcessName, libc::SYS_prctl, vec![is(0, libc::PR_SET_NAME)]),
        (Step::Nice, libc::SYS_setpriority, vec![]),
        (Step::CpuAffinity, libc::SYS_sched_setaffinity, vec![]),
        (Step::User, libc::SYS_setgroups, vec![]),
        (Step::NoNewPrivileges, libc::SYS_prctl, vec![is(0, libc::PR_SET_NO_NEW_PRIVS)]),
        (Step::Landlock, libc::SYS_landlock_create_ruleset, vec![]),
        (Step::Seccomp, libc::SYS_seccomp, vec![]),
        (Step::Exec, libc::SYS_memfd_create, vec![]),
        (Step::Exec, libc::SYS_execveat, vec![]),
    ]
}

/// A child that takes that step, and all that need no rights.
fn with_step(step: Step) -> Spec {
    let confinement = Confinement::new();
    #[allow(clippy::wildcard_enum_match_arm, reason = "every child takes the others")]
    let confinement = match step {
        Step::Nice => confinement.nice(1),
        Step::CpuAffinity => confinement.cpus([0]),
        Step::User => confinement.user(65534, 65534),
        Step::NoNewPrivileges => confinement.no_new_privs(),
        Step::Landlock => confinement.files([("/", Access::Execute)]),
        Step::Seccomp => confinement.syscalls(SyscallFilter::deny([libc::SYS_sync], 1)),
        _ => confinement,
    };
    Spec::main("quit").current_dir("/usr").limit(Resource::Core, 0, 0).confine(confinement)
}

/// Fault 11: a step that fails is named, by whichever backend, and no fd stays.
#[test]
fn each_step_of_a_birth_that_fails_is_named() {
    isolated("each_step_of_a_birth_that_fails_is_named", || {
        for (expected, number, rule) in steps() {
            let errno = libc::EIO;
            let server = filtered(number, rule, SeccompAction::Errno(errno.cast_unsigned()));
            let before = fds_when_up(&server);
            for _ in 0..5 {
                let error = spawn(&server.exec(), with_step(expected)).map(drop).unwrap_err();
                let SpawnError::Step { step, cause, .. } = error else { panic!("{error:?}") };
                assert_eq!((step, cause.raw_os_error()), (expected, Some(errno)));
                if expected == Step::Exec {
                    quits(&server.fork());
                    continue;
                }
                // Who has something that may not be had is waited for until that is known.
                let found = match spawn(&server.fork(), with_step(expected)) {
                    Err(SpawnError::Step { step, cause, .. }) => (step, cause.raw_os_error()),
                    Err(error) => panic!("{error:?}"),
                    Ok((child, _channel)) => {
                        assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(127));
                        let failure = child.handle().birth_failure().unwrap();
                        (failure.step, failure.errno)
                    }
                };
                assert_eq!(found, (expected, Some(errno)));
            }
            settles_at(&server, before);
        }
    });
}

/// Fault 11: a child that is killed in a step of its birth is known by its signal and the step; no fd
/// stays, and the next child is born. A death in the exec itself is known by its signal alone.
#[test]
fn a_death_in_each_step_of_a_birth_is_told_by_signal_and_step() {
    isolated("a_death_in_each_step_of_a_birth_is_told_by_signal_and_step", || {
        // The forkserver itself takes a name like that of a child.
        let steps = steps().into_iter().filter(|(step, ..)| *step != Step::ProcessName);
        for (step, number, rule) in steps {
            let server = filtered(number, rule, SeccompAction::KillProcess);
            let before = fds_when_up(&server);
            for backend in [&server.exec() as &dyn Backend, &server.fork()] {
                if step == Step::Exec && backend.name() == "forkserver" {
                    quits(backend);
                    continue;
                }
                eprintln!("{step:?} by {}", backend.name());
                let (child, mut channel) = spawn(backend, with_step(step)).unwrap();
                let exit = block_on(child.wait()).unwrap();
                assert_eq!(exit.signal(), Some(libc::SIGSYS), "{step:?}");
                let failure = child.handle().birth_failure();
                let died_in = (number != libc::SYS_execveat).then_some((step, None));
                assert_eq!(failure.map(|failure| (failure.step, failure.errno)), died_in);
                let mut said = Vec::new();
                channel.read_to_end(&mut said).unwrap();
                assert!(said.is_empty());
            }
            settles_at(&server, before);
        }
        quits(&start().fork());
    });
}

/// Fault 14: an actor that becomes another program loses its channel, and stays a child like any.
#[test]
fn an_actor_that_becomes_another_program_is_still_ours() {
    isolated("an_actor_that_becomes_another_program_is_still_ours", || {
        let server = start();
        for backend in [&server.fork() as &dyn Backend, &server.exec()] {
            let (child, mut channel) = spawn(backend, Spec::main("become")).unwrap();
            assert_eq!(line(&mut channel), "soon");
            assert_eq!(line(&mut channel), "", "the channel is closed");
            assert!(!process(&child).is_dead(), "the program runs");
            child.kill().unwrap();
            assert_eq!(block_on(child.wait()).unwrap().signal(), Some(libc::SIGKILL));
        }
    });
}

/// Fault 15: an actor that leaves a daemon behind has returned; the daemon goes with the tree.
#[test]
fn a_daemon_that_an_actor_leaves_goes_with_the_tree() {
    isolated("a_daemon_that_an_actor_leaves_goes_with_the_tree", || {
        let server = start();
        let (child, mut channel) = spawn(&server.fork(), Spec::main("daemon")).unwrap();
        let daemon = Pidfd::open(line(&mut channel).parse().unwrap()).unwrap();
        assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(0));
        server.close();
        assert!(daemon.is_dead());
    });
}

/// Fault 30: no memory for a fork: named, after a few tries, and the forkserver lives.
#[test]
fn a_fork_without_memory_is_a_typed_error() {
    isolated("a_fork_without_memory_is_a_typed_error", || {
        let no_memory = SeccompAction::Errno(libc::ENOMEM.cast_unsigned());
        let server = filtered(libc::SYS_clone, vec![], no_memory);
        let forkserver = Pidfd::open(server.pid()).unwrap();
        for backend in [&server.fork() as &dyn Backend, &server.exec()] {
            let since = Instant::now();
            let error = spawn(backend, Spec::main("quit")).map(drop).unwrap_err();
            assert_eq!(call(error), ("fork".to_owned(), libc::ENOMEM));
            assert!(since.elapsed() >= Duration::from_millis(31), "it was tried again");
        }
        assert!(!forkserver.is_dead() && !server.is_lost());
    });
}

/// Fault 37: too many fds on their way: those that don't fit wait for those that landed.
#[test]
fn too_many_fds_on_their_way_wait_for_each_other() {
    isolated("too_many_fds_on_their_way_wait_for_each_other", || {
        // The limit doesn't bind root; it is the soft one of open files, for all of a user.
        if !common::become_nobody() {
            return;
        }
        let (_, hard) = getrlimit(Limit::RLIMIT_NOFILE).unwrap();
        let server = start();
        quits(&server.fork());
        setrlimit(Limit::RLIMIT_NOFILE, 300, hard).unwrap();
        let null = OwnedFd::from(fs::File::open("/dev/null").unwrap());
        let crowded = || {
            let spec = Spec::main("quit").stdout(Stdio::Null).stderr(Stdio::Null);
            (0..40).fold(spec, |spec, _| spec.fd(null.try_clone().unwrap()))
        };
        // What is sent is closed here and stays on its way: seven requests fit.
        let forkserver = Pidfd::open(server.pid()).unwrap();
        forkserver.send_signal(libc::SIGSTOP).unwrap();
        let asked: Vec<_> = (0..12).map(|_| server.fork().spawn(crowded())).collect();
        forkserver.send_signal(libc::SIGCONT).unwrap();
        block_on(async {
            for child in asked {
                let child: Child = child.await.unwrap();
                assert_eq!(child.wait().await.unwrap(), Exit::Code(3));
            }
        });
    });
}

/// Fault 39: where an actor writes there is no room, or nobody: that is not its end.
#[test]
fn output_that_has_no_room_is_not_the_end_of_an_actor() {
    isolated("output_that_has_no_room_is_not_the_end_of_an_actor", || {
        let server = start();
        let full = || fs::File::options().write(true).open("/dev/full").unwrap().into();
        let closed = || std::io::pipe().unwrap().1.into();
        for backend in [&server.fork() as &dyn Backend, &server.exec()] {
            for nowhere in [&full as &dyn Fn() -> OwnedFd, &closed] {
                let spec = Spec::main("complain").stdout(Stdio::Fd(nowhere()));
                let child = block_on(backend.spawn(spec.stderr(Stdio::Fd(nowhere())))).unwrap();
                // A panic like any other: what it has to say about it goes nowhere.
                assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(101));
            }
        }
    });
}

/// Fault 41, H18: numbers are given out again many times over while handles of the dead are still
/// signalled, dropped and waited for: no stranger is ever hit.
#[test]
fn numbers_that_are_given_out_again_hit_no_stranger() {
    const INSIDE: &str = "HATCHERY_TEST_INSIDE";
    let test = "numbers_that_are_given_out_again_hit_no_stranger";
    isolated(test, || {
        if std::env::var_os(INSIDE).is_some() {
            return few_numbers();
        }
        let own: Vec<u32> = fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap()
            .split(['.', '-'])
            .map_while(|part| part.parse().ok())
            .collect();
        if own < vec![6, 14] {
            return eprintln!("skipped: before Linux 6.14 a namespace has no `pid_max` of its own");
        }
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("not tested: only the superuser makes such a namespace");
        }
        let status = Command::new("unshare")
            .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
            .arg(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(INSIDE, "1")
            .status()
            .unwrap();
        assert!(status.success());
    });
}

/// In a namespace with a hundred numbers.
fn few_numbers() {
    fs::write("/proc/sys/kernel/pid_max", "401").unwrap();
    let server = start();
    let sleeps = || Command::new("sleep").arg("1000").spawn().unwrap();
    let mut strangers: Vec<_> = (0..5).map(|_| sleeps()).collect();
    let mut numbers = std::collections::BTreeMap::<u32, usize>::new();
    let mut dead = std::collections::VecDeque::new();
    block_on(async {
        for round in 0..10_000 {
            let spec = Spec::main(if round % 2 == 0 { "quit" } else { "hang" });
            let child = server.fork().spawn(spec.stdout(Stdio::Null)).await.unwrap();
            let ChildId::Process(pid) = child.id() else { panic!("a thread") };
            *numbers.entry(pid).or_default() += 1;
            if round % 2 == 1 {
                child.kill().unwrap();
            }
            child.wait().await.unwrap();
            dead.push_back(child);
            if round % 100 == 50 {
                // Strangers come and go too, so that they get the numbers of our dead.
                let mut gone = strangers.remove(0);
                gone.kill().unwrap();
                gone.wait().unwrap();
                strangers.push(sleeps());
            }
            for child in &dead {
                child.kill().unwrap();
            }
            if dead.len() > 50 {
                dead.pop_front();
            }
        }
    });
    // The first 300 are given out once only.
    assert!(numbers.range(300..).all(|(_, times)| *times > 5), "{numbers:?}");
    for stranger in &mut strangers {
        assert_eq!(stranger.try_wait().unwrap(), None, "it lives");
    }
    no_number_is_left(&server);
    for mut stranger in strangers {
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}

/// Fault 29: all numbers are given out.
fn no_number_is_left(server: &Forkserver) {
    let mut living = Vec::new();
    let error = loop {
        match spawn(&server.fork(), Spec::main("hang")) {
            Ok(child) => living.push(child),
            Err(error) => break error,
        }
        assert!(living.len() < 401);
    };
    assert_eq!(call(error), ("fork".to_owned(), libc::EAGAIN));
    let (child, _channel) = living.pop().unwrap();
    child.kill().unwrap();
    block_on(child.wait()).unwrap();
    quits(&server.fork());
    assert!(living.iter().all(|(child, _)| !process(child).is_dead()), "others live");
}

fn fds(server: &Forkserver) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count()
}

/// Fds of a forkserver that has answered once. Some of these may be about to be closed.
fn fds_when_up(server: &Forkserver) -> usize {
    drop(spawn(&server.exec(), with_step(Step::Exec)));
    fds(server)
}

/// Waits until a forkserver holds no more than so many fds: what came with a request is closed
/// after the answer.
fn settles_at(server: &Forkserver, most: usize) {
    let until = Instant::now() + BOUND;
    while fds(server) > most {
        assert!(Instant::now() < until, "{} fds, {most} before", fds(server));
        std::thread::yield_now();
    }
}

fn condition(at: u8, operator: SeccompCmpOp, value: u64) -> SeccompCondition {
    SeccompCondition::new(at, SeccompCmpArgLen::Dword, operator, value).unwrap()
}

/// A forkserver for which, from before its first fork on, a call does something else if all
/// conditions hold; and for all that is forked from it.
fn filtered(call: i64, conditions: Vec<SeccompCondition>, action: SeccompAction) -> Forkserver {
    let rules = match conditions[..] {
        [] => vec![],
        [..] => vec![SeccompRule::new(conditions).unwrap()],
    };
    let filter = SeccompFilter::new(
        [(call, rules)].into_iter().collect(),
        SeccompAction::Allow,
        action,
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    let words: Vec<String> = program
        .iter()
        .map(|line| format!("{},{},{},{}", line.code, line.jt, line.jf, line.k))
        .collect();
    // To the preload below, in the forkserver alone.
    #[allow(unsafe_code, reason = "an environment is inherited or nothing")]
    // SAFETY: no other thread of a scenario looks at the environment meanwhile.
    unsafe {
        std::env::set_var(FILTER, words.join(" "));
    }
    // It has its copy when this returns.
    let server = start();
    #[allow(unsafe_code, reason = "as above")]
    // SAFETY: as above.
    unsafe {
        std::env::remove_var(FILTER);
    }
    server
}

hatchery_spawn::preload!(install_filter);

fn install_filter() {
    let Ok(text) = std::env::var(FILTER) else { return };
    let program: BpfProgram = text
        .split(' ')
        .map(|line| {
            let numbers: Vec<u32> = line.split(',').map(|part| part.parse().unwrap()).collect();
            seccompiler::sock_filter {
                code: numbers[0].try_into().unwrap(),
                jt: numbers[1].try_into().unwrap(),
                jf: numbers[2].try_into().unwrap(),
                k: numbers[3],
            }
        })
        .collect();
    seccompiler::apply_filter_all_threads(&program).unwrap();
}

const FILTER: &str = "HATCHERY_TEST_FILTER";
