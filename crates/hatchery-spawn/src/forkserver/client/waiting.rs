//! A start that waits for its child.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::child::{BirthFailure, Child, Core, Ties, read_birth};
use crate::error::SpawnError;
use crate::stdio::Tail;

/// Who waits for a child, and what belongs to it.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) name: String,
    pub(crate) answer: oneshot::Sender<Result<Child, SpawnError>>,
    /// When it was asked for, and how long the forkserver may say nothing from then on.
    pub(crate) since: Instant,
    pub(crate) bound: Duration,
    /// How long it may then take until it is another program.
    pub(crate) exec: Duration,
    /// The reading end of the birth pipe. Shared, so that polling it needs no copy of the fd.
    pub(crate) birth: Arc<OwnedFd>,
    /// The forkserver is told when it is born.
    pub(crate) is_told: bool,
    /// Nobody but the birth pipe says when that is.
    pub(crate) is_silent: bool,
    /// Another image comes after the fork: it is only there when the birth pipe says so.
    pub(crate) execs: bool,
    pub(crate) ties: Ties,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) tail: Option<Arc<Tail>>,
}

impl Waiting {
    /// No child comes of it. Its fds are closed before that is told: whoever hears of it may try again
    /// (C10).
    pub(super) fn fail(self, error: impl FnOnce(String) -> SpawnError) {
        let Self { name, answer, birth, stdin, stdout, stderr, .. } = self;
        drop((birth, stdin, stdout, stderr));
        tell(answer, Err(error(name)));
    }
}

/// The child is there, or its birth pipe says why not.
pub(super) fn finish(waiting: Waiting, core: Arc<Core>) {
    let Waiting { answer, bound, birth, execs, is_silent, stdin, stdout, stderr, tail, .. } =
        waiting;
    let mut child = Child::new(core);
    if is_silent {
        child.handle().told_born();
    }
    if execs {
        let name = child.handle().name().to_owned();
        let error = match read_birth(&birth) {
            // A death is told by its status.
            Ok(None | Some(BirthFailure { errno: None, .. })) => None,
            Ok(Some(BirthFailure { step, errno: Some(errno) })) => {
                let cause = io::Error::from_raw_os_error(errno);
                Some(SpawnError::Step { name, step, cause })
            }
            // Neither born nor failed: it hangs in one of the steps.
            Err(_) => Some(SpawnError::StillStarting { name, waited: bound }),
        };
        if let Some(error) = error {
            // The child is killed by its drop. First the fds: whoever is told may try again (C10).
            drop((child, birth, stdin, stdout, stderr));
            return tell(answer, Err(error));
        }
    }
    *child.stdin.get_mut().unwrap_or_else(PoisonError::into_inner) = stdin;
    child.stdout = stdout;
    child.stderr = stderr;
    child.tail = tail;
    tell(answer, Ok(child));
}

/// Answers; a child that nobody takes is killed by being dropped.
fn tell(answer: oneshot::Sender<Result<Child, SpawnError>>, result: Result<Child, SpawnError>) {
    drop(answer.send(result));
}

#[cfg(test)]
impl Waiting {
    /// One that was asked for then, with a bound of 5 s.
    pub(super) fn for_test(since: Instant) -> (Self, oneshot::Receiver<Result<Child, SpawnError>>) {
        let (answer, answered) = oneshot::channel();
        let (birth, _) = io::pipe().expect("a pipe");
        let waiting = Self {
            name: "early".to_owned(),
            answer,
            since,
            bound: Duration::from_secs(5),
            exec: Duration::from_secs(5),
            birth: Arc::new(birth.into()),
            execs: false,
            ties: Ties::default(),
            is_told: false,
            is_silent: true,
            stdin: None,
            stdout: None,
            stderr: None,
            tail: None,
        };
        (waiting, answered)
    }
}
