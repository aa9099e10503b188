//! A blob comes back as it was, wherever it stands in a message, and is not copied if it is large.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use hatchery_proto::frame::{
    Blobs, Decoder, Frame, cut, decode, decode_message, decode_shared, encode_apart, encode_item,
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

/// All pieces of a message's frame, one after the other.
fn sent(message: &impl Serialize, in_front: &[u8]) -> Result<(Vec<Bytes>, usize), FrameError> {
    let mut buffer = BytesMut::from(in_front);
    let item = encode_item(CallId::new(7), message, LIMIT, &mut buffer)?;
    let pieces = cut(&mut buffer, in_front.len(), item.blobs);
    assert_eq!(buffer, in_front, "what was before is as it was");
    Ok((pieces, item.length))
}

fn received(pieces: &[Bytes]) -> Bytes {
    let mut decoder = Decoder::new(LIMIT);
    pieces.iter().for_each(|piece| decoder.buffer_mut().put_slice(piece));
    let frame = Frame::new(decoder.next_frame().unwrap().unwrap()).unwrap();
    let Frame::Item { call, value, blobs: 0 } = frame else {
        panic!("no message of a stream: {frame:?}")
    };
    assert_eq!(call, CallId::new(7));
    value
}

proptest! {
    #[test]
    fn messages_with_blobs_come_back(
        sizes in prop::collection::vec(size(), 0..5),
        in_front in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let blobs = (1..).zip(&sizes).map(|(n, size)| Blob::from(vec![n; *size])).collect();
        let message = Message { before: "before".to_owned(), blobs, after: 3 };
        let (pieces, length) = sent(&message, &in_front).unwrap();
        let large = sizes.iter().filter(|size| **size >= LARGE).count();
        for (piece, blob) in pieces.iter().skip(1).step_by(2)
            .zip(message.blobs.iter().filter(|blob| blob.len() >= LARGE)) {
            prop_assert_eq!(piece.as_ptr(), blob.as_ptr(), "a large blob was copied");
        }
        prop_assert!(pieces.len() >= large * 2);
        let value = received(&pieces);
        prop_assert_eq!(value.len(), length);
        prop_assert_eq!(&decode::<Message>(&value).unwrap(), &message);
        let shared: Message = decode_shared(&value).unwrap();
        prop_assert_eq!(&shared, &message);
        for blob in shared.blobs.iter().filter(|blob| blob.len() >= LARGE) {
            prop_assert!(value.as_ptr_range().contains(&blob.as_ptr()), "it was copied");
        }
    }
}

/// C15: blobs that stay outside of the buffer count like everything else.
#[test]
fn a_blob_over_the_limit_is_refused_and_nothing_is_left() {
    let blob = Blob::from(vec![0; LIMIT]);
    let mut buffer = BytesMut::from(&b"before"[..]);
    let refused = encode_item(CallId::new(7), &blob, LIMIT, &mut buffer).unwrap_err();
    assert!(matches!(refused, FrameError::TooLarge { length, limit: LIMIT } if length > LIMIT));
    assert_eq!(&buffer[..], b"before");
}

/// A format that knows nothing of blobs has bytes, and what comes after it is not affected.
#[test]
fn other_formats_copy() {
    let blob = Blob::from(vec![3; LARGE]);
    let text = serde_json::to_string(&blob).unwrap();
    assert_eq!(serde_json::from_str::<Blob>(&text).unwrap(), blob);
    let (pieces, _) = sent(&Vec::from(blob), b"").unwrap();
    assert_eq!(pieces.len(), 1);
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
    let refused = sent(&Fails(Blob::from(vec![3; LARGE])), b"").unwrap_err();
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
    let Frame::Message(message) = Frame::new(decoder.next_frame()?.unwrap())? else {
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
        let same = beside.blobs.iter().zip(&message.blobs).filter(|(blob, _)| blob.len() >= LARGE);
        prop_assert!(same.into_iter().all(|(there, here)| there.as_ptr() == here.as_ptr()));
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
}
