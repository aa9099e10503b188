//! The three ways in which a latency is told: waking an idle core is most of what an answer from
//! another one takes, so who looks for it before it sleeps buys latency with processor time.

use std::time::Duration;

use hatchery::{Builder, Config, Portal, Runtime, Stdio};

use crate::pin::{self, Place};
use crate::{Outcome, tree};

/// Where the two sides run, and how they wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    OneCore,
    TwoCores,
    /// As that; both sides look for a message for [`SPIN`] before they sleep.
    Spinning,
}

impl Way {
    /// Those that this machine has.
    pub(crate) fn all() -> Vec<Self> {
        let two = Place::all().contains(&Place::Two);
        if two { vec![Self::OneCore, Self::TwoCores, Self::Spinning] } else { vec![Self::OneCore] }
    }

    pub(crate) fn place(self) -> Place {
        match self {
            Self::OneCore => Place::One,
            Self::TwoCores | Self::Spinning => Place::Two,
        }
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::OneCore | Self::TwoCores => self.place().name().to_owned(),
            Self::Spinning => format!("two cores, spin of {SPIN:?}"),
        }
    }

    /// A runtime that waits in this way.
    pub(crate) fn runtime(self) -> Builder {
        let runtime = Runtime::builder().stdio(Stdio::Null).signals(false);
        match self {
            Self::OneCore | Self::TwoCores => runtime,
            Self::Spinning => runtime.config(Config { busy_poll: SPIN, ..Config::default() }),
        }
    }

    /// Puts this thread where it makes a channel: who may use one core only then doesn't spin on it.
    pub(crate) fn stand_before(self) -> nix::Result<()> {
        if self == Self::Spinning { pin::anywhere() } else { self.place().here() }
    }

    /// Runs `body` with an actor and this thread where they belong.
    pub(crate) async fn with_actor<T>(
        self,
        body: impl AsyncFnOnce(Portal) -> Outcome<T>,
    ) -> Outcome<T> {
        self.stand_before()?;
        tree::with_actor_in(self.runtime(), self.place(), async |actor| {
            self.place().here()?;
            body(actor).await
        })
        .await
    }
}

/// Long enough for an answer from another core that is awake.
pub(crate) const SPIN: Duration = Duration::from_micros(20);
