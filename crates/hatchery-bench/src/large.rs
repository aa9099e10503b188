//! Large messages between processes: in shared memory that is passed on, beside the same through the
//! socket; and typed ones to a thread: handed over, shared or moved, beside the same encoded.

use std::time::Instant;

use hatchery::{
    Backend, Blob, BlobBuffer, Callee, Config, Error, Nothing, Nursery, Portal, Runtime, Shared,
    Stdio,
};

use crate::cli::Extent;
use crate::figures::{Samples, Turns, float};
use crate::pin::Place;
use crate::report::{Goal, Row, Unit};
use crate::{Outcome, payload, tree};

/// Looks at nothing.
#[hatchery::function]
async fn length(blob: Blob) -> u64 {
    blob.len() as u64
}

/// Looks at every byte.
#[hatchery::function]
async fn sum(blob: Blob) -> u64 {
    blob.chunks_exact(8).fold(0, |sum, word| {
        let word = word.first_chunk().copied().map_or(0, u64::from_ne_bytes);
        sum ^ word
    })
}

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

pub(crate) fn measure(extent: Extent) -> Outcome {
    let sizes: &[usize] = extent.pick(&[1 << 20], &[1 << 20, 16 << 20, 256 << 20, 1 << 30]);
    for &size in sizes {
        tree::on_tokio(blobs(extent, size))?;
    }
    for &count in extent.pick(&[1_000][..], &[4, 16, 64, 1_000, 30_000][..]) {
        tree::on_tokio(typed(extent, count))?;
    }
    Ok(())
}

fn runtime(move_from_bytes: Option<usize>) -> Outcome<Runtime> {
    let max_frame_bytes = (1 << 30) + (1 << 20);
    let config = Config { max_frame_bytes, move_from_bytes, ..Config::default() };
    Ok(Runtime::builder().config(config).stdio(Stdio::Null).signals(false).open()?)
}

async fn blobs(extent: Extent, size: usize) -> Outcome {
    let turns = if size > 100 << 20 { 3 } else { extent.pick(2, 9) };
    let calls = (extent.pick(4 << 20, 64 << 20) / size).clamp(1, 50);
    let runtime = runtime(None)?;
    let mut all = <[Turns; 3]>::default();
    let done = runtime
        .nursery(async |n| {
            let process = n.start("process").await?;
            process.call(tree::stand(Place::One)).await?;
            let socket = payload::bytes(size);
            let shared = fresh(size);
            for turn in 0..=turns {
                let floor = [
                    rate(&process, &|| socket.clone(), calls, false).await?,
                    rate(&process, &|| socket.clone(), calls, true).await?,
                ];
                let ours = [
                    rate(&process, &|| shared.clone(), calls, false).await?,
                    rate(&process, &|| shared.clone(), calls, true).await?,
                    rate(&process, &|| fresh(size), calls, true).await?,
                ];
                // The first warms both up.
                if turn > 0 {
                    all[0].turn(&floor[0], &ours[0]);
                    all[1].turn(&floor[1], &ours[1]);
                    all[2].turn(&floor[1], &ours[2]);
                }
            }
            Ok(())
        })
        .await;
    runtime.close().await;
    done?;
    let ways = ["passed on", "passed on and read as a whole", "written anew and read as a whole"];
    for (way, turns) in ways.into_iter().zip(&all) {
        let what = format!("call with shared memory of {size} bytes, {way}, one core");
        let row = Row::new("large", what, Unit::BytesPerSecond).size(size as u64);
        let row = row.beside("through the socket", turns);
        if way == "passed on" { row.goal(Goal::RatioAtLeast(5.0)) } else { row }.tell();
    }
    Ok(())
}

/// Shared memory with something in it.
fn fresh(size: usize) -> Blob {
    let written = BlobBuffer::zeroed(size).and_then(|mut buffer| {
        buffer.fill(7);
        buffer.seal()
    });
    // What can't be had shows as an absurd rate rather than as none.
    written.unwrap_or_default()
}

async fn rate(
    actor: &Portal,
    blob: &dyn Fn() -> Blob,
    calls: usize,
    read: bool,
) -> hatchery::Result<Samples> {
    let (mut bytes, began) = (0, Instant::now());
    for _ in 0..calls {
        let blob = blob();
        bytes += blob.len() as u64;
        if read {
            actor.call(sum(blob)).await?;
        } else {
            actor.call(length(blob)).await?;
        }
    }
    Ok(Samples::one(float(bytes) / began.elapsed().as_secs_f64()))
}

/// Typed values to a thread, encoded and beside that handed over: shared, moved, in a stream.
async fn typed(extent: Extent, count: u64) -> Outcome {
    let rows: Rows = (0..count).map(|row| (row, format!("row {row}"))).collect();
    let length = rmp_serde::to_vec(&rows)?.len() as u64;
    let calls = (extent.pick(1 << 16, 4 << 20) / length).clamp(10, 2_000);
    let (plain, moving) = (runtime(None)?, runtime(Some(0))?);
    let mut all = <[Turns; 3]>::default();
    let thread = |n: &Nursery| n.actor("thread").backend(Backend::Thread).start();
    let done = plain
        .nursery(async |n| {
            let encodes = thread(&n).await?;
            let inside = moving.nursery(async |n| {
                let moves = thread(&n).await?;
                for actor in [&encodes, &moves] {
                    actor.call(tree::stand(Place::One)).await?;
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
