//! A blob comes back as it was, wherever it stands in a message, and is not copied if it is large.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::sync::Arc;

use bytes::{BufMut as _, BytesMut};
use hatchery_proto::frame::{Decoder, Frame, decode, decode_message, encode_apart, encode_item};
use hatchery_proto::{
    Blob, CallId, Encoded, FrameError, Lane, MAX_FILES, Part, Parts, Sealed, Shared, ToChild, Way,
};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Message {
    before: String,
    blobs: Vec<Blob>,
    after: u64,
}

const LARGE: usize = 16 * 1024;
const LIMIT: usize = 1 << 20;

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![0..100_usize, LARGE - 2..LARGE + 2, LARGE..5 * LARGE]
}

/// A stream's message: its frame, the parts that go with it, and the length of its value.
fn sent(
    message: &impl Serialize,
    way: Way,
    in_front: &[u8],
) -> Result<(BytesMut, Parts, usize), FrameError> {
    let mut buffer = BytesMut::from(in_front);
    let item = encode_item(CallId::new(7), message, way, LIMIT, &mut buffer)?;
    assert_eq!(&buffer.split_to(in_front.len())[..], in_front, "what was before is as it was");
    Ok((buffer, item.parts, item.length))
}

fn received(stream: &[u8], lane: Option<&Arc<Lane>>) -> Result<Encoded, FrameError> {
    let mut decoder = Decoder::new(LIMIT);
    decoder.buffer_mut().put_slice(stream);
    match Frame::new(decoder.next_frame()?.unwrap(), lane)? {
        Frame::Item { call, value } => {
            assert_eq!(call, CallId::new(7));
            Ok(value)
        }
        Frame::Message(message) => panic!("no message of a stream: {message:?}"),
    }
}

/// Which of these large blobs are where those are.
fn same(there: &[Blob], here: &[Blob]) -> bool {
    let large = |(blob, _): &(&Blob, &Blob)| blob.len() >= LARGE;
    there.iter().zip(here).filter(large).all(|(there, here)| there.as_ptr() == here.as_ptr())
}

proptest! {
    /// Messages of a stream come back, with their blobs after them or beside them.
    #[test]
    fn messages_with_blobs_come_back(
        sizes in prop::collection::vec(size(), 0..5),
        in_front in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let blobs = (1..).zip(&sizes).map(|(n, size)| Blob::from(vec![n; *size])).collect();
        let message = Message { before: "before".to_owned(), blobs, after: 3 };
        let (mut frame, parts, length) = sent(&message, Way::ACROSS, &in_front).unwrap();
        parts.follow.iter().for_each(|part| frame.put_slice(part));
        let value = received(&frame, None).unwrap();
        prop_assert_eq!(value.len(), length);
        prop_assert_eq!(&value.decode::<Message>().unwrap(), &message);
        let again: Message = value.decode().unwrap();
        prop_assert!(same(&again.blobs, &value.decode::<Message>().unwrap().blobs), "it was copied");

        let lane = Arc::new(Lane::default());
        let (frame, parts, length) = sent(&message, Way::Inside, &in_front).unwrap();
        lane.push(parts.beside);
        let value = received(&frame, Some(&lane)).unwrap();
        prop_assert_eq!(value.len(), length);
        let beside: Message = value.decode().unwrap();
        prop_assert_eq!(&beside, &message);
        prop_assert!(same(&beside.blobs, &message.blobs), "it was copied");
        prop_assert_eq!(lane.pop(), None);
    }
}

/// C15: blobs that stay outside of the buffer count like everything else.
#[test]
fn a_blob_over_the_limit_is_refused_and_nothing_is_left() {
    let blob = Blob::from(vec![0; LIMIT]);
    let mut buffer = BytesMut::from(&b"before"[..]);
    for way in [Way::ACROSS, Way::Inside] {
        let refused = encode_item(CallId::new(7), &blob, way, LIMIT, &mut buffer).unwrap_err();
        assert!(matches!(refused, FrameError::TooLarge { length, limit: LIMIT } if length > LIMIT));
        assert_eq!(&buffer[..], b"before");
    }
}

