//! From the death of a process of T(3,3), or a Ctrl-C, until all that must go with it is gone; and
//! what stuck actors cost.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hatchery::{Config, Portal, Runtime};
use hatchery_spawn::Pidfd;
use nix::libc;
use tokio::task::JoinSet;

use crate::Outcome;
use crate::cli::Extent;
use crate::figures::{Figure, Samples};
use crate::report::{Goal, Row, Unit, human};

/// A thousand kills, each of a tree of its own, shared out among the victims.
pub(crate) fn measure(extent: Extent) -> Outcome {
    let each = extent.pick(6_usize, 1000).div_ceil(ROWS.len());
    let mut all = Samples::default();
    for (what, victim) in ROWS {
        let mut samples = Samples::default();
        for _ in 0..each {
            samples.span(kill(&Tree::start()?, victim)?);
        }
        all.append(&samples);
        tell(format!("SIGKILL of {what} of T(3,3), to all below gone"), &samples, MEDIAN_GONE);
    }
    tell("all of these kills".to_owned(), &all, MEDIAN_GONE);
    let mut hundred = Samples::default();
    for _ in 0..each {
        hundred.span(kill(&Tree::start_with(&["--flat", "100"])?, Victim::Root)?);
    }
    let what = "SIGKILL of the root of 100 actors, to all below gone".to_owned();
    tell(what, &hundred, MEDIAN_GONE_OF_100);
    let mut interrupts = Samples::default();
    for _ in 0..each {
        interrupts.span(interrupt()?);
    }
    tell("SIGINT on an idle T(3,3), to none left".to_owned(), &interrupts, MEDIAN_INTERRUPTED);
    let mut seconds = Samples::default();
    for _ in 0..each.min(100) {
        seconds.span(interrupt_twice()?);
    }
    let what = "a second SIGINT on a T(3,3) with stuck leaves, to none left".to_owned();
    tell_all(what, &seconds, SECOND_INTERRUPT);
    let bound = Config::default().budget + Duration::from_millis(100);
    let mut bounded = Samples::default();
    for _ in 0..each.min(5) {
        bounded.span(interrupt_stuck()?);
    }
    let what = "one SIGINT on a T(3,3) with stuck leaves, to none left".to_owned();
    tell_all(what, &bounded, bound);
    for backend in ["forkserver", "thread"] {
        let mut samples = Samples::default();
        for _ in 0..each.min(3) {
            samples.span(stuck(backend)?);
        }
        let what = format!("25 stuck actors on {backend}, to the nursery's return");
        tell_all(what, &samples, bound);
    }
    Ok(())
}

fn tell(what: String, samples: &Samples, median: Duration) {
    let row = Row::new("deaths", what, Unit::Seconds).alone(samples);
    row.goal(Goal::AtMost(median.as_secs_f64())).tell();
}

/// What holds for every single one.
fn tell_all(what: String, samples: &Samples, most: Duration) {
    let Figure { max, count, .. } = samples.figure();
    let most_of = max.map_or("none".to_owned(), |max| human(max, Unit::Seconds));
    let note = format!("at most {most_of} of {count}");
    let row = Row::new("deaths", what, Unit::Seconds).alone(samples).note(note);
    row.goal(Goal::MaxAtMost(most.as_secs_f64())).tell();
}

/// Who is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Root,
    RootWithStoppedServer,
    Server,
    /// The actor with so many levels below it.
    Actor(usize),
}

const ROWS: [(&str, Victim); 6] = [
    ("the root", Victim::Root),
    ("the root, its forkserver stopped,", Victim::RootWithStoppedServer),
    ("the forkserver", Victim::Server),
    ("an actor of the first level", Victim::Actor(1)),
    ("an actor of the second level", Victim::Actor(2)),
    ("a leaf", Victim::Actor(3)),
];

/// A tree in a process of its own. Dropped, its root is killed and reaped.
struct Tree {
    root: Child,
    root_process: Pidfd,
    server: Pidfd,
    actors: Vec<(String, Pidfd)>,
}

