//! An actor's main: handshake, serve, unwind, leave. The same for a forked process, a fresh image
//! and a thread (C14).
//!
//! The loop that reads the parent channel is shielded from the actor's own cancellation: it goes
//! on serving late requests while the actor unwinds, and is broken explicitly as the last step
//! (C12). It never waits for the spawner to close.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::BytesMut;
use hatchery_proto::board::What;
use hatchery_proto::{
    ActorPath, Config, Ended as EndedMessage, HandshakeError, Hello, PROTOCOL_VERSION, Ready,
    Reason, ToChild, ToParent, Why, budget, frame,
};
use hatchery_spawn::{Birth, BirthKind};
use nix::libc;
use tokio::runtime::Runtime;

use crate::board;
use crate::copied;
use crate::current::{self, Actor};
use crate::drive::lanes::Lanes;
use crate::drive::reader::{Ended, Inbox, Received};
use crate::drive::socket::Socket;
use crate::drive::writer::{Outbox, Priority};
use crate::panics::caught;
use crate::runtime::Inner;
use crate::serve::Service;

inventory::submit! {
    hatchery_spawn::Main { name: MAIN, run: main }
}

/// The name under which the spawn backends find [`main`].
pub(crate) const MAIN: &str = "hatchery";

/// From birth to exit status. Runs on the actor's own thread, outside of any runtime.
fn main(mut birth: Birth) -> i32 {
    let is_thread = birth.how == BirthKind::Thread;
    if !hatchery_spawn::claim() {
        return FAILED;
    }
    let Some(channel) = birth.channel.take() else { return FAILED };
    let (runtime, socket) = match set_up(&birth, channel) {
        Ok(set_up) => set_up,
        Err(lack) => return lack.tell(),
    };
    let code = runtime.block_on(live(birth, socket));
    // Blocking tasks of users may never end (H8): a process exits over them, and a thread actor
    // leaves them to the ledger's bound.
    if is_thread {
        runtime.shutdown_timeout(BLOCKING_WAIT);
        current::leave_thread();
    } else {
        runtime.shutdown_background();
    }
    code
}

/// What an actor needs before it can read its greeting: a runtime, and its channel in that.
fn set_up(birth: &Birth, channel: UnixStream) -> Result<(Runtime, Socket), Lack> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // The threads of its blocking pool run user code too.
    builder.enable_all().on_thread_start(hatchery_spawn::guard_stack);
    builder.on_thread_park(copied::leave_if_copy);
    if birth.how == BirthKind::Thread {
        builder.thread_name(birth.name.clone());
    }
    let runtime = match builder.build() {
        Ok(runtime) => runtime,
        Err(error) => return Err(Lack { channel, call: "epoll_create1", error }),
    };
    if birth.how != BirthKind::Thread
        && let Err(error) = hatchery_spawn::signals::shutdown_on_terminate(&channel)
    {
        return Err(Lack { channel, call: "sigaction", error });
    }
    let socket = {
        let _inside = runtime.enter();
        Socket::adopt(channel)
    };
    match socket {
        Ok(socket) => Ok((runtime, socket)),
        Err((channel, error)) => Err(Lack { channel, call: "epoll_ctl", error }),
    }
}

/// Something that the system would not give a new actor.
struct Lack {
    channel: UnixStream,
    call: &'static str,
    error: io::Error,
}

impl Lack {
    /// Tells the spawner instead of leaving it with an exit status. Blocks no longer than the socket
    /// takes a few bytes: nothing was written to it yet.
    fn tell(mut self) -> i32 {
        let errno = self.error.raw_os_error().unwrap_or(libc::EIO);
        let refusal = HandshakeError::System { call: self.call.to_owned(), errno };
        let mut frame = BytesMut::new();
        if frame::encode(&ToParent::Refused(refusal), FIRST_FRAME, &mut frame).is_ok() {
            // The spawner may be gone; there is nobody else to tell.
            let _gone = self.channel.write_all(&frame);
        }
        FAILED
    }
}

