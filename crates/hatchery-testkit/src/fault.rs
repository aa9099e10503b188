//! Faults from outside: the signals that no process can refuse, through pidfds (H18).

use std::io;

use hatchery_spawn::Pidfd;
use nix::libc;

/// Kills a process as the out-of-memory killer would, and returns the handle to wait for its end.
///
/// # Errors
/// `ESRCH`: it is gone already.
pub fn sigkill(pid: u32) -> io::Result<Pidfd> {
    send(pid, libc::SIGKILL)
}

/// Stops a process where it is; it keeps everything it holds.
///
/// # Errors
/// `ESRCH`: it is gone already.
pub fn sigstop(pid: u32) -> io::Result<Pidfd> {
    send(pid, libc::SIGSTOP)
}

/// Lets a stopped process go on.
///
/// # Errors
/// `ESRCH`: it is gone already.
pub fn sigcont(pid: u32) -> io::Result<Pidfd> {
    send(pid, libc::SIGCONT)
}

/// Sends any signal.
///
/// # Errors
/// `ESRCH`: the process is gone already. `EINVAL`: no such signal.
pub fn send(pid: u32, signal: i32) -> io::Result<Pidfd> {
    let process = Pidfd::open(pid)?;
    process.send_signal(signal)?;
    Ok(process)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_stopped_process_still_dies_of_a_kill() {
        let mut cat = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        sigstop(cat.id()).unwrap();
        sigcont(cat.id()).unwrap();
        sigstop(cat.id()).unwrap();
        assert!(sigkill(cat.id()).unwrap().wait_dead(Duration::from_secs(5)));
        assert_eq!(cat.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
