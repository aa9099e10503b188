//! Long random lives of a nursery: whatever happens in whatever order, it finishes once, when
//! everybody is over, and tells everything once.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hatchery_proto::scope::{Action, Event, Outcome, Refusal, Role, Scope};
use hatchery_proto::teardown::{self, Kind};
use hatchery_proto::{
    ActorId, ActorName, ActorPath, Config, Ended, ExitStatus, Fault, FaultKind, Reason, Time, Why,
};
use proptest::prelude::*;

/// A nursery with what it has done.
struct Run {
    scope: Scope,
    now: Time,
    ids: Vec<(ActorId, ActorPath)>,
    outcome: Option<Outcome>,
    body_cancelled: bool,
    body_done: bool,
    next_fault: u64,
    told: Vec<Fault>,
    asked: BTreeSet<ActorId>,
    killed: BTreeSet<ActorId>,
    /// What has exited and not settled: its driver does that.
    exited: BTreeSet<ActorId>,
    /// Of whose functions all was said.
    all_said: BTreeSet<ActorId>,
}

/// Ids of the scope's own faults, none of which is one of a [`Run`].
fn fault_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1 << 32);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Run {
    fn new() -> Self {
        let scope = Scope::new(ActorPath::root(), Config::default(), fault_id);
        Self {
            scope,
            now: Time::ZERO,
            ids: Vec::new(),
            outcome: None,
            body_cancelled: false,
            body_done: false,
            next_fault: 1,
            told: Vec::new(),
            asked: BTreeSet::new(),
            killed: BTreeSet::new(),
            exited: BTreeSet::new(),
            all_said: BTreeSet::new(),
        }
    }

    fn fault(&mut self, path: ActorPath, kind: FaultKind) -> Box<Fault> {
        self.next_fault += 1;
        let fault = Fault::new(self.next_fault, path, kind, "as told");
        self.told.push(fault.clone());
        Box::new(fault)
    }

    fn admit(&mut self, name: &str, role: Role, kind: Kind) -> Result<ActorId, Refusal> {
        let name = ActorName::new(name).unwrap();
        let (id, path) = self.scope.admit(&name, role, kind, "test")?;
        self.ids.push((id, path));
        Ok(id)
    }

    fn tell(&mut self, event: Event) {
        self.scope.handle(event, self.now);
        self.drain();
    }

    fn timeout(&mut self) -> bool {
        let Some(at) = self.scope.poll_timeout() else { return false };
        self.now = self.now.max(at);
        self.scope.handle_timeout(self.now);
        self.drain();
        true
    }

    fn drain(&mut self) {
        while let Some(action) = self.scope.poll_action() {
            match action {
                Action::CancelBody(_) => {
                    assert!(!self.body_cancelled, "the body is dropped once");
                    self.body_cancelled = true;
                }
                Action::Finish(outcome) => {
                    assert!(self.outcome.is_none(), "it finishes once");
                    self.outcome = Some(*outcome);
                }
                Action::Actor { id, action: teardown::Action::SendCancel { .. } } => {
                    self.asked.insert(id);
                }
                Action::Actor { id, action: teardown::Action::Kill } => {
                    self.killed.insert(id);
                }
                Action::Actor { .. } => {}
            }
        }
    }

    fn body(&mut self, result: Result<(), Box<Fault>>) {
        if !std::mem::replace(&mut self.body_done, true) {
            self.tell(Event::BodyDone(result));
        }
    }

    fn died(&mut self, id: ActorId, path: &ActorPath, status: ExitStatus) {
        let fault = self.fault(path.clone(), FaultKind::Died(status));
        self.tell(Event::Settled { id, status, fault });
    }
}

