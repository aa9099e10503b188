//! The steps between fork and main, in order. Only this file runs there.
//!
//! The child is single-threaded and a copy of a process that holds no lock, so allocation is
//! fine. It never drops what its parent owned: after the scrub those numbers mean other things.

mod placed;
mod spawner;

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd as _, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{
    Gid, Pid, Uid, getgroups, getppid, getresgid, getresuid, setgroups, setpgid, setresgid,
    setresuid,
};

use crate::confine::{Access, User, cgroup};
use crate::forkserver::crib::Bed;
use crate::forkserver::rights::{self, Plan};
use crate::forkserver::wire::{Request, Run};
use crate::forkserver::{environment, present};
use crate::sys::environ::Entries;
use crate::sys::rlimit::Limits;
use crate::sys::{
    close_range, fds, landlock, overflow, priority, process, pty, seccomp, sigaction, title,
};

/// A step of a child's birth, in the order in which they are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Step {
    /// SIGKILL when the forkserver dies. First: all later steps may block.
    ParentDeathSignal = 1,
    /// A group of its own: kills of the group must be right before it can start anything.
    ProcessGroup,
    /// Stdio, channel and named fds to their slots.
    Fds,
    /// Everything above the slots is closed.
    FdScrub,
    /// Default dispositions; the stack-overflow message.
    Signals,
    /// Its cgroup: what it uses from here on is counted there.
    Cgroup,
    /// Limits: its spawner's, then those asked for.
    Limits,
    /// Its nice value, while it may still lower it: its spawner's, then what was asked for.
    Nice,
    /// The processors that it may run on: its spawner's, then those asked for.
    CpuAffinity,
    /// Its spawner's rights. Before all that was asked for it: what that takes, its spawner must have.
    Rights,
    /// Who it is. After all that needs the root's rights; before it opens anything by a path.
    User,
    /// Where it starts: its spawner's directory, early; then what was asked for, here.
    WorkingDirectory,
    /// Its variables.
    Environment,
    /// What `ps` shows.
    ProcessName,
    /// Finding the main of ours that was asked for.
    Main,
    /// No more rights than it has. Before the two that can be had without rights only then.
    NoNewPrivileges,
    /// Its view of the file system. After all that opens files for it.
    Landlock,
    /// The filter of its system calls. Last, as it may forbid any of the steps.
    Seccomp,
    /// Becoming another program.
    Exec,
}

impl Step {
    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ParentDeathSignal => "parent-death signal",
            Self::ProcessGroup => "process group",
            Self::Fds => "fds",
            Self::FdScrub => "fd scrub",
            Self::Signals => "signals",
            Self::Cgroup => "cgroup",
            Self::Rights => "rights",
            Self::Limits => "limits",
            Self::Nice => "nice",
            Self::CpuAffinity => "cpu affinity",
            Self::User => "user",
            Self::WorkingDirectory => "working directory",
            Self::Environment => "environment",
            Self::ProcessName => "process name",
            Self::Main => "main",
            Self::NoNewPrivileges => "no new privileges",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Exec => "exec",
        }
    }

    /// The step with that number on the wire.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        use Step::{
            Cgroup, CpuAffinity, Environment, Exec, FdScrub, Fds, Landlock, Limits, Main, Nice,
            NoNewPrivileges, ParentDeathSignal, ProcessGroup, ProcessName, Rights, Seccomp,
            Signals, User, WorkingDirectory,
        };
        [
            ParentDeathSignal,
            ProcessGroup,
            Fds,
            FdScrub,
            Signals,
            Cgroup,
            Limits,
            Nice,
            CpuAffinity,
            Rights,
            User,
            WorkingDirectory,
            Environment,
            ProcessName,
            Main,
            NoNewPrivileges,
            Landlock,
            Seccomp,
            Exec,
        ]
        .into_iter()
        .find(|step| *step as u8 == number)
    }
}