/// A format that knows nothing of blobs has bytes, and what comes after it is not affected.
#[test]
fn other_formats_copy() {
    let blob = Blob::from(vec![3; LARGE]);
    let text = serde_json::to_string(&blob).unwrap();
    assert_eq!(serde_json::from_str::<Blob>(&text).unwrap(), blob);
    let (_, parts, _) = sent(&Vec::from(blob), Way::ACROSS, b"").unwrap();
    assert!(parts.is_empty());
}

/// A message whose serialization fails after a blob leaves no hint behind.
#[test]
fn a_failure_after_a_blob_leaves_no_trace() {
    struct Fails(Blob);
    impl Serialize for Fails {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let _hinted = serde_json::to_string(&self.0);
            serializer.serialize_str("fine")?;
            Err(serde::ser::Error::custom("not today"))
        }
    }
    let refused = sent(&Fails(Blob::from(vec![3; LARGE])), Way::ACROSS, b"").unwrap_err();
    assert!(matches!(refused, FrameError::Encode(_)));
}

/// A call with these arguments, as its frame and as what goes beside it.
fn call(args: &Message, way: Way, limit: usize) -> Result<(BytesMut, Parts), FrameError> {
    let args = Encoded::of(args)?;
    let message =
        ToChild::Call { call: CallId::new(1), function: "f".to_owned(), args, deadline: None };
    let mut buffer = BytesMut::from(&b"before"[..]);
    let parts = encode_apart(&message, way, limit, &mut buffer);
    assert_eq!(&buffer.split_to(6)[..], b"before");
    assert!(parts.is_ok() || buffer.is_empty(), "what was refused is taken off again");
    Ok((buffer, parts?))
}

/// The arguments of what has come.
fn arguments(stream: &[u8], lane: Option<&Arc<Lane>>) -> Result<Encoded, FrameError> {
    let mut decoder = Decoder::new(LIMIT);
    decoder.buffer_mut().put_slice(stream);
    let Frame::Message(message) = Frame::new(decoder.next_frame()?.unwrap(), lane)? else {
        panic!("no message");
    };
    let message: ToChild = decode_message(&message, lane)?;
    let ToChild::Call { args, .. } = message else { panic!("{message:?}") };
    Ok(args)
}

proptest! {
    /// The blobs of arguments are not copied on their way out, whether they follow their message or
    /// go beside it, and count for the limit in both.
    #[test]
    fn arguments_with_blobs_come_back(sizes in prop::collection::vec(size(), 0..5)) {
        let blobs = (1..).zip(&sizes).map(|(n, size)| Blob::from(vec![n; *size])).collect();
        let message = Message { before: "before".to_owned(), blobs, after: 3 };
        let large: Vec<_> = message.blobs.iter().filter(|blob| blob.len() >= LARGE).collect();

        let (mut frame, parts) = call(&message, Way::ACROSS, LIMIT).unwrap();
        prop_assert!(parts.follow.iter().map(|part| part.as_ptr()).eq(large.iter().map(|blob| blob.as_ptr())));
        parts.follow.iter().for_each(|part| frame.put_slice(part));
        let length = frame.len() - 4;
        let args = arguments(&frame, None).unwrap();
        prop_assert_eq!(&args.decode::<Message>().unwrap(), &message);

        let (frame, parts) = call(&message, Way::Inside, LIMIT).unwrap();
        let lane = Arc::new(Lane::default());
        lane.push(parts.beside);
        let beside: Message = arguments(&frame, Some(&lane)).unwrap().decode().unwrap();
        prop_assert_eq!(&beside, &message);
        prop_assert!(same(&beside.blobs, &message.blobs), "it was copied");
        prop_assert_eq!(lane.pop(), None);

        for way in [Way::ACROSS, Way::Inside] {
            prop_assert!(call(&message, way, length).is_ok());
            let refused = call(&message, way, length - 1).unwrap_err();
            prop_assert_eq!(refused, FrameError::TooLarge { length, limit: length - 1 });
        }
    }
}

