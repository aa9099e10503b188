//! Rights of one thread, for scenarios that give some up: glibc keeps no threads in step here.
#![allow(unsafe_code, reason = "no crate has a safe form of these calls")]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

#[derive(Clone, Copy)]
pub(crate) struct Sets {
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
}

/// This thread's capabilities.
pub(crate) fn sets() -> Sets {
    let header = [VERSION_3, 0];
    let mut halves = [0_u32; 6];
    // SAFETY: version 3 means two halves of three numbers.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), halves.as_mut_ptr()) };
    Errno::result(got).unwrap();
    let whole = |at: usize| u64::from(halves[at + 3]) << 32 | u64::from(halves[at]);
    Sets { effective: whole(0), permitted: whole(1), inheritable: whole(2) }
}

pub(crate) fn set_sets(sets: Sets) {
    let header = [VERSION_3, 0];
    let all = [sets.effective, sets.permitted, sets.inheritable];
    let low = all.map(|set| u32::try_from(set & u64::from(u32::MAX)).unwrap());
    let high = all.map(|set| u32::try_from(set >> 32).unwrap());
    let halves = [low, high];
    // SAFETY: as above; the kernel reads.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), halves.as_ptr()) };
    Errno::result(set).unwrap();
}

/// Runs a scenario on a thread of its own, which may give up what it can't get back.
pub(crate) fn on_a_thread<T: Send>(scenario: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(scenario).join()).unwrap()
}

/// Forbids a system call to this thread and all that comes of it.
pub(crate) fn forbid(call: i64) {
    let (allow, refuse) = (SeccompAction::Allow, SeccompAction::Errno(libc::EPERM.cast_unsigned()));
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let rules = std::iter::once((call, vec![])).collect();
    let filter = SeccompFilter::new(rules, allow, refuse, arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// Both ends of a socket as a forkserver has one.
pub(crate) fn seqpacket() -> (OwnedFd, OwnedFd) {
    let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
    socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

/// One with a number as its argument.
pub(crate) fn prctl(option: i32, value: u64) -> Result<i32, Errno> {
    // SAFETY: only numbers are passed.
    Errno::result(unsafe { libc::prctl(option, value, 0_u64, 0_u64, 0_u64) })
}

pub(crate) fn raise_ambient(capability: u32) {
    // SAFETY: only numbers are passed.
    let raised =
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, 2_u64, u64::from(capability), 0_u64, 0_u64) };
    Errno::result(raised).unwrap();
}

/// Makes this thread alone that user.
pub(crate) fn set_thread_user(uid: u32) {
    // SAFETY: only numbers are passed.
    let set = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
    Errno::result(set).unwrap();
}

/// Has this thread read no file at all by landlock.
pub(crate) fn restrict() {
    nix::sys::prctl::set_no_new_privs().unwrap();
    let read_files: u64 = 1 << 2;
    let length = size_of_val(&read_files);
    // SAFETY: the kernel reads one number of that length.
    let rules = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const read_files, length, 0)
    };
    let rules = Errno::result(rules).unwrap();
    // SAFETY: only numbers are passed.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules, 0) };
    Errno::result(done).unwrap();
}

const VERSION_3: u32 = 0x2008_0522;
