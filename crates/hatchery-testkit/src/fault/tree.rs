//! The processes of a living tree by their actors' paths, and the moments of an actor's life.
//!
//! Both are read from the boards on which every process writes down what its actors do, and from
//! `/proc`; nobody who is looked at has to help.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::time::{Duration, Instant};

use hatchery_proto::board::{self, Board, Kind, Record, State};
use hatchery_spawn::Pidfd;
use nix::libc;

use super::{children_of, is_up};

/// What is done to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Stop,
    /// SIGCONT.
    Continue,
}

/// A moment in the life of an actor, as its spawner and the actor itself have written it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Its start is asked for, and its forkserver stands still: [`Tree::at`] stops it, and lets it
    /// go on when the fault has been done.
    BeforeFork,
    /// Its process is there and has not shaken hands. It is caught by stopping it; it goes on when
    /// the fault has been done. Easily missed on an idle machine, unless something holds the birth,
    /// as a backend whose children stop themselves.
    AtBirth,
    /// It has shaken hands.
    Ready,
    /// It answers a call.
    InCall,
    /// It is the other side of a context or stream.
    InStream,
    /// It has acknowledged a cancel.
    CancelAcknowledged,
    /// It has got SIGTERM, and no SIGKILL yet.
    Terminated,
}

/// Why a fault was not done.
#[derive(Debug, thiserror::Error)]
pub enum Missed {
    /// The moment did not come within the bound, or had passed.
    #[error("{moment:?} of `{path}` was not seen within {bound:?}")]
    Moment {
        /// Which moment.
        moment: Moment,
        /// Whose.
        path: String,
        /// How long was waited for it.
        bound: Duration,
    },
    /// Nobody of that path lives.
    #[error("`{0}` has no process")]
    Nobody(String),
    /// The actor of that path is a thread: a signal would hit all that is in its process.
    #[error("`{0}` is a thread of process {1}, not a process of its own")]
    Thread(String, u32),
    /// The signal could not be sent.
    #[error(transparent)]
    Signal(#[from] io::Error),
}

/// A living tree, seen from outside, or from its own root.
#[derive(Debug, Clone, Copy)]
pub struct Tree {
    root: u32,
}

/// Where an actor is.
#[derive(Debug, Clone, Copy)]
struct Host {
    pid: u32,
    /// It is a thread in the process of another actor.
    is_shared: bool,
}

/// The name by which [`Tree::hit`] knows the forkserver.
pub const FORKSERVER: &str = "forkserver";

impl Tree {
    /// The tree whose root is this process.
    #[must_use]
    pub fn mine() -> Self {
        Self::of(std::process::id())
    }

    /// The tree of the root `pid`.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        Self { root: pid }
    }

    /// The forkserver, if it is up.
    #[must_use]
    pub fn forkserver(&self) -> Option<u32> {
        children_of(self.root).into_iter().find(|pid| is_up(*pid))
    }

    /// Every process of the tree, by the path of its actor, and `forkserver`. An actor may be
    /// missing until a moment after its handshake. Actors that are threads have no process.
    #[must_use]
    pub fn pids(&self) -> BTreeMap<String, u32> {
        let server = self.forkserver();
        let own = self.actors().into_iter().filter(|(_, host)| !host.is_shared);
        let mut found: BTreeMap<String, u32> = own.map(|(path, host)| (path, host.pid)).collect();
        found.extend(server.map(|pid| (FORKSERVER.to_owned(), pid)));
        found
    }

    /// In which process each actor is.
    fn actors(&self) -> BTreeMap<String, Host> {
        let boards = self.boards().flat_map(|(pid, board)| {
            let actors = board.records.into_iter().filter(|record| record.kind == Kind::Actor);
            // The first actor of a process is its own, the others are threads of it.
            actors.map(move |record| (record.who, Host { pid, is_shared: record.actor != 0 }))
        });
        boards.collect()
    }

