//! A child: wait for it, signal it, end it. The one latch of its one status (H28).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use nix::libc;
use tokio::sync::watch;

use crate::command::output::{self, DRAIN};
use crate::command::{CommandError, Output};
use crate::error::{SignalError, WaitError};
use crate::exit::Exit;
use crate::forkserver::client::Client;
use crate::forkserver::manner::Note;
use crate::forkserver::wire::{Left, SETTLE, STOP};
use crate::grip::{Grip, NotSent};
use crate::ledger::{Ledger, Who};
use crate::own_thread::OwnThread;
use crate::prelude::{RECORD, Step, parse_report};
use crate::stdio::Tail;
use crate::sys::owner::is_copy;
use crate::terminal;
use crate::usage::Usage;

/// A child and the right to its life: dropping it kills the process (SIGKILL, or first the
/// [signal](crate::Command::stop_signal) that was asked for; a
/// [detached](crate::Command::detach) one goes on); the forkserver reaps it, whatever becomes
/// of this process or its runtime.
///
/// A thread can't be killed: dropping its child lets it run on, in the ledger (C5).
#[derive(Debug)]
pub struct Child {
    handle: ChildHandle,
    /// Behind a lock, as a wait closes it.
    pub(crate) stdin: Mutex<Option<OwnedFd>>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) tail: Option<Arc<Tail>>,
    /// How long its pipes are read after its end; `None`: to theirs.
    pub(crate) drain: Option<Duration>,
    /// A drop leaves it alone; it ends with its owner.
    pub(crate) goes_on: bool,
    /// The forkserver, as far as this process knows it: 0 is its own parent.
    pub(crate) server: u32,
}

/// A child without the right to its life: clone it freely.
#[derive(Debug, Clone)]
pub struct ChildHandle {
    core: Arc<Core>,
}

/// Who a child is to the system.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ChildId {
    /// A process.
    Process(u32),
    /// A thread of this process, by name.
    Thread(String),
}

/// How a child halted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Halt {
    /// It has ended.
    Ended(Exit),
    /// It is stopped, by that signal, until somebody sends SIGCONT.
    Stopped {
        /// Its number: SIGTTIN if it would read from a terminal that isn't its own, SIGTTOU if it
        /// would write to one or change its settings, SIGTSTP, SIGSTOP.
        signal: i32,
    },
}

/// Why a child was not born.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BirthFailure {
    /// The step that failed.
    pub step: Step,
    /// The system's error number; `None` if the child died there.
    pub errno: Option<i32>,
}

#[derive(Debug)]
pub(crate) struct Core {
    name: String,
    body: Body,
    status: watch::Sender<Status>,
    /// The reading end of the birth pipe, until somebody looked.
    birth: Mutex<Option<Arc<OwnedFd>>>,
    /// The step of its birth in which it died.
    died_in: OnceLock<Step>,
    /// What it has used, when it is reaped.
    used: OnceLock<Usage>,
}

/// What is known of a child's end.
#[derive(Debug, Default)]
pub(crate) struct Status {
    /// How it ended; the first word stays.
    end: Option<Result<Exit, WaitError>>,
    /// All that it had started by itself is gone too, but for `left`.
    is_settled: bool,
    left: Vec<Left>,
}

#[derive(Debug)]
enum Body {
    /// `number` is what the forkserver knows it by.
    Process {
        pid: u32,
        number: u64,
        grip: Grip,
        ties: Ties,
        /// What is noted of a program before its status.
        notes: Option<watch::Sender<Note>>,
        server: Weak<Client>,
    },
    Thread {
        number: u64,
        path: String,
        thread: Mutex<Option<OwnThread>>,
        ledger: Ledger,
    },
}

/// What binds a process to others, so that the forkserver has a part in its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ties {
    /// It is a program, of which notes are taken.
    pub(crate) is_program: bool,
    /// Its cgroup is killed with it.
    pub(crate) has_cgroup: bool,
    /// What it leaves in its group may go on for a while.
    pub(crate) lingers: bool,
    /// It is asked to end before it is killed.
    pub(crate) has_stop: bool,
    /// It has the terminal.
    pub(crate) has_terminal: bool,
    /// It is left alone when its child is dropped.
    pub(crate) is_detached: bool,
}

