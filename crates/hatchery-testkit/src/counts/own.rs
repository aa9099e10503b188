//! What `/proc` shows of this process.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};

use super::Address;

/// Children of this process, zombies included.
pub(crate) fn children() -> BTreeMap<u32, String> {
    let pids = children_of(std::process::id()).into_iter();
    pids.map(|pid| (pid, named(&format!("/proc/{pid}")))).collect()
}

/// Those and all below them. A grandchild is named with who its parent is.
pub(super) fn descendants() -> BTreeMap<u32, String> {
    let mut all = children();
    let mut parents: Vec<u32> = all.keys().copied().collect();
    while let Some(parent) = parents.pop() {
        let title = read(&format!("/proc/{parent}/comm"));
        for pid in children_of(parent) {
            // One that was handed on while we looked is there once.
            if let Entry::Vacant(place) = all.entry(pid) {
                let name = named(&format!("/proc/{pid}"));
                place.insert(format!("{name} of {parent} {}", title.trim()));
                parents.push(pid);
            }
        }
    }
    all
}

pub(super) fn threads() -> BTreeMap<u32, String> {
    let tids = numbers(Path::new("/proc/self/task"));
    tids.filter(|tid| is_staying(*tid))
        .map(|tid| (tid, read(&format!("/proc/self/task/{tid}/comm")).trim().to_owned()))
        .collect()
}

fn is_staying(tid: u32) -> bool {
    stays(&read(&format!("/proc/self/task/{tid}/stat")))
}

/// Whether a thread is not yet on its way out (`PF_EXITING` in its flags).
pub(super) fn stays(stat: &str) -> bool {
    // The name in brackets may itself hold brackets and blanks.
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6));
    flags.and_then(|flags| flags.parse::<u64>().ok()).is_some_and(|flags| flags & PF_EXITING == 0)
}

/// Mappings through which others may see what is written, by what they are and how long.
pub(super) fn shared_memory() -> BTreeMap<Address, String> {
    read("/proc/self/maps").lines().filter_map(shared).collect()
}

/// One line of `maps`: `from-to rwxp offset device inode  what`.
pub(super) fn shared(line: &str) -> Option<(Address, String)> {
    let mut fields = line.split_whitespace();
    let (from, to) = fields.next()?.split_once('-')?;
    let rights = fields.next()?;
    let what = fields.skip(3).collect::<Vec<_>>().join(" ");
    let is_segment = SEGMENTS.iter().any(|kind| what.starts_with(kind));
    // Files that are shared only to be read are libraries' tables, and come and go with them.
    let is_written = rights.ends_with('s') && rights.contains('w');
    if !is_segment && !is_written {
        return None;
    }
    let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
    Some((Address(from), format!("{what}, {} bytes", to.saturating_sub(from))))
}

pub(super) fn fds() -> BTreeMap<u32, String> {
    let own = format!("/proc/{}/fd", std::process::id());
    numbers(Path::new("/proc/self/fd"))
        .filter_map(|fd| {
            let target = fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
            Some((fd, target.to_string_lossy().into_owned()))
        })
        // The fd through which we are looking.
        .filter(|(_, target)| *target != own)
        .collect()
}

/// What is below `dir`.
pub(crate) fn files(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut files = BTreeMap::new();
    list_files(dir, &mut files);
    files
}

fn list_files(dir: &Path, files: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list_files(&path, files);
        }
        files.insert(path.clone(), path.display().to_string());
    }
}

/// Name and state of a process or thread, from its directory in `/proc`.
fn named(dir: &str) -> String {
    let stat = read(&format!("{dir}/stat"));
    let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'));
    let Some((name, rest)) = name else { return "gone".to_owned() };
    format!("{name} ({})", rest.split_whitespace().next().unwrap_or("?"))
}

/// The entries of a directory that are numbers. Read to the end first, so that it is closed.
fn numbers(dir: &Path) -> impl Iterator<Item = u32> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let found: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    found.into_iter()
}

fn children_of(pid: u32) -> Vec<u32> {
    let tasks = numbers(Path::new(&format!("/proc/{pid}/task")));
    let lists = tasks.map(|tid| read(&format!("/proc/{pid}/task/{tid}/children")));
    lists
        .flat_map(|list| list.split_whitespace().flat_map(str::parse).collect::<Vec<_>>())
        .collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// How the kernel calls memory that is no file of a disk.
const SEGMENTS: [&str; 5] = ["/memfd:", "/dev/shm/", "/SYSV", "/dev/zero", "/anon_hugepage"];

/// `include/linux/sched.h`
const PF_EXITING: u64 = 0x4;
