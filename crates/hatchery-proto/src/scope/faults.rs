//! What went wrong: what counts, once, in which order, and whom it takes down.

use super::{Body, Phase, Scope};
use crate::error::{Fault, FaultKind};
use crate::id::ActorPath;
use crate::message::{Reason, Why};
use crate::report::Step;
use crate::time::Time;

impl Scope {
    /// Something went wrong that belongs to no actor; it will be among the faults, unless it only says that
    /// the scope goes down already, as a start that comes too late does.
    pub fn note(&mut self, fault: Fault) {
        if self.is_expected(&fault) {
            return;
        }
        if !self.faults.iter().any(|known| known.contains(fault.id)) && self.seen.insert(fault.id) {
            self.faults.push(fault);
        }
    }

    pub(super) fn body_done(&mut self, result: Result<(), Box<Fault>>, now: Time) {
        self.body = Body::Done;
        match result {
            Ok(()) => {}
            Err(fault) if self.is_explained(&fault) => {}
            Err(fault) => {
                // Its own error comes first, whatever else was found before; if it is one that we
                // know already, it moves to the front (H16).
                self.faults.retain(|known| known.id != fault.id);
                self.seen.insert(fault.id);
                self.faults.insert(0, *fault);
                let by = self.path.clone();
                self.close(Reason { by, why: Why::BodyFailed }, self.config.budget, now);
            }
        }
    }

    /// Whether the body's error says only that the scope goes down, which has its cause elsewhere: the
    /// body was polled once more before it was dropped. One that is known already is none of these, as
    /// its place is the first.
    fn is_explained(&self, fault: &Fault) -> bool {
        let has_cause = self.cancelled.is_some()
            || (matches!(self.phase, Phase::Closing { .. }) && !self.faults.is_empty());
        let is_known = self.faults.iter().any(|known| known.id == fault.id);
        has_cause && !is_known && is_consequence(&fault.kind)
    }

    /// Whether it is what going down brings about anyway. Deaths are told, as they say how somebody ended.
    fn is_expected(&self, fault: &Fault) -> bool {
        let closing = !matches!(self.phase, Phase::Open);
        closing && is_consequence(&fault.kind) && !is_death(&fault.kind)
    }

    /// Something went wrong: remember it, once, and take everybody down.
    pub(super) fn fail(&mut self, fault: Fault, why: Why, now: Time) {
        if self.is_expected(&fault) {
            return;
        }
        let closing = !matches!(self.phase, Phase::Open);
        if self.faults.iter().any(|known| known.contains(fault.id)) || !self.seen.insert(fault.id) {
            return;
        }
        let by = fault.path.clone();
        if !self.explain(&fault) {
            self.faults.push(fault);
        }
        if !closing {
            self.close(Reason { by, why }, self.config.budget, now);
        }
    }

    /// A death that comes late says what became of an actor that is known as lost (C4).
    fn explain(&mut self, death: &Fault) -> bool {
        let is_it = |known: &&mut Fault| known.kind == FaultKind::Lost && known.path == death.path;
        let lost = self.faults.iter_mut().find(is_it).filter(|_| is_death(&death.kind));
        let Some(lost) = lost else { return false };
        lost.kind = death.kind.clone();
        lost.message.clone_from(&death.message);
        lost.output.clone_from(&death.output);
        true
    }

    /// Somebody who stays behind is never silent (C5).
    pub(super) fn given_up(&mut self, path: &ActorPath, step: Step) {
        let (kind, message) = match step {
            Step::Abandoned => (FaultKind::Abandoned, "the thread did not end in time"),
            Step::Asked
            | Step::Acknowledged
            | Step::Unacknowledged
            | Step::ChannelDead
            | Step::Terminated
            | Step::Killed
            | Step::Paused
            | Step::Settled
            | Step::Unreapable => (FaultKind::Unreapable, "SIGKILL did not end it in time"),
        };
        let (named, unnamed) = &mut self.given_up;
        if *named >= self.config.report_tail_actors.max(1) {
            // A nursery that serves for ever may give up on any number, and they may end later (C21).
            *unnamed += 1;
            return;
        }
        *named += 1;
        self.faults.push(Fault::new((self.fault_id)(), path.clone(), kind, message));
    }

    /// Those that were given up on and have no fault of their own.
    pub(super) fn name_the_rest(&mut self) {
        let (named, unnamed) = self.given_up;
        if unnamed > 0 {
            let message =
                format!("{unnamed} more did not end in time; the first {named} are named");
            let path = self.path.clone();
            self.faults.push(Fault::new((self.fault_id)(), path, FaultKind::Abandoned, message));
        }
    }
}

/// What a cancel itself brings about.
pub(super) fn is_consequence(kind: &FaultKind) -> bool {
    matches!(
        kind,
        FaultKind::Cancelled(_)
            | FaultKind::Interrupted { .. }
            | FaultKind::Lost
            | FaultKind::Died(_)
    )
}

fn is_death(kind: &FaultKind) -> bool {
    matches!(kind, FaultKind::Died(_))
}
