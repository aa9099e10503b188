//! A value that moves as it is comes as the same value, counts as if it was encoded, and is there
//! once.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::{BufMut as _, Bytes, BytesMut};
use hatchery_proto::frame::{Decoder, Frame, decode_message, encode_apart, encode_item, move_item};
use hatchery_proto::{
    Blob, CallId, Encoded, FrameError, Lane, Part, Parts, Sealed, Shared, ToChild, ToParent, Way,
};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

const LIMIT: usize = 1 << 20;
const CALL: CallId = CallId::new(7);

/// What serde skips tells a move from a copy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Message {
    text: String,
    numbers: Vec<(u64, f32)>,
    blob: Blob,
    #[serde(skip)]
    moved: bool,
}

fn message(text: usize, numbers: u64, blob: usize) -> Message {
    Message {
        text: "x".repeat(text),
        numbers: (0..numbers).map(|n| (n * n, 0.5)).collect(),
        blob: vec![3; blob].into(),
        moved: true,
    }
}

fn frame(stream: &[u8], lane: Option<&Arc<Lane>>) -> Result<Frame, FrameError> {
    let mut decoder = Decoder::new(LIMIT);
    decoder.buffer_mut().put_slice(stream);
    Frame::new(decoder.next_frame()?.unwrap(), lane)
}

/// The value of a stream's message.
fn item(stream: &[u8], lane: Option<&Arc<Lane>>) -> Result<Encoded, FrameError> {
    let Frame::Item { call: CALL, value } = frame(stream, lane)? else {
        panic!("no message of a stream")
    };
    Ok(value)
}

/// The arguments of a call.
fn arguments(stream: &[u8], lane: Option<&Arc<Lane>>) -> Result<Encoded, FrameError> {
    let Frame::Message(message) = frame(stream, lane)? else { panic!("no message") };
    let ToChild::Call { args, .. } = decode_message(&message, lane)? else { panic!("no call") };
    Ok(args)
}

fn call(args: Encoded, limit: usize) -> Result<(BytesMut, Parts), FrameError> {
    let call = ToChild::Call { call: CALL, function: "f".to_owned(), args, deadline: None };
    let mut buffer = BytesMut::new();
    let parts = encode_apart(&call, Way::Inside, limit, &mut buffer);
    assert!(parts.is_ok() || buffer.is_empty(), "what was refused is taken off again");
    Ok((buffer, parts?))
}

fn moved_item(value: impl Serialize + Send + 'static, from: usize) -> (BytesMut, Parts, usize) {
    let mut buffer = BytesMut::from(&b"before"[..]);
    let item = move_item(CALL, value, from, Ok, LIMIT, &mut buffer).unwrap();
    assert_eq!(&buffer.split_to(6)[..], b"before", "what was before is as it was");
    (buffer, item.parts, item.length)
}

fn handed_over(parts: Parts) -> Arc<Lane> {
    assert!(parts.follow.is_empty());
    let lane = Arc::new(Lane::default());
    assert!(lane.push(parts.beside).is_empty());
    lane
}

proptest! {
    /// A message of a stream moves from some length on, which is that of its encoded form, its large
    /// parts included; below it is that form.
    #[test]
    fn messages_move_from_their_encoded_length_on(
        text in 0..300_usize,
        numbers in 0..60_u64,
        blob in prop_oneof![0..100_usize, 16_000..40_000_usize],
        from in prop_oneof![0..2_000_usize, 10_000..50_000_usize],
    ) {
        let value = message(text, numbers, blob);
        let length = Encoded::of(&value).unwrap().len();
        let (frame, parts, counted) = moved_item(value.clone(), from);
        prop_assert_eq!(counted, length);
        let lane = handed_over(parts);
        let come = item(&frame, Some(&lane)).unwrap();
        prop_assert_eq!(come.len(), length);
        let come: Message = come.decode().unwrap();
        let moves = length >= from;
        prop_assert_eq!(come, Message { moved: moves, ..value.clone() });
        prop_assert_eq!(lane.pop(), None);

        let encoded = Encoded::moved(value.clone(), from).unwrap();
        prop_assert_eq!(encoded.len(), length);
        let (frame, parts) = call(encoded, LIMIT).unwrap();
        let lane = handed_over(parts);
        let come: Message = arguments(&frame, Some(&lane)).unwrap().decode().unwrap();
        prop_assert_eq!(come, Message { moved: moves, ..value });
    }

    /// C14: what moves has the limits of what is encoded, to the byte. No limit is below 64 KiB; a value
    /// of less than 128 bytes counts one less in a call.
    #[test]
    fn what_moves_is_as_long_as_its_encoded_form_in_a_frame(
        text in prop_oneof![130..400_usize, 65_000..66_000_usize],
        numbers in 0..60_u64,
    ) {
        let value = (message(text, numbers, 0), 1_u8);
        let mut buffer = BytesMut::new();
        encode_item(CALL, &value, Way::Inside, Ok, LIMIT, &mut buffer).unwrap();
        let length = buffer.len() - 4;
        let mut refused = BytesMut::from(&b"before"[..]);
        let error = move_item(CALL, value.clone(), 0, Ok, length - 1, &mut refused).unwrap_err();
        prop_assert_eq!(error, FrameError::TooLarge { length, limit: length - 1 });
        prop_assert_eq!(&refused[..], b"before");
        prop_assert!(move_item(CALL, value.clone(), 0, Ok, length, &mut refused).is_ok());

        let (buffer, _) = call(Encoded::of(&value).unwrap(), LIMIT).unwrap();
        let length = buffer.len() - 4;
        let args = Encoded::moved(value, 0).unwrap();
        prop_assert!(call(args.clone(), length).is_ok());
        let error = call(args, length - 1).unwrap_err();
        prop_assert_eq!(error, FrameError::TooLarge { length, limit: length - 1 });
    }
}

