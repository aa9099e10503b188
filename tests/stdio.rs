//! Scenarios 59 to 61, C8: what actors write goes where it was asked to, in whole lines with the
//! path of who wrote it, and holds up nobody; and none of them reads the root's terminal.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, Stdio as Std};
use std::time::{Duration, Instant};

use hatchery::{
    Backend, CallError, Config, Error, FaultKind, Runtime, StartCause, StartError, Stdio,
};
use hatchery_spawn::{Pidfd, SpawnError};
use hatchery_testkit::counts::Counts;
use hatchery_testkit::isolate;
use hatchery_tests::{BUDGET, HANG, PROCESSES, SLACK, came_down, for_each, here};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;

/// Writes a line on both outputs, a long one, and something that is no line.
#[hatchery::function]
async fn say(word: String) {
    println!("out {word}");
    eprintln!("err {word}");
    eprintln!("{}", "x".repeat(65_536));
    eprint!("{word} without an end");
    if word == "first" {
        // It has one below it, whose lines come through the same pipe: half a line would be theirs.
        eprintln!();
    }
    std::io::stdout().flush().unwrap();
}

/// Writes a MiB of lines to stderr.
#[hatchery::function]
async fn flood() -> u64 {
    let line = "y".repeat(1023);
    for _ in 0..1024 {
        eprintln!("{line}");
    }
    1024
}

/// What stdin leads to, and whether a read comes to its end at once.
#[hatchery::function]
async fn stdin() -> (String, usize) {
    let target = std::fs::read_link("/proc/self/fd/0").unwrap();
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text).unwrap();
    (target.to_string_lossy().into_owned(), read)
}

/// Says its last words, and dies.
#[hatchery::function]
async fn last_words() {
    for i in 0..30 {
        eprintln!("word {i}");
    }
    std::process::abort();
}

/// This test again, as a program of its own whose outputs are read here; `None` in that program.
fn outputs_of(test: &str) -> Option<(String, String)> {
    if std::env::var_os(INSIDE).is_some() {
        return None;
    }
    let filter = test.split_once("::").unwrap().1;
    let mut program = Command::new("/proc/self/exe")
        .args([filter, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .stdin(Std::null())
        .stdout(Std::piped())
        .stderr(Std::piped())
        .spawn()
        .unwrap();
    let (mut out, mut err) = (program.stdout.take().unwrap(), program.stderr.take().unwrap());
    let process = Pidfd::open(program.id()).unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).map(|_| text)
    });
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).map(|_| text)
    });
    let in_time = process.wait_dead(HANG);
    let _ended = program.kill();
    let status = program.wait().unwrap();
    let (out, err) = (reader.join().unwrap().unwrap(), errors.join().unwrap().unwrap());
    assert!(in_time && status.success(), "{status}\n{err}");
    Some((out, err))
}

/// Two actors and one below the first, with `stdio` for both outputs; each has its say.
async fn have_a_say(stdio: Stdio) {
    let runtime = Runtime::builder().stdio(stdio).signals(false).open().unwrap();
    let done = runtime.nursery(async |n| {
        let (one, two) = (n.start("one").await?, n.start("two").await?);
        one.call(say("first".to_owned())).await?;
        two.call(say("second".to_owned())).await?;
        one.call(below()).await?;
        Ok(())
    });
    done.await.unwrap();
    runtime.close().await;
}

#[hatchery::function]
async fn below() -> Result<(), Error> {
    let done = hatchery::nursery(async |n| {
        let low = n.start("low").await?;
        Ok(low.call(say("third".to_owned())).await?)
    });
    Ok(done.await?)
}

/// Scenario 60: relayed.
#[test]
fn relayed_lines_are_whole_and_carry_the_path() {
    let Some((out, err)) = outputs_of(here!()) else {
        return isolate::block_on(have_a_say(Stdio::Relay));
    };
    let long = "x".repeat(65_536);
    for (path, word) in [("root/one", "first"), ("root/two", "second"), ("root/one/low", "third")] {
        // The harness begins the first line of stdout.
        let count = |text: &str, line: String| {
            text.lines().filter(|one| one.ends_with(&line) && !one.contains("] [")).count()
        };
        assert_eq!(count(&out, format!("[{path}] out {word}")), 1, "{out}");
        assert_eq!(count(&err, format!("[{path}] err {word}")), 1, "{path}");
        assert_eq!(count(&err, format!("[{path}] {long}")), 1, "{path}");
        assert_eq!(count(&err, format!("[{path}] {word} without an end")), 1, "{path}");
    }
}

