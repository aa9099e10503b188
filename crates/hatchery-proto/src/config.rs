//! Every bound and limit of the runtime: its default, its range, and why the number.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::blob::LARGE;

/// The bounds of a tree. The root's travel to every actor with its handshake.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Config {
    /// What a whole teardown may take. Default 3 s; at least `graceful + terminate + kill`.
    /// Long enough to flush a file, short enough that a person who pressed Ctrl-C stays.
    pub budget: Duration,
    /// How long an actor may unwind by itself before SIGTERM. Default 2 s.
    pub graceful: Duration,
    /// How long after SIGTERM before SIGKILL. Default 0.5 s: it only helps actors whose channel
    /// is dead, and those have nothing left to say.
    pub terminate: Duration,
    /// How long after SIGKILL before an actor is reported as unreapable. Default 0.5 s: a kill
    /// takes microseconds, so this only guards against uninterruptible sleep.
    pub kill: Duration,
    /// How long an actor that leaves waits for its peers and its last words. Default 0.5 s.
    pub peer_drain: Duration,
    /// How long a start waits for the handshake, from the fork on. Default 5 s: a loaded machine may need seconds
    /// to exec; a death is noticed at once and not by this.
    pub handshake: Duration,
    /// When a cancel that nobody acknowledged is noted in the report. Default 0.5 s.
    pub cancel_ack: Duration,
    /// What each level keeps of the budget it hands down, at most. Default 50 ms: one slow wake-up
    /// and a few milliseconds of work on a busy machine.
    pub level_margin: Duration,
    /// How long actors may go on after their spawner has died. Default 0.5 s: half of what C3
    /// allows.
    pub orphan_grace: Duration,
    /// How long a broken channel waits for the exit status behind it. Default 250 ms: the status
    /// usually comes within 100 µs of the break.
    pub exit_status_wait: Duration,
    /// The largest message, in bytes, with all that belongs to it. Default 16 MiB, at least 64 KiB,
    /// less than 4 GiB.
    pub max_frame_bytes: usize,
    /// From which length on a `Blob` on its way to another process is copied into a sealed memory
    /// file, which is passed on, rather than sent through the socket. Default `None`: never, for new
    /// pages cost more than the socket's copies wherever it was measured; at least 16 KiB. Blobs that
    /// were written into such a file to begin with are always passed on.
    pub memfd_from_bytes: Option<usize>,
    /// From which encoded length on, in bytes, values move between a spawner and its thread actors
    /// as they are, rather than being written and read again: the arguments of calls and contexts,
    /// replies and results, `started` values, messages of streams. 0: all of them. Default `None`:
    /// none, for C14 ends here. `Deserialize` isn't run on what has moved, so that what
    /// `#[serde(skip)]` leaves out is still there, and nothing fails or is changed in decoding; and
    /// the result of a context can be had once. Everything else is as ever: `Serialize` runs once,
    /// to count for limits and credit, and what can't be encoded is the same error. Without effect
    /// on processes and between peers, for which values are always encoded.
    pub move_from_bytes: Option<usize>,
    /// How much may be queued on one channel before calls wait. Default 1 MiB.
    pub outbox_bytes: usize,
    /// The credit of a stream, in bytes, in each direction, unless its opener says otherwise.
    /// Default 512 KiB, at least 1 KiB: what a stalled stream may hold, and enough that a sender on
    /// another core need not sleep before its reader has woken up.
    pub stream_credit: u64,
    /// How long who waits for a message looks for it again and again before it sleeps. Default 0:
    /// it sleeps at once; at most 1 ms, 5 to 20 µs pay. Waking an idle core takes longer than most
    /// answers, so calls get several times faster between cores, for up to this much of a core
    /// burnt after each message. Without effect where a process may use one CPU only.
    pub busy_poll: Duration,
    /// How many of an actor's last stderr lines an error quotes. Default 20.
    pub stderr_tail_lines: usize,
    /// The deepest tree, in levels below the root. Default 64.
    pub max_depth: usize,
    /// The most actors that live in one nursery at the same time; a thread that was given up on lives
    /// until it has ended. Default 100,000.
    pub max_actors: usize,
    /// How many actors that were over before their nursery came down its report names, at all depths
    /// together: the last ones. Those before them are counted ([`Report::dropped`]), so that a nursery
    /// that serves for ever holds what lives and no more. Default 1,000: some 200 KiB.
    ///
    /// [`Report::dropped`]: crate::Report::dropped
    pub report_tail_actors: usize,
}

