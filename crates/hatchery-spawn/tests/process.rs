//! The shape of `tokio::process`: what a program written for that expects of it, said in our own words.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::ffi::OsStr;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use common::{BOUND, block_on, isolated};
use hatchery_spawn::process::{Child, Command, Ended, Origin, Output, Overflow, Stdio};
use hatchery_spawn::{Exit, Pidfd, Right, SpawnError};
use nix::libc;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// Its output, of which nothing may be missing.
fn whole(command: &mut Command) -> Output {
    let output = block_on(command.output()).unwrap();
    assert_eq!(output.ended, Ended::Exited, "{output:?}");
    output
}

/// `cat` between two pipes.
fn cat() -> Child {
    Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// `spawn`, `status` and `output` have begun when they return, before anybody awaits anything.
#[test]
fn a_program_runs_from_the_call_on() {
    let (mut reader, writer) = io::pipe().unwrap();
    let writer = || writer.try_clone().unwrap();
    let mut one = [0];
    let mut child = sh("printf s").stdout(writer()).spawn().unwrap();
    reader.read_exact(&mut one).unwrap();
    let status = sh("printf t").stdout(writer()).status();
    reader.read_exact(&mut one).unwrap();
    assert_eq!(one, *b"t");
    let output = sh("printf o >&9; printf p").fd(9, writer()).output();
    reader.read_exact(&mut one).unwrap();
    assert_eq!(one, *b"o");
    block_on(async {
        assert!(child.wait().await.unwrap().success());
        assert!(status.await.unwrap().success());
        assert_eq!(output.await.unwrap().stdout, b"p");
    });
}

/// Statuses are std's, also those of signals.
#[test]
fn a_status_is_the_one_of_std() {
    assert_eq!(block_on(sh("exit 42").status()).unwrap().code(), Some(42));
    let killed = block_on(sh("kill -9 $$").status()).unwrap();
    assert_eq!((killed.code(), killed.signal()), (None, Some(9)));
    for raw in [0, 3 << 8, 255 << 8, 9, 6 | 0x80] {
        let status = ExitStatus::from_raw(raw);
        assert_eq!(ExitStatus::from(Exit::from(status)), status);
    }
}

/// A conversation line by line over both pipes, and the end of the one is the end of the other.
#[test]
fn what_is_written_to_stdin_comes_back_from_stdout() {
    block_on(async {
        let mut child = cat();
        let mut stdin = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for count in 0..100 {
            stdin.write_all(format!("line {count}\n").as_bytes()).await.unwrap();
            assert_eq!(lines.next_line().await.unwrap().unwrap(), format!("line {count}"));
        }
        drop(stdin);
        assert_eq!(lines.next_line().await.unwrap(), None);
        assert!(child.wait().await.unwrap().success());
    });
}

/// A wait closes a stdin that nobody took, so that what reads to its end has one; a look does not.
#[test]
fn a_wait_closes_stdin_and_a_look_does_not() {
    block_on(async {
        let mut child = cat();
        assert_eq!(child.try_wait().unwrap(), None);
        assert!(child.stdin.is_some());
        assert!(child.wait().await.unwrap().success());
        assert!(child.stdin.is_none());
        assert!(child.try_wait().unwrap().unwrap().success());
        assert!(child.wait().await.unwrap().success(), "told as often as asked");
    });
}

/// A program whose status was told has no number any more, and can't be killed.
#[test]
fn who_was_told_has_no_number_and_is_not_killed() {
    block_on(async {
        let mut child = cat();
        let pid = child.id().unwrap();
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        child.kill().await.unwrap();
        assert_eq!(child.id(), None);
        assert_eq!(child.wait().await.unwrap().signal(), Some(9));
        for refused in [child.start_kill(), child.stop(), child.kill().await] {
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    });
}

/// A stop is its signal first, and SIGKILL after its grace.
#[test]
fn a_stop_asks_before_it_kills() {
    block_on(async {
        let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 1000 & wait; done";
        let mut command = sh(script);
        command.stop_signal(libc::SIGTERM).grace(BOUND).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().unwrap(), "up");
        child.stop().unwrap();
        assert_eq!(lines.next_line().await.unwrap().unwrap(), "bye");
        assert_eq!(child.wait().await.unwrap().code(), Some(5));
    });
}

/// A drop ends the program; with `kill_on_drop(false)` it runs on.
#[test]
fn a_dropped_child_is_ended_unless_told_otherwise() {
    isolated("a_dropped_child_is_ended_unless_told_otherwise", || {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        assert!(command.get_kill_on_drop());
        let child = command.spawn().unwrap();
        let process = Pidfd::open(child.id().unwrap()).unwrap();
        drop(child);
        assert!(process.wait_dead(BOUND));

        let mut child = command.kill_on_drop(false).spawn().unwrap();
        let process = Pidfd::open(child.id().unwrap()).unwrap();
        let stdin = child.stdin.take().unwrap().into_owned_fd().unwrap();
        let handle = child.handle();
        drop(child);
        // It ends as it reads the end of its stdin, and nobody killed it before.
        drop(stdin);
        assert_eq!(block_on(handle.wait()).unwrap(), Exit::Code(0));
        assert!(process.wait_dead(BOUND));
    });
}

/// Both outputs are read at once: a program that fills one while the other is read hangs nobody.
#[test]
fn two_large_outputs_hold_up_nobody() {
    let script = "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero";
    let output = whole(&mut sh(script));
    assert_eq!((output.stdout.len(), output.stderr.len()), (600_000, 300_000));
    let std = std::process::Output::from(output);
    assert!(std.status.success());
}

/// `output` has pipes whatever was said before, as tokio's; `status` closes what is piped.
#[test]
fn output_captures_and_status_closes() {
    let mut command = sh("echo out; echo err >&2; cat");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let output = whole(&mut command);
    assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
    let mut command = sh("head -c 1000000 /dev/zero; exit 3");
    assert_eq!(block_on(command.stdout(Stdio::piped()).status()).unwrap().code(), Some(3));
}

/// One program's stdout is the next one's stdin; a file and an fd are stdio too.
#[test]
fn ends_go_from_program_to_program() {
    block_on(async {
        let mut first = sh("echo one; echo two").stdout(Stdio::piped()).spawn().unwrap();
        let stdout: Stdio = first.stdout.take().unwrap().try_into().unwrap();
        let output = Command::new("wc").arg("-l").stdin(stdout).output().await.unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "2");
        assert!(first.wait().await.unwrap().success());

        let file = std::fs::File::open("/dev/null").unwrap();
        let output = Command::new("cat").stdin(file).output().await.unwrap();
        assert!(output.stdout.is_empty());
    });
}

