//! Scenarios 28, 29, 30 and 32: errors that come together, and how they look on their way out.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hatchery::{Config, Error, Fault, FaultKind, Nursery, nursery};
use hatchery_testkit::isolate::private_dir;
use hatchery_tests::{BACKENDS, BUDGET, ROOMY, SLACK, each, for_each, for_each_with, here};
use nix::sys::stat::Mode;

#[derive(Debug, PartialEq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{0} is broken")]
struct Broken(String);

/// Where actors wait, whatever they are, until the test has seen all of them.
///
/// They wait without an await: a cancel can't come in between, so each of them errs.
struct Gate {
    dir: PathBuf,
    _open: Option<File>,
}

impl Gate {
    fn new() -> Self {
        let dir = private_dir().expect("the scenario has a directory");
        nix::unistd::mkfifo(&dir.join("gate"), Mode::S_IRWXU).unwrap();
        fs::write(dir.join("here"), "").unwrap();
        Self { dir, _open: None }
    }

    /// Waits until that many have come, then lets them all go on.
    async fn open(&mut self, count: u64) {
        while fs::metadata(self.dir.join("here")).unwrap().len() < count {
            // A file has no event that an actor of any kind could send.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // For both, so that it waits for nobody.
        let gate = OpenOptions::new().read(true).write(true).open(self.dir.join("gate"));
        self._open = Some(gate.unwrap());
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        fs::remove_file(self.dir.join("gate")).unwrap();
        fs::remove_file(self.dir.join("here")).unwrap();
    }
}

/// Comes to the gate and waits there.
fn wait_at(dir: &Path) {
    use std::io::Write as _;
    let mut here = OpenOptions::new().append(true).open(dir.join("here")).unwrap();
    here.write_all(b".").unwrap();
    drop(File::open(dir.join("gate")).unwrap());
}

#[hatchery::function]
async fn fail_at(gate: PathBuf) -> Result<u64, Broken> {
    wait_at(&gate);
    Err(Broken(hatchery::path().name().to_owned()))
}

#[derive(Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("the pump of {at} stopped")]
struct Stopped {
    at: String,
    #[source]
    cause: Clogged,
}

#[derive(Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("its filter is clogged")]
struct Clogged;

/// Two leaves that stop, for a reason, below as many levels of one actor each.
#[hatchery::function]
async fn pumps(levels: u32, gate: PathBuf) -> Result<u64, Error> {
    if levels == 0 {
        wait_at(&gate);
        return Err(Stopped { at: hatchery::path().to_string(), cause: Clogged }.into());
    }
    let below = nursery(async |n| {
        let below = if levels == 1 { &["left", "right"][..] } else { &["mid"] };
        for name in below {
            drop(n.run(name, pumps(levels - 1, gate.clone())));
        }
        Ok(0)
    });
    Ok(below.await?)
}

/// Errs that long after the gate was opened; no cancel can come in between.
#[hatchery::function]
async fn fail_late(gate: PathBuf, late: Duration) -> Result<u64, Broken> {
    wait_at(&gate);
    #[allow(clippy::disallowed_methods, reason = "the scenario says when they err")]
    std::thread::sleep(late);
    Err(Broken(hatchery::path().name().to_owned()))
}

#[hatchery::function]
async fn idle() -> u64 {
    std::future::pending().await
}

/// A tree of that many levels below this actor, with every leaf in error.
#[hatchery::function]
async fn tree(levels: u32, breadth: u32, gate: PathBuf) -> Result<u64, Error> {
    if levels == 0 {
        wait_at(&gate);
        return Err(Broken(hatchery::path().name().to_owned()).into());
    }
    Ok(nursery(async |n| grow(&n, levels, breadth, &gate)).await?)
}

fn grow(n: &Nursery, levels: u32, breadth: u32, gate: &Path) -> hatchery::Result<u64> {
    for i in 0..breadth {
        drop(n.run(&format!("a{i}"), tree(levels - 1, breadth, gate.to_owned())));
    }
    Ok(0)
}

/// Scenario 28, C4: two of three err at the same moment: both come out, in a group, and the third
/// one's cancel is no error.
#[test]
fn two_that_err_at_the_same_moment_come_out_in_a_group() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let mut gate = Gate::new();
        let dir = gate.dir.clone();
        let failed = runtime.nursery(async |n| {
            let _never = n.run("third", idle());
            let _errs = n.run("one", fail_at(dir.clone()));
            let _errs = n.run("two", fail_at(dir));
            gate.open(2).await;
            Ok(())
        });
        let error = failed.await.unwrap_err();
        assert_eq!(error.fault().kind, FaultKind::Group, "{}", error.render());
        let mut paths: Vec<_> = error.faults().iter().map(|fault| fault.path.as_str()).collect();
        paths.sort_unstable();
        assert_eq!(paths, ["root/one", "root/two"], "{}", error.render());
        assert!(error.faults().iter().all(|fault| fault.kind == FaultKind::Failed));
        drop(gate);
        runtime.close().await;
    });
}

