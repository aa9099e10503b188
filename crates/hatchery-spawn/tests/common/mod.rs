//! Scenarios in a process of their own, under a bound from outside, and nothing left of them.
//!
//! The process is this test binary again, asked for the same test. A variable in its environment
//! marks it and all that comes of it, so that what is left is found whoever its parent is.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, Stdio as StdStdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use hatchery_spawn::{
    Access, Backend, Child, ChildId, Confinement, Forkserver, Pidfd, SpawnError, Spec, Stdio, Step,
};
use nix::libc;

/// Runs `scenario` in a process of its own and says what it left behind, which is an error.
pub(crate) fn isolated(test: &str, scenario: impl FnOnce()) {
    rooted(test, scenario, |root| {
        assert!(root.pidfd.wait_dead(BOUND), "`{test}` hangs");
        let status = root.process.wait().unwrap();
        assert!(status.success(), "`{test}`: {status}");
    });
}

/// Runs `scenario` in a process of its own while `outside` looks on, which may kill it.
pub(crate) fn rooted(test: &str, scenario: impl FnOnce(), outside: impl FnOnce(&mut Root)) {
    if std::env::var_os(MARKER).is_some() {
        return scenario();
    }
    let mut root = Root::start(test);
    outside(&mut root);
    let _killed = root.pidfd.send_signal(libc::SIGKILL);
    let _reaped = root.process.wait();
    root.assert_nothing_left();
    root.passed = true;
}

/// A scenario's process, seen from outside.
pub(crate) struct Root {
    pub(crate) process: Process,
    pub(crate) pidfd: Pidfd,
    marker: String,
    said: Receiver<String>,
    output: PathBuf,
    passed: bool,
}

impl Root {
    fn start(test: &str) -> Self {
        let marker = format!("{test}.{}", std::process::id());
        let output = std::env::temp_dir().join(format!("hatchery-spawn.{marker}"));
        let mut process = Command::new("/proc/self/exe")
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(MARKER, &marker)
            .stdin(StdStdio::piped())
            .stdout(StdStdio::piped())
            .stderr(fs::File::create(&output).unwrap())
            .spawn()
            .unwrap();
        let pidfd = Pidfd::open(process.id()).unwrap();
        let (tell, said) = channel();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(line) = line.strip_prefix(SAYS)
                    && tell.send(line.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Self { process, pidfd, marker, said, output, passed: false }
    }

    /// The next line that the scenario says.
    pub(crate) fn line(&self) -> String {
        self.said.recv_timeout(BOUND).expect("a line from the scenario")
    }

    /// All further lines, of the scenario and of who has its stdout, until the last of them is gone.
    pub(crate) fn rest(&self) -> Vec<String> {
        let until = Instant::now() + BOUND;
        let left = || until.saturating_duration_since(Instant::now());
        std::iter::from_fn(|| self.said.recv_timeout(left()).ok()).collect()
    }

    /// The process of the next line.
    pub(crate) fn pid(&self) -> Pidfd {
        Pidfd::open(self.line().parse().unwrap()).unwrap()
    }

    /// Writes a line to the scenario's stdin.
    pub(crate) fn hear(&mut self, line: &str) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// All processes of the scenario that live.
    pub(crate) fn marked(&self) -> Vec<u32> {
        marked(&self.marker)
    }

    /// C3: a second after the root's end nothing of it is left.
    fn assert_nothing_left(&self) {
        let until = Instant::now() + Duration::from_secs(1);
        let gone = |pid: &u32| {
            Pidfd::open(*pid)
                .is_ok_and(|left| !left.wait_dead(until.saturating_duration_since(Instant::now())))
        };
        let left: Vec<String> = self.marked().into_iter().filter(gone).map(describe).collect();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if !self.passed {
            let text = fs::read_to_string(&self.output).unwrap_or_default();
            eprintln!("--- the scenario's stderr\n{text}---");
            for pid in self.marked() {
                eprintln!("{}", describe(pid));
                if let Ok(left) = Pidfd::open(pid) {
                    let _killed = left.send_signal(libc::SIGKILL);
                }
            }
            let _killed = self.process.kill();
            let _reaped = self.process.wait();
        }
        drop(fs::remove_file(&self.output));
    }
}

/// Says a line to whoever looks on from outside.
pub(crate) fn say(line: impl std::fmt::Display) {
    println!("\n{SAYS}{line}");
}

/// The same in one piece, for who shares the stdout with others.
pub(crate) fn say_whole(line: impl std::fmt::Display) {
    // Nobody may be there to read it any more.
    let _said = nix::unistd::write(std::io::stdout(), format!("\n{SAYS}{line}\n").as_bytes());
}

/// Waits for the end that comes from outside.
pub(crate) fn park() -> ! {
    loop {
        std::thread::park();
    }
}

/// A child on a channel, with no stdio.
pub(crate) fn spawn(backend: &dyn Backend, spec: Spec) -> Result<(Child, UnixStream), SpawnError> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(BOUND)).unwrap();
    let child = block_on(backend.spawn(spec.stdout(Stdio::Null).channel(theirs.into())))?;
    Ok((child, ours))
}

