//! What the pages of `tokio::process` and `std::process` show, in our own words: each is what somebody would
//! write there, with nothing changed but where the names come from.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::io;

use common::block_on;

mod for_tokio {
    use std::io;
    use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;
    use std::time::Duration;

    use hatchery_spawn::process::*;
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

    pub(crate) async fn spawn_and_wait() -> io::Result<()> {
        let mut child = Command::new("echo").arg("hello").stdout(Stdio::null()).spawn()?;
        let status: ExitStatus = child.wait().await?;
        assert!(status.success());
        Ok(())
    }

    pub(crate) async fn status_of_a_start_that_came_before() -> io::Result<()> {
        let status = Command::new("true").status();
        assert!(status.await?.success());
        Ok(())
    }

    pub(crate) async fn output_of_a_start_that_came_before() -> io::Result<()> {
        let output = Command::new("echo").arg("hello").arg("world").output();
        let output = output.await?;
        assert!(output.status.success());
        assert_eq!(output.stdout, b"hello world\n");
        Ok(())
    }

    pub(crate) async fn lines_while_a_task_waits() -> Result<(), Box<dyn std::error::Error>> {
        let mut command = Command::new("cat");
        command.arg("/proc/self/status");
        command.stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let stdout = child.stdout.take().expect("its stdout is piped");
        let mut reader = BufReader::new(stdout).lines();
        let waits = tokio::spawn(async move { child.wait().await.expect("it ends") });
        let mut count = 0;
        while let Some(line) = reader.next_line().await? {
            count += usize::from(!line.is_empty());
        }
        assert!(count > 10 && waits.await?.success());
        Ok(())
    }

    pub(crate) async fn words_are_sorted() -> Result<(), Box<dyn std::error::Error>> {
        let mut command = Command::new("sort");
        command.stdout(Stdio::piped());
        command.stdin(Stdio::piped());
        let mut child = command.spawn()?;
        let animals: &[&str] = &["dog", "bird", "frog", "cat", "fish"];
        let mut stdin = child.stdin.take().expect("its stdin is piped");
        stdin.write_all(animals.join("\n").as_bytes()).await?;
        drop(stdin);
        let output = child.wait_with_output().await?;
        assert_eq!(&output.stdout[..], b"bird\ncat\ndog\nfish\nfrog\n");
        Ok(())
    }

    pub(crate) async fn one_reads_what_the_other_writes() -> io::Result<()> {
        let mut echo = Command::new("echo").arg("hello world!").stdout(Stdio::piped()).spawn()?;
        let text: Stdio = echo.stdout.take().expect("piped").try_into().expect("an fd");
        let tr =
            Command::new("tr").args(["a-z", "A-Z"]).stdin(text).stdout(Stdio::piped()).spawn()?;
        let (echo, tr) = tokio::join!(echo.wait(), tr.wait_with_output());
        assert!(echo?.success());
        assert_eq!(tr?.stdout, b"HELLO WORLD!\n");
        Ok(())
    }

    pub(crate) async fn a_kill_while_it_runs() -> io::Result<()> {
        let (send, recv) = tokio::sync::oneshot::channel::<()>();
        let mut child = Command::new("sleep").arg("1000").spawn()?;
        tokio::spawn(async move { send.send(()) });
        tokio::select! {
            _ = child.wait() => unreachable!("it sleeps"),
            _ = recv => child.kill().await?,
        }
        assert_eq!(child.try_wait()?.and_then(|status| status.signal()), Some(9));
        Ok(())
    }

    pub(crate) async fn a_kill_that_does_not_wait() -> io::Result<()> {
        let mut child = Command::new("sleep").arg("1000").kill_on_drop(true).spawn()?;
        assert!(child.id().is_some());
        child.start_kill()?;
        assert_eq!(child.wait().await?.code(), None);
        assert_eq!(child.id(), None);
        Ok(())
    }

    pub(crate) async fn a_look_whether_it_has_ended() -> io::Result<()> {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn()?;
        match child.try_wait() {
            Ok(Some(status)) => unreachable!("ended with {status}"),
            Ok(None) => {}
            Err(error) => return Err(error),
        }
        let ended = tokio::time::timeout(Duration::from_millis(1), child.wait()).await;
        // A wait that was given up has closed its stdin all the same.
        drop(ended);
        assert!(child.wait().await?.success());
        Ok(())
    }

    pub(crate) async fn every_builder_in_one() -> io::Result<()> {
        let variables: std::collections::HashMap<String, String> =
            std::env::vars().filter(|(key, _)| key == "TERM" || key == "PATH").collect();
        let mut command = Command::new("sh");
        command
            .args(["-c", "pwd; echo $ONE ${HOME-none}"])
            .env_clear()
            .envs(&variables)
            .env("ONE", "1")
            .env("TWO", "2")
            .env_remove("TWO")
            .current_dir("/usr")
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .arg0("shell")
            .process_group(0)
            .kill_on_drop(true);
        assert_eq!(command.output().await?.stdout, b"/usr\n1 none\n");
        Ok(())
    }

