//! Hatchery itself: what peers are measured beside.

use std::time::Instant;

use hatchery::{Backend, Runtime, Stdio};

use super::{FLIGHT, Work};
use crate::calls::{echo, in_flight};
use crate::figures::{Samples, float};
use crate::payload::Block;
use crate::pin::Place;
use crate::{Outcome, starts, tree};

pub(super) fn on_forkserver(work: Work, count: usize) -> Outcome<Samples> {
    take(Backend::Forkserver, work, count)
}

pub(super) fn on_threads(work: Work, count: usize) -> Outcome<Samples> {
    take(Backend::Thread, work, count)
}

fn take(backend: Backend, work: Work, count: usize) -> Outcome<Samples> {
    let runtime = Runtime::builder().backend(backend).stdio(Stdio::Null).signals(false);
    match work {
        Work::Starts => tree::on_tokio(starts::some_in(runtime, count, || Ok(()))),
        Work::Calls => tree::on_tokio(tree::with_actor_in(runtime, Place::One, async |actor| {
            let mut samples = Samples::default();
            for _ in 0..count {
                let began = Instant::now();
                actor.call(echo(Block([7; 64]))).await?;
                samples.span(began.elapsed());
            }
            Ok(samples)
        })),
        Work::Rate => tree::on_tokio(tree::with_actor_in(runtime, Place::One, async |actor| {
            let began = Instant::now();
            in_flight(&actor, FLIGHT, count).await?;
            let calls = float((FLIGHT * count) as u64);
            Ok(Samples::one(calls / began.elapsed().as_secs_f64()))
        })),
    }
}
