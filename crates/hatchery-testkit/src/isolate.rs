//! A scenario in a process of its own, under a hard bound from outside.
//!
//! A hang costs seconds and leaves a dump of the whole tree; a leak is found also when the
//! scenario's process itself was killed.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use hatchery_spawn::Pidfd;

use crate::leftovers::{self, Leftover};
use crate::dump;

/// How an isolated process came out.
#[derive(Debug)]
pub struct Outcome {
    /// Its status; `None` if it had to be killed at the bound.
    pub status: Option<ExitStatus>,
    /// All that it wrote to stdout.
    pub stdout: String,
    /// All that it wrote to stderr.
    pub stderr: String,
    /// Who was still there a second after its end.
    pub leftovers: Vec<Leftover>,
    /// The whole tree at the moment when the bound was hit.
    pub dump: Option<String>,
    /// From its start to its end.
    pub elapsed: Duration,
}

/// Runs `command` to its end, at most `bound`, and looks at what it leaves behind.
///
/// Its output goes to files, so that nothing it writes can block it.
///
/// # Errors
/// It could not be started, or its output not be read.
pub fn run(mut command: Command, bound: Duration) -> std::io::Result<Outcome> {
    let mark = leftovers::new_mark();
    let (mut stdout, mut stderr) = (unnamed()?, unnamed()?);
    command
        .env(leftovers::MARK, &mark)
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?);
    let began = Instant::now();
    let mut child = command.spawn()?;
    let ended = Pidfd::open(child.id())?.wait_dead(bound);
    let dump = (!ended).then(|| {
        dump::of_mark(&mark).iter().fold(String::new(), |mut text, process| {
            // Writing to a String can't fail.
            let _infallible = writeln!(text, "{process}");
            text
        })
    });
    if !ended {
        child.kill()?;
    }
    let status = child.wait()?;
    let elapsed = began.elapsed();
    let leftovers = leftovers::find_after(&mark, Duration::from_secs(1));
    leftovers::kill(&mark, Duration::from_secs(5));
    Ok(Outcome {
        status: ended.then_some(status),
        stdout: read(&mut stdout)?,
        stderr: read(&mut stderr)?,
        leftovers,
        dump,
        elapsed,
    })
}

/// Runs the body of the test with this full name in a process of its own: the test binary started
/// again for this one test. There the body runs, and the counts must be the same after it (C10).
///
/// # Panics
/// If the body panics, hangs or leaves anything behind.
pub fn test(name: &str, bound: Duration, body: impl FnOnce()) {
    let name = name.split_once("::").map_or(name, |(_crate, rest)| rest);
    if std::env::var_os(INSIDE).is_some() {
        let before = crate::counts::Counts::now();
        body();
        return before.assert_same();
    }
    let program = std::env::current_exe().expect("/proc/self/exe names this test binary");
    let mut command = Command::new(program);
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(INSIDE, "1");
    let outcome = run(command, bound).expect("this test binary can be started again");
    let Outcome { status, stdout, stderr, leftovers, dump, .. } = outcome;
    let well = status.is_some_and(|status| status.success()) && leftovers.is_empty();
    let ran = stdout.contains("1 passed");
    assert!(
        well && ran,
        "status {status:?}, left behind {leftovers:?}\n{}\n{stdout}\n{stderr}",
        dump.unwrap_or_default()
    );
}

fn unnamed() -> std::io::Result<File> {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    Ok(nix::sys::memfd::memfd_create(c"output", flags)?.into())
}

fn read(file: &mut File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Tells a test binary that it is the isolated one.
const INSIDE: &str = "HATCHERY_ISOLATED";
