//! What the driver holds of a nursery's actors, and what it does to one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hatchery_proto::handshake::{self, Handshake};
use hatchery_proto::scope::{Event, Scope};
use hatchery_proto::{ActorId, Reason, Step, Time, ToChild, teardown};
use hatchery_spawn::{Child, ChildId, notice};
use tokio::sync::oneshot;

use super::bells::Bells;
use crate::board;
use crate::drive::lines::Lines;
use crate::drive::link::Link;
use crate::drive::writer::Priority;
use crate::dump;
use crate::error::{StartCause, StartError};
use crate::start::Pipes;

/// The decisions and what they are carried out with, under one lock.
pub(super) struct Mind {
    pub(super) scope: Scope,
    pub(super) slots: BTreeMap<ActorId, Slot>,
    /// Children whose handshake may not have been answered yet, by when it must be.
    pub(super) handshakes: BTreeSet<(Time, ActorId)>,
    /// What is written down about them for who asks why it hangs.
    pub(super) lines: Lines,
    /// Who waits for the end of one.
    pub(super) bells: Bells,
}

/// What the driver holds of one actor.
pub(super) struct Slot {
    pub(super) link: Arc<Link>,
    pub(super) backend: &'static str,
    pub(super) is_process: bool,
    /// What it writes, if its spawner wanted to read that and has not taken it.
    pub(super) pipes: Pipes,
    pub(super) child: Option<Arc<Child>>,
    /// Decided before the child was there; done when it comes.
    pub(super) signal: Option<Signal>,
    /// Its handshake was answered, maybe before the child was known here.
    pub(super) serving: bool,
    pub(super) handshake: Handshake,
    /// Told once how the start came out.
    pub(super) started: Option<oneshot::Sender<Result<(), StartError>>>,
    /// Why its start has failed; told when it has settled.
    pub(super) failed: Option<StartCause>,
    /// Why it goes, if it does not go unasked: what it said itself, or what it was told first.
    pub(super) leaving: Option<Reason>,
    /// It lived when it was sent a signal that ends it.
    pub(super) struck: bool,
    /// A signal was due, as the cancel alone did not do.
    pub(super) forced: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Signal {
    Terminate,
    Kill,
}

impl Mind {
    /// When a bound runs out next.
    pub(super) fn poll_timeout(&mut self) -> Option<Time> {
        // An answered handshake is forgotten here and not when the answer comes: a timer for each,
        // to be ended by another thread or to run out for nothing, would cost every start a wake-up.
        while let Some((_, id)) = self.handshakes.first()
            && self.slots.get(id).is_none_or(|slot| slot.handshake.poll_timeout().is_none())
        {
            self.handshakes.pop_first();
        }
        let handshake = self.handshakes.first().map(|(until, _)| *until);
        self.scope.poll_timeout().into_iter().chain(handshake).min()
    }

    /// Takes a handshake whose bound has run out, and says what comes of it: nothing if it was
    /// answered.
    pub(super) fn next_late(&mut self, now: Time) -> Option<(ActorId, Option<handshake::Outcome>)> {
        let (_, id) = *self.handshakes.first().filter(|(until, _)| *until <= now)?;
        self.handshakes.pop_first();
        let outcome = self.slots.get_mut(&id).and_then(|slot| {
            slot.excuse(now);
            slot.handshake.handle_timeout(now)
        });
        // It has its time again.
        let again = self.slots.get(&id).and_then(|slot| slot.handshake.poll_timeout());
        self.handshakes.extend(again.map(|until| (until, id)));
        Some((id, outcome))
    }

    /// Nobody is called unreapable who is dead, and whom only the forkserver has had no time to reap:
    /// his status is given up on instead.
    pub(super) fn spare_the_dead(&mut self, now: Time) {
        let due: Vec<_> = self.scope.gives_up(now).collect();
        for id in due {
            let child = self.slots.get(&id).and_then(|slot| slot.child.as_ref());
            if child.is_some_and(|child| child.handle().forgo_status()) {
                self.scope.handle(Event::Exited(id), now);
            }
        }
    }