impl Core {
    pub(crate) fn process(
        name: String,
        (number, pid): (u64, u32),
        (grip, ties): (Grip, Ties),
        server: Weak<Client>,
        birth: Option<Arc<OwnedFd>>,
    ) -> Arc<Self> {
        let (status, _) = watch::channel(Status::default());
        let birth = Mutex::new(birth);
        let notes = ties.is_program.then(|| watch::channel(Note::Runs).0);
        let body = Body::Process { pid, number, grip, ties, notes, server };
        let (died_in, used) = (OnceLock::new(), OnceLock::new());
        Arc::new(Self { name, body, status, birth, died_in, used })
    }

    pub(crate) fn thread(
        name: String,
        number: u64,
        path: String,
        ledger: Ledger,
        status: watch::Sender<Status>,
        thread: OwnThread,
    ) -> Arc<Self> {
        let body = Body::Thread { number, path, thread: Mutex::new(Some(thread)), ledger };
        let (birth, died_in, used) = (Mutex::default(), OnceLock::new(), OnceLock::new());
        Arc::new(Self { name, body, status, birth, died_in, used })
    }

    /// The forkserver knows in which step of its birth it has died. Before [`exited`](Self::exited).
    pub(crate) fn died_in(&self, step: Option<Step>) {
        // Told once.
        let _first = step.map(|step| self.died_in.set(step));
    }

    /// What it has used until its end. Before [`exited`](Self::exited).
    pub(crate) fn used(&self, usage: Usage) {
        // Told once.
        let _first = self.used.set(usage);
    }

    /// The forkserver has seen it end, stop or go on, and will say more.
    pub(crate) fn noted(&self, note: Note) {
        if let Body::Process { notes: Some(notes), .. } = &self.body {
            notes.send_replace(note);
        }
    }

    /// The forkserver has reaped it; `settled`: and all that it had started by itself.
    pub(crate) fn exited(&self, exit: Exit, settled: bool) {
        self.status.send_modify(|status| status.latch(Ok(exit), settled));
    }

    /// What it had started by itself is gone too, but for those.
    pub(crate) fn settled(&self, left: Vec<Left>) {
        self.status.send_modify(|status| {
            status.is_settled = true;
            status.left = left;
        });
    }

    /// The forkserver is gone.
    pub(crate) fn lost(&self) {
        if let Body::Process { pid, ties: Ties { has_terminal: true, .. }, .. } = self.body {
            terminal::take_back(pid);
        }
        self.latch(Err(WaitError::ServerGone { name: self.name.clone() }));
    }

    fn copied(&self) -> WaitError {
        WaitError::Copied { name: self.name.clone() }
    }

    /// The forkserver takes too long to say how it ended.
    fn unreported(&self) {
        self.latch(Err(WaitError::Unreported { name: self.name.clone() }));
    }

    /// Nothing more will be said about it.
    fn latch(&self, end: Result<Exit, WaitError>) {
        self.status.send_modify(|status| status.latch(end, true));
    }
}

impl Status {
    /// The first end stays.
    pub(crate) fn latch(&mut self, end: Result<Exit, WaitError>, settled: bool) {
        self.end.get_or_insert(end);
        self.is_settled |= settled;
    }
}

