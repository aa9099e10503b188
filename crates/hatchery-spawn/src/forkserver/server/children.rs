//! Children: forked, signalled, reaped.

use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, getpgid};

use super::settle::Told;
use super::{Asked, CallFailed, Server, now};
use crate::confine::cgroup;
use crate::exit::Exit;
use crate::forkserver::book::Owner;
use crate::forkserver::exited::Exited;
use crate::forkserver::fork;
use crate::forkserver::rights::Sender;
use crate::forkserver::wire::{Answer, Request, Run};
use crate::prelude::Nest;
use crate::sys::{process, waitid};
use crate::usage::Usage;

impl Server {
    pub(super) fn spawn(&mut self, fd: RawFd, asked: Asked) {
        let Asked { owner, mut request, mut received, environment } = asked;
        let number = request.number;
        let failed = |(call, errno): CallFailed| Answer::Failed {
            number,
            call: call.to_owned(),
            errno: errno as i32,
        };
        let directory = if request.present.has_directory { received.fds.pop() } else { None };
        let has_environment = environment.is_some();
        if let Err(error) = self.may_be_born(fd, owner, &request, has_environment) {
            return self.answer(fd, failed(error), None);
        }
        if let (Some(threads), Run::Main(_)) = (&self.company, &request.run) {
            let threads = threads.clone();
            return self.answer(fd, Answer::Threaded { number, threads }, None);
        }
        let plan = match self.rights.judge(self.sender(owner, received.ids), &request) {
            Ok(plan) => plan,
            Err(right) => return self.answer(fd, Answer::Refused { number, right }, None),
        };
        let mark = self.next_mark;
        self.next_mark += 1;
        let text = format!("{}.{mark}", self.tree);
        let above = match owner {
            Owner::Actor(pid) => Some(pid),
            Owner::Root | Owner::Nobody => None,
        };
        if let Err(error) = self.may_be_treated_so(above, &request.manner) {
            return self.answer(fd, failed(error), None);
        }
        let cgroup = cgroup::name(&self.tree, mark);
        let bound = match self.confined.bind(above, &mut request, &cgroup) {
            Ok(bound) => bound,
            Err(error) => return self.answer(fd, failed(error), None),
        };
        let nest = Nest {
            server: self.pid,
            shared: self.shared_actors.as_raw_fd(),
            image: self.image.as_raw_fd(),
            spawner: above.unwrap_or(self.root),
            limits: &self.limits,
            environment: environment.as_deref().filter(|_| request.present.has_environment),
            directory: directory.as_ref().map(AsRawFd::as_raw_fd),
            mark: &text,
            cgroup: bound.cgroup.as_deref(),
            bed: self.crib.bed(mark),
            rights: &plan,
        };
        let born = fork::fork(&request, &received.fds, &nest, &mut self.pidfds);
        match born {
            Ok((pid, pidfd)) => {
                self.confined.born(pid, bound);
                self.book.born(pid, owner, number, mark);
                if request.run == Run::Program {
                    self.program_born(pid, request.manner);
                }
                if self.held {
                    process::kill_own_child(pid, false, libc::SIGSTOP);
                }
                let tell = request.is_told && self.births.begun(mark, now());
                self.answer(fd, Answer::Spawned { number, pid, withheld: false, tell }, pidfd);
                if !self.clients.contains_key(&fd) {
                    process::kill_own_child(pid, false, libc::SIGKILL);
                }
            }
            Err(error) => {
                self.confined.unborn(bound);
                self.clear_later();
                self.answer(fd, failed(error), None);
            }
        }
        // After the pidfd was sent and closed its place is free again; else the next one asks.
        let _later = self.pidfds.reserve();
    }

    /// Whether somebody still waits for the child, and there is room for it.
    fn may_be_born(
        &mut self,
        fd: RawFd,
        owner: Owner,
        request: &Request,
        has_environment: bool,
    ) -> Result<(), CallFailed> {
        let client = self.clients.get_mut(&fd).ok_or(("a client that left", Errno::ENOTCONN))?;
        if client.heard.has_given_up(request.deadline, request.patience, now()) {
            return Err(("deadline", Errno::ETIMEDOUT));
        }
        if self.book.count_children(owner) >= self.quota {
            return Err(("the quota of children", Errno::EAGAIN));
        }
        if request.present.has_environment && !has_environment {
            return Err(("recvmsg(SCM_RIGHTS)", Errno::EMFILE));
        }
        self.pidfds.reserve()
    }

    /// Who asks, and what we have put on it.
    fn sender(&self, owner: Owner, ids: Option<(u32, u32)>) -> Sender {
        let (process, is_root) = match owner {
            Owner::Actor(pid) => (pid, false),
            Owner::Root | Owner::Nobody => (self.root, true),
        };
        let (filters, has_landlock) = self.confined.put_on(process);
        Sender { process, is_root, ids, filters, has_landlock }
    }