/// C15: a message that announces blobs which are not there is refused, whatever they should be.
#[test]
fn blobs_that_are_not_there_are_refused() {
    let blobs = vec![Blob::from(vec![1; LARGE]), Blob::from(vec![2; 2 * LARGE])];
    let message = Message { before: String::new(), blobs, after: 0 };
    let (frame, parts) = call(&message, Way::Inside, LIMIT).unwrap();
    let [one, other] = &parts.beside[..] else { panic!("{parts:?}") };
    let lane = Arc::new(Lane::default());
    for handed_over in [vec![], vec![one.clone()], vec![other.clone(), one.clone()]] {
        lane.push(handed_over);
        let refused = arguments(&frame, Some(&lane)).unwrap_err();
        assert!(matches!(refused, FrameError::Decode(_)), "{refused:?}");
        while lane.pop().is_some() {}
    }
    // Beside a socket there is no lane, and at the end of this frame nothing.
    let refused = arguments(&frame, None).unwrap_err();
    assert!(matches!(refused, FrameError::Decode(_)), "{refused:?}");
    // The same of a stream's message.
    let (frame, _, _) = sent(&message, Way::Inside, b"").unwrap();
    for lane in [None, Some(&lane)] {
        let refused = received(&frame, lane).unwrap_err();
        assert!(matches!(refused, FrameError::Decode(_)), "{refused:?}");
    }
}

/// A blob that a user's own code writes in another format, on the way into a message, is bytes there.
#[test]
fn a_format_inside_of_a_message_has_the_bytes() {
    struct AsText(Blob);
    impl Serialize for AsText {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let text = serde_json::to_string(&self.0).map_err(serde::ser::Error::custom)?;
            let nested = rmp_serde::to_vec(&self.0).map_err(serde::ser::Error::custom)?;
            (text, Blob::from(nested), &self.0).serialize(serializer)
        }
    }
    let blob = Blob::from(vec![3; LARGE]);
    let encoded = Encoded::of(&AsText(blob.clone())).unwrap();
    let (text, nested, same): (String, Blob, Blob) = encoded.decode().unwrap();
    assert_eq!(serde_json::from_str::<Blob>(&text).unwrap(), blob);
    assert_eq!(decode::<Blob>(&nested).unwrap(), blob);
    assert_eq!(same, blob);
}

/// A value that counts how often it is encoded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Table {
    rows: Vec<(u64, String)>,
    #[serde(skip)]
    note: u8,
}

fn table(rows: u64) -> Shared<Table> {
    let rows = (0..rows).map(|row| (row, format!("row {row}"))).collect();
    Shared::new(Table { rows, note: 7 })
}

proptest! {
    /// A shared value comes to a thread as it is, and to a process as it is decoded, among other
    /// fields and beside blobs, in streams and in calls; and counts the same on both ways.
    #[test]
    fn shared_values_come_back(rows in 0..2000_u64, size in size()) {
        let message = (1_u8, table(rows), Blob::from(vec![3; size]), vec![table(2); 2]);
        type Message = (u8, Shared<Table>, Blob, Vec<Shared<Table>>);

        let lane = Arc::new(Lane::default());
        let (frame, parts, inside) = sent(&message, Way::Inside, b"").unwrap();
        lane.push(parts.beside);
        let value = received(&frame, Some(&lane)).unwrap();
        let (_, there, blob, more): Message = value.decode().unwrap();
        prop_assert!(std::ptr::eq(&raw const *there, &raw const *message.1), "it was copied");
        prop_assert_eq!((there.note, more[0].note), (7, 7));
        prop_assert_eq!(&blob, &message.2);
        prop_assert_eq!(value.len(), inside);

        let (mut frame, parts, across) = sent(&message, Way::ACROSS, b"").unwrap();
        prop_assert_eq!(&parts.beside, &vec![]);
        parts.follow.iter().for_each(|part| frame.put_slice(part));
        let (one, there, _, more): Message = received(&frame, None).unwrap().decode().unwrap();
        prop_assert_eq!(&there.rows, &message.1.rows);
        prop_assert_eq!((one, there.note, &more[1].rows), (1, 0, &table(2).rows));
        prop_assert_eq!(inside, across);

        let args = Encoded::of(&message).unwrap();
        let message = ToChild::Call { call: CallId::new(1), function: "f".to_owned(), args, deadline: None };
        for way in [Way::Inside, Way::ACROSS] {
            let mut frame = BytesMut::new();
            let parts = encode_apart(&message, way, LIMIT, &mut frame).unwrap();
            parts.follow.iter().for_each(|part| frame.put_slice(part));
            let lane = (way == Way::Inside).then(|| Arc::new(Lane::default()));
            if let Some(lane) = &lane {
                lane.push(parts.beside);
            }
            let args = arguments(&frame, lane.as_ref()).unwrap();
            prop_assert_eq!(args.len(), across);
            let (_, there, ..): Message = args.decode().unwrap();
            prop_assert_eq!(there.note, if way == Way::Inside { 7 } else { 0 });
        }
    }
}

