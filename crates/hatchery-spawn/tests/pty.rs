//! A terminal of a program's own.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::io;
use std::os::unix::process::ExitStatusExt as _;

use common::{BOUND, block_on, isolated};
use hatchery_spawn::Pidfd;
use hatchery_spawn::process::{Command, Pty, Stdio};
use nix::libc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).pty(30, 90);
    command
}

/// What is written until that has come.
async fn until(pty: &mut Pty, end: &str) -> String {
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).contains(end) {
        let read = pty.read_buf(&mut all).await.unwrap();
        assert!(read > 0, "{:?}", String::from_utf8_lossy(&all));
    }
    String::from_utf8(all).unwrap()
}

/// All three are the terminal, of the size that was asked for, and it is that of a session of its own; what
/// is typed is echoed and read; the end of the program is the end of what it writes.
#[test]
fn a_program_has_a_terminal_of_its_own() {
    block_on(async {
        let script = "test -t 0 -a -t 1 -a -t 2 && stty size < /dev/tty; read line; echo got $line";
        let mut child = sh(script).spawn().unwrap();
        let mut pty = child.pty.take().unwrap();
        assert_eq!(until(&mut pty, "\n").await, "30 90\r\n");
        pty.write_all(b"hello\n").await.unwrap();
        let mut rest = String::new();
        pty.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hello\r\ngot hello\r\n");
        assert!(child.wait().await.unwrap().success());
    });
}

/// What is typed reaches the program as signals do, and so does a change of the size.
#[test]
fn a_terminal_signals_its_program() {
    block_on(async {
        let script = "trap 'stty size' WINCH; trap 'echo int; exit 4' INT; echo up; \
             while :; do read line; done";
        let mut child = sh(script).spawn().unwrap();
        let mut pty = child.pty.take().unwrap();
        until(&mut pty, "up\r\n").await;
        pty.resize(40, 100).unwrap();
        pty.write_all(b"\n").await.unwrap();
        until(&mut pty, "40 100\r\n").await;
        pty.write_all(b"\x03").await.unwrap();
        until(&mut pty, "int\r\n").await;
        assert_eq!(child.wait().await.unwrap().code(), Some(4));
    });
}

/// A hang-up is SIGHUP to the program; a drop of the child ends it and what it has started, job or not.
#[test]
fn nothing_outlives_a_terminal_and_its_child() {
    isolated("nothing_outlives_a_terminal_and_its_child", || {
        let mut child = Command::new("cat").pty(1, 1).spawn().unwrap();
        drop(child.pty.take());
        assert_eq!(block_on(child.wait()).unwrap().signal(), Some(libc::SIGHUP));
        let mut command = sh("set -m; sleep 1000 & echo $!; trap '' HUP; wait");
        let mut child = command.spawn().unwrap();
        let said = block_on(until(child.pty.as_mut().unwrap(), "\n"));
        let job = Pidfd::open(said.trim().parse().unwrap()).unwrap();
        let program = Pidfd::open(child.id().unwrap()).unwrap();
        let pty = child.pty.take();
        drop(child);
        assert!(program.wait_dead(BOUND) && job.wait_dead(BOUND));
        drop(pty);
    });
}

/// What else was said of its stdio stays; what can't be is refused.
#[test]
fn a_terminal_takes_the_place_of_nothing_that_was_said() {
    let output = block_on(sh("test -t 0 && echo out; test -t 1 || echo err >&2").output()).unwrap();
    assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
    let mut none = sh("");
    none.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert_eq!(none.spawn().unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    for refused in [sh("").foreground(), sh("").process_group(1)] {
        assert_eq!(refused.spawn().unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

/// More than a terminal holds, where nobody can read it or has taken it: it is thrown away, and the program
/// ends.
#[test]
fn a_terminal_that_nobody_reads_holds_up_no_status() {
    let loud = || sh("head -c 300000 /dev/zero > /dev/tty; echo end; exit 3");
    assert_eq!(block_on(async { loud().status().await.unwrap() }).code(), Some(3));
    let waited = async { loud().spawn().unwrap().wait_with_output().await.unwrap() };
    assert_eq!(block_on(waited).status.code(), Some(3));
    let output = block_on(async { loud().output().await.unwrap() });
    assert_eq!((&*output.stdout, output.status.code()), (&b"end\n"[..], Some(3)));
    // A time-out counts all the same.
    let stuck = async { sh("sleep 1000").timeout(BOUND / 100).status().await.unwrap_err() };
    assert_eq!(block_on(stuck).kind(), io::ErrorKind::TimedOut);
}
