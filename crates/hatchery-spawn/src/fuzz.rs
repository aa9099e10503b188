//! The forkserver's language for those who speak it wrongly on purpose: fuzz targets and tests.
//!
//! Not for people: no promise holds for it from one version to the next.

use crate::confine::{Access, Cgroup, Confinement, SyscallFilter};
use crate::forkserver::exited::Exited;
use crate::forkserver::manner::{Manner, Note};
use crate::forkserver::present::Present;
use crate::forkserver::rights::Asker;
use crate::forkserver::server::monotonic;
use crate::forkserver::wire::{self, Answer, Left, Request, Run};
use crate::{Exit, PreloadFailure};

/// Decodes bytes as whatever a client may send, and shows what they were taken for. What is
/// understood is understood alike when it is written and read once more.
///
/// # Panics
/// If that is not so.
#[must_use]
pub fn request(bytes: &[u8]) -> String {
    if let Some((number, signal)) = wire::decode_signal(bytes) {
        assert_eq!(wire::encode_signal(number, signal), bytes, "a signal has one form");
        return format!("signal {signal} to {number}");
    }
    if let Some(stopped) = wire::decode_hold(bytes) {
        assert_eq!(wire::encode_hold(stopped), bytes, "a hold has one form");
        return format!("hold {stopped}");
    }
    if let Some(texts) = wire::decode_environment(bytes) {
        assert_eq!(wire::encode_environment(texts), bytes, "variables have one form");
        return format!("variables {}", texts.len());
    }
    if let Some((number, ..)) = wire::decode_elsewhere(bytes) {
        assert_eq!(wire::encode_elsewhere(bytes), bytes, "what is elsewhere has one form");
        return format!("elsewhere {number}");
    }
    match Request::decode(bytes) {
        Ok(request) => {
            let shown = format!("{request:?}");
            assert_eq!(Request::decode(&request.encode()), Ok(request));
            shown
        }
        Err(malformed) => malformed.to_string(),
    }
}

/// Decodes bytes as whatever the forkserver may say; see [`request`].
///
/// # Panics
/// See [`request`].
#[must_use]
pub fn answer(bytes: &[u8]) -> String {
    if let Ok(answer) = Answer::decode(bytes) {
        assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
    }
    said(bytes)
}

/// A good request for one of our own mains, to be spoiled. Its fds come beside it: a birth pipe and
/// stdio.
#[must_use]
pub fn good_request(number: u64, main: &str) -> Vec<u8> {
    const PATIENCE: u64 = 60_000_000_000;
    let request = Request {
        number,
        deadline: monotonic().saturating_add(PATIENCE),
        patience: PATIENCE,
        run: Run::Main(main.to_owned()),
        name: main.to_owned(),
        asker: Asker::now(None),
        ..Request::default()
    };
    request.encode()
}

/// A good request of every kind, to be spoiled.
#[must_use]
pub fn good_requests() -> Vec<Vec<u8>> {
    let program = Request {
        number: 7,
        deadline: 1 << 40,
        patience: 1 << 30,
        run: Run::Program,
        name: "worker".to_owned(),
        payload: vec![1, 2, 3],
        argv: vec![b"ls".to_vec(), b"-l".to_vec()],
        arg0: Some(b"dir".to_vec()),
        env: vec![(b"A".to_vec(), Some(b"b".to_vec())), (b"C".to_vec(), None)],
        env_clear: true,
        current_dir: Some(b"/".to_vec()),
        has_channel: true,
        nice: Some(3),
        is_told: true,
        born: vec![6],
        limits: vec![(7, 10, 20)],
        confine: Confinement::new()
            .nice(1)
            .cpus([0, 1])
            .files([("/usr", Access::Execute)])
            .syscalls(SyscallFilter::deny([1], 38))
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
            has_directory: true,
            has_environment: true,
            ..Present::default()
        },
        asker: Asker::default(),
    };
    let image = Request { run: Run::Image("actor".to_owned()), ..program.clone() };
    let requests = [program, image, Request::default()].map(|request| request.encode());
    let (hold, elsewhere) =
        (wire::encode_hold(true).to_vec(), wire::encode_elsewhere(&requests[0]));
    let variables = wire::encode_environment(b"A=b\0C=d\0");
    requests.into_iter().chain([kill(77), hold, elsewhere, variables]).collect()
}

/// A good answer of every kind, to be spoiled.
#[must_use]
pub fn good_answers() -> Vec<Vec<u8>> {
    let call = || "fork".to_owned();
    let all = [
        Answer::Ready { pidfds: true, small_pages: String::new() },
        Answer::Unfit { call: call(), errno: 1 },
        Answer::WarmingUp { preload: call() },
        Answer::Spoiled { preload: call(), failure: PreloadFailure::Panicked { message: call() } },
        Answer::Failed { number: 3, call: call(), errno: 11 },
        Answer::Spawned { number: 3, pid: 99, withheld: false, tell: true },
        Answer::Waits,
        Answer::Noted { number: 3, note: Note::Stopped(21) },
        Answer::Exited(Exited {
            number: 99,
            exit: Exit::Signal { signal: 9, core_dumped: true, out_of_memory: true },
            step: None,
            usage: crate::Usage::of_words([1, 2, 3]),
            settled: true,
        }),
        Answer::Settled {
            number: 99,
            left: vec![Left { pid: 7, uid: 0, name: "sudo".to_owned(), refused: true }],
        },
    ];
    all.iter().map(Answer::encode).collect()
}

/// A request to kill the child that was asked for under that number.
#[must_use]
pub fn kill(number: u64) -> Vec<u8> {
    wire::encode_signal(number, 9).to_vec()
}

/// A root's request to stop every child, or to let all go on.
#[must_use]
pub fn hold(stopped: bool) -> Vec<u8> {
    wire::encode_hold(stopped).to_vec()
}

/// What an answer says.
#[must_use]
pub fn said(bytes: &[u8]) -> String {
    Answer::decode(bytes).map_or_else(|malformed| malformed.to_string(), |said| format!("{said:?}"))
}
