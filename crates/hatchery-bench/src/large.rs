//! Large messages between processes: in shared memory that is passed on, beside the same through the
//! socket; and typed ones to a thread: handed over, beside the same encoded.

use std::time::Instant;

use hatchery::{Backend, Blob, BlobBuffer, Config, Portal, Runtime, Shared, Stdio};

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

pub(crate) fn measure(extent: Extent) -> Outcome {
    let sizes: &[usize] = extent.pick(&[1 << 20], &[1 << 20, 16 << 20, 256 << 20, 1 << 30]);
    for &size in sizes {
        tree::on_tokio(blobs(extent, size))?;
    }
    tree::on_tokio(typed(extent))
}

fn runtime() -> Outcome<Runtime> {
    let config = Config { max_frame_bytes: (1 << 30) + (1 << 20), ..Config::default() };
    Ok(Runtime::builder().config(config).stdio(Stdio::Null).signals(false).open()?)
}

async fn blobs(extent: Extent, size: usize) -> Outcome {
    let turns = if size > 100 << 20 { 3 } else { extent.pick(2, 9) };
    let calls = (extent.pick(4 << 20, 64 << 20) / size).clamp(1, 50);
    let runtime = runtime()?;
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

async fn typed(extent: Extent) -> Outcome {
    let rows: Rows =
        (0..extent.pick(1_000, 30_000)).map(|row| (row, format!("row {row}"))).collect();
    let length = rmp_serde::to_vec(&rows)?.len() as u64;
    let runtime = runtime()?;
    let mut rates = Turns::default();
    let done = runtime
        .nursery(async |n| {
            let thread = n.actor("thread").backend(Backend::Thread).start().await?;
            thread.call(tree::stand(Place::One)).await?;
            for turn in 0..=extent.pick(2, 9) {
                let calls = 10;
                let began = Instant::now();
                for _ in 0..calls {
                    thread.call(count(rows.clone())).await?;
                }
                let encoded = began.elapsed();
                let began = Instant::now();
                for _ in 0..calls {
                    // Made anew, as the other is.
                    thread.call(count_shared(Shared::new(rows.clone()))).await?;
                }
                let rate = |span: std::time::Duration| {
                    Samples::one(float(length * calls) / span.as_secs_f64())
                };
                if turn > 0 {
                    rates.turn(&rate(encoded), &rate(began.elapsed()));
                }
            }
            Ok(())
        })
        .await;
    runtime.close().await;
    done?;
    let what = format!("call with a typed value of {length} bytes to a thread, handed over");
    let row = Row::new("large", what, Unit::BytesPerSecond).size(length);
    row.beside("encoded", &rates).tell();
    Ok(())
}