/// Scenario 29, C4, C10: 25 err, one after the other within half a second, while 25 more are
/// starting: all of them come out, and nobody is left.
#[test]
fn all_that_err_while_others_start_come_out_and_nobody_is_left() {
    let (hang, config) = (Duration::from_secs(60), Config::with_budget(ROOMY));
    each(hang, here!(), &BACKENDS, &config, async |runtime| {
        let mut gate = Gate::new();
        let dir = gate.dir.clone();
        let failed: Result<(), _> = runtime
            .nursery(async |n| {
                for i in 0..25 {
                    let late = Duration::from_millis(i * 20);
                    drop(n.run(&format!("bad{i}"), fail_late(dir.clone(), late)));
                }
                gate.open(25).await;
                for i in 0..25 {
                    let n = n.clone();
                    tokio::spawn(async move { n.start(&format!("new{i}")).await.map(drop) });
                }
                std::future::pending().await
            })
            .await;
        let error = failed.unwrap_err();
        let mut paths: Vec<_> = error.faults().iter().map(|fault| fault.path.as_str()).collect();
        paths.sort_unstable();
        let mut expected: Vec<_> = (0..25).map(|i| format!("root/bad{i}")).collect();
        expected.sort();
        assert_eq!(paths, expected, "{}", error.render());
        assert!(error.faults().iter().all(|fault| fault.kind == FaultKind::Failed));
        drop(gate);
        runtime.close().await;
    });
}

/// Scenario 32, C4: the rendering for people has one line an actor, with its path, under that of
/// the actor above it; the causes below; nothing twice.
#[test]
fn an_error_is_rendered_with_one_line_an_actor_and_its_causes() {
    for_each(here!(), &BACKENDS, async |runtime| {
        let mut gate = Gate::new();
        let dir = gate.dir.clone();
        let failed = runtime.nursery(async |n| {
            let top = n.run("top", pumps(2, dir));
            gate.open(2).await;
            Ok(top.await?)
        });
        let error = failed.await.unwrap_err();
        let text = error.render();
        // Siblings stand in the order in which they erred.
        let mut lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("failed:")) {
            let indent = line.len() - line.trim_start().len() + 2;
            let cause = format!("{:indent$}because: its filter is clogged", "");
            assert_eq!(lines.get(i + 1), Some(&&*cause), "{text}");
        }
        lines.retain(|line| !line.contains("because:"));
        lines.sort_unstable();
        let leaf = |name: &str| {
            let path = format!("root/top/mid/{name}");
            format!("  actor `{path}` failed: the pump of {path} stopped")
        };
        let mid = "actor `root/top/mid` has 2 errors".to_owned();
        let expected = [leaf("left"), leaf("right"), mid];
        assert_eq!(lines, expected, "{text}");
        drop(gate);
        runtime.close().await;
    });
}

/// Scenario 30, C2, C4: T(1,2), T(2,2), T(3,2), T(3,3) with every leaf in error: each leaf's error
/// comes out once, by its path; the group mirrors the tree; bounded.
#[test]
fn every_leaf_in_error_comes_out_once_whatever_the_shape() {
    // What it takes is judged below; nobody is to be forced.
    for_each_with(&Config::with_budget(ROOMY), here!(), &BACKENDS, async |runtime| {
        for (levels, breadth) in [(1, 2), (2, 2), (3, 2), (3, 3_u32)] {
            let mut gate = Gate::new();
            let dir = gate.dir.clone();
            let mut at = Instant::now();
            let failed = runtime.nursery(async |n| {
                grow(&n, levels, breadth, &dir)?;
                gate.open(u64::from(breadth.pow(levels))).await;
                at = Instant::now();
                Ok(())
            });
            let error = failed.await.unwrap_err();
            assert!(at.elapsed() < BUDGET + SLACK, "{:?}", at.elapsed());
            assert!(error.report().forced().is_empty(), "{}", error.report());
            let mut leaves = Vec::new();
            leaves_of(error.fault(), &mut leaves);
            leaves.sort();
            assert_eq!(leaves, paths(levels, breadth), "{}", error.render());
            assert_mirrors(error.fault(), levels, breadth);
            drop(gate);
        }
        runtime.close().await;
    });
}

/// The paths of the errors in a fault; whatever stands below another stands below its actor.
fn leaves_of(fault: &Fault, leaves: &mut Vec<String>) {
    if fault.kind == FaultKind::Failed && fault.below.is_empty() {
        leaves.push(fault.path.to_string());
    }
    for below in &fault.below {
        assert!(below.path == fault.path || below.path.is_below(&fault.path), "{}", fault.render());
        leaves_of(below, leaves);
    }
}

/// Whether each actor of the tree stands as a group of those below it, whichever of them was
/// cancelled before it could return its own.
fn assert_mirrors(fault: &Fault, levels: u32, breadth: u32) {
    if levels == 0 {
        return;
    }
    assert_eq!(fault.kind, FaultKind::Group, "{}", fault.render());
    let mut below: Vec<_> = fault.below.iter().map(|fault| fault.path.to_string()).collect();
    below.sort();
    let expected: Vec<_> = (0..breadth).map(|i| format!("{}/a{i}", fault.path)).collect();
    assert_eq!(below, expected, "{}", fault.render());
    for fault in &fault.below {
        assert_mirrors(fault, levels - 1, breadth);
    }
}

fn paths(levels: u32, breadth: u32) -> Vec<String> {
    (0..levels).fold(vec!["root".to_owned()], |above, _| {
        let below = |path: String| (0..breadth).map(move |i| format!("{path}/a{i}"));
        above.into_iter().flat_map(below).collect()
    })
}
