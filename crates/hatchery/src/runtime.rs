//! A tree's runtime: what its actors share in one process, opened once, closed exactly (C10).
//!
//! It starts nothing that isn't used: the supervisor thread comes with the first nursery, the
//! forkserver with the first process actor. The supervisor drives timers and waits for children
//! on a thread of its own, so that no teardown depends on a worker that user code can block.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, Weak};
use std::time::{Duration, Instant};

use hatchery_proto::{ActorPath, Config, Hello, Reason, Why};
use hatchery_spawn::{Abandoned, Birth, Bounds, Forkserver, SpawnError, Threads};
use tokio::sync::Semaphore;

use crate::board::Board;
use crate::copied::is_copy;
use crate::current::{self, Actor, Cancelling};
use crate::drive::lanes::Offers;
use crate::dump;
use crate::error::OpenError;
use crate::lock::lock;
use crate::nursery;
use crate::signal::{self, Watch};
use crate::start::{Backend, Defaults, Stdio};
use crate::supervisor::Supervisor;
use crate::watchdog;

/// The root of a tree, for programs that want to say when it begins and ends.
///
/// Without one, the first [`nursery`](crate::nursery()) opens a runtime with the defaults that
/// lives until the process ends.
///
/// Dropping it closes it, blocking at most the budget; [`Runtime::close`] is the same, awaited.
#[derive(Debug)]
pub struct Runtime {
    root: Arc<Actor>,
    closed: bool,
}

/// What a runtime shall be like. Made by [`Runtime::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    config: Config,
    defaults: Defaults,
    signals: bool,
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

impl Runtime {
    /// Options of a runtime; every one has a default.
    #[must_use]
    pub fn builder() -> Builder {
        let (config, defaults) = (Config::default(), Defaults::default());
        let root = RootOptions {
            watchdog: Some(WATCHDOG),
            huge_pages: false,
            image: None,
            warm_up: Bounds::default().warm_up,
        };
        Builder { config, defaults, signals: true, root }
    }

    /// Opens a nursery at the root of this runtime's tree; see [`nursery`](crate::nursery()).
    ///
    /// # Errors
    /// See [`nursery`](crate::nursery()).
    ///
    /// # Cancel safety
    /// See [`nursery`](crate::nursery()).
    pub async fn nursery<T, F>(&self, body: F) -> Result<T, crate::ScopeError>
    where
        F: AsyncFnOnce(crate::Nursery) -> crate::Result<T>,
    {
        nursery::open(self.root.clone(), body).await
    }

    /// Every thread of this process that was given up on and still runs (C5), at any level of the
    /// tree.
    ///
    /// An actor with a process of its own has a ledger of its own, which [`abandoned`](crate::abandoned())
    /// shows in it; its threads are not listed here. That they were given up on is told upwards all the
    /// same, in the results and reports of the nurseries above; and they end with their process.
    #[must_use]
    pub fn abandoned(&self) -> Vec<Abandoned> {
        if is_copy() {
            return Vec::new();
        }
        self.root.runtime.threads.ledger().list()
    }

    /// What the whole tree is doing right now, and who holds it up; see [`dump`](crate::dump).
    ///
    /// Reads `/proc`, which blocks for a millisecond or so for each process. `None` if there is no
    /// `/proc`.
    #[must_use]
    pub fn dump(&self) -> Option<dump::Dump> {
        dump::Dump::of(std::process::id())
    }

    /// The process id of the forkserver, once it runs; for looking from outside.
    #[must_use]
    pub fn forkserver_pid(&self) -> Option<u32> {
        if is_copy() {
            return None;
        }
        lock(&self.root.runtime.forkserver).as_ref().map(Forkserver::pid)
    }

    /// Whether the processes of the tree are held by pidfds, once a forkserver runs.
    ///
    /// `Some(false)`: neither the kernel nor a filter lets us have any. All promises hold; what is
    /// done differently then stands at [`Forkserver::has_pidfds`].
    #[must_use]
    pub fn has_pidfds(&self) -> Option<bool> {
        if is_copy() {
            return None;
        }
        lock(&self.root.runtime.forkserver).as_ref().map(Forkserver::has_pidfds)
    }

    /// Brings down what is still open and waits until everything that served the runtime is gone:
    /// threads, fds, the forkserver. Abandoned threads are excepted (C5, C10).
    ///
    /// # Cancel safety
    /// Dropping the future closes as dropping the runtime does, blocking.
    pub async fn close(mut self) {
        if is_copy() {
            return;
        }
        self.root.cancel_scopes();
        let bound = self.root.runtime.config.budget + CLOSE_SLACK;
        // Scopes have their own bounds; this one only guards against a bug in them.
        if tokio::time::timeout(bound, self.root.scopes_closed()).await.is_err() {
            still_open(&self.root, bound);
        }
        let reason = Reason { by: self.root.path.clone(), why: Why::Finished };
        let config = &self.root.runtime.config;
        let going = Cancelling { reason, until: Instant::now() + config.peer_drain * 2 };
        self.root.door.close_all(&going, config.peer_drain).await;
        self.closed = true;
        self.root.runtime.close();
        current::leave_process(&self.root);
        forget(&self.root);
    }

    fn close_blocking(&mut self) {
        if is_copy() {
            return;
        }
        if !std::mem::replace(&mut self.closed, true) {
            close_blocking(&self.root);
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.close_blocking();
    }
}

impl Builder {
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