impl Child {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let handle = ChildHandle { core };
        Self {
            handle,
            stdin: Mutex::default(),
            stdout: None,
            stderr: None,
            tail: None,
            drain: Some(DRAIN),
            server: 0,
            goes_on: false,
        }
    }

    /// A handle for others to wait with.
    #[must_use]
    pub fn handle(&self) -> ChildHandle {
        self.handle.clone()
    }

    /// See [`ChildHandle::id`].
    #[must_use]
    pub fn id(&self) -> ChildId {
        self.handle.id()
    }

    /// Closes our end of its stdin if nobody has taken that, so that a program that reads to its end
    /// has one; then as [`ChildHandle::wait`], which leaves stdin alone.
    ///
    /// Piped outputs are not read here: a child that writes more than a pipe holds (64 KiB) waits for
    /// a reader. Take them first, or use [`Child::wait_with_output`].
    ///
    /// # Errors
    /// See [`ChildHandle::wait`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing but stdin, which is closed by then.
    pub async fn wait(&self) -> Result<Exit, WaitError> {
        self.close_stdin();
        self.handle.wait().await
    }

    /// Closes stdin as [`wait`](Self::wait) does; then as [`ChildHandle::wait_halted`].
    ///
    /// # Errors
    /// See [`ChildHandle::wait`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing but stdin, which is closed by then.
    pub async fn wait_halted(&self) -> Result<Halt, WaitError> {
        self.close_stdin();
        self.handle.wait_halted().await
    }

    /// Closes stdin if nobody has taken that, reads those of its outputs that are piped and that nobody
    /// has taken, and waits for its end; see [`Command::output`](crate::Command::output).
    ///
    /// # Errors
    /// [`CommandError`].
    ///
    /// # Cancel safety
    /// Dropping the future kills it; what was read is lost.
    pub async fn wait_with_output(self) -> Result<Output, CommandError> {
        output::collect(self).await
    }

    pub(crate) fn server(&self) -> u32 {
        if self.server == 0 { std::os::unix::process::parent_id() } else { self.server }
    }

    pub(crate) fn close_stdin(&self) {
        drop(self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// See [`ChildHandle::try_wait`].
    ///
    /// # Errors
    /// See [`ChildHandle::wait`].
    pub fn try_wait(&self) -> Result<Option<Exit>, WaitError> {
        self.handle.try_wait()
    }

    /// See [`ChildHandle::terminate`].
    ///
    /// # Errors
    /// See [`ChildHandle::terminate`].
    pub fn terminate(&self) -> Result<(), SignalError> {
        self.handle.terminate()
    }

    /// See [`ChildHandle::kill`].
    ///
    /// # Errors
    /// See [`ChildHandle::terminate`].
    pub fn kill(&self) -> Result<(), SignalError> {
        self.handle.kill()
    }

    /// Our end of its stdin, if it was piped. Once.
    pub fn take_stdin(&mut self) -> Option<OwnedFd> {
        self.stdin.get_mut().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Our end of its stdout, if it was piped. Once.
    pub fn take_stdout(&mut self) -> Option<OwnedFd> {
        self.stdout.take()
    }

    /// Our end of its stderr, if it was piped. Once.
    pub fn take_stderr(&mut self) -> Option<OwnedFd> {
        self.stderr.take()
    }

    /// The last lines of its stderr, if that is relayed. Waits until the child has closed it, at
    /// most `bound`.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn stderr_tail(&self, bound: Duration) -> Vec<String> {
        match &self.tail {
            Some(_) if is_copy() => Vec::new(),
            Some(tail) => tail.lines(bound).await,
            None => Vec::new(),
        }
    }

    /// Gives a thread up: it goes into the ledger and is never waited for again (C5). Nothing
    /// happens to a process.
    pub fn abandon(&self, last_state: &str) {
        self.handle.core.abandon(last_state);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It is not a copy's to end.
        if is_copy() || self.goes_on {
            return;
        }
        let core = &self.handle.core;
        if core.status.borrow().end.is_none() {
            match &core.body {
                // It may have ended at this moment; then there is nothing to end.
                Body::Process { ties: Ties { is_detached: true, .. }, .. } => {}
                Body::Process { .. } => drop(core.stop()),
                Body::Thread { .. } => core.abandon("its child was dropped"),
            }
        }
    }
}

impl Core {
    fn signal(&self, signal: i32) -> Result<(), SignalError> {
        let name = || self.name.clone();
        if is_copy() {
            return Err(SignalError::Copied { name: name() });
        }
        let Body::Process { number, grip, ties, server, .. } = &self.body else {
            return Err(SignalError::Thread { name: name() });
        };
        // Its parent needs no fd for that. Whom nobody has reaped gets it, and nobody else.
        let by_server = || {
            let server = server.upgrade().filter(|_| self.status.borrow().end.is_none());
            server.map_or(Ok(()), |server| server.signal(*number, signal))
        };
        if (ties.has_cgroup || ties.lingers) && signal == libc::SIGKILL {
            // What goes with it. Before it is reaped. Here too, as the forkserver may have been stopped.
            let _sent_below = by_server();
        }
        if ties.has_terminal && signal == libc::SIGCONT {
            // First the terminal: else it could stop at once.
            return by_server()
                .map_err(|errno| SignalError::System { name: name(), cause: errno.into() });
        }
        match grip.signal(signal) {
            Ok(()) => Ok(()),
            Err(NotSent::Refused(cause)) => Err(SignalError::System { name: name(), cause }),
            Err(NotSent::OutOfReach) => by_server()
                .map_err(|errno| SignalError::System { name: name(), cause: errno.into() }),
        }
    }

    /// As its request said: by a signal of its own first, or by SIGKILL.
    fn stop(&self) -> Result<(), SignalError> {
        if is_copy() {
            return Err(SignalError::Copied { name: self.name.clone() });
        }
        if let Body::Process { number, ties: Ties { has_stop: true, .. }, server, .. } = &self.body
        {
            if let Some(server) = server.upgrade().filter(|_| self.status.borrow().end.is_none()) {
                server.order(*number, STOP);
            }
            return Ok(());
        }
        self.signal(libc::SIGKILL)
    }

    /// What it leaves behind need not go on any longer.
    pub(crate) fn settle(&self) {
        if is_copy() {
            return;
        }
        if let Body::Process { number, server, ties: Ties { lingers: true, .. }, .. } = &self.body
            && let Some(server) = server.upgrade().filter(|_| self.status.borrow().end.is_none())
            && !is_copy()
        {
            server.order(*number, SETTLE);
        }
    }

    fn abandon(&self, last_state: &str) {
        if is_copy() {
            return;
        }
        let Body::Thread { number, path, thread, ledger } = &self.body else { return };
        let abandoned = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(abandoned) = abandoned else { return };
        if self.status.borrow().end.is_none() {
            let who = Who { name: &self.name, path };
            ledger.enter(*number, who, &format!("{last_state}; {}", abandoned.state()), None);
            // It may have ended between the two lines above.
            if self.status.borrow().end.is_some() {
                ledger.forget(*number);
            }
        }
    }
}

impl ChildHandle {
    /// The name it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Its process id, or its thread's name.
    #[must_use]
    pub fn id(&self) -> ChildId {
        match &self.core.body {
            Body::Process { pid, .. } => ChildId::Process(*pid),
            Body::Thread { .. } => ChildId::Thread(self.core.name.clone()),
        }
    }

    /// Waits until the child has settled, and says how it ended: it is reaped or joined, and so is what
    /// a process had started by itself (C1), which dies with it. Whatever those held, a port or a file's
    /// lock, is free.
    ///
    /// Any number of waiters get the same exact status, no thread is blocked, and no other process
    /// is reaped (C9). A death by signal is never a code. The wait for what the child had started is
    /// bounded ([`Bounds::strays`](crate::Bounds::strays)); [`left_behind`](Self::left_behind) names what
    /// is still there.
    ///
    /// Found as the child's are: processes in its group; and those with the variable that hatchery sets,
    /// whose parents have died. A process that has left the group and cleared its environment is nobody's
    /// unless it is in a cgroup of the child's own, and lives until the tree ends.
    ///
    /// # Errors
    /// [`WaitError::ServerGone`]: the forkserver died first; the child is dead too.
    /// [`WaitError::Unreported`]: the child is dead, and somebody has [forgone] its status.
    /// [`WaitError::Copied`]: this process is a copy of the child's owner.
    ///
    /// [forgone]: Self::forgo_status
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the status stays latched.
    pub async fn wait(&self) -> Result<Exit, WaitError> {
        if is_copy() {
            return Err(self.core.copied());
        }
        let mut status = self.core.status.subscribe();
        let latched = match status.wait_for(|status| status.is_settled).await {
            Ok(latched) => latched.end.clone(),
            // The sender lives in the core that is borrowed here.
            Err(_) => None,
        };
        if let Body::Thread { number, path, thread, ledger } = &self.core.body {
            let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            // It has returned from its main, so this takes microseconds.
            if let Some(thread) = thread
                && let Err(task) = thread.join_within(JOIN_WAIT)
            {
                let state = "its main has returned, a destructor of a thread-local has not";
                let who = Who { name: &self.core.name, path };
                ledger.enter(*number, who, state, Some(task));
            }
        }
        latched.unwrap_or_else(|| Err(WaitError::ServerGone { name: self.core.name.clone() }))
    }

    /// Waits until the child has ended or is stopped, and says which.
    ///
    /// A program that reads from a terminal, or sets it, and is not in the foreground is stopped by
    /// SIGTTIN or SIGTTOU, and nobody makes it go on: [`wait`](Self::wait) would wait for ever. One
    /// that is stopped when this is called is told at once. Stops are told of programs only, of actors
    /// and threads their ends.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn wait_halted(&self) -> Result<Halt, WaitError> {
        let is_stopped = |note: &Note| matches!(note, Note::Stopped(_));
        loop {
            tokio::select! {
                biased;
                exit = self.wait() => return exit.map(Halt::Ended),
                note = self.noted(is_stopped) => if let Note::Stopped(signal) = note {
                    return Ok(Halt::Stopped { signal });
                },
            }
        }
    }

    /// What it left behind has had its time.
    pub(crate) fn settle(&self) {
        self.core.settle();
    }

    /// Waits for a note of that kind; for ever of who has none taken.
    pub(crate) async fn noted(&self, wanted: impl Fn(&Note) -> bool) -> Note {
        let Body::Process { notes: Some(notes), .. } = &self.core.body else {
            return std::future::pending().await;
        };
        let mut notes = notes.subscribe();
        // What is borrowed of it is no other thread's, and this future may be.
        let note = notes.wait_for(wanted).await.map(|note| *note);
        match note {
            Ok(note) => note,
            // The sender lives in the core that is borrowed here.
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until the child itself is reaped or joined, whatever it has left behind: for who has
    /// something to do meanwhile. [`wait`](Self::wait) follows.
    ///
    /// # Errors
    /// See [`ChildHandle::wait`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the status stays latched.
    pub async fn ended(&self) -> Result<Exit, WaitError> {
        if is_copy() {
            return Err(self.core.copied());
        }
        if let Body::Thread { .. } = &self.core.body {
            return self.wait().await;
        }
        let mut status = self.core.status.subscribe();
        let latched = match status.wait_for(|status| status.end.is_some()).await {
            Ok(latched) => latched.end.clone(),
            // The sender lives in the core that is borrowed here.
            Err(_) => None,
        };
        latched.unwrap_or_else(|| Err(WaitError::ServerGone { name: self.core.name.clone() }))
    }

    /// Processes that the child had started and that could not be ended, as they have other rights or
    /// the kernel took too long: known when [`wait`](Self::wait) has returned. The tree's end does not
    /// end them either, unless they are in a [`Cgroup`](crate::Cgroup).
    #[must_use]
    pub fn left_behind(&self) -> Vec<Left> {
        self.core.status.borrow().left.clone()
    }

    /// What a process has used, when it is reaped; `None` before, where its status is lost, and of a thread.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        self.core.used.get().copied()
    }

    /// Whether a process has ended, reaped or not. False of one that can't be looked at without a pidfd, of
    /// a thread, and in a copy of the owner. Never blocks.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        if is_copy() {
            return false;
        }
        match &self.core.body {
            Body::Process { grip, .. } => self.core.status.borrow().end.is_some() || grip.is_dead(),
            Body::Thread { .. } => false,
        }
    }

    /// The status, if the child has settled. Never blocks.
    ///
    /// # Errors
    /// See [`ChildHandle::wait`].
    pub fn try_wait(&self) -> Result<Option<Exit>, WaitError> {
        if is_copy() {
            return Err(self.core.copied());
        }
        let status = self.core.status.borrow();
        status.end.clone().filter(|_| status.is_settled).transpose()
    }

    /// Gives up on the status of a process that is dead, and says whether it is: true if it has
    /// ended, reaped or not, and then all who wait are told of that, with
    /// [`WaitError::Unreported`] unless the status has come. False of one that lives, of one that
    /// can't be looked at without a pidfd, and of a thread: nothing happens to those.
    ///
    /// For who has waited long enough for a forkserver that stands still. Never blocks.
    #[must_use]
    pub fn forgo_status(&self) -> bool {
        if is_copy() {
            return false;
        }
        let dead = self.is_dead();
        if dead {
            self.core.unreported();
        }
        dead
    }

    /// Sends SIGTERM: through a pidfd, or, where none can be had, through the forkserver. A child
    /// that has ended is no error.
    ///
    /// # Errors
    /// [`SignalError::Thread`], or what the system says.
    pub fn terminate(&self) -> Result<(), SignalError> {
        self.signal(libc::SIGTERM)
    }

    /// Sends SIGKILL as [`terminate`](Self::terminate) sends its signal.
    ///
    /// # Errors
    /// [`SignalError::Thread`], or what the system says.
    pub fn kill(&self) -> Result<(), SignalError> {
        self.signal(libc::SIGKILL)
    }

    /// Ends it as the drop of its [`Child`] does: by its
    /// [`stop_signal`](crate::Command::stop_signal) and after its grace by SIGKILL, or by SIGKILL at
    /// once if it has none. Doesn't wait for its end.
    ///
    /// # Errors
    /// [`SignalError::Thread`], or what the system says.
    pub fn stop(&self) -> Result<(), SignalError> {
        self.core.stop()
    }

    /// Sends any signal as [`terminate`](Self::terminate) sends its own.
    ///
    /// # Errors
    /// [`SignalError::Thread`], or what the system says.
    pub fn signal(&self, signal: i32) -> Result<(), SignalError> {
        self.core.signal(signal)
    }

    /// The step at which a child failed to be born or died, if it did and has ended. A failure is
    /// told once; later calls give `None`. A death in `exec` itself is told without its step.
    #[must_use]
    pub fn birth_failure(&self) -> Option<BirthFailure> {
        if let Some(&step) = self.core.died_in.get() {
            return Some(BirthFailure { step, errno: None });
        }
        let pipe = self.core.birth.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        read_birth(&pipe).ok().flatten()
    }

    /// It has been born: what watched over that is closed, and its birth holds up no others any more
    /// (see [`Spec::answers`](crate::Spec::answers)).
    pub fn born(&self) {
        self.core.birth.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.told_born();
    }

    pub(crate) fn told_born(&self) {
        if let Body::Process { number, server, .. } = &self.core.body
            && let Some(server) = server.upgrade()
        {
            server.born(*number);
        }
    }
}

/// Reads a birth pipe that is at its end or has a record; `None` if all went well.
pub(crate) fn read_birth(pipe: &OwnedFd) -> io::Result<Option<BirthFailure>> {
    let mut record = [0; RECORD];
    let length = nix::unistd::read(pipe, &mut record)?;
    Ok(parse_report(&record[..length])
        .map(|(step, errno)| BirthFailure { step, errno: Some(errno) }))
}

/// How long a thread whose main has returned may take to go; microseconds but for destructors.
const JOIN_WAIT: Duration = Duration::from_millis(100);