/// What was read or written here and then given away waits as other programs expect it.
#[test]
fn an_end_that_is_taken_out_waits() {
    let mut child = cat();
    block_on(async {
        child.stdin.as_mut().unwrap().write_all(b"one").await.unwrap();
        let mut three = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut three).await.unwrap();
        assert_eq!(&three, b"one");
    });
    let stdin = child.stdin.take().unwrap().into_owned_fd().unwrap();
    let mut stdin = std::fs::File::from(stdin);
    let stdout = child.stdout.take().unwrap().into_owned_fd().unwrap();
    let reads = std::thread::spawn(move || {
        let mut all = String::new();
        std::fs::File::from(stdout).read_to_string(&mut all).unwrap();
        all
    });
    stdin.write_all(b"two").unwrap();
    drop(stdin);
    assert_eq!(reads.join().unwrap(), "two");
}

/// A program that is not there has the kind, the errno and the words of it.
#[test]
fn a_program_that_is_not_there_is_not_found() {
    let error = Command::new("/nowhere/at/all").spawn().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    let error = block_on(Command::new("/nowhere/at/all").status()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    let error = Command::new("/etc/passwd").spawn().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
}

/// A command is started as often as wanted, by its copies too, each time with the same fds.
#[test]
fn a_command_is_started_again_and_again() {
    let (mut reader, writer) = io::pipe().unwrap();
    let mut command = sh("echo $0 >&9");
    command.arg("again").fd(9, writer);
    for _ in 0..3 {
        assert!(block_on(command.status()).unwrap().success());
    }
    assert!(block_on(command.clone().status()).unwrap().success());
    drop(command);
    let mut all = String::new();
    reader.read_to_string(&mut all).unwrap();
    assert_eq!(all, "again\n".repeat(4));
}

/// Variables are set, removed and cleared in the order of the calls, as std's.
#[test]
fn variables_are_those_of_std() {
    let shown = |command: &mut Command| String::from_utf8(whole(command).stdout).unwrap();
    let mut command = sh("echo ${ONE-none} ${HOME-none}");
    command.env("ONE", "1").env_remove("HOME");
    assert_eq!(shown(&mut command), "1 none\n");
    assert_eq!(shown(command.env_remove("ONE")), "none none\n");
    let mut command = Command::new("/usr/bin/env");
    command.env("ONE", "1").env_clear().envs([("TWO", "2"), ("THREE", "3")]).env_remove("THREE");
    assert_eq!(shown(&mut command), "TWO=2\n");
    let envs: Vec<_> = command.get_envs().collect();
    assert_eq!(envs, [(OsStr::new("TWO"), Some(OsStr::new("2")))]);
}

/// What std's command lets others see is taken over.
#[test]
fn a_command_of_std_is_taken_over() {
    let mut std = std::process::Command::new("sh");
    std.args(["-c", "pwd; echo $ONE ${HOME-none}"])
        .env("ONE", "1")
        .env_remove("HOME")
        .current_dir("/");
    let mut command = Command::from(std);
    assert_eq!(command.get_program(), "sh");
    assert_eq!(command.get_args().len(), 2);
    assert_eq!(command.get_current_dir(), Some(std::path::Path::new("/")));
    assert_eq!(whole(&mut command).stdout, b"/\n1 none\n");
}

/// A program whose time is over is ended with all that it has started; what it wrote is kept.
#[test]
fn a_time_out_keeps_what_was_read() {
    isolated("a_time_out_keeps_what_was_read", || {
        // Long enough for the first line on a busy machine.
        let time = Duration::from_secs(2);
        let mut command = sh("echo early; sleep 1000 & sleep 1000; echo late");
        let output = block_on(command.timeout(time).output()).unwrap();
        assert_eq!((output.ended, &*output.stdout), (Ended::TimedOut, &b"early\n"[..]));
        assert_eq!(output.status.signal(), Some(9));
        let mut command = sh("trap 'exit 4' TERM; sleep 1000 & wait");
        command.timeout(time).grace(BOUND);
        let error = block_on(command.status()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("`sh` did not end within 2s"), "{error}");
        assert!(block_on(sh("exit 0").timeout(BOUND).status()).unwrap().success());
    });
}

/// Of what is too much the first part is kept; the program goes on, or is ended.
#[test]
fn too_much_output_is_cut() {
    let mut command = sh("head -c 200000 /dev/zero; echo end >&2");
    let output = block_on(command.max_output(1000, Overflow::Truncate).output()).unwrap();
    assert_eq!((output.ended, output.stdout.len()), (Ended::Truncated, 1000));
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b"end\n"[..]));
    let mut command = Command::new("yes");
    let output = block_on(command.max_output(1000, Overflow::End).output()).unwrap();
    assert_eq!((output.ended, output.stdout.len()), (Ended::Truncated, 1000));
    assert_eq!(output.status.signal(), Some(9));
    let output = block_on(sh("printf 1234").max_output(4, Overflow::End).output()).unwrap();
    assert_eq!((output.ended, &*output.stdout), (Ended::Exited, &b"1234"[..]));
}