    /// Whether SIGINT, SIGTERM and SIGHUP on this process bring the tree down (C6), SIGTSTP stops
    /// the tree with the root, until SIGCONT, and SIGQUIT shows on stderr what all are doing (see
    /// [`dump`](crate::dump)). Default: yes.
    ///
    /// A SIGHUP or SIGTSTP that is ignored when the runtime opens stays so, as nohup(1) wants it.
    #[must_use]
    pub fn signals(mut self, yes: bool) -> Self {
        self.signals = yes;
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
        if self.signals {
            let watch = Watch::start(root.clone())
                .map_err(|cause| OpenError::System { what: "installing signal handlers", cause })?;
            *lock(&root.runtime.signals) = Some(watch);
        }
        root.born();
        current::enter_process(&root);
        remember(&root);
        watchdog::asked_for(root.runtime.watchdog);
        Ok(Runtime { root, closed: false })
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
    static OPENING: Mutex<()> = Mutex::new(());
    if is_copy() {
        return Err(OpenError::Copied);
    }
    if let Some(actor) = current::actor() {
        return Ok(actor);
    }
    let _one = lock(&OPENING);
    if let Some(actor) = current::actor() {
        return Ok(actor);
    }
    let runtime = Runtime::builder().open()?;
    let root = runtime.root.clone();
    // It lives until the process ends; the exit hook closes it.
    std::mem::forget(runtime);
    Ok(root)
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
    signals: Mutex<Option<Watch>>,
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
            signals: Mutex::default(),
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
        let mut slot = lock(&self.supervisor);
        if let Some(supervisor) = &*slot {
            return Ok(supervisor.handle().clone());
        }
        let supervisor = Supervisor::start()?;
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

    /// Ends everything that served the runtime. Its scopes have finished.
    fn close(&self) {
        if let Some(watch) = lock(&self.signals).take() {
            watch.end();
        }
        lock(&self.killable).take();
        if let Some(server) = lock(&self.forkserver).take() {
            server.close();
        }
        if let Some(supervisor) = lock(&self.supervisor).take() {
            supervisor.end();
        }
        hatchery_spawn::notice::flush(self.config.peer_drain);
        self.board.close();
        lock(&RUNTIMES).remove(&self.token);
    }
}

static RUNTIMES: Mutex<BTreeMap<u64, Weak<Inner>>> = Mutex::new(BTreeMap::new());

static ROOTS: Mutex<Vec<Arc<Actor>>> = Mutex::new(Vec::new());

/// Puts a root on the list of the exit hook.
fn remember(root: &Arc<Actor>) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| hatchery_spawn::at_exit(at_exit));
    lock(&ROOTS).push(root.clone());
}

/// The roots of the trees that are open in this process.
pub(crate) fn roots() -> Vec<Arc<Actor>> {
    if is_copy() {
        return Vec::new();
    }
    lock(&ROOTS).clone()
}

fn forget(root: &Arc<Actor>) {
    lock(&ROOTS).retain(|other| !Arc::ptr_eq(other, root));
}

/// `main` has returned or `exit` was called: nobody opens scopes any more; those that come down
/// in the background may finish (C1), bounded, and a signal that ended the tree gives the status.
fn at_exit(status: i32) {
    let roots = std::mem::take(&mut *lock(&ROOTS));
    watchdog::arm(&roots, status);
    for root in &roots {
        close_blocking(root);
    }
    if let Some(signal) = signal::received() {
        hatchery_spawn::exit_now(128 + signal);
    }
}

fn close_blocking(root: &Arc<Actor>) {
    root.cancel_scopes();
    let bound = root.runtime.config.budget + CLOSE_SLACK;
    if root.open_scopes() > 0
        && let Ok(handle) = root.runtime.supervisor()
    {
        let waited = root.clone();
        let (done, closed) = std::sync::mpsc::channel();
        // Waited for on this thread without a runtime: it may be a worker of one.
        handle.spawn(async move {
            waited.scopes_closed().await;
            done.send(()).is_ok()
        });
        // Scopes have their own bounds; this one only guards against a bug in them.
        if closed.recv_timeout(bound).is_err() {
            still_open(root, bound);
        }
    }
    crate::drive::door::root_closes(root);
    root.runtime.close();
    current::leave_process(root);
    forget(root);
}

/// A wait that ran out is never silent (H25), also where nobody is left to be told by an error.
fn still_open(root: &Actor, waited: Duration) {
    let open = root.open_scopes();
    hatchery_spawn::notice::post(move || {
        let (stage, dump) = ("the end of a runtime", dump::of_this_tree());
        tracing::error!(stage, ?waited, open, dump, "nurseries are still open");
    });
}

impl Actor {
    /// Cancels the scopes that are still open at the end of a runtime.
    pub(crate) fn cancel_scopes(&self) {
        if self.open_scopes() > 0 {
            let reason = Reason { by: self.path.clone(), why: Why::Dropped };
            self.cancel(reason, self.runtime.config.budget);
        }
    }
}

/// How long a process may take to end beyond its budget: what it does by itself takes moments.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(1);
/// More at once only wait in the forkserver's queue, with their fds open.
const MAX_BIRTHS: usize = 32;
/// What the end of a runtime grants beyond the budget of its scopes (C2: at most 100 ms).
pub(crate) const CLOSE_SLACK: Duration = Duration::from_millis(100);
