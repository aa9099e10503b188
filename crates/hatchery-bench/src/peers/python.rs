//! Python's `multiprocessing` with its forkserver.

use std::process::{Command, Stdio};

use super::Work;
use crate::Outcome;
use crate::figures::Samples;

/// Python measures itself and prints seconds, a start or a round trip a line.
pub(super) fn take(work: Work, count: usize) -> Outcome<Samples> {
    let (starts, calls) = match work {
        Work::Starts => (count, 0),
        Work::Calls => (0, count),
        Work::Rate => return Err("it has no calls side by side".into()),
    };
    let file = std::env::temp_dir().join(format!("hatchery-bench-{}.py", std::process::id()));
    std::fs::write(&file, PYTHON)?;
    let counts = [starts, calls].map(|count| count.to_string());
    let output = Command::new("python3").arg(&file).args(counts).stdin(Stdio::null()).output();
    std::fs::remove_file(&file)?;
    let output = output.map_err(|error| format!("python3 could not be started: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or_default();
        return Err(format!("python3 failed: {last}").into());
    }
    let mut samples = Samples::default();
    for line in String::from_utf8(output.stdout)?.lines() {
        samples.push(line.parse().map_err(|_| format!("python3 said `{line}`"))?);
    }
    Ok(samples)
}

const PYTHON: &str = r#"
import multiprocessing, sys, time

def echo(pipe):
    while True:
        try:
            pipe.send_bytes(pipe.recv_bytes())
        except EOFError:
            return

def main(starts, calls):
    how = multiprocessing.get_context("forkserver")
    message = b"7" * 64
    for i in range(starts + 1):
        began = time.perf_counter()
        ours, theirs = how.Pipe()
        child = how.Process(target=echo, args=(theirs,))
        child.start()
        theirs.close()
        ours.send_bytes(message)
        ours.recv_bytes()
        if i > 0:
            print(time.perf_counter() - began)
        if i == starts:
            for _ in range(calls):
                began = time.perf_counter()
                ours.send_bytes(message)
                ours.recv_bytes()
                print(time.perf_counter() - began)
        ours.close()
        child.join()

if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
"#;
