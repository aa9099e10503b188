//! Where an actor's peers come in: the listener, the connections that came through it, and their
//! draining when the actor leaves (C13). There is no listener unless somebody asked for one (C15).
//!
//! Who may come and how long is waited for is decided by [`Door`]; here it is carried out.

use std::collections::BTreeMap;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use hatchery_proto::peer::{Door, GuestId, Introduction, Lobby, Meet, Room, StrangerId, Token};
use hatchery_proto::{
    ActorPath, Ended as EndedMessage, HandshakeError, PROTOCOL_VERSION, Ready, Reason, ToChild,
    ToParent, Why,
};
use hatchery_spawn::Kept;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, oneshot, watch};

use super::reader::{Ended, Inbox, Received};
use super::socket::Socket;
use super::writer::{Outbox, Priority};
use crate::clock;
use crate::copied::is_copy;
use crate::current::{Actor, Cancelling};
use crate::error::PeerError;
use crate::lock::lock;
use crate::serve::Service;

/// One actor's listener and guests. Empty until somebody asks for an introduction.
#[derive(Debug, Default)]
pub(crate) struct Reception {
    inside: Mutex<Inside>,
    /// Changed whenever a guest has left, and when the door closes.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Inside {
    door: Option<Door>,
    listening: Option<(Introduction, Weak<Listening>)>,
    guests: BTreeMap<GuestId, Arc<Outbox>>,
    closed: Option<Reason>,
    /// Tasks that hold a connection.
    present: usize,
}

impl Reception {
    /// The introduction to give away. Begins to listen at the first, and again if the tokio
    /// runtime that listened is gone.
    pub(crate) fn introduction(&self, actor: &Arc<Actor>) -> Result<Introduction, PeerError> {
        let mut inside = lock(&self.inside);
        let going = actor.cancelling().map(|cancelling| cancelling.reason);
        if let Some(reason) = going.or_else(|| inside.closed.clone()) {
            return Err(PeerError::Closing(reason));
        }
        if let Some((introduction, alive)) = &inside.listening
            && alive.strong_count() > 0
        {
            return Ok(introduction.clone());
        }
        let system = |call| move |cause| PeerError::System { call, cause };
        let introduction = introduce(actor.path.clone()).map_err(system("getrandom"))?;
        let address =
            SocketAddr::from_abstract_name(name(&introduction)).map_err(system("bind"))?;
        let listener = StdListener::bind_addr(&address).map_err(system("bind"))?;
        listener.set_nonblocking(true).map_err(system("fcntl"))?;
        let listener = UnixListener::from_std(listener).map_err(system("epoll_ctl"))?;
        let alive = Arc::new(Listening { actor: actor.clone() });
        inside.door = Some(Door::new(introduction.token));
        inside.listening = Some((introduction.clone(), Arc::downgrade(&alive)));
        let changed = self.changed.subscribe();
        tokio::spawn(accept(Kept::new(listener), actor.clone(), changed, alive));
        Ok(introduction)
    }

    /// Somebody has said who it is.
    fn enter(&self, meet: &Meet, outbox: &Arc<Outbox>) -> Result<GuestId, HandshakeError> {
        let mut inside = lock(&self.inside);
        let id = match &mut inside.door {
            Some(door) => door.enter(meet)?,
            None => return Err(HandshakeError::Stranger),
        };
        inside.guests.insert(id, outbox.clone());
        inside.present += 1;
        Ok(id)
    }

    fn left(&self, id: GuestId) {
        if is_copy() {
            return;
        }
        let mut inside = lock(&self.inside);
        inside.guests.remove(&id);
        inside.present -= 1;
        if let Some(door) = &mut inside.door {
            door.left(id);
        }
        drop(inside);
        self.changed.send_replace(());
    }

    /// Lets nobody in any more and tells those who are in that the actor goes, after all that it
    /// has answered them.
    fn close(&self, reason: &Reason, bound: Duration) {
        if is_copy() {
            return;
        }
        let mut inside = lock(&self.inside);
        inside.closed.get_or_insert_with(|| reason.clone());
        if let Some(door) = &mut inside.door {
            door.close(bound, clock::now());
        }
        for outbox in inside.guests.values() {
            let ended = EndedMessage { why: Some(reason.clone()), ..EndedMessage::default() };
            // A guest that has gone meanwhile needs no goodbye.
            let _gone = outbox.push(Priority::Data, &ToParent::Ended(ended));
        }
        drop(inside);
        self.changed.send_replace(());
    }