/// A pipe that somebody keeps open after the program's end is not waited for, and the output says so.
#[test]
fn an_output_that_somebody_holds_open_is_incomplete() {
    isolated("an_output_that_somebody_holds_open_is_incomplete", || {
        let mut command = sh("setsid env -i sleep 1000 & sleep 0.2; echo hi");
        let output = block_on(command.drain(Duration::from_millis(50)).output()).unwrap();
        assert_eq!(output.stdout, b"hi\n");
        let Ended::Incomplete { held_by } = output.ended else { panic!("{:?}", output.ended) };
        assert_eq!(held_by.iter().map(|holder| &*holder.name).collect::<Vec<_>>(), ["sleep"]);
    });
}

/// A start needs no runtime, and none is changed by it: the first read is what a runtime watches.
#[test]
fn a_start_needs_no_runtime() {
    let mut child =
        Command::new("cat").stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let (mut all, status) = block_on(async {
        let mut all = Vec::new();
        stdout.read_to_end(&mut all).await.unwrap();
        (all, child.wait().await.unwrap())
    });
    assert!(status.success());
    all.clear();
}

/// Three hundred starts of each kind leave no fd behind.
#[test]
fn many_starts_leave_no_fd() {
    isolated("many_starts_leave_no_fd", || {
        let open = || {
            let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            let mut all: Vec<_> = fds
                .map(|fd| (fd.file_name(), std::fs::read_link(fd.path()).unwrap_or_default()))
                .collect();
            all.sort();
            all
        };
        let round = || {
            assert_eq!(whole(sh("cat; echo x").stdin(Stdio::piped())).stdout, b"x\n");
            assert!(block_on(Command::new("true").status()).unwrap().success());
            // What is held of a dropped child is held until its end.
            let handle = cat().handle();
            block_on(handle.wait()).unwrap();
            Command::new("/nowhere").stdin(Stdio::piped()).spawn().unwrap_err();
        };
        round();
        let before = open();
        (0..300).for_each(|_| round());
        assert_eq!(open(), before);
    });
}

