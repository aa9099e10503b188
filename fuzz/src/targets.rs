//! What each decoder has promised, as functions that panic if it isn't so.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use hatchery::dump::{Dump, Process};
use hatchery_proto::board::{self, Happened, Kind, Record, State, What};
use hatchery_proto::frame::{self, Frame};
use hatchery_proto::handshake::{Event, Handshake, Outcome};
use hatchery_proto::peer::{Door, Meet, Token};
use hatchery_proto::stream::{Policy, Terms};
use hatchery_proto::{
    ActorPath, Blob, CallId, Config, Decoder, Encoded, Ended, ExitStatus, Fault, FaultKind,
    FrameError, Hello, Lane, PROTOCOL_VERSION, Part, Ready, Reason, Time, ToChild, ToParent, Way,
    Why,
};
use hatchery_spawn::fuzz as forkserver;

use crate::shape;

/// A decoder and what it is good for.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// On the command line, and of its corpus.
    pub name: &'static str,
    /// Panics if a promise is broken; otherwise says what the input was taken for.
    pub run: fn(&[u8]) -> u64,
    /// Good input.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every decoder that reads what an actor, a peer or a client has written. (What the kernel says in
/// `/proc`, and what a program's own image tells it at its start, is believed.)
pub const TARGETS: [Target; 6] = [
    Target { name: "frames", run: frames, seeds: frame_seeds },
    Target { name: "messages", run: messages, seeds: message_seeds },
    Target { name: "handshake", run: handshakes, seeds: handshake_seeds },
    Target { name: "requests", run: requests, seeds: forkserver::good_requests },
    Target { name: "answers", run: answers, seeds: forkserver::good_answers },
    Target { name: "boards", run: boards, seeds: board_seeds },
];

/// A stream of bytes gives the same frames and the same error in whatever pieces it comes, and no
/// announced length buys memory. The first byte is the length of the pieces.
fn frames(input: &[u8]) -> u64 {
    let Some((&piece, stream)) = input.split_first() else { return 0 };
    let whole = cut(stream, stream.len().max(1));
    let pieces = cut(stream, usize::from(piece).max(1));
    assert_eq!(whole, pieces, "in pieces of {piece} bytes");
    let (frames, error) = whole;
    let mut found = error.as_ref().map_or(1, shape::of_error);
    for (number, bytes) in frames.into_iter().enumerate() {
        let kind = Frame::new(bytes.clone(), None);
        if let Ok(Frame::Item { call, value }) = &kind {
            let apart = bytes[1] & 0x80 != 0;
            assert!(value.len() < bytes.len(), "a value is no longer than its frame");
            assert!(apart || value == &Encoded::from(bytes.slice(9..)), "of one in one piece");
            assert!(call.number() < 1 << 63);
        }
        let beside = beside(&bytes);
        let kind = kind.as_ref().map_or_else(shape::of_error, kind_of);
        let kind = shape::and(kind, beside);
        // Of long streams there would be no end.
        if number < 2 {
            found = shape::and(found, kind);
        }
    }
    found
}

/// The same frame where something has come beside its socket: a file's bytes, and one that is lost.
fn beside(bytes: &Bytes) -> u64 {
    let lane = Arc::new(Lane::default());
    lane.push([Part::Bytes(vec![7; FILE].into()), Part::Lost { why: "no fd".into(), length: 0 }]);
    match Frame::new(bytes.clone(), Some(&lane)) {
        Err(error) => shape::of_error(&error),
        Ok(Frame::Item { value, .. }) => {
            // What is lost is as long as it says; who reads checks that.
            let lost = lane.waiting_bytes() == 0;
            assert!(lost || value.len() <= bytes.len() + FILE, "no longer than what has come");
            let blobs = value.decode::<Vec<Blob>>();
            blobs.map_or_else(|error| shape::of_error(&error), |blobs| blobs.len() as u64)
        }
        Ok(Frame::Part(bytes)) => u64::from(bytes.is_empty()),
        Ok(Frame::File) => 5,
        Ok(Frame::Message(bytes)) => {
            let message = frame::decode_message::<ToChild>(&bytes, Some(&lane));
            message.map_or_else(|error| shape::of_error(&error), |_| lane.waiting_bytes() as u64)
        }
    }
}

fn kind_of(frame: &Frame) -> u64 {
    match frame {
        Frame::Message(bytes) => message(bytes),
        Frame::Item { .. } => 2,
        Frame::Part(_) => 3,
        Frame::File => 4,
    }
}

