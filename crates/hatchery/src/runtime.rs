//! A tree's runtime: what its actors share in one process, opened once, closed exactly (C10).
//!
//! It starts nothing that isn't used: the supervisor thread comes with the first nursery, the
//! forkserver with the first process actor. The supervisor drives timers and waits for children
//! on a thread of its own, so that no teardown depends on a worker that user code can block.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use hatchery_proto::{ActorPath, Config, Hello};
use hatchery_spawn::{Abandoned, Birth, Bounds, Forkserver, SpawnError, Threads};
use tokio::sync::Semaphore;

use crate::board::Board;
use crate::copied::is_copy;
use crate::current::{self, Actor, Entered};
use crate::drive::lanes::Offers;
use crate::error::OpenError;
use crate::lock::lock;
use crate::root::{House, Runtime};
use crate::signal::{Interrupts, Signals, Watch};
use crate::start::{Backend, Defaults, Stdio};
use crate::supervisor::Supervisor;
use crate::watchdog;

/// What a runtime shall be like. Made by [`Runtime::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    config: Config,
    defaults: Defaults,
    signals: Signals,
    root: RootOptions,
}

/// What only a root decides.
#[derive(Debug, Clone)]
struct RootOptions {
    watchdog: Option<Duration>,
    huge_pages: bool,
    image: Option<PathBuf>,
    warm_up: Duration,
}

impl Builder {
    pub(crate) fn new() -> Self {
        let (config, defaults) = (Config::default(), Defaults::default());
        let root = RootOptions {
            watchdog: Some(WATCHDOG),
            huge_pages: false,
            image: None,
            warm_up: Bounds::default().warm_up,
        };
        Self { config, defaults, signals: Signals::default(), root }
    }

    /// Every bound and limit; see [`Config`].
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// How actors are brought to life unless one says otherwise. Default: the forkserver.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.defaults.backend = backend;
        self
    }

    /// Where actors write unless one says otherwise. Default: relayed with their path.
    #[must_use]
    pub fn stdio(mut self, stdio: Stdio) -> Self {
        self.defaults.stdout = stdio;
        self.defaults.stderr = stdio;
        self
    }

    /// What SIGINT, SIGTERM and SIGHUP on this process do: see [`Signals`]. Default:
    /// [`Signals::TakeDown`]; `true` is the same, `false` is [`Signals::Leave`].
    ///
    /// Unless they are left alone, SIGTSTP stops the tree with the root, until SIGCONT, and SIGQUIT shows on
    /// stderr what all are doing (see [`dump`](crate::dump)). A SIGHUP or SIGTSTP that is ignored when the
    /// runtime opens stays so, as nohup(1) wants it.
    #[must_use]
    pub fn signals(mut self, signals: impl Into<Signals>) -> Self {
        self.signals = signals.into();
        self
    }

    /// How long the process may take to end once its tree is down or its budget spent, after a
    /// signal or after it began to exit; then it is ended without flushing anything, with
    /// 128 + signal or with the status that it was about to give. Default: 1 s.
    ///
    /// It is for programs that can't end because something waits for a thread that sits in a
    /// system call. `None` switches it off: then such a program stays.
    ///
    /// If no signal came, "began to exit" is our hook among those that `exit` calls, in the reverse
    /// of the order in which they came. What happens between the last line of `main` and that hook
    /// is not seen: destructors, as that of tokio's runtime, which waits for its blocking tasks; what
    /// std writes out first, if it was half a line and nobody reads stdout; hooks that were registered
    /// after the runtime was opened. A `main` under [`#[hatchery::main]`](macro@crate::main) has begun to
    /// exit when it has returned; any other that has any of these says where its end begins, by
    /// [`arm_watchdog`](crate::arm_watchdog).
    #[must_use]
    pub fn watchdog(mut self, bound: impl Into<Option<Duration>>) -> Self {
        self.root.watchdog = bound.into();
        self
    }

    /// Whether the forkserver moves the program's code to huge pages, which makes starts cheaper and
    /// hides the names of functions from profilers that look in `/proc/PID/maps`; see
    /// [`Bounds::huge_pages`](hatchery_spawn::Bounds::huge_pages). Default: no.
    #[must_use]
    pub fn huge_pages(mut self, yes: bool) -> Self {
        self.root.huge_pages = yes;
        self
    }

    /// The program that the forkserver and exec'd actors are started from. Default: this program.
    ///
    /// For code in a shared library of somebody else's program, such as a module of Python: name a
    /// small program of yours that is linked with the same functions and the same version of this
    /// crate. Anything else is a typed error of the first start, and is not executed; see
    /// [`ImageError`](hatchery_spawn::ImageError).
    #[must_use]
    pub fn image(mut self, program: impl Into<PathBuf>) -> Self {
        self.root.image = Some(program.into());
        self
    }

    /// How long the program's preloads may take together, in the forkserver and before its first fork;
    /// see [`Bounds::warm_up`](hatchery_spawn::Bounds::warm_up). Default: 60 s.
    #[must_use]
    pub fn warm_up(mut self, bound: Duration) -> Self {
        self.root.warm_up = bound;
        self
    }

    /// Opens the runtime. It becomes the process's own if there is none yet, so that
    /// [`nursery`](crate::nursery()) uses it too.
    ///
    /// # Errors
    /// [`OpenError::Config`]: a bound contradicts another. [`OpenError::System`]: no thread or no
    /// signal handler could be had. [`OpenError::Copied`]: in a copy of the process.
    pub fn open(self) -> Result<Runtime, OpenError> {
        if !hatchery_spawn::claim() {
            return Err(OpenError::Copied);
        }
        self.config.validate().map_err(OpenError::Config)?;
        let inner = Inner::new(self.config, self.defaults, Some(self.root));
        let root = Arc::new(Actor::new(ActorPath::root(), inner, None));
        let watch = Watch::start(&root, self.signals)
            .map_err(|cause| OpenError::System { what: "installing signal handlers", cause })?;
        *lock(&root.runtime.signals) = watch;
        root.born();
        let house = House::new(&root);
        current::enter_process(&root, Arc::downgrade(&house));
        watchdog::asked_for(root.runtime.watchdog);
        Ok(Runtime::new(&root, house))
    }
}

