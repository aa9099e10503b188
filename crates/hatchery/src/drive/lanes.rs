//! The lanes beside the channel of a thread actor: how its two ends find the same ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use hatchery_proto::Lane;

use crate::lock::lock;

/// What large blobs are handed over in, each way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lanes {
    /// To the actor.
    pub(crate) down: Arc<Lane>,
    /// From the actor.
    pub(crate) up: Arc<Lane>,
}

/// The lanes of actors that are being born, each under a number of its own, which the handshake
/// tells: a path may be another actor's by the time that a slow thread comes to claim. Their
/// spawners hold them: what nobody claims is gone with its start.
#[derive(Debug, Default)]
pub(crate) struct Offers(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    /// How many there have been.
    count: u64,
    offers: HashMap<u64, Offer>,
}

#[derive(Debug)]
struct Offer {
    down: Weak<Lane>,
    up: Weak<Lane>,
}

impl Offers {
    /// New lanes for one actor that is about to be born, and their number.
    pub(crate) fn offer(&self) -> (u64, Lanes) {
        let lanes = Lanes::default();
        let offer = Offer { down: Arc::downgrade(&lanes.down), up: Arc::downgrade(&lanes.up) };
        let mut open = lock(&self.0);
        open.offers.retain(|_, offer| offer.down.strong_count() > 0);
        open.count += 1;
        let number = open.count;
        open.offers.insert(number, offer);
        (number, lanes)
    }

    /// Those of that number; `None`: its start was given up, or they were claimed before.
    pub(crate) fn claim(&self, number: u64) -> Option<Lanes> {
        let offer = lock(&self.0).offers.remove(&number)?;
        Some(Lanes { down: offer.down.upgrade()?, up: offer.up.upgrade()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C14, H13: who comes late for a start that was given up finds nothing, and takes nothing from
    /// whoever is born after it.
    #[test]
    fn an_offer_is_claimed_by_whom_it_was_made_to_or_by_nobody() {
        let offers = Offers::default();
        let (late, given_up) = offers.offer();
        drop(given_up);
        let (next, lanes) = offers.offer();
        assert!(offers.claim(late).is_none());
        let claimed = offers.claim(next).expect("its own");
        assert!(Arc::ptr_eq(&claimed.down, &lanes.down) && Arc::ptr_eq(&claimed.up, &lanes.up));
        assert!(offers.claim(next).is_none(), "claimed twice");
    }
}
