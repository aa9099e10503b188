//! Programs that are left running on purpose.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fs;
use std::io::Write as _;

use common::{BOUND, Root, answer, block_on, isolated, park, rooted, say};
use hatchery_spawn::{
    Birth, Bounds, ChildId, Command, Confinement, Forkserver, Main, Pidfd, Spec, Stdio, inventory,
};
use nix::libc;

inventory::submit! { Main { name: "detacher", run: detacher } }

/// Starts a program that it would leave running, and says what came of it.
fn detacher(birth: Birth) -> i32 {
    let said = match block_on(Command::new("true").stdout(Stdio::Null).detach().spawn()) {
        Ok(_left) => "started".to_owned(),
        Err(error) => format!("{:?}", error.io_error().and_then(std::io::Error::raw_os_error)),
    };
    birth.channel.unwrap().write_all(said.as_bytes()).map_or(1, |()| 0)
}

/// It runs on, in a session of its own, with a process that it started and one that left its session.
fn leave_running(server: &Forkserver) {
    let script = "sleep 1000 & setsid sleep 1000 & exec sleep 1000";
    let command = Command::new("sh").args(["-c", script]).stdin(Stdio::Null).stdout(Stdio::Null);
    let child = block_on(command.stderr(Stdio::Null).detach().on(server).spawn()).unwrap();
    let ChildId::Process(pid) = child.id() else { panic!("a thread") };
    say(pid);
}

/// Ends them, who would live for ever.
struct Left(Vec<Pidfd>);

impl Drop for Left {
    fn drop(&mut self) {
        for left in &self.0 {
            let _killed = left.send_signal(libc::SIGKILL);
            let _bounded = left.wait_dead(BOUND);
        }
    }
}

/// C3 is given up for a program that is detached, and for what it starts, whatever ends: its child here,
/// the forkserver by a close, the root, or the forkserver by a kill.
#[test]
fn who_is_detached_outlives_all() {
    let test = "who_is_detached_outlives_all";
    let scenario = || {
        let server = Forkserver::start(Bounds::default()).unwrap();
        say(server.pid());
        leave_running(&server);
        let mut how = String::new();
        std::io::stdin().read_line(&mut how).unwrap();
        if how.trim() == "close" {
            server.close();
        }
        say("done");
        park();
    };
    for how in ["close", "kill the root", "kill the forkserver"] {
        rooted(test, scenario, |root: &mut Root| {
            let server = root.pid();
            let pid: u32 = root.line().parse().unwrap();
            let left = Left(all_below(pid));
            assert_eq!(left.0.len(), 3, "{how}");
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
            let has =
                |key: &str| environment.split(|b| *b == 0).any(|it| it.starts_with(key.as_bytes()));
            assert_eq!((has("HATCHERY_ACTOR="), has("HATCHERY_DETACHED=")), (false, true));
            let session = nix::unistd::Pid::from_raw(pid.cast_signed());
            assert_eq!(nix::unistd::getsid(Some(session)).unwrap(), session);
            match how {
                "close" => root.hear("close"),
                "kill the root" => root.pidfd.send_signal(libc::SIGKILL).unwrap(),
                _ => server.send_signal(libc::SIGKILL).unwrap(),
            }
            assert!(server.wait_dead(BOUND));
            if how != "kill the root" {
                if how != "close" {
                    root.hear("go on");
                }
                assert_eq!(root.line(), "done");
            }
            assert!(left.0.iter().all(|left| !left.is_dead()), "{how}");
        });
    }
}

/// That process and its children, when there are two.
fn all_below(pid: u32) -> Vec<Pidfd> {
    let until = std::time::Instant::now() + BOUND;
    loop {
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let below: Vec<u32> = list.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        // Amid its exec it has the name and not the environment.
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        if below.len() == 2 && command == "sleep\n" && !environment.is_empty() {
            return [pid].into_iter().chain(below).map(|pid| Pidfd::open(pid).unwrap()).collect();
        }
        assert!(std::time::Instant::now() < until, "{below:?} {command}");
        std::thread::yield_now();
    }
}

/// C15: an actor whose bounds go down to all that it starts can't leave anything outside of them.
#[test]
fn a_confined_actor_detaches_nothing() {
    isolated("a_confined_actor_detaches_nothing", || {
        let server = Forkserver::start(Bounds::default()).unwrap();
        let fork = server.fork();
        assert_eq!(answer(&fork, Spec::main("detacher")), "started");
        let confined = Spec::main("detacher").confine(Confinement::new().nice(1));
        assert_eq!(answer(&fork, confined), format!("Some({})", libc::EPERM));
        let both = Command::new("true").detach().foreground().on(&server);
        let error = block_on(both.spawn()).unwrap_err();
        assert_eq!(error.io_error().unwrap().raw_os_error(), Some(libc::EINVAL), "{error:?}");
    });
}
