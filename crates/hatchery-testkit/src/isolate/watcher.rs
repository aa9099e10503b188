//! The process between a scenario and who wants to know: bounds it, inherits what it leaves.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use hatchery_spawn::Pidfd;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::mkdtemp;

use super::{End, PRIVATE_DIR, ROLE, Verdict, WATCHER};
use crate::counts;
use crate::dump::{Dump, Process};

/// Starts this program again as the scenario, sees it through, tells the verdict, and leaves.
pub(super) fn watch(bound: Duration) -> ! {
    let told = io::stdin().as_fd().try_clone_to_owned().and_then(|outside| {
        let mut outside = UnixStream::from(outside);
        let verdict = Watcher::start(bound)?.run(&outside)?;
        let text = serde_json::to_string(&verdict)?;
        match outside.write_all(text.as_bytes()) {
            // Nobody wants to know any more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    });
    if let Err(error) = told {
        eprintln!("watching a scenario: {error}");
        std::process::exit(1);
    }
    std::process::exit(0)
}

struct Watcher {
    scenario: Child,
    pidfd: Pidfd,
    /// The other end is the scenario's stdin.
    said: UnixStream,
    /// What the scenario writes to; memory, so that no writer ever blocks (H5).
    output: File,
    dir: PathBuf,
    begun: Instant,
    bound: Duration,
}

impl Watcher {
    fn start(bound: Duration) -> io::Result<Self> {
        nix::sys::prctl::set_child_subreaper(true)?;
        // A name that nobody has: a watcher that was killed has left its own, and numbers come around.
        let dir = mkdtemp(&std::env::temp_dir().join("hatchery-scenario.XXXXXX"))?;
        let output = File::from(memfd_create(c"output", MFdFlags::MFD_CLOEXEC)?);
        let (said, theirs) = UnixStream::pair()?;
        let begun = Instant::now();
        let scenario = Command::new("/proc/self/exe")
            .args(std::env::args_os().skip(1))
            .env(ROLE, "scenario")
            .env(WATCHER, std::process::id().to_string())
            .env(PRIVATE_DIR, &dir)
            .env("TMPDIR", &dir)
            .stdin(OwnedFd::from(theirs))
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?)
            .process_group(0)
            .spawn()?;
        let pidfd = Pidfd::open(scenario.id())?;
        said.set_nonblocking(true)?;
        Ok(Self { scenario, pidfd, said, output, dir, begun, bound })
    }

    fn run(mut self, outside: &UnixStream) -> io::Result<Verdict> {
        let mut said = Vec::new();
        let early = self.wait(outside, &mut said)?;
        let elapsed = self.begun.elapsed();
        let tree = (early == Some(End::Hung)).then(|| Dump::of(self.scenario.id())).flatten();
        if early.is_some() {
            // It may have ended on its own in this very moment.
            let _gone = self.pidfd.send_signal(Signal::SIGKILL as i32);
        }
        let status = self.scenario.wait()?;
        // What a kill leaves is no fault of the scenario's.
        let left = if early.is_some() { Vec::new() } else { left(status.signal().is_some())? };
        sweep()?;
        read_all(&mut self.said, &mut said)?;
        let end = early.unwrap_or_else(|| match (status.code(), status.signal()) {
            (Some(code), _) => End::Code(code),
            (None, signal) => End::Signal(signal.unwrap_or_default()),
        });
        let files = if early.is_some() { Vec::new() } else { files(&self.dir) };
        fs::remove_dir_all(&self.dir)?;
        Ok(Verdict {
            end,
            elapsed,
            left,
            files,
            said: String::from_utf8_lossy(&said).into_owned(),
            output: tail(&mut self.output)?,
            tree,
        })
    }

    /// Until the scenario has ended (`None`), the bound is spent, or nobody wants to know any more.
    fn wait(&mut self, outside: &UnixStream, said: &mut Vec<u8>) -> io::Result<Option<End>> {
        let mut listening = true;
        loop {
            let Some(left) = self.bound.checked_sub(self.begun.elapsed()) else {
                return Ok(Some(End::Hung));
            };
            // poll(2) counts in milliseconds: round up, so that it never spins.
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1));
            let mut fds = vec![
                PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN),
                PollFd::new(outside.as_fd(), PollFlags::POLLIN),
            ];
            if listening {
                fds.push(PollFd::new(self.said.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            if ready[0] {
                return Ok(None);
            }
            if ready[1] {
                return Ok(Some(End::Stopped));
            }
            if ready.get(2) == Some(&true) {
                listening = read_all(&mut self.said, said)?;
            }
        }
    }
}

/// What outlived the scenario. After a death by signal it may take as long as C3 allows to go.
fn left(was_killed: bool) -> io::Result<Vec<Process>> {
    if was_killed {
        wait_for_children(Instant::now() + ORPHANS_GONE)?;
    }
    reap_the_dead()?;
    let mut left: Vec<Process> = counts::children().into_keys().filter_map(Process::of).collect();
    // Who has ended between the two lines above is dead, and was only ours to reap.
    reap_the_dead()?;
    left.retain(|process| Process::of(process.pid).is_some());
    Ok(left)
}

/// Kills all children, and theirs, which become ours, until there are none.
fn sweep() -> io::Result<()> {
    let until = Instant::now() + SWEEP;
    while reap_the_dead()? {
        // Nobody but us reaps them, so each number is still its own.
        let children = counts::children().into_keys().filter_map(|pid| Pidfd::open(pid).ok());
        let killed: Vec<Pidfd> = children.collect();
        for child in &killed {
            let _zombie = child.send_signal(Signal::SIGKILL as i32);
        }
        // For these only: what was theirs is ours now, and must be killed first.
        for child in &killed {
            let _late = child.wait_dead(until.saturating_duration_since(Instant::now()));
        }
        if Instant::now() >= until {
            return Err(io::Error::other("killed processes don't end"));
        }
    }
    Ok(())
}

/// Waits until every present and coming child has ended, or it is late.
fn wait_for_children(until: Instant) -> io::Result<()> {
    while reap_the_dead()? && Instant::now() < until {
        for pid in counts::children().into_keys() {
            if let Ok(child) = Pidfd::open(pid) {
                let _late = child.wait_dead(until.saturating_duration_since(Instant::now()));
            }
        }
    }
    Ok(())
}

/// Says whether children are there that live.
fn reap_the_dead() -> io::Result<bool> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return Ok(true),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

fn files(dir: &Path) -> Vec<String> {
    counts::files(dir)
        .into_keys()
        .filter_map(|path| Some(path.strip_prefix(dir).ok()?.display().to_string()))
        .collect()
}

/// Reads what is there; says whether more may come.
fn read_all(from: &mut UnixStream, into: &mut Vec<u8>) -> io::Result<bool> {
    match from.read_to_end(into) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        // Closed with something unread, by its end.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(false),
        Err(error) => Err(error),
    }
}

fn tail(output: &mut File) -> io::Result<String> {
    let skip = output.seek(SeekFrom::End(0))?.saturating_sub(MAX_OUTPUT_BYTES);
    output.seek(SeekFrom::Start(skip))?;
    let mut bytes = Vec::new();
    output.take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// C3: one second.
const ORPHANS_GONE: Duration = Duration::from_secs(1);
/// How long killed processes may take to end: only uninterruptible sleep takes long.
const SWEEP: Duration = Duration::from_secs(5);
const MAX_OUTPUT_BYTES: u64 = 64 * 1024;
