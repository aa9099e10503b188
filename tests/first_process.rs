//! A program that is process 1 of a pid namespace, as a container's is: a reaper stays behind, and the
//! program is its child. Each scenario is the `main` of a process of its own, with one thread.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]
#![allow(clippy::zombie_processes, reason = "left to process 1 on purpose")]

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitCode, Stdio as Std};
use std::time::{Duration, Instant};

use hatchery::{Config, Reaper, ReaperError, Runtime, Stdio, nursery, reap_orphans};
use hatchery_spawn::{Command as Program, Exit, Pidfd};
use hatchery_testkit::isolate::{self, Isolated};
use hatchery_tests::ROOMY;
use nix::libc::{SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGTERM, SIGUSR1};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::{Pid, getpid, tcsetpgrp};

/// A scenario: its name, what is looked for from outside of the namespace, and the program in there.
type Scenario = (&'static str, fn(), fn() -> ExitCode);

const SCENARIOS: &[Scenario] = &[
    ("orphans_of_others_are_reaped_and_no_status_is_lost", orphans, has_orphans),
    ("every_signal_is_passed_on_once", signals, tells_signals),
    ("a_sigterm_takes_the_tree_down", sigterm, is_up),
    ("a_death_by_signal_is_carried_on", killed, is_up),
    ("a_sigkill_of_process_1_ends_all", first_killed, is_up),
    ("what_the_program_leaves_ends_with_it", leaves, leaves_a_daemon),
    ("process_1_holds_no_fd_of_the_program", output, tells_signals),
    ("a_process_1_with_threads_is_told_so", threads, has_a_thread),
    ("a_process_1_that_ignores_sigchld_hears_of_the_end", ignoring, ignores_sigchld),
    ("who_is_not_process_1_changes_nothing", not_first, is_not_first),
    ("a_main_of_ours_reaps_when_it_is_asked_to", entered, ours::entered),
    ("the_leader_of_a_session_keeps_its_terminal", leader, tells_signals),
    ("the_job_of_a_shell_outside_keeps_its_terminal", in_a_shell, tells_signals),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let known = |wanted: &str| SCENARIOS.iter().find(|(name, ..)| *name == wanted).unwrap();
    if let [first, name] = &args[..]
        && first == PROGRAM
    {
        return known(name).2();
    }
    if args == [SHELL] {
        job();
        return ExitCode::SUCCESS;
    }
    if isolate::is_scenario() {
        known(&args[0]).1();
        return ExitCode::SUCCESS;
    }
    // What a runner of tests asks for.
    let is_exact = args.iter().any(|arg| arg == "--exact");
    let filter = args.iter().find(|arg| !arg.starts_with('-')).cloned().unwrap_or_default();
    let wanted = |name: &str| if is_exact { name == filter } else { name.contains(&filter) };
    let ignored = args.iter().any(|arg| arg == "--ignored");
    for (name, ..) in SCENARIOS.iter().filter(|(name, ..)| wanted(name) && !ignored) {
        if args.iter().any(|arg| arg == "--list") {
            println!("{name}: test");
            continue;
        }
        let verdict = Isolated::new(HANG).args([name]).run().unwrap();
        assert!(verdict.is_clean(), "`{name}` {verdict}");
        for line in verdict.output.lines().filter(|line| line.contains("not tested")) {
            println!("{line}");
        }
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

#[hatchery::function]
async fn square(x: u64) -> u64 {
    x * x
}

#[hatchery::function]
async fn leave_with(code: i32) -> u64 {
    std::process::exit(code)
}

/// A program as process 1 of a pid namespace, with a `/proc` of that.
struct Namespace {
    /// `unshare`, the parent of process 1; it ends as that does.
    unshare: Child,
    said: BufReader<File>,
}

impl Namespace {
    fn start(name: &str) -> Option<Self> {
        Self::start_by(name, &[], |_| {})
    }

    /// `first`: what becomes the program in there. Says why not if there can be no namespace.
    fn start_by(name: &str, first: &[&str], set: impl FnOnce(&mut Command)) -> Option<Self> {
        let tried = unshare(&["true"]).output();
        if !matches!(&tried, Ok(output) if output.status.success()) {
            eprintln!("not tested: no pid namespace is to be had: {tried:?}");
            return None;
        }
        let own = std::env::current_exe().unwrap();
        let words = [own.to_str().unwrap(), PROGRAM, name];
        let mut command = unshare(&[first, &words].concat());
        command.stdin(Std::null()).stdout(Std::piped());
        set(&mut command);
        let mut unshare = command.spawn().unwrap();
        let said = File::from(OwnedFd::from(unshare.stdout.take().unwrap()));
        Some(Self { unshare, said: BufReader::new(said) })
    }

    /// Process 1, from outside.
    fn first(&self) -> Pidfd {
        Pidfd::open(only_child(self.unshare.id())).unwrap()
    }

    /// The program, from outside.
    fn program(&self) -> Pidfd {
        Pidfd::open(only_child(only_child(self.unshare.id()))).unwrap()
    }

    fn says(&mut self, what: &str) {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), what);
    }

    /// Ends with that status, and has said no more.
    fn ends_with(mut self, code: i32) {
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        let status = self.unshare.wait().unwrap();
        assert_eq!((status.code(), &*rest), (Some(code), ""), "{status}");
    }
}

fn unshare(words: &[&str]) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--mount-proc", "--"]).args(words);
    unshare
}

