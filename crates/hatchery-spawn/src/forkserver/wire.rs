//! What clients and the forkserver say to each other, as bytes. Pure.
//!
//! One SEQPACKET message each, never empty, of at most [`MAX_BYTES`]. Numbers are little endian,
//! texts have their length before them. Both ends are the same image, so there is no version.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::time::Duration;

use super::present::Present;
use super::rights::{Asker, Right};
use crate::confine::{Access, Cgroup, Confinement, Instruction, SyscallFilter, User};
use crate::error::PreloadFailure;
use crate::forkserver::exited::Exited;
use crate::forkserver::manner::{Manner, Note};

/// The longest message, in bytes: below what one datagram may hold by default.
pub(crate) const MAX_BYTES: usize = 160 * 1024;

/// A child that somebody wants. Its fds come beside it, in the order: birth pipe, stdin, stdout,
/// stderr, channel if there is one, then the others, then its spawner's directory if that is sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Request {
    /// Chosen by the client; the answer carries it.
    pub(crate) number: u64,
    /// CLOCK_MONOTONIC, in nanoseconds: nobody waits for the child after it, unless the forkserver
    /// has said something meanwhile.
    pub(crate) deadline: u64,
    /// How long its client waits for the next word of the forkserver, in nanoseconds.
    pub(crate) patience: u64,
    pub(crate) run: Run,
    pub(crate) name: String,
    pub(crate) payload: Vec<u8>,
    /// For a program: what to run, then its arguments.
    pub(crate) argv: Vec<Vec<u8>>,
    /// What a program is told that it is called, in place of what to run.
    pub(crate) arg0: Option<Vec<u8>>,
    pub(crate) env: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    pub(crate) env_clear: bool,
    pub(crate) current_dir: Option<Vec<u8>>,
    pub(crate) has_channel: bool,
    pub(crate) nice: Option<i32>,
    /// Its client says when the child is born: another image is there, or the child has answered. Else
    /// it is born when it is forked.
    pub(crate) is_told: bool,
    /// Children that are born, of those that its client tells about.
    pub(crate) born: Vec<u64>,
    pub(crate) limits: Vec<(u32, u64, u64)>,
    pub(crate) confine: Confinement,
    pub(crate) manner: Manner,
    pub(crate) present: Present,
    pub(crate) asker: Asker,
}

/// Stands for an encoded request that is too long for a message: it is in memory, whose fd comes last.
pub(crate) fn encode_elsewhere(request: &[u8]) -> Vec<u8> {
    request.iter().copied().take(HEAD_BYTES).chain([ELSEWHERE]).collect()
}

/// Number, deadline and patience of a request that is elsewhere; `None` for anything else. No request
/// is that short.
pub(crate) fn decode_elsewhere(bytes: &[u8]) -> Option<(u64, u64, u64)> {
    let mut input = Reader(bytes);
    let head = (input.u64().ok()?, input.u64().ok()?, input.u64().ok()?);
    (input.u8() == Ok(ELSEWHERE) && input.0.is_empty()).then_some(head)
}

/// Another message of a client: its variables, which count for all its requests after this one. What
/// is too long for a message comes in memory, and the message has none.
pub(crate) fn encode_environment(texts: &[u8]) -> Vec<u8> {
    [&ENVIRONMENT[..], texts].concat()
}

/// A client's variables; `None` for anything else. No request has that number, and no signal.
pub(crate) fn decode_environment(bytes: &[u8]) -> Option<&[u8]> {
    bytes.strip_prefix(&ENVIRONMENT).filter(|texts| texts.last().is_none_or(|last| *last == 0))
}

const ENVIRONMENT: [u8; 8] = [0xff; 8];
const ELSEWHERE: u8 = 0xfe;
/// Number, deadline and patience, with which every request begins.
const HEAD_BYTES: usize = 24;

/// The longest request that is elsewhere, in bytes: more than the kernel takes in an exec.
pub(crate) const MAX_ELSEWHERE: usize = 8 * 1024 * 1024;

/// Another message of a client: this signal to that child of mine, of which I hold no pidfd. By the
/// number of its request: a process's own may be somebody else's when this is read (H18).
pub(crate) fn encode_signal(number: u64, signal: u8) -> [u8; SIGNAL_BYTES] {
    let mut out = [SIGNAL; SIGNAL_BYTES];
    out[1] = signal;
    out[2..].copy_from_slice(&number.to_le_bytes());
    out
}

