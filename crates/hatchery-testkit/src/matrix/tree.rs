//! The actors of the matrix's trees: they grow, hold, and err where they are told.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hatchery::{CallError, Error, Fault, Nursery, Portal, nursery};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::axis::Load;
use super::load::Busy;

/// What an actor of the tree is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) breadth: u32,
    pub(super) leaves: Leaves,
    pub(super) load: Load,
    /// See [`pause`](super::load::pause).
    pub(super) pause: Duration,
}

/// What the leaves do as soon as they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Leaves {
    /// Nothing.
    Hold,
    /// The first one errs.
    FirstErrs,
    /// All err.
    AllErr,
    /// They hold, and the first actor below the root errs.
    MiddleErrs,
}

/// The error of a leaf or a middle.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{who} errs as told")]
pub(super) struct AsTold {
    pub(super) who: String,
}

/// An actor that is up: its path and process.
pub(super) type Up = (String, u32);

/// Grows `depth` levels below this actor, keeps them, and says who they are when all are up.
#[hatchery::function]
pub(super) async fn grow(depth: u32, plan: Plan) -> Result<Vec<Up>, Error> {
    let (tell, told) = oneshot::channel();
    let path = hatchery::path().to_string();
    let (ended, held) = oneshot::channel();
    let (go, gone) = oneshot::channel();
    tokio::spawn(async move {
        let mut watching = Watching::default();
        let mut result = nursery(async |n| {
            let (children, up) = plant(&n, depth, plan).await?;
            let busy = Busy::begin(plan.load, plan.pause, &children).await?;
            // The caller has gone if the tree comes down meanwhile.
            drop(tell.send(up));
            // Nobody errs before the whole tree is up; a dropped gate means that it comes down.
            if gone.await.is_err() {
                std::future::pending::<()>().await;
            }
            watching.watch(children, depth, plan, busy).await
        })
        .await
        .map_err(Error::from);
        if plan.leaves == Leaves::AllErr
            && let Err(error) = result
        {
            result = Err(watching.all_told(error).await);
        }
        // Nobody holds it under triggers that come from above.
        drop(ended.send(result));
    });
    HELD.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone(), Held { go, held });
    match told.await {
        Ok(up) => Ok(up),
        Err(_) => {
            held_by(&path).await?;
            Err(Error::msg("the tree came down while it grew"))
        }
    }
}

/// Stays until what this actor has grown comes down, and says how it did.
#[hatchery::function]
pub(super) async fn hold(errs: bool) -> Result<(), Error> {
    let path = hatchery::path().to_string();
    if errs {
        return Err(AsTold { who: path }.into());
    }
    held_by(&path).await
}

async fn held_by(path: &str) -> Result<(), Error> {
    let held = HELD.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
    match held {
        Some(Held { go, held }) => {
            // Its nursery has gone already if it failed.
            let _gone = go.send(());
            held.await.unwrap_or(Ok(()))
        }
        None => std::future::pending().await,
    }
}

/// Starts the children of one actor, each with what is below it.
pub(super) async fn plant(
    n: &Nursery,
    depth: u32,
    plan: Plan,
) -> hatchery::Result<(Vec<Portal>, Vec<Up>)> {
    let mut starts = JoinSet::new();
    for i in 0..plan.breadth {
        let n = n.clone();
        starts.spawn(async move {
            let child = n.start(&format!("a{i}")).await?;
            let pid = child.pid().unwrap_or_else(std::process::id);
            let mut up = vec![(child.path().to_string(), pid)];
            if depth > 1 {
                up.extend(child.call(grow(depth - 1, plan)).await?);
            }
            Ok::<_, Error>((child, up))
        });
    }
    let (mut children, mut all) = (Vec::new(), Vec::new());
    while let Some(started) = starts.join_next().await {
        let (child, up) = started??;
        children.push(child);
        all.extend(up);
    }
    // In the order of their paths, so that "the first" is the same one to everybody.
    all.sort();
    children.sort_by(|a, b| a.path().cmp(b.path()));
    Ok((children, all))
}

/// One actor's wait for its children. It outlives the actor's nursery, to hear what all were told.
#[derive(Default)]
pub(super) struct Watching {
    holding: JoinSet<Result<(), CallError<Error>>>,
}

impl Watching {
    /// Lets the children do what the plan says and waits for the first one that comes down with an
    /// error, or for a load that fails; never ends otherwise.
    pub(super) async fn watch(
        &mut self,
        children: Vec<Portal>,
        depth: u32,
        plan: Plan,
        mut busy: Busy,
    ) -> hatchery::Result<()> {
        for (at, child) in children.into_iter().enumerate() {
            let is_leaf = depth <= 1;
            let is_first = |name| name == "a0";
            let first = at == 0 && child.path().as_str().split('/').skip(1).all(is_first);
            let errs = match plan.leaves {
                Leaves::Hold => false,
                Leaves::FirstErrs => is_leaf && first,
                Leaves::AllErr => is_leaf,
                Leaves::MiddleErrs => at == 0 && child.path().depth() == 1,
            };
            self.holding.spawn(async move { child.call(hold(errs)).await });
        }
        let held = async {
            while let Some(held) = self.holding.join_next().await {
                held??;
            }
            std::future::pending().await
        };
        tokio::select! {
            held = held => held,
            error = busy.failed() => Err(error),
        }
    }

    /// Once the nursery has returned `first`: that, and what became of every other child. None is
    /// left out: a child that did not come to its error was cancelled, and says so.
    pub(super) async fn all_told(mut self, first: Error) -> Error {
        let id = first.fault().id;
        let mut faults = vec![first.into_fault()];
        while let Some(held) = self.holding.join_next().await {
            match held {
                Ok(Ok(())) => {}
                Ok(Err(error)) => faults.push(Error::from(error).into_fault()),
                Err(panic) => faults.push(Error::from(panic).into_fault()),
            }
        }
        // Two groups of one actor never meet, so this id names it well enough.
        let group = Fault::group(!id, hatchery::path(), faults);
        group.map_or_else(|| Error::msg("nothing was told"), Error::from)
    }
}

/// What one actor has grown.
struct Held {
    /// Lets the levels below do what the plan says.
    go: oneshot::Sender<()>,
    /// How its nursery came out.
    held: oneshot::Receiver<Result<(), Error>>,
}

/// What the actors of this process have grown; threads share a process, so by path.
static HELD: Mutex<BTreeMap<String, Held>> = Mutex::new(BTreeMap::new());