/// Shared values inside of one that moves count as they do in one that is encoded, and are the same.
#[test]
fn shared_values_move_with_what_they_are_in() {
    let value = || (Shared::new(message(10, 10, 0)), Blob::from(vec![1; 20_000]), 7_u32);
    let length = Encoded::of(&value()).unwrap().len();
    for from in [0, 1, 20, 40, 200, 1_000, length, length + 1] {
        let value = value();
        let (frame, parts, counted) = moved_item(value.clone(), from);
        assert_eq!(counted, length, "from {from}");
        let come = item(&frame, Some(&handed_over(parts))).unwrap();
        let (shared, blob, seven): (Shared<Message>, Blob, u32) = come.decode().unwrap();
        assert_eq!((&blob, seven), (&value.1, 7));
        assert!(std::ptr::eq(&raw const *shared, &raw const *value.0), "from {from}");
    }
}

/// What moved is had once; who wants another type of it has it decoded, or is told what it is.
#[test]
fn what_moved_is_taken_once_and_decoded_for_who_wants_another_type() {
    let (frame, parts, _) = moved_item((1_u8, "text".to_owned()), 0);
    let come = item(&frame, Some(&handed_over(parts))).unwrap();
    let other: (u64, String) = come.decode().unwrap();
    assert_eq!(other, (1, "text".to_owned()));
    let told = come.decode::<Vec<Blob>>().unwrap_err();
    let encoded = Encoded::of(&(1_u8, "text".to_owned())).unwrap();
    assert_eq!(told, encoded.decode::<Vec<Blob>>().unwrap_err(), "as on a process");
    let same: (u8, String) = come.decode().unwrap();
    assert_eq!(same, (1, "text".to_owned()));
    for told in [
        come.decode::<(u8, String)>().map(drop).unwrap_err(),
        come.decode::<(u64, String)>().map(drop).unwrap_err(),
    ] {
        assert!(matches!(&told, FrameError::Decode(why) if why.contains("taken")), "{told:?}");
    }

    let (frame, parts, _) = moved_item((Blob::from(vec![1; 20_000]), Shared::new(5_u8)), 0);
    let come = item(&frame, Some(&handed_over(parts))).unwrap();
    let (bytes, five): (Vec<u8>, Shared<u64>) = come.decode().unwrap();
    assert_eq!((bytes, *five), (vec![1; 20_000], 5));
}

/// A value that can't be encoded doesn't move either.
#[test]
fn what_has_no_encoded_form_does_not_move() {
    struct Fails;
    impl Serialize for Fails {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("not today"))
        }
    }
    for from in [0, 3, 100_000] {
        let refusals = [
            Encoded::moved(("before".to_owned(), Fails), from),
            Encoded::moved(("before".to_owned(), Shared::new(Fails)), from)
                .and_then(|value| value.settled(|part| part.settled(Way::Inside))),
        ];
        for refused in refusals {
            assert_eq!(refused.unwrap_err(), FrameError::Encode("not today".to_owned()));
        }
        let mut buffer = BytesMut::from(&b"before"[..]);
        let refused = move_item(CALL, (1, Fails), from, Ok, LIMIT, &mut buffer).unwrap_err();
        assert_eq!(refused, FrameError::Encode("not today".to_owned()));
        assert_eq!(&buffer[..], b"before");
    }
}