impl Tree {
    fn start() -> Outcome<Self> {
        Self::start_with(&[])
    }

    fn start_with(args: &[&str]) -> Outcome<Self> {
        let mut root = Command::new("/proc/self/exe");
        let mut root = root.arg("hold").args(args).stdout(Stdio::piped()).spawn()?;
        let root_process = Pidfd::open(root.id())?;
        let lines = BufReader::new(root.stdout.take().ok_or("no stdout")?).lines();
        let (mut server, mut actors) = (None, Vec::new());
        for line in lines {
            let line = line?;
            match line.split_once(' ') {
                Some(("forkserver", pid)) => server = Some(Pidfd::open(pid.parse()?)?),
                Some((path, pid)) => actors.push((path.to_owned(), Pidfd::open(pid.parse()?)?)),
                None => break,
            }
        }
        Ok(Self { root, root_process, server: server.ok_or("no forkserver")?, actors })
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // It has gone already, as a rule.
        let _gone = self.root.kill();
        let _gone = self.root.wait();
    }
}

fn kill(tree: &Tree, victim: Victim) -> Outcome<Duration> {
    let victim_path = match victim {
        Victim::Actor(level) => {
            let mut paths = tree.actors.iter().map(|(path, _)| path);
            paths.find(|path| path.matches('/').count() == level).cloned().ok_or("no victim")?
        }
        Victim::Root | Victim::RootWithStoppedServer | Victim::Server => "root".to_owned(),
    };
    let killed = match victim {
        Victim::Root | Victim::RootWithStoppedServer => &tree.root_process,
        Victim::Server => &tree.server,
        Victim::Actor(_) => {
            let found = tree.actors.iter().find(|(path, _)| *path == victim_path);
            &found.ok_or("no victim")?.1
        }
    };
    if matches!(victim, Victim::RootWithStoppedServer) {
        tree.server.send_signal(libc::SIGSTOP)?;
    }
    let began = Instant::now();
    killed.send_signal(libc::SIGKILL)?;
    let below = format!("{victim_path}/");
    let mut gone: Vec<&Pidfd> = vec![killed];
    gone.extend(tree.actors.iter().filter(|(path, _)| path.starts_with(&below)).map(|(_, p)| p));
    if matches!(victim, Victim::Root | Victim::RootWithStoppedServer) {
        gone.push(&tree.server);
    }
    all_gone(&gone, began)
}

fn interrupt() -> Outcome<Duration> {
    let tree = Tree::start()?;
    interrupted(&tree)
}

/// Of a tree whose leaves must all be killed, at the end of the budget.
fn interrupt_stuck() -> Outcome<Duration> {
    let tree = Tree::start_with(&["--stuck"])?;
    interrupted(&tree)
}

/// From a SIGINT until nobody is left.
fn interrupted(tree: &Tree) -> Outcome<Duration> {
    let began = Instant::now();
    tree.root_process.send_signal(libc::SIGINT)?;
    let mut gone = vec![&tree.root_process, &tree.server];
    gone.extend(tree.actors.iter().map(|(_, process)| process));
    all_gone(&gone, began)
}

/// From a second SIGINT, on a tree that the first one can't bring down soon.
fn interrupt_twice() -> Outcome<Duration> {
    let tree = Tree::start_with(&["--stuck"])?;
    tree.root_process.send_signal(libc::SIGINT)?;
    // Long enough for it to have come everywhere, short beside the budget: those who are stuck
    // can't say that they have heard of it.
    if tree.root_process.wait_dead(Duration::from_millis(300)) {
        return Err("the first SIGINT was enough".into());
    }
    interrupted(&tree)
}

fn all_gone(processes: &[&Pidfd], began: Instant) -> Outcome<Duration> {
    for process in processes {
        if !process.wait_dead(HANG) {
            return Err("a process that had to go is still there".into());
        }
    }
    Ok(began.elapsed())
}