#[derive(Debug, Clone)]
enum Step {
    Admit { one_shot: bool, thread: bool },
    Ready(usize),
    RunOk(usize),
    RunErr(usize),
    Told(usize),
    Ended(usize),
    Exited(usize),
    Exit(usize, bool),
    NotBorn(usize),
    Acked(usize),
    ChannelDead(usize),
    CancelActor(usize),
    Cancel,
    BodyOk,
    BodyErr,
    Timeout,
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..6_usize;
    prop_oneof![
        4 => (any::<bool>(), any::<bool>()).prop_map(|(one_shot, thread)| Step::Admit { one_shot, thread }),
        3 => at.clone().prop_map(Step::Ready),
        2 => at.clone().prop_map(Step::RunOk),
        1 => at.clone().prop_map(Step::RunErr),
        1 => at.clone().prop_map(Step::Told),
        2 => at.clone().prop_map(Step::Ended),
        1 => at.clone().prop_map(Step::Exited),
        3 => (at.clone(), any::<bool>()).prop_map(|(at, well)| Step::Exit(at, well)),
        1 => at.clone().prop_map(Step::NotBorn),
        1 => at.clone().prop_map(Step::Acked),
        1 => at.clone().prop_map(Step::ChannelDead),
        1 => at.prop_map(Step::CancelActor),
        1 => Just(Step::Cancel),
        1 => Just(Step::BodyOk),
        1 => Just(Step::BodyErr),
        2 => Just(Step::Timeout),
    ]
}

fn reason(why: Why) -> Reason {
    Reason { by: ActorPath::root(), why }
}

fn perform(run: &mut Run, step: Step) {
    let pick = |run: &Run, at: usize| run.ids.get(at).cloned();
    match step {
        Step::Admit { one_shot, thread } => {
            let role = if one_shot { Role::OneShot } else { Role::LongLived };
            let kind = if thread { Kind::Thread } else { Kind::Process };
            let name = format!("a{}", run.ids.len());
            let admitted = run.admit(&name, role, kind);
            if run.body_cancelled || run.outcome.is_some() {
                assert!(matches!(admitted, Err(Refusal::Closing(_))), "H27: nobody slips in");
            }
        }
        Step::Cancel => {
            let budget = Config::default().budget;
            run.tell(Event::Cancel { reason: reason(Why::Requested), budget });
        }
        Step::BodyOk => run.body(Ok(())),
        Step::BodyErr => {
            let fault = run.fault(ActorPath::root(), FaultKind::Failed);
            run.body(Err(fault));
        }
        Step::Timeout => drop(run.timeout()),
        Step::Ready(at) => {
            if let Some((id, _)) = pick(run, at) {
                run.tell(Event::Ready(id));
            }
        }
        Step::RunOk(at) => {
            if let Some((id, _)) = pick(run, at) {
                run.tell(Event::RunFinished { id, result: Ok(()) });
            }
        }
        Step::Told(at) => {
            let Some((id, _)) = pick(run, at) else { return };
            run.all_said.insert(id);
            run.tell(Event::Told(id));
        }
        Step::RunErr(at) => {
            if let Some((id, path)) = pick(run, at).filter(|(id, _)| !run.all_said.contains(id)) {
                let fault = run.fault(path, FaultKind::Failed);
                run.tell(Event::RunFinished { id, result: Err(fault) });
            }
        }
        Step::Ended(at) => {
            if let Some((id, _)) = pick(run, at) {
                // What was told before by another road comes once more.
                let faults = run.told.last().cloned().into_iter().collect();
                run.tell(Event::Ended { id, ended: Ended { faults, ..Ended::default() } });
            }
        }
        Step::Exited(at) => {
            let Some((id, _)) = pick(run, at) else { return };
            run.tell(Event::Exited(id));
            run.exited.insert(id);
        }
        Step::Exit(at, well) => {
            if let Some((id, path)) = pick(run, at) {
                let status = if well { ExitStatus::Code(0) } else { ExitStatus::Signal(9) };
                run.died(id, &path, status);
            }
        }
        Step::NotBorn(at) => {
            if let Some((id, _)) = pick(run, at) {
                run.tell(Event::NotBorn(id));
            }
        }
        Step::Acked(at) => {
            if let Some((id, _)) = pick(run, at) {
                run.tell(Event::Acked(id));
            }
        }
        Step::ChannelDead(at) => {
            if let Some((id, _)) = pick(run, at) {
                run.tell(Event::ChannelDead(id));
            }
        }
        Step::CancelActor(at) => {
            if let Some((id, _)) = pick(run, at) {
                run.tell(Event::CancelActor { id, reason: reason(Why::Requested) });
            }
        }
    }
}

