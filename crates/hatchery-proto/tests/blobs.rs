//! A blob comes back as it was, wherever it stands in a message, and is not copied if it is large.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use hatchery_proto::frame::{
    Blobs, Decoder, Frame, decode, decode_message, encode_apart, encode_item,
};
use hatchery_proto::{Blob, CallId, Encoded, FrameError, Lane, ToChild};
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

/// A stream's message: its frame, the blobs that go with it, and the length of its value.
fn sent(
    message: &impl Serialize,
    blobs: Blobs,
    in_front: &[u8],
) -> Result<(BytesMut, Vec<Bytes>, usize), FrameError> {
    let mut buffer = BytesMut::from(in_front);
    let item = encode_item(CallId::new(7), message, blobs, LIMIT, &mut buffer)?;
    assert_eq!(&buffer.split_to(in_front.len())[..], in_front, "what was before is as it was");
    Ok((buffer, item.blobs, item.length))
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
        let (mut frame, parts, length) = sent(&message, Blobs::Follow, &in_front).unwrap();
        parts.iter().for_each(|part| frame.put_slice(part));
        let value = received(&frame, None).unwrap();
        prop_assert_eq!(value.len(), length);
        prop_assert_eq!(&value.decode::<Message>().unwrap(), &message);
        let again: Message = value.decode().unwrap();
        prop_assert!(same(&again.blobs, &value.decode::<Message>().unwrap().blobs), "it was copied");

        let lane = Arc::new(Lane::default());
        let (frame, parts, length) = sent(&message, Blobs::Beside, &in_front).unwrap();
        lane.push(parts);
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
    for blobs in [Blobs::Follow, Blobs::Beside] {
        let refused = encode_item(CallId::new(7), &blob, blobs, LIMIT, &mut buffer).unwrap_err();
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
    let (_, parts, _) = sent(&Vec::from(blob), Blobs::Follow, b"").unwrap();
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
    let refused = sent(&Fails(Blob::from(vec![3; LARGE])), Blobs::Follow, b"").unwrap_err();
    assert!(matches!(refused, FrameError::Encode(_)));
}

/// A call with these arguments, as its frame and as what goes beside it.
fn call(args: &Message, blobs: Blobs, limit: usize) -> Result<(BytesMut, Vec<Bytes>), FrameError> {
    let args = Encoded::of(args)?;
    let message =
        ToChild::Call { call: CallId::new(1), function: "f".to_owned(), args, deadline: None };
    let mut buffer = BytesMut::from(&b"before"[..]);
    let parts = encode_apart(&message, blobs, limit, &mut buffer);
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

        let (mut frame, parts) = call(&message, Blobs::Follow, LIMIT).unwrap();
        prop_assert!(parts.iter().map(|part| part.as_ptr()).eq(large.iter().map(|blob| blob.as_ptr())));
        parts.iter().for_each(|part| frame.put_slice(part));
        let length = frame.len() - 4;
        let args = arguments(&frame, None).unwrap();
        prop_assert_eq!(&args.decode::<Message>().unwrap(), &message);

        let (frame, parts) = call(&message, Blobs::Beside, LIMIT).unwrap();
        let lane = Arc::new(Lane::default());
        lane.push(parts);
        let beside: Message = arguments(&frame, Some(&lane)).unwrap().decode().unwrap();
        prop_assert_eq!(&beside, &message);
        prop_assert!(same(&beside.blobs, &message.blobs), "it was copied");
        prop_assert_eq!(lane.pop(), None);

        for blobs in [Blobs::Follow, Blobs::Beside] {
            prop_assert!(call(&message, blobs, length).is_ok());
            let refused = call(&message, blobs, length - 1).unwrap_err();
            prop_assert_eq!(refused, FrameError::TooLarge { length, limit: length - 1 });
        }
    }
}

/// C15: a message that announces blobs which are not there is refused, whatever they should be.
#[test]
fn blobs_that_are_not_there_are_refused() {
    let blobs = vec![Blob::from(vec![1; LARGE]), Blob::from(vec![2; 2 * LARGE])];
    let message = Message { before: String::new(), blobs, after: 0 };
    let (frame, parts) = call(&message, Blobs::Beside, LIMIT).unwrap();
    let lane = Arc::new(Lane::default());
    for handed_over in [vec![], vec![parts[0].clone()], vec![parts[1].clone(), parts[0].clone()]] {
        lane.push(handed_over);
        let refused = arguments(&frame, Some(&lane)).unwrap_err();
        assert!(matches!(refused, FrameError::Decode(_)), "{refused:?}");
        while lane.pop().is_some() {}
    }
    // Beside a socket there is no lane, and at the end of this frame nothing.
    let refused = arguments(&frame, None).unwrap_err();
    assert!(matches!(refused, FrameError::Decode(_)), "{refused:?}");
    // The same of a stream's message.
    let (frame, _, _) = sent(&message, Blobs::Beside, b"").unwrap();
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
