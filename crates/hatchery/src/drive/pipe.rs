//! One side of one context: its machine, the messages it has not read yet, and who waits.
//!
//! Touched by user tasks of any thread and by the connection's one reader. The reader never waits
//! here: what it brings is bounded by the credit that this side gave (H22).
//!
//! Lock order: `state` before an outbox's own lock. Wakers are a user's: they are called and dropped
//! when the lock is open again.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context as Task, Poll, Waker};

use bytes::BytesMut;
use hatchery_proto::board;
pub(crate) use hatchery_proto::context::Side;
use hatchery_proto::context::{Context, Dropped, Rest, Word};
use hatchery_proto::stream::{Denied, Policy, Terms, Violation};
use hatchery_proto::{
    ActorPath, CallId, Encoded, Fault, FaultKind, FrameError, Reason, ToChild, ToParent, Why,
};
use serde::Serialize;
use tokio::sync::watch;

use super::framed::Framed;
use super::home::Home;
use super::item::Item;
use super::link::Answer;
use super::writer::{ItemError, Outbox, Priority, PushError};
use crate::board::Entry;
use crate::copied::{self, is_copy};
use crate::current;
use crate::lock::lock;

/// One side of a context.
pub(crate) struct Pipe {
    pub(crate) call: CallId,
    /// The actor on the other side.
    pub(crate) peer: ActorPath,
    pub(crate) side: Side,
    policy: Policy,
    outbox: Arc<Outbox>,
    steps: Steps,
    state: Mutex<State>,
    /// Counts every change of the machine's phase and the first cancel.
    changed: watch::Sender<u64>,
}

/// What a stream's halves have done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct StreamStats {
    /// Messages handed to the connection.
    pub sent: u64,
    /// How often a sender had to wait for the reader or the connection.
    pub waited: u64,
    /// Messages that were refused because the stream was full, with [`Policy::Fail`].
    pub refused: u64,
    /// Messages that came.
    pub received: u64,
    /// Messages that were dropped unread, with [`Policy::DropOldest`].
    pub dropped: u64,
    /// Bytes of messages that wait to be read, as the credit counts them.
    pub held: u64,
}

struct State {
    context: Context,
    unread: VecDeque<Encoded>,
    /// Where the next small one is copied to.
    chunk: BytesMut,
    /// The opener's: the first value, then the last word.
    started: Option<Encoded>,
    answer: Option<Answer>,
    /// Why the context ended, if not well.
    fault: Option<Box<Fault>>,
    /// Nobody reads any more: what comes is dropped.
    deaf: bool,
    reader: Option<Waker>,
    sender: Option<Waker>,
    stats: StreamStats,
    /// Until the context is over.
    line: Option<Entry>,
}

/// What became of a message that was to be sent.
#[derive(Debug)]
pub(crate) enum Sent {
    /// It is on its way.
    Yes,
    /// No room; here it is, encoded.
    Full(Framed),
    /// This half, or the context, is closed; a fault says why if it did not end well.
    Closed(Option<Box<Fault>>),
    /// It is no message.
    Refused(Box<Fault>),
}

/// What a reader gets.
#[derive(Debug)]
pub(crate) enum Next {
    Item(Encoded),
    /// The other side has closed its half, or ended well.
    End,
    Broken(Box<Fault>),
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipe").field("call", &self.call).field("peer", &self.peer).finish()
    }
}

/// Why `started` was not said.
#[derive(Debug)]
pub(crate) enum Unstarted {
    /// The context is not where it could be.
    Context,
    /// The value can't be sent.
    Value(FrameError),
}

impl Pipe {
    pub(crate) fn new(
        side: Side,
        call: CallId,
        peer: ActorPath,
        outbox: Arc<Outbox>,
        terms: Terms,
        line: Entry,
    ) -> Arc<Self> {
        line.set(board::State::Starting, None, 0);
        let state = State {
            context: Context::new(terms),
            unread: VecDeque::new(),
            chunk: BytesMut::new(),
            started: None,
            answer: None,
            fault: None,
            deaf: false,
            reader: None,
            sender: None,
            stats: StreamStats::default(),
            line: Some(line),
        };
        let (changed, _) = watch::channel(0);
        let (policy, state, steps) = (terms.policy, Mutex::new(state), Steps::default());
        Arc::new(Self { call, peer, side, policy, outbox, steps, state, changed })
    }