/// What a child inherits from the forkserver on purpose.
#[derive(Debug)]
pub(crate) struct Nest<'a> {
    /// The forkserver itself, asked before the fork.
    pub(crate) server: i32,
    /// The shared socket to the forkserver.
    pub(crate) shared: RawFd,
    /// The program's image.
    pub(crate) image: RawFd,
    /// Who has asked for the child.
    pub(crate) spawner: i32,
    /// The forkserver's own limits.
    pub(crate) limits: &'a Limits,
    /// The spawner's variables, if they count.
    pub(crate) environment: Option<&'a Entries>,
    /// The spawner's directory, if that counts.
    pub(crate) directory: Option<RawFd>,
    /// The child's mark for the environment of what it starts.
    pub(crate) mark: &'a str,
    /// The cgroup that it joins.
    pub(crate) cgroup: Option<&'a Path>,
    /// What it gets less than the forkserver has.
    pub(crate) rights: &'a Plan,
    /// Where it writes how far it has come.
    pub(crate) bed: Bed<'a>,
}

impl Nest<'_> {
    /// Takes a step. A failure says which one it was; for a death the bed does.
    pub(crate) fn take<T>(
        &self,
        step: Step,
        how: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Failed> {
        self.bed.enter(step);
        how().map_err(|errno| {
            // It ends by itself, and says so.
            self.bed.leave();
            (step, errno)
        })
    }
}

/// Where things are in a child that was born.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slots {
    pub(crate) channel: Option<RawFd>,
    /// The shared socket; foreign programs have none.
    pub(crate) shared: Option<RawFd>,
    /// The first of the named fds, and how many.
    pub(crate) first: RawFd,
    pub(crate) count: RawFd,
    birth: RawFd,
    image: Option<RawFd>,
}

/// A step that failed.
pub(crate) type Failed = (Step, Errno);

/// Takes all steps up to, but not including, exec or main. `received` are the request's fds:
/// birth pipe, stdio, channel, others.
pub(crate) fn run(
    request: &Request,
    received: &[RawFd],
    nest: &Nest<'_>,
) -> Result<Slots, (RawFd, Failed)> {
    let mut birth = received[0];
    steps(request, received, nest, &mut birth).map_err(|failed| (birth, failed))
}

fn steps(
    request: &Request,
    received: &[RawFd],
    nest: &Nest<'_>,
    birth: &mut RawFd,
) -> Result<Slots, Failed> {
    nest.take(Step::ParentDeathSignal, || die_with(nest.server))?;
    nest.take(Step::ProcessGroup, || group(request))?;
    if let Some(directory) = nest.directory {
        nest.take(Step::WorkingDirectory, || spawner::directory(directory))?;
    }
    let slots = nest.take(Step::Fds, || place_fds(request, received, nest, birth))?;
    if request.manner.terminal {
        nest.take(Step::ProcessGroup, pty::take_control)?;
    }
    let first_free = slots.image.unwrap_or(slots.birth) + 1;
    nest.take(Step::FdScrub, || {
        if request.manner.places.is_empty() {
            return close_range::close_from(first_free.cast_unsigned());
        }
        placed::scrub(request, &slots)
    })?;
    nest.take(Step::Signals, || signals(request))?;
    if let Some(path) = nest.cgroup {
        nest.take(Step::Cgroup, || cgroup::join(path))?;
    }
    nest.take(Step::Limits, || spawner::limits(nest))?;
    let thread = spawner::thread(request, nest);
    nest.take(Step::Nice, || {
        spawner::scheduling(thread, nest.spawner);
        Ok(())
    })?;
    nest.take(Step::CpuAffinity, || spawner::processors(thread, nest.spawner))?;
    if !nest.rights.is_empty() {
        nest.take(Step::Rights, || rights::apply(nest.rights))?;
        // The kernel forgets the signal with the old rights.
        nest.take(Step::ParentDeathSignal, || die_with(nest.server))?;
    }
    asked(request, nest)?;
    if let Some(path) = &request.current_dir {
        nest.take(Step::WorkingDirectory, || nix::unistd::chdir(OsStr::from_bytes(path)))?;
    }
    request.present.mode.take_over();
    // Who may not look at itself is looked at.
    let umask = request.present.umask.or_else(|| present::umask_of(nest.spawner, thread));
    if let Some(umask) = umask {
        nix::sys::stat::umask(Mode::from_bits_truncate(umask));
    }
    nest.take(Step::Environment, || {
        environment::enact(nest.environment, &request.env, mark(request, nest));
        Ok(())
    })?;
    nest.take(Step::ProcessName, || name(request))?;
    nest.take(Step::Signals, || {
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
    })?;
    if request.manner.detach {
        // Until here it went with the forkserver.
        nest.take(Step::ParentDeathSignal, || nix::sys::prctl::set_pdeathsig(None::<Signal>))?;
    }
    Ok(slots)
}

