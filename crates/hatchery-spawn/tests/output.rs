//! What a program reads and writes, and what it leaves behind with its pipes.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{BOUND, block_on, isolated};
use hatchery_spawn::{Command, Ended, Exit, Holder, Output, Pidfd, Stdio};
use nix::libc;

fn sh(script: &str) -> Command {
    Command::new("sh").args(["-c", script])
}

fn output(command: Command) -> Output {
    block_on(command.output()).unwrap()
}

fn holders(output: &Output) -> &[Holder] {
    let Ended::Incomplete { held_by } = &output.ended else { panic!("{output:?}") };
    held_by
}

/// A file of this test's own, which is removed.
struct Note(PathBuf);

impl Note {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("hatchery-{name}-{}", std::process::id())))
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap_or_default()
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.0);
    }
}

/// A stdin that nobody has taken is closed before anybody waits: what reads to its end has one.
#[test]
fn an_untaken_stdin_is_closed_before_anybody_waits() {
    let cat = || Command::new("cat").stdin(Stdio::Piped).stdout(Stdio::Null);
    assert_eq!(output(cat()).status, Exit::Code(0));
    assert_eq!(block_on(cat().status()).unwrap(), Exit::Code(0));
    let child = block_on(cat().spawn()).unwrap();
    assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(0));
    let child = block_on(cat().spawn()).unwrap();
    assert_eq!(block_on(child.wait_with_output()).unwrap().status, Exit::Code(0));
}

/// `status` closes outputs that nobody can take: who writes them gets SIGPIPE instead of waiting.
#[test]
fn a_status_closes_outputs_that_nobody_can_take() {
    for script in ["head -c 1000000 /dev/zero; exit 3", "head -c 1000000 /dev/zero >&2; exit 3"] {
        let command = sh(script).stdout(Stdio::Piped).stderr(Stdio::Piped);
        assert_eq!(block_on(command.status()).unwrap(), Exit::Code(3), "{script}");
    }
}

/// Somebody that left the program's group and cleared its environment holds a pipe for longer than
/// anybody waits: status and output come all the same, and it is named.
#[test]
fn who_holds_the_pipe_after_the_end_is_named_and_not_waited_for() {
    isolated("who_holds_the_pipe_after_the_end_is_named_and_not_waited_for", || {
        let script = "setsid env -i sleep 1000 & sleep 0.2; echo hi; exit 3";
        let output = output(sh(script).drain(Duration::from_millis(50)));
        assert_eq!((output.status.clone(), &*output.stdout), (Exit::Code(3), &b"hi\n"[..]));
        let names: Vec<_> = holders(&output).iter().map(|holder| &*holder.name).collect();
        assert_eq!(names, ["sleep"]);
    });
}

/// A filter behind the program writes what it had still to write.
#[test]
fn what_is_in_a_filter_at_the_end_is_written() {
    let note = Note::new("filter");
    let script = format!("exec > >(tee {}); head -c 100000 /dev/zero; echo hi", note.0.display());
    let output = output(Command::new("bash").args(["-c", &script]).drain(BOUND));
    assert_eq!((&output.ended, output.stdout.len()), (&Ended::Exited, 100_003));
    assert_eq!(note.text().len(), 100_003, "in the file");
}

/// What is left in the group and holds a pipe has its time, is named, and is ended.
#[test]
fn a_stray_that_holds_the_pipe_is_named_and_ended() {
    isolated("a_stray_that_holds_the_pipe_is_named_and_ended", || {
        let began = Instant::now();
        let output = output(sh("(sleep 1000; echo late) & echo hi"));
        assert!(began.elapsed() >= Duration::from_millis(500), "it had its time");
        assert_eq!((output.status.clone(), &*output.stdout), (Exit::Code(0), &b"hi\n"[..]));
        let held_by = holders(&output);
        assert!(held_by.iter().any(|holder| holder.name == "sleep"), "{held_by:?}");
        for holder in held_by {
            let is_gone = |left: Pidfd| left.wait_dead(BOUND);
            assert!(Pidfd::open(holder.pid).map_or(true, is_gone), "{holder}");
        }
    });
}

/// A status waits for what is left in the group, if it is asked to, and for no longer than that.
#[test]
fn a_drain_gives_what_is_left_its_time() {
    isolated("a_drain_gives_what_is_left_its_time", || {
        let note = Note::new("drain");
        // It writes well after the shell's end.
        let script = format!("(sleep 0.3; echo done > {}) & exit 3", note.0.display());
        assert_eq!(block_on(sh(&script).drain(BOUND).status()).unwrap(), Exit::Code(3));
        assert_eq!(note.text(), "done\n");
        let began = Instant::now();
        let command = sh("sleep 1000 & exit 4").drain(Duration::from_millis(100));
        assert_eq!(block_on(command.status()).unwrap(), Exit::Code(4));
        assert!(began.elapsed() >= Duration::from_millis(100), "it had its time");
    });
}

/// C9: while one has ended and waits for what it left, others come and go with their statuses.
#[test]
fn nobody_waits_for_one_that_lingers() {
    isolated("nobody_waits_for_one_that_lingers", || {
        block_on(async {
            let lingering = sh("sleep 1000 & echo $!; exit 4").drain(BOUND * 10);
            let mut lingering = lingering.stdout(Stdio::Piped).spawn().await.unwrap();
            let mut line = [0; 16];
            let stdout = lingering.take_stdout().unwrap();
            let length = nix::unistd::read(&stdout, &mut line).unwrap();
            let stray = std::str::from_utf8(&line[..length]).unwrap().trim();
            let stray = Pidfd::open(stray.parse().unwrap()).unwrap();
            let mut crowd = Vec::new();
            for code in 0..40 {
                crowd.push((code, sh(&format!("exit {code}")).spawn().await.unwrap()));
            }
            for (code, child) in crowd {
                assert_eq!(child.wait().await.unwrap(), Exit::Code(code));
            }
            assert_eq!(lingering.try_wait().unwrap(), None);
            assert!(!stray.is_dead());
            // The last of its group ends by itself.
            stray.send_signal(libc::SIGTERM).unwrap();
            assert_eq!(lingering.wait().await.unwrap(), Exit::Code(4));
        });
    });
}

/// C1: who is dropped while it lingers leaves nothing.
#[test]
fn a_drop_ends_what_lingers() {
    isolated("a_drop_ends_what_lingers", || {
        let command = sh("sleep 1000 & echo $!").stdout(Stdio::Piped).drain(BOUND * 10);
        let mut child = block_on(command.spawn()).unwrap();
        let mut line = [0; 16];
        let length = nix::unistd::read(child.take_stdout().unwrap(), &mut line).unwrap();
        let stray = std::str::from_utf8(&line[..length]).unwrap().trim();
        let stray = Pidfd::open(stray.parse().unwrap()).unwrap();
        drop(child);
        assert!(stray.wait_dead(BOUND));
    });
}