    /// See [`Outbox::home_beside`].
    pub(crate) fn home_beside(&self) -> Option<Arc<Home>> {
        self.outbox.home_beside()
    }

    // What the connection's reader brings.

    /// The callee has started.
    pub(crate) fn started(&self, value: Encoded) -> Result<(), Violation> {
        let mut state = lock(&self.state);
        state.context.started()?;
        state.started = Some(value);
        state.show(board::State::Open);
        drop(state);
        self.change();
        Ok(())
    }

    /// A message has come.
    pub(crate) fn arrived(&self, value: Encoded) -> Result<(), Violation> {
        // What is dropped may be a value of the user's, so it is when the lock is open again.
        let mut dropped = Vec::new();
        let mut state = lock(&self.state);
        if !state.context.arrived(value.len())? {
            return Ok(());
        }
        state.stats.received += 1;
        if state.deaf {
            state.context.incoming.taken(value.len());
        } else {
            // A small slice would keep the whole buffer that it came in.
            let value = value.detached(OWN_BUFFER, &mut state.chunk);
            state.unread.push_back(value);
            while state.context.incoming.is_over()
                && let Some(oldest) = state.unread.pop_front()
            {
                state.context.incoming.taken(oldest.len());
                state.stats.dropped += 1;
                dropped.push(oldest);
            }
        }
        self.grant(&mut state);
        let reader = state.reader.take();
        drop(state);
        drop(dropped);
        wake(reader);
        Ok(())
    }

    /// The other side has closed its half.
    pub(crate) fn closed(&self) -> Result<(), Violation> {
        let mut state = lock(&self.state);
        state.context.closed()?;
        let reader = state.reader.take();
        drop(state);
        wake(reader);
        Ok(())
    }

    /// The other side has made room.
    pub(crate) fn granted(&self, bytes: u64) -> Result<(), Violation> {
        let mut state = lock(&self.state);
        state.context.granted(bytes)?;
        let sender = state.sender.take();
        drop(state);
        wake(sender);
        Ok(())
    }

    /// The callee's last word.
    pub(crate) fn replied(&self, answer: Answer) -> Result<(), Violation> {
        let mut state = lock(&self.state);
        if state.context.replied(answer.is_ok())? {
            state.fault = answer.as_ref().err().cloned();
            state.answer = Some(answer);
            self.over(state);
        }
        Ok(())
    }

    /// The channel broke; the fault says how the other side ended.
    pub(crate) fn lost(&self, fault: &Fault) {
        if is_copy() {
            return;
        }
        let mut state = lock(&self.state);
        if state.context.lost() {
            state.fault = Some(Box::new(fault.clone()));
            state.answer = Some(Err(Box::new(fault.clone())));
            self.over(state);
        }
    }

    /// From which length on values for the other side move as they are.
    pub(crate) fn moves_from(&self) -> Option<usize> {
        self.outbox.moves_from()
    }

    /// The callee is told to stop, by the opener or by itself.
    pub(crate) fn stop(&self, reason: Reason) {
        if is_copy() {
            return;
        }
        let mut state = lock(&self.state);
        let news = state.context.told_to_stop(reason);
        if news {
            state.show(board::State::Cancelled);
            drop(state);
            self.change();
        }
    }

    // The callee.

    /// Says `started`; a value that can't be said leaves everything as it was.
    pub(crate) fn start(&self, value: Encoded) -> Result<(), Unstarted> {
        if is_copy() {
            return Err(Unstarted::Context);
        }
        let value = self.outbox.settled(value).map_err(Unstarted::Value)?;
        // Before the lock, so that it is dropped after it: its value may be a user's.
        let message = ToParent::Started { call: self.call, value };
        let mut state = lock(&self.state);
        let mut started = state.context.clone();
        started.start().map_err(|_| Unstarted::Context)?;
        // In order with the messages that follow; a closed channel is told by its reader.
        if let Err(PushError::Frame(error)) = self.outbox.push(Priority::Data, &message) {
            return Err(Unstarted::Value(error));
        }
        state.context = started;
        state.show(board::State::Open);
        drop(state);
        self.change();
        Ok(())
    }

