//! What the scenario tests share: every backend in turn, and a bound that catches hangs.
#![forbid(unsafe_code)]

pub mod events;
pub mod grown;

use std::future::Future;
use std::time::Duration;

use hatchery::{Backend, Config, FaultKind, Portal, Runtime, ScopeError, Stdio};
use hatchery_testkit::counts::Counts;
use hatchery_testkit::isolate;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Every backend (C14).
pub const BACKENDS: [Backend; 3] = [Backend::Forkserver, Backend::Exec, Backend::Thread];

/// Those whose actors are processes.
pub const PROCESSES: [Backend; 2] = [Backend::Forkserver, Backend::Exec];

/// A teardown budget that is long enough for a loaded machine and short enough for a test.
pub const BUDGET: Duration = Duration::from_millis(900);

/// What a teardown may take on a loaded machine beyond its budget.
pub const SLACK: Duration = Duration::from_secs(2);

/// A teardown budget where nobody is stuck: nobody waits for it, and nobody is forced because the
/// machine is busy with something else.
pub const ROOMY: Duration = Duration::from_secs(10);

/// Bounds where processes must be killed: `graceful` to go by themselves, which they won't, and then
/// all the time that a busy machine needs to give each of them a processor once more, to die on.
#[must_use]
pub fn hasty(graceful: Duration) -> Config {
    let (terminate, kill) = (graceful / 4, Duration::from_secs(15));
    let budget = graceful + terminate + kill;
    Config { budget, graceful, terminate, kill, ..Config::default() }
}

/// The full name of the test that this stands in.
#[macro_export]
macro_rules! here {
    () => {{
        fn inside() {}
        std::any::type_name_of_val(&inside).trim_end_matches("::inside")
    }};
}

/// Runs a scenario in a runtime of its own on each of `backends`, in a process of its own, and
/// checks that nothing is left inside or outside (C10). The bound only catches hangs.
///
/// # Panics
/// If the scenario panics, hangs, or leaves anything behind.
pub fn for_each<F>(test: &str, backends: &[Backend], scenario: impl Fn(Runtime) -> F)
where
    F: Future<Output = ()>,
{
    for_each_within(HANG, test, backends, scenario);
}

/// The same for a scenario that has much to do: it hangs if one backend takes longer than `hang`.
///
/// # Panics
/// As [`for_each`].
pub fn for_each_within<F>(
    hang: Duration,
    test: &str,
    backends: &[Backend],
    scenario: impl Fn(Runtime) -> F,
) where
    F: Future<Output = ()>,
{
    each(hang, test, backends, &Config::with_budget(BUDGET), scenario);
}

/// The same with other bounds of the tree.
///
/// # Panics
/// As [`for_each`].
pub fn for_each_with<F>(
    config: &Config,
    test: &str,
    backends: &[Backend],
    scenario: impl Fn(Runtime) -> F,
) where
    F: Future<Output = ()>,
{
    each(HANG, test, backends, config, scenario);
}

/// The same with both.
///
/// # Panics
/// As [`for_each`].
pub fn each<F>(
    hang: Duration,
    test: &str,
    backends: &[Backend],
    config: &Config,
    scenario: impl Fn(Runtime) -> F,
) where
    F: Future<Output = ()>,
{
    let all = hang * u32::try_from(backends.len()).unwrap_or(u32::MAX);
    isolate::run_test(test, all, || {
        many_fds();
        for backend in backends {
            eprintln!("on {}", backend.name());
            within(hang, backend.clone(), config.clone(), &scenario);
        }
    });
}

/// Becomes a user who has no other process, so that limits of a user count this one's alone. Says so and
/// gives `false` where that can't be done: without the rights, or in a container that has few users.
#[must_use]
pub fn become_nobody() -> bool {
    let nobody = 1_000_000 + std::process::id();
    let became =
        nix::unistd::setgid(nobody.into()).and_then(|()| nix::unistd::setuid(nobody.into()));
    if let Err(errno) = became {
        eprintln!("not tested: nobody here can become a user who has nothing else: {errno}");
    }
    became.is_ok()
}

/// As many fds as the machine gives: some scenarios have thousands of actors.
///
/// # Panics
/// If the kernel refuses what it allows.
pub fn many_fds() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
}

/// How many sockets a process has open.
///
/// # Panics
/// If there is no such process.
#[must_use]
pub fn sockets(pid: u32) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").flatten();
    let targets = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

/// Opens a nursery with one actor and ends with the runtime closed.
///
/// # Panics
/// If the nursery doesn't end well.
pub async fn with_worker(runtime: Runtime, body: impl AsyncFnOnce(Portal) -> hatchery::Result<()>) {
    let ended = runtime.nursery(async |n| body(n.start("worker").await?).await).await;
    ended.unwrap_or_else(|error| panic!("{}", error.render()));
    runtime.close().await;
}

/// The error of a nursery of the root that was to come down with one, but not with that of its body's
/// own panic: what a body asserts fails as an error of its nursery, and who only looks for an error
/// would take it for the one it wanted.
///
/// # Panics
/// If it came down well, or its body has panicked.
#[track_caller]
pub fn came_down<T>(ended: Result<T, ScopeError>) -> ScopeError {
    let Err(error) = ended else { panic!("it came down without an error") };
    let mut leaves = error.faults().iter().flat_map(|fault| fault.leaves());
    let is_own =
        leaves.any(|leaf| leaf.kind == FaultKind::Panicked && leaf.path.as_str() == "root");
    assert!(!is_own, "{}", error.render());
    error
}

/// The same on one backend with other bounds, in this very process.
///
/// # Panics
/// As [`for_each`].
pub fn with<F>(backend: Backend, config: Config, scenario: impl Fn(Runtime) -> F)
where
    F: Future<Output = ()>,
{
    within(HANG, backend, config, scenario);
}

/// The same with another bound against hangs.
///
/// # Panics
/// As [`for_each`].
pub fn within<F>(hang: Duration, backend: Backend, config: Config, scenario: impl Fn(Runtime) -> F)
where
    F: Future<Output = ()>,
{
    let before = Counts::now();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let tokio = builder.worker_threads(2).enable_all().build().expect("a tokio runtime");
    tokio.block_on(async {
        let runtime = Runtime::builder().backend(backend).config(config).stdio(Stdio::Null);
        let runtime = runtime.signals(false).open().expect("a runtime");
        let ended = tokio::time::timeout(hang, scenario(runtime)).await;
        ended.expect("the scenario hangs");
    });
    drop(tokio);
    if let Some(difference) = Counts::now().difference(&before) {
        panic!("something was left behind:\n{difference}");
    }
}

/// Nothing here takes this long unless it hangs.
pub const HANG: Duration = Duration::from_secs(30);
