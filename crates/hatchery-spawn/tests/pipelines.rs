//! Programs one after the other: `a.pipe(b)`.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use common::{BOUND, block_on, isolated};
use hatchery_spawn::Pidfd;
use hatchery_spawn::process::{Command, Ended, Overflow, Running, Stdio};
use nix::libc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// Each reads what the one before it writes; the statuses of all are told, in their order.
#[test]
fn every_part_of_a_pipeline_has_its_exact_status() {
    let pipeline = sh("echo b; echo a; echo e1 >&2; exit 3").pipe(Command::new("sort"));
    let output = block_on(pipeline.pipe(sh("cat; echo e3 >&2; kill -9 $$")).output()).unwrap();
    assert_eq!((&*output.stdout, &output.ended), (&b"a\nb\n"[..], &Ended::Exited));
    assert_eq!(output.stderr, b"e1\ne3\n");
    let found = output.statuses.iter().map(|it| (it.code(), it.signal()));
    assert_eq!(found.collect::<Vec<_>>(), [(Some(3), None), (Some(0), None), (None, Some(9))]);
    assert!(!output.success());
    let statuses = block_on(sh("exit 1").pipe(sh("exit 2")).status()).unwrap();
    assert_eq!(statuses.iter().map(|it| it.code()).collect::<Vec<_>>(), [Some(1), Some(2)]);
    // A writer that nobody reads any more.
    let output = block_on(Command::new("yes").pipe(Command::new("head").arg("-1")).output());
    let output = output.unwrap();
    assert_eq!((&*output.stdout, output.statuses[0].signal()), (&b"y\n"[..], Some(libc::SIGPIPE)));
}

/// All parts that live are in one group, also when the first has ended before the others are there.
#[test]
fn a_pipeline_is_one_group() {
    isolated("a_pipeline_is_one_group", || {
        let groups = |running: &Running| {
            let of = |pid: u32| {
                nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid.cast_signed()))).unwrap()
            };
            running.parts.iter().filter_map(|part| Some(of(part.id()?))).collect::<Vec<_>>()
        };
        let mut cat = Command::new("cat");
        cat.stdin(Stdio::piped());
        let mut running = cat.pipe(Command::new("cat")).pipe(&mut cat).spawn().unwrap();
        let first = running.parts[0].id().unwrap();
        assert_eq!(groups(&running), [nix::unistd::Pid::from_raw(first.cast_signed()); 3]);
        assert!(block_on(running.wait()).unwrap().iter().all(|status| status.success()));
        for _ in 0..50 {
            let output = sh("exit 7").pipe(sh("exit 8")).pipe(sh("cat; echo end")).output();
            let output = block_on(output).unwrap();
            assert_eq!((&*output.stdout, output.statuses[0].code()), (&b"end\n"[..], Some(7)));
        }
        for refused in [cat.clone().setsid(true), cat.clone().detach(), cat.clone().foreground()] {
            let error = sh("").pipe(refused).spawn().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    });
}

/// More to stderr than a pipe holds, from a part whose stderr is piped: nobody could take that here, so no wait
/// is for its reader.
#[test]
fn a_stderr_that_is_piped_holds_up_no_pipeline() {
    isolated("a_stderr_that_is_piped_holds_up_no_pipeline", || {
        let loud = |exit: &str| {
            let mut loud = sh(&format!("head -c 300000 /dev/zero >&2; exit {exit}"));
            loud.stderr(Stdio::piped());
            loud
        };
        let pipeline = loud("0").pipe(loud("0"));
        let output = block_on(pipeline.output()).unwrap();
        assert_eq!((output.stderr.len(), output.success()), (600_000, true));
        // Closed, so that the first `head` ends by it and the shell goes on.
        let statuses = block_on(loud("3").pipe(loud("4")).status()).unwrap();
        assert_eq!(statuses.iter().map(|it| it.code()).collect::<Vec<_>>(), [Some(3), Some(4)]);
        let waited = async { loud("5").pipe(loud("6")).spawn().unwrap().wait_with_output().await };
        let output = block_on(waited).unwrap();
        let codes = output.statuses.iter().map(|it| it.code()).collect::<Vec<_>>();
        assert_eq!((codes, output.stderr.len()), (vec![Some(5), Some(6)], 300_000));
    });
}

/// What is written to the first comes out of the last.
#[test]
fn a_running_pipeline_is_written_and_read() {
    let (mut first, mut last) = (Command::new("cat"), Command::new("cat"));
    let pipeline = first.stdin(Stdio::piped()).pipe(last.stdout(Stdio::piped()));
    block_on(async {
        let mut running = pipeline.spawn().unwrap();
        let (mut stdin, mut stdout) =
            (running.stdin.take().unwrap(), running.stdout.take().unwrap());
        let bytes = vec![7; 1_000_000];
        let writes = async {
            stdin.write_all(&bytes).await.unwrap();
            drop(stdin);
        };
        let mut all = Vec::new();
        let (_, read) = tokio::join!(writes, stdout.read_to_end(&mut all));
        assert_eq!((read.unwrap(), running.wait().await.unwrap().len()), (1_000_000, 2));
    });
}

/// A time-out ends all parts, and so does too much output; what was read is kept.
#[test]
fn the_bounds_of_a_pipeline_are_for_all_parts() {
    isolated("the_bounds_of_a_pipeline_are_for_all_parts", || {
        // Long enough for the first line on a busy machine.
        let time = Duration::from_secs(2);
        let pipeline = sh("echo early; sleep 1000").pipe(Command::new("cat")).timeout(time);
        let output = block_on(pipeline.output()).unwrap();
        assert_eq!((&*output.stdout, &output.ended), (&b"early\n"[..], &Ended::TimedOut));
        assert_eq!(output.statuses[0].signal(), Some(9));
        // One whose last part has ended: its end is not that of the pipeline.
        let pipeline = sh("sleep 1000").pipe(Command::new("true")).timeout(time);
        assert_eq!(block_on(pipeline.output()).unwrap().ended, Ended::TimedOut);
        let error = block_on(pipeline.status()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let pipeline = Command::new("yes").pipe(Command::new("cat"));
        let output = block_on(pipeline.max_output(1000, Overflow::End).output()).unwrap();
        assert_eq!((output.stdout.len(), output.ended), (1000, Ended::Truncated));
    });
}

/// A drop ends all parts; so does a part that can't be started, and nothing of it is left.
#[test]
fn no_part_outlives_its_pipeline() {
    isolated("no_part_outlives_its_pipeline", || {
        let mut sleeper = sh("sleep 1000 & wait");
        let running = sleeper.pipe(&sleeper).pipe(&sleeper).spawn().unwrap();
        let process = |part: &hatchery_spawn::process::Child| Pidfd::open(part.id().unwrap());
        let parts: Vec<Pidfd> = running.parts.iter().map(|it| process(it).unwrap()).collect();
        drop(running);
        assert!(parts.iter().all(|part| part.wait_dead(BOUND)));
        let (mut reader, writer) = io::pipe().unwrap();
        let first = sleeper.fd(9, writer).pipe(Command::new("/nowhere"));
        assert_eq!(first.spawn().unwrap_err().kind(), io::ErrorKind::NotFound);
        drop((first, sleeper));
        // The end of what only the first part held.
        assert_eq!(io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
    });
}