proptest! {
    /// C1, C2, C4, H24: after any life, a cancel and silence end it inside the budget, once, with
    /// every fault told once.
    #[test]
    fn any_life_ends_once_inside_the_budget(steps in prop::collection::vec(step(), 0..80)) {
        let mut run = Run::new();
        for step in steps {
            perform(&mut run, step);
            if run.outcome.is_some() {
                prop_assert!(run.body_done, "C1: not before the body is done");
            }
        }
        let began = run.now;
        let budget = Config::default().budget;
        run.tell(Event::Cancel { reason: reason(Why::Requested), budget });
        run.body(Ok(()));
        for id in std::mem::take(&mut run.exited) {
            let path = run.ids.iter().find(|known| known.0 == id).unwrap().1.clone();
            run.died(id, &path, ExitStatus::Code(0));
        }
        while run.outcome.is_none() && run.timeout() {}
        prop_assert!(run.now.since(began) <= budget + Duration::from_millis(100));
        let outcome = run.outcome.expect("C1: it finishes when everybody is over");
        let ids: BTreeSet<u64> = outcome.faults.iter().map(|fault| fault.id).collect();
        prop_assert_eq!(ids.len(), outcome.faults.len(), "C4: nothing is told twice");
    }
}

/// C4, H21: the first error cancels the rest, and deaths that this brings about are no errors.
#[test]
fn the_first_error_is_the_one_that_is_told() {
    let mut run = Run::new();
    let (a, b) = (
        run.admit("a", Role::OneShot, Kind::Process).unwrap(),
        run.admit("b", Role::LongLived, Kind::Process).unwrap(),
    );
    run.tell(Event::Ready(a));
    run.tell(Event::Ready(b));
    let path = run.ids[0].1.clone();
    let fault = run.fault(path.clone(), FaultKind::Failed);
    run.tell(Event::RunFinished { id: a, result: Err(fault) });
    assert!(run.body_cancelled && run.asked.contains(&b));
    run.body(Ok(()));
    run.died(a, &path, ExitStatus::Code(0));
    while !run.killed.contains(&b) {
        assert!(run.timeout());
    }
    let other = run.ids[1].1.clone();
    run.died(b, &other, ExitStatus::Signal(9));
    let outcome = run.outcome.unwrap();
    assert_eq!(outcome.faults.len(), 1, "{:?}", outcome.faults);
    assert_eq!(outcome.faults[0].path, path);
}

/// C4, H21: a start that comes too late is refused, which is no error beside the cause.
#[test]
fn a_start_that_comes_too_late_is_no_error_beside_the_cause() {
    let mut run = Run::new();
    let a = run.admit("a", Role::OneShot, Kind::Process).unwrap();
    run.tell(Event::Ready(a));
    let path = run.ids[0].1.clone();
    let cause = run.fault(path.clone(), FaultKind::Failed);
    run.tell(Event::RunFinished { id: a, result: Err(cause.clone()) });
    let Err(Refusal::Closing(why)) = run.admit("b", Role::OneShot, Kind::Process) else {
        panic!("started in a nursery that goes down")
    };
    let late = run.fault(ActorPath::root(), FaultKind::Cancelled(why));
    run.scope.note(*late);
    run.body(Ok(()));
    run.died(a, &path, ExitStatus::Code(0));
    assert_eq!(run.outcome.unwrap().faults, [*cause]);
}

/// C4, H16: the body's own error stands first, also if an actor's was there before.
#[test]
fn the_error_of_the_body_stands_first() {
    let mut run = Run::new();
    let a = run.admit("a", Role::LongLived, Kind::Process).unwrap();
    run.tell(Event::Ready(a));
    let path = run.ids[0].1.clone();
    run.died(a, &path, ExitStatus::Signal(11));
    let fault = run.fault(ActorPath::root(), FaultKind::Failed);
    run.body(Err(fault));
    let outcome = run.outcome.unwrap();
    let paths: Vec<_> = outcome.faults.iter().map(|fault| fault.path.as_str()).collect();
    assert_eq!(paths, ["root", "root/a"]);
}

