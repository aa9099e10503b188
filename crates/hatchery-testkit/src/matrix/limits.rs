//! Trees that this machine can't hold, told before anything is started.

use std::fs;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};

use super::axis::{Backend, Load};
use super::case::Case;

/// A tree that this machine can't hold. Found before anything is started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a tree of depth {depth} and breadth {breadth} needs {needs} {what}, and {limit_name} allows \
     {limit}: choose a smaller tree or raise the limit"
)]
pub struct Impossible {
    /// Levels.
    pub depth: u32,
    /// Children of each.
    pub breadth: u32,
    /// How many it needs; `u64::MAX` if they can't be counted.
    pub needs: u64,
    /// Of what.
    pub what: &'static str,
    /// How many there may be.
    pub limit: u64,
    /// Who says so.
    pub limit_name: &'static str,
}

/// Compares what the tree needs with what the kernel allows this process.
pub(super) fn check(case: &Case) -> Result<(), Impossible> {
    check_against(case, &Limits::now())
}

/// What the kernel allows.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Processes and threads, and by which limit.
    tasks: (u64, &'static str),
    /// Fds of one process.
    fds: u64,
}

impl Limits {
    fn now() -> Self {
        let read = |path: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.trim().parse().unwrap_or(u64::MAX)
        };
        let soft = |resource| getrlimit(resource).map_or(u64::MAX, |(soft, _)| soft);
        let all = [
            (soft(Resource::RLIMIT_NPROC), "RLIMIT_NPROC"),
            (read("/proc/sys/kernel/pid_max"), "kernel.pid_max"),
            (read("/proc/sys/kernel/threads-max"), "kernel.threads-max"),
            (pids_max().unwrap_or(u64::MAX), "the control group's pids.max"),
        ];
        let tasks = all.into_iter().min().unwrap_or((u64::MAX, "nothing"));
        Self { tasks, fds: soft(Resource::RLIMIT_NOFILE) }
    }
}

fn check_against(case: &Case, limits: &Limits) -> Result<(), Impossible> {
    let (tasks, task) = limits.tasks;
    let what = match case.backend {
        Backend::Forkserver | Backend::Exec => "processes",
        Backend::Thread => "threads",
    };
    let needs = [
        (case.actors().saturating_add(OWN_TASKS), what, tasks, task),
        (fds(case).saturating_add(OWN_FDS), "fds in one process", limits.fds, "RLIMIT_NOFILE"),
    ];
    let (depth, breadth) = (case.depth, case.breadth);
    let over = needs.into_iter().find(|(needs, _, limit, _)| needs > limit);
    over.map_or(Ok(()), |(needs, what, limit, limit_name)| {
        Err(Impossible { depth, breadth, needs, what, limit, limit_name })
    })
}

/// What the busiest process of the tree holds.
fn fds(case: &Case) -> u64 {
    match case.backend {
        // A spawner: channel, pidfd and, for a moment, the pipe that a birth reports on. The
        // forkserver: a control socket for each actor that spawns. Peers add a listener and two
        // connections to an actor, which a spawner has room for.
        Backend::Forkserver | Backend::Exec => {
            let spawners = Case { depth: case.depth.saturating_sub(1), ..case.clone() }.actors();
            spawners.max(u64::from(case.breadth) * 3)
        }
        // Both ends of the channel, and a tokio runtime's epoll, its copy, and its eventfd; a
        // listener and both ends of a connection.
        Backend::Thread => {
            let peers = if case.load == Load::Peers { 3 } else { 0 };
            case.actors().saturating_mul(5 + peers)
        }
    }
}

/// The limit of this process's own control group, where there is one (version 2).
fn pids_max() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let file = Path::new("/sys/fs/cgroup").join(own).join("pids.max");
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Root, forkserver, watcher, and the threads of the root.
const OWN_TASKS: u64 = 8;
/// Stdio, the runtimes of root and supervisor, the forkserver's socket, some to spare.
const OWN_FDS: u64 = 32;

#[cfg(test)]
mod tests {
    use super::super::axis::Trigger;
    use super::*;

    fn tree(backend: Backend, depth: u32, breadth: u32) -> Case {
        Case { backend, depth, breadth, trigger: Trigger::Return, load: Load::Idle }
    }

    #[test]
    fn processes_threads_and_fds_each_have_their_own_limit() {
        let limits = Limits { tasks: (100, "RLIMIT_NPROC"), fds: 250 };
        assert_eq!(check_against(&tree(Backend::Forkserver, 3, 3), &limits), Ok(()));
        let error = check_against(&tree(Backend::Exec, 3, 5), &limits).unwrap_err();
        assert_eq!((error.needs, error.what, error.limit), (163, "processes", 100));
        let error = check_against(&tree(Backend::Forkserver, 1, 80), &limits).unwrap_err();
        assert_eq!((error.needs, error.limit_name), (272, "RLIMIT_NOFILE"));
        let error = check_against(&tree(Backend::Thread, 1, 60), &limits).unwrap_err();
        assert_eq!((error.needs, error.limit_name), (332, "RLIMIT_NOFILE"));
    }

    #[test]
    fn deep_process_trees_spread_their_fds() {
        let limits = Limits { tasks: (10_000, "RLIMIT_NPROC"), fds: 1024 };
        assert_eq!(check_against(&tree(Backend::Forkserver, 4, 5), &limits), Ok(()));
        assert!(check_against(&tree(Backend::Thread, 4, 5), &limits).is_err());
    }
}
