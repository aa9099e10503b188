//! A dump as people read it: the culprit first, then each process with what it wrote down.

use std::fmt;
use std::time::Duration;

use hatchery_proto::board::{Board, Kind, Record};

use super::Dump;
use super::process::{Process, Signals, Thread};

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.culprit {
            Some(culprit) => write!(f, "{culprit}")?,
            None => writeln!(f, "nobody waits for anybody")?,
        }
        writeln!(f)?;
        write(&self.process, f, 0, Some(self.at))
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self, f, 0, None)
    }
}

fn write(
    process: &Process,
    f: &mut fmt::Formatter<'_>,
    depth: usize,
    at: Option<u64>,
) -> fmt::Result {
    let pad = "  ".repeat(depth);
    let Process { pid, name, state, command, .. } = process;
    let Signals { pending, blocked, ignored, caught } = &process.signals;
    writeln!(f, "{pad}{pid} {name} [{state}] {command}")?;
    if let Some(board) = &process.board {
        written(board, f, &pad, at)?;
    }
    writeln!(
        f,
        "{pad}  signals: pending {pending}, blocked {blocked}, ignored {ignored}, caught {caught}"
    )?;
    for Thread { tid, name, state, wchan, syscall, pending, blocked: of_thread } in &process.threads
    {
        write!(f, "{pad}  thread {tid} {name} [{state}] in {wchan}, syscall {syscall}")?;
        if pending.contains(|digit| digit != '0') {
            write!(f, ", pending {pending}")?;
        }
        // The main thread's stands above.
        if of_thread != blocked {
            write!(f, ", blocked {of_thread}")?;
        }
        writeln!(f)?;
    }
    for (fd, leads) in &process.fds {
        write!(f, "{pad}  fd {fd} {}", leads.target)?;
        if let Some(socket) = &leads.socket {
            write!(f, " to {}: {} unread, {} unsent", socket.peer, socket.unread, socket.unsent)?;
        }
        writeln!(f)?;
    }
    process.children.iter().try_for_each(|child| write(child, f, depth + 1, at))
}

/// What a process wrote down: its actors, what each has open, and what happened last.
fn written(board: &Board, f: &mut fmt::Formatter<'_>, pad: &str, at: Option<u64>) -> fmt::Result {
    let at = at.or_else(|| board.events.last().map(|event| event.at)).unwrap_or(0);
    let mut actors: Vec<&Record> =
        (board.records.iter()).filter(|r| r.kind == Kind::Actor).collect();
    actors.sort_by_key(|actor| actor.actor);
    for actor in actors {
        writeln!(f, "{pad}  actor {}: {}{}", actor.who, actor.state, times(actor, at))?;
        let mut open: Vec<&Record> = (board.records.iter())
            .filter(|record| record.actor == actor.actor && record.kind != Kind::Actor)
            .collect();
        open.sort_by_key(|record| (record.kind, record.since));
        for record in open {
            writeln!(f, "{pad}    {}{}", line(record), times(record, at))?;
        }
    }
    if board.missed > 0 || board.blurred > 0 {
        let (missed, blurred) = (board.missed, board.blurred);
        writeln!(
            f,
            "{pad}  not shown: {missed} for want of room, {blurred} that changed meanwhile"
        )?;
    }
    for event in &board.events {
        let ago = Duration::from_nanos(at.saturating_sub(event.at));
        writeln!(f, "{pad}  {ago:>9.1?} ago, #{}: {:?} {}", event.actor, event.what, event.who)?;
    }
    Ok(())
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the enum may grow")]
fn line(record: &Record) -> String {
    let Record { kind, state, number, count, who, what, .. } = record;
    match kind {
        Kind::Nursery => format!("nursery {number}: {state}, {count} not over"),
        Kind::Member => {
            let process = if *count == 0 { String::new() } else { format!(", process {count}") };
            format!("member {who} ({what}{process}) of nursery {number}: {state}")
        }
        Kind::Call => format!("calls `{what}` of {who}"),
        Kind::Serving => format!("serves `{what}` to {who}, call {number}"),
        Kind::Context => format!("context `{what}` with {who}: {state}"),
        Kind::ServingContext => format!("serves context `{what}` to {who}, call {number}: {state}"),
        _ => format!("{kind:?} {who} {what}: {state}"),
    }
}

/// For how long, and how much time is left.
fn times(record: &Record, at: u64) -> String {
    let age = Duration::from_nanos(at.saturating_sub(record.since));
    let left = record.until.map(|until| match until.checked_sub(at) {
        Some(left) => format!(", {:.1?} left", Duration::from_nanos(left)),
        None => format!(", {:.1?} over its time", Duration::from_nanos(at - until)),
    });
    format!(", for {age:.1?}{}", left.unwrap_or_default())
}