type Cut = (Vec<Bytes>, Option<FrameError>);

fn cut(stream: &[u8], length: usize) -> Cut {
    let mut decoder = Decoder::new(LIMIT);
    let mut frames = Vec::new();
    for piece in stream.chunks(length) {
        let mut left = piece;
        while !left.is_empty() {
            let buffer = decoder.buffer_mut();
            // What a socket would do: it fills what room there is.
            let room = (buffer.capacity() - buffer.len()).min(left.len());
            assert!(room > 0, "no room to read into");
            buffer.put_slice(&left[..room]);
            decoder.read(room);
            left = &left[room..];
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(error) => return (frames, Some(error)),
                }
            }
        }
    }
    let room = decoder.buffer_mut().capacity();
    assert!(room <= 4 * stream.len() + 256 * 1024, "{room} bytes for {}", stream.len());
    (frames, None)
}

/// What is understood as a message is understood alike when it is written and read again.
fn messages(input: &[u8]) -> u64 {
    message(input)
}

fn message(bytes: &[u8]) -> u64 {
    let to_child = again::<ToChild>(bytes);
    let to_parent = again::<ToParent>(bytes);
    if let Ok(ToParent::Reply { result: Err(fault), .. }) = &to_parent {
        // For people, of whatever a stranger has sent.
        drop(fault.render());
    }
    shape::and(
        to_child.as_ref().map_or_else(shape::of_error, shape::of),
        to_parent.as_ref().map_or_else(shape::of_error, shape::of),
    )
}

fn again<T>(bytes: &[u8]) -> Result<T, FrameError>
where
    T: serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug + PartialEq,
{
    let value: T = frame::decode(bytes)?;
    let mut buffer = BytesMut::new();
    frame::encode(&value, usize::MAX, &mut buffer).expect("what was read can be written");
    assert_eq!(frame::decode::<T>(&buffer[4..]).as_ref(), Ok(&value));
    Ok(value)
}

/// Messages on a new connection: a start has one outcome, whatever is said; nobody who doesn't know
/// the token is let in. The first byte tells the side: spawner, or door.
fn handshakes(input: &[u8]) -> u64 {
    let Some((&side, stream)) = input.split_first() else { return 0 };
    let (frames, error) = cut(stream, stream.len().max(1));
    let mut found = error.as_ref().map_or(1, shape::of_error);
    if side % 2 == 0 {
        let mut start = Handshake::new(std::time::Duration::from_secs(1), Time::default());
        let mut outcomes = 0;
        for bytes in frames {
            let event = match frame::decode::<ToParent>(&bytes) {
                Ok(ToParent::Ready(ready)) => Event::Ready(ready),
                Ok(ToParent::Refused(error)) => Event::Refused(error),
                // Whatever else is said first ends the connection.
                Ok(_) | Err(_) => Event::Exited(ExitStatus::Unknown),
            };
            let speaks_ours =
                matches!(&event, Event::Ready(ready) if ready.version == PROTOCOL_VERSION);
            let outcome = start.handle(event);
            assert!(outcome != Some(Outcome::Serving) || speaks_ours, "{outcome:?}");
            outcomes += usize::from(outcome.is_some());
            found = shape::and(found, shape::of(&outcome));
        }
        assert!(outcomes <= 1, "{outcomes} outcomes");
        return found;
    }
    let mut door = Door::new(TOKEN);
    for bytes in frames {
        let Ok(ToChild::Meet(meet)) = frame::decode::<ToChild>(&bytes) else { break };
        let entered = door.enter(&meet);
        assert_eq!(
            entered.is_ok(),
            meet.token == TOKEN && meet.version == PROTOCOL_VERSION,
            "{meet:?}"
        );
        found = shape::and(found, shape::of(&entered));
    }
    found
}

fn requests(input: &[u8]) -> u64 {
    shape::of(&Plain(forkserver::request(input)))
}

fn answers(input: &[u8]) -> u64 {
    shape::of(&Plain(forkserver::answer(input)))
}

/// A text that is shown as it is.
struct Plain(String);

impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn frame_seeds() -> Vec<Vec<u8>> {
    let mut stream = BytesMut::new();
    for message in to_parent() {
        frame::encode(&message, LIMIT, &mut stream).expect("a seed");
    }
    frame::encode_item(CallId::new(7), &"item", Way::Across, Ok, LIMIT, &mut stream)
        .expect("a seed");
    // Beside, and after it; and parts in frames of their own.
    let blobs: Vec<Blob> = [FILE, FILE + 1].map(|length| vec![7; length].into()).into();
    for way in [Way::Across, Way::Inside] {
        let item = frame::encode_item(CallId::new(7), &blobs, way, Ok, LIMIT, &mut stream);
        item.expect("a seed").parts.follow.iter().for_each(|part| stream.put_slice(part));
    }
    stream.put_slice(&frame::part_head(3));
    stream.put_slice(b"abc");
    stream.put_slice(&frame::file_frame());
    let one = [&[1][..], &stream[..]].concat();
    let all = [&[255][..], &stream[..]].concat();
    vec![one, all, vec![3, 0, 0, 0, 1, 0xc0], vec![1, 0xff, 0xff, 0xff, 0xff]]
}

fn message_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for message in to_child() {
        let mut buffer = BytesMut::new();
        frame::encode(&message, LIMIT, &mut buffer).expect("a seed");
        seeds.push(buffer[4..].to_vec());
    }
    for message in to_parent() {
        let mut buffer = BytesMut::new();
        frame::encode(&message, LIMIT, &mut buffer).expect("a seed");
        seeds.push(buffer[4..].to_vec());
    }
    seeds
}

fn handshake_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for message in to_parent() {
        let mut stream = BytesMut::from(&[0_u8][..]);
        frame::encode(&message, LIMIT, &mut stream).expect("a seed");
        seeds.push(stream.to_vec());
    }
    for token in [TOKEN, Token([1; 16])] {
        let mut stream = BytesMut::from(&[1_u8][..]);
        let meet = Meet { version: PROTOCOL_VERSION, path: ActorPath::root(), token };
        for _ in 0..2 {
            let message = ToChild::Meet(Box::new(meet.clone()));
            frame::encode(&message, LIMIT, &mut stream).expect("a seed");
        }
        seeds.push(stream.to_vec());
    }
    seeds
}

fn to_child() -> Vec<ToChild> {
    let path = ActorPath::parse("root/worker").expect("a path");
    let reason = Reason { by: path.clone(), why: Why::Signal(15) };
    let call = CallId::new(7);
    let terms = Terms { credit: 1 << 16, policy: Policy::DropOldest };
    let (function, args) = ("crate::square".to_owned(), Bytes::from_static(&[0x91, 7]));
    let budget = std::time::Duration::from_millis(900);
    let hello = Hello {
        version: PROTOCOL_VERSION,
        path: path.clone(),
        config: Config::default(),
        backend: hatchery_proto::DefaultBackend::Exec,
        stdio: hatchery_proto::DefaultStdio::Relay,
        busy_poll: std::time::Duration::from_micros(20),
        lanes: Some(3),
    };
    let meet = Meet { version: PROTOCOL_VERSION, path: path.clone(), token: TOKEN };
    vec![
        ToChild::Hello(Box::new(hello)),
        ToChild::Meet(Box::new(meet)),
        ToChild::Call {
            call,
            function: function.clone(),
            args: args.clone().into(),
            deadline: Some(budget),
        },
        ToChild::Open { call, function, args: args.into(), terms },
        ToChild::Grant { call, bytes: 4096 },
        ToChild::CloseStream { call },
        ToChild::CancelCall { call, reason: reason.clone() },
        ToChild::Cancel { reason: reason.clone(), budget, sent: 1 << 40 },
        ToChild::CancelBelow { path, reason },
    ]
}

fn to_parent() -> Vec<ToParent> {
    let path = ActorPath::parse("root/worker").expect("a path");
    let call = CallId::new(7);
    let fault = |id| Fault::new(id, path.clone(), FaultKind::Failed, "no".to_owned());
    let mut deep = fault(0);
    for id in 1..30 {
        let mut above = fault(id).because("below".to_owned());
        above.below.push(deep);
        deep = above;
    }
    let ended = Ended {
        faults: vec![fault(99)],
        undrained: vec![path.clone()],
        why: Some(Reason { by: path.clone(), why: Why::Deadline }),
        ..Ended::default()
    };
    vec![
        ToParent::Ready(Ready { version: PROTOCOL_VERSION, pid: 77, subscribed: true }),
        ToParent::Refused(hatchery_proto::HandshakeError::Version { spawner: 1, actor: 2 }),
        ToParent::Started { call, value: Bytes::from_static(&[1]).into() },
        ToParent::Grant { call, bytes: 4096 },
        ToParent::CloseStream { call },
        ToParent::Reply { call, result: Ok(Bytes::from_static(&[0xc0]).into()) },
        ToParent::Reply { call, result: Err(Box::new(deep)) },
        ToParent::CancelAck,
        ToParent::CancelParent { reason: Reason { by: path, why: Why::Requested } },
        ToParent::Ended(ended),
    ]
}

