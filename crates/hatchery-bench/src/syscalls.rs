//! How many system calls a start, a call and a message take, and which, on each side: strace counts
//! them in a run of few and in one of many, and the difference is what one more takes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

use clap::ValueEnum;
use hatchery::{Runtime, Stdio as ActorStdio};

use crate::calls::echo;
use crate::figures::{Samples, float};
use crate::payload::Block;
use crate::pin::Place;
use crate::report::{Row, Unit};
use crate::{Outcome, starts, streams, tree};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// A start, a call, a cancel, and waiting until it has gone.
    Start,
    /// A call of 64 bytes, with no other under way.
    Call,
    /// One of many messages of 64 bytes in a stream.
    Message,
}

impl Work {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn counts(self) -> [u64; 2] {
        match self {
            Self::Start => [5, 25],
            Self::Call => [20, 220],
            Self::Message => [1000, 101_000],
        }
    }
}

/// What strace runs. Says at its end which of the traced are the root and the forkserver.
pub(crate) fn run(work: Work, count: u64) -> Outcome {
    Place::One.here()?;
    tree::on_tokio(async {
        let runtime = Runtime::builder().stdio(ActorStdio::Null).signals(false).open()?;
        runtime
            .nursery(async |n| {
                let actor = n.start("a").await?;
                match work {
                    Work::Start => {
                        for i in 0..count {
                            starts::one(&n, &format!("a{i}")).await?;
                        }
                    }
                    Work::Call => {
                        for _ in 0..count {
                            actor.call(echo(Block([7; 64]))).await?;
                        }
                    }
                    Work::Message => streams::send(&actor, 64, count).await.map_err(tree::told)?,
                }
                for thread in threads().map_err(tree::told)? {
                    println!("root {thread}");
                }
                println!("forkserver {}", runtime.forkserver_pid().unwrap_or_default());
                Ok(())
            })
            .await?;
        runtime.close().await;
        Ok(())
    })
}

/// Of this process.
fn threads() -> Outcome<Vec<String>> {
    let tasks = std::fs::read_dir("/proc/self/task")?;
    tasks.map(|task| Ok(task?.file_name().display().to_string())).collect()
}

/// Whose calls they are, by system call.
type Counts = BTreeMap<&'static str, BTreeMap<String, u64>>;

pub(crate) fn measure() -> Outcome {
    for &work in Work::value_variants() {
        let [few, many] = work.counts();
        let Some((before, after)) = count(work, few)?.zip(count(work, many)?) else {
            let row = Row::new("syscalls", work.name(), Unit::Count);
            row.note("not counted: there is no strace").tell();
            continue;
        };
        for (role, calls) in after {
            tell(work, role, before.get(role), calls, float(many - few));
        }
    }
    Ok(())
}

fn tell(
    work: Work,
    role: &str,
    before: Option<&BTreeMap<String, u64>>,
    after: BTreeMap<String, u64>,
    more: f64,
) {
    let each = after.into_iter().map(|(name, count)| {
        let before = before.and_then(|before| before.get(&name)).copied().unwrap_or(0);
        (name, (float(count) - float(before)) / more)
    });
    // Less is what came of chance, not of one more.
    let mut each: Vec<(String, f64)> = each.filter(|(_, count)| *count >= LEAST).collect();
    each.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    if each.is_empty() {
        return;
    }
    let total = each.iter().map(|(_, count)| count).sum();
    let named: Vec<String> =
        each.iter().map(|(name, count)| format!("{count:.2} {name}")).collect();
    Row::new("syscalls", format!("{}, {role}", work.name()), Unit::Count)
        .alone(&Samples::one(total))
        .note(named.join(", "))
        .tell();
}

/// None if nothing counts them here.
fn count(work: Work, count: u64) -> Outcome<Option<Counts>> {
    let dir = std::env::temp_dir().join(format!("hatchery-bench-strace-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let counted = count_in(&dir, work, count);
    std::fs::remove_dir_all(&dir)?;
    counted
}

fn count_in(dir: &Path, work: Work, count: u64) -> Outcome<Option<Counts>> {
    let mut command = Command::new("strace");
    command.args(["-ff", "-qq", "-o"]).arg(dir.join("of")).arg(std::env::current_exe()?);
    command.args(["syscalls", &work.name(), &count.to_string()]).stdin(Stdio::null());
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("strace could not be started: {error}").into()),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("strace could not run it: {said}").into());
    }
    let told = String::from_utf8(output.stdout)?;
    let of = |role| told.lines().filter_map(move |line| Some(line.strip_prefix(role)?.trim()));
    let (root, server): (BTreeSet<_>, BTreeSet<_>) =
        (of("root").collect(), of("forkserver").collect());
    let mut counts = Counts::new();
    for file in std::fs::read_dir(dir)? {
        let file = file?;
        let name = file.file_name().display().to_string();
        let traced = name.rsplit('.').next().unwrap_or_default();
        let role = match traced {
            traced if root.contains(traced) => "root",
            traced if server.contains(traced) => "forkserver",
            _ => "actor",
        };
        let calls = counts.entry(role).or_default();
        let text = std::fs::read(file.path())?;
        for line in String::from_utf8_lossy(&text).lines() {
            // A signal or an end is none, and the rest of one that was interrupted is no other.
            if let Some((call, _)) = line.split_once('(').filter(|(call, _)| is_name(call)) {
                *calls.entry(call.to_owned()).or_default() += 1;
            }
        }
    }
    Ok(Some(counts))
}

fn is_name(call: &str) -> bool {
    !call.is_empty()
        && call.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

const LEAST: f64 = 0.005;