    /// The function has ended; gives back what the opener is to be told.
    pub(crate) fn finish(&self, result: Answer) -> Option<Answer> {
        if is_copy() {
            return None;
        }
        let mut state = lock(&self.state);
        let result = match state.context.finish(result.is_ok()) {
            Word::AsItIs => result,
            Word::NeverStarted => {
                let message = "it returned without having said `started`".to_owned();
                Err(Box::new(current::fault(FaultKind::Protocol, message)))
            }
            Word::Nothing => return None,
        };
        state.fault = result.as_ref().err().cloned();
        self.over(state);
        Some(result)
    }

    // The opener.

    /// Cancels, unless that was done or the context is over.
    pub(crate) fn cancel(&self, reason: Reason) {
        if is_copy() {
            return;
        }
        let mut state = lock(&self.state);
        let news = state.context.cancel(reason.clone());
        if news {
            state.show(board::State::Cancelled);
            drop(state);
            let message = ToChild::CancelCall { call: self.call, reason };
            // A closed channel has cancelled it already.
            let _closed = self.outbox.push(Priority::Control, &message);
            self.change();
        }
    }

    /// Waits no longer: whoever still holds a half of the stream is told this.
    pub(crate) fn give_up(&self, fault: impl FnOnce() -> Box<Fault>) {
        if is_copy() {
            return;
        }
        let mut state = lock(&self.state);
        if !state.context.is_over() {
            state.context.give_up();
            state.fault = Some(fault());
            self.over(state);
        }
    }

    // Who waits.

