//! A blob comes back as it was, wherever it stands in a message, and is not copied if it is large.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::sync::Arc;

use bytes::{BufMut as _, BytesMut};
use hatchery_proto::frame::{
    Decoder, Frame, decode, decode_message, encode_apart, encode_item, file_frame, part_head,
};
use hatchery_proto::{
    Blob, CallId, Encoded, FrameError, Lane, Part, Parts, Sealed, Shared, ToChild, Way,
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
    let item = encode_item(CallId::new(7), message, way, Ok, LIMIT, &mut buffer)?;
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
        other @ (Frame::Message(_) | Frame::Part(_) | Frame::File) => {
            panic!("no message of a stream: {other:?}")
        }
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
        let (mut frame, parts, length) = sent(&message, Way::Across, &in_front).unwrap();
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
    for way in [Way::Across, Way::Inside] {
        let refused = encode_item(CallId::new(7), &blob, way, Ok, LIMIT, &mut buffer).unwrap_err();
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
    let (_, parts, _) = sent(&Vec::from(blob), Way::Across, b"").unwrap();
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
    let refused = sent(&Fails(Blob::from(vec![3; LARGE])), Way::Across, b"").unwrap_err();
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

        let (mut frame, parts) = call(&message, Way::Across, LIMIT).unwrap();
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

        for way in [Way::Across, Way::Inside] {
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

/// A value of which not all is encoded.
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

        let (mut frame, parts, across) = sent(&message, Way::Across, b"").unwrap();
        prop_assert_eq!(&parts.beside, &vec![]);
        parts.follow.iter().for_each(|part| frame.put_slice(part));
        let (one, there, _, more): Message = received(&frame, None).unwrap().decode().unwrap();
        prop_assert_eq!(&there.rows, &message.1.rows);
        prop_assert_eq!((one, there.note, &more[1].rows), (1, 0, &table(2).rows));
        prop_assert_eq!(inside, across);

        let args = Encoded::of(&message).unwrap();
        let message = ToChild::Call { call: CallId::new(1), function: "f".to_owned(), args, deadline: None };
        for way in [Way::Inside, Way::Across] {
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
    for way in [Way::Inside, Way::Across] {
        let refused = sent(&Shared::new(Fails), way, b"before").unwrap_err();
        assert!(matches!(&refused, FrameError::Encode(why) if why.contains("not today")));
    }
}

/// Sealed files go beside the socket, the others' bytes follow. What a process can't take spoils this
/// message and no other, and counts all the same, so that its credit comes back.
#[test]
fn files_go_beside_and_the_rest_follows() {
    let file = |byte| {
        let bytes = vec![byte; LARGE].into();
        Blob::from(Sealed { bytes, file: Arc::new(()) })
    };
    let mut blobs: Vec<_> = (0..20).map(file).collect();
    blobs.insert(7, vec![20; LARGE].into());
    let (mut frame, parts, length) = sent(&blobs, Way::Across, b"").unwrap();
    assert_eq!((parts.beside.len(), parts.follow.len()), (20, 1));
    parts.follow.iter().for_each(|part| frame.put_slice(part));

    let lane = Arc::new(Lane::default());
    lane.push(parts.beside.clone());
    assert_eq!(lane.waiting_bytes(), 20 * LARGE);
    let value = received(&frame, Some(&lane)).unwrap();
    assert_eq!(value.len(), length);
    assert_eq!(value.decode::<Vec<Blob>>().unwrap(), blobs);

    let mut some_lost = parts.beside;
    some_lost[3] = Part::Lost { why: "no fd".into(), length: 0 };
    lane.push(some_lost);
    let value = received(&frame, Some(&lane)).unwrap();
    assert_eq!(value.len(), length);
    let lost = value.decode::<Vec<Blob>>().unwrap_err();
    assert!(matches!(&lost, FrameError::Decode(why) if why.contains("no fd")), "{lost:?}");
    assert_eq!(lane.pop(), None, "the next message finds its own");
}

/// What is to lie beside the next message can come in a frame of its own.
#[test]
fn a_part_can_come_in_a_frame_of_its_own() {
    let mut stream = BytesMut::new();
    stream.put_slice(&part_head(5));
    stream.put_slice(b"bytes");
    stream.put_slice(&file_frame());
    let mut decoder = Decoder::new(LIMIT);
    decoder.buffer_mut().put_slice(&stream);
    let mut next = || Frame::new(decoder.next_frame().unwrap().unwrap(), None).unwrap();
    assert_eq!(next(), Frame::Part(b"bytes"[..].into()));
    assert_eq!(next(), Frame::File);
}

/// Serde tries untagged types one by one, and keeps tagged ones until it knows the tag: what lies
/// beside is found all the same, and is never taken for a number.
#[test]
fn blobs_and_shared_values_in_enums_come_back() {
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(u32),
        Two(Blob, u64),
        Other(Blob, String),
        Blob(Blob),
        Shared(Shared<u64>),
    }
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    enum Tagged {
        Blob { blob: Blob },
        Shared { shared: Shared<String> },
    }
    let blob = || Blob::from(vec![3; LARGE]);
    let all = (
        vec![
            Untagged::Blob(blob()),
            Untagged::Other(blob(), "text".to_owned()),
            Untagged::Shared(7.into()),
            Untagged::Number(1),
        ],
        vec![Tagged::Blob { blob: blob() }, Tagged::Shared { shared: "s".to_owned().into() }],
    );
    for way in [Way::Inside, Way::Across] {
        let text = serde_json::to_string(&all.1).unwrap();
        assert!(serde_json::from_str::<Vec<Tagged>>(&text).unwrap() == all.1);
        let (mut frame, parts, _) = sent(&all, way, b"").unwrap();
        parts.follow.iter().for_each(|part| frame.put_slice(part));
        let lane = Arc::new(Lane::default());
        lane.push(parts.beside);
        let value = received(&frame, Some(&lane)).unwrap();
        assert_eq!(value.decode::<Vec<Untagged>>().ok(), None);
        let back: (Vec<Untagged>, Vec<Tagged>) = value.decode().unwrap();
        assert!(back == all);
    }
}

/// A value in this frame, whose one part is those bytes, as somebody hostile writes it.
fn hostile(value: &[u8], extents: &[u64], part: &[u8]) -> Result<Encoded, FrameError> {
    let mut frame = BytesMut::new();
    let length = 9 + 4 + 8 * extents.len() + value.len() + part.len();
    frame.put_u32(length.try_into().unwrap());
    frame.put_u8(0xC1);
    frame.put_u64(7 | 1 << 63);
    frame.put_u32(extents.len().try_into().unwrap());
    extents.iter().for_each(|extent| frame.put_u64(*extent));
    frame.put_slice(value);
    frame.put_slice(part);
    received(&frame, None)
}

/// C15: a part that names itself, or is named again and again, buys neither stack nor memory.
#[test]
fn a_part_can_not_multiply_itself() {
    #[derive(Debug, Serialize, Deserialize)]
    struct Node {
        next: Option<Shared<Self>>,
    }
    const FIRST: [u8; 6] = [0xD6, 0x68, 0, 0, 0, 0];
    let node = [&[0x91, 0x92][..], &FIRST, &[0xC0]].concat();
    let refused = hostile(&node, &[node.len() as u64], &node).unwrap();
    assert!(matches!(refused.decode::<Node>(), Err(FrameError::Decode(_))));

    // An array of the same part, a thousand times.
    let mut many = vec![0xDC, 0x03, 0xE8];
    (0..1000).for_each(|_| many.extend([&[0x92][..], &FIRST, &[0xC0]].concat()));
    let numbers = rmp_serde::to_vec(&vec![1_u64; 1000]).unwrap();
    let value = hostile(&many, &[numbers.len() as u64], &numbers).unwrap();
    let all: Vec<Shared<Vec<u64>>> = value.decode().unwrap();
    assert!(all.iter().all(|one| std::ptr::eq(&raw const **one, &raw const *all[0])));
    // As two types in turn each would be decoded again.
    let two = value.decode::<Vec<(Shared<Vec<u64>>, Shared<Vec<u32>>)>>();
    assert!(matches!(two, Err(FrameError::Decode(_))));
    #[derive(Debug, Deserialize)]
    #[serde(untagged)]
    #[allow(dead_code, reason = "it is only decoded")]
    enum Either {
        One(Shared<Vec<u8>>, u8),
        Other(Shared<Vec<u64>>, Option<u8>),
    }
    let mut pairs = vec![0xDC, 0x03, 0xE8];
    (0..1000).for_each(|_| pairs.extend([&[0x92, 0x92][..], &FIRST, &[0xC0, 0xC0]].concat()));
    let value = hostile(&pairs, &[numbers.len() as u64], &numbers).unwrap();
    let other = |either| match either {
        Either::Other(shared, _) => shared,
        Either::One(..) => panic!("nothing is no number"),
    };
    let all: Vec<_> = value.decode::<Vec<Either>>().unwrap().into_iter().map(other).collect();
    let places: std::collections::HashSet<_> = all.iter().map(|one| &raw const **one).collect();
    assert!(places.len() <= 16, "{} copies", places.len());
}

/// C15: parts that are empty, or more than the value has room to name, are refused.
#[test]
fn parts_cost_what_they_take() {
    let (value, extents) = ([0xC0; 600], vec![0; 100]);
    assert!(matches!(hostile(&value, &extents, b""), Err(FrameError::Decode(_))));
    let part = [7; 101];
    assert!(hostile(&value, &vec![1; 100], &part[..100]).is_ok());
    assert!(matches!(hostile(&value, &vec![1; 101], &part), Err(FrameError::Decode(_))));
}

/// C15: what is lost is as long as somebody says, and that is no reason to panic.
#[test]
fn lost_parts_of_any_length_are_counted() {
    let lost = || Part::Lost { why: "no fd".into(), length: 0 };
    let lane = Arc::new(Lane::default());
    lane.push([lost(), lost()]);
    let mut frame = BytesMut::new();
    frame.put_u32(9 + 4 + 16 + 12);
    frame.put_u8(0xC1);
    frame.put_u64(7 | 1 << 63);
    frame.put_u32(2);
    (0..2).for_each(|_| frame.put_u64(u64::MAX));
    frame.put_bytes(0xC0, 12);
    assert_eq!(received(&frame, Some(&lane)).unwrap().len(), usize::MAX);
}