/// Scenario 60: inherited: as it was written, without a prefix.
#[test]
fn inherited_output_comes_as_it_was_written() {
    let Some((out, err)) = outputs_of(here!()) else {
        return isolate::block_on(have_a_say(Stdio::Inherit));
    };
    for word in ["first", "second", "third"] {
        assert!(out.contains(&format!("out {word}\n")), "{out}");
        assert!(err.contains(&format!("err {word}\n")), "{word}");
        assert!(err.contains(&format!("{word} without an end")), "{word}");
    }
    assert!(!err.contains("[root/"), "a prefix");
}

/// Scenario 60: nowhere.
#[test]
fn output_to_nowhere_goes_nowhere() {
    let Some((out, err)) = outputs_of(here!()) else {
        return isolate::block_on(have_a_say(Stdio::Null));
    };
    for word in ["first", "second", "third"] {
        assert!(!out.contains(word) && !err.contains(word), "{word}");
    }
}

/// Scenario 60: one actor may have what the others don't.
#[test]
fn each_output_of_each_actor_may_be_another() {
    let Some((out, err)) = outputs_of(here!()) else {
        return isolate::block_on(async {
            let runtime = Runtime::builder().stdio(Stdio::Null).signals(false).open().unwrap();
            let done = runtime.nursery(async |n| {
                let one = n.actor("one").stdout(Stdio::Inherit).stderr(Stdio::Relay);
                let one = one.start().await?;
                let two = n.start("two").await?;
                one.call(say("first".to_owned())).await?;
                two.call(say("second".to_owned())).await?;
                Ok(())
            });
            done.await.unwrap();
            runtime.close().await;
        });
    };
    assert!(out.contains("out first\n") && !out.contains("[root/one]"), "{out}");
    assert!(err.lines().any(|line| line == "[root/one] err first"), "no relayed line");
    assert!(!out.contains("second") && !err.contains("second"), "{out}");
}

/// Lines on both outputs, as many as were asked for.
#[hatchery::function]
async fn lines(count: u32) {
    for i in 0..count {
        println!("out {i}");
        eprintln!("err {i}");
    }
    std::io::stdout().flush().unwrap();
}

/// All that comes through a piped output, to its end.
fn read_all(end: OwnedFd) -> JoinHandle<String> {
    tokio::spawn(async move {
        let mut text = String::new();
        let mut pipe = Receiver::from_owned_fd(end).unwrap();
        pipe.read_to_string(&mut text).await.unwrap();
        text
    })
}

fn expected(word: &str, count: u32) -> String {
    (0..count).map(|i| format!("{word} {i}\n")).collect()
}

/// Scenario 60: piped, each output alone and both, more than a pipe holds; to its end, after the
/// actor's.
#[test]
fn piped_output_is_the_spawners_to_read() {
    const COUNT: u32 = 20_000;
    for_each(here!(), &PROCESSES, async |runtime| {
        for (out, err) in [(true, false), (false, true), (true, true)] {
            let which = |piped| if piped { Stdio::Piped } else { Stdio::Null };
            let done = runtime.nursery(async |n| {
                let noisy = n.actor("noisy").stdout(which(out)).stderr(which(err));
                let noisy = noisy.start().await?;
                let (stdout, stderr) = (noisy.take_stdout(), noisy.take_stderr());
                assert_eq!((stdout.is_some(), stderr.is_some()), (out, err));
                assert!(noisy.take_stdout().is_none() && noisy.take_stderr().is_none());
                let (stdout, stderr) = (stdout.map(read_all), stderr.map(read_all));
                noisy.call(lines(COUNT)).await?;
                Ok([(stdout, "out"), (stderr, "err")])
            });
            for (reader, word) in done.await.unwrap() {
                if let Some(reader) = reader {
                    assert!(reader.await.unwrap() == expected(word, COUNT), "{word}");
                }
            }
        }
        runtime.close().await;
    });
}

/// C10: a piped output that nobody takes is closed when its actor has settled, not later, and not
/// with the portal.
#[test]
fn a_pipe_that_nobody_takes_goes_with_its_actor() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let mut before = None;
        for _ in 0..50 {
            let done = runtime.nursery(async |n| {
                let noisy = n.actor("noisy").stdout(Stdio::Piped).stderr(Stdio::Piped);
                let noisy = noisy.start().await?;
                noisy.call(lines(3)).await?;
                Ok(noisy)
            });
            let kept = done.await.unwrap();
            let now = Counts::now();
            // The forkserver came with the first one.
            let left = now.difference(before.get_or_insert_with(|| now.clone()));
            let left = left.unwrap_or_default().fds;
            assert!(!left.iter().any(|fd| fd.contains("pipe:")), "{left:?}");
            assert!(kept.take_stdout().is_none());
        }
        runtime.close().await;
    });
}

