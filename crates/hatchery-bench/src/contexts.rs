//! Contexts: opened and closed, beside a call's round trip; cancelled while the channel is busy.

use std::time::Instant;

use hatchery::{Blob, Callee, ContextError, Error, Nothing, Portal};

use crate::calls::echo;
use crate::cli::Extent;
use crate::figures::{Samples, Turns};
use crate::payload::{self, Block};
use crate::pin::Place;
use crate::report::{Goal, Row, Unit};
use crate::way::Way;
use crate::{Failure, Outcome, tree};

/// Starts and returns.
#[hatchery::context]
async fn empty(callee: Callee<Nothing, Nothing>) -> Result<(), Error> {
    drop(callee.started(())?);
    Ok(())
}

/// Starts and waits to be cancelled.
#[hatchery::context]
async fn wait(callee: Callee<Nothing, Nothing>) -> Result<(), Error> {
    let _stream = callee.started(())?;
    std::future::pending().await
}

/// Reads for ever.
#[hatchery::context]
async fn swallow(callee: Callee<Blob, Nothing>) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    while stream.recv().await?.is_some() {}
    Ok(())
}

/// Writes for ever.
#[hatchery::context]
async fn pour(callee: Callee<Nothing, Blob>, size: usize) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    let message = payload::bytes(size);
    loop {
        stream.send(message.clone()).await?;
    }
}

pub(crate) fn measure(extent: Extent) -> Outcome {
    Place::One.here()?;
    for way in Way::all() {
        tree::on_tokio(way.with_actor(async |actor| open_and_close(extent, way, &actor).await))?;
        for load in [Load::None, Load::Out(64), Load::Out(65_536), Load::In(64), Load::In(65_536)] {
            tree::on_tokio(
                way.with_actor(async |actor| cancel_under(extent, way, load, &actor).await),
            )?;
        }
    }
    Ok(())
}

async fn open_and_close(extent: Extent, way: Way, actor: &Portal) -> Outcome {
    let mut turns = Turns::default();
    let count = extent.pick(50, 300);
    for turn in 0..=extent.pick(2, 9) {
        let (mut calls, mut contexts) = (Samples::default(), Samples::default());
        for _ in 0..count {
            let began = Instant::now();
            actor.call(echo(Block([7; 64]))).await?;
            calls.span(began.elapsed());
        }
        for _ in 0..count {
            let began = Instant::now();
            actor.open_context(empty(), async |mut context| Ok(context.result().await?)).await?;
            contexts.span(began.elapsed());
        }
        // The first warms both up.
        if turn > 0 {
            turns.turn(&calls, &contexts);
        }
    }
    Row::new("contexts", format!("open and close, {}", way.name()), Unit::Seconds)
        .beside("call round trip", &turns)
        .goal(Goal::RatioAtMost(3.0))
        .tell();
    Ok(())
}

/// What else the channel carries.
#[derive(Debug, Clone, Copy)]
enum Load {
    None,
    /// Messages of that size to the actor.
    Out(usize),
    /// From it.
    In(usize),
}

impl Load {
    fn name(self) -> String {
        match self {
            Self::None => "idle".to_owned(),
            Self::Out(size) => format!("streaming {size} B out"),
            Self::In(size) => format!("streaming {size} B in"),
        }
    }
}

async fn cancel_under(extent: Extent, way: Way, load: Load, actor: &Portal) -> Outcome {
    let samples = tokio::select! {
        ended = under(load, actor) => return Err(ended.err().unwrap_or_else(|| "the load ended".into())),
        samples = cancels(extent.pick(30, 500), actor) => samples?,
    };
    let what = format!("cancel to last word, {}, {}", load.name(), way.name());
    let row = Row::new("contexts", what, Unit::Seconds).alone(&samples);
    match load {
        Load::None => row,
        Load::Out(_) | Load::In(_) => row.goal(Goal::P99AtMost(5e-3)),
    }
    .tell();
    Ok(())
}

async fn under(load: Load, actor: &Portal) -> Outcome {
    match load {
        Load::None => std::future::pending().await,
        Load::Out(size) => {
            let message = payload::bytes(size);
            let pouring = actor.open_context(swallow(), async |mut context| {
                loop {
                    context.send(message.clone()).await?;
                }
            });
            Ok(pouring.await?)
        }
        Load::In(size) => {
            let reading = actor.open_context(pour(size), async |mut context| {
                while context.recv().await?.is_some() {}
                Ok(())
            });
            Ok(reading.await?)
        }
    }
}

/// Opens, cancels, waits for the other side's last word.
async fn cancels(count: usize, actor: &Portal) -> Outcome<Samples> {
    let mut samples = Samples::default();
    for _ in 0..count {
        let mut context = actor.context(wait()).handle().await?;
        let began = Instant::now();
        context.cancel();
        match context.result().await {
            Err(ContextError::Cancelled(_)) => samples.span(began.elapsed()),
            Err(other) => return Err(other.into()),
            Ok(()) => return Err(Failure::from("it was not cancelled")),
        }
    }
    Ok(samples)
}