fn only_child(pid: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let children: Vec<u32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(children.len(), 1, "{pid}: {children:?}");
    children[0]
}

/// The program's side: it is the child of a process 1 that stays behind.
fn begin() {
    assert_eq!(getpid().as_raw(), 1);
    assert_eq!(reap_orphans().unwrap(), Reaper::Stands);
    assert_eq!(std::os::unix::process::parent_id(), 1);
    assert_eq!(reap_orphans().unwrap(), Reaper::NotNeeded);
}

fn say(what: &str) {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{what}").unwrap();
    stdout.flush().unwrap();
}

/// All processes of this namespace whose parent is process 1, with their states.
fn of_first() -> Vec<(i32, char)> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|file| file.file_name().to_str()?.parse::<i32>().ok());
    let stat = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, after) = stat.rsplit_once(") ")?;
        let mut fields = after.split_whitespace();
        let state = fields.next()?.chars().next()?;
        (fields.next()? == "1").then_some((pid, state))
    };
    pids.filter_map(stat).filter(|(pid, _)| *pid != getpid().as_raw()).collect()
}

fn wait_until(what: impl Fn() -> bool) {
    let until = Instant::now() + HANG / 2;
    while !what() {
        assert!(Instant::now() < until, "{:?}", of_first());
        std::thread::yield_now();
    }
}

fn orphans() {
    if let Some(space) = Namespace::start("orphans_of_others_are_reaped_and_no_status_is_lost") {
        space.ends_with(42);
    }
}

/// C9: twenty orphans that process 1 is given are reaped when they end, while statuses of children of
/// three kinds come to whoever waits for them, each exact.
fn has_orphans() -> ExitCode {
    begin();
    let (reader, writer) = std::io::pipe().unwrap();
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do cat <&3 & done";
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec 3<&0; {script}")]).stdin(reader);
    let mut shell = shell.spawn().unwrap();
    assert!(shell.wait().unwrap().success());
    wait_until(|| of_first().len() == ORPHANS);
    // Their ends come amid those of the program's own children.
    let mut writer = Some(writer);
    isolate::block_on(async {
        let config = Config::with_budget(ROOMY);
        let runtime = Runtime::builder().config(config).stdio(Stdio::Null).open().unwrap();
        for code in 0..CHILDREN {
            let exit = format!("exit {code}");
            let std = Command::new("sh").args(["-c", &exit]).status().unwrap();
            assert_eq!(std.code(), Some(code));
            let own = Program::new("sh").args(["-c", &exit]).status().await.unwrap();
            assert_eq!(own, Exit::Code(code));
            let died = Command::new("sh").args(["-c", "kill -9 $$"]).status().unwrap();
            assert_eq!(died.signal(), Some(SIGKILL));
            let down: Result<(), _> = runtime
                .nursery(async |n| {
                    assert_eq!(n.run("once", square(7)).await?, 49);
                    n.run("leaves", leave_with(code + 1)).await?;
                    Ok(())
                })
                .await;
            let said = hatchery_tests::came_down(down).render().to_string();
            assert!(said.contains(&format!("exit status {}", code + 1)), "{said}");
            if code == CHILDREN / 4 {
                writer = None;
            }
        }
        runtime.close().await;
    });
    drop(writer);
    wait_until(|| of_first().is_empty());
    // Also those that come when nothing else does.
    let mut shell = Command::new("sh").args(["-c", "true & true & true &"]).spawn().unwrap();
    assert!(shell.wait().unwrap().success());
    wait_until(|| of_first().is_empty());
    ExitCode::from(42)
}

/// Tells signals of these kinds by number until SIGTERM has come, and ends with 9.
fn tells_signals() -> ExitCode {
    begin();
    let told = hatchery_spawn::signals::install(&[SIGHUP, SIGINT, SIGUSR1, SIGTERM]).unwrap();
    say("up");
    loop {
        let signal = told.recv(Some(HANG)).expect("a signal");
        say(&signal.to_string());
        if signal == SIGTERM {
            return ExitCode::from(9);
        }
    }
}

