//! What comes and goes in one process for ever: nursery after nursery, actor after actor in one
//! nursery. Nothing is struck here; what is looked for is what each leaves (C21).

use std::fmt;
use std::sync::RwLock;
use std::time::{Duration, Instant};

use hatchery::{Backend, Config, Error, Nursery, Runtime};
use serde::{Deserialize, Serialize};

use super::curve::{Curve, Held, Sample};
use super::tree::work;

/// What is done again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cycle {
    /// A nursery is opened, an actor started and called, and all is over.
    Nurseries,
    /// In one nursery an actor is started, called and cancelled, always under the same name.
    Starts,
    /// In one nursery a one-shot actor runs.
    Runs,
}

impl Cycle {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nurseries, Self::Starts, Self::Runs];
}

/// What many cycles of one kind have left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cycled {
    /// Of which kind.
    pub cycle: Cycle,
    /// How the actors were brought to life.
    pub backend: String,
    /// What root and forkserver held meanwhile.
    pub curve: Curve,
    /// What grew.
    pub grown: Vec<String>,
    /// What failed, and ended it before its time.
    pub failed: Option<String>,
}

impl Cycled {
    /// Whether all went well and nothing grew.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.failed.is_none() && self.grown.is_empty()
    }
}

impl fmt::Display for Cycled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.curve.0.last().map_or(0, |last| last.actors);
        writeln!(f, "{:?}, {}: {count} cycles", self.cycle, self.backend)?;
        write!(f, "{}", self.curve)?;
        for grown in &self.grown {
            writeln!(f, "GREW {grown}")?;
        }
        self.failed.iter().try_for_each(|failed| writeln!(f, "FAILED {failed}"))
    }
}

/// Goes through that many cycles in a runtime of its own and looks 64 times at what is
/// held. Outputs are relayed, as by default.
pub async fn cycled(cycle: Cycle, backend: Backend, count: u64) -> Cycled {
    open_arenas();
    let name = backend.name().to_owned();
    let mut cycling = Cycling { begun: Instant::now(), count, curve: Curve::default(), server: 0 };
    let failed = match Runtime::builder().backend(backend).config(roomy()).signals(false).open() {
        Ok(runtime) => {
            let ended = cycling.go(cycle, &runtime).await;
            runtime.close().await;
            ended.err()
        }
        Err(error) => Some(error.to_string()),
    };
    let (curve, grown) = (cycling.curve.clone(), cycling.curve.grown());
    Cycled { cycle, backend: name, curve, grown, failed }
}

/// Has the allocator open all the arenas that it will ever have, as it keeps them: glibc gives each
/// thread one of its own until there are eight for each processor, and which cycle has the most threads
/// at a time is chance.
fn open_arenas() {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let gate = RwLock::new(());
    let closed = gate.write();
    std::thread::scope(|scope| {
        for _ in 0..8 * processors {
            // Where there is no thread to be had there will be no arena either.
            let _none = std::thread::Builder::new().spawn_scoped(scope, || {
                drop(std::hint::black_box(Box::new([0_u8; 64])));
                // Until all of them are there.
                drop(gate.read());
            });
        }
        drop(closed);
    });
}

struct Cycling {
    begun: Instant,
    count: u64,
    curve: Curve,
    server: u32,
}

impl Cycling {
    async fn go(&mut self, cycle: Cycle, runtime: &Runtime) -> Result<(), String> {
        let ended = match cycle {
            Cycle::Nurseries => self.nurseries(runtime).await,
            Cycle::Starts => runtime.nursery(async |n| self.starts(runtime, &n).await).await,
            Cycle::Runs => runtime.nursery(async |n| self.runs(runtime, &n).await).await,
        };
        ended.map_err(|error| error.render())
    }

    async fn nurseries(&mut self, runtime: &Runtime) -> Result<(), hatchery::ScopeError> {
        for at in 0..self.count {
            let once = runtime.nursery(async |n| Ok(n.start("w").await?.call(work(at)).await?));
            once.await?;
            self.look(at, runtime).await;
        }
        Ok(())
    }

    async fn starts(&mut self, runtime: &Runtime, n: &Nursery) -> Result<(), Error> {
        for at in 0..self.count {
            let actor = n.start("w").await?;
            actor.call(work(at)).await?;
            actor.cancel();
            actor.settled().await;
            self.look(at, runtime).await;
        }
        Ok(())
    }

    async fn runs(&mut self, runtime: &Runtime, n: &Nursery) -> Result<(), Error> {
        for at in 0..self.count {
            n.run(&format!("w{at}"), work(at)).await?;
            self.look(at, runtime).await;
        }
        Ok(())
    }

    async fn look(&mut self, at: u64, runtime: &Runtime) {
        let step = (self.count / SAMPLES).max(1);
        if at % step != step - 1 {
            return;
        }
        self.server = runtime.forkserver_pid().unwrap_or(0);
        let root = self.root_at_rest().await;
        self.curve.0.push(Sample {
            at_ms: u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            actors: at + 1,
            server_pid: self.server,
            root,
            server: if self.server == 0 { Held::default() } else { Held::by(self.server) },
        });
    }
}

impl Cycling {
    /// What the root holds when the last cycle is over: the relay reads what an actor has left in its
    /// pipes after that has been told of, with fds and a thread of its own. The least that was ever held
    /// is waited for; where it does not come any more, what is held is taken for grown.
    async fn root_at_rest(&self) -> Held {
        let least = |of: fn(&Held) -> usize| self.curve.0.iter().map(|one| of(&one.root)).min();
        let (fds, threads) = (least(|held| held.fds), least(|held| held.threads));
        let until = Instant::now() + REST;
        loop {
            let held = Held::by(std::process::id());
            let is_least = fds.is_none_or(|least| held.fds <= least)
                && threads.is_none_or(|least| held.threads <= least);
            if is_least || Instant::now() > until {
                return held;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// How long a root may take to come to rest after a cycle.
const REST: Duration = Duration::from_millis(250);

/// Nobody is forced because the machine is busy.
fn roomy() -> Config {
    Config::with_budget(Duration::from_secs(30))
}

/// How often it is looked.
const SAMPLES: u64 = 64;