/// C4: a crash while it was asked to go, without force, is still a crash.
#[test]
fn a_crash_during_a_graceful_teardown_is_told() {
    let mut run = Run::new();
    let a = run.admit("a", Role::LongLived, Kind::Process).unwrap();
    run.tell(Event::Ready(a));
    run.body(Ok(()));
    assert!(run.asked.contains(&a));
    let path = run.ids[0].1.clone();
    run.died(a, &path, ExitStatus::Signal(11));
    let outcome = run.outcome.unwrap();
    assert_eq!(outcome.faults[0].kind, FaultKind::Died(ExitStatus::Signal(11)));
}

/// C15: an actor that breaks the protocol goes as its channel breaks, and leaves in good order;
/// what it did is told all the same.
#[test]
fn a_breach_of_the_protocol_is_told_though_its_actor_went_well() {
    let mut run = Run::new();
    let id = run.admit("a", Role::LongLived, Kind::Process).unwrap();
    run.tell(Event::Ready(id));
    run.body(Ok(()));
    run.tell(Event::ChannelDead(id));
    let fault = run.fault(run.ids[0].1.clone(), FaultKind::Protocol);
    run.tell(Event::Settled { id, status: ExitStatus::Code(0), fault });
    assert_eq!(run.outcome.unwrap().faults[0].kind, FaultKind::Protocol);
}

/// C4: a channel breaks, the body gives up on the call, and the status comes only after the force
/// that met a dead one: the error names the death, once.
#[test]
fn a_death_that_comes_late_explains_what_was_lost() {
    let mut run = Run::new();
    let id = run.admit("a", Role::LongLived, Kind::Process).unwrap();
    let path = run.ids[0].1.clone();
    run.tell(Event::Ready(id));
    run.tell(Event::ChannelDead(id));
    let lost = run.fault(path.clone(), FaultKind::Lost);
    run.tell(Event::BodyDone(Err(lost)));
    let status = ExitStatus::Signal(9);
    let fault = run.fault(path, FaultKind::Died(status));
    run.tell(Event::Settled { id, status, fault });
    let outcome = run.outcome.unwrap();
    let kinds: Vec<_> = outcome.faults.iter().map(|fault| fault.kind.clone()).collect();
    assert_eq!(kinds, [FaultKind::Died(status)]);
}

/// C4, H25: an actor whose channel breaks, and whose status doesn't come however it is forced, is
/// given up on; that is an error like any other: the others are cancelled, and the body too.
#[test]
fn an_actor_of_which_nothing_more_is_heard_takes_its_nursery_down() {
    let mut run = Run::new();
    let id = run.admit("a", Role::LongLived, Kind::Process).unwrap();
    let other = run.admit("b", Role::LongLived, Kind::Process).unwrap();
    run.tell(Event::Ready(id));
    run.tell(Event::Ready(other));
    run.tell(Event::ChannelDead(id));
    while !run.scope.is_over(id) {
        assert!(!run.body_cancelled, "there is hope");
        assert!(run.timeout(), "the ladder has an end");
    }
    assert!(run.body_cancelled);
    assert!(run.scope.was_asked(other));
    // What became of it after all is no second error.
    let fault = run.fault(run.ids[0].1.clone(), FaultKind::Died(ExitStatus::Signal(9)));
    run.tell(Event::Settled { id, status: ExitStatus::Signal(9), fault });
    let fault = run.fault(run.ids[1].1.clone(), FaultKind::Died(ExitStatus::Code(0)));
    run.tell(Event::Settled { id: other, status: ExitStatus::Code(0), fault });
    run.tell(Event::BodyDone(Ok(())));
    let outcome = run.outcome.unwrap();
    let kinds: Vec<_> = outcome.faults.iter().map(|fault| fault.kind.clone()).collect();
    assert_eq!(kinds, [FaultKind::Unreapable]);
}