fn signals() {
    let Some(mut space) = Namespace::start("every_signal_is_passed_on_once") else { return };
    space.says("up");
    for signal in [SIGHUP, SIGUSR1, SIGINT, SIGUSR1, SIGTERM] {
        space.first().send_signal(signal).unwrap();
        space.says(&signal.to_string());
    }
    space.ends_with(9);
}

/// A tree that is up until it is taken down.
fn is_up() -> ExitCode {
    begin();
    isolate::block_on(async {
        let down: Result<(), _> = nursery(async |n| {
            let actor = n.start("actor").await?;
            assert_eq!(actor.call(square(3)).await?, 9);
            say("up");
            std::future::pending().await
        })
        .await;
        drop(down);
    });
    ExitCode::from(1)
}

fn sigterm() {
    let Some(mut space) = Namespace::start("a_sigterm_takes_the_tree_down") else { return };
    space.says("up");
    space.first().send_signal(SIGTERM).unwrap();
    space.ends_with(128 + SIGTERM);
}

fn killed() {
    let Some(mut space) = Namespace::start("a_death_by_signal_is_carried_on") else { return };
    space.says("up");
    space.program().send_signal(SIGKILL).unwrap();
    space.ends_with(128 + SIGKILL);
}

/// C3: the kernel ends a namespace with its process 1.
fn first_killed() {
    let Some(mut space) = Namespace::start("a_sigkill_of_process_1_ends_all") else { return };
    space.says("up");
    let program = space.program();
    space.first().send_signal(SIGKILL).unwrap();
    // Not every version of `unshare` can end by that signal too.
    assert!(!space.unshare.wait().unwrap().success());
    assert!(program.wait_dead(HANG));
}

/// C1: who has let go of all that could name it.
fn leaves_a_daemon() -> ExitCode {
    begin();
    let daemon = "setsid env -i sleep 1000 </dev/null >/dev/null 2>&1 &";
    assert!(Command::new("sh").args(["-c", daemon]).status().unwrap().success());
    wait_until(|| of_first().len() == 1);
    ExitCode::from(5)
}

fn leaves() {
    if let Some(space) = Namespace::start("what_the_program_leaves_ends_with_it") {
        space.ends_with(5);
    }
}

/// C7: whoever waits for the end of the program's output, or of any fd of its, waits for nobody else.
fn output() {
    let Some(mut space) = Namespace::start("process_1_holds_no_fd_of_the_program") else { return };
    space.says("up");
    let first = only_child(space.unshare.id());
    let fds = || fs::read_dir(format!("/proc/{first}/fd")).unwrap().flatten();
    let is_own = |fd: fs::DirEntry| {
        fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:[signalfd]")
    };
    wait_until(|| fds().all(is_own));
    space.first().send_signal(SIGTERM).unwrap();
    space.says(&SIGTERM.to_string());
    space.ends_with(9);
}

fn has_a_thread() -> ExitCode {
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || ended.recv().is_ok());
    let error = reap_orphans().unwrap_err();
    assert!(matches!(error, ReaperError::Threads { count: 2 }), "{error}");
    assert_eq!(getpid().as_raw(), 1, "nothing was done");
    drop(end);
    assert!(!thread.join().unwrap());
    ExitCode::from(4)
}

fn threads() {
    if let Some(space) = Namespace::start("a_process_1_with_threads_is_told_so") {
        space.ends_with(4);
    }
}

/// H28: whoever ignores it gets no status; and an end that comes at once is not missed.
fn ignores_sigchld() -> ExitCode {
    begin();
    assert!(hatchery_spawn::signals::is_ignored(SIGCHLD), "what it was started with is its own");
    ExitCode::from(2)
}

fn ignoring() {
    let name = "a_process_1_that_ignores_sigchld_hears_of_the_end";
    let first = ["env", "--ignore-signal=CHLD"];
    // Often: its end may come at any moment of process 1's beginning.
    for _ in 0..20 {
        let Some(space) = Namespace::start_by(name, &first, |_| {}) else { return };
        space.ends_with(2);
    }
}

fn is_not_first() -> ExitCode {
    let before = (getpid(), nix::unistd::getpgrp());
    assert_eq!(reap_orphans().unwrap(), Reaper::NotNeeded);
    assert_eq!((getpid(), nix::unistd::getpgrp()), before);
    ExitCode::from(3)
}

