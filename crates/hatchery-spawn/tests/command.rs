//! Programs, as `tokio::process::Command` would run them.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use common::{block_on, isolated, process};
use hatchery_spawn::{Bounds, Command, Exit, Forkserver, Stdio, thread_count};

fn out(command: Command) -> String {
    let output = block_on(command.output()).unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// Environment and directory are ours at the time of the start, changed as asked.
#[test]
fn environment_and_directory_are_ours_at_the_time_of_the_start() {
    isolated("environment_and_directory_are_ours_at_the_time_of_the_start", || {
        // The forkserver is up before the directory changes.
        out(Command::new("true"));
        std::env::set_current_dir("/usr").unwrap();
        assert_eq!(out(Command::new("pwd")), "/usr");
        assert_eq!(out(Command::new("pwd").current_dir("lib")), "/usr/lib");
        assert_eq!(out(Command::new("pwd").current_dir("/")), "/");
        let path = std::env::var("PATH").unwrap();
        let echo = || Command::new("sh").args(["-c", "echo \"$A,$B,$PATH\""]);
        assert_eq!(out(echo().env("A", "1").envs([("B", "2")])), format!("1,2,{path}"));
        assert_eq!(out(echo().env("A", "1").env_remove("A")), format!(",,{path}"));
        let bare = Command::new("/usr/bin/env").env("A", "0").env_clear().env("B", "2");
        let bare = out(bare);
        // Names alone: values are nobody's business in a test's output.
        let names = bare.lines().filter_map(|line| Some(line.split_once('=')?.0));
        let names: Vec<_> = names.filter(|name| !name.starts_with("HATCHERY_")).collect();
        assert_eq!(names, ["B"]);
    });
}

/// Pipes carry more than they hold, both ways at once.
#[test]
fn both_outputs_come_back_whole() {
    let script = "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; exit 3";
    let output = block_on(Command::new("sh").args(["-c", script]).output()).unwrap();
    assert_eq!((output.stdout.len(), output.stderr.len()), (1_000_000, 1_000_000));
    assert_eq!(output.status, Exit::Code(3));
}

/// A piped stdin reaches the program, and its closing too.
#[test]
fn a_piped_stdin_reaches_the_program() {
    let cat = Command::new("cat").stdin(Stdio::Piped).stdout(Stdio::Piped);
    let mut child = block_on(cat.spawn()).unwrap();
    let mut stdin = std::fs::File::from(child.take_stdin().unwrap());
    stdin.write_all(b"hello").unwrap();
    drop(stdin);
    let mut text = String::new();
    std::fs::File::from(child.take_stdout().unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(0));
}

/// A future that is dropped leaves no program behind.
#[test]
fn a_dropped_status_kills_the_program() {
    isolated("a_dropped_status_kills_the_program", || {
        let child = block_on(Command::new("sleep").arg("1000").spawn()).unwrap();
        let pidfd = process(&child);
        block_on(async {
            tokio::select! {
                biased;
                ended = child.wait() => panic!("{ended:?}"),
                () = tokio::task::yield_now() => {}
            }
        });
        assert!(!pidfd.is_dead());
        drop(child);
        assert!(pidfd.wait_dead(common::BOUND));
    });
}

/// In a function that returns `io::Error`, nothing needs to change.
#[test]
fn errors_become_io_errors_with_their_kind() {
    let run = |program: &'static str| -> io::Result<Exit> {
        Ok(block_on(Command::new(program).status())?)
    };
    assert_eq!(run("true").unwrap(), Exit::Code(0));
    assert_eq!(run("/no/such").unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(run("/etc/passwd").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
}

/// C10: on a forkserver of one's own, everything is gone with its close.
#[test]
fn on_a_forkserver_of_its_own_everything_goes_with_it() {
    isolated("on_a_forkserver_of_its_own_everything_goes_with_it", || {
        let before = thread_count().unwrap();
        let server = Forkserver::start(Bounds::default()).unwrap();
        let command = Command::new("sh").args(["-c", "echo $PPID"]).on(&server);
        assert_eq!(out(command), server.pid().to_string());
        let sleep = block_on(Command::new("sleep").arg("1000").on(&server).spawn()).unwrap();
        let pidfd = process(&sleep);
        server.close();
        assert!(pidfd.wait_dead(Duration::ZERO));
        assert_eq!(thread_count().unwrap(), before);
    });
}
