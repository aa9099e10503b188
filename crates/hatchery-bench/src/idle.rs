//! What a tree burns that does nothing.

use std::time::Duration;

use hatchery::{Portal, Runtime, Stdio};

use crate::cli::Extent;
use crate::figures::{Samples, float};
use crate::report::{Goal, Row, Unit, human};
use crate::{Outcome, crowd, proc, tree};

pub(crate) fn measure(extent: Extent) -> Outcome {
    proc::raise_fd_limit();
    let (actors, span) = extent.pick((20, 1), (1000, 10));
    tree::on_tokio(one(actors, Duration::from_secs(span)))
}

async fn one(actors: u32, span: Duration) -> Outcome {
    let runtime = Runtime::builder().stdio(Stdio::Null).signals(false).open()?;
    let forkserver = runtime.forkserver_pid();
    let (mut served, mut burnt) = (0.0, 0.0);
    runtime
        .nursery(async |n| {
            let portals = crowd::up(&n, actors).await?;
            crowd::call(&portals).await?;
            let mut pids: Vec<u32> = portals.iter().filter_map(Portal::pid).collect();
            pids.extend(forkserver);
            let all = || pids.iter().map(|pid| proc::run_time(*pid)).sum::<f64>();
            let own = || proc::run_time(std::process::id());
            // What each does once, after its first call, is over.
            tokio::time::sleep(Duration::from_millis(500)).await;
            // Looking at all costs this process milliseconds: its own time is read after that, and
            // before the second look.
            let others = all();
            let before = own();
            // Idling is what is measured: there is no event to wait for.
            tokio::time::sleep(span).await;
            served = own() - before;
            burnt = served + all() - others;
            Ok(())
        })
        .await?;
    runtime.close().await;
    let what = format!("CPU time of {actors} idle actors and their root, a second");
    Row::new("idle", what, Unit::Seconds)
        .size(actors.into())
        .alone(&Samples::one(burnt / float(span.as_secs())))
        .goal(Goal::AtMost(1e-3))
        .note(format!("{} of it the root's", human(served / float(span.as_secs()), Unit::Seconds)))
        .tell();
    Ok(())
}
