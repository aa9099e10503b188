//! A nursery and its actors as the board of the process shows them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use hatchery_proto::board::{Kind, State, What};
use hatchery_proto::scope::Event;
use hatchery_proto::{ActorId, ActorPath, Time};

use crate::board::{Entry, Mark};
use crate::clock;

/// The lines of one nursery. Guarded by the lock of its scope.
#[derive(Debug)]
pub(super) struct Lines {
    mark: Mark,
    /// Tells the nurseries of one process apart.
    number: u64,
    own: Option<(Entry, State, usize)>,
    members: BTreeMap<ActorId, Member>,
}

#[derive(Debug)]
struct Member {
    entry: Entry,
    path: ActorPath,
    shown: (State, Option<Time>, u32),
}

impl Lines {
    pub(super) fn new(mark: &Mark) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let entry = mark.enter(Kind::Nursery, number, "", "");
        mark.happened(What::NurseryOpened, "");
        let own = Some((entry, State::Open, 0));
        Self { mark: mark.clone(), number, own, members: BTreeMap::new() }
    }

    /// Which actor an event is about.
    pub(super) fn about(event: &Event) -> Option<ActorId> {
        match event {
            Event::Ready(id)
            | Event::NotBorn(id)
            | Event::Told(id)
            | Event::RunFinished { id, .. }
            | Event::Ended { id, .. }
            | Event::Acked(id)
            | Event::ChannelDead(id)
            | Event::Exited(id)
            | Event::LeftBehind { id, .. }
            | Event::Settled { id, .. }
            | Event::CancelActor { id, .. } => Some(*id),
            Event::BodyDone(_) | Event::Cancel { .. } => None,
        }
    }

    pub(super) fn admitted(&mut self, id: ActorId, path: &ActorPath, backend: &str) {
        let entry = self.mark.enter(Kind::Member, self.number, path.as_str(), backend);
        entry.set(State::Starting, None, 0);
        self.mark.happened(What::Starting, path.as_str());
        let shown = (State::Starting, None, 0);
        self.members.insert(id, Member { entry, path: path.clone(), shown });
    }

    pub(super) fn nursery(&mut self, (state, living): (State, usize)) {
        if let Some((entry, shown, count)) = &mut self.own
            && (*shown, *count) != (state, living)
        {
            (*shown, *count) = (state, living);
            entry.set(state, None, u32::try_from(living).unwrap_or(u32::MAX));
        }
    }

    pub(super) fn member(
        &mut self,
        id: ActorId,
        (state, until): (Option<State>, Option<Time>),
        pid: u32,
    ) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let Some(state) = state else {
            let born = member.shown.0 != State::Starting;
            let what = if born { What::Settled } else { What::NotBorn };
            self.mark.happened(what, member.path.as_str());
            self.members.remove(&id);
            return;
        };
        if member.shown == (state, until, pid) {
            return;
        }
        if member.shown.0 != state
            && let Some(what) = step(state)
        {
            self.mark.happened(what, member.path.as_str());
        }
        member.shown = (state, until, pid);
        member.entry.set(state, until.map(clock::shared), pid);
    }

    /// All is over.
    pub(super) fn over(&mut self) {
        self.mark.happened(What::NurseryClosed, "");
        self.own = None;
        self.members.clear();
    }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the enum may grow")]
fn step(state: State) -> Option<What> {
    match state {
        State::Open => Some(What::Ready),
        State::Asked => Some(What::Asked),
        State::Acknowledged => Some(What::Acknowledged),
        State::Terminated => Some(What::Terminated),
        State::Killed => Some(What::Killed),
        State::GivenUp => Some(What::GivenUp),
        _ => None,
    }
}
