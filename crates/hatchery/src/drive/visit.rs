//! The way to a peer: connects, says who we are, and reads what comes back until either side has
//! gone.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hatchery_proto::peer::{Introduction, Meet};
use hatchery_proto::{
    Ended as EndedMessage, FaultKind, HandshakeError, PROTOCOL_VERSION, Reason, ToChild, ToParent,
    Why,
};
use tokio::net::UnixStream;

use super::door;
use super::home::Home;
use super::link::Link;
use super::reader::{Ended, Inbox, Received};
use super::socket::Socket;
use super::writer::{Outbox, Priority};
use crate::current::{self, Actor};
use crate::error::PeerError;

/// Connects to the introduced actor. Ended by its answer, its death, or the handshake's bound.
///
/// The connection lives as long as somebody holds the link.
pub(crate) async fn connect(
    introduction: &Introduction,
    actor: &Actor,
) -> Result<Arc<Link>, PeerError> {
    let bound = actor.runtime.config.handshake;
    match tokio::time::timeout(bound, meet(introduction, actor)).await {
        Ok(result) => result,
        Err(_) => Err(PeerError::Handshake { path: introduction.path.clone(), waited: bound }),
    }
}

async fn meet(introduction: &Introduction, actor: &Actor) -> Result<Arc<Link>, PeerError> {
    let config = &actor.runtime.config;
    let stream = knock(introduction).await?;
    if !door::is_ours(&stream) {
        return Err(PeerError::Gone { path: introduction.path.clone() });
    }
    let socket =
        Socket::of_tokio(stream).map_err(|cause| PeerError::System { call: "epoll_ctl", cause })?;
    let socket = Arc::new(socket);
    let home = Home::new(socket.place().clone(), &actor.runtime);
    let outbox = Arc::new(Outbox::new(socket.clone(), config).with_home(home.clone()));
    let mut inbox = Inbox::new(socket, config.max_frame_bytes).with_spin(config.busy_poll);
    let (path, token) = (actor.path.clone(), introduction.token);
    let meet = ToChild::Meet(Box::new(Meet { version: PROTOCOL_VERSION, path, token }));
    let path = introduction.path.clone();
    if outbox.push(Priority::Control, &meet).is_err() {
        return Err(PeerError::Gone { path });
    }
    match inbox.first::<ToParent>().await {
        Ok(ToParent::Ready(_)) => {}
        Ok(ToParent::Refused(HandshakeError::Leaving)) | Err(Ended::Closed) => {
            return Err(PeerError::Gone { path });
        }
        Ok(ToParent::Refused(cause)) => return Err(PeerError::Refused { path, cause }),
        Ok(_) | Err(Ended::Malformed(_)) => return Err(PeerError::Stranger { path }),
    }
    let link = Arc::new(Link::new(path, outbox.clone(), actor));
    let reading = Visit { link: Arc::downgrade(&link), outbox, linger: config.peer_drain };
    home.spawn(link.outbox.clone().write_out());
    home.spawn(reading.read(inbox));
    Ok(link)
}

/// A socket to the actor's door.
async fn knock(introduction: &Introduction) -> Result<UnixStream, PeerError> {
    let name = [&[0][..], door::name(introduction).as_bytes()].concat();
    loop {
        // A local connect is decided at once, unless the queue at the door is full.
        match UnixStream::connect(OsStr::from_bytes(&name)).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // The kernel has no event for room in that queue; the handshake's bound ends this.
                tokio::time::sleep(KNOCK_PAUSE).await;
            }
            // Reset: the door was closed while we stood in its queue.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
                ) =>
            {
                return Err(PeerError::Gone { path: introduction.path.clone() });
            }
            Err(cause) => return Err(PeerError::System { call: "connect", cause }),
        }
    }
}

/// The reader task of a connection to a peer. Holds no link: it ends when nobody does.
struct Visit {
    link: Weak<Link>,
    outbox: Arc<Outbox>,
    /// How long what was said last may take to get out.
    linger: Duration,
}

impl Visit {
    async fn read(self, mut inbox: Inbox) {
        tokio::select! {
            () = self.listen(&mut inbox) => {}
            () = self.outbox.all_left() => {
                // Cancels of what was dropped last. A peer that doesn't read is not waited for.
                let _written = self.outbox.flush(self.linger).await;
            }
        }
        // The writer task ends with the channel.
        drop(self);
    }

    /// Ended by the peer's closing, its goodbye, or its breaking the rules.
    async fn listen(&self, inbox: &mut Inbox) {
        loop {
            let received = inbox.next::<ToParent>().await;
            let Some(link) = self.link.upgrade() else { return };
            let handled = match received {
                Ok(Received::Message(message)) => link.handle(message),
                Ok(Received::Item(call, value)) => link.item(call, value).map(|()| None),
                Err(end) => Err(end),
            };
            match handled {
                Ok(None) => {}
                Ok(Some(ToParent::Ended(ended))) => return goodbye(&link, ended),
                Ok(Some(_)) => {
                    return link.broke_protocol(&"only an actor's spawner is told that");
                }
                Err(Ended::Malformed(error)) => return link.broke_protocol(&error),
                Err(Ended::Closed) => return,
            }
            tokio::task::consume_budget().await;
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        // Who still holds what has ended holds no fd of it (C10).
        self.outbox.release();
        if let Some(link) = self.link.upgrade() {
            link.gone();
        }
    }
}

/// The peer goes down, and says why.
fn goodbye(link: &Link, ended: EndedMessage) {
    let unknown = Reason { by: link.path.clone(), why: Why::Requested };
    let kind = FaultKind::Cancelled(ended.why.unwrap_or(unknown));
    let mut fault = current::fault(kind, "the peer goes down".to_owned());
    fault.path = link.path.clone();
    link.set_end(Box::new(fault));
}

const KNOCK_PAUSE: Duration = Duration::from_millis(2);
