//! Any program, through the forkserver, with an API close to `tokio::process::Command`.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use crate::backend::Backend as _;
use crate::child::Child;
use crate::error::{SpawnError, WaitError};
use crate::exit::Exit;
use crate::forkserver::{Bounds, Forkserver};
use crate::spec::Spec;
use crate::stdio::Stdio;

/// A program to start. Its process dies with this one, leaves no zombie, inherits no fd, and does
/// not die with the thread that started it.
///
/// Differences from `tokio::process::Command`: a dropped child is always killed; builder methods
/// take and give the value; the environment and directory are those of the time when the first
/// command was started.
#[derive(Debug)]
pub struct Command {
    spec: Spec,
    stdout_set: bool,
    stderr_set: bool,
}

/// What a program wrote and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: Exit,
    /// All of its stdout.
    pub stdout: Vec<u8>,
    /// All of its stderr.
    pub stderr: Vec<u8>,
}

/// A program that could not be run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// It could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Its status is lost.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// Its output could not be read.
    #[error("reading the output of a program")]
    Read(#[source] io::Error),
}

impl Command {
    /// Starts `program`, found by `PATH` if it has no slash. Default stdio: stdin from
    /// `/dev/null`, stdout and stderr to ours.
    #[must_use]
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self { spec: Spec::program(program), stdout_set: false, stderr_set: false }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.spec = self.spec.arg(arg);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        for arg in args {
            self.spec = self.spec.arg(arg);
        }
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.spec = self.spec.env(key, value);
        self
    }

    /// Removes all variables.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.spec = self.spec.env_clear();
        self
    }

    /// Where it starts.
    #[must_use]
    pub fn current_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.spec = self.spec.current_dir(path);
        self
    }

    /// What it reads.
    #[must_use]
    pub fn stdin(mut self, stdio: Stdio) -> Self {
        self.spec = self.spec.stdin(stdio);
        self
    }

    /// Where its stdout goes.
    #[must_use]
    pub fn stdout(mut self, stdio: Stdio) -> Self {
        self.spec = self.spec.stdout(stdio);
        self.stdout_set = true;
        self
    }

    /// Where its stderr goes.
    #[must_use]
    pub fn stderr(mut self, stdio: Stdio) -> Self {
        self.spec = self.spec.stderr(stdio);
        self.stderr_set = true;
        self
    }

    /// Starts it, and waits until it is that program and no copy of ours any more.
    ///
    /// # Errors
    /// [`SpawnError::Step`] with `NotFound` if there is no such program, or whatever else failed.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the request; a child that appears all the same is killed.
    pub async fn spawn(self) -> Result<Child, SpawnError> {
        server()?.exec().spawn(self.spec).await
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// [`CommandError`].
    ///
    /// # Cancel safety
    /// Dropping the future kills it.
    pub async fn status(self) -> Result<Exit, CommandError> {
        Ok(self.spawn().await?.wait().await?)
    }

    /// Runs it to its end and collects what it writes.
    ///
    /// # Errors
    /// [`CommandError`].
    ///
    /// # Cancel safety
    /// Dropping the future kills it; what was read is lost.
    pub async fn output(mut self) -> Result<Output, CommandError> {
        if !self.stdout_set {
            self = self.stdout(Stdio::Piped);
        }
        if !self.stderr_set {
            self = self.stderr(Stdio::Piped);
        }
        let mut child = self.spawn().await?;
        let (stdout, stderr) = (child.take_stdout(), child.take_stderr());
        let (stdout, stderr) =
            tokio::try_join!(read(stdout), read(stderr)).map_err(CommandError::Read)?;
        Ok(Output { status: child.wait().await?, stdout, stderr })
    }
}

/// The forkserver of all commands of this process; a new one if it was lost.
fn server() -> Result<Forkserver, SpawnError> {
    static SERVER: Mutex<Option<Forkserver>> = Mutex::new(None);
    if let Some(inherited) = Forkserver::inherited() {
        return Ok(inherited);
    }
    let mut server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = server.as_ref().filter(|server| !server.is_lost()) {
        return Ok(server.clone());
    }
    let started = Forkserver::start(Bounds::default())?;
    *server = Some(started.clone());
    Ok(started)
}

async fn read(pipe: Option<OwnedFd>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        let mut pipe = pipe::Receiver::from_owned_fd(pipe)?;
        pipe.read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}