    pub(crate) async fn ends_are_fds() -> io::Result<()> {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (stdin, mut stdout): (ChildStdin, ChildStdout) =
            (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        assert!(stdin.as_raw_fd() > 2 && stdout.as_fd().as_raw_fd() > 2);
        let fd: OwnedFd = stdin.into_owned_fd()?;
        drop(fd);
        let mut all = String::new();
        stdout.read_to_string(&mut all).await?;
        assert!(child.wait().await?.success());
        Ok(())
    }

    pub(crate) async fn who_may_become_itself() -> io::Result<()> {
        let own = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        let mut command = Command::new("true");
        if nix::unistd::getuid().is_root() {
            command.uid(own.0).gid(own.1);
        }
        assert!(command.status().await?.success());
        Ok(())
    }
}

mod for_std {
    use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
    use std::os::unix::process::ExitStatusExt as _;

    use hatchery_spawn::process::blocking::*;

    pub(crate) fn output_of_a_shell() -> io::Result<()> {
        let output = Command::new("sh").arg("-c").arg("echo hello").output()?;
        assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n");
        assert!(output.status.success() && output.stderr.is_empty());
        Ok(())
    }

    pub(crate) fn two_between_pipes() -> io::Result<()> {
        let mut echo = Command::new("echo").arg("Oh no, a tpyo!").stdout(Stdio::piped()).spawn()?;
        let echo_out = echo.stdout.take().expect("it is piped");
        let sed = Command::new("sed")
            .arg("s/tpyo/typo/")
            .stdin(Stdio::from(echo_out))
            .stdout(Stdio::piped())
            .spawn()?;
        assert_eq!(sed.wait_with_output()?.stdout, b"Oh no, a typo!\n");
        assert!(echo.wait()?.success());
        Ok(())
    }

    pub(crate) fn a_thread_writes() -> io::Result<()> {
        let mut child = Command::new("rev").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().expect("it is piped");
        let writes = std::thread::spawn(move || stdin.write_all(b"Hello, world!\n"));
        let output = child.wait_with_output()?;
        writes.join().unwrap()?;
        assert_eq!(output.stdout, b"!dlrow ,olleH\n");
        Ok(())
    }

    pub(crate) fn statuses() -> io::Result<()> {
        let mut command = Command::new("sh");
        command.arg("-c").arg("exit $CODE").env("CODE", "3");
        let status: ExitStatus = command.status()?;
        assert_eq!(
            (status.code(), status.signal(), status.to_string()),
            (Some(3), None, "exit status: 3".to_owned())
        );
        let mut child = Command::new("sleep").arg("1000").spawn()?;
        assert!(child.id() != id() && child.try_wait()?.is_none());
        child.kill()?;
        assert_eq!(child.wait()?.signal(), Some(9));
        Ok(())
    }

    pub(crate) fn files_and_lines() -> io::Result<()> {
        let hosts = std::fs::File::open("/proc/self/status")?;
        let mut child = Command::new("cat").stdin(hosts).stdout(Stdio::piped()).spawn()?;
        let mut reader = BufReader::new(child.stdout.as_mut().expect("it is piped"));
        let mut first = String::new();
        reader.read_line(&mut first)?;
        assert!(first.starts_with("Name:"));
        reader.read_to_string(&mut first)?;
        assert!(child.wait()?.success());
        Ok(())
    }

    pub(crate) fn getters() {
        let mut command = Command::new("ls");
        command.args(["-l", "-a"]).env("ONE", "1").env_remove("TWO").current_dir("/");
        assert_eq!(command.get_program(), "ls");
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["-l", "-a"]);
        assert_eq!(command.get_envs().len(), 2);
        assert_eq!(command.get_current_dir(), Some(std::path::Path::new("/")));
    }
}

/// With nothing changed but the import, what is written for `tokio::process` compiles and does the same.
#[test]
fn what_is_written_for_tokio_runs_unchanged() -> Result<(), Box<dyn std::error::Error>> {
    use for_tokio as it;
    block_on(async {
        it::spawn_and_wait().await?;
        it::status_of_a_start_that_came_before().await?;
        it::output_of_a_start_that_came_before().await?;
        it::lines_while_a_task_waits().await?;
        it::words_are_sorted().await?;
        it::one_reads_what_the_other_writes().await?;
        it::a_kill_while_it_runs().await?;
        it::a_kill_that_does_not_wait().await?;
        it::a_look_whether_it_has_ended().await?;
        it::every_builder_in_one().await?;
        it::ends_are_fds().await?;
        it::who_may_become_itself().await?;
        Ok(())
    })
}

/// The same of `std::process`.
#[test]
fn what_is_written_for_std_runs_unchanged() -> io::Result<()> {
    use for_std as it;
    it::output_of_a_shell()?;
    it::two_between_pipes()?;
    it::a_thread_writes()?;
    it::statuses()?;
    it::files_and_lines()?;
    it::getters();
    Ok(())
}
