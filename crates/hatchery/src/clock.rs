//! The only clock of the driver: what the machines of `hatchery-proto` are told as `now`.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hatchery_proto::Time;

/// The time since this process first asked.
pub(crate) fn now() -> Time {
    at(Instant::now())
}

/// An instant as a point of the machines' time.
pub(crate) fn at(instant: Instant) -> Time {
    let since = instant.saturating_duration_since(epoch());
    Time::from_nanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// A point of the machines' time as an instant.
pub(crate) fn instant(time: Time) -> Instant {
    epoch() + Duration::from_nanos(time.as_nanos())
}

/// A point of the machines' time on the clock that all processes share, in nanoseconds.
pub(crate) fn shared(time: Time) -> u64 {
    static AHEAD: OnceLock<u64> = OnceLock::new();
    let ahead = AHEAD.get_or_init(|| crate::board::now().saturating_sub(now().as_nanos()));
    ahead.saturating_add(time.as_nanos())
}

fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}