/// What was asked for beyond what its spawner has itself.
fn asked(request: &Request, nest: &Nest<'_>) -> Result<(), Failed> {
    nest.take(Step::Limits, || spawner::asked_limits(request))?;
    if let Some(nice) = [request.nice, request.confine.nice].into_iter().flatten().max() {
        nest.take(Step::Nice, || priority::set_nice(nice))?;
    }
    if let Some(cpus) = &request.confine.cpus {
        nest.take(Step::CpuAffinity, || run_on(cpus))?;
    }
    for user in &request.confine.users {
        nest.take(Step::User, || become_user(user))?;
        // The kernel forgets the signal with the old rights.
        nest.take(Step::ParentDeathSignal, || die_with(nest.server))?;
    }
    Ok(())
}

/// The last steps before main or exec: what it takes away may be what an earlier step needs.
pub(crate) fn confine(request: &Request, slots: &Slots, nest: &Nest<'_>) -> Result<(), Failed> {
    let confine = &request.confine;
    if confine.no_new_privs || !confine.files.is_empty() || !confine.filters.is_empty() {
        nest.take(Step::NoNewPrivileges, nix::sys::prctl::set_no_new_privs)?;
    }
    for layer in &confine.files {
        nest.take(Step::Landlock, || restrict_files(layer, slots.image))?;
    }
    for filter in &confine.filters {
        nest.take(Step::Seccomp, || seccomp::install(&filter.program))?;
    }
    Ok(())
}

/// Becomes what was asked for, where that is another image, which is `told` what it is if it is ours.
/// Returns only if it fails.
pub(crate) fn exec(request: &Request, slots: &Slots, told: Option<&CStr>) -> Failed {
    let argv = |args: &[Vec<u8>]| -> Result<Vec<CString>, Failed> {
        args.iter()
            .map(|arg| CString::new(&arg[..]).map_err(|_| (Step::Exec, Errno::EINVAL)))
            .collect()
    };
    let result = match (slots.image, told) {
        (Some(image), Some(told)) => {
            // The root's, and room for a name.
            let args: Vec<_> = std::env::args_os().map(OsString::into_encoded_bytes).collect();
            argv(&args).map(|mut argv| {
                argv.push(title::ROOM.to_owned());
                process::exec_fd(image, &argv, told)
            })
        }
        (_, _) => argv(&request.argv).and_then(|mut args| {
            let called = argv(request.arg0.as_slice())?;
            let Some(program) = args.first().cloned() else { return Ok(Err(Errno::EINVAL)) };
            args.splice(..called.len(), called);
            Ok(process::exec(&program, &args))
        }),
    };
    match result {
        Err(failed) => failed,
        Ok(Err(errno)) => (Step::Exec, errno),
    }
}

/// Tells the spawner which step failed. Whoever reads it has a bound of its own.
pub(crate) fn report(birth: RawFd, (step, errno): Failed) {
    let mut record = [0; RECORD];
    record[0] = step as u8;
    record[1..].copy_from_slice(&(errno as i32).to_le_bytes());
    let Ok(birth) = fds::adopt(birth) else { return };
    // A spawner that is gone needs no report.
    let _gone = nix::unistd::write(&birth, &record);
}

