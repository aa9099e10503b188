//! The layout of the page on which a process writes down what its actors do, for whoever asks why
//! they hang.
//!
//! The page is shared memory that others read without the writer's help: it also tells about an
//! actor that is stopped, spins, or waits for a lock. It is made of words, each written at once.
//! A record is led by a count that is odd while the record is being written; a reader takes two
//! copies, one after the other, and believes what is the same in both.

mod record;

use serde::{Deserialize, Serialize};

pub use record::{Kind, Record, State, plain, update};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Happened {
    /// When, in nanoseconds of the machine's monotonic clock.
    pub at: u64,
    /// In which actor of the process: [`Record::actor`].
    pub actor: u32,
    /// What.
    pub what: What,
    /// To whom, or why; the end of it if it is long.
    pub who: String,
}

/// What may happen in the life of an actor and of those that it owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum What {
    /// The actor lives.
    Born,
    /// It was asked to go, for this reason.
    Cancelled,
    /// Nothing of its own runs any more.
    Quiet,
    /// It says its last words.
    Leaving,
    /// A nursery was opened.
    NurseryOpened,
    /// All is over in a nursery.
    NurseryClosed,
    /// A start was asked for.
    Starting,
    /// A child serves.
    Ready,
    /// A child was never born.
    NotBorn,
    /// A child was asked to go.
    Asked,
    /// It acknowledged that.
    Acknowledged,
    /// It got SIGTERM.
    Terminated,
    /// It got SIGKILL.
    Killed,
    /// It was given up on.
    GivenUp,
    /// Its channel broke.
    ChannelDead,
    /// It is reaped or joined.
    Settled,
    /// A signal came to the root.
    Signal,
}

/// What one process wrote down.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Board {
    /// Whose it is.
    pub pid: u32,
    /// What is open.
    pub records: Vec<Record>,
    /// What happened last, in order.
    pub events: Vec<Happened>,
    /// How many records found no room.
    pub missed: u64,
    /// How many records changed each time somebody looked.
    pub blurred: usize,
}

/// Bytes that are no board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a board of this version")]
pub struct NotABoard;

/// How many words a board with room for so many records has.
#[must_use]
pub const fn words(records: usize) -> usize {
    SLOTS_AT + records * SLOT_WORDS
}

/// How many words of a board are worth reading, from its first ones.
#[must_use]
pub fn used(header: &[u64]) -> usize {
    let slots = header.get(HIGH_AT).copied().unwrap_or(0);
    words(usize::try_from(slots).unwrap_or(0).min(MAX_SLOTS))
}

/// Reads two copies of a board, the second one taken after the first.
///
/// # Errors
/// [`NotABoard`] if it was not written by this version of the layout.
pub fn read(first: &[u64], second: &[u64]) -> Result<Board, NotABoard> {
    let known = |words: &[u64]| words.len() >= SLOTS_AT && words[MAGIC_AT] == MAGIC;
    if !known(first) || !known(second) {
        return Err(NotABoard);
    }
    let mut board = Board {
        pid: u32::try_from(first[PID_AT]).map_err(|_| NotABoard)?,
        missed: second[MISSED_AT],
        ..Board::default()
    };
    let slots = |words: &'_ [u64]| {
        let (slots, _rest) = words[SLOTS_AT..].as_chunks::<SLOT_WORDS>();
        slots.to_vec()
    };
    for (one, two) in slots(first).iter().zip(&slots(second)) {
        if one != two || one[0] % 2 == 1 {
            board.blurred += usize::from(one[1] != 0 || two[1] != 0);
        } else {
            board.records.extend(Record::decode(one));
        }
    }
    let events = |words: &'_ [u64]| {
        let (events, _rest) = words[EVENTS_AT..SLOTS_AT].as_chunks::<EVENT_WORDS>();
        events.to_vec()
    };
    let mut seen: Vec<_> = events(first)
        .iter()
        .zip(&events(second))
        .filter(|(one, two)| one == two && one[0] != 0 && one[0] % 2 == 0)
        .filter_map(|(one, _)| Some((one[0], Happened::decode(one)?)))
        .collect();
    // Who takes his number first may look at the clock last.
    seen.sort_by_key(|(number, event)| (event.at, *number));
    board.events = seen.into_iter().map(|(_, event)| event).collect();
    Ok(board)
}

impl Happened {
    /// The words of an event; the first one is the writer's own.
    #[must_use]
    pub fn encode(at: u64, actor: u32, what: What, who: &str) -> [u64; EVENT_WORDS] {
        let mut words = [0; EVENT_WORDS];
        let length = record::put(&mut words[3..], who);
        words[1] = what as u64 | (length as u64) << 8 | u64::from(actor) << 32;
        words[2] = at;
        words
    }

    fn decode(words: &[u64; EVENT_WORDS]) -> Option<Self> {
        let what = *What::ALL.get(usize::from(words[1].to_le_bytes()[0]))?;
        let length = usize::from(words[1].to_le_bytes()[1]);
        let who = record::text(&words[3..], length)?;
        Some(Self { at: words[2], actor: record::high(words[1]), what, who })
    }
}

impl What {
    const ALL: [Self; 17] = [
        Self::Born,
        Self::Cancelled,
        Self::Quiet,
        Self::Leaving,
        Self::NurseryOpened,
        Self::NurseryClosed,
        Self::Starting,
        Self::Ready,
        Self::NotBorn,
        Self::Asked,
        Self::Acknowledged,
        Self::Terminated,
        Self::Killed,
        Self::GivenUp,
        Self::ChannelDead,
        Self::Settled,
        Self::Signal,
    ];
}

/// What the first word of a board is; another one with another layout.
pub const MAGIC: u64 = u64::from_le_bytes(*b"hatchb01");
/// Where the magic word stands.
pub const MAGIC_AT: usize = 0;
/// Where the process's number stands.
pub const PID_AT: usize = 1;
/// Where the number of events so far stands.
pub const COUNT_AT: usize = 2;
/// Where the number of records that found no room stands.
pub const MISSED_AT: usize = 3;
/// Where the number of slots that were ever used stands.
pub const HIGH_AT: usize = 4;
/// Where the events begin.
pub const EVENTS_AT: usize = 16;
/// How many events are kept.
pub const EVENTS: usize = 112;
/// The words of an event.
pub const EVENT_WORDS: usize = 16;
/// Where the records begin: on a page of their own.
pub const SLOTS_AT: usize = 2048;
/// The words of a record.
pub const SLOT_WORDS: usize = 32;
/// What no board has more of.
const MAX_SLOTS: usize = 1 << 13;
/// Under this name others find the fd: `/memfd:hatchery-board (deleted)`.
pub const NAME: &std::ffi::CStr = c"hatchery-board";

const _: () = assert!(EVENTS_AT + EVENTS * EVENT_WORDS <= SLOTS_AT, "events run into records");