fn not_first() {
    let mut program = Command::new("/proc/self/exe");
    let status = program.args([PROGRAM, "who_is_not_process_1_changes_nothing"]).status().unwrap();
    assert_eq!(status.code(), Some(3));
}

mod ours {
    use super::*;

    #[hatchery::main(reap, flavor = "current_thread")]
    pub(super) async fn main() -> ExitCode {
        assert_eq!(std::os::unix::process::parent_id(), 1);
        let squared = nursery(async |n| Ok(n.run("once", square(3)).await?)).await.unwrap();
        ExitCode::from(u8::try_from(squared).unwrap())
    }

    pub(super) fn entered() -> ExitCode {
        assert_eq!(getpid().as_raw(), 1);
        main()
    }
}

fn entered() {
    if let Some(space) = Namespace::start("a_main_of_ours_reaps_when_it_is_asked_to") {
        space.ends_with(9);
    }
}

/// A terminal; what is written into the first was typed.
fn terminal() -> (File, OwnedFd) {
    let pty = nix::pty::openpty(None, None).unwrap();
    let close = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
    nix::fcntl::fcntl(&pty.master, close).unwrap();
    (pty.master.into(), pty.slave)
}

/// C6, with process 1 as the leader of a terminal's session, as in a container with one: what is typed
/// reaches the program, once; a stop is ended by a SIGCONT to process 1; a hangup is passed on.
fn leader() {
    let (mut keyboard, slave) = terminal();
    let name = "the_leader_of_a_session_keeps_its_terminal";
    let on_it = |command: &mut Command| {
        command.stdin(slave);
    };
    let Some(mut space) = Namespace::start_by(name, &["setsid", "--ctty"], on_it) else { return };
    space.says("up");
    types_and_stops(&mut space, &mut keyboard);
    space.first().send_signal(SIGCONT).unwrap();
    keyboard.write_all(CTRL_C).unwrap();
    space.says(&SIGINT.to_string());
    drop(keyboard);
    space.says(&SIGHUP.to_string());
    space.first().send_signal(SIGTERM).unwrap();
    space.says(&SIGTERM.to_string());
    space.ends_with(9);
}

/// One that is no leader of a group yet.
fn in_a_shell() {
    let ended = Command::new("/proc/self/exe").arg(SHELL).status().unwrap();
    assert!(ended.success(), "{ended}");
}

/// The same in a group from outside of the namespace, whose shell continues it as a whole.
fn job() {
    let (mut keyboard, slave) = terminal();
    let name = nix::unistd::ttyname(&slave).unwrap();
    nix::unistd::setsid().unwrap();
    // It becomes the terminal of a session that has none.
    let kept = OpenOptions::new().read(true).write(true).open(name).unwrap();
    let mut stops = SigSet::empty();
    stops.add(Signal::SIGTTOU);
    stops.thread_block().unwrap();
    let name = "the_job_of_a_shell_outside_keeps_its_terminal";
    let on_it = |command: &mut Command| {
        command.stdin(slave).process_group(0);
    };
    let Some(mut space) = Namespace::start_by(name, &[], on_it) else { return };
    let group = Pid::from_raw(space.unshare.id().cast_signed());
    tcsetpgrp(&kept, group).unwrap();
    space.says("up");
    types_and_stops(&mut space, &mut keyboard);
    killpg(group, Signal::SIGCONT).unwrap();
    keyboard.write_all(CTRL_C).unwrap();
    space.says(&SIGINT.to_string());
    space.first().send_signal(SIGTERM).unwrap();
    space.says(&SIGTERM.to_string());
    space.ends_with(9);
    drop(kept);
    // Its hangup would end this process, which leads the session.
    std::mem::forget(keyboard);
}

fn types_and_stops(space: &mut Namespace, keyboard: &mut File) {
    // Often: a second one that comes while the first one is pending is none.
    for _ in 0..20 {
        keyboard.write_all(CTRL_C).unwrap();
        space.says(&SIGINT.to_string());
        space.first().send_signal(SIGUSR1).unwrap();
        space.says(&SIGUSR1.to_string());
    }
    let program = only_child(only_child(space.unshare.id()));
    keyboard.write_all(CTRL_Z).unwrap();
    let stat = || fs::read_to_string(format!("/proc/{program}/stat")).unwrap();
    wait_until(|| stat().rsplit_once(") ").unwrap().1.starts_with('T'));
}

/// A scenario's hang, in or out of the namespace.
const HANG: Duration = Duration::from_secs(60);
const PROGRAM: &str = "program";
const SHELL: &str = "as-a-shell";
const ORPHANS: usize = 20;
const CHILDREN: i32 = 20;
const CTRL_C: &[u8] = b"\x03";
const CTRL_Z: &[u8] = b"\x1a";
