//! What the root and its forkserver hold, over time.

use std::fmt;
use std::fs;

use serde::{Deserialize, Serialize};

/// One look between two rounds, when no actor lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Milliseconds since the beginning.
    pub at_ms: u64,
    /// How many actors had come and gone.
    pub actors: u64,
    /// Which forkserver.
    pub server_pid: u32,
    /// The root.
    pub root: Held,
    /// The forkserver.
    pub server: Held,
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Held {
    /// Memory that it has written to, in KiB.
    pub private_kib: u64,
    /// Open fds.
    pub fds: usize,
    /// Threads.
    pub threads: usize,
    /// Mappings: the kernel gives a process no more than 65,530.
    pub mappings: usize,
    /// Address space in KiB, whether there is memory behind it or not.
    pub address_kib: u64,
}

/// All looks of a run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Curve(pub Vec<Sample>);

impl Held {
    /// What `pid` holds now; zeroes if it is gone.
    #[must_use]
    pub fn by(pid: u32) -> Self {
        let count =
            |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
        let size = size.and_then(|size| size.split_whitespace().next()?.parse().ok());
        Self {
            private_kib: written_kib(&text),
            fds: count("fd"),
            threads: count("task"),
            mappings: maps.lines().count(),
            address_kib: size.unwrap_or_default(),
        }
    }
}

impl Curve {
    /// What grew: from the second quarter to the third, and from that to the last. The first belongs to
    /// the allocator, which keeps what it once needed; and memory that is taken once, at whatever time, is
    /// a step, where what is lost again and again grows all along. The least of each quarter counts, as
    /// what is kept for a while comes and goes and what is lost stays. Too short a curve says nothing.
    #[must_use]
    pub fn grown(&self) -> Vec<String> {
        let all = &self.0;
        if all.len() < 16 {
            return Vec::new();
        }
        let quarter = all.len() / 4;
        let (early, middle, late) = (
            &all[quarter..2 * quarter],
            &all[2 * quarter..all.len() - quarter],
            &all[all.len() - quarter..],
        );
        let mut grown = Vec::new();
        for (what, of, noise) in KINDS {
            let [from, between, to] = [early, middle, late].map(|part| least(part, of));
            // Of memory alone: an fd or a thread that is made once and kept is one too many.
            let is_step = noise > 0 && (between <= from + noise / 2 || to <= between + noise / 2);
            if to > from + noise && !is_step {
                grown.push(format!("{what}: from {from} to {to}"));
            }
        }
        grown
    }
}

impl fmt::Display for Curve {
    /// At most twenty rows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>8} {:>8}  {:>9} {:>4} {:>4} {:>5} {:>9}  {:>10} {:>4} {:>5}",
            "s",
            "actors",
            "root KiB",
            "fds",
            "thr",
            "maps",
            "MiB space",
            "server KiB",
            "fds",
            "maps"
        )?;
        let step = self.0.len().div_ceil(20).max(1);
        let last = self.0.len().saturating_sub(1);
        for (at, one) in self.0.iter().enumerate() {
            if at % step != 0 && at != last {
                continue;
            }
            let Sample { at_ms, actors, root, server, .. } = one;
            writeln!(
                f,
                "{:>8} {actors:>8}  {:>9} {:>4} {:>4} {:>5} {:>9}  {:>10} {:>4} {:>5}",
                at_ms / 1000,
                root.private_kib,
                root.fds,
                root.threads,
                root.mappings,
                root.address_kib / 1024,
                server.private_kib,
                server.fds,
                server.mappings
            )?;
        }
        Ok(())
    }
}

/// What a process has written to, by its `smaps_rollup`: anonymous memory, and its share of what it
/// has in common with others.
///
/// No page of a file is among it. `Private_Dirty` counts those too, as soon as nobody else has them
/// mapped: a program that was linked a moment ago is dirty until the kernel has written it out, and with
/// each actor that ends its megabytes go from shared to private.
fn written_kib(smaps_rollup: &str) -> u64 {
    let kib = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["Anonymous:" | "Pss_Shmem:", kib, "kB"] => kib.parse::<u64>().ok(),
        _ => None,
    };
    smaps_rollup.lines().filter_map(kib).sum()
}

