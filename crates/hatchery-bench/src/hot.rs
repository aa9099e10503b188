//! The hot paths without a kernel: each runs few rounds and many, for valgrind to count.

use std::hint::black_box;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clap::ValueEnum;
use hatchery_proto::call::Calls;
use hatchery_proto::frame::Frame;
use hatchery_proto::stream::{Incoming, Outgoing, Policy, Terms};
use hatchery_proto::teardown::{Event, Kind, Teardown};
use hatchery_proto::{
    ActorPath, CallId, Config, Decoder, ExitStatus, Reason, Time, ToChild, Way, Why, frame,
};

use crate::Outcome;
use crate::payload::Block;

/// A path that every call, message or teardown takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Hot {
    /// A call becomes a frame.
    EncodeCall,
    /// A frame becomes a call.
    DecodeCall,
    /// A stream's message of 64 bytes becomes a frame.
    EncodeItem,
    /// And is read again.
    DecodeItem,
    /// A call is opened, and its answer finds its caller.
    Dispatch,
    /// Credit is taken, given back, granted.
    Credit,
    /// An actor is asked to stop, acknowledges, ends and is settled.
    Teardown,
}

impl Hot {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn take(self, rounds: u32) -> Outcome {
        match self {
            Self::EncodeCall => encode_calls(rounds)?,
            Self::DecodeCall => decode_calls(rounds)?,
            Self::EncodeItem => encode_items(rounds)?,
            Self::DecodeItem => decode_items(rounds)?,
            Self::Dispatch => dispatch(rounds),
            Self::Credit => credit(rounds)?,
            Self::Teardown => teardown(rounds),
        }
        Ok(())
    }
}

/// What valgrind runs: every path, with few rounds and with many.
pub(crate) fn run() -> Outcome {
    for &path in Hot::value_variants() {
        // The first round buys buffers and looks symbols up.
        path.take(1)?;
        for rounds in [FEW, MANY] {
            measured(path, rounds)?;
        }
    }
    Ok(())
}

/// Instructions are counted from the beginning of this function to its end, by its name.
#[inline(never)]
fn measured(path: Hot, rounds: u32) -> Outcome {
    path.take(black_box(rounds))
}

fn call(number: u64) -> ToChild {
    let args = Bytes::from_static(&[7; 64]);
    ToChild::Call {
        call: CallId::new(number),
        function: "bench::echo".into(),
        args: args.into(),
        deadline: None,
    }
}

fn encode_calls(rounds: u32) -> Outcome {
    let (message, mut buffer) = (call(7), BytesMut::with_capacity(4096));
    for _ in 0..rounds {
        buffer.clear();
        frame::encode(black_box(&message), LIMIT, &mut buffer)?;
    }
    Ok(())
}

fn decode_calls(rounds: u32) -> Outcome {
    let mut encoded = BytesMut::new();
    frame::encode(&call(7), LIMIT, &mut encoded)?;
    let mut decoder = Decoder::new(LIMIT);
    for _ in 0..rounds {
        decoder.buffer_mut().extend_from_slice(&encoded);
        let frame = decoder.next_frame()?.map(|frame| Frame::new(frame, None)).transpose()?;
        if let Some(Frame::Message(message)) = frame {
            black_box(frame::decode::<ToChild>(&message)?);
        }
    }
    Ok(())
}

fn encode_items(rounds: u32) -> Outcome {
    let mut buffer = BytesMut::with_capacity(4096);
    for _ in 0..rounds {
        buffer.clear();
        let block = black_box(Block([7; 64]));
        frame::encode_item(CallId::new(7), &block, Way::Across, Ok, LIMIT, &mut buffer)?;
    }
    Ok(())
}

fn decode_items(rounds: u32) -> Outcome {
    let mut encoded = BytesMut::new();
    frame::encode_item(CallId::new(7), &Block([7; 64]), Way::Across, Ok, LIMIT, &mut encoded)?;
    let mut decoder = Decoder::new(LIMIT);
    for _ in 0..rounds {
        decoder.buffer_mut().extend_from_slice(&encoded);
        let frame = decoder.next_frame()?.map(|frame| Frame::new(frame, None)).transpose()?;
        if let Some(Frame::Item { value, .. }) = frame {
            black_box(value.decode::<Block>()?);
        }
    }
    Ok(())
}

fn dispatch(rounds: u32) {
    let mut calls = Calls::default();
    for _ in 0..rounds {
        if let Ok(call) = calls.open(black_box(7_u64)) {
            black_box(calls.answered(call));
        }
    }
}

fn credit(rounds: u32) -> Outcome {
    let terms = Terms { credit: 1 << 18, policy: Policy::Wait };
    let (mut outgoing, mut incoming) = (Outgoing::new(terms.credit), Incoming::new(terms));
    for _ in 0..rounds {
        if outgoing.send(black_box(66)).is_err() {
            return Err("the credit ran out".into());
        }
        incoming.arrived(66)?;
        incoming.taken(66);
        if let Some(bytes) = incoming.grant() {
            outgoing.granted(bytes)?;
        }
    }
    Ok(())
}

fn teardown(rounds: u32) {
    for _ in 0..rounds {
        black_box(one_teardown());
    }
}

/// Asked, acknowledged, ended, settled: what is decided for every actor that goes as it should.
fn one_teardown() -> bool {
    let mut machine = Teardown::new(Kind::Process, Config::default());
    let reason = Reason { by: ActorPath::root(), why: Why::Requested };
    let budget = Duration::from_secs(3);
    let events = [
        Event::Cancel { reason, budget },
        Event::Acked,
        Event::Leaving,
        Event::ChannelDead,
        Event::Settled(ExitStatus::Code(0)),
    ];
    for (now, event) in (0..).zip(events) {
        machine.handle(event, Time::from_nanos(now));
        while let Some(action) = machine.poll_action() {
            black_box(action);
        }
        black_box(machine.poll_timeout());
    }
    machine.is_over()
}

const LIMIT: usize = 1 << 20;
/// The difference of these is what is counted.
pub(crate) const FEW: u32 = 100;
pub(crate) const MANY: u32 = 1100;