/// C8, C2: a pipe that nobody reads, taken or not, holds up the one that writes to it and nobody
/// else; it is ended by force inside the budget.
#[test]
fn a_pipe_that_nobody_reads_holds_up_its_writer_alone() {
    for_each(here!(), &PROCESSES, async |runtime| {
        for taken in [false, true] {
            let at = Instant::now();
            let down = runtime.nursery(async |_| {
                let scope = hatchery::nursery_with_report(async |n| {
                    let noisy = n.actor("noisy").stderr(Stdio::Piped).start().await?;
                    let quiet = n.start("quiet").await?;
                    let end = if taken { noisy.take_stderr() } else { None };
                    let stuck = noisy.call(flood()).within(Duration::from_millis(100)).await;
                    assert!(matches!(stuck, Err(CallError::Deadline(_))), "{stuck:?}");
                    assert_eq!(quiet.call(stdin()).await?.1, 0);
                    Ok(end)
                });
                Ok(scope.await)
            });
            let (done, report) = down.await.unwrap();
            let forced: Vec<_> = report.forced().iter().map(|one| one.path.to_string()).collect();
            assert_eq!(forced, ["root/noisy"], "{report}");
            // Force that was only tried leaves no status.
            assert!(report.forced()[0].end.is_some(), "{report}");
            // That it was forced is told, and is no error of what it was to do.
            drop(done);
            assert!(at.elapsed() < BUDGET + SLACK, "{:?}", at.elapsed());
        }
        runtime.close().await;
    });
}

fn is_refused(fault: &hatchery::Fault) -> bool {
    fault.kind == FaultKind::Refused && fault.message.contains("can't do piped output")
}

/// Scenario 60, C14: who can't have a pipe says so by a typed error: a thread, and a one-shot actor;
/// also if it is the default of the tree. Nothing is left of it.
#[test]
fn who_can_not_have_a_pipe_says_so() {
    isolate::run_test(here!(), HANG * 3, || {
        isolate::block_on(async {
            let before = Counts::now();
            let runtime = Runtime::builder().stdio(Stdio::Piped).signals(false).open().unwrap();
            let done = runtime.nursery(async |n| {
                let null = |name| n.actor(name).stdout(Stdio::Null).stderr(Stdio::Null);
                let thread = |name| null(name).backend(Backend::Thread);
                let error = thread("a").stderr(Stdio::Piped).start().await.unwrap_err();
                let unsupported = |error: &StartError| {
                    let StartCause::Spawn(cause) = &error.cause else { return false };
                    matches!(cause, SpawnError::Unsupported { backend: "thread", .. })
                };
                assert!(unsupported(&error) && is_refused(error.fault()), "{error:?}");
                let error = n.actor("a").backend(Backend::Thread).start().await.unwrap_err();
                assert!(unsupported(&error), "{error:?}");
                // The name is free, and who doesn't want a pipe is started.
                thread("a").start().await?;
                null("b").run(lines(1)).await?;
                n.run("c", lines(1)).await?;
                Ok(())
            });
            let error = done.await.unwrap_err();
            let [fault] = error.faults() else { panic!("{}", error.render()) };
            assert!(is_refused(fault) && fault.message.contains("one-shot"), "{}", error.render());
            runtime.close().await;
            assert_eq!(Counts::now().difference(&before).unwrap_or_default().fds, [""; 0]);
        });
    });
}

/// Scenario 60: as the default of the tree it goes down with it: every spawner has its actors'.
#[test]
fn a_piped_tree_is_read_level_by_level() {
    #[hatchery::function]
    async fn read_below() -> Result<String, Error> {
        let read = hatchery::nursery(async |n| {
            let low = n.start("low").await?;
            let text = low.take_stdout().map(read_all);
            low.call(lines(3)).await?;
            low.cancel();
            match text {
                Some(text) => Ok(text.await.unwrap()),
                None => Err(Error::msg("no pipe")),
            }
        });
        Ok(read.await?)
    }
    isolate::run_test(here!(), HANG * 3, || {
        isolate::block_on(async {
            for backend in PROCESSES {
                let builder = Runtime::builder().backend(backend).stdio(Stdio::Piped);
                let runtime = builder.signals(false).open().unwrap();
                let done = runtime.nursery(async |n| {
                    let one = n.start("one").await?;
                    let text = one.call(read_below()).await?;
                    assert_eq!(text, expected("out", 3));
                    Ok(())
                });
                done.await.unwrap();
                runtime.close().await;
            }
        });
    });
}