/// Which child to signal, and how; `None` for anything else. No request is that short.
pub(crate) fn decode_signal(bytes: &[u8]) -> Option<(u64, u8)> {
    let (SIGNAL, &[signal, ref number @ ..]) = (*bytes.first()?, bytes.get(1..)?) else {
        return None;
    };
    let number = u64::from_le_bytes(number.try_into().ok()?);
    (1..=SETTLE).contains(&signal).then_some((number, signal))
}

const SIGNAL: u8 = 0xff;
const SIGNAL_BYTES: usize = 10;
/// The highest signal that there is.
pub(crate) const MAX_SIGNAL: u8 = 64;
/// In a signal's place: end it as its request said, by its own signal and after its grace by SIGKILL.
pub(crate) const STOP: u8 = 65;
/// In a signal's place: what it left in its group has had its time.
pub(crate) const SETTLE: u8 = 66;

/// Another message of a client: that child of mine is born, for which others wait. By the number of its
/// request.
pub(crate) fn encode_born(number: u64) -> [u8; BORN_BYTES] {
    let mut out = [BORN; BORN_BYTES];
    out[1..].copy_from_slice(&number.to_le_bytes());
    out
}

/// Which child is born; `None` for anything else. No request is that short.
pub(crate) fn decode_born(bytes: &[u8]) -> Option<u64> {
    let (&BORN, number) = bytes.split_first()? else { return None };
    Some(u64::from_le_bytes(number.try_into().ok()?))
}

/// Of an answer.
const WAITS: u8 = 0x77;
const BORN: u8 = 0xfc;
const BORN_BYTES: usize = 9;

/// The root's message: stop every child, or let all go on.
pub(crate) fn encode_hold(stopped: bool) -> [u8; 2] {
    [HOLD, u8::from(stopped)]
}

/// Whether to stop every child; `None` for anything else. No request is that short.
pub(crate) fn decode_hold(bytes: &[u8]) -> Option<bool> {
    match bytes {
        [HOLD, stopped @ (0 | 1)] => Some(*stopped == 1),
        [..] => None,
    }
}

const HOLD: u8 = 0xfd;
/// How many of those that were left behind are told.
const MAX_LEFT: usize = 100;

/// What the child runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Run {
    /// A main of ours, right after the fork.
    Main(String),
    /// A main of ours, in a fresh image.
    Image(String),
    /// Another program.
    Program,
}

impl Default for Run {
    fn default() -> Self {
        Self::Main(String::new())
    }
}

/// From the forkserver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is up. Without pidfds the kernel, or a filter, lets it have none; `small_pages` is why its
    /// code stays on small pages, empty if it does not or nobody asked for others.
    Ready { pidfds: bool, small_pages: String },
    /// It runs a preload of the program, before it can be up: a sign of life.
    WarmingUp { preload: String },
    /// That preload did not end well; the last message.
    Spoiled { preload: String, failure: PreloadFailure },
    /// It can't be; the last message.
    Unfit { call: String, errno: i32 },
    /// No child came of this request.
    Failed { number: u64, call: String, errno: i32 },
    /// No child came of this request, which was one for a fork without an exec: the forkserver has
    /// other threads.
    Threaded { number: u64, threads: String },
    /// No child came of this request: it would have had a right that its spawner has not.
    Refused { number: u64, right: Right },
    /// The child lives; its pidfd comes beside this, if there is one.
    /// `withheld`: it has a pidfd, which there was no way to pass on. `tell`: others wait for it to be
    /// born.
    Spawned { number: u64, pid: i32, withheld: bool, tell: bool },
    /// Others have their turn; all that was asked for is not forgotten.
    Waits,
    /// Something of a program that is neither its birth nor its status.
    Noted { number: u64, note: Note },
    /// The child is reaped. Always after its `Spawned`.
    Exited(Exited),
    /// What a child that is reaped had started by itself is gone too, but for those.
    Settled { number: u64, left: Vec<Left> },
}