/// A program is told another name than the one that it was found by.
#[test]
fn a_program_has_the_name_that_it_is_told() {
    let mut command = sh("tr '\\0' ' ' < /proc/$$/cmdline");
    assert_eq!(whole(command.arg0("other")).stdout, b"other -c tr '\\0' ' ' < /proc/$$/cmdline ");
    let refused = sh("").arg0("a\0b").spawn().unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
}

/// Its user, group and groups, each alone and together; what was not said is this process's, but that
/// root's groups are left to nobody else.
#[test]
fn a_program_is_the_user_that_was_asked_for() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not tested: not root");
        return;
    }
    isolated("a_program_is_the_user_that_was_asked_for", || {
        nix::unistd::setgroups(&[4242.into()]).unwrap();
        let ids = |change: fn(&mut Command) -> &mut Command| {
            let mut command = sh("sed -n 's/^\\(Uid\\|Gid\\|Groups\\)://p' /proc/self/status; pwd");
            command.current_dir("/");
            change(&mut command);
            let text = String::from_utf8(whole(&mut command).stdout).unwrap();
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(ids(|it| it), "0 0 0 0 0 0 0 0 4242 /");
        assert_eq!(ids(|it| it.uid(7)), "7 7 7 7 0 0 0 0 /");
        assert_eq!(ids(|it| it.gid(8)), "0 0 0 0 8 8 8 8 4242 /");
        assert_eq!(ids(|it| it.groups(&[9, 3])), "0 0 0 0 0 0 0 0 3 9 /");
        let all = ids(|it| it.uid(7).gid(8).groups(&[9]));
        assert_eq!(all, "7 7 7 7 8 8 8 8 9 /");
        assert_eq!(ids(|it| it.uid(7).groups(&[]).gid(7)), "7 7 7 7 7 7 7 7 /");
    });
}

