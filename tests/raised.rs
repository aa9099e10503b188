//! Programs that have taken more rights than their tree: they can't be ended, so they are named, and in a
//! cgroup they are ended (C1, C16).
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]
#![allow(clippy::zombie_processes, reason = "left behind on purpose")]

use std::fs;
use std::io::BufReader;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as StdStdio};
use std::time::{Duration, Instant};

use hatchery::{
    ActorReport, Cgroup, Config, Confinement, Error, FaultKind, Runtime, ScopeError, nursery,
};
use hatchery_spawn::{Bounds, Command as Program, Exit, Forkserver, Left, Pidfd, Stdio};
use hatchery_testkit::isolate::{self, End, Verdict};
use hatchery_tests::{PROCESSES, ROOMY, came_down, here, with};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Uid, setgid, setresgid, setresuid, setuid};

/// Ways to leave a program, whose words are this script's own: in the group of who leaves it, with its
/// parent; let go by its parent; in a session of its own; that, let go by its parent.
const WAYS: [&str; 4] =
    [r#"exec "$@""#, r#""$@" & exit"#, r#"exec setsid "$@""#, r#"setsid "$@" & exit"#];
const LAST: usize = WAYS.len() - 1;

/// The words of the set-user-id program: this binary again, asked for a test that becomes it.
fn words(program: &Path) -> [String; 4] {
    let test = "what_has_taken_all_ids_is_named_by_the_nursery_that_it_outlives";
    [program.to_str().unwrap(), test, "--exact", "--nocapture"].map(str::to_owned)
}

/// Whether this is that program, which has done what it is for.
fn is_raised() -> bool {
    if std::env::var_os(RAISED).is_none() {
        return false;
    }
    let root = Uid::from_raw(0);
    if Uid::effective().is_root() {
        setresgid(0.into(), 0.into(), 0.into()).unwrap();
        setresuid(root, root, root).unwrap();
    }
    println!("\n{RAISED} {} {}", std::process::id(), Uid::current());
    // Until it is killed; should nobody do that, it goes by itself.
    let until = Instant::now() + Duration::from_secs(120);
    while Instant::now() < until {
        std::thread::park_timeout(Duration::from_secs(1));
    }
    true
}

/// Leaves the program in that way; says which process it is, when it has taken all ids.
#[hatchery::function]
async fn leave(program: PathBuf, way: usize) -> u32 {
    let mut shell = Command::new("sh");
    shell.args(["-c", WAYS[way], "sh"]).args(words(&program)).env(RAISED, "1");
    let mut shell = shell.stdout(StdStdio::piped()).spawn().unwrap();
    let said = pid_of(BufReader::new(shell.stdout.take().unwrap()));
    if way % 2 == 1 {
        shell.wait().unwrap();
    }
    said
}

fn pid_of(said: impl std::io::BufRead) -> u32 {
    let mut lines = said.lines().map_while(Result::ok);
    let line = lines.find_map(|line| line.strip_prefix(RAISED).map(str::to_owned)).unwrap();
    let numbers: Vec<u32> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!(numbers[1], 0, "it has not taken all ids");
    numbers[0]
}

#[hatchery::function]
async fn leave_below(program: PathBuf) -> Result<(), Error> {
    nursery(async |n| {
        n.run("below", leave(program, LAST)).await?;
        Ok(())
    })
    .await?;
    Ok(())
}

/// A copy of this program that is set-user-id, in a directory that all may read. Says why not if it can't
/// be had.
fn set_user_id_copy() -> Option<PathBuf> {
    if !Uid::effective().is_root() {
        eprintln!("not tested: only the superuser makes a set-user-id program of his own");
        return None;
    }
    let dir = isolate::private_dir().unwrap();
    if statvfs(&dir).unwrap().flags().contains(FsFlags::ST_NOSUID) {
        eprintln!(
            "not tested: {} is on a file system where set-user-id does nothing",
            dir.display()
        );
        return None;
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.join(NAME);
    fs::copy("/proc/self/exe", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    Some(program)
}

/// Becomes a user who has nothing else.
fn become_nobody() -> u32 {
    let nobody = 1_000_000 + std::process::id();
    setgid(nobody.into()).unwrap();
    setuid(nobody.into()).unwrap();
    nobody
}

/// Who must be told, and in which words.
fn named(pid: u32) -> String {
    format!("process {pid} (`{NAME}` of user 0), which may not be signalled")
}

/// Everybody in a report.
fn all(report: &[ActorReport]) -> Vec<&ActorReport> {
    report.iter().flat_map(|actor| std::iter::once(actor).chain(all(&actor.below))).collect()
}

/// All that an error says was left behind, and by whom; its report says the same.
fn told(error: &ScopeError) -> Vec<(String, String)> {
    let leaves = error.faults().iter().flat_map(|fault| fault.leaves());
    let mut told: Vec<_> = leaves
        .map(|leaf| {
            assert_eq!(leaf.kind, FaultKind::LeftBehind, "{}", error.render());
            (leaf.path.to_string(), leaf.message.clone())
        })
        .collect();
    let report = all(&error.report().actors).into_iter();
    let report = report.filter(|actor| !actor.left_behind.is_empty());
    let mut reported: Vec<_> =
        report.map(|actor| (actor.path.to_string(), actor.left_behind.join(", "))).collect();
    told.sort_unstable();
    reported.sort_unstable();
    assert_eq!(told, reported, "{}", error.render());
    told
}

/// The scenario's pid lines, one for each that is to outlive it.
fn outlives(pid: u32) {
    isolate::say(&format!("{pid}\n")).unwrap();
}

/// From outside: the scenario has succeeded, and nothing is left of it but those whom it told of, and the
/// program. All of it is gone since: who looks on is the superuser.
fn only_those_are_left(verdict: &Verdict) {
    assert_eq!(verdict.end, End::Code(0), "{verdict}");
    let mut told: Vec<u32> = verdict.said.lines().map(|line| line.parse().unwrap()).collect();
    let mut left: Vec<u32> = verdict.left.iter().map(|process| process.pid).collect();
    told.sort_unstable();
    left.sort_unstable();
    assert_eq!(told, left, "{verdict}");
    assert!(verdict.files.iter().all(|file| file == NAME), "{verdict}");
    for line in verdict.output.lines().filter(|line| line.contains("not tested")) {
        eprintln!("{line}");
    }
}

/// C1, C16: what an actor started and what may not be signalled is named by the error of its nursery, and
/// by the report, with why: however it was left, by an actor of any depth, and by several at once. The
/// nursery doesn't wait for it.
#[test]
fn what_has_taken_all_ids_is_named_by_the_nursery_that_it_outlives() {
    if is_raised() {
        return;
    }
    let verdict = isolate::observe(here!(), Duration::from_secs(120), || {
        let Some(program) = set_user_id_copy() else { return };
        become_nobody();
        for backend in PROCESSES {
            with(backend, Config::with_budget(ROOMY), async |runtime| {
                each_is_named(&runtime, &program).await;
                who_is_below_is_named(&runtime, &program).await;
                those_of_several_are_named(&runtime, &program).await;
                runtime.close().await;
            });
        }
    });
    if let Some(verdict) = verdict {
        only_those_are_left(&verdict);
    }
}

async fn each_is_named(runtime: &Runtime, program: &Path) {
    for way in 0..WAYS.len() {
        let started = Instant::now();
        let down: Result<(), _> = runtime
            .nursery(async |n| {
                n.run("once", leave(program.to_owned(), way)).await?;
                Ok(())
            })
            .await;
        only_one_is_told("root/once", &came_down(down));
        assert!(started.elapsed() < ROOMY, "it was waited for: {:?}", started.elapsed());
    }
}

/// What a body would have heard of it may come too late: the error ends the body.
fn only_one_is_told(path: &str, error: &ScopeError) {
    let told = told(error);
    let [(of, message)] = &told[..] else { panic!("{told:?}") };
    let pid = message.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!((&**of, &**message), (path, &*named(pid)));
    assert!(!Pidfd::open(pid).unwrap().is_dead());
    outlives(pid);
}

async fn who_is_below_is_named(runtime: &Runtime, program: &Path) {
    let down: Result<(), _> =
        runtime.nursery(async |n| Ok(n.run("above", leave_below(program.to_owned())).await?)).await;
    only_one_is_told("root/above/below", &came_down(down));
}

/// Nobody can tell whose is which, if they end at once: each of them is named, by one of them at least.
async fn those_of_several_are_named(runtime: &Runtime, program: &Path) {
    let mut pids = Vec::new();
    let down: Result<(), _> = runtime
        .nursery(async |n| {
            for name in ["a", "b", "c"] {
                let actor = n.start(name).await?;
                pids.push(actor.call(leave(program.to_owned(), LAST)).await?);
            }
            n.cancel();
            Ok(())
        })
        .await;
    let error = came_down(down);
    let told = told(&error);
    for pid in pids {
        let is_named = told.iter().any(|(_, message)| message.contains(&named(pid)));
        assert!(is_named, "{pid}: {told:?}");
        outlives(pid);
    }
}

/// C1: a program that leaves one says so, by its handle and with its output.
#[test]
fn what_a_program_left_that_has_taken_all_ids_is_named() {
    let verdict = isolate::observe(here!(), Duration::from_secs(60), || {
        let Some(program) = set_user_id_copy() else { return };
        become_nobody();
        let server = Forkserver::start(Bounds::default()).unwrap();
        isolate::block_on(async {
            let shell = |script: &str| {
                let shell = Program::new("sh").args(["-c", script, "sh"]).args(words(&program));
                let shell = shell.on(&server);
                shell.env(RAISED, "1").stderr(Stdio::Null)
            };
            // They go when it has taken all ids: before that it would be ended with them.
            for script in
                [r#"{ "$@" & } | sed /^raised/q"#, r#"{ setsid "$@" & } | sed /^raised/q"#]
            {
                let mut child = shell(script).stdout(Stdio::Piped).spawn().await.unwrap();
                let said = fs::File::from(child.take_stdout().unwrap());
                let pid = pid_of(BufReader::new(said));
                assert_eq!(child.wait().await.unwrap(), Exit::Code(0));
                let left = Left { pid, uid: 0, name: NAME.to_owned(), refused: true };
                assert_eq!(child.handle().left_behind(), [left]);
                outlives(pid);
            }
            let script = r#"{ setsid "$@" & } | sed /^raised/q"#;
            let output = shell(script).output().await.unwrap();
            let pid = pid_of(&output.stdout[..]);
            assert_eq!(output.left_behind.len(), 1, "{output:?}");
            assert_eq!(output.left_behind[0].to_string(), named(pid));
            outlives(pid);
        });
        server.close();
    });
    if let Some(verdict) = verdict {
        only_those_are_left(&verdict);
    }
}

/// A directory of cgroups that belongs to a user, with this process inside of it.
struct Delegated(PathBuf);

impl Delegated {
    /// Says why there is none.
    fn to(user: u32) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" cgroup2 "));
        let Some(mount) = mount.and_then(|line| line.split(' ').nth(1)) else {
            eprintln!("not tested: no cgroup v2 is mounted");
            return None;
        };
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let place = Path::new(mount).join(own).join(format!("test-raised-{user}"));
        let home = place.join("home");
        let made = fs::create_dir_all(&home)
            .and_then(|()| fs::write(home.join("cgroup.procs"), std::process::id().to_string()));
        if let Err(error) = made {
            eprintln!("not tested: {}: {error}", place.display());
            return None;
        }
        for path in [place.clone(), place.join("cgroup.procs"), home.join("cgroup.procs")] {
            chown(path, Some(user), Some(user)).unwrap();
        }
        Some(Self(place))
    }

    /// From outside, when nobody is in it any more.
    fn remove(place: &Path) {
        let until = Instant::now() + Duration::from_secs(2);
        let _gone = fs::remove_dir(place.join("home"));
        while fs::remove_dir(place).is_err() && Instant::now() < until {
            std::thread::yield_now();
        }
        assert!(!place.exists(), "{} is left", place.display());
    }
}

/// C1: in a cgroup it is ended with its actor, whatever rights it has taken.
#[test]
fn in_a_cgroup_what_has_taken_all_ids_is_ended() {
    let verdict = isolate::observe(here!(), Duration::from_secs(60), || {
        let Some(program) = set_user_id_copy() else { return };
        let Some(place) = Delegated::to(1_000_000 + std::process::id()) else { return };
        isolate::say(place.0.to_str().unwrap()).unwrap();
        become_nobody();
        for backend in PROCESSES {
            with(backend, Config::with_budget(ROOMY), async |runtime| {
                for way in 0..WAYS.len() {
                    let left = runtime.nursery(async |n| {
                        let confined = Confinement::new().cgroup(Cgroup::under(&place.0));
                        let actor = n.actor("in-it").confine(confined).start().await?;
                        let pid = actor.call(leave(program.clone(), way)).await?;
                        Ok(Pidfd::open(pid).unwrap())
                    });
                    let left = left.await.unwrap_or_else(|error| panic!("{}", error.render()));
                    assert!(left.is_dead(), "way {way}");
                }
                runtime.close().await;
            });
        }
    });
    let Some(mut verdict) = verdict else { return };
    let place = std::mem::take(&mut verdict.said);
    if !place.is_empty() {
        Delegated::remove(Path::new(&place));
    }
    only_those_are_left(&verdict);
}

/// The name of the program, and of the variable that makes it one.
const NAME: &str = "raised";
const RAISED: &str = "raised";
