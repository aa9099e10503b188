//! Scenarios 56 and 58 with a real terminal: the tree is the foreground job of a session whose
//! terminal is a pty, and what is typed is written into its master.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::fs::{File, OpenOptions};
use std::future::pending;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio as Std};
use std::time::Duration;

use hatchery::{Config, Error, Runtime, Stdio, nursery};
use hatchery_spawn::Pidfd;
use hatchery_testkit::isolate;
use hatchery_tests::{BUDGET, came_down, here};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc::{SIGCONT, SIGHUP, SIGINT};

/// Catches hangs only.
const HANG: Duration = Duration::from_secs(60);
/// Said by the job when it is up.
const UP: &str = "the tree is up";
/// Set in the job.
const JOB: &str = "HATCHERY_TESTS_JOB";
const CTRL_C: &[u8] = b"\x03";
const CTRL_Z: &[u8] = b"\x1a";

#[hatchery::function]
async fn square(x: u64) -> u64 {
    x * x
}

/// Has one below it that says whether it is there.
#[hatchery::function]
async fn square_below(x: u64) -> Result<u64, Error> {
    let squared = nursery(async |n| {
        let leaf = n.start("leaf").await?;
        Ok(leaf.call(square(x)).await?)
    });
    Ok(squared.await?)
}

/// A job in the foreground of a session of its own.
struct Job {
    process: Pidfd,
    program: std::process::Child,
    /// What is written here was typed. Dropped, the terminal is gone.
    keyboard: File,
    screen: BufReader<File>,
}

impl Job {
    /// This test once more, on a terminal; it has said that its tree is up.
    fn start(test: &str) -> Self {
        let pty = nix::pty::openpty(None, None).unwrap();
        // A job that held it would keep its own terminal open.
        fcntl(&pty.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        let name = test.split_once("::").unwrap().1;
        #[allow(clippy::disallowed_types, reason = "it must not be an actor")]
        let program = Command::new("/proc/self/exe")
            .args([name, "--exact", "--nocapture", "--test-threads=1"])
            .env(JOB, "1")
            .stdin(pty.slave)
            .stdout(Std::piped())
            .spawn();
        let mut program = program.unwrap();
        let process = Pidfd::open(program.id()).unwrap();
        let screen = File::from(OwnedFd::from(program.stdout.take().unwrap()));
        let mut job =
            Self { process, program, keyboard: pty.master.into(), screen: BufReader::new(screen) };
        job.shows(UP);
        job
    }

    /// Waits until it says that.
    fn shows(&mut self, what: &str) {
        let mut line = String::new();
        while !line.contains(what) {
            line.clear();
            assert!(self.screen.read_line(&mut line).unwrap() > 0, "it ended before: {what}");
        }
    }

    fn types(&mut self, what: &[u8]) {
        self.keyboard.write_all(what).unwrap();
    }

    fn ends_with(mut self, status: i32) {
        assert!(self.process.wait_dead(HANG), "it is still there");
        assert_eq!(self.program.wait().unwrap().code(), Some(status));
    }
}

/// Makes this process the leader of a session with its stdin as the terminal, and its foreground.
fn take_terminal() {
    let stdin = std::io::stdin();
    nix::unistd::setsid().unwrap();
    let name = nix::unistd::ttyname(&stdin).unwrap();
    // It becomes the terminal of a session that has none, by being opened, and stays that.
    drop(OpenOptions::new().read(true).write(true).open(name).unwrap());
    assert_eq!(nix::unistd::tcgetpgrp(&stdin).unwrap(), nix::unistd::getpgrp());
}

/// Plays `outside` against `job`, in a process that must leave nothing.
fn play<F: Future>(test: &str, outside: impl FnOnce(Job), job: impl FnOnce() -> F) {
    if std::env::var_os(JOB).is_some() {
        take_terminal();
        isolate::block_on(job());
        return;
    }
    isolate::run_test(test, HANG * 2, || outside(Job::start(test)));
}

/// Three actors below the root, one of them below another; `told` when they are up.
async fn tree(told: &str) {
    let config = Config::with_budget(BUDGET);
    let runtime = Runtime::builder().config(config).stdio(Stdio::Null).open().unwrap();
    let down: Result<(), _> = runtime
        .nursery(async |n| {
            let (one, two) = (n.start("one").await?, n.start("two").await?);
            one.call(square_below(7)).await?;
            two.call(square(7)).await?;
            println!("{told}");
            pending().await
        })
        .await;
    drop(came_down(down));
    runtime.close().await;
}

/// Scenario 56: Ctrl-C at a terminal is the root's alone; who works goes on working.
#[test]
fn a_ctrl_c_that_is_typed_reaches_no_actor() {
    let typed = |mut job: Job| {
        job.types(CTRL_C);
        job.ends_with(0);
    };
    play(here!(), typed, async || {
        let config = Config::with_budget(BUDGET);
        let runtime = Runtime::builder().config(config).stdio(Stdio::Null);
        let runtime = runtime.signals(false).open().unwrap();
        let ours = hatchery_spawn::signals::install(&[SIGINT]).unwrap();
        let worked = runtime.nursery(async |n| {
            let (one, two) = (n.start("one").await?, n.start("two").await?);
            one.call(square_below(7)).await?;
            println!("{UP}");
            assert_eq!(ours.recv(Some(HANG)), Some(SIGINT));
            // Who got it too would have died of it: nobody else handles it.
            Ok((one.call(square_below(8)).await?, two.call(square(9)).await?))
        });
        assert_eq!(worked.await.unwrap(), (64, 81));
        runtime.close().await;
    });
}

/// Scenario 56, C6: the tree comes down by the root's cascade.
#[test]
fn a_ctrl_c_that_is_typed_takes_the_tree_down() {
    let typed = |mut job: Job| {
        job.types(CTRL_C);
        job.ends_with(128 + SIGINT);
    };
    play(here!(), typed, || tree(UP));
}

/// Scenario 58: the terminal is closed.
#[test]
fn a_terminal_that_is_closed_takes_the_tree_down() {
    let closed = |job: Job| {
        let Job { process, program, keyboard, screen } = job;
        drop(keyboard);
        // Its other end, as a terminal's screen.
        let kept = OpenOptions::new().write(true).open("/dev/null").unwrap();
        Job { process, program, keyboard: kept, screen }.ends_with(128 + SIGHUP);
    };
    play(here!(), closed, || tree(UP));
}

/// Scenario 58: Ctrl-Z stops root and actors, and what continues the root continues all.
#[test]
fn a_ctrl_z_that_is_typed_stops_the_tree_until_it_is_continued() {
    let typed = |mut job: Job| {
        let root = hatchery_testkit::dump::Process::of(job.program.id()).unwrap();
        let all: Vec<u32> = root.flatten().iter().map(|process| process.pid).collect();
        assert!(all.len() >= 4, "{all:?}");
        job.types(CTRL_Z);
        // Nobody tells who is stopped; the forkserver needs not be.
        let is_stopped = |pid: &u32| state(*pid) == Some('T');
        while all.iter().filter(|pid| is_stopped(pid)).count() < all.len() - 1 {
            std::thread::yield_now();
        }
        job.process.send_signal(SIGCONT).unwrap();
        while all.iter().any(is_stopped) {
            std::thread::yield_now();
        }
        job.types(CTRL_C);
        job.ends_with(128 + SIGINT);
    };
    play(here!(), typed, || tree(UP));
}

fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}
