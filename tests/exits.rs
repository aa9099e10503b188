//! Scenarios 78 to 80, and H8: ways in which a whole program ends. Each scenario is the `main` of
//! a process of its own, without a test harness around it, which would end it in its own way.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::future::pending;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use hatchery::{Config, Runtime, Stdio};
use hatchery_spawn::OwnThread;
use hatchery_testkit::fault;
use hatchery_testkit::isolate::{self, End, Isolated, Verdict};
use hatchery_tests::came_down;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::SIGINT;

#[hatchery::function]
async fn square(x: u64) -> u64 {
    x * x
}

/// A scenario: its name, what its process does, and how that must look from outside.
type Scenario = (&'static str, fn() -> ExitCode, fn(&Verdict));

const SCENARIOS: &[Scenario] = &[
    ("main_returns_while_a_leaked_task_holds_a_nursery", leaked_task, gone_with_0),
    ("exit_in_the_middle_of_everything", exit_in_the_middle, gone_with_7),
    ("a_panic_in_the_root", panic_in_root, gone_with_101),
    ("closed_from_inside_its_own_task", closed_inside, gone_with_0),
    ("closed_by_a_destructor", closed_by_destructor, gone_with_0),
    ("closed_by_another_thread", closed_by_thread, gone_with_0),
    ("start_call_exit", start_call_exit, silent),
    ("an_exit_hook_that_never_returns_is_ended_by_the_watchdog", stuck_hook, gone_with_9),
    ("a_blocking_task_after_a_signal_is_ended_by_the_watchdog", stuck_pool, gone_with_130),
    ("half_a_line_that_nobody_reads_is_ended_by_an_armed_watchdog", half_a_line, gone_with_5),
    ("a_hook_that_came_later_is_ended_by_an_armed_watchdog", later_hook, gone_with_5),
    ("a_pool_that_nobody_leaves_is_ended_by_an_armed_watchdog", armed_pool, gone_with_5),
    ("a_main_that_has_returned_is_ended_by_the_watchdog", entered::main, gone_with_5),
    ("a_main_that_has_failed_is_ended_by_the_watchdog", entered_and_failed, gone_with_1),
    ("a_main_that_has_panicked_is_ended_by_the_watchdog", entered_and_panicked, gone_with_101),
    ("a_closed_runtime_leaves_its_watchdog_to_be_armed", armed_when_closed, late_with_5),
    ("a_watchdogs_bound_is_the_one_asked_for", patient_watchdog, late_with_130),
    ("without_a_watchdog_the_process_stays", no_watchdog, still_there),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if isolate::is_scenario() {
        let name = args.first().unwrap();
        let (_, scenario, _) = SCENARIOS.iter().find(|(known, ..)| known == name).unwrap();
        return scenario();
    }
    // What a runner of tests asks for.
    let is_exact = args.iter().any(|arg| arg == "--exact");
    let filter = args.iter().find(|arg| !arg.starts_with('-')).cloned().unwrap_or_default();
    let wanted = |name: &str| if is_exact { name == filter } else { name.contains(&filter) };
    let ignored = args.iter().any(|arg| arg == "--ignored");
    let wanted: Vec<_> = SCENARIOS.iter().filter(|(name, ..)| wanted(name) && !ignored).collect();
    for (name, _, check) in wanted {
        if args.iter().any(|arg| arg == "--list") {
            println!("{name}: test");
            continue;
        }
        run(name, *check);
    }
    ExitCode::SUCCESS
}

/// Runs one scenario from outside; more often where once says little.
fn run(name: &str, check: fn(&Verdict)) {
    let times = if name == "start_call_exit" { 200 } else { 1 };
    for _ in 0..times {
        let verdict = Isolated::new(bound(name)).args([name]).run().unwrap();
        check(&verdict);
    }
    println!("test {name} ... ok");
}

/// Catches hangs, but where staying is what is looked for.
fn bound(name: &str) -> Duration {
    Duration::from_secs(if name == "without_a_watchdog_the_process_stays" { 8 } else { 60 })
}

fn gone_with(verdict: &Verdict, status: i32) {
    assert_eq!(verdict.end, End::Code(status), "{verdict}");
    assert!(verdict.left.is_empty() && verdict.files.is_empty(), "{verdict}");
}

fn gone_with_0(verdict: &Verdict) {
    gone_with(verdict, 0);
}

fn gone_with_7(verdict: &Verdict) {
    gone_with(verdict, 7);
}

fn gone_with_9(verdict: &Verdict) {
    gone_with(verdict, 9);
}

fn gone_with_101(verdict: &Verdict) {
    gone_with(verdict, 101);
}

fn gone_with_130(verdict: &Verdict) {
    gone_with(verdict, 130);
}

fn gone_with_1(verdict: &Verdict) {
    gone_with(verdict, 1);
}

fn gone_with_5(verdict: &Verdict) {
    gone_with(verdict, 5);
}

/// Not before the bound that it asked for.
fn late_with_5(verdict: &Verdict) {
    gone_with(verdict, 5);
    assert!(verdict.elapsed >= PATIENT, "{verdict}");
}

fn late_with_130(verdict: &Verdict) {
    gone_with(verdict, 130);
    assert!(verdict.elapsed >= PATIENT, "{verdict}");
}

fn silent(verdict: &Verdict) {
    gone_with(verdict, 0);
    assert_eq!(verdict.output, "", "{verdict}");
}

fn still_there(verdict: &Verdict) {
    assert_eq!(verdict.end, End::Hung, "{verdict}");
    // What a bound from outside is hit by is shown.
    let dump = verdict.tree.as_ref().unwrap().to_string();
    assert!(dump.contains("without_a_watchdog"), "{dump}");
}

fn tokio() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn builder() -> hatchery::Builder {
    Runtime::builder().config(Config::with_budget(Duration::from_secs(2))).stdio(Stdio::Null)
}

/// A nursery with two actors that have answered, in a task that nobody waits for.
fn leak_a_nursery(tokio: &tokio::runtime::Runtime) {
    let (tell, told) = tokio::sync::oneshot::channel();
    tokio.spawn(hatchery::nursery(async |n| {
        let (one, two) = (n.start("one").await?, n.start("two").await?);
        let sum = one.call(square(3)).await? + two.call(square(4)).await?;
        // Whoever waits for it is there.
        let _told = tell.send(sum);
        pending::<hatchery::Result<()>>().await
    }));
    assert_eq!(tokio.block_on(told).unwrap(), 25);
}

/// Scenario 78: `main` returns, and nobody has dropped the runtime of the task.
fn leaked_task() -> ExitCode {
    let tokio = tokio();
    leak_a_nursery(&tokio);
    std::mem::forget(tokio);
    ExitCode::SUCCESS
}

/// Scenario 78: `exit` on a worker, while actors are being started and called.
fn exit_in_the_middle() -> ExitCode {
    let tokio = tokio();
    leak_a_nursery(&tokio);
    tokio.block_on(async {
        let held = hatchery::nursery(async |n| {
            for i in 0..100_u64 {
                let child = n.start(&format!("a{i}")).await?;
                if i == 10 {
                    tokio::spawn(async { std::process::exit(7) });
                }
                child.call(square(i)).await?;
            }
            pending::<hatchery::Result<()>>().await
        });
        drop(held.await);
        // `exit` is under way on another thread.
        pending::<ExitCode>().await
    })
}

/// Scenario 78: a panic that unwinds through everything.
fn panic_in_root() -> ExitCode {
    let tokio = tokio();
    leak_a_nursery(&tokio);
    let held: Result<(), _> = tokio.block_on(hatchery::nursery(async |n| {
        n.start("third").await?;
        panic!("as it is meant to")
    }));
    // A panic of a body is an error first.
    panic!("{}", held.unwrap_err());
}

/// Scenario 79.
fn closed_inside() -> ExitCode {
    let tokio = tokio();
    let runtime = builder().open().unwrap();
    leak_a_nursery(&tokio);
    let closed = tokio.spawn(async move {
        let began = Instant::now();
        runtime.close().await;
        began.elapsed()
    });
    assert!(tokio.block_on(closed).unwrap() < BOUNDED);
    ExitCode::SUCCESS
}

/// Scenario 79: dropped in a destructor that runs on a worker.
fn closed_by_destructor() -> ExitCode {
    struct Holds(#[allow(dead_code, reason = "it is there to be dropped")] Runtime);
    let tokio = tokio();
    let holds = Holds(builder().open().unwrap());
    leak_a_nursery(&tokio);
    let dropped = tokio.spawn(async move {
        let began = Instant::now();
        drop(holds);
        began.elapsed()
    });
    assert!(tokio.block_on(dropped).unwrap() < BOUNDED);
    ExitCode::SUCCESS
}

/// Scenario 79: from a thread that no runtime knows.
fn closed_by_thread() -> ExitCode {
    let tokio = tokio();
    let runtime = builder().open().unwrap();
    leak_a_nursery(&tokio);
    let began = Instant::now();
    OwnThread::spawn("closes", move || drop(runtime)).unwrap().join();
    assert!(began.elapsed() < BOUNDED);
    ExitCode::SUCCESS
}

/// Scenario 80.
fn start_call_exit() -> ExitCode {
    let answer = tokio().block_on(hatchery::nursery(async |n| {
        let child = n.start("child").await?;
        Ok(child.call(square(7)).await?)
    }));
    assert_eq!(answer.unwrap(), 49);
    ExitCode::SUCCESS
}

/// H8: something that runs at the exit never returns.
fn stuck_hook() -> ExitCode {
    hatchery_spawn::at_exit(|_| for_ever());
    let tokio = tokio();
    leak_a_nursery(&tokio);
    std::mem::forget(tokio);
    std::process::exit(9)
}

/// H8, C6: the tree is down after a signal, and tokio waits for a thread of its pool.
fn stuck_pool() -> ExitCode {
    wait_for_the_pool(builder())
}

/// The watchdog can be switched off.
fn no_watchdog() -> ExitCode {
    wait_for_the_pool(builder().watchdog(None))
}

fn wait_for_the_pool(builder: hatchery::Builder) -> ExitCode {
    let tokio = tokio();
    let runtime = builder.open().unwrap();
    tokio.block_on(async {
        #[allow(clippy::disallowed_methods, reason = "the trap that users fall into")]
        let _never = tokio::task::spawn_blocking(for_ever);
        let held: Result<(), _> = runtime
            .nursery(async |n| {
                n.start("child").await?;
                fault::send(std::process::id(), SIGINT)?;
                pending().await
            })
            .await;
        drop(came_down(held));
        runtime.close().await;
    });
    drop(tokio);
    ExitCode::SUCCESS
}

/// A bound that is not the default one.
fn patient_watchdog() -> ExitCode {
    wait_for_the_pool(builder().watchdog(PATIENT))
}

/// H8: std writes out half a line before any hook runs, into a full pipe.
fn half_a_line() -> ExitCode {
    let tokio = tokio();
    leak_a_nursery(&tokio);
    std::mem::forget(tokio);
    let (unread, mut full) = std::io::pipe().unwrap();
    fcntl(&full, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while full.write(&[b'x'; 512]).is_ok() {}
    fcntl(&full, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    nix::unistd::dup2_stdout(&full).unwrap();
    std::mem::forget(unread);
    print!("half a line");
    hatchery::arm_watchdog(5);
    ExitCode::from(5)
}

/// H8: a hook that was registered after the runtime's runs before it, and never returns.
fn later_hook() -> ExitCode {
    let tokio = tokio();
    leak_a_nursery(&tokio);
    std::mem::forget(tokio);
    hatchery_spawn::at_exit(|_| for_ever());
    hatchery::arm_watchdog(5);
    ExitCode::from(5)
}

/// H8: as `#[tokio::main]` does it: its runtime is dropped when `main` is over, and waits for its pool.
fn armed_pool() -> ExitCode {
    let tokio = tokio();
    leak_a_nursery(&tokio);
    #[allow(clippy::disallowed_methods, reason = "the trap that users fall into")]
    let _never = tokio.spawn_blocking(for_ever);
    hatchery::arm_watchdog(5);
    drop(tokio);
    ExitCode::from(5)
}

/// H8: nobody says that the end begins; `main` has returned, and that is enough.
mod entered {
    #[hatchery::main]
    pub(crate) async fn main() -> std::process::ExitCode {
        super::nobody_leaves().await;
        std::process::ExitCode::from(5)
    }
}

/// The same on one thread, and with an error.
mod failing {
    #[hatchery::main(flavor = "current_thread")]
    pub(crate) async fn main() -> Result<(), &'static str> {
        super::nobody_leaves().await;
        Err("it failed")
    }
}

fn entered_and_failed() -> ExitCode {
    failing::main().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

/// The same with a panic, which drops tokio as it unwinds.
mod panicking {
    #[hatchery::main]
    pub(crate) async fn main() {
        super::nobody_leaves().await;
        panic!("in main");
    }
}

fn entered_and_panicked() -> ExitCode {
    panicking::main();
    ExitCode::SUCCESS
}

/// A nursery that nobody waits for, and a task that tokio waits for.
async fn nobody_leaves() {
    let (up, is_up) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        hatchery::nursery(async |n| {
            n.start("child").await?;
            up.send(()).unwrap();
            pending::<hatchery::Result<()>>().await
        })
        .await
    });
    is_up.await.unwrap();
    #[allow(clippy::disallowed_methods, reason = "the trap that users fall into")]
    let _never = tokio::task::spawn_blocking(for_ever);
}

/// The same after the runtime was closed: what it asked for is remembered.
fn armed_when_closed() -> ExitCode {
    let tokio = tokio();
    let runtime = builder().watchdog(PATIENT).open().unwrap();
    leak_a_nursery(&tokio);
    #[allow(clippy::disallowed_methods, reason = "the trap that users fall into")]
    let _never = tokio.spawn_blocking(for_ever);
    tokio.block_on(runtime.close());
    hatchery::arm_watchdog(5);
    drop(tokio);
    ExitCode::from(5)
}

fn for_ever() {
    loop {
        std::thread::park();
    }
}

/// Longer than the budget and the default watchdog together.
const PATIENT: Duration = Duration::from_secs(5);
/// The budget, and what a loaded machine may add.
const BOUNDED: Duration = Duration::from_secs(10);