fn stuck(backend: &str) -> Outcome<Duration> {
    let output = Command::new("/proc/self/exe").args(["stuck", backend]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let micros = text.trim().parse().map_err(|_| String::from_utf8_lossy(&output.stderr))?;
    Ok(Duration::from_micros(micros))
}

#[hatchery::function]
async fn held(
    levels: u32,
    width: usize,
    stuck: bool,
) -> Result<Vec<(String, u32)>, hatchery::Error> {
    let (tell, told) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let nursery = hatchery::nursery(async |n| {
            // The caller has gone if the tree comes down meanwhile.
            drop(tell.send(plant(&n, levels, width, stuck).await?));
            std::future::pending::<hatchery::Result<()>>().await
        });
        drop(nursery.await);
    });
    told.await.map_err(|_| hatchery::Error::msg("the tree came down while it grew"))
}

async fn plant(
    n: &hatchery::Nursery,
    levels: u32,
    width: usize,
    stuck: bool,
) -> hatchery::Result<Vec<(String, u32)>> {
    let mut starts = JoinSet::new();
    for i in 0..width {
        let n = n.clone();
        starts.spawn(async move {
            let child: Portal = n.start(&format!("a{i}")).await?;
            let mut up = vec![(child.path().to_string(), child.pid().unwrap_or_default())];
            if levels > 1 {
                up.extend(child.call(held(levels - 1, width, stuck)).await?);
            } else if stuck {
                tokio::spawn(async move { child.call(stick()).await });
            }
            Ok::<_, hatchery::Error>(up)
        });
    }
    let mut all = Vec::new();
    while let Some(up) = starts.join_next().await {
        all.extend(up??);
    }
    Ok(all)
}

/// The root of a held tree: says who is there, then waits for its end.
pub(crate) fn hold(flat: Option<usize>, stuck: bool) -> Outcome {
    let (levels, width) = flat.map_or((3, 3), |width| (1, width));
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio.block_on(async {
        let runtime = Runtime::builder().open()?;
        let server = &runtime;
        let held = runtime.nursery(async |n| {
            for (path, pid) in plant(&n, levels, width, stuck).await? {
                println!("{path} {pid}");
            }
            println!("forkserver {}", server.forkserver_pid().unwrap_or_default());
            println!("READY");
            std::future::pending::<hatchery::Result<()>>().await
        });
        // Ended by a signal or a death.
        drop(held.await);
        runtime.close().await;
        Ok(())
    })
}

/// Never comes back to its runtime.
#[hatchery::function]
async fn stick() -> u8 {
    loop {
        std::thread::park();
    }
}

/// Prints in microseconds how long 25 stuck actors of one nursery take to go.
pub(crate) fn stuck_root(backend: &str) -> Outcome {
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    tokio.block_on(async {
        let backend = hatchery::Backend::from_name(backend).ok_or("no such backend")?;
        let runtime = Runtime::builder().backend(backend).open()?;
        let mut began = Instant::now();
        let down = runtime.nursery(async |n| {
            for i in 0..25 {
                let child = n.start(&format!("a{i}")).await?;
                let asked = child.call(stick()).within(Duration::from_millis(1)).await;
                if asked.is_ok() {
                    return Err(hatchery::Error::msg("it is not stuck"));
                }
            }
            began = Instant::now();
            Ok(())
        });
        // Forced, or abandoned: both are right here.
        drop(down.await);
        println!("{}", began.elapsed().as_micros());
        Ok(())
    })
}

/// Goal of a kill of the root of 100 actors.
const MEDIAN_GONE_OF_100: Duration = Duration::from_millis(20);
/// Goals: of kills, p50 < 30 ms and p99 ≤ 1 s.
const MEDIAN_GONE: Duration = Duration::from_millis(30);
const MEDIAN_INTERRUPTED: Duration = Duration::from_millis(50);
/// Goal of a second Ctrl-C, which waits for nobody.
const SECOND_INTERRUPT: Duration = Duration::from_millis(100);

/// Nothing takes this long unless it hangs.
const HANG: Duration = Duration::from_secs(30);
