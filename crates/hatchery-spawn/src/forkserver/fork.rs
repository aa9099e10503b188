//! The only fork without exec but for a process 1's (`reaper.rs`): the parent's branch and the child's.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;

use super::pidfds::Pidfds;
use super::wire::{Request, Run};
use crate::image::{self, ActorMain, Birth, BirthKind};
use crate::prelude::{self, Nest, Slots, Step};
use crate::sys::pidfd::Pidfd;
use crate::sys::process::{self, Forked};
use crate::sys::{exit, fds, owner, waitid};

/// A call that failed, by name.
pub(crate) type CallFailed = (&'static str, Errno);

/// Forks a child for a request; room for its pidfd was reserved. In the child this doesn't return.
pub(crate) fn fork(
    request: &Request,
    received: &[OwnedFd],
    nest: &Nest<'_>,
    pidfds: &mut Pidfds,
) -> Result<(i32, Option<Pidfd>), CallFailed> {
    let numbers: Vec<RawFd> = received.iter().map(AsRawFd::as_raw_fd).collect();
    let child = match patiently()? {
        Forked::Child => child(request, &numbers, nest),
        Forked::Parent { child } => child,
    };
    // Both sides set the group, so that it is right whoever comes first; here it may be too late.
    let pid = nix::unistd::Pid::from_raw(child);
    if !request.manner.detach && !request.manner.session {
        let group = request.manner.group.map_or(pid, nix::unistd::Pid::from_raw);
        let _too_late = nix::unistd::setpgid(pid, group);
    }
    // Somebody else may have taken the machine's last place since it was ours a moment ago.
    match pidfds.open(child) {
        Ok(pidfd) => Ok((child, pidfd)),
        Err(failed) => {
            process::kill_own_child(child, false, libc::SIGKILL);
            // It ends in microseconds; nobody else waits for it.
            while matches!(waitid::reap(child), Ok(None)) {
                std::thread::yield_now();
            }
            Err(failed)
        }
    }
}

/// A lack of processes or memory is often over in a moment.
fn patiently() -> Result<Forked, CallFailed> {
    for pause in [1, 5, 25] {
        match process::fork() {
            // Bounded: 31 ms in all, and only while the machine is out of something.
            #[allow(clippy::disallowed_methods, reason = "there is no event for 'enough memory'")]
            Err(Errno::EAGAIN | Errno::ENOMEM) => sleep(Duration::from_millis(pause)),
            Err(errno) => return Err(("fork", errno)),
            Ok(forked) => return Ok(forked),
        }
    }
    process::fork().map_err(|errno| ("fork", errno))
}

/// The child's branch: prelude, then main or exec. Diverges, and drops nothing of the parent's.
fn child(request: &Request, received: &[RawFd], nest: &Nest<'_>) -> ! {
    let slots = match prelude::run(request, received, nest) {
        Ok(slots) => slots,
        Err((birth, failed)) => fail(birth, failed),
    };
    let find = |main| nest.take(Step::Main, || image::find_main(main));
    let prepared = match &request.run {
        Run::Main(main) => find(main).map(|run| forked(run, request, &slots, nest)),
        // The same image: what is found here is found there.
        Run::Image(main) => find(main)
            .and_then(|_| nest.take(Step::Exec, || image::describe(request, &slots)))
            .map(Some),
        Run::Program => Ok(None),
    };
    let told = prepared.and_then(|told| {
        prelude::confine(request, &slots, nest)?;
        Ok(told)
    });
    let told = told.unwrap_or_else(|failed| fail(slots.birth(), failed));
    // What comes after it can't say that it was born.
    nest.bed.leave();
    let failed = prelude::exec(request, &slots, told.as_deref());
    fail(slots.birth(), failed)
}

fn forked(run: ActorMain, request: &Request, slots: &Slots, nest: &Nest<'_>) -> ! {
    // From here on a process like any, and no copy of the forkserver.
    owner::adopt();
    let adopted = (slots.first..slots.first + slots.count).map(fds::adopt).collect();
    let channel = slots.channel.map(fds::adopt).transpose();
    let (channel, adopted) = match (channel, adopted) {
        (Ok(channel), Ok(adopted)) => (channel.map(UnixStream::from), adopted),
        (Err(errno), _) | (_, Err(errno)) => {
            // It was in another step last.
            nest.bed.leave();
            fail(slots.birth(), (Step::Fds, errno))
        }
    };
    image::set_shared_socket(slots.shared.unwrap_or(-1));
    let (name, payload) = (request.name.clone(), request.payload.clone());
    let birth = Birth { name, payload, channel, fds: adopted, how: BirthKind::Forked };
    if let Err(failed) = prelude::confine(request, slots, nest) {
        fail(slots.birth(), failed);
    }
    prelude::born(slots, nest);
    image::leave(image::run_main(run, birth))
}

fn fail(birth: RawFd, failed: prelude::Failed) -> ! {
    prelude::report(birth, failed);
    exit::exit_now(NOT_BORN)
}

/// The exit code of a child that was not born; the birth pipe says why.
pub(crate) const NOT_BORN: i32 = 127;