/// Every thread of the calling actor's process that was given up on and still runs (C5); in the
/// root's process the same as [`Runtime::abandoned`]. Empty outside of all runtimes.
#[must_use]
pub fn abandoned() -> Vec<Abandoned> {
    current::actor().map_or_else(Vec::new, |actor| actor.runtime.threads.ledger().list())
}

/// The actor this code runs in; opens the implicit runtime if there is none.
pub(crate) fn actor() -> Result<Arc<Actor>, OpenError> {
    Ok(entered()?.actor)
}

/// The same, to open a scope in it.
pub(crate) fn entered() -> Result<Entered, OpenError> {
    /// It lives until the process ends; the exit hook closes it.
    static IMPLICIT: Mutex<Option<Runtime>> = Mutex::new(None);
    if is_copy() {
        return Err(OpenError::Copied);
    }
    if let Some(entered) = current::entered() {
        return Ok(entered);
    }
    let mut implicit = lock(&IMPLICIT);
    if let Some(entered) = current::entered() {
        return Ok(entered);
    }
    if let Some(runtime) = &*implicit {
        return Ok(runtime.enter());
    }
    let runtime = Builder::new().open()?;
    Ok(implicit.insert(runtime).enter())
}

/// What the actors of one process share.
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) defaults: Defaults,
    pub(crate) threads: Threads,
    pub(crate) board: Arc<Board>,
    /// How long the process may take to end beyond the budget, if anybody looks.
    pub(crate) watchdog: Option<Duration>,
    /// How many births are under way: each holds several fds until its handshake.
    pub(crate) births: Semaphore,
    /// What thread actors claim at their birth.
    pub(crate) offers: Offers,
    /// Only the root may end the tree as a whole.
    is_root: bool,
    /// Whether its forkserver's code shall lie on huge pages.
    huge_pages: bool,
    /// The program of its forkserver, if not this one.
    image: Option<PathBuf>,
    /// How long its forkserver's preloads may take.
    warm_up: Duration,
    /// How thread actors find the runtime they were born into.
    token: u64,
    forkserver: Mutex<Option<Forkserver>>,
    /// The root's own, for the signal thread: locked only for an instant (H6).
    killable: Mutex<Option<Forkserver>>,
    supervisor: Mutex<Option<Supervisor>>,
    /// Drives connections that are used from other runtimes than that of whoever made them.
    refuge: Mutex<Option<Supervisor>>,
    signals: Mutex<Option<Watch>>,
    /// What the root has been told of.
    pub(crate) interrupts: Interrupts,
    /// Set when it closes: what served it is gone, and isn't made again.
    closed: AtomicBool,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("token", &self.token).finish_non_exhaustive()
    }
}

impl Inner {
    fn new(config: Config, defaults: Defaults, root: Option<RootOptions>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let inner = Arc::new(Self {
            config,
            defaults,
            threads: Threads::new(),
            board: Arc::default(),
            watchdog: root.as_ref().and_then(|root| root.watchdog),
            births: Semaphore::new(MAX_BIRTHS),
            offers: Offers::default(),
            is_root: root.is_some(),
            huge_pages: root.as_ref().is_some_and(|root| root.huge_pages),
            warm_up: root.as_ref().map_or(Bounds::default().warm_up, |root| root.warm_up),
            image: root.and_then(|root| root.image),
            token: NEXT.fetch_add(1, Ordering::Relaxed),
            forkserver: Mutex::default(),
            killable: Mutex::default(),
            supervisor: Mutex::default(),
            refuge: Mutex::default(),
            signals: Mutex::default(),
            interrupts: Interrupts::default(),
            closed: AtomicBool::new(false),
        });
        lock(&RUNTIMES).insert(inner.token, Arc::downgrade(&inner));
        inner
    }

    /// The runtime of an actor that has a process of its own.
    pub(crate) fn of_process(hello: &Hello) -> Arc<Self> {
        Self::new(hello.config.clone(), Defaults::of(hello), None)
    }

