//! The hot paths without a kernel: what each costs in instructions, beside what was accepted.
//!
//! Time differs from run to run; instructions hardly do. valgrind counts them: each path runs few
//! rounds and many, and the difference is what the rounds cost.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clap::ValueEnum;
use hatchery_proto::call::Calls;
use hatchery_proto::frame::Frame;
use hatchery_proto::stream::{Incoming, Outgoing, Policy, Terms};
use hatchery_proto::teardown::{Event, Kind, Teardown};
use hatchery_proto::{
    ActorPath, CallId, Config, Decoder, ExitStatus, Reason, Time, ToChild, Why, frame,
};
use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::cli::Extent;
use crate::figures::{Samples, Turns};
use crate::payload::Block;
use crate::report::{Goal, Row, Unit};

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
    fn name(self) -> String {
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
        let frame = decoder.next_frame()?.map(Frame::new).transpose()?;
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
        frame::encode_item(CallId::new(7), &block, LIMIT, &mut buffer)?;
    }
    Ok(())
}

fn decode_items(rounds: u32) -> Outcome {
    let mut encoded = BytesMut::new();
    frame::encode_item(CallId::new(7), &Block([7; 64]), LIMIT, &mut encoded)?;
    let mut decoder = Decoder::new(LIMIT);
    for _ in 0..rounds {
        decoder.buffer_mut().extend_from_slice(&encoded);
        let frame = decoder.next_frame()?.map(Frame::new).transpose()?;
        if let Some(Frame::Item { value, .. }) = frame {
            black_box(frame::decode_shared::<Block>(&value)?);
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

pub(crate) fn measure(_: Extent) -> Outcome {
    let accepted = Accepted::read()?;
    let mut counted = Accepted { compiler: compiler(), paths: BTreeMap::new() };
    let counts = count()?;
    for (nth, &path) in Hot::value_variants().iter().enumerate() {
        let row = Row::new("instructions", path.name(), Unit::Count);
        let Some(&count) = counts.as_ref().and_then(|counts| counts.get(nth)) else {
            row.note("not measured: there is no valgrind").tell();
            continue;
        };
        counted.paths.insert(path.name(), count.round());
        let before =
            accepted.paths.get(&path.name()).filter(|_| accepted.compiler == counted.compiler);
        match before {
            Some(before) => {
                let mut turns = Turns::default();
                turns.turn(&Samples::one(*before), &Samples::one(count));
                row.beside("accepted", &turns).goal(Goal::RatioAtMost(TOLERANCE)).tell();
            }
            None => {
                row.alone(&Samples::one(count)).note("nothing accepted for this compiler").tell()
            }
        }
    }
    counted.say_what_is_new(&accepted)
}

/// Instructions of one round of each path; none if nothing counts them here.
fn count() -> Outcome<Option<Vec<f64>>> {
    let dir = std::env::temp_dir().join(format!("hatchery-bench-hot-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let counted = count_into(&dir.join("out"));
    std::fs::remove_dir_all(&dir)?;
    counted
}

fn count_into(file: &Path) -> Outcome<Option<Vec<f64>>> {
    let mut command = Command::new("valgrind");
    command.args([
        "--tool=callgrind",
        "--zero-before=hatchery_bench::hot::measured",
        "--dump-after=hatchery_bench::hot::measured",
    ]);
    command.arg(format!("--callgrind-out-file={}", file.display()));
    command.arg(std::env::current_exe()?).arg("hot").stdin(Stdio::null()).stdout(Stdio::null());
    let Ok(output) = command.output() else { return Ok(None) };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("valgrind could not run the hot paths: {said}").into());
    }
    let mut counts = Vec::new();
    for nth in (1..).step_by(2).take(Hot::value_variants().len()) {
        let [few, many] = [nth, nth + 1].map(|nth| total(&file.with_extension(nth.to_string())));
        counts.push((many? - few?) / f64::from(MANY - FEW));
    }
    Ok(Some(counts))
}

/// How many instructions one of valgrind's files counts.
fn total(file: &Path) -> Outcome<f64> {
    let text = std::fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix("summary: "));
    Ok(line.ok_or("valgrind wrote no summary")?.trim().parse()?)
}

/// What was counted when somebody last looked and found it right.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Accepted {
    /// Another compiler makes other instructions.
    compiler: String,
    /// Instructions a round.
    paths: BTreeMap<String, f64>,
}

impl Accepted {
    fn read() -> Outcome<Self> {
        match std::fs::read(Path::new(FILE)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// A path that costs more than was accepted fails the run, in words that say what to do.
    fn say_what_is_new(&self, accepted: &Self) -> Outcome {
        if std::env::var_os(ACCEPT).is_some() {
            std::fs::write(FILE, serde_json::to_string_pretty(self)? + "\n")?;
            return Ok(());
        }
        if self.compiler != accepted.compiler {
            return Ok(());
        }
        let worse = self.paths.iter().filter_map(|(path, &now)| {
            let &before = accepted.paths.get(path)?;
            (now > before * TOLERANCE).then(|| {
                let more = (now / before - 1.0) * 100.0;
                format!(
                    "{path} takes {now} instructions, {more:.1} % more than the {before} accepted"
                )
            })
        });
        let worse: Vec<String> = worse.collect();
        if worse.is_empty() {
            return Ok(());
        }
        let what_to_do = format!("if that is meant, accept it: run this part with {ACCEPT}=1");
        Err(format!("{}; {what_to_do}", worse.join("; ")).into())
    }
}

fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

const LIMIT: usize = 1 << 20;
const FEW: u32 = 100;
const MANY: u32 = 1100;
/// How much more than accepted is let pass: allocators and hashes are not quite the same each time.
const TOLERANCE: f64 = 1.05;
const ACCEPT: &str = "HATCHERY_BENCH_ACCEPT";
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.json");