    /// Writes down how the nursery and one of its actors are doing.
    pub(super) fn show(&mut self, id: Option<ActorId>) {
        self.lines.nursery(self.scope.stage());
        if let Some(id) = id {
            // Who is forgotten is over.
            let stage = self.scope.member(id).unwrap_or_default();
            let child = self.slots.get(&id).and_then(|slot| slot.child.as_ref());
            let pid = child.and_then(|child| match child.id() {
                ChildId::Process(pid) => Some(pid),
                ChildId::Thread(_) => None,
            });
            self.lines.member(id, stage, pid.unwrap_or(0));
        }
    }
}

impl Slot {
    /// What watched over its birth is not needed any more.
    pub(super) fn serves(&mut self) {
        self.serving = true;
        if let Some(child) = &self.child {
            child.handle().born();
        }
    }

    /// Grants the time again in which its process could not run, and that in which its answer, which
    /// has come, waits for a reader of ours to have its turn. A crowd that starts at once takes both from
    /// its own; nothing is asked of the kernel before a bound has run out.
    fn excuse(&mut self, now: Time) {
        if self.handshake.poll_timeout().is_none() {
            return;
        }
        let Some(ChildId::Process(pid)) = self.child.as_ref().map(|child| child.id()) else {
            return;
        };
        let elapsed = now.since(self.handshake.began());
        let unread = self.link.outbox.is_unread().then_some(elapsed);
        let lost = unread.or_else(|| starved(pid, elapsed));
        self.handshake.excused(lost.unwrap_or_default());
    }

    pub(super) fn perform(&mut self, action: teardown::Action) {
        match action {
            teardown::Action::SendCancel { reason, budget } => {
                self.leaving.get_or_insert_with(|| reason.clone());
                // If the channel is closed, the reader says so and the ladder goes on.
                let cancel = ToChild::Cancel { reason, budget, sent: board::now() };
                drop(self.link.outbox.push(Priority::Control, &cancel));
            }
            teardown::Action::Terminate => {
                self.forced = true;
                self.signal(Signal::Terminate);
            }
            teardown::Action::Kill => {
                self.forced = true;
                self.signal(Signal::Kill);
            }
            teardown::Action::GiveUp(step) => self.give_up(step),
            teardown::Action::BreakChannel => self.link.outbox.break_channel(),
        }
    }

    pub(super) fn signal(&mut self, signal: Signal) {
        let Some(child) = &self.child else {
            self.signal = Some(signal);
            return;
        };
        self.struck |= !child.handle().is_dead();
        let sent = match signal {
            Signal::Terminate => child.terminate(),
            Signal::Kill => child.kill(),
        };
        if let Err(error) = sent {
            let path = self.link.path.clone();
            notice::post(move || tracing::warn!(%error, %path, "signal not sent"));
        }
    }

    fn give_up(&mut self, step: Step) {
        self.pipes = Pipes::default();
        let Some(child) = self.child.take() else { return };
        if step == Step::Abandoned {
            child.abandon("did not end inside the teardown budget");
        } else {
            let path = self.link.path.clone();
            notice::post(move || {
                tracing::error!(%path, dump = dump::of_this_tree(), "a process did not end on SIGKILL");
            });
        }
    }
}

/// How long of the last `elapsed` a process wanted a processor and had none; `None` if the kernel does
/// not say. It lives, or is a zombie: nobody else has its number, as its status is not known yet.
fn starved(pid: u32, elapsed: Duration) -> Option<Duration> {
    let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let times = read("schedstat")?;
    let mut times = times.split_whitespace().map_while(|time| time.parse().ok());
    let (ran, waited) = (times.next()?, times.next()?);
    let stat = read("stat")?;
    let waits_now = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('R'));
    // The wait that is not over yet is not among them.
    let waited = if waits_now {
        elapsed.saturating_sub(Duration::from_nanos(ran))
    } else {
        Duration::from_nanos(waited)
    };
    Some(waited.min(elapsed))
}
