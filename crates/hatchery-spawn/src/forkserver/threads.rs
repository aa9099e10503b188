//! The threads of this process that are not ours: which they are, and where they come from.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::unistd::gettid;

use crate::maps::Maps;
use crate::sys::silence;

/// How long the kernel may take to take a joined thread off the count.
pub(crate) const OFF_THE_COUNT: Duration = Duration::from_millis(50);

/// The threads of this process but the calling one. Empty if `/proc` can't be read.
pub(crate) fn others() -> Vec<i32> {
    let own = gettid().as_raw();
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let numbers = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
    numbers.filter(|thread| *thread != own).collect()
}

/// The threads that were there before `main`, as preloads leave none; for people. They block all
/// signals from here on. `None` if there are none.
pub(crate) fn silent_company() -> Result<Option<String>, (&'static str, Errno)> {
    let company = company();
    if company.is_some() {
        silence_others()?;
    }
    Ok(company)
}

/// Has all threads but the calling one block all signals: a signal for the process then waits for
/// the one that looks for it, and is not taken by a thread that knows nothing of it.
fn silence_others() -> Result<(), (&'static str, Errno)> {
    let until = Instant::now() + SILENCE_BOUND;
    for thread in others() {
        match silence::silence(thread) {
            // It has ended.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(("tgkill", errno)),
        }
        while takes_signals(thread) {
            if Instant::now() > until {
                return Err(("blocking the signals of another thread", Errno::ETIMEDOUT));
            }
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// Whether a thread would take a SIGCHLD of the process.
fn takes_signals(thread: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (libc::SIGCHLD - 1)) == 0)
}

/// The threads of this process but the calling one, for people; `None` if there is no other. One
/// that was joined may be on the count for a moment, and is waited for.
fn company() -> Option<String> {
    let until = Instant::now() + OFF_THE_COUNT;
    loop {
        let others = others();
        if others.is_empty() {
            return None;
        }
        if Instant::now() > until {
            let described: Vec<_> = others.into_iter().take(SHOWN).map(describe).collect();
            return Some(described.join(", "));
        }
        std::thread::yield_now();
    }
}

/// A thread by its name, and by the file whose code it came from, as far as its stack tells.
pub(crate) fn describe(thread: i32) -> String {
    let name = fs::read_to_string(format!("/proc/self/task/{thread}/comm")).unwrap_or_default();
    let name = name.trim();
    match origin(thread) {
        Some(file) => format!("`{name}` ({thread}), of {file}"),
        None => format!("`{name}` ({thread})"),
    }
}

/// The first file that the thread's stack returns to and that is no part of libc.
fn origin(thread: i32) -> Option<String> {
    // While it runs there is nothing to read here.
    let syscall = fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).ok()?;
    let stack = syscall.split_whitespace().rev().nth(1)?.strip_prefix("0x")?;
    let stack = u64::from_str_radix(stack, 16).ok()?;
    let maps = Maps::read()?;
    let mut words = vec![0; maps.at(stack).map_or(0, |map| map.room(stack)).min(STACK_BYTES)];
    let mut memory = fs::File::open("/proc/self/mem").ok()?;
    memory.seek(SeekFrom::Start(stack)).ok()?;
    let length = memory.read(&mut words).ok()?;
    words[..length]
        .chunks_exact(8)
        .filter_map(|word| word.try_into().ok().map(u64::from_ne_bytes))
        .find_map(|address| code(&maps, address))
}

/// The file of the code at an address, unless that is libc's or the kernel's.
fn code(maps: &Maps, address: u64) -> Option<String> {
    let map = maps.at(address).filter(|map| map.is_code)?;
    let name = map.file.rsplit('/').next().unwrap_or_default();
    let is_system = EVERYBODYS.iter().any(|common| name.starts_with(common));
    (map.file.starts_with('/') && !is_system).then(|| map.file.clone())
}

/// Every thread returns through these.
const EVERYBODYS: [&str; 4] = ["libc.", "libc-", "libpthread", "ld-"];
/// How much of a stack is looked at.
const STACK_BYTES: usize = 64 * 1024;
/// How long the other threads may take to block their signals: each has to run once for it.
const SILENCE_BOUND: Duration = Duration::from_secs(2);
/// How many threads are named.
const SHOWN: usize = 8;