    /// Waits until every guest has left; who has not by then is closed on, and named. Ended by
    /// the guests, at the latest by `peer_drain` or half of the time the actor has left.
    pub(crate) async fn drain(
        &self,
        cancelling: &Cancelling,
        peer_drain: Duration,
    ) -> Vec<ActorPath> {
        let left = cancelling.until.saturating_duration_since(Instant::now());
        self.close(&cancelling.reason, peer_drain.min(left / 2));
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let next = lock(&self.inside).door.as_ref().and_then(Door::poll_timeout);
            let Some(next) = next else { return Vec::new() };
            let next = clock::instant(next).into();
            if tokio::time::timeout_at(next, changed.changed()).await.is_err() {
                return self.close_on_the_late();
            }
        }
    }

    /// Drains, then waits for the listener and all connections to be closed here too, so that a
    /// root that has closed holds no fd any more (C10). Ended by the tasks that hold them.
    pub(crate) async fn close_all(&self, cancelling: &Cancelling, peer_drain: Duration) {
        self.drain(cancelling, peer_drain).await;
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let open = {
                let inside = lock(&self.inside);
                let listening = inside.listening.as_ref();
                inside.present > 0 || listening.is_some_and(|(_, alive)| alive.strong_count() > 0)
            };
            let wait = tokio::time::timeout_at(cancelling.until.into(), changed.changed());
            if !open || wait.await.is_err() {
                return;
            }
        }
    }

    /// The same without waiting, for a root whose runtime closes.
    pub(crate) fn shut(&self, reason: &Reason) {
        self.close(reason, Duration::ZERO);
        self.close_on_the_late();
    }

    fn close_on_the_late(&self) -> Vec<ActorPath> {
        let mut inside = lock(&self.inside);
        let late = inside.door.as_mut().map(|door| door.handle_timeout(clock::now()));
        let late = late.unwrap_or_default();
        let broken = late.into_iter().map(|(id, path)| {
            if let Some(outbox) = inside.guests.remove(&id) {
                outbox.break_channel();
            }
            path
        });
        broken.collect()
    }
}

/// That there is a listener. Dropped with its task.
#[derive(Debug)]
struct Listening {
    actor: Arc<Actor>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        if is_copy() {
            return;
        }
        self.actor.door.changed.send_replace(());
    }
}

