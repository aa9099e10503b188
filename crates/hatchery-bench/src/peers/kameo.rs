//! `kameo`: actors on the tokio of this process.

use std::convert::Infallible;
use std::time::Instant;

use kameo::prelude::{Actor, ActorRef, Context, Message, Spawn as _};
use tokio::task::JoinSet;

use super::{FLIGHT, Work};
use crate::figures::{Samples, float};
use crate::payload::Block;
use crate::{Outcome, tree};

/// Answers with what it is asked.
struct Echo;

/// What comes back from it.
#[derive(Debug)]
struct Answer(Block);

impl kameo::Reply for Answer {
    type Ok = Self;
    type Error = Infallible;
    type Value = Self;

    fn to_result(self) -> Result<Self, Infallible> {
        Ok(self)
    }

    fn into_any_err(self) -> Option<Box<dyn kameo::reply::ReplyError>> {
        None
    }

    fn into_value(self) -> Self {
        self
    }
}

impl Actor for Echo {
    type Args = Self;
    type Error = Infallible;

    async fn on_start(own: Self, _: ActorRef<Self>) -> Result<Self, Infallible> {
        Ok(own)
    }
}

impl Message<Block> for Echo {
    type Reply = Answer;

    async fn handle(&mut self, block: Block, _: &mut Context<Self, Answer>) -> Answer {
        Answer(block)
    }
}

pub(super) fn take(work: Work, count: usize) -> Outcome<Samples> {
    tree::on_tokio(async {
        match work {
            Work::Starts => starts(count).await,
            Work::Calls => calls(count).await,
            Work::Rate => rate(count).await,
        }
    })
}

async fn starts(count: usize) -> Outcome<Samples> {
    let mut samples = Samples::default();
    for _ in 0..count {
        let began = Instant::now();
        let actor = Echo::spawn(Echo);
        ask(&actor).await?;
        samples.span(began.elapsed());
        end(&actor).await?;
    }
    Ok(samples)
}

async fn calls(count: usize) -> Outcome<Samples> {
    let actor = Echo::spawn(Echo);
    let mut samples = Samples::default();
    for _ in 0..count {
        let began = Instant::now();
        ask(&actor).await?;
        samples.span(began.elapsed());
    }
    end(&actor).await?;
    Ok(samples)
}

async fn rate(rounds: usize) -> Outcome<Samples> {
    let actor = Echo::spawn(Echo);
    let mut callers = JoinSet::new();
    let began = Instant::now();
    for _ in 0..FLIGHT {
        let actor = actor.clone();
        callers.spawn(async move {
            for _ in 0..rounds {
                ask(&actor).await?;
            }
            Outcome::Ok(())
        });
    }
    while let Some(done) = callers.join_next().await {
        done??;
    }
    let rate = float((FLIGHT * rounds) as u64) / began.elapsed().as_secs_f64();
    end(&actor).await?;
    Ok(Samples::one(rate))
}

async fn ask(actor: &ActorRef<Echo>) -> Outcome {
    let Answer(block) = actor.ask(Block([7; 64])).await?;
    std::hint::black_box(block);
    Ok(())
}

async fn end(actor: &ActorRef<Echo>) -> Outcome {
    actor.stop_gracefully().await?;
    actor.wait_for_shutdown().await;
    Ok(())
}
