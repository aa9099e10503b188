//! What a tree burns that does nothing, beyond what a runtime without actors does.

use std::time::Duration;

use hatchery::{Portal, Runtime, Stdio};

use crate::cli::Extent;
use crate::figures::Samples;
use crate::report::{Goal, Row, Unit, human};
use crate::{Outcome, crowd, proc, tree};

pub(crate) fn measure(extent: Extent) -> Outcome {
    proc::raise_fd_limit();
    let (actors, span) = extent.pick((20, 1), (1000, 10));
    let none = tree::on_tokio(one(0, actors, span))?;
    let some = tree::on_tokio(one(actors, actors, span))?;
    let share = |seconds: f64| human(seconds * 100.0, Unit::PerCent);
    let note = format!(
        "of a core; {} of it the root's, and without actors {}",
        share(some.root - none.root),
        share(none.all)
    );
    let what = format!("CPU of {actors} idle actors, their forkserver and root, over {span} s");
    let row = Row::new("idle", what, Unit::PerCent).size(actors.into());
    let row = row.alone(&Samples::one((some.all - none.all) * 100.0)).goal(Goal::AtMost(0.1));
    // What can't be read is no number, and then there is no figure.
    if some.all.is_nan() || none.all.is_nan() {
        row.note("what processes have run can't be read from /proc").tell();
    } else {
        row.note(note).tell();
    }
    Ok(())
}

/// Seconds of CPU time a second.
struct Burnt {
    root: f64,
    all: f64,
}

/// So many actors; looks at `looks` processes in any case, so that looking costs the same.
async fn one(actors: u32, looks: u32, span: u32) -> Outcome<Burnt> {
    let runtime = Runtime::builder().stdio(Stdio::Null).signals(false).open()?;
    let burnt = runtime
        .nursery(async |n| {
            let portals = crowd::up(&n, actors).await?;
            crowd::call(&portals).await?;
            let mut pids: Vec<u32> = portals.iter().filter_map(Portal::pid).collect();
            // There is none before the first actor.
            pids.extend(runtime.forkserver_pid());
            let all = || {
                (actors..looks).for_each(|_| {
                    std::hint::black_box(proc::run_time(std::process::id()));
                });
                pids.iter().map(|pid| proc::run_time(*pid)).sum::<f64>()
            };
            let own = || proc::run_time(std::process::id());
            // What each does once, after its first call, is over.
            tokio::time::sleep(Duration::from_millis(500)).await;
            // Looking at all costs this process milliseconds: its own time is read after that, and
            // before the second look.
            let others = all();
            let before = own();
            // Idling is what is measured: there is no event to wait for.
            tokio::time::sleep(Duration::from_secs(span.into())).await;
            let root = own() - before;
            let others = all() - others;
            let each = |seconds: f64| seconds / f64::from(span);
            Ok(Burnt { root: each(root), all: each(root + others) })
        })
        .await?;
    runtime.close().await;
    Ok(burnt)
}
