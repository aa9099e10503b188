//! The lanes beside the channel of a thread actor: how its two ends find the same ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use hatchery_proto::{ActorPath, Lane};

use crate::lock::lock;

/// What large blobs are handed over in, each way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lanes {
    /// To the actor.
    pub(crate) down: Arc<Lane>,
    /// From the actor.
    pub(crate) up: Arc<Lane>,
}

/// The lanes of actors that are being born. Their spawners hold them: what nobody claims is gone
/// with its start.
#[derive(Debug, Default)]
pub(crate) struct Offers(Mutex<HashMap<ActorPath, Offer>>);

#[derive(Debug)]
struct Offer {
    down: Weak<Lane>,
    up: Weak<Lane>,
}

impl Offers {
    /// New lanes for the actor that is about to be born at `path`.
    pub(crate) fn offer(&self, path: &ActorPath) -> Lanes {
        let lanes = Lanes::default();
        let mut offers = lock(&self.0);
        offers.retain(|_, offer| offer.down.strong_count() > 0);
        let offer = Offer { down: Arc::downgrade(&lanes.down), up: Arc::downgrade(&lanes.up) };
        offers.insert(path.clone(), offer);
        lanes
    }

    /// Those of the actor that was born there.
    pub(crate) fn claim(&self, path: &ActorPath) -> Option<Lanes> {
        let offer = lock(&self.0).remove(path)?;
        Some(Lanes { down: offer.down.upgrade()?, up: offer.up.upgrade()? })
    }
}