/// Bounds that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The rungs don't fit into the budget: raise it, or lower one of them.
    #[error("graceful + terminate + kill is {rungs:?}, more than the budget of {budget:?}")]
    Rungs {
        /// Their sum.
        rungs: Duration,
        /// The budget.
        budget: Duration,
    },
    /// A frame must at least hold a handshake.
    #[error("max_frame_bytes is {0}, must be 65,536 to 4,294,967,295")]
    Frame(usize),
    /// A file for less costs more than it could save: raise it.
    #[error("memfd_from_bytes is {0}, must be 16,384 or more")]
    Memfd(usize),
    /// Nobody burns a core for that long: lower it.
    #[error("busy_poll is {0:?}, more than 1 ms")]
    BusyPoll(Duration),
    /// Zero where at least one is needed.
    #[error("{0} is zero")]
    Zero(&'static str),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            budget: Duration::from_secs(3),
            graceful: Duration::from_secs(2),
            terminate: Duration::from_millis(500),
            kill: Duration::from_millis(500),
            peer_drain: Duration::from_millis(500),
            handshake: Duration::from_secs(5),
            cancel_ack: Duration::from_millis(500),
            level_margin: Duration::from_millis(50),
            orphan_grace: Duration::from_millis(500),
            exit_status_wait: Duration::from_millis(250),
            max_frame_bytes: 16 << 20,
            memfd_from_bytes: None,
            move_from_bytes: None,
            outbox_bytes: 1 << 20,
            stream_credit: 512 << 10,
            busy_poll: Duration::ZERO,
            stderr_tail_lines: 20,
            max_depth: 64,
            max_actors: 100_000,
            report_tail_actors: 1_000,
        }
    }
}

impl Config {
    /// The default bounds with another budget, its rungs in the same proportion.
    #[must_use]
    pub fn with_budget(budget: Duration) -> Self {
        Self {
            budget,
            graceful: budget * 4 / 6,
            terminate: budget / 6,
            kill: budget / 6,
            ..Self::default()
        }
    }

    /// Checks a [`busy_poll`](Self::busy_poll) by itself.
    ///
    /// # Errors
    /// [`ConfigError::BusyPoll`]: more than 1 ms.
    pub fn validate_busy_poll(span: Duration) -> Result<(), ConfigError> {
        let is_bounded = span <= Duration::from_millis(1);
        if is_bounded { Ok(()) } else { Err(ConfigError::BusyPoll(span)) }
    }

    /// Checks that the bounds don't contradict each other.
    ///
    /// # Errors
    /// The first contradiction found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let rungs = self.graceful + self.terminate + self.kill;
        if rungs > self.budget {
            return Err(ConfigError::Rungs { rungs, budget: self.budget });
        }
        if !(1 << 16..=u32::MAX as usize).contains(&self.max_frame_bytes) {
            return Err(ConfigError::Frame(self.max_frame_bytes));
        }
        if let Some(bytes) = self.memfd_from_bytes.filter(|bytes| *bytes < LARGE) {
            return Err(ConfigError::Memfd(bytes));
        }
        Self::validate_busy_poll(self.busy_poll)?;
        if self.handshake.is_zero() {
            return Err(ConfigError::Zero("handshake"));
        }
        if self.max_actors == 0 {
            return Err(ConfigError::Zero("max_actors"));
        }
        if self.outbox_bytes == 0 {
            return Err(ConfigError::Zero("outbox_bytes"));
        }
        if self.stream_credit == 0 {
            return Err(ConfigError::Zero("stream_credit"));
        }
        Ok(())
    }
}
