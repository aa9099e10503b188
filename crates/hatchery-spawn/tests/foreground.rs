//! Programs at a terminal, which is a pty: in the background they are told of, in the foreground they
//! have it, and it comes back.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use common::{block_on, isolated};
use hatchery_spawn::{
    Bounds, Command, CommandError, Exit, Forkserver, Halt, Pidfd, SpawnError, Stdio,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

/// A terminal of which this process is the session's leader; its stdin.
struct Desk {
    keyboard: File,
    terminal: OwnedFd,
}

impl Desk {
    /// It stays until the end: who closes it is hung up.
    fn take() -> &'static mut Self {
        let pty = nix::pty::openpty(None, None).unwrap();
        for fd in [&pty.master, &pty.slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        nix::unistd::setsid().unwrap();
        let name = nix::unistd::ttyname(&pty.slave).unwrap();
        // It becomes the terminal of a session that has none, by being opened, and stays that.
        drop(OpenOptions::new().read(true).write(true).open(name).unwrap());
        nix::unistd::dup2_stdin(&pty.slave).unwrap();
        let desk = Self { keyboard: pty.master.into(), terminal: pty.slave };
        let desk = Box::leak(Box::new(desk));
        assert!(desk.is_ours());
        desk
    }

    fn types(&mut self, what: &str) {
        self.keyboard.write_all(what.as_bytes()).unwrap();
    }

    fn is_ours(&self) -> bool {
        tcgetpgrp(self.terminal.as_fd()).unwrap() == getpgrp()
    }

    fn echoes(&self) -> bool {
        tcgetattr(&self.terminal).unwrap().local_flags.contains(LocalFlags::ECHO)
    }
}

fn sh(script: &str) -> Command {
    Command::new("sh").args(["-c", script])
}

/// Without the terminal whoever needs it is stopped; that is told instead of waited for.
#[test]
fn who_is_stopped_for_want_of_the_terminal_is_told() {
    isolated("who_is_stopped_for_want_of_the_terminal_is_told", || {
        let desk = Desk::take();
        let head = || Command::new("head").args(["-c", "3"]).stdin(Stdio::Inherit);
        let stty = || Command::new("stty").arg("-echo").stdin(Stdio::Inherit);
        let opens = || sh("stty -echo </dev/tty");
        for (command, expected) in
            [(head(), libc::SIGTTIN), (stty(), libc::SIGTTOU), (opens(), libc::SIGTTOU)]
        {
            let error = block_on(command.status()).unwrap_err();
            let CommandError::Stopped { signal, .. } = &error else { panic!("{error:?}") };
            assert_eq!(*signal, expected, "{error}");
        }
        let error = block_on(head().output()).unwrap_err();
        assert!(error.to_string().contains("SIGTTIN"), "{error}");
        let child = block_on(head().spawn()).unwrap();
        let stopped = Halt::Stopped { signal: libc::SIGTTIN };
        assert_eq!(block_on(child.wait_halted()).unwrap(), stopped);
        assert_eq!(block_on(child.wait_halted()).unwrap(), stopped, "as long as it is");
        child.kill().unwrap();
        let ended = block_on(child.wait()).unwrap();
        assert_eq!(ended.signal(), Some(libc::SIGKILL));
        assert_eq!(block_on(child.wait_halted()).unwrap(), Halt::Ended(ended));
        assert!(desk.is_ours() && desk.echoes());
    });
}

/// In the foreground it has the terminal, and gives it back at its end.
#[test]
fn in_the_foreground_a_program_has_the_terminal_until_its_end() {
    isolated("in_the_foreground_a_program_has_the_terminal_until_its_end", || {
        let desk = Desk::take();
        desk.types("abc\n");
        let head = Command::new("head").args(["-c", "3"]).foreground();
        assert_eq!(block_on(head.output()).unwrap().stdout, b"abc");
        assert!(desk.is_ours());
        // What it sets by a good end stays, as at a shell.
        assert_eq!(block_on(sh("stty -echo").foreground().status()).unwrap(), Exit::Code(0));
        assert!(desk.is_ours() && !desk.echoes());
        assert_eq!(block_on(sh("stty echo").foreground().status()).unwrap(), Exit::Code(0));
        assert!(desk.echoes());
    });
}

/// However it ends or stops: the terminal comes back, as it was.
#[test]
fn the_terminal_comes_back_whatever_happened() {
    isolated("the_terminal_comes_back_whatever_happened", || {
        let desk = Desk::take();
        let killed = block_on(sh("stty -echo; kill -KILL $$").foreground().status()).unwrap();
        assert_eq!(killed.signal(), Some(libc::SIGKILL));
        assert!(desk.is_ours() && desk.echoes());
        let script = "stty -echo; kill -STOP $$; head -c 3";
        let mut child = block_on(sh(script).foreground().stdout(Stdio::Piped).spawn()).unwrap();
        let stopped = Halt::Stopped { signal: libc::SIGSTOP };
        assert_eq!(block_on(child.wait_halted()).unwrap(), stopped);
        assert!(desk.is_ours() && desk.echoes());
        desk.types("xyz\n");
        child.handle().signal(libc::SIGCONT).unwrap();
        let mut text = String::new();
        File::from(child.take_stdout().unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), block_on(child.wait()).unwrap()), ("xyz", Exit::Code(0)));
        assert!(desk.is_ours());
        let held = block_on(sh("sleep 1000").foreground().spawn()).unwrap();
        assert!(!desk.is_ours());
        // One at a time.
        let error = block_on(sh("true").foreground().spawn()).unwrap_err();
        assert_eq!(error.io_error().unwrap().raw_os_error(), Some(libc::EBUSY), "{error:?}");
        let handle = held.handle();
        drop(held);
        block_on(handle.wait()).unwrap();
        assert!(desk.is_ours());
    });
}

/// If the forkserver is gone, who is left takes it back.
#[test]
fn the_terminal_comes_back_from_a_forkserver_that_was_killed() {
    isolated("the_terminal_comes_back_from_a_forkserver_that_was_killed", || {
        let desk = Desk::take();
        let server = Forkserver::start(Bounds::default()).unwrap();
        let child = block_on(sh("sleep 1000").foreground().on(&server).spawn()).unwrap();
        assert!(!desk.is_ours());
        Pidfd::open(server.pid()).unwrap().send_signal(libc::SIGKILL).unwrap();
        block_on(child.wait()).unwrap_err();
        assert!(desk.is_ours());
        let server = Forkserver::start(Bounds::default()).unwrap();
        let child = block_on(sh("sleep 1000").foreground().on(&server).spawn()).unwrap();
        server.close();
        assert!(desk.is_ours());
        drop(child);
    });
}

/// Without a terminal there is none to be had.
#[test]
fn without_a_terminal_the_foreground_is_a_typed_error() {
    isolated("without_a_terminal_the_foreground_is_a_typed_error", || {
        nix::unistd::setsid().unwrap();
        let error = block_on(sh("true").foreground().spawn()).unwrap_err();
        let SpawnError::Call { call, cause, .. } = &error else { panic!("{error:?}") };
        assert_eq!((call.as_str(), cause.raw_os_error()), ("open(/dev/tty)", Some(libc::ENXIO)));
    });
}
