//! What happens to one actor of a scope, and what follows for the others.

use super::faults::is_consequence;
use super::{Action, Phase, Scope};
use crate::error::{ExitStatus, Fault, FaultKind};
use crate::id::{ActorId, ActorName, ActorPath};
use crate::message::{Ended, Reason, Why};
use crate::report::ActorReport;
use crate::teardown::{self, Teardown};
use crate::time::Time;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Member {
    pub(super) path: ActorPath,
    pub(super) backend: &'static str,
    /// Its function still runs. Always false for a long-lived one.
    pub(super) running: bool,
    /// Who waits for its function will say something about it. Always false for a long-lived one.
    pub(super) awaited: bool,
    /// Its name is not free yet.
    pub(super) named: bool,
    pub(super) ready: bool,
    /// Its own cancel, not the scope's, was asked for.
    pub(super) cancelled: bool,
    /// We asked it to go, and why at first.
    pub(super) asked: Option<Reason>,
    pub(super) born: bool,
    pub(super) ended: Option<Ended>,
    pub(super) left_behind: Vec<String>,
    pub(super) teardown: Teardown,
}

impl Member {
    /// How it came down.
    pub(super) fn report(self) -> ActorReport {
        let (steps, forced, end) = self.teardown.report();
        let Ended { report: below, dropped, undrained, .. } = self.ended.unwrap_or_default();
        let (path, left_behind) = (self.path, self.left_behind);
        let backend = self.backend.to_owned();
        ActorReport { path, backend, steps, forced, end, undrained, left_behind, below, dropped }
    }
}

impl Scope {
    pub(super) fn not_born(&mut self, id: ActorId, now: Time) {
        if let Some(member) = self.members.get_mut(&id) {
            member.born = false;
        }
        self.free_name(id);
        self.run_over(id);
        self.tell(id, teardown::Event::Settled(ExitStatus::Unknown), now);
        self.forget(id);
    }

    pub(super) fn run_finished(&mut self, id: ActorId, result: Result<(), Box<Fault>>, now: Time) {
        let Some(member) = self.members.get(&id) else { return };
        // Its error is told by who reads it, and again by who waits for it.
        let again = !member.running;
        self.run_over(id);
        let Some(member) = self.members.get(&id) else { return };
        // What a cancel brings about; a crash on the way is judged when it has settled.
        let asked_for = member.cancelled || member.asked.is_some();
        if let Err(fault) = result
            && !(asked_for && is_consequence(&fault.kind))
        {
            self.fail(*fault, Why::SiblingFailed, now);
        }
        if again {
            return;
        }
        let reason = Reason { by: self.path.clone(), why: Why::Finished };
        let budget = self.config.budget;
        self.tell(id, teardown::Event::Cancel { reason, budget }, now);
    }

    pub(super) fn ended(&mut self, id: ActorId, ended: Ended, now: Time) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let faults = ended.faults.clone();
        member.ended = Some(ended);
        self.tell(id, teardown::Event::Leaving, now);
        for fault in faults {
            self.fail(fault, Why::SiblingFailed, now);
        }
    }

    /// What outlives everybody is never silent, whatever else went wrong or was asked for (C1).
    pub(super) fn left_behind(&mut self, id: ActorId, processes: Vec<String>, now: Time) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let (path, message) = (member.path.clone(), processes.join(", "));
        member.left_behind = processes;
        let fault = Fault::new((self.fault_id)(), path, FaultKind::LeftBehind, message);
        self.fail(fault, Why::SiblingFailed, now);
    }

    pub(super) fn settled(&mut self, id: ActorId, status: ExitStatus, fault: Fault, now: Time) {
        let Some(member) = self.members.get(&id) else { return };
        if member.teardown.is_over() {
            self.tell(id, teardown::Event::Settled(status), now);
            self.free_name(id);
            return self.forget(id);
        }
        // Force that met one who was dead already, and only not yet reaped, is no excuse.
        let forced = member.teardown.was_forced() && !member.teardown.broke_unasked();
        let wanted = match &member.ended {
            // It said good-bye, and wanted to go by itself.
            Some(Ended { why: Some(reason), .. }) => reason.why == Why::Requested,
            Some(_) | None => false,
        };
        let asked = member.asked.is_some();
        let left = status == ExitStatus::Code(0) && (asked || wanted);
        // A start that fails is told to its starter.
        let told = !member.ready;
        // Who speaks wrongly while it is being asked to go has still done so.
        let breach = fault.kind == FaultKind::Protocol;
        let excused = left || (asked && forced);
        let crashed = !told && (breach || !excused);
        self.free_name(id);
        self.run_over(id);
        self.tell(id, teardown::Event::Settled(status), now);
        if crashed {
            self.fail(fault, Why::SiblingFailed, now);
        }
        self.forget(id);
    }

    /// Who has settled, and about whom nothing will be said any more, is a line in the report from here
    /// on (C21). Once the scope closes all stay who are there: they are as many as lived.
    pub(super) fn forget(&mut self, id: ActorId) {
        let is_done = |member: &Member| member.teardown.has_settled() && !member.awaited;
        if matches!(self.phase, Phase::Open)
            && self.members.get(&id).is_some_and(is_done)
            && let Some(member) = self.members.remove(&id)
            && member.born
        {
            self.past.push(member.report(), self.config.report_tail_actors);
        }
    }

    /// An actor that has settled leaves its name to the next one, once.
    fn free_name(&mut self, id: ActorId) {
        if let Some(member) = self.members.get_mut(&id)
            && std::mem::take(&mut member.named)
        {
            self.names.remove(
                &ActorName::new(member.path.name())
                    .unwrap_or_else(|_| unreachable!("the path was made from a name")),
            );
        }
    }

    fn run_over(&mut self, id: ActorId) {
        if let Some(member) = self.members.get_mut(&id)
            && std::mem::take(&mut member.running)
        {
            self.running -= 1;
        }
    }

    pub(super) fn tell(&mut self, id: ActorId, event: teardown::Event, now: Time) {
        if let Some(member) = self.members.get_mut(&id)
            && let teardown::Event::Cancel { reason, .. } = &event
        {
            member.asked.get_or_insert_with(|| reason.clone());
        }
        self.drive(id, now, |teardown| teardown.handle(event, now));
    }

    /// Moves one actor's teardown and passes its actions on.
    pub(super) fn drive(&mut self, id: ActorId, now: Time, step: impl FnOnce(&mut Teardown)) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let before = (member.teardown.is_over(), member.teardown.has_settled());
        if let Some(at) = member.teardown.poll_timeout() {
            self.timers.remove(&(at, id));
        }
        step(&mut member.teardown);
        if let Some(at) = member.teardown.poll_timeout() {
            self.timers.insert((at, id));
        }
        if !before.0 && member.teardown.is_over() {
            self.living -= 1;
        }
        if !before.1 && member.teardown.has_settled() {
            self.present -= 1;
        }
        let (path, asked) = (member.path.clone(), member.asked.is_some());
        let mut lost = false;
        while let Some(action) = self.members.get_mut(&id).and_then(|m| m.teardown.poll_action()) {
            if let teardown::Action::GiveUp(step) = action {
                self.run_over(id);
                self.given_up(&path, step);
                lost = !asked;
            }
            self.actions.push_back(Action::Actor { id, action });
        }
        if lost && matches!(self.phase, Phase::Open) {
            // Its channel broke, and nobody knows what became of it: whoever waits for it would
            // wait for ever (C4).
            let reason = Reason { by: path, why: Why::SiblingFailed };
            self.close(reason, self.config.budget, now);
        }
    }
}
