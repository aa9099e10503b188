//! What starts cost while the root is heavy: a gibibyte of touched memory and ten thousand fds.

use std::fs::File;
use std::os::fd::OwnedFd;

use crate::cli::Extent;
use crate::crowd::{self, Lap};
use crate::figures::{Samples, Turns};
use crate::pin::{self, Place};
use crate::report::{Goal, Row, Unit};
use crate::{Outcome, proc, starts, tree};

/// What makes a process heavy.
struct Ballast {
    memory: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Ballast {
    fn new(memory: usize, fds: usize) -> Outcome<Self> {
        let memory = vec![1; memory];
        let null = File::open("/dev/null")?;
        let fds = (0..fds).map(|_| Ok(null.try_clone()?.into())).collect::<Outcome<_>>()?;
        Ok(Self { memory, fds })
    }

    /// Sees to it that it was there until now.
    fn end(self, memory: usize, fds: usize) -> Outcome {
        if self.memory.len() == memory && self.fds.len() == fds {
            Ok(())
        } else {
            Err("there was too little ballast".into())
        }
    }
}

pub(crate) fn measure(extent: Extent) -> Outcome {
    proc::raise_fd_limit();
    Place::One.here()?;
    let (memory, fds) = extent.pick((64 << 20, 1000), (1 << 30, 10_000));
    let count = extent.pick(15, 100);
    // The runtime is opened while the root is light, or when it is heavy already.
    for (when, before) in [("before", false), ("after", true)] {
        let mut turns = Turns::default();
        for turn in 0..=extent.pick(2, 7) {
            let light = tree::on_tokio(starts::some(count, || Ok(())))?;
            let mut ballast = None;
            if before {
                ballast = Some(Ballast::new(memory, fds)?);
            }
            let heavy = tree::on_tokio(starts::some(count, || {
                if ballast.is_none() {
                    ballast = Some(Ballast::new(memory, fds)?);
                }
                Ok(())
            }))?;
            ballast.ok_or("there was no ballast")?.end(memory, fds)?;
            // The first warms both up.
            if turn > 0 {
                turns.turn(&light, &heavy);
            }
        }
        tell(memory, fds, when, &turns);
    }
    crowds(extent, memory, fds)
}

/// A crowd below a heavy root, beside one below the same root when it is light.
fn crowds(extent: Extent, memory: usize, fds: usize) -> Outcome {
    pin::anywhere()?;
    let size = extent.pick(20, 1000);
    let mut all = <[Turns; 3]>::default();
    for turn in 0..=extent.pick(1, 5) {
        let light = tree::on_tokio(crowd::lap(size, crowd::Pages::Small))?;
        let ballast = Ballast::new(memory, fds)?;
        let heavy = tree::on_tokio(crowd::lap(size, crowd::Pages::Small))?;
        ballast.end(memory, fds)?;
        let each = |lap: &Lap| [lap.up, lap.called, lap.down].map(Samples::of);
        for ((turns, light), heavy) in all.iter_mut().zip(each(&light)).zip(each(&heavy)) {
            // The first warms both up.
            if turn > 0 {
                turns.turn(&light, &heavy);
            }
        }
    }
    for (what, turns) in ["up", "each called once", "down"].into_iter().zip(&all) {
        let what = format!("{size} actors {what}, {} MiB and {fds} fds in the root", memory >> 20);
        Row::new("heavy", what, Unit::Seconds).beside("the same without", turns).tell();
    }
    Ok(())
}

fn tell(memory: usize, fds: usize, when: &str, turns: &Turns) {
    let what = format!(
        "start to first reply, {} MiB and {fds} fds in the root, runtime opened {when} that",
        memory >> 20
    );
    Row::new("heavy", what, Unit::Seconds)
        .beside("the same without", turns)
        .goal(Goal::RatioAtMost(1.1))
        .tell();
}

/// How fast memory is copied here: what no copy can beat.
pub(crate) fn copies(extent: Extent) {
    for size in [64 << 10, 1 << 20, 64 << 20] {
        let (from, mut to) = (vec![1_u8; size], vec![0_u8; size]);
        let mut samples = Samples::default();
        for turn in 0..=extent.pick(3, 30) {
            let rounds = (64 << 20) / size;
            let began = std::time::Instant::now();
            for _ in 0..rounds {
                to.copy_from_slice(std::hint::black_box(&from));
                std::hint::black_box(&mut to);
            }
            let bytes = crate::figures::float((rounds * size) as u64);
            // The first warms up.
            if turn > 0 {
                samples.push(bytes / began.elapsed().as_secs_f64());
            }
        }
        let what = format!("floor: copies of {} KiB in memory", size >> 10);
        Row::new("streams", what, Unit::BytesPerSecond).alone(&samples).tell();
    }
}
