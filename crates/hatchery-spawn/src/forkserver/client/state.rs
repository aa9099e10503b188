//! What a client has asked for and what it waits for. Nothing here blocks.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::environment::MAX_ENVIRONMENT;
use super::super::gone::Gone;
use super::super::memory;
use super::super::wire::{self, MAX_BYTES};
use super::waiting::Waiting;
use crate::child::Core;
use crate::error::{PreloadError, PreloadFailure, SpawnError};
use crate::own_thread::OwnThread;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) next: u64,
    pub(super) waiting: BTreeMap<u64, Waiting>,
    pub(super) queue: VecDeque<Outgoing>,
    /// For children that can't be reached from here: by number, and each once.
    pub(super) signals: VecDeque<(u64, u8)>,
    /// The variables that were told last, or are about to be, before all requests after them.
    pub(super) environment: Option<Arc<[u8]>>,
    /// Requests that were sent and not answered.
    pub(super) outstanding: usize,
    /// When the forkserver last said something: a long queue is no silence.
    pub(super) heard: Option<Instant>,
    /// Too many fds are in flight: nothing more is asked before an answer says that some of ours
    /// landed, or, for they may be others' of this user, until then.
    pub(super) crowded: Option<Instant>,
    /// The preload that the forkserver runs before it can fork, and since when it runs preloads.
    pub(super) warming: Option<(String, Instant)>,
    pub(super) children: BTreeMap<u64, Arc<Core>>,
    /// Children whose births are under way and are told about, and whether others wait for them.
    pub(super) births: BTreeMap<u64, bool>,
    /// Children that are born, to be told with the next request; the last few.
    pub(super) born: VecDeque<u64>,
    /// The same, to be told at once.
    pub(super) awaited: VecDeque<u64>,
    /// Forked, and on their way to another image.
    pub(super) executing: Vec<(Waiting, Arc<Core>)>,
    pub(super) thread: Option<OwnThread>,
    pub(super) closing: bool,
}

/// A message that was not sent yet.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// That of a request; variables have none.
    pub(super) number: Option<u64>,
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
    /// Who is told as born by it.
    pub(super) born: Vec<u64>,
}

impl Outgoing {
    /// Variables, in the message or in memory beside it.
    pub(super) fn variables(name: &str, texts: &[u8]) -> Result<Self, SpawnError> {
        let bytes = wire::encode_environment(texts);
        if bytes.len() <= MAX_BYTES {
            return Ok(Self { number: None, bytes, fds: Vec::new(), born: Vec::new() });
        }
        let fds = vec![elsewhere(name, texts, MAX_ENVIRONMENT)?];
        Ok(Self { number: None, bytes: wire::encode_environment(&[]), fds, born: Vec::new() })
    }
}

impl State {
    /// What is next can't be sent. If it is variables, neither can the requests that go with them.
    pub(super) fn refuse_next(&mut self) -> Vec<Waiting> {
        let Some(next) = self.queue.pop_front() else { return Vec::new() };
        self.untold(next.born);
        if let Some(number) = next.number {
            return self.waiting.remove(&number).into_iter().collect();
        }
        if !self.queue.iter().any(|next| next.number.is_none()) {
            // To be told again.
            self.environment = None;
        }
        let mut refused = Vec::new();
        while let Some(number) = self.queue.front().and_then(|next| next.number) {
            let born = self.queue.pop_front().map(|next| next.born);
            self.untold(born.unwrap_or_default());
            refused.extend(self.waiting.remove(&number));
        }
        refused
    }

    /// What a request that was never sent would have told goes with the next one: until then the tree holds
    /// places for those births.
    pub(super) fn untold(&mut self, born: Vec<u64>) {
        let room = MAX_BORN.saturating_sub(self.born.len());
        born.into_iter().rev().take(room).for_each(|number| self.born.push_front(number));
    }

    pub(super) fn hear(&mut self) {
        self.heard = Some(Instant::now());
        self.crowded = None;
    }

    /// A preload has begun; all of them share one bound, which counts from the first.
    pub(super) fn warming_up(&mut self, preload: String) {
        let since = self.warming.take().map_or_else(Instant::now, |(_, since)| since);
        self.warming = Some((preload, since));
    }

