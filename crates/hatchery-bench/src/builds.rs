//! How long the smallest program takes to build, and how large it is.

use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Outcome;
use crate::figures::{Samples, float};
use crate::report::{Row, Unit};

pub(crate) fn measure() -> Outcome {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/Cargo.toml");
    for (name, arguments) in [("debug", &[][..]), ("release", &["--release"])] {
        let target = tempdir(name)?;
        let mut command = Command::new("cargo");
        command.args(["build", "--offline", "--example", "first", "--manifest-path", manifest]);
        command.args(arguments).arg("--target-dir").arg(&target).stdout(Stdio::null());
        let began = Instant::now();
        let status = command.status();
        let took = began.elapsed().as_secs_f64();
        let built = target.join(name).join("examples/first");
        let size = std::fs::metadata(&built).map(|found| float(found.len()));
        std::fs::remove_dir_all(&target)?;
        match (status, size) {
            (Ok(status), Ok(size)) if status.success() => {
                Row::new("builds", format!("{name} build of `first` from nothing"), Unit::Seconds)
                    .alone(&Samples::one(took))
                    .tell();
                Row::new("builds", format!("{name} program `first`"), Unit::Bytes)
                    .alone(&Samples::one(size))
                    .tell();
            }
            // Neither is zero then.
            _ => Row::new("builds", format!("{name}: cargo could not build it"), Unit::Seconds)
                .tell(),
        }
    }
    Ok(())
}

fn tempdir(name: &str) -> Outcome<std::path::PathBuf> {
    let dir = std::env::temp_dir().join(format!("hatchery-bench-{name}-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    Ok(dir)
}