/// A process that a child has left behind, and that could not be ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Left {
    /// Its process id.
    pub pid: u32,
    /// The user whose it is.
    pub uid: u32,
    /// The name of its program, as far as the kernel keeps it: 15 bytes.
    pub name: String,
    /// Whether the kernel refuses to signal it: it has rights that its tree has not, as a set-user-id
    /// program that has taken all ids. Else SIGKILL has not ended it in time.
    pub refused: bool,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why =
            if self.refused { "may not be signalled" } else { "was not ended in time by SIGKILL" };
        write!(f, "process {} (`{}` of user {}), which {why}", self.pid, self.name, self.uid)
    }
}

/// The kind of an [`Answer::Noted`].
const NOTED: u8 = 9;
const REFUSED: u8 = 12;

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a malformed message")
    }
}

impl Request {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(256 + self.payload.len()));
        out.u64(self.number);
        out.u64(self.deadline);
        out.u64(self.patience);
        match &self.run {
            Run::Main(main) => out.tagged(0, main),
            Run::Image(main) => out.tagged(1, main),
            Run::Program => out.tagged(2, ""),
        }
        out.bytes(self.name.as_bytes());
        out.bytes(&self.payload);
        out.u32(self.argv.len());
        for arg in &self.argv {
            out.bytes(arg);
        }
        out.optional(self.arg0.as_deref());
        out.u32(self.env.len());
        for (key, value) in &self.env {
            out.bytes(key);
            out.optional(value.as_deref());
        }
        out.u8(u8::from(self.env_clear));
        out.optional(self.current_dir.as_deref());
        out.u8(u8::from(self.has_channel));
        out.u8(u8::from(self.nice.is_some()));
        out.i32(self.nice.unwrap_or_default());
        out.u8(u8::from(self.is_told));
        out.u32(self.born.len());
        self.born.iter().for_each(|number| out.u64(*number));
        out.u32(self.limits.len());
        for (resource, soft, hard) in &self.limits {
            out.u64(u64::from(*resource));
            out.u64(*soft);
            out.u64(*hard);
        }
        out.confinement(&self.confine);
        out.manner(&self.manner);
        self.present.write(&mut out);
        out.0.extend(self.asker.encode());
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader(bytes);
        let number = input.u64()?;
        let deadline = input.u64()?;
        let patience = input.u64()?;
        let run = match (input.u8()?, input.text()?) {
            (0, main) => Run::Main(main),
            (1, main) => Run::Image(main),
            (2, _) => Run::Program,
            (_, _) => return Err(Malformed),
        };
        let name = input.text()?;
        let payload = input.bytes()?.to_vec();
        let argv = input.list(|input| Ok(input.bytes()?.to_vec()))?;
        let arg0 = input.optional()?.map(<[u8]>::to_vec);
        let env = input.list(|input| {
            let key = input.bytes()?.to_vec();
            Ok((key, input.optional()?.map(<[u8]>::to_vec)))
        })?;
        let env_clear = input.u8()? != 0;
        let current_dir = input.optional()?.map(<[u8]>::to_vec);
        let has_channel = input.u8()? != 0;
        let (has_nice, nice) = (input.u8()? != 0, input.i32()?);
        let is_told = input.u8()? != 0;
        let born = input.list(Reader::u64)?;
        let limits = input.list(|input| {
            let resource = u32::try_from(input.u64()?).map_err(|_| Malformed)?;
            Ok((resource, input.u64()?, input.u64()?))
        })?;
        let confine = input.confinement()?;
        let manner = input.manner()?;
        let present = Present::read(&mut input)?;
        let asker = Asker::decode(input.take()?).ok_or(Malformed)?;
        let program_without_name = run == Run::Program && argv.is_empty();
        if !input.0.is_empty() || program_without_name {
            return Err(Malformed);
        }
        Ok(Self {
            number,
            deadline,
            patience,
            run,
            name,
            payload,
            argv,
            arg0,
            env,
            env_clear,
            current_dir,
            has_channel,
            nice: has_nice.then_some(nice),
            is_told,
            born,
            limits,
            confine,
            manner,
            present,
            asker,
        })
    }
}

