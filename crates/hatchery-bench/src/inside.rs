//! Large messages to a thread, whose bytes stay where they are, beside the same to a process,
//! through a socket. Neither reader looks at the bytes: this is what the way costs.

use std::time::Instant;

use hatchery::{Backend, Blob, Callee, Error, Nothing, Portal, Runtime, Stdio};

use crate::cli::Extent;
use crate::figures::{Samples, Turns, float};
use crate::pin::Place;
use crate::report::{Goal, Row, Unit};
use crate::{Outcome, payload, tree};

#[hatchery::context]
async fn read_all(callee: Callee<Blob, Nothing>) -> Result<u64, Error> {
    let mut stream = callee.started(())?;
    let mut bytes = 0;
    while let Some(blob) = stream.recv().await? {
        bytes += blob.len() as u64;
    }
    Ok(bytes)
}

#[hatchery::function]
async fn length(blob: Blob) -> u64 {
    blob.len() as u64
}

pub(crate) fn measure(extent: Extent) -> Outcome {
    for place in Place::all() {
        for &size in extent.pick(&[1 << 20][..], &[1 << 16, 1 << 20, 8 << 20][..]) {
            tree::on_tokio(one_size(extent, place, size))?;
        }
    }
    Ok(())
}

async fn one_size(extent: Extent, place: Place, size: usize) -> Outcome {
    let (mut rates, mut calls) = (Turns::default(), Turns::default());
    let runtime = Runtime::builder().stdio(Stdio::Null).signals(false).open()?;
    let done = runtime
        .nursery(async |n| {
            let process = n.start("process").await?;
            let thread = n.actor("thread").backend(Backend::Thread).start().await?;
            for actor in [&process, &thread] {
                actor.call(tree::stand(place)).await?;
            }
            for turn in 0..=extent.pick(2, 9) {
                let floor = both(extent, &process, size).await?;
                let ours = both(extent, &thread, size).await?;
                // The first warms both up.
                if turn > 0 {
                    rates.turn(&floor[0], &ours[0]);
                    calls.turn(&floor[1], &ours[1]);
                }
            }
            Ok(())
        })
        .await;
    runtime.close().await;
    done?;
    let row = |what: &str, unit, turns| {
        Row::new("streams", format!("{what}, {size} bytes, to a thread, {}", place.name()), unit)
            .size(size as u64)
            .beside("to a process", turns)
    };
    let bytes = row("bytes", Unit::BytesPerSecond, &rates);
    if size < 1 << 20 { bytes } else { bytes.goal(Goal::RatioAtLeast(5.0)) }.tell();
    row("call with an argument", Unit::Seconds, &calls).tell();
    Ok(())
}

/// Bytes a second of a stream, and the time of a call.
async fn both(extent: Extent, actor: &Portal, size: usize) -> hatchery::Result<[Samples; 2]> {
    let count = (extent.pick(8 << 20, 64 << 20) / size).max(2);
    let blob = payload::bytes(size);
    let began = Instant::now();
    let opened = actor.context(read_all()).credit(4 * size as u64 + 65_536);
    let read = opened
        .run(async |mut context| {
            for _ in 0..count {
                context.send(blob.clone()).await?;
            }
            context.close().await?;
            Ok(context.result().await?)
        })
        .await?;
    let rate = float(read) / began.elapsed().as_secs_f64();
    let began = Instant::now();
    for _ in 0..count {
        actor.call(length(blob.clone())).await?;
    }
    let call = began.elapsed().as_secs_f64() / float(count as u64);
    Ok([Samples::one(rate), Samples::one(call)])
}
