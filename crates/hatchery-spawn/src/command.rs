//! Any program, through the forkserver, with an API close to `tokio::process::Command`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
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
/// take and give the value; stdin is `/dev/null` unless told otherwise. Environment and directory
/// are, as there, this process's at the time of the start, with the changes made here.
#[derive(Debug)]
pub struct Command {
    spec: Spec,
    env: BTreeMap<OsString, Option<OsString>>,
    env_clear: bool,
    current_dir: Option<PathBuf>,
    server: Option<Forkserver>,
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
        Self {
            spec: Spec::program(program),
            env: BTreeMap::new(),
            env_clear: false,
            current_dir: None,
            server: None,
            stdout_set: false,
            stderr_set: false,
        }
    }

    /// Starts it through this forkserver. Default: one that all commands of this process share,
    /// which lives as long as the process.
    #[must_use]
    pub fn on(mut self, server: &Forkserver) -> Self {
        self.server = Some(server.clone());
        self
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
        self.env.insert(key.as_ref().to_owned(), Some(value.as_ref().to_owned()));
        self
    }

    /// Sets variables.
    #[must_use]
    pub fn envs(
        mut self,
        vars: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    ) -> Self {
        for (key, value) in vars {
            self = self.env(key, value);
        }
        self
    }

    /// Removes a variable.
    #[must_use]
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.env.insert(key.as_ref().to_owned(), None);
        self
    }

    /// Removes all variables, those set before included.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.env.clear();
        self.env_clear = true;
        self
    }

    /// Where it starts.
    #[must_use]
    pub fn current_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.current_dir = Some(path.as_ref().to_owned());
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
        let server = self.server.clone().map_or_else(server, Ok)?;
        server.exec().spawn(self.into_spec()).await
    }

    /// As of now: our environment and directory may have changed since the forkserver took its.
    fn into_spec(self) -> Spec {
        let mut spec = self.spec.env_clear();
        if !self.env_clear {
            for (key, value) in std::env::vars_os().filter(|(key, _)| !self.env.contains_key(key)) {
                spec = spec.env(key, value);
            }
        }
        for (key, value) in self.env {
            if let Some(value) = value {
                spec = spec.env(key, value);
            }
        }
        // Ours may be gone; then the child's is the forkserver's.
        let here = std::env::current_dir().ok();
        match (here, self.current_dir) {
            (Some(here), Some(path)) => spec.current_dir(here.join(path)),
            (None, Some(path)) | (Some(path), None) => spec.current_dir(path),
            (None, None) => spec,
        }
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
    if let Some(inherited) = Forkserver::inherited()? {
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

/// So that `?` works where `tokio::process::Command` was used before.
impl From<SpawnError> for io::Error {
    fn from(error: SpawnError) -> Self {
        let kind = error.io_error().map_or(io::ErrorKind::Other, Self::kind);
        Self::new(kind, error)
    }
}

/// So that `?` works where `tokio::process::Command` was used before.
impl From<CommandError> for io::Error {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Spawn(error) => error.into(),
            CommandError::Wait(error) => Self::other(error),
            CommandError::Read(error) => error,
        }
    }
}

async fn read(pipe: Option<OwnedFd>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        let mut pipe = pipe::Receiver::from_owned_fd(pipe)?;
        pipe.read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}
