//! Who is to blame for a hang: who waits for whom, down to the one that waits for nobody.
//!
//! A guess, told with its reasons. An actor that is stopped or sits in a system call is a likelier
//! end of the search than one that idles, and a teardown tells more than a call, which may well
//! take its time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One actor waits for another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Wait {
    /// Who waits.
    pub from: String,
    /// For whom.
    pub to: String,
    /// For what.
    pub what: Awaited,
    /// For how long.
    pub age: Duration,
}

/// What somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Awaited {
    /// The answer of a function, or the end of a context with it.
    Answer(String),
    /// The handshake.
    Start,
    /// The end, after it was asked to go; so far with this outcome.
    End(String),
}

/// What the kernel says about an actor.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Nothing is known.
    #[default]
    Unknown,
    /// It waits for something to happen, as an actor does that has nothing to do.
    Idle,
    /// It computes.
    Running,
    /// Its one thread waits here in the kernel, and serves nobody meanwhile.
    Blocked(String),
    /// It has ended.
    Gone,
    /// It is dead and nobody has reaped it.
    Zombie,
    /// It is in a wait that no signal ends.
    Uninterruptible(String),
    /// It is stopped, by a signal or a debugger.
    Stopped,
}

/// The likely culprit, and how one comes to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Culprit {
    /// Who.
    pub who: String,
    /// What is known about it.
    pub health: Health,
    /// From somebody that nobody waits for, down to it.
    pub chain: Vec<Wait>,
    /// Whether it waits for one that stands before it in the chain.
    pub circle: bool,
}

/// Finds the likely culprit; `None` if nobody waits for anybody.
#[must_use]
pub fn culprit(waits: &[Wait], health: &BTreeMap<String, Health>) -> Option<Culprit> {
    let mut below: BTreeMap<&str, Vec<&Wait>> = BTreeMap::new();
    for wait in waits {
        below.entry(&wait.from).or_default().push(wait);
    }
    let awaited: BTreeSet<&str> = waits.iter().map(|wait| &*wait.to).collect();
    let tops: Vec<&str> = below.keys().copied().filter(|from| !awaited.contains(from)).collect();
    let mut search = Search { below: &below, health, best: None, left: MOST_STEPS };
    for top in tops {
        search.from(top, &mut Vec::new());
    }
    if search.best.is_none() {
        // Everybody that waits is waited for: there are only circles.
        for from in below.keys() {
            search.from(from, &mut Vec::new());
        }
    }
    search.best.map(|(_, culprit)| culprit)
}

/// How likely an end is the culprit: its health, then whether it is asked to go, then its age.
type Rank = (u8, bool, Duration);

struct Search<'a> {
    below: &'a BTreeMap<&'a str, Vec<&'a Wait>>,
    health: &'a BTreeMap<String, Health>,
    best: Option<(Rank, Culprit)>,
    /// In a graph with many ways the search ends at some time.
    left: usize,
}

impl<'a> Search<'a> {
    fn from(&mut self, who: &str, chain: &mut Vec<&'a Wait>) {
        for &wait in self.below.get(who).into_iter().flatten() {
            if self.left == 0 {
                return;
            }
            self.left -= 1;
            let circle = wait.to == wait.from || chain.iter().any(|before| before.from == wait.to);
            chain.push(wait);
            if circle || chain.len() == MOST_LINKS || !self.below.contains_key(&*wait.to) {
                self.end(chain, circle);
            } else {
                // One that is stopped answers nobody, whatever it waits for itself.
                if self.rank(&wait.to, false) >= RANK_STOPPED {
                    self.end(chain, false);
                }
                self.from(&wait.to, chain);
            }
            chain.pop();
        }
    }

    fn rank(&self, who: &str, circle: bool) -> u8 {
        match self.health.get(who).unwrap_or(&Health::Unknown) {
            Health::Stopped => RANK_STOPPED + 1,
            Health::Uninterruptible(_) | Health::Zombie => RANK_STOPPED,
            Health::Blocked(_) => 5,
            Health::Running => 4,
            Health::Unknown | Health::Gone | Health::Idle if circle => 3,
            Health::Gone => 2,
            Health::Unknown => 1,
            Health::Idle => 0,
        }
    }

    fn end(&mut self, chain: &[&Wait], circle: bool) {
        let Some(last) = chain.last() else { return };
        let is_teardown = matches!(last.what, Awaited::End(_));
        let rank = (self.rank(&last.to, circle), is_teardown, last.age);
        if self.best.as_ref().is_none_or(|(best, _)| *best < rank) {
            let health = self.health.get(&last.to).cloned().unwrap_or_default();
            let chain = chain.iter().map(|&wait| wait.clone()).collect();
            self.best = Some((rank, Culprit { who: last.to.clone(), health, chain, circle }));
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, what, age } = self;
        match what {
            Awaited::Answer(function) => {
                write!(f, "{from} waits {age:.3?} for {to} to answer `{function}`")
            }
            Awaited::Start => write!(f, "{from} waits {age:.3?} for {to} to start"),
            Awaited::End(step) => write!(f, "{from} waits {age:.3?} for {to} to end ({step})"),
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("nothing is known about it"),
            Self::Idle => {
                f.write_str("it idles: nobody told it, or it waits for the world outside")
            }
            Self::Running => f.write_str("it computes"),
            Self::Blocked(place) => write!(f, "its thread is blocked in {place}"),
            Self::Gone => f.write_str("it has no process any more"),
            Self::Zombie => f.write_str("it is dead and not reaped: look at the forkserver"),
            Self::Uninterruptible(place) => write!(f, "it is in an uninterruptible {place}"),
            Self::Stopped => f.write_str("it is stopped"),
        }
    }
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "likely culprit: {}: {}", self.who, self.health)?;
        for wait in &self.chain {
            writeln!(f, "  {wait}")?;
        }
        match self.circle {
            true => writeln!(f, "  which closes a circle"),
            false => writeln!(f, "  {} waits for nobody of this tree", self.who),
        }
    }
}

/// From here on it can't answer, whomever it waits for.
const RANK_STOPPED: u8 = 6;
const MOST_STEPS: usize = 100_000;
/// No tree is that deep; what actors write down about themselves may say anything (C15).
const MOST_LINKS: usize = 256;