/// C21: a limit counts who lives; of who lived before is left what the report's tail has room for, and a
/// number.
#[test]
fn a_nursery_that_serves_for_ever_holds_who_lives_and_a_bounded_rest() {
    let config = Config { max_actors: 2, report_tail_actors: 10, ..Config::default() };
    let mut run = Run::new();
    run.scope = Scope::new(ActorPath::root(), config, fault_id);
    let stays = run.admit("stays", Role::LongLived, Kind::Process).unwrap();
    run.tell(Event::Ready(stays));
    for at in 0..1_000 {
        let role = if at % 2 == 0 { Role::OneShot } else { Role::LongLived };
        let id = run.admit("comes", role, Kind::Process).unwrap();
        let full = run.admit("more", role, Kind::Process);
        assert_eq!(full, Err(Refusal::TooMany { limit: 2, what: "actors" }));
        run.tell(Event::Ready(id));
        if role == Role::OneShot {
            run.tell(Event::RunFinished { id, result: Ok(()) });
            run.tell(Event::Told(id));
        }
        run.tell(Event::CancelActor { id, reason: reason(Why::Requested) });
        let path = ActorPath::root().child(&ActorName::new("comes").unwrap());
        run.died(id, &path, ExitStatus::Code(0));
        assert!(run.scope.is_over(id) && run.scope.member(id).is_none(), "it is forgotten");
    }
    run.body(Ok(()));
    run.died(stays, &ActorPath::root(), ExitStatus::Code(0));
    let report = run.outcome.unwrap().report;
    assert_eq!((report.actors.len(), report.dropped), (11, 990));
    assert_eq!(report.actors.last().unwrap().path.name(), "stays");
}

/// C21, C5: a name is taken as long as its actor has not settled, also if nobody waits for that; and such
/// a one counts for the limit. However many there were, their faults are bounded, and counted.
#[test]
fn who_was_given_up_on_has_its_name_and_its_place_until_it_ends() {
    let config = Config { max_actors: 1, report_tail_actors: 3, ..Config::default() };
    let mut run = Run::new();
    run.scope = Scope::new(ActorPath::root(), config, fault_id);
    for _ in 0..10 {
        let id = run.admit("stuck", Role::LongLived, Kind::Thread).unwrap();
        run.tell(Event::Ready(id));
        run.tell(Event::CancelActor { id, reason: reason(Why::Requested) });
        while run.timeout() {}
        assert!(run.scope.is_over(id), "it was given up on");
        let full = run.admit("stuck", Role::LongLived, Kind::Thread);
        assert_eq!(full, Err(Refusal::TooMany { limit: 1, what: "actors" }));
        let path = ActorPath::root();
        run.died(id, &path, ExitStatus::Code(0));
    }
    run.body(Ok(()));
    let outcome = run.outcome.unwrap();
    assert_eq!((outcome.report.actors.len(), outcome.report.dropped), (3, 7));
    let faults: Vec<_> = outcome.faults.iter().map(|fault| &*fault.message).collect();
    assert_eq!(faults.len(), 4, "{faults:?}");
    assert!(faults[3].starts_with("7 more did not end in time"), "{faults:?}");
}

/// C4, C21: the error of a one-shot actor that has settled before it was told is not lost.
#[test]
fn an_error_that_is_told_after_the_end_is_told() {
    let mut run = Run::new();
    let id = run.admit("once", Role::OneShot, Kind::Process).unwrap();
    run.tell(Event::NotBorn(id));
    let fault = run.fault(ActorPath::root(), FaultKind::Refused);
    run.tell(Event::RunFinished { id, result: Err(fault.clone()) });
    run.tell(Event::Told(id));
    assert!(run.body_cancelled, "the nursery goes down with it");
    run.body(Ok(()));
    assert_eq!(run.outcome.unwrap().faults, [*fault]);
}