/// Scenario 59, C8, H5: fifteen actors write a MiB each to a stderr that nobody reads, or whose
/// reader is dead: every call is answered, and the tree comes down without force.
#[test]
fn a_stderr_that_nobody_reads_holds_up_nobody() {
    isolate::run_test(here!(), HANG * 3, || {
        for dead in [false, true] {
            let (read, write) = std::io::pipe().unwrap();
            nix::unistd::dup2_stderr(&write).unwrap();
            drop(write);
            let kept = (!dead).then_some(read);
            isolate::block_on(async {
                let runtime = Runtime::builder().stdio(Stdio::Relay).signals(false).open().unwrap();
                let done = runtime.nursery(async |_| {
                    let (done, report) = hatchery::nursery_with_report(async |n| {
                        let mut floods = tokio::task::JoinSet::new();
                        for i in 0..15 {
                            let actor = n.start(&format!("a{i}")).await?;
                            floods.spawn(async move { actor.call(flood()).await });
                        }
                        let mut lines = 0;
                        while let Some(flooded) = floods.join_next().await {
                            lines += flooded??;
                        }
                        Ok(lines)
                    })
                    .await;
                    Ok((done?, report))
                });
                let (lines, report) = done.await.unwrap();
                assert_eq!(lines, 15 * 1024);
                assert!(report.forced().is_empty(), "{report}");
                runtime.close().await;
            });
            drop(kept);
        }
    });
}

/// C8, C4: the error of an actor that died quotes its last lines.
#[test]
fn a_death_quotes_the_last_lines() {
    isolate::run_test(here!(), HANG * 3, || {
        for backend in PROCESSES {
            isolate::block_on(async {
                let runtime = Runtime::builder().backend(backend.clone()).stdio(Stdio::Relay);
                let runtime = runtime.signals(false).open().unwrap();
                let down: Result<(), _> = runtime
                    .nursery(async |n| {
                        let actor = n.start("a").await?;
                        let error = actor.call(last_words()).await.unwrap_err();
                        assert!(matches!(error, CallError::Died(_)), "{error:?}");
                        Err(error.into())
                    })
                    .await;
                let text = came_down(down).render();
                assert!(text.contains("word 29"), "{text}");
                runtime.close().await;
            });
        }
    });
}

/// Scenario 61: an actor's stdin is at its end from the start.
#[test]
fn no_actor_reads_the_terminal_of_the_root() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let done = runtime.nursery(async |n| {
            let actor = n.start("a").await?;
            let told = actor.call(stdin()).within(Duration::from_secs(10)).await?;
            assert_eq!(told, ("/dev/null".to_owned(), 0));
            Ok(())
        });
        done.await.unwrap();
        runtime.close().await;
    });
}

const INSIDE: &str = "HATCHERY_TESTS_INSIDE";

/// Makes stderr a pipe whose reader is gone, in a program that dies of SIGPIPE.
fn stderr_to_nobody() {
    let (reader, writer) = std::io::pipe().unwrap();
    nix::unistd::dup2_stderr(writer.as_fd()).unwrap();
    drop(reader);
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: it is no function.
    #[allow(unsafe_code, reason = "the default is what the scenario is about")]
    unsafe { sigaction(Signal::SIGPIPE, &default) }.unwrap();
}

/// C8, scenario 14: the reader of what is relayed is gone, and the program has SIGPIPE at its default:
/// neither a relayed line nor a dump ends it.
#[test]
fn a_program_that_dies_of_sigpipe_does_not_die_of_relayed_lines_or_of_a_dump() {
    let scenario = || {
        isolate::block_on(async {
            let runtime = Runtime::builder().config(Config::with_budget(BUDGET)).open().unwrap();
            stderr_to_nobody();
            let done = runtime.nursery(async |n| {
                let one = n.start("one").await?;
                one.call(lines(1000)).await?;
                // What a dump is written with, on a thread that did not expect it.
                hatchery_spawn::write_stderr("a dump\nof two lines", HANG);
                Ok(one.call(lines(1000)).await?)
            });
            done.await.unwrap();
            // The last lines are written, or not, before this returns.
            runtime.close().await;
            isolate::say("it lives").unwrap();
        });
    };
    if let Some(verdict) = isolate::observe(here!(), HANG, scenario) {
        assert!(verdict.is_clean() && verdict.said == "it lives", "{verdict}");
    }
}
