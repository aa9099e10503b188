//! Typed values to a thread, encoded and beside that handed over: shared, moved, in a stream.

use std::time::Instant;

use hatchery::{Backend, Callee, Config, Error, Nothing, Nursery, Portal, Shared};

use super::runtime;
use crate::cli::Extent;
use crate::figures::{Samples, Turns, float};
use crate::pin::Place;
use crate::report::{Row, Unit};
use crate::{Outcome, tree};

type Rows = Vec<(u64, String)>;

#[hatchery::function]
async fn count(rows: Rows) -> usize {
    rows.len()
}

#[hatchery::function]
async fn count_shared(rows: Shared<Rows>) -> usize {
    rows.len()
}

#[hatchery::context]
async fn count_all(callee: Callee<Rows, Nothing>) -> Result<usize, Error> {
    let mut stream = callee.started(())?;
    let mut count = 0;
    while let Some(rows) = stream.recv().await? {
        count += rows.len();
    }
    Ok(count)
}

pub(super) fn measure(extent: Extent, place: Place) -> Outcome {
    for &count in extent.pick(&[1_000][..], &[4, 16, 64, 1_000, 30_000][..]) {
        tree::on_tokio(typed(extent, place, count))?;
    }
    Ok(())
}

async fn typed(extent: Extent, place: Place, count: u64) -> Outcome {
    let rows: Rows = (0..count).map(|row| (row, format!("row {row}"))).collect();
    let length = rmp_serde::to_vec(&rows)?.len() as u64;
    let calls = (extent.pick(1 << 16, 4 << 20) / length).clamp(10, 2_000);
    let (plain, moving) = (
        runtime(Config::default())?,
        runtime(Config { move_from_bytes: Some(0), ..Config::default() })?,
    );
    let mut all = <[Turns; 3]>::default();
    let thread = |n: &Nursery| n.actor("thread").backend(Backend::Thread).start();
    let done = plain
        .nursery(async |n| {
            let encodes = thread(&n).await?;
            let inside = moving.nursery(async |n| {
                let moves = thread(&n).await?;
                for actor in [&encodes, &moves] {
                    actor.call(tree::stand(place)).await?;
                }
                for turn in 0..=extent.pick(2, 9) {
                    let encoded = called(&encodes, &rows, calls).await?;
                    let ours = [
                        called_shared(&encodes, &rows, calls).await?,
                        called(&moves, &rows, calls).await?,
                    ];
                    let streamed = streamed(&encodes, &rows, calls).await?;
                    let moved = self::streamed(&moves, &rows, calls).await?;
                    // The first warms all up.
                    if turn > 0 {
                        all[0].turn(&encoded, &ours[0]);
                        all[1].turn(&encoded, &ours[1]);
                        all[2].turn(&streamed, &moved);
                    }
                }
                Ok(())
            });
            Ok(inside.await?)
        })
        .await;
    moving.close().await;
    plain.close().await;
    done?;
    let ways = ["call with {}, shared", "call with {}, moved", "stream of {}, moved"];
    for (way, turns) in ways.into_iter().zip(&all) {
        let what = way.replace("{}", &format!("a typed value of {length} bytes to a thread"));
        let what = format!("{what}, {}", place.name());
        let row = Row::new("large", what, Unit::Seconds).size(length);
        row.beside("encoded", turns).tell();
    }
    Ok(())
}

/// What one call takes, the making of its value included.
async fn called(actor: &Portal, rows: &Rows, calls: u64) -> hatchery::Result<Samples> {
    let began = Instant::now();
    for _ in 0..calls {
        actor.call(count(rows.clone())).await?;
    }
    Ok(Samples::one(began.elapsed().as_secs_f64() / float(calls)))
}

async fn called_shared(actor: &Portal, rows: &Rows, calls: u64) -> hatchery::Result<Samples> {
    let began = Instant::now();
    for _ in 0..calls {
        // Made anew, as the others are.
        actor.call(count_shared(Shared::new(rows.clone()))).await?;
    }
    Ok(Samples::one(began.elapsed().as_secs_f64() / float(calls)))
}

async fn streamed(actor: &Portal, rows: &Rows, messages: u64) -> hatchery::Result<Samples> {
    let began = Instant::now();
    let opened = actor.context(count_all()).run(async |mut context| {
        for _ in 0..messages {
            context.send(rows.clone()).await?;
        }
        context.close().await?;
        Ok(context.result().await?)
    });
    opened.await?;
    Ok(Samples::one(began.elapsed().as_secs_f64() / float(messages)))
}