    /// The end of a forkserver whose preloads take longer than they may.
    pub(super) fn overdue_preload(&self, bound: Duration) -> Option<Gone> {
        let (preload, since) = self.warming.as_ref()?;
        let (preload, failure) = (preload.clone(), PreloadFailure::TookTooLong { bound });
        (since.elapsed() >= bound).then_some(Gone::Preload(PreloadError { preload, failure }))
    }

    /// It has closed its socket.
    pub(super) fn ended(&self) -> Gone {
        match &self.warming {
            Some((preload, _)) => {
                let (preload, failure) = (preload.clone(), PreloadFailure::Ended);
                Gone::Preload(PreloadError { preload, failure })
            }
            None => "it has ended".into(),
        }
    }

    /// When the forkserver has been silent for too long. All bounds of a client are the same, so
    /// the first to ask is the first to be due. While preloads run, only their own bound counts.
    pub(super) fn next_deadline(&self, warm_up: Duration) -> Option<Instant> {
        if let Some((_, since)) = self.warming {
            return Some(since + warm_up);
        }
        let waiting = self.waiting.first_key_value().map(|(_, waiting)| self.due(waiting));
        let executing = self.executing.first().map(|(waiting, _)| waiting.since + waiting.bound);
        let again = self.crowded.filter(|_| !self.queue.is_empty());
        waiting.into_iter().chain(executing).chain(again).min()
    }

    pub(super) fn due(&self, waiting: &Waiting) -> Instant {
        self.heard.map_or(waiting.since, |heard| heard.max(waiting.since)) + waiting.bound
    }

    /// Those whom nobody answered in time. A late child finds nobody waiting and is killed.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Waiting> {
        let mut expired = Vec::new();
        while self.warming.is_none()
            && let Some((&number, first)) = self.waiting.first_key_value()
            && self.due(first) <= now
        {
            expired.extend(self.waiting.remove(&number));
        }
        expired
    }

    /// Those whose birth pipe says how it went, and those whose time is over.
    pub(super) fn executed(&mut self) -> Vec<(Waiting, Arc<Core>)> {
        let is_done = |waiting: &Waiting| {
            let mut fds = [PollFd::new(waiting.birth.as_fd(), PollFlags::POLLIN)];
            matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
        };
        let now = Instant::now();
        self.executing
            .extract_if(.., |(waiting, _)| is_done(waiting) || waiting.since + waiting.bound <= now)
            .collect()
    }
}

/// Puts what is too long for a message into memory.
pub(super) fn elsewhere(name: &str, bytes: &[u8], limit: usize) -> Result<OwnedFd, SpawnError> {
    let (name, length) = (name.to_owned(), bytes.len());
    if length > limit {
        return Err(SpawnError::TooLarge { name, length, limit });
    }
    let call = "memfd_create".to_owned();
    memory::write(bytes).map_err(|cause| SpawnError::Call { name, call, cause })
}

/// How many births are told with one request.
pub(super) const MAX_BORN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// C16: what a request was to tell is told by another one if that is withdrawn before it is sent.
    #[test]
    fn births_that_a_withdrawn_request_was_to_tell_are_told_by_the_next() {
        let mut state = State { born: VecDeque::from([5, 6]), ..State::default() };
        let born: Vec<u64> = state.born.drain(..).collect();
        state.born.push_back(7);
        state.queue.push_back(Outgoing { number: Some(1), bytes: vec![], fds: vec![], born });
        assert!(state.refuse_next().is_empty(), "nobody waits for it");
        assert_eq!(state.born, [5, 6, 7]);
        let many: Vec<u64> = (100..).take(MAX_BORN).collect();
        state.untold(many);
        assert_eq!((state.born.len(), state.born.back()), (MAX_BORN, Some(&7)));
    }

    /// H26: only what was heard until then tells a silence: what this thread had no time to read is none.
    #[test]
    fn nobody_is_given_up_on_for_what_was_not_read() {
        let second = Duration::from_secs(1);
        let at = Instant::now();
        let (waiting, _answered) = Waiting::for_test(at - 4 * second);
        let mut state = State::default();
        state.waiting.insert(1, waiting);
        assert!(state.expired(at).is_empty());
        // A word that came meanwhile.
        state.heard = Some(at + 2 * second);
        assert!(state.expired(at + 2 * second).is_empty());
        assert_eq!(state.expired(at + 7 * second).len(), 1);
    }
}
