//! From what processes wrote down and what the kernel says to who waits for whom.

use std::collections::BTreeMap;
use std::time::Duration;

use hatchery_proto::board::{Board, Kind, Record, State};
use hatchery_proto::culprit::{self, Awaited, Culprit, Health, Wait};

use super::process::{FORKSERVER, Process, Thread};

/// The likely culprit of a tree that hangs.
pub(super) fn culprit(root: &Process, now: u64) -> Option<Culprit> {
    let mut seen = Seen::default();
    let processes = root.flatten();
    for process in &processes {
        seen.process(process, now);
    }
    seen.members(&processes);
    culprit::culprit(&seen.waits, &seen.health)
}

#[derive(Default)]
struct Seen {
    waits: Vec<Wait>,
    health: BTreeMap<String, Health>,
    /// Members with a process that has no board of its own yet, or no more.
    owned: Vec<(String, u32, State)>,
}

impl Seen {
    fn process(&mut self, process: &Process, now: u64) {
        if process.command.contains(FORKSERVER) {
            self.health.insert(FORKSERVER.to_owned(), of_thread(process, process.threads.first()));
        }
        let Some(board) = &process.board else { return };
        let actors: BTreeMap<u32, &str> = (board.records.iter())
            .filter(|record| record.kind == Kind::Actor)
            .map(|record| (record.actor, &*record.who))
            .collect();
        for (number, path) in &actors {
            self.health.insert((*path).to_owned(), of_actor(process, *number, path));
        }
        self.open(board, &actors, now);
    }

    fn open(&mut self, board: &Board, actors: &BTreeMap<u32, &str>, now: u64) {
        for record in &board.records {
            let Some(from) = actors.get(&record.actor) else { continue };
            if record.kind == Kind::Member {
                self.owned.push((record.who.clone(), record.count, record.state));
            }
            if let Some(what) = awaited(record) {
                let age = Duration::from_nanos(now.saturating_sub(record.since));
                let (from, to) = ((*from).to_owned(), record.who.clone());
                self.waits.push(Wait { from, to, what, age });
            }
        }
    }

    /// What is known about actors that have written nothing down: dead, or not yet born.
    fn members(&mut self, processes: &[&Process]) {
        for (path, pid, state) in &self.owned {
            if self.health.contains_key(path) {
                continue;
            }
            let process = processes.iter().find(|process| process.pid == *pid && *pid != 0);
            let health = match process {
                Some(process) => of_thread(process, process.threads.first()),
                None if *state == State::Starting => Health::Unknown,
                None => Health::Gone,
            };
            let waits_for_server = process.is_none() || health == Health::Zombie;
            self.health.insert(path.clone(), health);
            // It is the forkserver that lets actors be born, and that reaps them.
            if waits_for_server && self.health.contains_key(FORKSERVER) {
                let what = Awaited::Start;
                let (from, to) = (path.clone(), FORKSERVER.to_owned());
                self.waits.push(Wait { from, to, what, age: Duration::ZERO });
            }
        }
    }
}

/// What an open thing waits for.
#[allow(clippy::wildcard_enum_match_arm, reason = "the enum may grow")]
fn awaited(record: &Record) -> Option<Awaited> {
    match (record.kind, record.state) {
        (Kind::Call | Kind::Context, _) => Some(Awaited::Answer(record.what.clone())),
        (Kind::Member, State::Starting) => Some(Awaited::Start),
        (Kind::Member, State::Asked | State::Acknowledged | State::Terminated | State::Killed) => {
            Some(Awaited::End(record.state.to_string()))
        }
        _ => None,
    }
}

/// How an actor is doing: the first of a process is its main thread, the others have threads of
/// their own, which bear their names.
fn of_actor(process: &Process, number: u32, path: &str) -> Health {
    let name = path.rsplit('/').next().unwrap_or(path);
    let own = process
        .threads
        .iter()
        .find(|thread| number != 0 && !thread.name.is_empty() && name.starts_with(&thread.name));
    let is_root = !path.contains('/');
    let health = of_thread(process, own.or_else(|| process.threads.first()));
    if matches!(health, Health::Blocked(_) | Health::Running) {
        // A root's main thread waits for its workers, and works as anybody likes.
        if is_root {
            return Health::Idle;
        }
        if number != 0 && own.is_none() {
            return Health::Unknown;
        }
    }
    health
}

fn of_thread(process: &Process, thread: Option<&Thread>) -> Health {
    let Some(thread) = thread else {
        return if process.state.starts_with('Z') { Health::Zombie } else { Health::Unknown };
    };
    let place = thread.place();
    match thread.state.chars().next() {
        Some('T' | 't') => Health::Stopped,
        Some('Z' | 'X') => Health::Zombie,
        Some('D') => Health::Uninterruptible(place.to_owned()),
        Some('R') => Health::Running,
        Some('S' | 'I') if IDLE.contains(&place) => Health::Idle,
        Some('S' | 'I') if !place.is_empty() => Health::Blocked(place.to_owned()),
        _ => Health::Unknown,
    }
}

/// Where a runtime with nothing to do waits.
const IDLE: [&str; 5] =
    ["ep_poll", "epoll_wait", "epoll_pwait", "do_epoll_wait", "ep_poll.constprop.0"];
