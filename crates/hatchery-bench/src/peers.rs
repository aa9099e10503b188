//! What people would use instead, at the same work and in turn with it: a start until its first
//! reply of 64 bytes, round trips of 64 bytes, and as many calls as 64 callers get done. A peer
//! that is not there is missing by its name, never zero.

use crate::Outcome;
use crate::cli::Extent;
use crate::figures::{Samples, Turns};
use crate::pin::Place;
use crate::report::{Goal, Row, Unit};

#[cfg(feature = "peers")]
pub(crate) mod ipc_channel;
#[cfg(feature = "peers")]
mod kameo;
mod ours;
#[cfg(feature = "peers")]
mod procspawn;
mod python;
#[cfg(feature = "peers")]
mod ractor;
#[cfg(feature = "peers")]
mod tokio_process;

/// What is done by each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// From a start to the first reply; what was started is ended again, unmeasured.
    Starts,
    /// One round trip after another.
    Calls,
    /// Calls a second, with [`FLIGHT`] callers.
    Rate,
}

impl Work {
    fn name(self) -> String {
        match self {
            Self::Starts => "start to first reply".to_owned(),
            Self::Calls => "round trip of 64 bytes".to_owned(),
            Self::Rate => format!("calls, {FLIGHT} in flight"),
        }
    }

    fn unit(self) -> Unit {
        match self {
            Self::Starts | Self::Calls => Unit::Seconds,
            Self::Rate => Unit::PerSecond,
        }
    }

    /// How many of it make a turn; what takes milliseconds is done less often.
    fn count(self, extent: Extent, is_slow: bool) -> usize {
        match (self, is_slow) {
            (Self::Starts, true) => extent.pick(5, 20),
            (Self::Starts, false) => extent.pick(10, 100),
            (Self::Calls, _) => extent.pick(100, 1000),
            (Self::Rate, _) => extent.pick(20, 100),
        }
    }
}

/// One of those that are measured.
struct Peer {
    name: &'static str,
    /// What it can do.
    does: &'static [Work],
    /// Whether it starts a new image.
    is_slow: bool,
    /// Hatchery's start is to take this part of its own, if any.
    goal: Option<f64>,
    take: fn(Work, usize) -> Outcome<Samples>,
}

pub(crate) fn measure(extent: Extent) -> Outcome {
    Place::One.here()?;
    for peer in peers() {
        for &work in peer.does {
            in_turn(&peer, work, extent)?;
        }
    }
    Ok(())
}

/// A peer that fails is told as such: the others are measured all the same.
fn in_turn(peer: &Peer, work: Work, extent: Extent) -> Outcome {
    let count = work.count(extent, peer.is_slow);
    let mut turns = Turns::default();
    for turn in 0..=extent.pick(1, 7) {
        let theirs = match (peer.take)(work, count) {
            Ok(theirs) => theirs,
            Err(error) => {
                missing(peer.name, work, &error.to_string());
                return Ok(());
            }
        };
        let ours = ours::on_forkserver(work, work.count(extent, false))?;
        // The first warms both up.
        if turn > 0 {
            turns.turn(&theirs, &ours);
        }
    }
    let row = Row::new("peers", work.name(), work.unit()).beside(peer.name, &turns);
    let goal = peer.goal.filter(|_| work == Work::Starts);
    goal.map_or(row.clone(), |goal| row.goal(Goal::RatioAtMost(goal))).tell();
    Ok(())
}

fn missing(name: &str, work: Work, why: &str) {
    let mut row = Row::new("peers", work.name(), work.unit());
    name.clone_into(&mut row.beside);
    row.note(format!("{name} is missing: {why}")).tell();
}

const ALL: &[Work] = &[Work::Starts, Work::Calls, Work::Rate];
const ONE_AT_A_TIME: &[Work] = &[Work::Starts, Work::Calls];

/// Hatchery starts an actor in a fifth of the time of those that start an image.
const A_FIFTH: f64 = 0.2;

fn peers() -> Vec<Peer> {
    let mut all = vec![
        Peer {
            name: "hatchery on threads",
            does: ALL,
            is_slow: false,
            goal: None,
            take: ours::on_threads,
        },
        Peer {
            name: "python multiprocessing, forkserver",
            does: ONE_AT_A_TIME,
            is_slow: true,
            goal: None,
            take: python::take,
        },
    ];
    all.extend(registry());
    all
}

/// Those of the registry.
#[cfg(feature = "peers")]
fn registry() -> [Peer; 5] {
    let image = |name, goal, take| Peer { name, does: ONE_AT_A_TIME, is_slow: true, goal, take };
    let in_process = |name, take| Peer { name, does: ALL, is_slow: false, goal: None, take };
    [
        image("tokio::process", Some(A_FIFTH), tokio_process::take),
        image("procspawn", Some(A_FIFTH), procspawn::take),
        image("ipc-channel", None, ipc_channel::take),
        in_process("ractor, in process", ractor::take),
        in_process("kameo, in process", kameo::take),
    ]
}

/// They aren't built unless somebody asks for them.
#[cfg(not(feature = "peers"))]
fn registry() -> [Peer; 5] {
    let absent = |name, goal| Peer {
        name,
        does: &[Work::Starts],
        is_slow: true,
        goal,
        take: |_, _| Err("not built in: build with `--features peers`".into()),
    };
    [
        absent("tokio::process", Some(A_FIFTH)),
        absent("procspawn", Some(A_FIFTH)),
        absent("ipc-channel", None),
        absent("ractor, in process", None),
        absent("kameo, in process", None),
    ]
}

/// Callers at once where a rate is measured.
const FLIGHT: usize = 64;
