//! The shape of `std::process`: what a program written for that expects of it, said in our own words.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use common::{BOUND, block_on, isolated, rooted};
use hatchery_spawn::process::blocking::{Child, Command, Ended, Output, Overflow, Stdio};
use hatchery_spawn::{Pidfd, process};
use nix::libc;

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// `cat` between two pipes.
fn cat() -> Child {
    Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// A conversation over both pipes; a wait closes a stdin that nobody took, and gives the same status again.
#[test]
fn a_thread_talks_with_a_program() {
    let mut child = cat();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for count in 0..100 {
        writeln!(stdin, "line {count}").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), format!("line {count}"));
    }
    drop(stdin);
    assert!(lines.next().is_none());
    assert!(child.wait().unwrap().success());
    let mut child = cat();
    assert_eq!(child.try_wait().unwrap(), None);
    assert!(child.wait().unwrap().success() && child.wait().unwrap().success());
    child.kill().unwrap();
}

/// Statuses, errors and defaults are those of std: `output` has no stdin, and leaves alone what was said.
#[test]
fn statuses_and_defaults_are_those_of_std() {
    assert_eq!(sh("exit 42").status().unwrap().code(), Some(42));
    let mut killed = cat();
    assert!(killed.id() > 0);
    killed.kill().unwrap();
    assert_eq!(killed.wait().unwrap().signal(), Some(libc::SIGKILL));
    let output = sh("cat; echo out; echo err >&2").output().unwrap();
    assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(output.ended, Ended::Exited);
    assert_eq!(sh("echo x").stdout(Stdio::null()).output().unwrap().stdout, b"");
    for error in [Command::new("/no").spawn().map(drop), Command::new("/no").output().map(drop)] {
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }
    let mut command = Command::from(std::process::Command::new("true"));
    assert_eq!(command.get_program(), "true");
    assert!(command.status().unwrap().success());
    let command = process::Command::from(command.clone());
    assert_eq!(command.get_args().len(), 0);
}

/// Both outputs are read at once, in the call and of a child that runs.
#[test]
fn two_large_outputs_hold_up_no_thread() {
    let script = "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero";
    let sizes = |output: Output| (output.stdout.len(), output.stderr.len());
    assert_eq!(sizes(sh(script).output().unwrap()), (600_000, 300_000));
    let mut command = sh(script);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(sizes(child.wait_with_output().unwrap()), (600_000, 300_000));
}

/// One program's stdout is the next one's stdin, without a step between.
#[test]
fn ends_go_from_program_to_program_without_a_runtime() {
    let mut first = sh("echo one; echo two").stdout(Stdio::piped()).spawn().unwrap();
    let output = Command::new("wc").arg("-l").stdin(first.stdout.take().unwrap()).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "2");
    assert!(first.wait().unwrap().success());
    // One of std's too.
    let mut first = std::process::Command::new("echo");
    let mut first = first.arg("x").stdout(std::process::Stdio::piped()).spawn().unwrap();
    let output = Command::new("cat").stdin(first.stdout.take().unwrap()).output().unwrap();
    assert_eq!(output.stdout, b"x\n");
    first.wait().unwrap();
}

/// Time-outs and bounds need no runtime of the caller.
#[test]
fn bounds_hold_without_a_runtime() {
    isolated("bounds_hold_without_a_runtime", || {
        let time = Duration::from_secs(2);
        let output = sh("echo early; sleep 1000; echo late").timeout(time).output().unwrap();
        assert_eq!((output.ended, &*output.stdout), (Ended::TimedOut, &b"early\n"[..]));
        let error = sh("trap 'exit 4' TERM; sleep 1000 & wait").timeout(time).grace(BOUND).status();
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let output = Command::new("yes").max_output(1000, Overflow::End).output().unwrap();
        assert_eq!((output.ended, output.stdout.len()), (Ended::Truncated, 1000));
    });
}