impl Answer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(32));
        match self {
            Self::Ready { pidfds, small_pages } => {
                out.tagged(0, small_pages);
                out.u8(u8::from(*pidfds));
            }
            Self::Unfit { call, errno } => {
                out.tagged(1, call);
                out.i32(*errno);
            }
            Self::Failed { number, call, errno } => {
                out.tagged(2, call);
                out.u64(*number);
                out.i32(*errno);
            }
            Self::Spawned { number, pid, withheld, tell } => {
                out.u8(3);
                out.u64(*number);
                out.i32(*pid);
                out.u8(u8::from(*withheld) | u8::from(*tell) << 1);
            }
            Self::Threaded { number, threads } => {
                out.tagged(7, threads);
                out.u64(*number);
            }
            Self::Waits => out.u8(WAITS),
            Self::WarmingUp { preload } => out.tagged(5, preload),
            Self::Spoiled { preload, failure } => {
                out.tagged(6, preload);
                out.failure(failure);
            }
            Self::Exited(exited) => {
                out.u8(4);
                exited.write(&mut out);
            }
            Self::Settled { number, left } => {
                out.u8(8);
                out.u64(*number);
                // As many as a message holds; that there are more changes nothing.
                let left = &left[..left.len().min(MAX_LEFT)];
                out.u32(left.len());
                for Left { pid, uid, name, refused } in left {
                    out.0.extend(pid.to_le_bytes());
                    out.0.extend(uid.to_le_bytes());
                    out.bytes(name.as_bytes());
                    out.u8(u8::from(*refused));
                }
            }
            Self::Noted { number, note } => {
                out.u8(NOTED);
                out.u64(*number);
                out.i32(note.number());
            }
            Self::Refused { number, right } => {
                out.u8(REFUSED);
                out.u64(*number);
                out.u8(*right as u8);
            }
        }
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader(bytes);
        let answer = match input.u8()? {
            0 => Self::Ready { small_pages: input.text()?, pidfds: input.u8()? != 0 },
            1 => Self::Unfit { call: input.text()?, errno: input.i32()? },
            2 => Self::Failed { call: input.text()?, number: input.u64()?, errno: input.i32()? },
            3 => {
                let (number, pid) = (input.u64()?, input.i32()?);
                let flags = input.u8()?;
                Self::Spawned { number, pid, withheld: flags & 1 != 0, tell: flags & 2 != 0 }
            }
            4 => Self::Exited(Exited::read(&mut input)?),
            8 => Self::Settled {
                number: input.u64()?,
                left: input.list(|input| {
                    let (pid, uid, name) = (input.u32()?, input.u32()?, input.text()?);
                    Ok(Left { pid, uid, name, refused: input.u8()? != 0 })
                })?,
            },
            REFUSED => {
                let number = input.u64()?;
                Self::Refused { number, right: Right::from_number(input.u8()?).ok_or(Malformed)? }
            }
            WAITS => Self::Waits,
            5 => Self::WarmingUp { preload: input.text()? },
            6 => Self::Spoiled { preload: input.text()?, failure: input.failure()? },
            7 => Self::Threaded { threads: input.text()?, number: input.u64()? },
            NOTED => {
                let number = input.u64()?;
                let note = Note::from_number(input.i32()?).ok_or(Malformed)?;
                Self::Noted { number, note }
            }
            _ => return Err(Malformed),
        };
        if input.0.is_empty() { Ok(answer) } else { Err(Malformed) }
    }
}

pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    fn u32(&mut self, value: usize) {
        self.0.extend(u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
    }
    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }
    pub(super) fn i32(&mut self, value: i32) {
        self.0.extend(value.to_le_bytes());
    }
    fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len());
        self.0.extend(bytes);
    }
    fn tagged(&mut self, tag: u8, text: &str) {
        self.u8(tag);
        self.bytes(text.as_bytes());
    }
    fn failure(&mut self, failure: &PreloadFailure) {
        match failure {
            PreloadFailure::Panicked { message } => self.tagged(0, message),
            PreloadFailure::LeftThread { thread } => self.tagged(1, thread),
            PreloadFailure::TookTooLong { bound } => {
                self.u8(2);
                self.u64(u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX));
            }
            PreloadFailure::Ended => self.u8(3),
        }
    }
    fn optional(&mut self, bytes: Option<&[u8]>) {
        self.u8(u8::from(bytes.is_some()));
        self.bytes(bytes.unwrap_or_default());
    }
    pub(super) fn optional_u64(&mut self, value: Option<u64>) {
        self.u8(u8::from(value.is_some()));
        self.u64(value.unwrap_or_default());
    }
    fn confinement(&mut self, confine: &Confinement) {
        let Confinement { nice, cpus, no_new_privs, files, filters, users, cgroup } = confine;
        self.u8(u8::from(nice.is_some()));
        self.i32(nice.unwrap_or_default());
        self.u8(u8::from(cpus.is_some()));
        self.u32s(cpus.as_deref().unwrap_or_default());
        self.u8(u8::from(*no_new_privs));
        self.u32(files.len());
        for layer in files {
            self.u32(layer.len());
            for (path, access) in layer {
                self.bytes(path.as_os_str().as_bytes());
                self.u8(*access as u8);
            }
        }
        self.u32(filters.len());
        for SyscallFilter { program } in filters {
            self.u32(program.len());
            for Instruction { code, jt, jf, k } in program {
                self.0.extend(code.to_le_bytes());
                self.0.extend([*jt, *jf]);
                self.0.extend(k.to_le_bytes());
            }
        }
        self.u32(users.len());
        for User { uid, gid, groups } in users {
            self.u8(u8::from(uid.is_some()));
            self.0.extend(uid.unwrap_or_default().to_le_bytes());
            self.u8(u8::from(gid.is_some()));
            self.0.extend(gid.unwrap_or_default().to_le_bytes());
            self.u8(u8::from(groups.is_some()));
            self.u32s(groups.as_deref().unwrap_or_default());
        }
        self.optional(cgroup.as_ref().map(|cgroup| cgroup.parent.as_os_str().as_bytes()));
        self.optional_u64(cgroup.as_ref().and_then(|cgroup| cgroup.memory));
        self.optional_u64(cgroup.as_ref().and_then(|cgroup| cgroup.pids));
    }
    fn manner(&mut self, manner: &Manner) {
        let (signal, grace) = manner.stop.unwrap_or_default();
        self.u8(manner.marks());
        self.u8(signal);
        self.u64(grace);
        self.u64(manner.linger);
        self.i32(manner.group.unwrap_or_default());
        self.u32(manner.places.len());
        for place in &manner.places {
            self.i32(*place);
        }
    }
    fn u32s(&mut self, numbers: &[u32]) {
        self.u32(numbers.len());
        for number in numbers {
            self.0.extend(number.to_le_bytes());
        }
    }
}

pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*head)
    }
    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        self.take::<1>().map(|[byte]| byte)
    }
    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_le_bytes)
    }
    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_le_bytes)
    }
    pub(super) fn i32(&mut self) -> Result<i32, Malformed> {
        self.take().map(i32::from_le_bytes)
    }
    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()? as usize;
        let (head, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(head)
    }
    fn text(&mut self) -> Result<String, Malformed> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| Malformed)
    }
    fn failure(&mut self) -> Result<PreloadFailure, Malformed> {
        Ok(match self.u8()? {
            0 => PreloadFailure::Panicked { message: self.text()? },
            1 => PreloadFailure::LeftThread { thread: self.text()? },
            2 => PreloadFailure::TookTooLong { bound: Duration::from_nanos(self.u64()?) },
            3 => PreloadFailure::Ended,
            _ => return Err(Malformed),
        })
    }
    fn optional(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        let there = self.u8()? != 0;
        let bytes = self.bytes()?;
        Ok(there.then_some(bytes))
    }
    /// A list; its announced length allocates nothing, only what is really there does (C15).
    fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let length = self.u32()?;
        (0..length).map(|_| item(self)).collect()
    }
    pub(super) fn optional_u64(&mut self) -> Result<Option<u64>, Malformed> {
        let there = self.u8()? != 0;
        let value = self.u64()?;
        Ok(there.then_some(value))
    }
    fn path(&mut self) -> Result<std::path::PathBuf, Malformed> {
        Ok(OsString::from_vec(self.bytes()?.to_vec()).into())
    }
    fn confinement(&mut self) -> Result<Confinement, Malformed> {
        let (has_nice, nice) = (self.u8()? != 0, self.i32()?);
        let (has_cpus, cpus) = (self.u8()? != 0, self.list(Self::u32)?);
        let no_new_privs = self.u8()? != 0;
        let files = self.list(|input| input.list(|input| Ok((input.path()?, input.access()?))))?;
        let filters = self.list(|input| {
            let program = input.list(|input| {
                let code = u16::from_le_bytes(input.take()?);
                let (jt, jf) = (input.u8()?, input.u8()?);
                Ok(Instruction { code, jt, jf, k: input.u32()? })
            })?;
            Ok(SyscallFilter { program })
        })?;
        let users = self.list(|input| {
            let (has_uid, uid) = (input.u8()? != 0, input.u32()?);
            let (has_gid, gid) = (input.u8()? != 0, input.u32()?);
            let (has_groups, groups) = (input.u8()? != 0, input.list(Self::u32)?);
            Ok(User {
                uid: has_uid.then_some(uid),
                gid: has_gid.then_some(gid),
                groups: has_groups.then_some(groups),
            })
        })?;
        let has_cgroup = self.u8()? != 0;
        let parent = self.path()?;
        let (memory, pids) = (self.optional_u64()?, self.optional_u64()?);
        Ok(Confinement {
            nice: has_nice.then_some(nice),
            cpus: has_cpus.then_some(cpus),
            no_new_privs,
            files,
            filters,
            users,
            cgroup: has_cgroup.then_some(Cgroup { parent, memory, pids }),
        })
    }
    fn manner(&mut self) -> Result<Manner, Malformed> {
        let marks = self.u8()?;
        let has = |at: u8| marks >> at & 1 == 1;
        let stop = (self.u8()?, self.u64()?);
        let (linger, group) = (self.u64()?, self.i32()?);
        let manner = Manner {
            stop: has(0).then_some(stop),
            linger,
            keep_strays: has(1),
            detach: has(2),
            foreground: has(3),
            session: has(4),
            terminal: has(6),
            group: has(5).then_some(group),
            places: self.list(Self::i32)?,
        };
        if manner.is_sound() { Ok(manner) } else { Err(Malformed) }
    }
    fn access(&mut self) -> Result<Access, Malformed> {
        let number = self.u8()?;
        let all = [Access::Read, Access::Execute, Access::Write];
        all.into_iter().find(|access| *access as u8 == number).ok_or(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;
    use crate::forkserver::rights::Sight;
    use crate::prelude::Step;
    use crate::sys::mode::Mode;
    use crate::usage::Usage;

    fn request() -> Request {
        Request {
            number: 7,
            deadline: 1 << 40,
            patience: 1 << 30,
            run: Run::Program,
            name: "worker".into(),
            payload: vec![1, 2, 3],
            argv: vec![b"ls".to_vec(), b"-l".to_vec()],
            arg0: Some(b"dir".to_vec()),
            env: vec![(b"A".to_vec(), Some(b"b".to_vec())), (b"C".to_vec(), None)],
            env_clear: true,
            current_dir: Some(b"/".to_vec()),
            has_channel: true,
            nice: Some(-7),
            is_told: true,
            born: vec![3, 5],
            limits: vec![(7, 10, 20)],
            confine: Confinement::new()
                .nice(-3)
                .cpus([0, 3])
                .files([("/usr", Access::Execute), ("/tmp", Access::Write)])
                .syscalls(SyscallFilter::deny([1, 2], 38))
                .user_with_groups(1, 2, [3])
                .cgroup(Cgroup::under("/sys/fs/cgroup").memory(1 << 20).pids(7)),
            manner: Manner {
                stop: Some((15, 1 << 33)),
                linger: 5,
                keep_strays: true,
                detach: true,
                foreground: true,
                session: true,
                terminal: true,
                group: None,
                places: vec![9, 3],
            },
            present: Present {
                tid: 77,
                umask: Some(0o27),
                mode: Mode { timer_slack: 50_000, small_pages: true, personality: 1 << 18 },
                has_directory: true,
                has_environment: true,
            },
            asker: Asker { securebits: 3, dumpable: true, sight: Sight::Denied },
        }
    }

    fn spoiled(failure: PreloadFailure) -> Answer {
        Answer::Spoiled { preload: "load".into(), failure }
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(Request::decode(&request().encode()), Ok(request()));
        for answer in [
            Answer::Ready { pidfds: false, small_pages: "none free".into() },
            Answer::WarmingUp { preload: "load".into() },
            Answer::Threaded { number: 3, threads: "`it` (7)".into() },
            spoiled(PreloadFailure::Panicked { message: "no".into() }),
            spoiled(PreloadFailure::LeftThread { thread: "`it` (7)".into() }),
            spoiled(PreloadFailure::TookTooLong { bound: Duration::from_secs(7) }),
            spoiled(PreloadFailure::Ended),
            Answer::Unfit { call: "prctl".into(), errno: 1 },
            Answer::Failed { number: 3, call: "fork".into(), errno: 11 },
            Answer::Refused { number: 3, right: Right::Seccomp },
            Answer::Spawned { number: 3, pid: 99, withheld: true, tell: false },
            Answer::Spawned { number: 3, pid: 99, withheld: false, tell: true },
            Answer::Waits,
            Answer::Exited(Exited {
                number: 99,
                exit: Exit::Signal { signal: 9, core_dumped: true, out_of_memory: true },
                step: Some(Step::Fds),
                usage: Usage::of_words([1, 1 << 40, 3]),
                settled: true,
            }),
            Answer::Noted { number: 3, note: Note::Ended },
            Answer::Noted { number: 3, note: Note::Stopped(21) },
            Answer::Settled { number: 7, left: [true, false].map(left).to_vec() },
        ] {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
    }

    fn left(refused: bool) -> Left {
        Left { pid: 9, uid: 0, name: "sudo".into(), refused }
    }

    #[test]
    fn what_is_elsewhere_is_no_request_and_no_signal() {
        let elsewhere = encode_elsewhere(&request().encode());
        assert_eq!(decode_elsewhere(&elsewhere), Some((7, 1 << 40, 1 << 30)));
        assert_eq!(decode_signal(&elsewhere), None);
        assert_eq!(Request::decode(&elsewhere), Err(Malformed));
        let shortest = Request::default().encode();
        assert!(shortest.len() > elsewhere.len());
        assert_eq!(decode_elsewhere(&shortest), None);
    }

    #[test]
    fn variables_are_no_request_and_no_signal() {
        for texts in [&b""[..], b"A=b\0", b"A=b\0C=d\0\0", b"\0"] {
            let told = encode_environment(texts);
            assert_eq!(decode_environment(&told), Some(texts));
            assert!(decode_signal(&told).is_none() && decode_elsewhere(&told).is_none());
        }
        assert_eq!(decode_environment(&encode_environment(b"A=b")), None, "no end");
        assert_eq!(decode_environment(&request().encode()), None);
        assert_eq!(decode_environment(&encode_signal(u64::MAX, 9)), None);
    }

    #[test]
    fn a_signal_is_no_request_and_no_request_is_a_signal() {
        let signal = encode_signal(77, 9);
        assert_eq!(decode_signal(&signal), Some((77, 9)));
        assert_eq!(Request::decode(&signal), Err(Malformed));
        assert!([0, SETTLE + 1].iter().all(|none| {
            // Nothing that the kernel could take for "is it there".
            decode_signal(&encode_signal(77, *none)).is_none()
        }));
        for stopped in [false, true] {
            assert_eq!(decode_hold(&encode_hold(stopped)), Some(stopped));
            assert_eq!(Request::decode(&encode_hold(stopped)), Err(Malformed));
        }
        let whole = request().encode();
        let other = |length| {
            let cut = &whole[..length];
            decode_signal(cut).is_none() && decode_hold(cut).is_none()
        };
        assert!((0..whole.len()).all(other));
    }

    #[test]
    fn a_word_about_a_birth_is_nothing_else() {
        let word = encode_born(77);
        assert_eq!(decode_born(&word), Some(77));
        assert!(Request::decode(&word).is_err() && decode_elsewhere(&word).is_none());
        assert!(decode_signal(&word).is_none() && decode_hold(&word).is_none());
        assert!((0..word.len()).all(|length| decode_born(&word[..length]).is_none()));
        assert!(decode_born(&Request { number: 0xfc, ..request() }.encode()).is_none());
    }

    /// C15: a cut or changed message is refused, never a panic and never a huge allocation.
    #[test]
    fn every_cut_and_every_changed_byte_is_survived() {
        let whole = request().encode();
        for length in 0..whole.len() {
            assert_eq!(Request::decode(&whole[..length]), Err(Malformed));
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                // Either it still means something or it is refused; both are fine.
                drop(Request::decode(&changed));
                drop(Answer::decode(&changed));
            }
        }
    }
}
