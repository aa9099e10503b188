//! How a thread is scheduled. See sched_setattr(2), sched_setaffinity(2), ioprio_set(2), tgkill(2).

use nix::errno::Errno;
use nix::libc;

/// Policy, nice value and priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scheduling {
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
}

/// That of a thread; 0 is this one.
pub(crate) fn of(tid: i32) -> Result<Scheduling, Errno> {
    let mut found = Attributes::default();
    // SAFETY: `found` is as long as is said, and outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut found, LENGTH, 0) };
    Errno::result(done)?;
    let Attributes { policy, flags, nice, priority, .. } = found;
    Ok(Scheduling { policy, flags, nice, priority })
}

/// Sets this thread's.
pub(crate) fn set(wanted: Scheduling) -> Result<(), Errno> {
    let Scheduling { policy, flags, nice, priority } = wanted;
    let wanted = Attributes { size: LENGTH, policy, flags, nice, priority, ..Default::default() };
    // SAFETY: `wanted` is as long as it says, and outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) };
    Errno::result(done).map(drop)
}

/// The processors that a thread may run on, as the kernel writes them; 0 is this thread.
pub(crate) fn processors_of(tid: i32) -> Result<Processors, Errno> {
    let mut found = [0; PROCESSORS / 64];
    let length = size_of_val(&found);
    // SAFETY: `found` is as long as is said, and outlives the call.
    let done =
        unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, length, found.as_mut_ptr()) };
    Errno::result(done).map(|_| found)
}

/// Sets this thread's.
pub(crate) fn run_on(processors: &Processors) -> Result<(), Errno> {
    let length = size_of_val(processors);
    // SAFETY: `processors` is as long as is said, and outlives the call.
    let done =
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, length, processors.as_ptr()) };
    Errno::result(done).map(drop)
}

/// A thread's class and level of input and output, as one number; 0 is this thread.
pub(crate) fn io_of(tid: i32) -> Result<i64, Errno> {
    // SAFETY: only numbers are passed.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, tid) })
}

/// Sets this thread's.
pub(crate) fn set_io(priority: i64) -> Result<(), Errno> {
    // SAFETY: only numbers are passed.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, priority) })
        .map(drop)
}

/// Whether a thread is one of that process.
pub(crate) fn is_thread_of(pid: i32, tid: i32) -> bool {
    // SAFETY: only numbers are passed, and signal 0 is none.
    let done = Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, 0) });
    matches!(done, Ok(_) | Err(Errno::EPERM))
}

/// What a child of this one may not keep: see sched(7), "Resetting scheduling policy for child
/// processes".
pub(crate) const RESET_ON_FORK: u64 = 1;

/// A set of processors: as many as a kernel can be built for.
pub(crate) type Processors = [u64; PROCESSORS / 64];

/// `struct sched_attr` in its first form, which every kernel knows.
#[derive(Debug, Default)]
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const LENGTH: u32 = 48;
const PROCESSORS: usize = 8192;
const WHO_PROCESS: i32 = 1;