/// Memory in which an actor wrote down what it does, or whatever it liked: two looks at it, of which
/// each ten bytes write one word. It is shown in so many lines, none of which is the actor's own.
fn boards(input: &[u8]) -> u64 {
    let Some((&how, writes)) = input.split_first() else { return 0 };
    let mut first = vec![0; board::words(ROOM)];
    first[board::MAGIC_AT] = board::MAGIC;
    let mut second = first.clone();
    let (writes, _rest) = writes.as_chunks::<10>();
    for (number, write) in writes.iter().enumerate() {
        let [low, high, value @ ..] = *write;
        let at = usize::from(u16::from_le_bytes([low, high])) % first.len();
        second[at] = u64::from_le_bytes(value);
        // A few of them fall between the looks.
        if number % 8 != usize::from(how % 16) {
            first[at] = second[at];
        }
    }
    assert!(board::used(&second) <= MOST_WORDS, "no board is that long");
    let read = match board::read(&first, &second) {
        Ok(read) => read,
        Err(error) => return shape::of_error(&error),
    };
    let shown = read.records.len() + read.events.len();
    assert!(shown <= ROOM + board::EVENTS, "{shown} from nowhere");
    let found = shape::of(&read);
    let process = Process { pid: 7, board: Some(read), ..Process::default() };
    let dump = Dump::by(process, 1 << 40);
    let text = dump.to_string();
    let links = dump.culprit.as_ref().map_or(0, |culprit| culprit.chain.len());
    assert!(text.lines().count() <= shown * ROOM + links + 6, "lines of its own:\n{text}");
    assert!(!text.contains(|one: char| one.is_control() && one != '\n'), "{text:?}");
    shape::and(found, shape::of(&dump.culprit))
}

fn board_seeds() -> Vec<Vec<u8>> {
    let record = |kind, actor, who, what, state| {
        let mut record = Record::new(kind, actor, who, what);
        (record.state, record.since, record.until) = (state, 1 << 39, Some(1 << 41));
        record.encode()
    };
    let slots = [
        record(Kind::Actor, 0, "root", "", State::Open),
        record(Kind::Nursery, 0, "root", "", State::Waiting),
        record(Kind::Member, 0, "root/a", "thread", State::Asked),
        record(Kind::Actor, 1, "root/a", "", State::Cancelled),
        record(Kind::Call, 1, "root", "a::function", State::Open),
        record(Kind::Serving, 0, "root/a", "a::function", State::Open),
    ];
    let write = |at: usize, value: u64| {
        let at = u16::try_from(at).expect("a small board").to_le_bytes();
        [&at[..], &value.to_le_bytes()].concat()
    };
    let words = |at: usize, words: &[u64]| {
        let words = words.iter().enumerate().skip(1).filter(|(_, word)| **word != 0);
        words.flat_map(|(place, word)| write(at + place, *word)).collect::<Vec<u8>>()
    };
    let slot = |number: usize| {
        let at = board::SLOTS_AT + number * board::SLOT_WORDS;
        [write(at, 2), words(at, &slots[number])].concat()
    };
    let event = Happened::encode(1 << 39, 1, What::Asked, "root/a");
    let event = [write(board::EVENTS_AT, 2), words(board::EVENTS_AT, &event)].concat();
    let all = (0..slots.len()).flat_map(slot).chain(event.clone());
    vec![
        [vec![15], slot(0)].concat(),
        [vec![15], slot(3), slot(4)].concat(),
        [vec![3], slot(2), event].concat(),
        std::iter::once(15).chain(all).collect(),
    ]
}

/// Records for which there is room on the board of the target.
const ROOM: usize = 8;
/// What is read of the memory of any actor.
const MOST_WORDS: usize = board::words(1 << 13);
/// What frames may be here; smaller than an actor's, so that the limit is met.
const LIMIT: usize = 64 * 1024;
/// As long as what may lie beside its message must be.
const FILE: usize = 16 * 1024;
const TOKEN: Token = Token([7; 16]);
