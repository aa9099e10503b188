//! `ractor`: actors on the tokio of this process.

use std::time::Instant;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::task::{JoinHandle, JoinSet};

use super::{FLIGHT, Work};
use crate::figures::{Samples, float};
use crate::payload::Block;
use crate::{Outcome, tree};

/// Answers with what it is asked.
struct Echo;

/// A question, and where its answer goes.
struct Asked(Block, RpcReplyPort<Block>);

impl Actor for Echo {
    type Msg = Asked;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Asked>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Asked>,
        Asked(block, reply): Asked,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(reply.send(block)?)
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
        let (actor, ended) = Actor::spawn(None, Echo, ()).await?;
        ask(&actor).await?;
        samples.span(began.elapsed());
        end(&actor, ended).await?;
    }
    Ok(samples)
}

async fn calls(count: usize) -> Outcome<Samples> {
    let (actor, ended) = Actor::spawn(None, Echo, ()).await?;
    let mut samples = Samples::default();
    for _ in 0..count {
        let began = Instant::now();
        ask(&actor).await?;
        samples.span(began.elapsed());
    }
    end(&actor, ended).await?;
    Ok(samples)
}

async fn rate(rounds: usize) -> Outcome<Samples> {
    let (actor, ended) = Actor::spawn(None, Echo, ()).await?;
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
    end(&actor, ended).await?;
    Ok(Samples::one(rate))
}

async fn ask(actor: &ActorRef<Asked>) -> Outcome {
    ractor::call!(actor, Asked, Block([7; 64]))?;
    Ok(())
}

async fn end(actor: &ActorRef<Asked>, ended: JoinHandle<()>) -> Outcome {
    actor.stop(None);
    Ok(ended.await?)
}