/// A shared value is a plain one to a format that knows nothing of this, also inside of a message,
/// and the other side may have another type for it.
#[test]
fn a_shared_value_is_a_plain_one_elsewhere() {
    #[derive(Serialize, Deserialize)]
    struct Nested(#[serde(with = "text")] Shared<Table>);
    mod text {
        use super::{Shared, Table};
        use serde::{Deserialize as _, Deserializer, Serializer, de, ser};

        pub(super) fn serialize<S: Serializer>(t: &Shared<Table>, s: S) -> Result<S::Ok, S::Error> {
            s.serialize_str(&serde_json::to_string(t).map_err(ser::Error::custom)?)
        }
        pub(super) fn deserialize<'de, D>(d: D) -> Result<Shared<Table>, D::Error>
        where
            D: Deserializer<'de>,
        {
            serde_json::from_str(&String::deserialize(d)?).map_err(de::Error::custom)
        }
    }
    let plain = rmp_serde::to_vec(&table(3)).unwrap();
    assert_eq!(rmp_serde::from_slice::<Shared<Table>>(&plain).unwrap().rows, table(3).rows);
    let (frame, parts, _) = sent(&Nested(table(3)), Way::Inside, b"").unwrap();
    assert!(parts.is_empty());
    let Nested(there) = received(&frame, None).unwrap().decode().unwrap();
    assert_eq!(there.rows, table(3).rows);

    let lane = Arc::new(Lane::default());
    let (frame, parts, _) = sent(&Shared::new(7_u8), Way::Inside, b"").unwrap();
    lane.push(parts.beside);
    let value = received(&frame, Some(&lane)).unwrap();
    assert_eq!(*value.decode::<Shared<u64>>().unwrap(), 7);
    assert!(matches!(value.decode::<Shared<String>>(), Err(FrameError::Decode(_))));
    assert!(matches!(value.decode::<Blob>(), Err(FrameError::Decode(_))));
}

/// A shared value that can't be encoded is refused on every way: a thread gets nothing that a
/// process would not.
#[test]
fn a_shared_value_without_an_encoded_form_is_refused() {
    #[derive(Clone, Deserialize)]
    struct Fails;
    impl Serialize for Fails {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("not today"))
        }
    }
    for way in [Way::Inside, Way::ACROSS] {
        let refused = sent(&Shared::new(Fails), way, b"before").unwrap_err();
        assert!(matches!(&refused, FrameError::Encode(why) if why.contains("not today")));
    }
}

/// Sealed files go beside the socket, so many a message; the others' bytes follow it, and so does
/// what is below the threshold. What a process can't take spoils this message and no other.
#[test]
fn files_go_beside_and_the_rest_follows() {
    let file = |byte| {
        let bytes = vec![byte; LARGE].into();
        Blob::from(Sealed { bytes, file: Arc::new(()) })
    };
    let mut blobs: Vec<_> = (0..20).map(file).collect();
    blobs.push(vec![20; LARGE].into());
    blobs.insert(0, vec![21; LARGE + 1].into());
    let (mut frame, parts, length) =
        sent(&blobs, Way::Across { files_from: LARGE + 1 }, b"").unwrap();
    assert_eq!(parts.beside.len(), MAX_FILES);
    assert!(matches!(parts.beside[0], Part::Bytes(_)), "to be put into a file");
    assert!(parts.beside[1..].iter().all(|part| matches!(part, Part::File(_))));
    parts.follow.iter().for_each(|part| frame.put_slice(part));

    let lane = Arc::new(Lane::default());
    lane.push(parts.beside.clone());
    let value = received(&frame, Some(&lane)).unwrap();
    assert_eq!(value.len(), length);
    assert_eq!(value.decode::<Vec<Blob>>().unwrap(), blobs);

    let mut some_lost = parts.beside;
    some_lost[3] = Part::Lost("no fd".into());
    lane.push(some_lost);
    let value = received(&frame, Some(&lane)).unwrap();
    let lost = value.decode::<Vec<Blob>>().unwrap_err();
    assert!(matches!(&lost, FrameError::Decode(why) if why.contains("no fd")), "{lost:?}");
    assert_eq!(lane.pop(), None, "the next message finds its own");
}
