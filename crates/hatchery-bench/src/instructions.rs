//! What the hot paths cost in instructions, beside what was accepted.
//!
//! Time differs from run to run; instructions hardly do. valgrind counts them: each path runs few
//! rounds and many, and the difference is what the rounds cost.

use std::path::Path;
use std::process::{Command, Stdio};

use clap::ValueEnum;

use crate::Outcome;
use crate::cli::Extent;
use crate::figures::{Samples, Turns};
use crate::hot::{FEW, Hot, MANY};
use crate::report::{Goal, Row, Unit};

mod accepted;

use accepted::Accepted;

pub(crate) fn measure(_: Extent) -> Outcome {
    if cfg!(debug_assertions) {
        return missing("this is no release build");
    }
    let Some(counts) = count()? else { return missing("there is no valgrind") };
    if cfg!(feature = "peers") {
        // Other code beside it changes what is inlined, by more than the tolerance.
        for (path, count) in Hot::value_variants().iter().zip(counts) {
            let row = Row::new("instructions", path.name(), Unit::Count);
            row.alone(&Samples::one(count))
                .note("compared without the feature `peers` only")
                .tell();
        }
        return Ok(());
    }
    let accepted = Accepted::read()?;
    let mut counted = Accepted::of_this_compiler();
    for (path, count) in Hot::value_variants().iter().zip(counts) {
        counted.paths.insert(path.name(), count.round());
        let row = Row::new("instructions", path.name(), Unit::Count);
        let Some(&before) = accepted.paths.get(&path.name()) else {
            row.alone(&Samples::one(count)).note("nothing accepted yet").tell();
            continue;
        };
        let mut turns = Turns::default();
        turns.turn(&Samples::one(before), &Samples::one(count));
        let tolerance = counted.tolerance(&accepted);
        row.beside("accepted", &turns).goal(Goal::RatioAtMost(tolerance)).tell();
    }
    if std::env::var_os(ACCEPT).is_some() {
        return counted.write();
    }
    counted.say_what_is_new(&accepted)
}

fn missing(why: &str) -> Outcome {
    for path in Hot::value_variants() {
        let row = Row::new("instructions", path.name(), Unit::Count);
        row.note(format!("not compared: {why}")).tell();
    }
    Ok(())
}

/// Instructions of one round of each path; none if nothing counts them here.
fn count() -> Outcome<Option<Vec<f64>>> {
    let dir = std::env::temp_dir().join(format!("hatchery-bench-hot-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let counted = count_into(&dir.join("out"));
    std::fs::remove_dir_all(&dir)?;
    counted
}

fn count_into(file: &Path) -> Outcome<Option<Vec<f64>>> {
    let mut command = Command::new("valgrind");
    command.args([
        "--tool=callgrind",
        "--zero-before=hatchery_bench::hot::measured",
        "--dump-after=hatchery_bench::hot::measured",
    ]);
    command.arg(format!("--callgrind-out-file={}", file.display()));
    command.arg(std::env::current_exe()?).arg("hot").stdin(Stdio::null()).stdout(Stdio::null());
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("valgrind could not be started: {error}").into()),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("valgrind could not run the hot paths: {said}").into());
    }
    let mut counts = Vec::new();
    for nth in (1..).step_by(2).take(Hot::value_variants().len()) {
        let [few, many] = [nth, nth + 1].map(|nth| total(&file.with_extension(nth.to_string())));
        counts.push((many? - few?) / f64::from(MANY - FEW));
    }
    Ok(Some(counts))
}

/// How many instructions one of valgrind's files counts.
fn total(file: &Path) -> Outcome<f64> {
    let text = std::fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix("summary: "));
    Ok(line.ok_or("valgrind wrote no summary")?.trim().parse()?)
}

/// Set, what was counted is accepted from now on.
const ACCEPT: &str = "HATCHERY_BENCH_ACCEPT";
