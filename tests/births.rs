//! H1: what is in a new actor, however deep in the tree, and what is not.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use hatchery::{Backend, Error, Nursery, Portal, nursery};
use hatchery_tests::{PROCESSES, for_each, here};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

#[hatchery::function]
async fn one() -> u8 {
    1
}

/// The fds of a process, each with what it leads to.
type Fds = BTreeMap<u32, String>;

/// Things that would pass to a child if nobody took care: none is close-on-exec.
struct Decoys {
    _fds: [OwnedFd; 4],
    _epoll: Epoll,
}

impl Decoys {
    fn new() -> Self {
        let (read, write) = nix::unistd::pipe().unwrap();
        let (family, kind, flags) = (AddressFamily::Unix, SockType::Stream, SockFlag::empty());
        let (here, there) = socketpair(family, kind, None, flags).unwrap();
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        Self { _fds: [read, write, here, there], _epoll: epoll }
    }
}

fn fds_of(pid: u32) -> Fds {
    let list = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let fds = list.flatten().filter_map(|entry| {
        let target = std::fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        // The directory that is being listed.
        let listed = target.starts_with("/proc/") && target.ends_with("/fd");
        let number = entry.file_name().to_str()?.parse().ok()?;
        (!listed).then_some((number, target))
    });
    fds.collect()
}

/// The backend of the actors that many levels above the leaf: one, or two in turn.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Kinds(Vec<String>);

impl Kinds {
    fn at(&self, levels: u32) -> Backend {
        Backend::from_name(&self.0[levels as usize % self.0.len()]).unwrap()
    }
}

async fn start(n: &Nursery, name: &str, kind: Backend) -> Result<Portal, Error> {
    let actor = n.actor(name).backend(kind).start().await?;
    // It has come to rest.
    actor.call(one()).await?;
    Ok(actor)
}

/// Has that many levels below it, each with an idle actor beside. The leaf looks at all of them.
#[hatchery::function]
async fn grow(levels: u32, kinds: Kinds, above: Vec<u32>) -> Result<Vec<Fds>, Error> {
    let mut living = above;
    living.push(std::process::id());
    if levels == 0 {
        return Ok(living.into_iter().map(fds_of).collect());
    }
    let _decoys = Decoys::new();
    let below = nursery(async |n| {
        let beside = start(&n, "beside", kinds.at(levels)).await?;
        living.push(beside.pid().unwrap());
        let below = start(&n, "d", kinds.at(levels)).await?;
        Ok(below.call(grow(levels - 1, kinds, living)).await?)
    });
    Ok(below.await?)
}

/// H1, C7: in a tree four levels deep, where everybody holds pipes, sockets and epoll sets that are
/// open to inheritance, every actor holds its stdio, its channel, its way to the forkserver, what
/// its own runtime needs, one channel for each child, and nothing that another process holds.
#[test]
fn every_actor_of_a_deep_tree_holds_what_it_was_given_and_nothing_else() {
    for_each(here!(), &PROCESSES, async |runtime| {
        let _decoys = Decoys::new();
        for kinds in [&["forkserver"][..], &["exec"], &["forkserver", "exec"]] {
            let kinds = Kinds(kinds.iter().map(|&kind| kind.to_owned()).collect());
            let found = runtime.nursery(async |n| {
                let top = start(&n, "top", kinds.at(0)).await?;
                let living = vec![runtime.forkserver_pid().unwrap(), std::process::id()];
                Ok(top.call(grow(3, kinds.clone(), living)).await?)
            });
            let found = found.await.unwrap_or_else(|error| panic!("{}", error.render()));
            // The forkserver, the root, three in the middle with one beside each, the leaf.
            assert_eq!(found.len(), 2 + 3 * 2 + 1);
            nothing_is_shared(&found);
            for (at, fds) in found[2..].iter().enumerate() {
                // Each actor of the middle stands before the idle one below it.
                let middle = at % 2 == 0 && at < 6;
                assert_eq!(kinds_of(fds), expected(middle), "{at} of {kinds:?}: {found:#?}");
            }
        }
        runtime.close().await;
    });
}

/// A socket or a pipe that two processes hold has an end that neither of them sees.
fn nothing_is_shared(found: &[Fds]) {
    let mut holders: BTreeMap<&str, usize> = BTreeMap::new();
    for (holder, fds) in found.iter().enumerate() {
        let has_ends = |target: &str| target.starts_with("socket:") || target.starts_with("pipe:");
        for (number, target) in fds.iter().filter(|(_, target)| has_ends(target)) {
            // By which a new actor brings the forkserver a socket of its own: one for all.
            if holder >= 2 && *number == SHARED_SLOT {
                continue;
            }
            let first = *holders.entry(target).or_insert(holder);
            assert_eq!(first, holder, "{target} is held by two of {found:#?}");
        }
    }
}

const SHARED_SLOT: u32 = 4;

/// How many there are of each kind.
fn kinds_of(fds: &Fds) -> BTreeMap<&str, usize> {
    let mut kinds = BTreeMap::new();
    for target in fds.values() {
        let kind = target.split(":[").next().unwrap();
        // What anonymous things are stands in brackets.
        let kind = if kind == "anon_inode" { target } else { kind };
        let kind = if kind.ends_with("/status") { "its own status" } else { kind };
        // Before Linux 6.9 a pidfd must be kept for each child.
        if !target.contains("pidfd") {
            *kinds.entry(kind).or_insert(0) += 1;
        }
    }
    kinds
}

fn expected(middle: bool) -> BTreeMap<&'static str, usize> {
    let leaf = BTreeMap::from([
        // Stdio.
        ("/dev/null", 3),
        // Its channel and the forkserver's.
        ("socket", 2),
        // A runtime's, twice the same set.
        ("anon_inode:[eventpoll]", 2),
        ("anon_inode:[eventfd]", 1),
        // What it is about, for who asks.
        ("/memfd:hatchery-board (deleted)", 1),
    ]);
    let more = [
        // For its children's stdio, and for their umask.
        ("/dev/null", 1),
        ("its own status", 1),
        // A socket of its own at the forkserver, a channel for each child, and a pair of decoys.
        ("socket", 1 + 2 + 2),
        ("pipe", 2),
        ("anon_inode:[eventpoll]", 1),
        // Wakes the thread that talks with the forkserver.
        ("anon_inode:[eventfd]", 1),
    ];
    let more = more.into_iter().filter(|_| middle);
    more.fold(leaf, |mut all, (kind, count)| {
        *all.entry(kind).or_insert(0) += count;
        all
    })
}
