//! The `hatchery dump` command: text for people, JSON for programs, a status that tells.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use hatchery_testkit::dump::{Dump, boards::Kind};
use hatchery_testkit::isolate;

fn dump(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hatchery")).arg("dump").args(args).output().unwrap()
}

#[test]
fn a_process_is_shown_as_text_and_as_json() {
    // It reads until we close its stdin.
    let mut cat = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let pid = cat.id().to_string();
    let text = dump(&[&pid]);
    let shown = String::from_utf8(text.stdout).unwrap();
    assert!(text.status.success() && shown.starts_with("nobody waits for anybody\n"), "{shown}");
    assert!(shown.contains("thread") && shown.contains("fd 0 pipe:["), "{shown}");
    let json = dump(&["--json", "--alone", &pid]);
    let read: Dump = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((read.process.pid, read.process.count()), (cat.id(), 1));
    drop(cat.stdin.take());
    cat.wait().unwrap();
}

#[hatchery::function]
async fn idle() -> u64 {
    std::future::pending().await
}

/// Who is asked for an actor shows the whole tree that it is part of, with what each has open.
#[test]
fn a_tree_is_shown_by_the_number_of_any_of_its_actors() {
    isolate::run_test("dump::a_tree_is_shown_by_the_number_of_any_of_its_actors", HANG, || {
        isolate::block_on(async {
            let runtime = hatchery::Runtime::builder().signals(false).open().unwrap();
            let down: hatchery::Result<(), _> = runtime
                .nursery(async |n| {
                    let child = n.start("child").await?;
                    let (seen, pid) = (child.clone(), child.pid().unwrap());
                    let looker = std::thread::spawn(move || {
                        look_at(pid);
                        // That ends the call.
                        seen.cancel();
                    });
                    let ended = child.call(idle()).await;
                    assert!(ended.is_err());
                    looker.join().unwrap();
                    Ok(())
                })
                .await;
            down.unwrap();
            runtime.close().await;
        });
    });
}

fn look_at(actor: u32) {
    let until = Instant::now() + HANG / 2;
    loop {
        let json = dump(&["--json", &actor.to_string()]);
        let read: Dump = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(read.process.pid, std::process::id(), "not the root");
        let all = read.process.flatten();
        let boards: Vec<_> = all.iter().filter_map(|one| one.board.as_ref()).collect();
        let has = |kind, who: &str, what: &str| {
            let mut records = boards.iter().flat_map(|board| &board.records);
            records.any(|one| one.kind == kind && one.who == who && one.what.ends_with(what))
        };
        if boards.len() == 2
            && has(Kind::Actor, "root", "")
            && has(Kind::Actor, "root/child", "")
            && has(Kind::Call, "root/child", "idle")
            && has(Kind::Serving, "root", "idle")
        {
            let text = String::from_utf8(dump(&[&actor.to_string()]).stdout).unwrap();
            assert!(text.contains("likely culprit: root/child"), "{text}");
            return;
        }
        assert!(Instant::now() < until, "what is looked for never came:\n{read}");
    }
}

/// Catches hangs only.
const HANG: Duration = Duration::from_secs(60);

#[test]
fn who_is_not_there_is_an_error() {
    // The kernel gives no process this number.
    let none = dump(&["4294967295"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8(none.stderr).unwrap().contains("no process 4294967295"));
    assert_eq!(dump(&["root"]).status.code(), Some(2));
}