    /// Waits until `look` finds something. Ended by what it looks for, and by the context's end,
    /// which every connection brings when it closes: `look` must find that.
    async fn wait<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if let Some(found) = look(&mut lock(&self.state)) {
                return found;
            }
            self.outbox.visited();
            // The sender lives in `self`.
            let _changed = changed.changed().await;
        }
    }

    /// The opener's first value, or why there is none.
    pub(crate) async fn first(&self) -> Answer {
        if is_copy() {
            return Err(self.copied());
        }
        self.wait(|state| match state.started.take() {
            Some(value) => Some(Ok(value)),
            None => state.answer.clone().or_else(|| state.fault.clone().map(Err)),
        })
        .await
    }

    /// The callee's last word, as the opener has it.
    pub(crate) async fn last_word(&self) -> Answer {
        if is_copy() {
            return Err(self.copied());
        }
        self.wait(|state| state.answer.clone().or_else(|| state.fault.clone().map(Err))).await
    }

    /// That the context went wrong, other than by a cancel from this side; while it does not,
    /// nobody waits for this alone.
    #[allow(clippy::wildcard_enum_match_arm, reason = "every other kind is no cancel")]
    pub(crate) async fn failed(&self) {
        if is_copy() {
            return;
        }
        self.wait(|state| {
            let fault = state.fault.as_ref()?;
            let own = match &fault.kind {
                FaultKind::Cancelled(reason) => state.context.cancelled() == Some(reason),
                _ => false,
            };
            (!own).then_some(())
        })
        .await;
    }

    /// That the callee was told to stop, and by whom.
    pub(crate) async fn stopped(&self) -> Reason {
        self.wait(|state| state.context.cancelled().cloned()).await
    }

    /// That all is said.
    pub(crate) async fn ended(&self) {
        if is_copy() {
            return;
        }
        self.wait(|state| state.context.is_over().then_some(())).await;
    }

    /// The first cancel, and whether the context is over.
    pub(crate) fn cancelled(&self) -> Option<Reason> {
        if is_copy() {
            return None;
        }
        lock(&self.state).context.cancelled().cloned()
    }

    pub(crate) fn is_over(&self) -> bool {
        if is_copy() {
            return true;
        }
        lock(&self.state).context.is_over()
    }

    pub(crate) fn stats(&self) -> StreamStats {
        if is_copy() {
            return StreamStats::default();
        }
        let state = lock(&self.state);
        StreamStats { held: state.context.incoming.held(), ..state.stats }
    }

    // The stream's halves.

    /// Sends a message if there is room for it.
    pub(crate) fn try_send<T: Serialize + Send + 'static>(&self, value: T) -> Sent {
        if is_copy() {
            return Sent::Closed(Some(self.copied()));
        }
        // Before any lock: this runs the code of whoever sends.
        let item = self.outbox.item(self.call, value);
        // So that its destructor runs after all locks, whatever becomes of it.
        let _shares = item.as_ref().map(Item::shares).ok();
        let mut state = lock(&self.state);
        if let Some(closed) = state.closed_for_sending() {
            return closed;
        }
        let outgoing = &mut state.context.outgoing;
        let pushed = match item {
            Ok(item) => self.outbox.push_item(item, |length| outgoing.send(length)),
            Err(error) => Err(ItemError::Push(PushError::Frame(error))),
        };
        match pushed {
            Ok(()) => {
                state.stats.sent += 1;
                Sent::Yes
            }
            Err(ItemError::Denied(Denied::Full, value)) => {
                if self.policy == Policy::Fail {
                    state.stats.refused += 1;
                } else {
                    state.stats.waited += 1;
                }
                Sent::Full(value)
            }
            Err(ItemError::Denied(Denied::Closed, _)) => Sent::Closed(None),
            Err(ItemError::Push(PushError::Closed)) => Sent::Full(Framed::nothing()),
            Err(ItemError::Push(PushError::Frame(cause))) => {
                let message = format!("sending a message of `{}`", std::any::type_name::<T>());
                let fault = current::fault(FaultKind::BadArgument, message);
                Sent::Refused(Box::new(fault.because(cause.to_string())))
            }
        }
    }

    /// Sends a message that had to wait, when there is room.
    pub(crate) fn poll_send(&self, value: &Framed, cx: &Task<'_>) -> Poll<Sent> {
        if is_copy() {
            return Poll::Ready(Sent::Closed(Some(self.copied())));
        }
        self.outbox.visited();
        // The other side must see what it is to make room for.
        self.outbox.flush_soon();
        if self.outbox.poll_room(cx).is_pending() && !self.is_over() {
            return Poll::Pending;
        }
        let mut state = lock(&self.state);
        if let Some(closed) = state.closed_for_sending() {
            return Poll::Ready(closed);
        }
        match state.context.outgoing.send(value.length) {
            Ok(()) => {}
            Err(Denied::Closed) => return Poll::Ready(Sent::Closed(None)),
            Err(Denied::Full) => return wait_to_send(state, cx),
        }
        match self.outbox.push_framed(value) {
            Ok(()) => {
                state.stats.sent += 1;
                Poll::Ready(Sent::Yes)
            }
            // The reader finds out why and tells.
            Err(PushError::Closed | PushError::Frame(_)) => wait_to_send(state, cx),
        }
    }

    pub(crate) fn fails_when_full(&self) -> bool {
        self.policy == Policy::Fail
    }

    /// Ready when the connection has room for more data.
    pub(crate) fn poll_room(&self, cx: &Task<'_>) -> Poll<()> {
        self.outbox.visited();
        self.outbox.poll_room(cx)
    }

    pub(crate) fn flush(&self) {
        self.outbox.flush_soon();
    }

    /// No more messages from this side.
    pub(crate) fn close(&self) {
        if is_copy() {
            return;
        }
        let mut state = lock(&self.state);
        if state.context.close() {
            self.tell_close();
        }
    }

    /// The sender was dropped without that.
    pub(crate) fn let_go(&self) {
        if is_copy() {
            return;
        }
        if self.side == Side::Opener && std::thread::panicking() {
            // There will be no more and no end, and whoever waits for one must not wait for ever.
            return self.cancel(Reason { by: current::path(), why: Why::BodyFailed });
        }
        let mut state = lock(&self.state);
        let dropped = match self.side {
            // Its function's end decides, also if its sender is with another task.
            Side::Callee => Dropped::UntilTheEnd,
            Side::Opener if self.steps.dropped() => Dropped::InStep,
            Side::Opener => Dropped::GoingOn,
        };
        if state.context.let_go(dropped) {
            self.tell_close();
        }
    }

    /// The opener's body runs from here on, or is dropped.
    pub(crate) fn step_begins(&self) {
        self.steps.begin();
    }

    /// It waits for something, or has ended well.
    pub(crate) fn step_ends(&self) {
        if self.steps.end() && lock(&self.state).context.went_on() {
            self.tell_close();
            self.flush();
        }
    }

    fn tell_close(&self) {
        let call = self.call;
        // After the messages that were sent; a closed channel has ended it already.
        let _closed = match self.side {
            Side::Opener => self.outbox.push(Priority::Data, &ToChild::CloseStream { call }),
            Side::Callee => self.outbox.push(Priority::Data, &ToParent::CloseStream { call }),
        };
    }

    /// The next message.
    pub(crate) fn poll_next(&self, cx: &Task<'_>) -> Poll<Next> {
        if is_copy() {
            return Poll::Ready(Next::Broken(self.copied()));
        }
        let mut state = lock(&self.state);
        if let Some(value) = state.unread.pop_front() {
            state.context.incoming.taken(value.len());
            self.grant(&mut state);
            return Poll::Ready(Next::Item(value));
        }
        match state.context.rest(self.side) {
            Rest::Ended => Poll::Ready(Next::End),
            Rest::Cut => Poll::Ready(Next::Broken(state.why_cut())),
            Rest::Waits => {
                let older = state.reader.replace(cx.waker().clone());
                drop(state);
                drop(older);
                self.outbox.visited();
                Poll::Pending
            }
        }
    }

    /// Nobody reads any more; the sender must not wait for that.
    pub(crate) fn deafen(&self) {
        if is_copy() {
            return;
        }
        let mut state = lock(&self.state);
        state.deaf = true;
        let unread = std::mem::take(&mut state.unread);
        unread.iter().for_each(|value| state.context.incoming.taken(value.len()));
        self.grant(&mut state);
        drop(state);
        drop(unread);
    }

    fn grant(&self, state: &mut State) {
        if state.context.is_over() {
            return;
        }
        let Some(bytes) = state.context.incoming.grant() else { return };
        let call = self.call;
        // On a closed channel nobody sends.
        let _closed = match self.side {
            Side::Opener => self.outbox.push(Priority::Control, &ToChild::Grant { call, bytes }),
            Side::Callee => self.outbox.push(Priority::Control, &ToParent::Grant { call, bytes }),
        };
    }

    /// Tells everybody who waits that it is over.
    fn over(&self, mut state: MutexGuard<'_, State>) {
        let wakers = [state.reader.take(), state.sender.take()];
        state.line = None;
        drop(state);
        wakers.into_iter().for_each(wake);
        self.change();
    }

    /// What a copy of this process is told.
    fn copied(&self) -> Box<Fault> {
        Box::new(Fault { path: self.peer.clone(), ..copied::fault() })
    }

    fn change(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }
}