/// For another process it is encoded after all, or refused where nobody has asked for that.
#[test]
fn what_was_to_move_is_encoded_for_another_process() {
    let encoded = Encoded::moved("text".to_owned(), 0).unwrap();
    let settled = encoded.clone().settled(|part| part.settled(Way::Across)).unwrap();
    assert!(!settled.has_parts());
    assert_eq!(settled.decode::<String>().unwrap(), "text");
    let reply = ToParent::Reply { call: CALL, result: Ok(encoded) };
    let refused = encode_apart(&reply, Way::Across, LIMIT, &mut BytesMut::new()).unwrap_err();
    assert!(matches!(refused, FrameError::Encode(_)), "{refused:?}");
}

/// C15: who announces a value that nobody handed over is refused: without a lane, with an empty one,
/// with a value of another length, and with what came as a file or as bytes.
#[test]
fn a_value_that_is_not_there_is_refused() {
    let (of_stream, parts, length) = moved_item("text".to_owned(), 0);
    let (of_call, _) = call(Encoded::moved("text".to_owned(), 0).unwrap(), LIMIT).unwrap();
    let file = Part::File(Sealed { bytes: vec![0; length].into(), file: Arc::new(()) });
    let (_, longer, _) = moved_item("longer".to_owned(), 0);
    let others = [vec![], vec![file], vec![Part::Bytes(vec![0; length].into())], longer.beside];
    let lanes = others.into_iter().map(|parts| {
        let lane = Arc::new(Lane::default());
        lane.push(parts);
        Some(lane)
    });
    for lane in lanes.chain([None]) {
        let again = Arc::new(Lane::default());
        again.push(lane.as_ref().and_then(|lane| {
            let part = lane.pop()?;
            lane.push([part.clone()]);
            Some(part)
        }));
        let again = lane.as_ref().map(|_| &again);
        let refused = item(&of_stream, lane.as_ref()).unwrap_err();
        assert!(matches!(refused, FrameError::Decode(_)), "{refused:?}");
        let refused = arguments(&of_call, again).unwrap_err();
        assert!(matches!(refused, FrameError::Decode(_)), "{refused:?}");
    }
    // Something after it, or less of it.
    for cut in 1..8 {
        let mut short = of_stream[4..of_stream.len() - cut].to_vec();
        let refused = Frame::new(Bytes::from(short.clone()), Some(&handed_over(parts.clone())));
        assert!(matches!(refused, Err(FrameError::Decode(_))), "{refused:?}");
        short.extend([0; 9]);
        let refused = Frame::new(Bytes::from(short), Some(&handed_over(parts.clone())));
        assert!(matches!(refused, Err(FrameError::Decode(_))), "{refused:?}");
    }
}

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Values that wait count for who sends more; bytes are the queue's.
#[test]
fn who_waits_for_room_in_a_lane_is_woken_by_who_takes_or_leaves() {
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let times = || woken.0.load(Ordering::Relaxed);
    let cx = Context::from_waker(&waker);
    let lane = Lane::default();
    let value = || moved_item("x".repeat(97), 0).1.beside;
    let length = moved_item("x".repeat(97), 0).2;
    lane.push([Part::Bytes(vec![0; 50_000].into())]);
    assert!(lane.poll_room(1, &cx).is_ready());
    (0..3).for_each(|_| drop(lane.push(value())));
    assert!(lane.poll_room(3 * length + 1, &cx).is_ready());
    assert_eq!(lane.poll_room(2 * length, &cx), Poll::Pending);
    assert_eq!(lane.poll_room(2 * length, &cx), Poll::Pending);
    assert!(matches!(lane.pop(), Some(Part::Bytes(_))));
    drop(lane.pop());
    assert_eq!((times(), lane.poll_room(2 * length, &cx)), (0, Poll::Pending));
    drop(lane.pop());
    assert_eq!((times(), lane.poll_room(2 * length, &cx)), (1, Poll::Ready(())));
    assert_eq!(lane.poll_room(1, &cx), Poll::Pending);
    lane.close();
    assert_eq!((times(), lane.poll_room(1, &cx)), (2, Poll::Ready(())));
    assert_eq!(lane.push(value()).len(), 1, "nobody takes it");
    assert_eq!(lane.pop(), None);
}

/// A lane that nobody reads any more drops what waits at once, and a destructor that panics stops
/// nobody.
#[test]
fn what_nobody_takes_is_dropped_once() {
    #[derive(Serialize)]
    struct Panics {
        #[serde(skip)]
        _held: Arc<()>,
    }
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("not today");
        }
    }
    let held = Arc::new(());
    let lane = Lane::default();
    for _ in 0..3 {
        lane.push(moved_item(Panics { _held: held.clone() }, 0).1.beside);
    }
    assert_eq!(Arc::strong_count(&held), 4);
    lane.close();
    assert_eq!(Arc::strong_count(&held), 1);
    drop(Encoded::moved(Panics { _held: held.clone() }, 0).unwrap());
    assert_eq!(Arc::strong_count(&held), 1);
}