    /// The runtime that a thread actor was born into.
    pub(crate) fn of_thread(birth: &Birth) -> Option<Arc<Self>> {
        let token = u64::from_ne_bytes(birth.payload.as_slice().try_into().ok()?);
        lock(&RUNTIMES).get(&token)?.upgrade()
    }

    /// What a thread actor must be given to find this runtime.
    pub(crate) fn token(&self) -> Vec<u8> {
        self.token.to_ne_bytes().to_vec()
    }

    /// The forkserver of the tree, started or adopted on first use.
    pub(crate) fn forkserver(&self) -> Result<Forkserver, SpawnError> {
        let mut slot = lock(&self.forkserver);
        if let Some(server) = slot.as_ref().filter(|server| !server.is_lost() || !self.is_root) {
            return Ok(server.clone());
        }
        if self.closed.load(Ordering::SeqCst) {
            let (name, why) = ("forkserver".to_owned(), CLOSED.to_owned());
            return Err(SpawnError::ServerGone { name, why });
        }
        // Only now: an actor that starts nothing costs the forkserver no fd and itself no thread.
        // An actor that can't reach it must not start another one: that would be a root of its own.
        let server = match Forkserver::inherited()?.filter(|_| !self.is_root) {
            Some(inherited) => inherited,
            None => {
                let orphan_grace = self.config.orphan_grace;
                let (huge_pages, warm_up) = (self.huge_pages, self.warm_up);
                let image = self.image.clone();
                let bounds =
                    Bounds { image, orphan_grace, huge_pages, warm_up, ..Bounds::default() };
                Forkserver::start(bounds)?
            }
        };
        *slot = Some(server.clone());
        *lock(&self.killable) = Some(server.clone());
        Ok(server)
    }

    /// Where tasks run that must not depend on user code.
    ///
    /// # Errors
    /// The call that failed, and what it said.
    pub(crate) fn supervisor(&self) -> Result<tokio::runtime::Handle, (&'static str, io::Error)> {
        self.started(&self.supervisor, Supervisor::start)
    }

    /// Where connections run whose own runtime is not enough, started when the first one needs it.
    ///
    /// # Errors
    /// The call that failed, and what it said.
    pub(crate) fn refuge(&self) -> Result<tokio::runtime::Handle, (&'static str, io::Error)> {
        self.started(&self.refuge, Supervisor::refuge)
    }

    fn started(
        &self,
        slot: &Mutex<Option<Supervisor>>,
        start: fn() -> Result<Supervisor, (&'static str, io::Error)>,
    ) -> Result<tokio::runtime::Handle, (&'static str, io::Error)> {
        let mut slot = lock(slot);
        if let Some(supervisor) = &*slot {
            return Ok(supervisor.handle().clone());
        }
        if self.closed.load(Ordering::SeqCst) {
            return Err(("pthread_create", io::Error::other(CLOSED)));
        }
        let supervisor = start()?;
        let handle = supervisor.handle().clone();
        *slot = Some(supervisor);
        Ok(handle)
    }

    /// Kills every process of the tree, now. Any thread; bounded by the forkserver's own bound.
    pub(crate) fn kill_tree(&self) {
        let server = lock(&self.killable).clone();
        if let Some(server) = server {
            server.kill_tree();
        }
    }

    /// Stops every process below this one, or lets all go on.
    pub(crate) fn hold_tree(&self, stopped: bool) {
        let server = lock(&self.killable).clone();
        if let Some(server) = server {
            server.hold_tree(stopped);
        }
    }

    /// The forkserver, if there is one.
    pub(crate) fn running_forkserver(&self) -> Option<Forkserver> {
        if is_copy() { None } else { lock(&self.forkserver).clone() }
    }

    /// Ends everything that served the runtime. Its scopes have finished.
    pub(crate) fn close(&self) {
        // Seen by whoever takes one of the locks below later.
        self.closed.store(true, Ordering::SeqCst);
        let watch = lock(&self.signals).take();
        if let Some(watch) = watch {
            watch.end();
        }
        lock(&self.killable).take();
        if let Some(server) = lock(&self.forkserver).take() {
            server.close();
        }
        // Neither is waited for under its lock, which what it runs may want.
        let refuge = lock(&self.refuge).take();
        if let Some(refuge) = refuge {
            refuge.end();
        }
        let supervisor = lock(&self.supervisor).take();
        if let Some(supervisor) = supervisor {
            supervisor.end();
        }
        hatchery_spawn::notice::flush(self.config.peer_drain);
        self.board.close();
        lock(&RUNTIMES).remove(&self.token);
    }
}

static RUNTIMES: Mutex<BTreeMap<u64, Weak<Inner>>> = Mutex::new(BTreeMap::new());

/// How long a process may take to end beyond its budget: what it does by itself takes moments.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(1);
/// Why nothing serves it any more.
const CLOSED: &str = "its runtime is closed";
/// More at once only wait in the forkserver's queue, with their fds open.
const MAX_BIRTHS: usize = 32;
/// What the end of a runtime grants beyond the budget of its scopes (C2: at most 100 ms).
pub(crate) const CLOSE_SLACK: Duration = Duration::from_millis(100);
