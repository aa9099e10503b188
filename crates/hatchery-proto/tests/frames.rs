//! C15, H23: whatever bytes come, in whatever pieces, the decoder neither panics nor allocates for
//! what was only announced; what was encoded comes back whole.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use bytes::{BufMut as _, BytesMut};
use hatchery_proto::frame::{Decoder, decode, encode};
use hatchery_proto::{ActorPath, Fault, FaultKind, FrameError, ToChild, ToParent};
use proptest::prelude::*;

const LIMIT: usize = 1 << 16;

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut decoder = Decoder::new(LIMIT);
        decoder.buffer_mut().put_slice(&bytes);
        while let Ok(Some(frame)) = decoder.next_frame() {
            drop(decode::<ToChild>(&frame));
            drop(decode::<ToParent>(&frame));
        }
        prop_assert!(decoder.buffer_mut().capacity() < 64 * 1024);
    }

    #[test]
    fn frames_come_back_whole_from_any_pieces(
        texts in prop::collection::vec(".{0,200}", 1..8),
        piece in 1..50_usize,
    ) {
        let mut stream = BytesMut::new();
        for text in &texts {
            encode(text, LIMIT, &mut stream).unwrap();
        }
        let mut decoder = Decoder::new(LIMIT);
        let mut back: Vec<String> = Vec::new();
        for part in stream.chunks(piece) {
            decoder.buffer_mut().put_slice(part);
            while let Some(frame) = decoder.next_frame().unwrap() {
                back.push(decode(&frame).unwrap());
            }
        }
        prop_assert_eq!(back, texts);
    }
}

#[test]
fn a_length_over_the_limit_is_refused_before_its_bytes_come() {
    let mut decoder = Decoder::new(LIMIT);
    decoder.buffer_mut().put_u32(u32::MAX);
    let refused = decoder.next_frame();
    assert_eq!(refused, Err(FrameError::TooLarge { length: u32::MAX as usize, limit: LIMIT }));
}

#[test]
fn a_message_over_the_limit_leaves_the_buffer_as_it_was() {
    let mut buffer = BytesMut::from(&b"before"[..]);
    assert!(encode(&vec![1_u8; LIMIT + 1], LIMIT, &mut buffer).is_err());
    assert_eq!(&buffer[..], b"before");
}

/// C4: a rendered tree of faults names everything once.
#[test]
fn a_rendered_group_names_each_fault_once() {
    let fault = |id| Fault::new(id, ActorPath::root(), FaultKind::Failed, format!("fault {id}"));
    let twice = vec![fault(1).because("a cause"), fault(2), fault(1)];
    let group = Fault::group(9, ActorPath::root(), twice).unwrap();
    let text = group.render();
    assert_eq!(text.matches("fault 1").count(), 1, "{text}");
    assert!(text.contains("because: a cause"), "{text}");
    assert_eq!(Fault::group(9, ActorPath::root(), vec![fault(3)]), Some(fault(3)));
}
