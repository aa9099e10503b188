//! One-way streams between two processes, beside a bare tokio Unix socket that is fed the same
//! bytes in the same batches, encoded beforehand.

use std::time::Instant;

use hatchery::{Blob, Callee, Error, Nothing, Portal};

use crate::cli::Extent;
use crate::figures::{Samples, Turns, float};
use crate::payload::{self, Block};
use crate::pin::Place;
use crate::report::{Goal, Row, Unit};
use crate::sockets::Bare;
use crate::worker::Mode;
use crate::{Outcome, proc, tree};

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
    crate::heavy::copies(extent);
    let sizes: &[usize] =
        extent.pick(&[64, 65_536], &[16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576]);
    let only = extent.size.map(|size| vec![size]);
    let sizes = only.as_deref().unwrap_or(sizes);
    for place in Place::all() {
        for &size in sizes {
            tree::on_tokio(one_size(extent, place, size))?;
        }
    }
    if only.is_none() { crate::inside::measure(extent) } else { Ok(()) }
}

async fn one_size(extent: Extent, place: Place, size: usize) -> Outcome {
    let budget = extent.pick(2 << 20, 32 << 20);
    let (batch, each) = payload::frames(size, BATCH);
    let batches = (budget / batch.len()).clamp(1, extent.pick(10_000, 200_000) / each + 1) as u64;
    let count = batches * each as u64;
    let mut bare = Bare::start(Mode::Drain, place)?;
    let mut rates = Turns::default();
    let mut burnt = [Turns::default(), Turns::default()];
    tree::with_actor(place, async |actor| {
        let pid = actor.pid().ok_or("an actor without a process")?;
        for turn in 0..=extent.pick(2, 9) {
            let clock = Clock::start(bare.pid(), count);
            bare.one_way(&batch, batches).await?;
            let floor = clock.stop();
            let clock = Clock::start(pid, count);
            send(&actor, size, count).await?;
            let ours = clock.stop();
            // The first warms both up.
            if turn > 0 {
                rates.turn(&floor[0], &ours[0]);
                burnt[0].turn(&floor[1], &ours[1]);
                burnt[1].turn(&floor[2], &ours[2]);
            }
        }
        Ok(())
    })
    .await?;
    bare.end()?;
    let row = |what: &str, unit, turns| {
        Row::new("streams", format!("{what}, {size} bytes, {}", place.name()), unit)
            .size(size as u64)
            .beside("bare batches", turns)
    };
    let messages = row("messages", Unit::PerSecond, &rates);
    match size {
        64 => messages.goal(Goal::AtLeast(1.5e6)).goal(Goal::RatioAtLeast(0.75)),
        65_536 => messages.goal(Goal::RatioAtLeast(0.8)),
        _ => messages,
    }
    .tell();
    let bytes = rates.scaled(float(size as u64));
    row("bytes", Unit::BytesPerSecond, &bytes).tell();
    row("writer's CPU time a message", Unit::Seconds, &burnt[0]).tell();
    row("reader's CPU time a message", Unit::Seconds, &burnt[1]).tell();
    Ok(())
}

/// What one turn takes: time, and CPU time on both sides.
struct Clock {
    other: u32,
    count: f64,
    began: Instant,
    burnt: [f64; 2],
}

impl Clock {
    fn start(other: u32, count: u64) -> Self {
        let burnt = [proc::run_time(std::process::id()), proc::run_time(other)];
        Self { other, count: float(count), began: Instant::now(), burnt }
    }

    /// Messages a second, and seconds of each side a message.
    fn stop(self) -> [Samples; 3] {
        let rate = self.count / self.began.elapsed().as_secs_f64();
        let own = proc::run_time(std::process::id()) - self.burnt[0];
        let other = proc::run_time(self.other) - self.burnt[1];
        [rate, own / self.count, other / self.count].map(Samples::one)
    }
}

/// Sends that many to an actor that counts them.
pub(crate) async fn send(actor: &Portal, size: usize, count: u64) -> Outcome {
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