/// A thread that drives a runtime is blocked as by std's, and nothing else happens to it.
#[test]
fn a_thread_of_a_runtime_may_call_it() {
    block_on(async {
        assert!(sh("true").timeout(BOUND).status().unwrap().success());
        assert_eq!(sh("echo x").output().unwrap().stdout, b"x\n");
        assert!(cat().wait_with_output().unwrap().status.success());
    });
}

/// Many threads start programs at once, each gets what is its own, and its end is none of a program's.
#[test]
fn threads_start_programs_at_once() {
    isolated("threads_start_programs_at_once", || {
        let children: Vec<Child> = std::thread::scope(|scope| {
            let of = |number: usize| {
                move || {
                    for round in 0..20 {
                        let said = format!("{number} {round}\n");
                        let output = sh("echo $0 $1; exit $0");
                        let output = { output }
                            .args([number.to_string(), round.to_string()])
                            .output()
                            .unwrap();
                        assert_eq!(String::from_utf8(output.stdout).unwrap(), said);
                        assert_eq!(output.status.code(), i32::try_from(number).ok());
                    }
                    cat()
                }
            };
            let threads: Vec<_> = (0..16).map(|number| scope.spawn(of(number))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for mut child in children {
            child.stdin.as_mut().unwrap().write_all(b"lives").unwrap();
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.stdout, b"lives");
        }
    });
}

/// A process that exits takes its programs with it, whoever holds them, and what they have started.
#[test]
fn nothing_outlives_the_exit_of_its_process() {
    let scenario = || {
        let mut command = sh("sleep 1000 & echo $$ $!; wait");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let kept = command.kill_on_drop(false).stdout(Stdio::null()).spawn().unwrap();
        for pid in line.split_whitespace() {
            common::say(pid);
        }
        common::say(kept.id());
        drop(kept);
        std::mem::forget(child);
        let mut end = String::new();
        io::stdin().read_to_string(&mut end).unwrap();
        std::process::exit(0);
    };
    rooted("nothing_outlives_the_exit_of_its_process", scenario, |root| {
        let programs = [root.pid(), root.pid(), root.pid()];
        drop(root.process.stdin.take());
        assert!(root.pidfd.wait_dead(BOUND));
        assert!(programs.iter().all(|program: &Pidfd| program.wait_dead(BOUND)));
    });
}

/// Three hundred starts of each kind leave no fd and no thread behind.
#[test]
fn many_blocking_starts_leave_nothing() {
    isolated("many_blocking_starts_leave_nothing", || {
        let held = || {
            let names = |dir: &str| {
                let mut names: Vec<_> =
                    std::fs::read_dir(dir).unwrap().map(|it| it.unwrap().file_name()).collect();
                names.sort();
                names
            };
            (names("/proc/self/fd"), names("/proc/self/task"))
        };
        let round = || {
            assert_eq!(sh("echo x").output().unwrap().stdout, b"x\n");
            assert!(sh("true").status().unwrap().success());
            let mut child = cat();
            child.kill().unwrap();
            child.wait().unwrap();
            Command::new("/nowhere").stdin(Stdio::piped()).spawn().unwrap_err();
        };
        round();
        let before = held();
        (0..300).for_each(|_| round());
        assert_eq!(held(), before);
    });
}

/// A pipeline needs no runtime either.
#[test]
fn a_thread_waits_for_a_pipeline() {
    let pipeline = sh("echo b; echo a; exit 3").pipe(Command::new("sort"));
    let output = pipeline.clone().pipe(Command::new("cat")).output().unwrap();
    assert_eq!((&*output.stdout, &output.ended), (&b"a\nb\n"[..], &Ended::Exited));
    let codes = |statuses: &[std::process::ExitStatus]| {
        statuses.iter().map(|status| status.code().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(codes(&output.statuses), [3, 0, 0]);
    let mut last = Command::new("sort");
    let statuses = sh("exit 3").pipe(last.stdout(Stdio::null())).timeout(BOUND).status().unwrap();
    assert_eq!(codes(&statuses), [3, 0]);
}