/// Reads what [`report`] wrote.
pub(crate) fn parse_report(record: &[u8]) -> Option<(Step, i32)> {
    let (number, errno) = record.split_first()?;
    Some((Step::from_number(*number)?, i32::from_le_bytes(errno.try_into().ok()?)))
}

/// Says that all went well: closes the birth pipe.
pub(crate) fn born(slots: &Slots, nest: &Nest<'_>) {
    nest.bed.leave_for_good();
    fds::close(slots.birth);
}

/// Stdio to 0, 1, 2; then channel, shared socket, named fds, birth pipe, image.
fn place_fds(
    request: &Request,
    received: &[RawFd],
    nest: &Nest<'_>,
    birth: &mut RawFd,
) -> Result<Slots, Errno> {
    if !request.manner.places.is_empty() {
        return placed::place(request, received, birth);
    }
    let ours = !matches!(request.run, Run::Program);
    let (pipe, stdio) = (received[0], &received[1..4]);
    let (channel, others) = match &received[4..] {
        [channel, others @ ..] if request.has_channel => (Some(*channel), others),
        others => (None, others),
    };
    let mut wanted: Vec<RawFd> = stdio.to_vec();
    wanted.extend(channel);
    wanted.extend(ours.then_some(nest.shared));
    let first = RawFd::try_from(wanted.len()).map_err(|_| Errno::EINVAL)?;
    wanted.extend(others);
    let count = RawFd::try_from(others.len()).map_err(|_| Errno::EINVAL)?;
    wanted.push(pipe);
    wanted.extend(matches!(request.run, Run::Image(_)).then_some(nest.image));
    // Above the slots first, so that no slot is overwritten before it was copied.
    let lowest = RawFd::try_from(wanted.len()).map_err(|_| Errno::EINVAL)?;
    let above = |&fd: &RawFd| if fd >= lowest { Ok(fd) } else { fds::lift(fd, lowest) };
    let lifted: Vec<RawFd> = wanted.iter().map(above).collect::<Result<_, _>>()?;
    let slots = Slots {
        channel: channel.map(|_| 3),
        shared: ours.then_some(first - 1),
        first,
        count,
        birth: first + count,
        image: matches!(request.run, Run::Image(_)).then_some(first + count + 1),
    };
    for (slot, &fd) in (0..).zip(&lifted) {
        // What the child must keep over an exec, it keeps; the rest goes with it.
        let forked = matches!(request.run, Run::Main(_)) && slot >= 3;
        fds::place(fd, slot, forked || slot >= slots.birth)?;
    }
    *birth = slots.birth;
    Ok(slots)
}

/// A group of its own, and the terminal if it was asked for; a session of its own for who is left alone.
fn group(request: &Request) -> Result<(), Errno> {
    if request.manner.detach || request.manner.session {
        return nix::unistd::setsid().map(drop);
    }
    setpgid(Pid::from_raw(0), Pid::from_raw(request.manner.group.unwrap_or_default()))?;
    if request.manner.foreground {
        // All signals are blocked here, so SIGTTOU stops nobody who isn't in the foreground yet.
        crate::terminal::Terminal::open()?.give(nix::unistd::getpid())?;
    }
    Ok(())
}

fn signals(request: &Request) -> Result<(), Errno> {
    // The server has reset every disposition at its own start and installed none.
    if matches!(request.run, Run::Main(_)) {
        sigaction::ignore_sigpipe();
        overflow::install()?;
    }
    Ok(())
}

/// Arm first, look second: a server that died in between is seen by getppid (H11). Compared with
/// the pid from before the fork: in a container the parent may rightly be 1.
fn die_with(server: i32) -> Result<(), Errno> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid().as_raw() == server { Ok(()) } else { Err(Errno::ESRCH) }
}

