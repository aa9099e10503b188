//! Large messages between processes: in shared memory that is passed on, or copied into it by the
//! threshold of the configuration, beside the same through the socket; and typed ones to a thread.

use std::time::Instant;

use hatchery::{Blob, BlobBuffer, BlobError, Config, Nursery, Portal, Runtime, Stdio};

use crate::cli::Extent;
use crate::figures::{Samples, Turns, float};
use crate::pin::Place;
use crate::report::{Goal, Row, Unit};
use crate::{Outcome, payload, tree};

mod typed;

/// Looks at nothing.
#[hatchery::function]
async fn length(blob: Blob) -> u64 {
    blob.len() as u64
}

/// Looks at every byte.
#[hatchery::function]
async fn sum(blob: Blob) -> u64 {
    blob.as_chunks().0.iter().fold(0, |sum, word| sum ^ u64::from_ne_bytes(*word))
}

pub(crate) fn measure(extent: Extent) -> Outcome {
    let sizes: &[usize] = extent.pick(&[1 << 20], &[1 << 20, 16 << 20, 256 << 20, 1 << 30]);
    for place in Place::all() {
        place.here()?;
        for &size in sizes {
            match fresh(size) {
                Ok(shared) => tree::on_tokio(blobs(extent, place, shared))?,
                Err(error) => missing(place, size, &error),
            }
        }
        typed::measure(extent, place)?;
    }
    Ok(())
}

/// One whose messages may be as large as any here.
fn runtime(config: Config) -> Outcome<Runtime> {
    let config = Config { max_frame_bytes: (1 << 30) + (1 << 20), ..config };
    Ok(Runtime::builder().config(config).stdio(Stdio::Null).signals(false).open()?)
}

/// How a blob goes to the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Written before, the same each time.
    PassedOn,
    /// Made and written for each call.
    Anew,
    /// Not in shared memory: hatchery copies it there, since it is over the threshold.
    Threshold,
}

/// Ways, and whether the other side reads every byte.
const WAYS: [(Way, bool, &str); 5] = [
    (Way::PassedOn, false, "passed on"),
    (Way::PassedOn, true, "passed on and read as a whole"),
    (Way::Anew, true, "written anew and read as a whole"),
    (Way::Threshold, false, "over the threshold"),
    (Way::Threshold, true, "over the threshold and read as a whole"),
];

/// Blobs of that one's size.
async fn blobs(extent: Extent, place: Place, shared: Blob) -> Outcome {
    let size = shared.len();
    let count = if size > 100 << 20 { 3 } else { extent.pick(2, 9) };
    let calls = (extent.pick(4 << 20, 64 << 20) / size).clamp(1, 50);
    let copies = Config { memfd_from_bytes: Some(size), ..Config::default() };
    let (plain, copying) = (runtime(Config::default())?, runtime(copies)?);
    let mut all = <[Turns; WAYS.len()]>::default();
    let done = plain.nursery(async |n| {
        let process = start(&n, place).await?;
        let within = copying.nursery(async |n| {
            let copied = start(&n, place).await?;
            let socket = payload::bytes(size);
            for turn in 0..=count {
                let floor = [
                    rate(&process, &|| Ok(socket.clone()), calls, false).await?,
                    rate(&process, &|| Ok(socket.clone()), calls, true).await?,
                ];
                for ((way, read, _), turns) in WAYS.into_iter().zip(&mut all) {
                    let ours = match way {
                        Way::PassedOn => {
                            rate(&process, &|| Ok(shared.clone()), calls, read).await?
                        }
                        Way::Anew => rate(&process, &|| fresh(size), calls, read).await?,
                        Way::Threshold => {
                            rate(&copied, &|| Ok(socket.clone()), calls, read).await?
                        }
                    };
                    // The first warms both up.
                    if turn > 0 {
                        turns.turn(&floor[usize::from(read)], &ours);
                    }
                }
            }
            Ok(())
        });
        Ok(within.await?)
    });
    let done = done.await;
    copying.close().await;
    plain.close().await;
    done?;
    for ((way, read, name), turns) in WAYS.into_iter().zip(&all) {
        let row = row(place, size, name).beside("through the socket", turns);
        let is_goal = way == Way::PassedOn && !read;
        if is_goal { row.goal(Goal::RatioAtLeast(5.0)) } else { row }.tell();
    }
    Ok(())
}

async fn start(n: &Nursery, place: Place) -> hatchery::Result<Portal> {
    let actor = n.start("process").await?;
    actor.call(tree::stand(place)).await?;
    Ok(actor)
}

fn row(place: Place, size: usize, way: &str) -> Row {
    let what = format!("call with a blob of {size} bytes, {way}, {}", place.name());
    Row::new("large", what, Unit::BytesPerSecond).size(size as u64)
}

/// What can't be had is no rate.
fn missing(place: Place, size: usize, why: &BlobError) {
    for (_, _, name) in WAYS {
        row(place, size, name).note(why.to_string()).tell();
    }
}

/// Shared memory with something in it.
fn fresh(size: usize) -> Result<Blob, BlobError> {
    let mut buffer = BlobBuffer::zeroed(size)?;
    buffer.fill(7);
    buffer.seal()
}

async fn rate(
    actor: &Portal,
    blob: &dyn Fn() -> Result<Blob, BlobError>,
    calls: usize,
    read: bool,
) -> hatchery::Result<Samples> {
    let (mut bytes, began) = (0, Instant::now());
    for _ in 0..calls {
        let blob = blob()?;
        bytes += blob.len() as u64;
        if read {
            actor.call(sum(blob)).await?;
        } else {
            actor.call(length(blob)).await?;
        }
    }
    Ok(Samples::one(float(bytes) / began.elapsed().as_secs_f64()))
}
