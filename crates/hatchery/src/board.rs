//! What this process writes down about its actors, for whoever asks why they hang.
//!
//! Others read it in our memory (`dump.rs`), without our help: it needs no thread, no lock and no
//! signal of ours, so it also tells about an actor that spins, is stopped, or waits for a lock.
//! If no memory for it can be had, nothing is written, and a dump shows what the kernel knows.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use hatchery_proto::board::{self, Happened, Kind, Record, State, What};
use hatchery_spawn::SharedWords;

use crate::copied::is_copy;
use crate::lock::lock;

/// The board of a process. Its memory is there from the first word that is written.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// Written to by whoever reads the lock, for a few instructions; changed twice in its life.
    memory: RwLock<Place>,
    actors: AtomicU32,
}

#[derive(Debug, Default)]
enum Place {
    /// Nothing was written yet.
    #[default]
    Unused,
    Open(Memory),
    /// The runtime is closed, or no memory could be had: nothing is written.
    Closed,
}

#[derive(Debug)]
struct Memory {
    words: SharedWords,
    /// By this others find it.
    _fd: OwnedFd,
    /// Held for a few instructions, never over code of users.
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    /// The lowest slot that was never used.
    next: usize,
    used_before: Vec<usize>,
}

impl Board {
    /// Nobody finds it any more, and its memory is gone, whoever still holds a part of the tree
    /// (C10).
    pub(crate) fn close(&self) {
        *self.memory.write().unwrap_or_else(PoisonError::into_inner) = Place::Closed;
    }

    /// Notes that something happened.
    fn happened(&self, actor: u32, what: What, who: &str) {
        self.with(|memory| {
            let number = memory.words[board::COUNT_AT].fetch_add(1, Ordering::Relaxed);
            let place = usize::try_from(number).unwrap_or(0) % board::EVENTS;
            let at = board::EVENTS_AT + place * board::EVENT_WORDS;
            let words = Happened::encode(now(), actor, what, who);
            memory.write(at, number * 2 + 2, &words);
        });
    }

    /// Writes a record down until the entry is dropped.
    fn enter(self: &Arc<Self>, mut record: Record<&str>) -> Entry {
        let slot = self.with(|memory| {
            let slot = memory.take()?;
            let at = Memory::at(slot);
            record.since = now();
            memory.write(at, memory.count(at) + 2, &record.encode());
            Some(slot)
        });
        Entry { board: self.clone(), slot: slot.flatten() }
    }

    fn with<T>(&self, write: impl FnOnce(&Memory) -> T) -> Option<T> {
        // The memory is shared, and the other's.
        if is_copy() {
            return None;
        }
        let place = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        match &*place {
            Place::Open(memory) => Some(write(memory)),
            Place::Closed => None,
            Place::Unused => {
                drop(place);
                self.open();
                match &*self.memory.read().unwrap_or_else(PoisonError::into_inner) {
                    Place::Open(memory) => Some(write(memory)),
                    Place::Closed | Place::Unused => None,
                }
            }
        }
    }

    fn open(&self) {
        let mut place = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*place, Place::Unused) {
            *place = Memory::new().map_or(Place::Closed, Place::Open);
        }
    }
}

impl Memory {
    fn new() -> std::io::Result<Self> {
        let count = NonZeroUsize::new(board::words(RECORDS)).unwrap_or(NonZeroUsize::MIN);
        let (words, fd) = SharedWords::new(board::NAME, count)?;
        words[board::PID_AT].store(u64::from(std::process::id()), Ordering::Relaxed);
        words[board::MAGIC_AT].store(board::MAGIC, Ordering::Release);
        Ok(Self { words, _fd: fd, free: Mutex::default() })
    }

    /// A slot for a record.
    fn take(&self) -> Option<usize> {
        let mut free = lock(&self.free);
        if let Some(slot) = free.used_before.pop() {
            return Some(slot);
        }
        if free.next == RECORDS {
            self.words[board::MISSED_AT].fetch_add(1, Ordering::Relaxed);
            return None;
        }
        free.next += 1;
        self.words[board::HIGH_AT].store(free.next as u64, Ordering::Relaxed);
        Some(free.next - 1)
    }

    /// Where a slot begins.
    fn at(slot: usize) -> usize {
        board::SLOTS_AT + slot * board::SLOT_WORDS
    }

    /// The count that leads a record; only who has the slot changes it.
    fn count(&self, at: usize) -> u64 {
        self.words[at].load(Ordering::Relaxed)
    }

    /// Writes words whose first one is a count, which is odd meanwhile and `count` afterwards.
    fn write(&self, at: usize, count: u64, words: &[u64]) {
        self.words[at].store(count - 1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (place, word) in self.words[at..].iter().zip(words).skip(1) {
            place.store(*word, Ordering::Relaxed);
        }
        self.words[at].store(count, Ordering::Release);
    }
}

/// An actor's hand on the board of its process.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    board: Arc<Board>,
    actor: u32,
}

impl Mark {
    /// The mark of a new actor.
    pub(crate) fn new(board: &Arc<Board>) -> Self {
        Self { board: board.clone(), actor: board.actors.fetch_add(1, Ordering::Relaxed) }
    }

    /// Notes that something happened in this actor.
    pub(crate) fn happened(&self, what: What, who: &str) {
        self.board.happened(self.actor, what, who);
    }

    /// Writes down what this actor has open, until the entry is dropped.
    pub(crate) fn enter(&self, kind: Kind, number: u64, who: &str, what: &str) -> Entry {
        let mut record = Record::new(kind, self.actor, who, what);
        record.number = number;
        self.board.enter(record)
    }
}

/// A record on the board, taken off when this is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    board: Arc<Board>,
    slot: Option<usize>,
}

impl Entry {
    /// It is in this state from now on; `until` is when the time for it is over, `count` what the
    /// record's kind counts.
    pub(crate) fn set(&self, state: State, until: Option<u64>, count: u32) {
        let Some(at) = self.slot.map(Memory::at) else { return };
        self.board.with(|memory| {
            let mut words: [u64; board::SLOT_WORDS] =
                std::array::from_fn(|word| memory.words[at + word].load(Ordering::Relaxed));
            board::update(&mut words, state, now(), until, count);
            memory.write(at, memory.count(at) + 2, &words);
        });
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Some(slot) = self.slot else { return };
        self.board.with(|memory| {
            let at = Memory::at(slot);
            // The second word says that it is free.
            memory.write(at, memory.count(at) + 2, &[0, 0]);
            lock(&memory.free).used_before.push(slot);
        });
    }
}

/// Nanoseconds of the clock that all processes of the machine share.
pub(crate) fn now() -> u64 {
    let clock = nix::time::ClockId::CLOCK_MONOTONIC;
    // This clock always exists.
    let time = nix::time::clock_gettime(clock).map(std::time::Duration::from);
    time.map_or(1, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Room for a thousand calls in each of four nurseries, say; memory that is never used is free.
const RECORDS: usize = 4096;