    /// The process of the actor at `path`, held so that its number can't change hands.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<Pidfd> {
        let pid = *self.pids().get(path)?;
        let process = Pidfd::open(pid).ok()?;
        (!process.is_dead()).then_some(process)
    }

    /// Does it now, to the actor at `path` or to [`FORKSERVER`].
    ///
    /// # Errors
    /// [`Missed::Nobody`], [`Missed::Thread`], [`Missed::Signal`].
    pub fn hit(&self, path: &str, fault: Fault) -> Result<Pidfd, Missed> {
        let Some(process) = self.find(path) else {
            return Err(match self.actors().get(path).filter(|host| host.is_shared) {
                Some(host) => Missed::Thread(path.to_owned(), host.pid),
                None => Missed::Nobody(path.to_owned()),
            });
        };
        send(&process, fault)?;
        Ok(process)
    }

    /// The same to one who may have shaken hands and not yet written down who it is.
    fn hit_by(&self, until: Instant, path: &str, fault: Fault) -> Result<Pidfd, Missed> {
        loop {
            match self.hit(path, fault) {
                Err(Missed::Nobody(_)) if Instant::now() < until => look_again(),
                done => return done,
            }
        }
    }

    /// Waits for a moment of the actor at `path`, at most `bound`, and does it to `whom`.
    ///
    /// For [`Moment::BeforeFork`] call it before the start is asked for, from another thread.
    ///
    /// # Errors
    /// See [`Missed`].
    pub fn at(
        &self,
        moment: Moment,
        path: &str,
        bound: Duration,
        whom: &str,
        fault: Fault,
    ) -> Result<Pidfd, Missed> {
        let held = if moment == Moment::BeforeFork {
            Some(self.hit(FORKSERVER, Fault::Stop)?)
        } else {
            None
        };
        let until = Instant::now() + bound;
        let done = self.wait(moment, path, bound).and_then(|caught| match caught {
            Some(child) if whom == path => {
                send(&child, fault)?;
                Ok(child)
            }
            caught => {
                let done = self.hit_by(until, whom, fault);
                if let Some(child) = caught {
                    // It is dead by now, perhaps.
                    let _gone = send(&child, Fault::Continue);
                }
                done
            }
        });
        if let Some(server) = held.filter(|_| fault != Fault::Stop || whom != FORKSERVER) {
            let _gone = send(&server, Fault::Continue);
        }
        done
    }

    /// Waits for a moment; gives back the process that was stopped to hold it.
    fn wait(&self, moment: Moment, path: &str, bound: Duration) -> Result<Option<Pidfd>, Missed> {
        let until = Instant::now() + bound;
        let spawner = path.rsplit_once('/').map_or("", |(spawner, _)| spawner);
        let mut known = None;
        loop {
            if moment == Moment::AtBirth {
                if let Some(child) = self.newborn(path) {
                    if self.is(spawner, &mut known, |one| is_member(one, path, State::Starting)) {
                        return Ok(Some(child));
                    }
                    let _gone = send(&child, Fault::Continue);
                    return Err(Missed::Moment { moment, path: path.to_owned(), bound });
                }
            } else if self.has_come(moment, path, spawner, &mut known) {
                return Ok(None);
            }
            if Instant::now() >= until {
                return Err(Missed::Moment { moment, path: path.to_owned(), bound });
            }
            look_again();
        }
    }

    fn has_come(&self, moment: Moment, path: &str, spawner: &str, known: &mut Option<u32>) -> bool {
        let mut member = |state| self.is(spawner, known, |one| is_member(one, path, state));
        match moment {
            Moment::BeforeFork | Moment::AtBirth => member(State::Starting),
            Moment::Ready => member(State::Open),
            Moment::CancelAcknowledged => member(State::Acknowledged),
            Moment::Terminated => member(State::Terminated),
            Moment::InCall => self.is(path, known, |one| one.kind == Kind::Serving),
            Moment::InStream => {
                let is_open = |one: &Record| one.state == State::Open;
                self.is(path, known, |one| one.kind == Kind::ServingContext && is_open(one))
            }
        }
    }

    /// Whether the process of the actor at `path` has a record like that.
    fn is(&self, path: &str, known: &mut Option<u32>, like: impl Fn(&Record) -> bool) -> bool {
        if known.is_none() {
            *known = self.actors().get(path).map(|host| host.pid);
        }
        let board = known.and_then(board_of);
        board.is_some_and(|board| board.records.iter().any(like))
    }

    /// The process of the actor that is being born, stopped.
    fn newborn(&self, path: &str) -> Option<Pidfd> {
        let name = path.rsplit('/').next()?;
        let child = super::find_child(self.forkserver()?, name)?;
        send(&child, Fault::Stop).ok()?;
        Some(child)
    }

    fn boards(&self) -> impl Iterator<Item = (u32, Board)> {
        let actors = self.forkserver().map(children_of).unwrap_or_default();
        let all = std::iter::once(self.root).chain(actors);
        all.filter_map(|pid| Some((pid, board_of(pid)?)))
    }
}

/// A moment of an actor's life may be as short as its handshake.
const LOOK_AGAIN: Duration = Duration::from_micros(100);

/// What another process writes down is no event of this one.
fn look_again() {
    #[allow(clippy::disallowed_methods, reason = "nobody tells")]
    std::thread::sleep(LOOK_AGAIN);
}

fn is_member(record: &Record, path: &str, state: State) -> bool {
    record.kind == Kind::Member && record.state == state && record.who == path
}

fn send(process: &Pidfd, fault: Fault) -> io::Result<()> {
    process.send_signal(match fault {
        Fault::Kill => libc::SIGKILL,
        Fault::Stop => libc::SIGSTOP,
        Fault::Continue => libc::SIGCONT,
    })
}

/// What a process has written down, if it has an actor.
fn board_of(pid: u32) -> Option<Board> {
    let name = format!("/memfd:{}", board::NAME.to_str().ok()?);
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let path = fds.flatten().map(|entry| entry.path()).find(|path| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with(&name))
    })?;
    board::read(&words(&path)?, &words(&path)?).ok()
}

/// The part of a board that is in use.
fn words(path: &std::path::Path) -> Option<Vec<u64>> {
    let mut file = File::open(path).ok()?;
    let mut read = |words: usize| {
        let mut bytes = vec![0; words * 8];
        file.read_exact(&mut bytes).ok()?;
        let (words, _rest) = bytes.as_chunks::<8>();
        Some(words.iter().map(|word| u64::from_le_bytes(*word)).collect::<Vec<u64>>())
    };
    let mut all = read(board::SLOTS_AT)?;
    let more = board::used(&all).saturating_sub(all.len());
    all.extend(read(more)?);
    Some(all)
}
