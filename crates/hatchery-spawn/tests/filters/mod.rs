//! Filters of system calls, for scenarios in which the kernel says no.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;

use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// A filter is for ever, but only for the thread that asks for it and what comes of it.
pub(crate) fn filtered<T: Send>(scenario: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(scenario).join()).unwrap()
}

fn program(calls: &[i64], action: SeccompAction) -> BpfProgram {
    let rules = calls.iter().map(|call| (*call, vec![])).collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    SeccompFilter::new(rules, SeccompAction::Allow, action, arch).unwrap().try_into().unwrap()
}

/// Forbids system calls to this thread and all that comes of it.
pub(crate) fn forbid(calls: &[i64], errno: i32) {
    let program = program(calls, SeccompAction::Errno(errno.cast_unsigned()));
    seccompiler::apply_filter(&program).unwrap();
}

/// Decides about a filtered call of the forkserver or of what comes of it: by whom, which call, its
/// arguments. `None`: the kernel does as it was asked.
pub(crate) type Judge = dyn Fn(u32, i64, [u64; 6]) -> Option<i32> + Send + Sync;

/// Leaves the decision about some calls of this thread and all that comes of it to `judge`, which
/// sits on a thread of its own.
pub(crate) fn supervise(calls: &[i64], judge: Arc<Judge>) {
    // Sits there first: it starts nothing under the filter.
    let (seat, taken) = std::sync::mpsc::channel();
    std::thread::spawn(move || taken.recv().map(|listener| judges(&listener, &judge)));
    let mut program = program(calls, SeccompAction::Trace(7));
    let traced = u32::from(SeccompAction::Trace(7));
    for line in program.iter_mut().filter(|line| line.k == traced) {
        line.k = libc::SECCOMP_RET_USER_NOTIF;
    }
    let length = program.len().try_into().unwrap();
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr().cast() };
    nix::sys::prctl::set_no_new_privs().unwrap();
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let (call, mode) = (libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER);
    #[allow(unsafe_code, reason = "no crate has a safe form of it")]
    // SAFETY: the program outlives the call, and is as long as it says.
    let listener = unsafe { libc::syscall(call, mode, flags, &raw const filter) };
    assert!(listener >= 0, "{}", std::io::Error::last_os_error());
    #[allow(unsafe_code, reason = "as above")]
    // SAFETY: the kernel has just made it for us.
    let listener = unsafe { OwnedFd::from_raw_fd(listener.try_into().unwrap()) };
    seat.send(listener).unwrap();
}

/// Judges until the end of the process.
fn judges(listener: &OwnedFd, judge: &Arc<Judge>) -> ! {
    loop {
        #[allow(unsafe_code, reason = "as above")]
        // SAFETY: numbers only; all-zero is what the kernel wants to find.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        #[allow(unsafe_code, reason = "as above")]
        // SAFETY: as above.
        let mut said: libc::seccomp_notif_resp = unsafe { std::mem::zeroed() };
        let fd = listener.as_raw_fd();
        #[allow(unsafe_code, reason = "as above")]
        // SAFETY: the struct is the one of this request, and ours.
        if unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) } < 0 {
            // Who asked is gone.
            continue;
        }
        said.id = asked.id;
        match judge(asked.pid, asked.data.nr.into(), asked.data.args) {
            Some(errno) => said.error = -errno,
            None => said.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE.try_into().unwrap(),
        }
        #[allow(unsafe_code, reason = "as above")]
        // SAFETY: as above.
        let _gone = unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut said) };
    }
}