/// C17: who may not become a user itself has no child that is it, and is told so before there is one;
/// what it is already it may ask for.
#[test]
fn nobody_starts_a_program_as_who_it_could_not_become() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not tested: not root");
        return;
    }
    isolated("nobody_starts_a_program_as_who_it_could_not_become", || {
        use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
        // The forkserver has root's rights all the time.
        assert!(block_on(sh("true").status()).unwrap().success());
        setgroups(&[5.into()]).unwrap();
        setresgid(Gid::from_raw(6), Gid::from_raw(6), Gid::from_raw(6)).unwrap();
        setresuid(Uid::from_raw(7), Uid::from_raw(7), Uid::from_raw(7)).unwrap();
        let changes: [fn(&mut Command) -> &mut Command; 6] = [
            |it| it.uid(0),
            |it| it.uid(8),
            |it| it.gid(0),
            |it| it.groups(&[]),
            |it| it.groups(&[5, 0]),
            |it| it.uid(7).gid(6).groups(&[6]),
        ];
        for change in changes {
            let error = change(&mut sh("true")).spawn().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            let right = error.get_ref().and_then(|it| it.downcast_ref::<SpawnError>());
            let is_told = matches!(right, Some(SpawnError::Rights { right: Right::Become, .. }));
            assert!(is_told, "{error:?}");
        }
        let mut own = sh("id -u; id -G");
        assert_eq!(whole(own.uid(7).gid(6).groups(&[5])).stdout, b"7\n6 5\n");
    });
}

/// A session of its own, and still treated as any other: ended with its child, what it leaves with it.
#[test]
fn a_program_with_a_session_of_its_own_is_ended_too() {
    isolated("a_program_with_a_session_of_its_own_is_ended_too", || {
        let mut command = sh("sleep 1000 & cut -d' ' -f 1,5,6 /proc/$$/stat; echo $!; read line");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).setsid(true);
        for is_dropped in [true, false] {
            let mut child = command.spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let (own, left) = block_on(async {
                let mut line = async || lines.next_line().await.unwrap().unwrap();
                (line().await, line().await)
            });
            let pid = child.id().unwrap();
            assert_eq!(own, format!("{pid} {pid} {pid}"));
            let left = Pidfd::open(left.parse().unwrap()).unwrap();
            let program = Pidfd::open(pid).unwrap();
            if is_dropped {
                drop(child);
            } else {
                assert_eq!(block_on(child.wait()).unwrap().code(), Some(1));
            }
            assert!(program.wait_dead(BOUND) && left.wait_dead(BOUND));
        }
    });
}

/// The group of another program: both are in it, each ends alone, and the last takes all with it that is
/// left in there.
#[test]
fn a_program_joins_a_group() {
    isolated("a_program_joins_a_group", || {
        let group = |child: &Child| {
            let pid = child.id().unwrap().cast_signed();
            nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid))).unwrap().as_raw()
        };
        let mut first = cat();
        let leader = first.id().unwrap().cast_signed();
        assert_eq!(group(&first), leader);
        let mut script = sh("env -i sleep 1000 & echo $!; exec cat");
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(leader);
        let mut second = script.spawn().unwrap();
        let mut third = script.spawn().unwrap();
        assert_eq!((group(&second), group(&third)), (leader, leader));
        let mut left = || {
            let mut lines = BufReader::new(third.stdout.take().unwrap()).lines();
            let line = block_on(lines.next_line()).unwrap().unwrap();
            Pidfd::open(line.parse().unwrap()).unwrap()
        };
        let left = left();
        // The leader's end is told though others are in there, and ends none of them.
        assert!(block_on(first.wait()).unwrap().success());
        assert_eq!(first.handle().left_behind(), [], "they are nobody's strays");
        assert_eq!((second.try_wait().unwrap(), third.try_wait().unwrap()), (None, None));
        second.start_kill().unwrap();
        assert_eq!(block_on(second.wait()).unwrap().signal(), Some(9));
        assert_eq!(third.try_wait().unwrap(), None);
        assert!(!left.wait_dead(Duration::ZERO));
        assert!(block_on(third.wait()).unwrap().success());
        assert!(left.wait_dead(BOUND), "what carries no mark goes with the last of the group");

        let own = nix::unistd::getpgrp().as_raw();
        let mut script = sh("trap 'exit 5' TERM; echo up; while :; do read line; done");
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(own);
        let mut ours = script.stop_signal(libc::SIGTERM).grace(BOUND).spawn().unwrap();
        assert_eq!(group(&ours), own);
        let mut up = [0; 2];
        block_on(ours.stdout.as_mut().unwrap().read_exact(&mut up)).unwrap();
        ours.stop().unwrap();
        assert_eq!(block_on(ours.wait()).unwrap().code(), Some(5), "it alone is asked");
        let refused = sh("").process_group(i32::MAX).spawn().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        let refused = sh("").process_group(leader).setsid(true).spawn().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    });
}

