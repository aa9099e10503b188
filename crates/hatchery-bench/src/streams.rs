//! One-way streams between two processes, beside a bare tokio Unix socket that is fed the same
//! bytes in the same batches, encoded beforehand.

use std::time::Instant;

use hatchery::Blob;
use hatchery::{Callee, Error, Nothing, Portal};

use crate::cli::Extent;
use crate::figures::{Samples, Turns, float};
use crate::payload::{self, Block};
use crate::pin::Place;
use crate::report::{Goal, Row, Unit};
use crate::sockets::Bare;
use crate::worker::Mode;
use crate::{Outcome, tree};

/// Reads small messages to the end; says how many.
#[hatchery::context]
async fn read_blocks(callee: Callee<Block, Nothing>) -> Result<u64, Error> {
    let mut stream = callee.started(())?;
    let mut count = 0;
    while let Some(Block(_)) = stream.recv().await? {
        count += 1;
    }
    Ok(count)
}

/// The same for bytes.
#[hatchery::context]
async fn read_bytes(callee: Callee<Blob, Nothing>) -> Result<u64, Error> {
    let mut stream = callee.started(())?;
    let mut count = 0;
    while stream.recv().await?.is_some() {
        count += 1;
    }
    Ok(count)
}

pub(crate) fn measure(extent: Extent) -> Outcome {
    Place::One.here()?;
    let sizes: &[usize] =
        extent.pick(&[64, 65_536], &[16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576]);
    for place in Place::all() {
        for &size in sizes {
            tree::on_tokio(one_size(extent, place, size))?;
        }
    }
    Ok(())
}

async fn one_size(extent: Extent, place: Place, size: usize) -> Outcome {
    let budget = extent.pick(2 << 20, 64 << 20);
    let (batch, each) = payload::frames(size, BATCH);
    let batches = (budget / batch.len()).clamp(1, extent.pick(10_000, 400_000) / each + 1) as u64;
    let count = batches * each as u64;
    let mut bare = Bare::start(Mode::Drain, place)?;
    let turns = tree::with_actor(place, async |actor| {
        let mut turns = Turns::default();
        for turn in 0..=extent.pick(2, 15) {
            let began = Instant::now();
            bare.one_way(&batch, batches).await?;
            let floor = Samples::one(float(count) / began.elapsed().as_secs_f64());
            let began = Instant::now();
            send(&actor, size, count).await?;
            let ours = Samples::one(float(count) / began.elapsed().as_secs_f64());
            // The first warms both up.
            if turn > 0 {
                turns.turn(&floor, &ours);
            }
        }
        Ok(turns)
    })
    .await?;
    bare.end()?;
    let row = |what: &str, unit| {
        Row::new("streams", format!("{what} of {size} bytes, {}", place.name()), unit)
            .size(size as u64)
    };
    let messages = row("messages", Unit::PerSecond).beside("bare batches", &turns);
    match size {
        64 => messages.goal(Goal::AtLeast(1.5e6)).goal(Goal::RatioAtLeast(0.75)),
        65_536 => messages.goal(Goal::RatioAtLeast(0.8)),
        _ => messages,
    }
    .tell();
    row("bytes", Unit::BytesPerSecond)
        .beside("bare batches", &turns.scaled(float(size as u64)))
        .tell();
    Ok(())
}

async fn send(actor: &Portal, size: usize, count: u64) -> Outcome {
    let read = if size == 64 {
        let open = actor.open_context(read_blocks(), async |mut context| {
            for _ in 0..count {
                context.send(Block([7; 64])).await?;
            }
            context.close().await?;
            Ok(context.result().await?)
        });
        open.await?
    } else {
        let message = payload::bytes(size);
        let open = actor.open_context(read_bytes(), async |mut context| {
            for _ in 0..count {
                context.send(message.clone()).await?;
            }
            context.close().await?;
            Ok(context.result().await?)
        });
        open.await?
    };
    if read == count { Ok(()) } else { Err(format!("{read} of {count} messages").into()) }
}

/// What hatchery writes at once, if messages are not larger.
const BATCH: usize = 32 * 1024;
