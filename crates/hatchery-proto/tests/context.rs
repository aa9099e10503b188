//! Two sides of a context through every order of what can happen to them, each state once: honest
//! sides never break the rules, and both come to rest in the same belief.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::collections::{HashSet, VecDeque};

use hatchery_proto::context::{Context, Dropped, End, Phase, Rest, Side as At, Word};
use hatchery_proto::stream::{Policy, Terms};
use hatchery_proto::{ActorPath, Reason, Why};

/// What travels. Data keeps its order; control overtakes data.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Message {
    Started,
    Item,
    Close,
    Reply(bool),
    Grant(u64),
    Cancel(Reason),
}

/// One side beside the queues that lead to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Side {
    context: Context,
    data: VecDeque<Message>,
    control: VecDeque<Message>,
    kept: usize,
    /// How many messages it may still send.
    left: usize,
    /// It meant its half to end where it did: it closed it, or dropped its sender and went on.
    meant: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Pair {
    opener: Side,
    callee: Side,
    /// What the callee's last word was.
    word: Option<bool>,
    /// Whom the callee's function was dropped for.
    dropped_for: Option<Reason>,
    cut: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Move {
    Start,
    Finish(bool),
    Cancel,
    GiveUp,
    Send(Who),
    Close(Who),
    /// The sender is dropped, by whatever drops it.
    LetGo(Who, Dropped),
    /// The opener's step in which it was dropped ends well.
    WentOn,
    Read(Who),
    Data(Who),
    Control(Who),
    /// The channel breaks; what is under way arrives all the same, or not.
    Cut(bool),
    Lost(Who),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    Opener,
    Callee,
}

/// Costs half the smallest window.
const LENGTH: usize = 500;
/// One more than the window holds, in the direction that is explored in depth.
const SENDS: usize = 3;

impl Side {
    fn new(policy: Policy, left: usize) -> Self {
        let context = Context::new(Terms { credit: 1024, policy });
        let (data, control) = (VecDeque::new(), VecDeque::new());
        Self { context, data, control, kept: 0, left, meant: false }
    }
}

impl Pair {
    fn new(policy: Policy) -> Self {
        let (opener, callee) = (Side::new(policy, 1), Side::new(policy, SENDS));
        Self { opener, callee, word: None, dropped_for: None, cut: false }
    }

    fn ends(&mut self, who: Who) -> (&mut Side, &mut Side) {
        match who {
            Who::Opener => (&mut self.opener, &mut self.callee),
            Who::Callee => (&mut self.callee, &mut self.opener),
        }
    }

    /// Queues a message to the side opposite of `who`, unless the channel is cut.
    fn push(&mut self, who: Who, message: Message) {
        let cut = self.cut;
        let (_, to) = self.ends(who);
        match message {
            _ if cut => {}
            Message::Grant(_) | Message::Cancel(_) => to.control.push_back(message),
            Message::Started | Message::Item | Message::Close | Message::Reply(_) => {
                to.data.push_back(message);
            }
        }
    }

    /// The state after a move; `None` if it can't happen here.
    fn step(&self, step: Move) -> Option<Self> {
        let mut next = self.clone();
        match step {
            Move::Start => {
                next.callee.context.start().ok()?;
                next.push(Who::Callee, Message::Started);
            }
            Move::Finish(returned) => next.finish(returned)?,
            Move::Cancel => {
                let reason = reason();
                if !next.opener.context.cancel(reason.clone()) {
                    return None;
                }
                next.push(Who::Opener, Message::Cancel(reason));
            }
            Move::GiveUp => next.give_up()?,
            Move::Send(who) => {
                let (from, _) = next.ends(who);
                if *from.context.phase() != Phase::Started {
                    return None;
                }
                from.left = from.left.checked_sub(1)?;
                from.context.outgoing.send(LENGTH).ok()?;
                next.push(who, Message::Item);
            }
            Move::Close(who) => {
                let (from, _) = next.ends(who);
                if !from.context.close() {
                    return None;
                }
                from.meant = true;
                next.push(who, Message::Close);
            }
            Move::LetGo(who, dropped) => next.let_go(who, dropped)?,
            Move::WentOn => next.went_on()?,
            Move::Read(who) => {
                let (side, _) = next.ends(who);
                side.kept = side.kept.checked_sub(1)?;
                side.context.incoming.taken(LENGTH);
                next.grant(who);
            }
            Move::Data(who) => {
                let message = next.ends(who).0.data.pop_front()?;
                next.deliver(who, message);
            }
            Move::Control(who) => {
                let message = next.ends(who).0.control.pop_front()?;
                next.deliver(who, message);
            }
            Move::Cut(arrives) => {
                if next.cut {
                    return None;
                }
                next.cut = true;
                if !arrives {
                    for side in [&mut next.opener, &mut next.callee] {
                        side.data.clear();
                        side.control.clear();
                    }
                }
            }
            Move::Lost(who) => {
                let cut = next.cut;
                let (side, _) = next.ends(who);
                // The end of a channel is read after all that came before it.
                if !cut || !side.data.is_empty() || !side.control.is_empty() {
                    return None;
                }
                if !side.context.lost() {
                    return None;
                }
            }
        }
        Some(next)
    }

    fn let_go(&mut self, who: Who, dropped: Dropped) -> Option<()> {
        let (from, _) = self.ends(who);
        if *from.context.phase() != Phase::Started || !from.context.outgoing.is_open() {
            return None;
        }
        let told = from.context.let_go(dropped);
        from.meant = dropped == Dropped::GoingOn;
        if told {
            self.push(who, Message::Close);
        }
        Some(())
    }

    fn went_on(&mut self) -> Option<()> {
        if !self.opener.context.went_on() {
            return None;
        }
        self.opener.meant = true;
        self.push(Who::Opener, Message::Close);
        Some(())
    }

    /// Only who has cancelled gives up.
    fn give_up(&mut self) -> Option<()> {
        self.opener.context.cancelled()?;
        if self.opener.context.is_over() {
            return None;
        }
        self.opener.context.give_up();
        Some(())
    }

    fn finish(&mut self, returned: bool) -> Option<()> {
        match self.callee.context.finish(returned) {
            Word::Nothing => return None,
            Word::AsItIs => self.word = Some(returned),
            Word::NeverStarted => self.word = Some(false),
        }
        let word = self.word.unwrap();
        self.push(Who::Callee, Message::Reply(word));
        Some(())
    }

    fn grant(&mut self, who: Who) {
        let granted = self.ends(who).0.context.incoming.grant();
        if let Some(bytes) = granted {
            self.push(who, Message::Grant(bytes));
        }
    }

    /// Honest sides never break the rules, so every `unwrap` here is an assertion.
    fn deliver(&mut self, who: Who, message: Message) {
        let (side, _) = self.ends(who);
        match message {
            Message::Started => side.context.started().unwrap(),
            Message::Item => {
                if side.context.arrived(LENGTH).unwrap() {
                    side.kept += 1;
                    while side.context.incoming.is_over() {
                        side.kept -= 1;
                        side.context.incoming.taken(LENGTH);
                    }
                    self.grant(who);
                }
            }
            Message::Close => side.context.closed().unwrap(),
            Message::Grant(bytes) => side.context.granted(bytes).unwrap(),
            Message::Reply(returned) => {
                side.context.replied(returned).unwrap();
            }
            Message::Cancel(reason) => {
                if side.context.told_to_stop(reason.clone()) {
                    self.dropped_for = Some(reason);
                }
            }
        }
    }

    /// What holds in every state.
    fn check(&self) {
        for side in [&self.opener, &self.callee] {
            assert!(side.context.incoming.held() <= 1024, "{self:#?}");
            assert_eq!(side.context.incoming.held(), side.kept as u64 * 512, "{self:#?}");
        }
        let reads_end = |side: &Side, at| side.kept == 0 && side.context.rest(at) == Rest::Ended;
        if reads_end(&self.opener, At::Opener) {
            assert!(self.callee.meant || self.word == Some(true), "a false end: {self:#?}");
        }
        if reads_end(&self.callee, At::Callee) {
            assert!(self.opener.meant, "a false end: {self:#?}");
        }
        let end = match self.opener.context.phase() {
            Phase::Over(end) => *end,
            Phase::Opened | Phase::Started => return,
        };
        match end {
            End::Returned => assert_eq!(self.word, Some(true), "{self:#?}"),
            End::Failed => assert_eq!(self.word, Some(false), "{self:#?}"),
            End::Lost => assert!(self.cut, "{self:#?}"),
            End::GivenUp => assert!(self.opener.context.cancelled().is_some(), "{self:#?}"),
        }
    }

    /// Lets both sides come to rest from here: whoever was told to stop stops, whatever is under
    /// way arrives. Says how many steps that took.
    fn rest(&self) -> (Self, usize) {
        let (mut state, mut steps) = (self.clone(), 0);
        // Without a cancel or a cut the function might run on for ever; so it returns.
        if let Some(next) = state.step(Move::Finish(state.dropped_for.is_none())) {
            (state, steps) = (next, steps + 1);
        }
        loop {
            let settling = [
                Move::Control(Who::Opener),
                Move::Control(Who::Callee),
                Move::Data(Who::Opener),
                Move::Data(Who::Callee),
                Move::Lost(Who::Opener),
                Move::Lost(Who::Callee),
            ];
            let Some(next) = settling.into_iter().find_map(|step| state.step(step)) else { break };
            (state, steps) = (next, steps + 1);
        }
        (state, steps)
    }

    fn check_rest(&self) {
        let (end, steps) = self.rest();
        end.check();
        assert!(steps <= 4 * SENDS + 12, "{steps} steps to rest from {self:#?}");
        assert!(end.opener.context.is_over(), "{self:#?} came to {end:#?}");
        assert!(end.callee.context.is_over(), "{self:#?} came to {end:#?}");
        if !end.cut && *end.opener.context.phase() != Phase::Over(End::GivenUp) {
            assert_eq!(end.opener.context.phase(), end.callee.context.phase(), "{self:#?}");
        }
        // Nobody waits for more when all is said, and a good end is told as one.
        assert_ne!(end.opener.context.rest(At::Opener), Rest::Waits, "{self:#?} came to {end:#?}");
        assert_ne!(end.callee.context.rest(At::Callee), Rest::Waits, "{self:#?} came to {end:#?}");
        // What was closed stays closed, however its side ended afterwards and whenever it is read.
        let closed = !end.opener.context.incoming.is_open();
        let returned = *end.opener.context.phase() == Phase::Over(End::Returned);
        let told = if closed || returned { Rest::Ended } else { Rest::Cut };
        assert_eq!(end.opener.context.rest(At::Opener), told, "{self:#?}");
        let told = if end.callee.context.incoming.is_open() { Rest::Cut } else { Rest::Ended };
        assert_eq!(end.callee.context.rest(At::Callee), told, "{self:#?}");
        // Whom the callee was told it was cancelled by is who did it.
        if let Some(reason) = &end.dropped_for {
            assert_eq!(Some(reason), end.opener.context.cancelled(), "{self:#?}");
        }
    }
}

fn reason() -> Reason {
    Reason { by: ActorPath::root(), why: Why::Requested }
}

fn moves() -> Vec<Move> {
    let mut moves = vec![
        Move::Start,
        Move::Finish(true),
        Move::Finish(false),
        Move::Cancel,
        Move::GiveUp,
        Move::Cut(true),
        Move::Cut(false),
        Move::LetGo(Who::Callee, Dropped::UntilTheEnd),
        Move::LetGo(Who::Opener, Dropped::UntilTheEnd),
        Move::LetGo(Who::Opener, Dropped::InStep),
        Move::LetGo(Who::Opener, Dropped::GoingOn),
        Move::WentOn,
    ];
    for who in [Who::Opener, Who::Callee] {
        let of_one = [Move::Send, Move::Close, Move::Read, Move::Data, Move::Control, Move::Lost];
        moves.extend(of_one.map(|step| step(who)));
    }
    moves
}

fn explore(policy: Policy) -> usize {
    let moves = moves();
    let start = Pair::new(policy);
    let mut seen = HashSet::from([start.clone()]);
    let mut open = VecDeque::from([start]);
    while let Some(state) = open.pop_front() {
        state.check();
        state.check_rest();
        for step in &moves {
            if let Some(next) = state.step(*step)
                && seen.insert(next.clone())
            {
                open.push_back(next);
            }
        }
    }
    seen.len()
}

/// C4, C11, C20, scenarios 62 to 66: through every order of open, started, send, close, a sender that
/// is dropped, error, cancel, exit and a broken channel. In none of them does a reader see an end that
/// its sender did not mean.
#[test]
fn both_sides_come_to_rest_in_the_same_belief() {
    let states = explore(Policy::Wait);
    assert!(states > 10_000, "{states} states are too few to be every order");
}

/// The same when unread messages are dropped in place of making the sender wait.
#[test]
fn dropping_the_oldest_message_never_holds_more_than_the_credit() {
    assert!(explore(Policy::DropOldest) > 10_000);
}