/// All ways to go through several lists, each in its own order.
fn interleavings<T: Clone>(lists: &[Vec<T>]) -> Vec<Vec<T>> {
    if lists.iter().all(Vec::is_empty) {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (at, list) in lists.iter().enumerate() {
        let Some((first, rest)) = list.split_first() else { continue };
        let mut others = lists.to_vec();
        others[at] = rest.to_vec();
        for mut later in interleavings(&others) {
            later.insert(0, first.clone());
            all.push(later);
        }
    }
    all
}

/// One thing that happens while a sibling dies and the body waits for a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happens {
    ChannelDead,
    Exited,
    Dies,
    Ready,
    /// The new one goes as it was asked to.
    Goes,
    NotBorn,
    /// The body is polled once more, and gives back what the start says.
    Fails(Said),
    Dropped,
}

/// What a start that is cancelled may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Cancelled,
    Died,
    Lost,
}

/// C4: a sibling dies while the body waits for a start: the death alone is told, in whatever order the
/// start, the body and the death come to their ends.
#[test]
fn a_death_beside_a_start_is_told_alone() {
    use Happens::{ChannelDead, Dies, Dropped, Exited, Fails, Goes, NotBorn, Ready};
    let mut orders = 0;
    for death in [vec![Dies], vec![Exited, Dies], vec![ChannelDead, Exited, Dies]] {
        for start in [vec![NotBorn], vec![Goes], vec![Exited, Goes], vec![Ready, Exited, Goes]] {
            for body in [Dropped, Fails(Said::Cancelled), Fails(Said::Died), Fails(Said::Lost)] {
                let lists = [
                    death.iter().map(|it| (0, *it)).collect::<Vec<_>>(),
                    start.iter().map(|it| (1, *it)).collect(),
                    vec![(2, body)],
                ];
                for order in interleavings(&lists) {
                    // Those two follow from the death.
                    let at = |what| order.iter().position(|it| *it == what).unwrap();
                    let dead = at((0, Dies));
                    let ends = start.iter().position(|it| *it != Ready).unwrap();
                    if at((2, body)) > dead && at((1, start[ends])) > dead {
                        orders += 1;
                        dies_beside_a_start(&order);
                    }
                }
            }
        }
    }
    assert!(orders > 100, "{orders}");
}

fn dies_beside_a_start(order: &[(usize, Happens)]) {
    let mut run = Run::new();
    let old = run.admit("a0", Role::LongLived, Kind::Process).unwrap();
    run.tell(Event::Ready(old));
    let new = run.admit("a2", Role::LongLived, Kind::Process).unwrap();
    let paths = run.ids.clone();
    for (whose, what) in order {
        let (id, path) = paths[(*whose).min(1)].clone();
        match what {
            Happens::ChannelDead => run.tell(Event::ChannelDead(id)),
            Happens::Exited => run.tell(Event::Exited(id)),
            Happens::Dies => run.died(id, &path, ExitStatus::Signal(11)),
            Happens::Ready => run.tell(Event::Ready(id)),
            Happens::Goes => run.died(id, &path, ExitStatus::Code(0)),
            Happens::NotBorn => run.tell(Event::NotBorn(id)),
            Happens::Dropped => run.body(Ok(())),
            Happens::Fails(said) => {
                assert!(run.body_cancelled, "{order:?}");
                let why = run.scope.why_asked(new).cloned();
                let kind = match said {
                    Said::Cancelled => {
                        FaultKind::Cancelled(why.unwrap_or_else(|| reason(Why::Dropped)))
                    }
                    Said::Died => FaultKind::Died(ExitStatus::Code(0)),
                    Said::Lost => FaultKind::Lost,
                };
                let fault = run.fault(path, kind);
                run.body(Err(fault));
            }
        }
        if let Some(Reason { by, why }) = run.scope.why_asked(new) {
            assert_eq!((by.as_str(), why), ("root/a0", &Why::SiblingFailed), "{order:?}");
        }
    }
    let outcome = run.outcome.unwrap();
    let told: Vec<_> =
        outcome.faults.iter().map(|fault| (fault.path.as_str(), &fault.kind)).collect();
    assert_eq!(told, [("root/a0", &FaultKind::Died(ExitStatus::Signal(11)))], "{order:?}");
}