fn least(part: &[Sample], of: Of) -> u64 {
    part.iter().map(of).min().unwrap_or_default()
}

type Of = fn(&Sample) -> u64;

/// A name, where it stands in a sample, and how much of it is noise.
type Kind = (&'static str, Of, u64);

const KINDS: [Kind; 10] = [
    ("KiB of the root", |one| one.root.private_kib, MEMORY_NOISE_KIB),
    ("fds of the root", |one| one.root.fds as u64, FD_NOISE),
    ("threads of the root", |one| one.root.threads as u64, 0),
    ("mappings of the root", |one| one.root.mappings as u64, MAPPING_NOISE),
    ("KiB of address space of the root", |one| one.root.address_kib, SPACE_NOISE_KIB),
    ("KiB of the forkserver", |one| one.server.private_kib, MEMORY_NOISE_KIB),
    ("fds of the forkserver", |one| one.server.fds as u64, 0),
    ("threads of the forkserver", |one| one.server.threads as u64, 0),
    ("mappings of the forkserver", |one| one.server.mappings as u64, 0),
    ("KiB of address space of the forkserver", |one| one.server.address_kib, 1024),
];

/// Tasks of the root that were not yet polled for the last time hold one or two.
const FD_NOISE: u64 = 3;

/// Pages that the allocator keeps or gives back as it likes.
const MEMORY_NOISE_KIB: u64 = 1024;

/// The allocator makes a new arena when two threads want one at once, however late that happens first:
/// 64 MiB of address space in two mappings. What each cycle leaves is more by then.
const MAPPING_NOISE: u64 = 6;
const SPACE_NOISE_KIB: u64 = 3 * 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_named_and_noise_is_not() {
        let sample = |at: u64, fds: usize| Sample {
            at_ms: at,
            actors: at,
            server_pid: 1,
            root: Held { private_kib: 5000 + at % 7, fds: 10, threads: 4, ..Held::default() },
            server: Held { private_kib: 900, fds, threads: 1, ..Held::default() },
        };
        let flat = Curve((0..100).map(|at| sample(at, 9)).collect());
        assert_eq!(flat.grown(), Vec::<String>::new());
        let leaky = Curve((0..100).map(|at| sample(at, 9 + usize::from(at > 60))).collect());
        assert_eq!(leaky.grown(), ["fds of the forkserver: from 9 to 10"]);
        let heap = |lost: u64| {
            let mut curve = flat.clone();
            for (at, one) in (0..).zip(&mut curve.0) {
                // Most of the time much of it is kept, and more so towards the end.
                one.root.private_kib = 2000 + lost * at + if at % 9 == 0 { 0 } else { 20 * at };
            }
            curve.grown()
        };
        assert_eq!(heap(0), Vec::<String>::new());
        assert_eq!(heap(20), ["KiB of the root: from 2540 to 3620"]);
        assert!(leaky.to_string().lines().count() <= 22);
        // A thread that nobody joins: its stack and the guard page of that.
        let mut unjoined = flat.clone();
        for (at, one) in (0..).zip(&mut unjoined.0) {
            (one.root.mappings, one.root.address_kib) = (100 + 2 * at as usize, 2056 * at);
        }
        assert_eq!(unjoined.grown().len(), 1, "{:?}", unjoined.grown());
    }

    /// Flake: pages of a program that was just linked are dirty, and private by chance.
    #[test]
    fn pages_of_a_file_are_not_held_however_dirty_they_are() {
        let text = |private: u64, shared: u64| {
            format!(
                "55c61c6aa000-7ffec341e000 ---p 00000000 00:00 0 [rollup]\nPss_Shmem: 8 kB\n\
                 Shared_Dirty: {shared} kB\nPrivate_Dirty: {private} kB\nAnonymous: 2992 kB\n\
                 AnonHugePages: 2048 kB\nShmemPmdMapped: 4096 kB\n"
            )
        };
        assert_eq!(written_kib(&text(3804, 9528)), 3000);
        assert_eq!(written_kib(&text(6992, 6416)), 3000);
        assert_eq!(written_kib(""), 0);
    }

    #[test]
    fn this_process_holds_something() {
        let held = Held::by(std::process::id());
        assert!(held.private_kib > 0 && held.fds > 0 && held.threads > 0, "{held:?}");
    }
}