async fn live(birth: Birth, socket: Socket) -> i32 {
    let socket = Arc::new(socket);
    let mut inbox = Inbox::new(socket.clone(), FIRST_FRAME);
    // Anything else before the handshake is no spawner of ours.
    let Ok(ToChild::Hello(hello)) = inbox.first::<ToChild>().await else { return FAILED };
    let config = hello.config.clone();
    let runtime = home(&birth, &hello);
    let is_thread = matches!(birth.how, BirthKind::Thread);
    let outbox = Outbox::new(socket, &config);
    let lanes = match understood(&hello).and_then(|()| claimed(&runtime, &hello)) {
        Ok(lanes) => lanes,
        Err(refusal) => {
            // The spawner may be gone; there is nobody else to tell.
            let _gone = outbox.push(Priority::Control, &ToParent::Refused(refusal));
            return FAILED;
        }
    };
    let (down, up) = lanes.map(|lanes| (lanes.down, lanes.up)).unzip();
    let outbox = Arc::new(outbox.with_lane(up));
    let inbox = inbox.with_limit(config.max_frame_bytes).with_spin(hello.busy_poll).with_lane(down);
    let actor = adopt(runtime, is_thread, hello.path, outbox.clone());
    let writer = tokio::spawn(outbox.clone().write_out());
    let ready = Ready {
        version: PROTOCOL_VERSION,
        pid: std::process::id(),
        subscribed: tracing::dispatcher::has_been_set(),
    };
    if outbox.push(Priority::Control, &ToParent::Ready(ready)).is_err() {
        actor.cancel(gone(&actor), config.orphan_grace);
    }
    // After the answer to the handshake: the spawner doesn't wait for it.
    actor.born();
    let reading = tokio::spawn(shielded(inbox, actor.clone(), outbox.clone()));
    let cancelling = actor.cancelled().await;
    actor.quiet().await;
    actor.stage(What::Leaving);
    let undrained = actor.door.drain(&cancelling, config.peer_drain).await;
    leave(&actor, cancelling.reason, undrained, &config).await;
    reading.abort();
    writer.abort();
    if !is_thread {
        hatchery_spawn::notice::flush(config.level_margin);
        current::leave_process(&actor);
    }
    0
}

fn understood(hello: &Hello) -> Result<(), HandshakeError> {
    let (spawner, actor) = (hello.version, PROTOCOL_VERSION);
    if spawner == actor { Ok(()) } else { Err(HandshakeError::Version { spawner, actor }) }
}

/// The lanes that the spawner told of. Without them it would hand over what is never taken.
fn claimed(runtime: &Inner, hello: &Hello) -> Result<Option<Lanes>, HandshakeError> {
    let Some(number) = hello.lanes else { return Ok(None) };
    runtime.offers.claim(number).map(Some).ok_or(HandshakeError::NoLanes)
}

/// The runtime that the actor belongs to.
fn home(birth: &Birth, hello: &Hello) -> Arc<Inner> {
    match (birth.how, Inner::of_thread(birth)) {
        (BirthKind::Thread, Some(runtime)) => runtime,
        (BirthKind::Thread, None) | (BirthKind::Forked | BirthKind::Executed, _) => {
            Inner::of_process(hello)
        }
    }
}

/// Makes the actor this thread's or this process's own.
fn adopt(runtime: Arc<Inner>, is_thread: bool, path: ActorPath, outbox: Arc<Outbox>) -> Arc<Actor> {
    let actor = Arc::new(Actor::new(path, runtime, Some(outbox)));
    if is_thread {
        current::enter_thread(actor.clone());
    } else {
        current::enter_process(&actor, Weak::new());
    }
    actor
}

/// The loop over the parent channel. It meets code of users: what nobody takes is dropped there. An actor
/// whose loop panics could hear no cancel any more, so it goes, and tells why.
async fn shielded(inbox: Inbox, actor: Arc<Actor>, outbox: Arc<Outbox>) {
    if let Err(fault) = caught(read(inbox, actor.clone(), outbox)).await {
        actor.leave_behind(vec![*fault]);
        let reason = Reason { by: actor.path.clone(), why: Why::BodyFailed };
        actor.cancel(reason, actor.runtime.config.orphan_grace);
    }
}

