//! `procspawn`: a function in a new image; for round trips, a pool of one.

use std::time::Instant;

use procspawn::Pool;

use super::Work;
use crate::Outcome;
use crate::figures::Samples;
use crate::payload::Block;

pub(super) fn take(work: Work, count: usize) -> Outcome<Samples> {
    match work {
        Work::Starts => starts(count),
        Work::Calls => calls(count),
        Work::Rate => Err("a process of its pool does one call at a time".into()),
    }
}

fn starts(count: usize) -> Outcome<Samples> {
    let mut samples = Samples::default();
    for _ in 0..count {
        let began = Instant::now();
        // Its answer is all there is to wait for: the process goes by itself.
        procspawn::spawn(Block([7; 64]), |block: Block| block).join()?;
        samples.span(began.elapsed());
    }
    Ok(samples)
}

fn calls(count: usize) -> Outcome<Samples> {
    let pool = Pool::new(1)?;
    let mut samples = Samples::default();
    for nth in 0..=count {
        let began = Instant::now();
        pool.spawn(Block([7; 64]), |block: Block| block).join()?;
        // The first waits for the process.
        if nth > 0 {
            samples.span(began.elapsed());
        }
    }
    pool.shutdown();
    Ok(samples)
}