/// What is awaited may be a task of any runtime, and what is held may be another thread's.
#[test]
fn all_futures_may_go_to_another_thread() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    fn is_shared<T: Send + Sync>() {}
    is_shared::<(Command, Child, Output)>();
    let output = block_on(async {
        let mut child = cat();
        is_send(child.wait()).await.unwrap();
        is_send(cat().kill()).await.unwrap();
        is_send(child.wait_with_output()).await.unwrap();
        is_send(sh("true").status()).await.unwrap();
        tokio::spawn(sh("echo x").output()).await.unwrap().unwrap()
    });
    assert_eq!(output.stdout, b"x\n");
}

/// The lines of both outputs come as they arrive, each with its origin; the last needs no end.
#[test]
fn lines_of_both_outputs_come_as_they_arrive() {
    let script = "while read line; do echo $line; read line; echo $line >&2; done; printf 'l\\377'";
    let mut command = sh(script);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    block_on(async {
        let mut child = command.spawn().unwrap();
        let (mut stdin, mut lines) = (child.stdin.take().unwrap(), child.lines());
        for count in 0..200 {
            let origin = if count % 2 == 0 { Origin::Stdout } else { Origin::Stderr };
            stdin.write_all(format!("line {count}\n").as_bytes()).await.unwrap();
            let line = lines.next_line().await.unwrap().unwrap();
            assert_eq!((line.origin, &*line.text()), (origin, &*format!("line {count}")));
        }
        drop(stdin);
        let last = lines.next_line().await.unwrap().unwrap();
        assert_eq!((last.origin, &*last.bytes), (Origin::Stdout, &b"l\xff"[..]));
        assert_eq!(lines.next_line().await.unwrap(), None);
        assert_eq!(lines.next_line().await.unwrap(), None);
        assert!(child.wait().await.unwrap().success());
    });
}

/// Neither output waits for the other's end, and a line without an end takes no more than its bound.
#[test]
fn lines_of_one_output_never_wait_for_the_other() {
    let script = "head -c 2500000 /dev/zero & seq 1000 >&2; wait; echo; echo; echo end";
    let mut command = sh(script);
    block_on(async {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = child.lines();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some(line) = lines.next_line().await.unwrap() {
            match line.origin {
                Origin::Stdout => out.push(line.bytes),
                Origin::Stderr => err.push(line.text().into_owned()),
            }
        }
        let lengths: Vec<usize> = out.iter().map(Vec::len).collect();
        assert_eq!(lengths, [1 << 20, 1 << 20, 2_500_000 - (2 << 20), 0, 3]);
        assert_eq!(err, (1..=1000).map(|number| number.to_string()).collect::<Vec<_>>());
        assert!(child.wait().await.unwrap().success());
    });
}

/// What a program has used is told with its end, and with it what it has waited for: time and peak memory.
#[test]
fn what_a_program_has_used_is_told_with_its_end() {
    let used = |script: &str| whole(&mut sh(script)).usage.unwrap();
    let large = used("head -c 100M /dev/zero | tail -c 100M > /dev/null");
    let busy = used("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done");
    let total = busy.user + busy.system;
    assert!(large.peak_memory >= 100 << 20 && busy.peak_memory < 100 << 20, "{large:?} {busy:?}");
    assert!(total > Duration::from_millis(5), "{busy:?}");
    block_on(async {
        let mut child = cat();
        assert_eq!(child.usage(), None);
        child.kill().await.unwrap();
        let usage = child.usage().unwrap();
        assert!(usage.peak_memory > 0 && usage.user < total, "{usage:?}");
        assert_eq!(child.handle().usage(), Some(usage));
    });
}
