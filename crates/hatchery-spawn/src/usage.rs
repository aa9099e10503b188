//! What a process has used until its end.

use std::time::Duration;

/// What a process and those of its own children that it has waited for have used, as the kernel reckons it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Usage {
    /// Processor time of its own code.
    pub user: Duration,
    /// Processor time of the kernel for it.
    pub system: Duration,
    /// The most memory that it had resident at once, in bytes: of the largest of these processes, not of all
    /// together. No less than what its forkserver had when the process was made of it, a few MiB.
    pub peak_memory: u64,
}

impl Usage {
    /// In words of the wire: nanoseconds, nanoseconds, bytes.
    pub(crate) fn words(self) -> [u64; 3] {
        let nanoseconds = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        [nanoseconds(self.user), nanoseconds(self.system), self.peak_memory]
    }

    pub(crate) fn of_words([user, system, peak_memory]: [u64; 3]) -> Self {
        let (user, system) = (Duration::from_nanos(user), Duration::from_nanos(system));
        Self { user, system, peak_memory }
    }
}