    /// Reaps who has ended. By number where a signal told it; a look at all children takes time by
    /// their number, so that is done for the rest, and takes a tenth of our time at most.
    pub(super) fn reap(&mut self) {
        for pid in std::mem::take(&mut self.ended) {
            match waitid::peek_at(pid) {
                Ok(Some(_)) => self.reap_one(pid),
                Ok(None) => self.look_at_stops(Some(pid)),
                Err(_) => {}
            }
        }
        if self.scan_at.is_some_and(|at| at <= now()) {
            self.scan_at = None;
            self.look_at_stops(None);
            let (cost, done) = self.scan();
            self.scan_not_before = now() + SCAN_PAUSE * cost;
            if !done {
                self.scan_at = Some(self.scan_not_before);
            }
        }
    }

    /// Looks at all children, and gives back the processor time of looking and whether that was
    /// all. The kernel goes through all of them to find one that has ended; if there are several,
    /// asking for each by its number is less work.
    fn scan(&mut self) -> (u64, bool) {
        let mut cost = 0;
        // One that nobody may reap yet would be found again and again.
        let few = if self.programs.any_lingers() { 0 } else { FEW };
        for _ in 0..few {
            let since = processor_time();
            let ended = waitid::peek();
            cost += processor_time().saturating_sub(since);
            let Ok(Some((pid, _))) = ended else { return (cost, true) };
            self.reap_one(pid);
        }
        let since = processor_time();
        let mut ended = if few == 0 { children() } else { self.book.all_living() };
        ended.retain(|pid| {
            !self.programs.lingers(*pid) && matches!(waitid::peek_at(*pid), Ok(Some(_)))
        });
        cost += processor_time().saturating_sub(since);
        for pid in ended {
            self.reap_one(pid);
        }
        (cost, few == 0)
    }

    pub(super) fn reap_one(&mut self, pid: i32) {
        if self.let_linger(pid) {
            return;
        }
        if self.book.knows(pid) && !self.book.is_detached(pid) && !self.keeps_strays(pid) {
            // Its group, while the zombie still holds the number: the strays that stayed in it.
            if !self.programs.is_shared(pid) {
                process::kill_own_child(pid, true, libc::SIGKILL);
            }
            // Its number is nobody else's while a zombie is in there.
            let is_in = |group: &i32| {
                getpgid(Some(Pid::from_raw(pid))).is_ok_and(|of| of.as_raw() == *group)
                    && !self.book.knows(*group)
            };
            if let Some(group) = self.programs.last_of(pid).filter(is_in) {
                process::kill_own_child(group, true, libc::SIGKILL);
            }
        }
        if let Ok(Some((status, usage))) = waitid::reap_used(pid) {
            self.died(pid, status, usage);
        }
    }

    fn died(&mut self, pid: i32, mut exit: Exit, usage: Usage) {
        let ran_out_of_memory =
            exit.signal() == Some(libc::SIGKILL) && self.confined.ran_out_of_memory(pid);
        self.leaves_foreground(pid, &exit);
        let keeps = self.book.is_detached(pid)
            || self.programs.manner(pid).is_some_and(|manner| manner.keep_strays);
        self.programs.died(pid);
        let kept = self.programs.owner_died(pid);
        let mark = self.book.mark_of(pid);
        mark.into_iter().for_each(|mark| self.births.over(mark));
        let mark = mark.unwrap_or_default();
        let Some((owner, number)) = self.book.died(pid, now(), self.grace) else {
            return self.stray_reaped(pid);
        };
        let cgroup = self.confined.died(pid, (owner, number));
        let step = self.crib.bed(mark).died_in();
        let own: Vec<RawFd> = self.sockets_of(Owner::Actor(pid));
        for fd in own {
            drop(self.births.left(fd));
            self.clients.remove(&fd);
        }
        self.rights.forget(pid);
        if let Exit::Signal { out_of_memory, .. } = &mut exit {
            *out_of_memory = ran_out_of_memory;
        }
        let settled = keeps && owner != Owner::Nobody;
        let exited = Exited { number, exit, step, usage, settled };
        self.strays.settling.hand_over(&kept, mark);
        self.settle_later((pid, mark), settled, Told { owner, exited, cgroup });
    }
}

/// All children of this process, strays included.
pub(super) fn children() -> Vec<i32> {
    let text = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// What this thread has had of the processor, in nanoseconds. On a busy machine much less than the
/// time that has passed: a pause reckoned in the latter would let dead actors wait for their turn
/// as often as the forkserver did.
pub(super) fn processor_time() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(std::time::Duration::from);
    time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// How much longer than a look at all children the time until the next one is, by the processor
/// time of the look.
const SCAN_PAUSE: u64 = 9;
/// How many of the ended a scan finds one by one before it asks for each by its number.
const FEW: usize = 8;
