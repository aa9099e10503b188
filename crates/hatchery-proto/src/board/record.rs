//! One record of a board: an actor, or something that an actor has open.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::SLOT_WORDS;

/// An actor of the process, or something that one of them has open.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record<Text = String> {
    /// What it is.
    pub kind: Kind,
    /// How it is doing.
    pub state: State,
    /// Whose it is: counts the actors of one process.
    pub actor: u32,
    /// When it came into this state, in nanoseconds of the machine's monotonic clock.
    pub since: u64,
    /// When the time for this state, or for all, is over.
    pub until: Option<u64>,
    /// A call's number; a nursery's own; for a member the number of its nursery.
    pub number: u64,
    /// A nursery's members that are not over; a member's process, if known.
    pub count: u32,
    /// An actor's path: its own, a member's, a caller's, a callee's. The end of it if it is long.
    pub who: Text,
    /// The function's name, a member's backend, the reason of a cancel.
    pub what: Text,
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// An actor itself.
    Actor,
    /// A nursery.
    Nursery,
    /// An actor in a nursery, as its owner sees it.
    Member,
    /// A call that somebody else shall answer.
    Call,
    /// A call that is being answered.
    Serving,
    /// A context that this side opened.
    Context,
    /// A context that the other side opened.
    ServingContext,
}

/// How something is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// It is open, runs, serves.
    Open,
    /// A member before its handshake, a context before its first value.
    Starting,
    /// An actor, nursery or context that was cancelled and still runs.
    Cancelled,
    /// A nursery whose body is over: it waits for its members.
    Waiting,
    /// An actor that waits for its peers, then says its last words.
    Leaving,
    /// A member that was asked to go.
    Asked,
    /// A member that acknowledged that.
    Acknowledged,
    /// A member after SIGTERM.
    Terminated,
    /// A member after SIGKILL.
    Killed,
    /// A member that was given up on.
    GivenUp,
}

impl<Text: AsRef<str>> Record<Text> {
    /// A record of an open thing.
    #[must_use]
    pub const fn new(kind: Kind, actor: u32, who: Text, what: Text) -> Self {
        let (state, since, until, number, count) = (State::Open, 0, None, 0, 0);
        Self { kind, state, actor, since, until, number, count, who, what }
    }

    /// Its words; the first one is the writer's own.
    #[must_use]
    pub fn encode(&self) -> [u64; SLOT_WORDS] {
        let mut words = [0; SLOT_WORDS];
        let text = &mut words[TEXT_AT..];
        let what = put(&mut text[..WHAT_WORDS], self.what.as_ref());
        let who = put(&mut text[what.div_ceil(8)..], self.who.as_ref());
        words[1] = 1 | (self.kind as u64) << 8 | u64::from(self.actor) << 32;
        words[4] = self.number;
        words[5] = (what as u64) | (who as u64) << 8;
        update(&mut words, self.state, self.since, self.until, self.count);
        words
    }
}

/// Changes a record in its words: the state, since when, until when, and its count.
pub fn update(
    words: &mut [u64; SLOT_WORDS],
    state: State,
    since: u64,
    until: Option<u64>,
    count: u32,
) {
    words[1] = words[1] & !(0xff << 16) | (state as u64) << 16;
    words[2] = since;
    words[3] = until.unwrap_or(0);
    words[5] = words[5] & 0xffff_ffff | u64::from(count) << 32;
}

impl Record {
    /// Reads what [`Record::encode`] wrote; `None` for a free slot, or if it is nonsense.
    #[must_use]
    pub fn decode(words: &[u64; SLOT_WORDS]) -> Option<Self> {
        let [is_used, kind, state, ..] = words[1].to_le_bytes();
        let [what, who, ..] = words[5].to_le_bytes().map(usize::from);
        if is_used != 1 {
            return None;
        }
        Some(Self {
            kind: *Kind::ALL.get(usize::from(kind))?,
            state: *State::ALL.get(usize::from(state))?,
            actor: high(words[1]),
            since: words[2],
            until: (words[3] != 0).then_some(words[3]),
            number: words[4],
            count: high(words[5]),
            who: text(words.get(TEXT_AT + what.div_ceil(8)..)?, who)?,
            what: text(&words[TEXT_AT..], what)?,
        })
    }
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Actor,
        Self::Nursery,
        Self::Member,
        Self::Call,
        Self::Serving,
        Self::Context,
        Self::ServingContext,
    ];
}

impl State {
    const ALL: [Self; 10] = [
        Self::Open,
        Self::Starting,
        Self::Cancelled,
        Self::Waiting,
        Self::Leaving,
        Self::Asked,
        Self::Acknowledged,
        Self::Terminated,
        Self::Killed,
        Self::GivenUp,
    ];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Starting => "starting",
            Self::Cancelled => "cancelled",
            Self::Waiting => "waiting for its members",
            Self::Leaving => "leaving",
            Self::Asked => "asked to go",
            Self::Acknowledged => "acknowledged its cancel",
            Self::Terminated => "after SIGTERM",
            Self::Killed => "after SIGKILL",
            Self::GivenUp => "given up on",
        })
    }
}

/// Writes the last bytes of a text, as many as there is room for; says how many.
pub(super) fn put(words: &mut [u64], text: &str) -> usize {
    let mut from = text.len().saturating_sub(words.len() * 8);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let bytes = &text.as_bytes()[from..];
    for (word, piece) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..piece.len()].copy_from_slice(piece);
        *word = u64::from_le_bytes(whole);
    }
    bytes.len()
}

pub(super) fn text(words: &[u64], length: usize) -> Option<String> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).take(length).collect();
    let text = (bytes.len() == length).then(|| String::from_utf8(bytes).ok()).flatten()?;
    Some(plain(text))
}

/// Without what would move the cursor of a terminal, or begin a line: who wrote it may be anybody.
#[must_use]
pub fn plain(text: String) -> String {
    if text.contains(char::is_control) {
        return text.replace(char::is_control, "\u{fffd}");
    }
    text
}

/// The upper half of a word.
pub(super) fn high(word: u64) -> u32 {
    u32::try_from(word >> 32).unwrap_or(u32::MAX)
}

const TEXT_AT: usize = 6;
/// Function names and reasons are shorter; a path has the rest.
const WHAT_WORDS: usize = 10;