impl State {
    fn show(&self, state: board::State) {
        if let Some(line) = &self.line {
            line.set(state, None, 0);
        }
    }

    /// Why there may have been more to read.
    fn why_cut(&self) -> Box<Fault> {
        self.fault.clone().unwrap_or_else(|| {
            let message = "its function here returned before the other side's half was closed";
            Box::new(current::fault(FaultKind::Lost, message.to_owned()))
        })
    }

    fn closed_for_sending(&self) -> Option<Sent> {
        let closed = self.context.is_over() || !self.context.outgoing.is_open();
        closed.then(|| Sent::Closed(self.fault.clone()))
    }
}

/// Whether a sender is dropped while the opener's body runs, whose outcome may be an error.
#[derive(Debug, Default)]
struct Steps(AtomicU8);

impl Steps {
    /// None runs: there is no body, or it waits.
    const BETWEEN: u8 = 0;
    const RUNS: u8 = 1;
    /// One runs, and the sender was dropped meanwhile.
    const DROPPED: u8 = 2;

    fn begin(&self) {
        self.0.store(Self::RUNS, Ordering::Release);
    }

    /// Says whether the sender was dropped in it.
    fn end(&self) -> bool {
        self.0.swap(Self::BETWEEN, Ordering::AcqRel) == Self::DROPPED
    }

    /// The sender is dropped; says whether a step runs, which then finds this at its end.
    fn dropped(&self) -> bool {
        let (runs, dropped) = (Self::RUNS, Self::DROPPED);
        self.0.compare_exchange(runs, dropped, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// Has a sender woken when there is news.
fn wait_to_send(mut state: MutexGuard<'_, State>, cx: &Task<'_>) -> Poll<Sent> {
    let older = state.sender.replace(cx.waker().clone());
    drop(state);
    drop(older);
    Poll::Pending
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// From this size on a message keeps the buffer it came in, rather than being copied.
const OWN_BUFFER: usize = 16 * 1024;