/// Takes connections in until the actor goes. Ended by that, or by the end of its runtime.
async fn accept(
    listener: Kept<UnixListener>,
    actor: Arc<Actor>,
    mut changed: watch::Receiver<()>,
    _alive: Arc<Listening>,
) {
    let strangers = Strangers::new();
    let mut is_told = false;
    loop {
        let accepted = tokio::select! {
            biased;
            _going = actor.cancelled() => return,
            _closed = changed.wait_for(|()| lock(&actor.door.inside).closed.is_some()) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                is_told = false;
                strangers.room().await;
                tokio::spawn(receive(stream, actor.clone(), Stranger::new(&strangers)));
            }
            Err(error) => {
                // Once, however often it is tried: it may last.
                if !is_told {
                    tracing::warn!(%error, path = %actor.path, "a peer could not be let in");
                }
                is_told = true;
                // No event tells that fds are free again; whoever knocks waits meanwhile.
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, from the first word to the last.
async fn receive(stream: UnixStream, actor: Arc<Actor>, mut stranger: Stranger) {
    let config = &actor.runtime.config;
    if !is_ours(&stream) {
        return tracing::warn!(path = %actor.path, "a process of another user was turned away");
    }
    let Ok(socket) = Socket::of_tokio(stream).map(Arc::new) else { return };
    let mut inbox = Inbox::new(socket.clone(), FIRST_FRAME);
    let first = tokio::select! {
        biased;
        first = tokio::time::timeout(config.handshake, inbox.first::<ToChild>()) => first,
        () = stranger.asked_to_go() => {
            // It may have spoken while this process had no time to hear it.
            tokio::time::timeout(LAST_LOOK, inbox.first::<ToChild>()).await
        }
    };
    let Ok(Ok(ToChild::Meet(meet))) = first else { return };
    let outbox = Arc::new(Outbox::new(socket, config));
    let id = match actor.door.enter(&meet, &outbox) {
        Ok(id) => id,
        Err(refusal) => {
            tracing::warn!(path = %actor.path, %refusal, "a peer was turned away");
            // Whoever it is may have gone already.
            let _gone = outbox.push(Priority::Control, &ToParent::Refused(refusal));
            return;
        }
    };
    drop(stranger);
    let service = Service::new(actor.clone(), outbox.clone(), meet.path);
    let guest = Guest { actor: actor.clone(), service, outbox, id };
    guest.serve(inbox.with_limit(config.max_frame_bytes).with_spin(config.busy_poll)).await;
}

/// Those who have come and not said who they are.
#[derive(Debug)]
struct Strangers {
    inside: Mutex<Silent>,
    /// Rung when one has spoken or gone.
    left: Notify,
}

#[derive(Debug)]
struct Silent {
    lobby: Lobby,
    /// How each is asked to go.
    leave: BTreeMap<StrangerId, oneshot::Sender<()>>,
}

impl Strangers {
    fn new() -> Arc<Self> {
        let lobby = Lobby::new(MAX_STRANGERS, PATIENCE);
        let inside = Mutex::new(Silent { lobby, leave: BTreeMap::new() });
        Arc::new(Self { inside, left: Notify::new() })
    }

    /// Makes room for one more. Ended by one of those who are there, at the latest by their patience.
    async fn room(&self) {
        loop {
            let until = {
                let mut inside = lock(&self.inside);
                match inside.lobby.room(clock::now()) {
                    Room::Free => return,
                    Room::After(silent) => {
                        inside.lobby.left(silent);
                        // It has gone by itself if nobody takes it.
                        let _gone = inside.leave.remove(&silent).map(|leave| leave.send(()));
                        return;
                    }
                    Room::Later(until) => until,
                }
            };
            let until = clock::instant(until).into();
            let _spoken = tokio::time::timeout_at(until, self.left.notified()).await;
        }
    }
}

/// One of them, until this is dropped.
struct Stranger {
    strangers: Arc<Strangers>,
    id: StrangerId,
    leave: oneshot::Receiver<()>,
}

impl Stranger {
    fn new(strangers: &Arc<Strangers>) -> Self {
        let (tell, leave) = oneshot::channel();
        let mut inside = lock(&strangers.inside);
        let id = inside.lobby.enter(clock::now());
        inside.leave.insert(id, tell);
        Self { strangers: strangers.clone(), id, leave }
    }

    /// Waits until it must make room; while there is enough, nobody waits for this alone.
    async fn asked_to_go(&mut self) {
        if (&mut self.leave).await.is_err() {
            std::future::pending().await
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        if is_copy() {
            return;
        }
        let mut inside = lock(&self.strangers.inside);
        inside.lobby.left(self.id);
        inside.leave.remove(&self.id);
        drop(inside);
        self.strangers.left.notify_one();
    }
}

/// A guest that was let in. Dropped with its task, what ran for it is cancelled.
struct Guest {
    actor: Arc<Actor>,
    service: Arc<Service>,
    outbox: Arc<Outbox>,
    id: GuestId,
}

impl Guest {
    async fn serve(self, mut inbox: Inbox) {
        let ready = Ready {
            version: PROTOCOL_VERSION,
            pid: std::process::id(),
            subscribed: tracing::dispatcher::has_been_set(),
        };
        let writing = tokio::spawn(self.outbox.clone().write_out());
        if self.outbox.push(Priority::Control, &ToParent::Ready(ready)).is_ok() {
            let end = self.answer(&mut inbox).await;
            if let Ended::Malformed(error) = end {
                // That connection ends, and nothing else (C15).
                tracing::error!(%error, path = %self.actor.path, "malformed message of a peer");
            }
        }
        drop(self);
        writing.abort();
    }

    async fn answer(&self, inbox: &mut Inbox) -> Ended {
        loop {
            let handled = match inbox.next::<ToChild>().await {
                Ok(Received::Message(message)) => self.service.handle(message),
                Ok(Received::Item(call, value)) => self.service.item(call, value).map(|()| None),
                Err(end) => return end,
            };
            tokio::task::consume_budget().await;
            match handled {
                Ok(None) => {}
                Ok(Some(_)) => return Ended::violation("only a spawner may say that"),
                Err(end) => return end,
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.service.lost();
        // Who still holds what has ended holds no fd of it (C10).
        self.outbox.release();
        self.actor.door.left(self.id);
    }
}

/// The runtime of a root closes, where nobody can wait.
pub(crate) fn root_closes(root: &Actor) {
    root.door.shut(&Reason { by: root.path.clone(), why: Why::Finished });
}

fn introduce(path: ActorPath) -> io::Result<Introduction> {
    let (mut address, mut token) = ([0; 16], [0; 16]);
    getrandom::fill(&mut address).map_err(io::Error::from)?;
    getrandom::fill(&mut token).map_err(io::Error::from)?;
    Ok(Introduction { path, address, token: Token(token) })
}

/// In the abstract namespace: no file is left behind, whatever dies how (C10).
pub(super) fn name(introduction: &Introduction) -> String {
    let hex: String = introduction.address.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("hatchery-peer-{hex}")
}

/// Whether the process on the other side is of our user, or root's.
pub(super) fn is_ours(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid();
    stream.peer_cred().is_ok_and(|other| other.uid() == own.as_raw() || other.uid() == 0)
}

/// Connections that have not said who they are; then those that are silent for longest make room.
const MAX_STRANGERS: usize = 64;
/// How long each may be silent at least: who was introduced speaks at once, and may lose its processor.
const PATIENCE: Duration = Duration::from_millis(20);
/// For what has come and was not read.
const LAST_LOOK: Duration = Duration::from_millis(1);
/// The first message is small.
const FIRST_FRAME: usize = 64 * 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