fn run_on(cpus: &[u32]) -> Result<(), Errno> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(usize::try_from(cpu).map_err(|_| Errno::EINVAL)?)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// A spawner that is that user may ask for a child that is it, though it may not for others.
fn become_user(user: &User) -> Result<(), Errno> {
    let (uids, gids) = (getresuid()?, getresgid()?);
    let sorted = |mut groups: Vec<u32>| {
        groups.sort_unstable();
        groups
    };
    let groups = user.groups_of(uids.real.as_raw());
    let own = sorted(getgroups()?.into_iter().map(Gid::as_raw).collect());
    let has_groups = groups.is_none_or(|groups| sorted(groups.to_vec()) == own);
    let (uid, gid) = (user.uid.map(Uid::from_raw), user.gid.map(Gid::from_raw));
    let has_gid = gid.is_none_or(|gid| [gids.real, gids.effective, gids.saved] == [gid; 3]);
    let has_uid = uid.is_none_or(|uid| [uids.real, uids.effective, uids.saved] == [uid; 3]);
    if has_uid && has_gid && has_groups {
        return Ok(());
    }
    // Groups first: without the old user there is no right to it.
    if let Some(groups) = groups {
        let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        match setgroups(&groups) {
            Err(Errno::EPERM) if has_groups => {}
            set => set?,
        }
    }
    gid.map_or(Ok(()), |gid| setresgid(gid, gid, gid))?;
    uid.map_or(Ok(()), |uid| setresuid(uid, uid, uid))
}

fn restrict_files(allowed: &[(PathBuf, Access)], image: Option<RawFd>) -> Result<(), Errno> {
    // Older ones let files be cut that may not be written.
    if landlock::version()? < 3 {
        return Err(Errno::EOPNOTSUPP);
    }
    let rules = landlock::Ruleset::new(landlock::ALL)?;
    let read = landlock::READ_FILE | landlock::READ_DIR;
    for (path, access) in allowed {
        let path = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let access = match access {
            Access::Read => read,
            Access::Execute => read | landlock::EXECUTE,
            Access::Write => landlock::ALL & !landlock::EXECUTE,
        };
        let is_directory = SFlag::from_bits_truncate(fstat(&path)?.st_mode & SFlag::S_IFMT.bits())
            == SFlag::S_IFDIR;
        let access = if is_directory { access } else { access & landlock::OF_FILES };
        rules.allow(path.as_fd(), access)?;
    }
    if let Some(image) = image {
        rules.allow(fds::in_slot(image), landlock::READ_FILE | landlock::EXECUTE)?;
    }
    rules.enforce()
}

/// The variable that the child has on top of all others, unless it shall have none: by it what it starts
/// is known.
fn mark<'a>(request: &Request, nest: &Nest<'a>) -> Option<(&'static str, &'a str)> {
    let tree = nest.mark.rsplit_once('.').map_or("", |(tree, _)| tree);
    let mark = if request.manner.detach { (DETACHED, tree) } else { (MARK, nest.mark) };
    (!request.env_clear).then_some(mark)
}

fn name(request: &Request) -> Result<(), Errno> {
    if matches!(request.run, Run::Program) {
        return Ok(());
    }
    let full = format!("hatchery:{}", request.name);
    title::set(&full);
    // The kernel keeps 15 bytes; it cuts by itself.
    let short = CString::new(full).map_err(|_| Errno::EINVAL)?;
    nix::sys::prctl::set_name(&short)
}

/// The variable by which what a detached program has started is known, and left alone like that.
pub(crate) const DETACHED: &str = "HATCHERY_DETACHED";

/// The variable by which strays are known to belong to an actor.
pub(crate) const MARK: &str = "HATCHERY_ACTOR";

/// The length of a birth report.
pub(crate) const RECORD: usize = 5;

impl Slots {
    /// Where the birth pipe is.
    pub(crate) fn birth(&self) -> RawFd {
        self.birth
    }
}
