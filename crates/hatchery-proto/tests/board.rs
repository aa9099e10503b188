//! The board: what is written is read; what changes while somebody looks is not believed.

use hatchery_proto::board::{self, Board, Happened, Kind, NotABoard, Record, State, What};
use proptest::prelude::*;

const ROOM: usize = 4;

fn empty() -> Vec<u64> {
    let mut words = vec![0; board::words(ROOM)];
    words[board::MAGIC_AT] = board::MAGIC;
    words[board::PID_AT] = 7;
    words[board::HIGH_AT] = ROOM as u64;
    words
}

fn put(words: &mut [u64], slot: usize, count: u64, record: &Record<&str>) {
    let at = board::SLOTS_AT + slot * board::SLOT_WORDS;
    words[at..at + board::SLOT_WORDS].copy_from_slice(&record.encode());
    words[at] = count;
}

fn call(who: &str) -> Record<&str> {
    let mut call = Record::new(Kind::Call, 1, who, "crate::function");
    (call.state, call.since, call.number) = (State::Open, 99, 12);
    call
}

fn owned(record: Record<&str>) -> Record {
    let Record { kind, state, actor, since, until, number, count, who, what } = record;
    let (who, what) = (who.to_owned(), what.to_owned());
    Record { kind, state, actor, since, until, number, count, who, what }
}

#[test]
fn what_is_written_is_read() {
    let mut words = empty();
    put(&mut words, 0, 2, &call("root/a"));
    let mut member = Record::new(Kind::Member, 2, "root/b", "forkserver");
    (member.state, member.until, member.count) = (State::Killed, Some(5), 4711);
    put(&mut words, 3, 8, &member);
    let at = board::EVENTS_AT;
    let event = Happened::encode(3, 2, What::Killed, "root/b");
    words[at..at + board::EVENT_WORDS].copy_from_slice(&event);
    words[at] = 2;
    let read = board::read(&words, &words).unwrap();
    let who = "root/b".to_owned();
    let events = vec![Happened { at: 3, actor: 2, what: What::Killed, who }];
    let records = [call("root/a"), member].map(owned).to_vec();
    assert_eq!(read, Board { pid: 7, records, events, missed: 0, blurred: 0 });
    assert_eq!(board::used(&words), words.len());
}

/// Two threads that take a number and look at the clock at the same moment.
#[test]
fn events_are_in_the_order_of_their_times() {
    let mut words = empty();
    for (number, at) in [(0, 9), (1, 7), (2, 9)] {
        let place = board::EVENTS_AT + number * board::EVENT_WORDS;
        let event = Happened::encode(at, number.try_into().unwrap(), What::Killed, "root/b");
        words[place..place + board::EVENT_WORDS].copy_from_slice(&event);
        words[place] = number as u64 * 2 + 2;
    }
    let read = board::read(&words, &words).unwrap();
    let seen: Vec<_> = read.events.iter().map(|event| (event.at, event.actor)).collect();
    assert_eq!(seen, [(7, 1), (9, 0), (9, 2)]);
}

#[test]
fn a_record_that_changes_is_counted_and_not_believed() {
    let (mut first, mut second) = (empty(), empty());
    put(&mut first, 0, 2, &call("root/a"));
    put(&mut second, 0, 4, &call("root/a"));
    put(&mut first, 1, 3, &call("root/b"));
    put(&mut second, 1, 3, &call("root/b"));
    let read = board::read(&first, &second).unwrap();
    assert_eq!((read.records.len(), read.blurred), (0, 2));
}

#[test]
fn other_memory_is_no_board() {
    assert_eq!(board::read(&[], &[]), Err(NotABoard));
    let zeros = vec![0; board::words(1)];
    assert_eq!(board::read(&zeros, &zeros), Err(NotABoard));
    assert_eq!(board::read(&empty(), &empty()[..9]), Err(NotABoard));
}

#[test]
fn long_texts_keep_their_ends() {
    let (who, what) = (format!("root/{}/ß", "é".repeat(200)), "f".repeat(300));
    let record = Record::new(Kind::Serving, 1, &*who, &*what);
    let read = Record::decode(&record.encode()).unwrap();
    assert!(read.who.ends_with("é/ß") && who.ends_with(&read.who) && read.who.len() > 120);
    assert_eq!(read.what, "f".repeat(80));
}

/// C15: what an actor says moves no terminal's cursor, and begins no line.
#[test]
fn control_characters_are_not_passed_on() {
    let record = Record::new(Kind::Serving, 1, "root/\u{1b}[2Ja\nb", "f\r");
    let read = Record::decode(&record.encode()).unwrap();
    assert_eq!((&*read.who, &*read.what), ("root/\u{fffd}[2Ja\u{fffd}b", "f\u{fffd}"));
}

proptest! {
    /// C15: who writes nonsense is read as nonsense, without a panic.
    #[test]
    fn any_words_are_read(mut words in prop::collection::vec(any::<u64>(), board::words(2))) {
        let _any = board::used(&words);
        words[board::MAGIC_AT] = board::MAGIC;
        let _any = board::read(&words, &words);
    }

    #[test]
    fn records_survive(who in "\\PC{0,30}", what in "\\PC{0,15}", since: u64, number: u64, count: u32) {
        let mut record = Record::new(Kind::Nursery, 3, &*who, &*what);
        (record.since, record.number, record.count) = (since, number, count);
        prop_assert_eq!(Record::decode(&record.encode()), Some(owned(record)));
    }
}