/// The shielded loop over the parent channel. Ends by its closing, or is aborted as the last
/// step of the actor's life.
async fn read(mut inbox: Inbox, actor: Arc<Actor>, outbox: Arc<Outbox>) {
    let parent = actor.path.parent().unwrap_or_else(ActorPath::root);
    let service = Service::new(actor.clone(), outbox, parent);
    loop {
        let received = inbox.next::<ToChild>().await;
        tokio::task::consume_budget().await;
        let handled = match received {
            Ok(Received::Message(message)) => service.handle(message),
            Ok(Received::Item(call, value)) => service.item(call, value).map(|()| None),
            Err(end) => Err(end),
        };
        match handled {
            Ok(None) => {}
            Ok(Some(ToChild::Hello(_) | ToChild::Meet(_))) => {
                return channel_ended(&actor, &Ended::violation("a second greeting"));
            }
            Ok(Some(message)) => about_itself(&actor, message),
            Err(end) => return channel_ended(&actor, &end),
        }
    }
}

/// What the spawner says that belongs to no call.
fn about_itself(actor: &Actor, message: ToChild) {
    match message {
        ToChild::Cancel { reason, budget, sent } => {
            let late = board::now().saturating_sub(sent);
            let budget = budget::after(budget, Duration::from_nanos(late));
            // Acknowledged before it is carried out (C11).
            tell(actor, &ToParent::CancelAck);
            actor.cancel(reason, budget);
        }
        ToChild::CancelBelow { path, reason } => actor.cancel_below(&path, &reason),
        // Handled before.
        ToChild::Hello(_)
        | ToChild::Meet(_)
        | ToChild::Call { .. }
        | ToChild::Open { .. }
        | ToChild::CancelCall { .. }
        | ToChild::Grant { .. }
        | ToChild::CloseStream { .. } => {}
    }
}

/// A spawner that breaks the protocol is as good as gone.
fn channel_ended(actor: &Actor, end: &Ended) {
    let config = &actor.runtime.config;
    if let Ended::Malformed(error) = end {
        tracing::error!(%error, "malformed message from the spawner");
    } else if hatchery_spawn::signals::terminated() {
        // SIGTERM is a cancel that came by another road.
        let reason = Reason { by: actor.path.clone(), why: Why::Terminated };
        return actor.cancel(reason, config.terminate);
    }
    actor.cancel(gone(actor), config.orphan_grace);
}

/// The last words: what nobody has been told yet, then the channel is broken from this side.
async fn leave(actor: &Arc<Actor>, why: Reason, undrained: Vec<ActorPath>, config: &Config) {
    let (faults, past) = actor.take_left();
    let (report, dropped) = past.into_parts();
    let why = Some(why);
    tell(actor, &ToParent::Ended(EndedMessage { faults, report, dropped, undrained, why }));
    if let Some(parent) = &actor.parent {
        // A spawner that doesn't read has its own bound for us.
        let _written = parent.flush(config.peer_drain).await;
        parent.break_channel();
    }
}

fn tell(actor: &Actor, message: &ToParent) {
    if let Some(parent) = &actor.parent {
        // If the channel is closed the reader sees it too and takes the actor down.
        let _closed = parent.push(Priority::Control, message);
    }
}

fn gone(actor: &Actor) -> Reason {
    Reason { by: actor.path.parent().unwrap_or_else(|| actor.path.clone()), why: Why::ParentGone }
}

/// Exit status of an actor that could not even say hello.
const FAILED: i32 = 70;

/// The handshake is small; the peer's real limit is known after it.
const FIRST_FRAME: usize = 64 * 1024;

/// How long a thread actor waits for the blocking tasks it started, after everything else.
const BLOCKING_WAIT: Duration = Duration::from_millis(50);