/// What a child says on its channel until it closes it.
pub(crate) fn answer(backend: &dyn Backend, spec: Spec) -> String {
    let (child, mut ours) = spawn(backend, spec).unwrap();
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    assert_eq!(block_on(child.wait()).unwrap().code(), Some(0), "{text}");
    text
}

/// The next line on a channel.
pub(crate) fn line(channel: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while channel.read_exact(&mut byte).is_ok() && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// Writes a line; whether anybody reads it is not the writer's business.
pub(crate) fn tell(channel: &mut UnixStream, text: impl std::fmt::Display) {
    drop(channel.write_all(format!("{text}\n").as_bytes()));
}

/// The process of a child.
pub(crate) fn process(child: &Child) -> Pidfd {
    let ChildId::Process(pid) = child.id() else { panic!("a thread") };
    Pidfd::open(pid).unwrap()
}

/// Runs a future on a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(BOUND, future).await.expect("within the bound") })
}

/// A directory where cgroups (version 2) may be made, removed at the end. `None` says why not.
///
/// Beside this process's own cgroup, where controllers can be had, as nobody is in the one above: so
/// it is wherever a session or a service was delegated one. Else inside of its own.
pub(crate) struct Delegated(pub(crate) PathBuf);

impl Delegated {
    pub(crate) fn new(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" cgroup2 "));
        let Some(mount) = mount.and_then(|line| line.split(' ').nth(1)) else {
            eprintln!("not tested: no cgroup v2 is mounted");
            return None;
        };
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let own = Path::new(mount).join(own);
        let name = format!("test-{name}-{}", std::process::id());
        let beside =
            own.parent().filter(|above| !words(above, "cgroup.subtree_control").is_empty());
        let beside = beside.map(|above| above.join(&name));
        if let Some(path) = beside.filter(|path| fs::create_dir(path).is_ok()) {
            return Some(Self(path));
        }
        let path = own.join(name);
        match fs::create_dir(&path) {
            Ok(()) => Some(Self(path)),
            Err(error) => {
                eprintln!("not tested: {}: {error}", path.display());
                None
            }
        }
    }

    /// One with those controllers.
    pub(crate) fn with(controllers: &[&str], name: &str) -> Option<Self> {
        let place = Self::new(name)?;
        let there = words(&place.0, "cgroup.controllers");
        let missing = controllers.iter().find(|wanted| !there.iter().any(|it| it == *wanted));
        if let Some(missing) = missing {
            eprintln!("not tested: no {missing} controller (version 2) at {}", place.0.display());
            return None;
        }
        Some(place)
    }

    pub(crate) fn inside(&self) -> Vec<PathBuf> {
        let all = fs::read_dir(&self.0).unwrap().flatten();
        all.filter(|entry| entry.file_type().unwrap().is_dir()).map(|entry| entry.path()).collect()
    }

    pub(crate) fn is_empty_soon(&self) {
        self.holds_soon(0);
    }

    /// Waits until so many are left in it.
    pub(crate) fn holds_soon(&self, count: usize) {
        let until = Instant::now() + Duration::from_secs(2);
        while self.inside().len() != count {
            assert!(Instant::now() < until, "{:?}", self.inside());
            std::thread::yield_now();
        }
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < until {
            std::thread::yield_now();
        }
    }
}

/// The words of a cgroup's file.
pub(crate) fn words(cgroup: &Path, file: &str) -> Vec<String> {
    let text = fs::read_to_string(cgroup.join(file)).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn marked(marker: &str) -> Vec<u32> {
    let entry = format!("{MARKER}={marker}");
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|file| file.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            // A process that is gone or a zombie has no environment.
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|found| found == entry.as_bytes())
        })
        .collect()
}

fn describe(pid: u32) -> String {
    let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let status = read("status");
    let lines = status.lines().filter(|line| line.starts_with("State") || line.starts_with("PPid"));
    let command = read("cmdline").replace('\0', " ");
    format!("{pid}: {command} {:?} {}", lines.collect::<Vec<_>>(), read("wchan"))
}

/// No scenario takes nearly as long.
pub(crate) const BOUND: Duration = Duration::from_secs(40);
const MARKER: &str = "HATCHERY_SCENARIO";
const SAYS: &str = "@ ";

/// Whether this kernel can confine a process to a list of files (Linux 6.2, and landlock in force); it
/// says so if not.
pub(crate) fn has_landlock(server: &Forkserver) -> bool {
    let any = Spec::program("true").confine(Confinement::new().files([("/", Access::Execute)]));
    let refused = block_on(server.fork().spawn(any)).err();
    let is_there = !matches!(&refused, Some(SpawnError::Step { step: Step::Landlock, cause, .. })
        if matches!(cause.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)));
    if !is_there {
        eprintln!("not tested: {}", refused.expect("an error"));
    }
    is_there
}

/// Becomes a user who has no other process, so that limits of a user count this one's alone. Says so and
/// gives `false` where that can't be done: without the rights, or in a container that has few users.
pub(crate) fn become_nobody() -> bool {
    let nobody = 1_000_000 + std::process::id();
    let became =
        nix::unistd::setgid(nobody.into()).and_then(|()| nix::unistd::setuid(nobody.into()));
    if let Err(errno) = became {
        eprintln!("not tested: nobody here can become a user who has nothing else: {errno}");
    }
    became.is_ok()
}
