//! One actor's start: its channel, its greeting, the request to the backend, the wait for its answer.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hatchery_proto::handshake::Handshake;
use hatchery_proto::teardown::Kind;
use hatchery_proto::{ActorId, ActorPath, Hello, PROTOCOL_VERSION, Reason, ToChild, Why};
use hatchery_spawn::SpawnError;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::sync::oneshot;

use super::Core;
use super::admit::Admitted;
use super::reading::Reading;
use super::slot::Slot;
use crate::clock;
use crate::current;
use crate::drive::home::Home;
use crate::drive::link::Link;
use crate::drive::reader::Inbox;
use crate::drive::socket::Socket;
use crate::drive::writer::{Outbox, Priority};
use crate::error::{StartCause, StartError};
use crate::lock::lock;
use crate::portal::Portal;
use crate::start::Backend;

impl Core {
    /// Opens a channel and asks the backend for a child; without waiting.
    pub(super) fn launch(self: &Arc<Self>, admitted: &Admitted) -> Result<Starting, StartError> {
        let Admitted { id, path, options, backend, kind, .. } = admitted;
        let (id, runtime) = (*id, &self.actor.runtime);
        let backend_name = backend.name();
        let cause = |error| StartError::new(path.clone(), backend_name, StartCause::Spawn(error));
        let backend = self.resolve(backend).map_err(cause)?;
        let supervisor = runtime
            .supervisor()
            .map_err(|(call, error)| system(&options.name, call)(error))
            .map_err(cause)?;
        let (stream, theirs) =
            pair(*kind).map_err(system(&options.name, "socketpair")).map_err(cause)?;
        let (spec, pipes) = options
            .spec(&self.actor, path, theirs)
            .map_err(system(&options.name, "pipe2"))
            .map_err(cause)?;
        let config = &runtime.config;
        let is_process = *kind == Kind::Process;
        let (offer, lanes) = (!is_process).then(|| runtime.offers.offer()).unzip();
        let (down, up) = lanes.map(|lanes| (lanes.down, lanes.up)).unzip();
        let home = Home::new(stream.place().clone(), runtime);
        let outbox = Outbox::new(stream.clone(), config).with_home(home.clone());
        let outbox = Arc::new(outbox.with_lane(down));
        let busy_poll = options.busy_poll.unwrap_or(config.busy_poll);
        self.hello(&outbox, path, busy_poll, offer);
        let link = Arc::new(Link::new(path.clone(), outbox.clone(), &self.actor));
        let (started, ready) = oneshot::channel();
        {
            let mut mind = lock(&self.mind);
            // A cancel before this had no channel to be sent on (H27).
            if let Some(reason) = mind.scope.why_asked(id).cloned() {
                drop(mind);
                let cause = StartCause::Closing(reason);
                return Err(StartError::new(path.clone(), backend_name, cause));
            }
            mind.slots.insert(
                id,
                Slot {
                    link: link.clone(),
                    backend: backend_name,
                    is_process,
                    pipes,
                    child: None,
                    signal: None,
                    serving: false,
                    handshake: Handshake::new(config.handshake, clock::now()),
                    started: Some(started),
                    failed: None,
                    leaving: None,
                    struck: false,
                    forced: false,
                },
            );
        }
        let spawning = backend.spawn(spec);
        let inbox = Inbox::new(stream, config.max_frame_bytes).with_spin(busy_poll).with_lane(up);
        let reading = Reading { core: self.clone(), id, link: link.clone(), is_process };
        home.spawn(reading.read(inbox));
        home.spawn(outbox.write_out());
        supervisor.spawn(self.clone().raise(id, spawning));
        if !self.ticking.swap(true, Ordering::SeqCst) {
            supervisor.spawn(self.clone().tick());
        }
        Ok(Starting { core: self.clone(), id, link, ready: Some(ready) })
    }

    fn hello(&self, outbox: &Outbox, path: &ActorPath, busy_poll: Duration, lanes: Option<u64>) {
        let runtime = &self.actor.runtime;
        let (backend, stdio) = runtime.defaults.told();
        let hello = Hello {
            version: PROTOCOL_VERSION,
            path: path.clone(),
            config: runtime.config.clone(),
            backend,
            stdio,
            busy_poll,
            lanes,
        };
        // The socket is new and empty; if it were closed, the handshake's bound would tell.
        drop(outbox.push(Priority::Control, &ToChild::Hello(Box::new(hello))));
    }

    fn resolve(&self, backend: &Backend) -> Result<Arc<dyn hatchery_spawn::Backend>, SpawnError> {
        let runtime = &self.actor.runtime;
        Ok(match backend {
            Backend::Forkserver => Arc::new(runtime.forkserver()?.fork()),
            Backend::Exec => Arc::new(runtime.forkserver()?.exec()),
            Backend::Thread => Arc::new(runtime.threads.clone()),
            Backend::Custom(backend) => backend.clone(),
        })
    }
}

/// An actor on its way to its handshake. Dropped early, it is taken down again.
#[derive(Debug)]
pub(super) struct Starting {
    core: Arc<Core>,
    id: ActorId,
    link: Arc<Link>,
    ready: Option<oneshot::Receiver<Result<(), StartError>>>,
}

impl Starting {
    pub(super) async fn ready(mut self) -> Result<Portal, StartError> {
        let answer = match &mut self.ready {
            Some(ready) => ready.await.unwrap_or_else(|_| Err(self.given_up())),
            None => Err(self.given_up()),
        };
        self.ready = None;
        answer.map(|()| {
            let (core, id, link) = (self.core.clone(), self.id, self.link.clone());
            Portal { core, id, link }
        })
    }

    fn given_up(&self) -> StartError {
        let by = self.link.path.clone();
        let cause = StartCause::Closing(Reason { by: by.clone(), why: Why::Dropped });
        StartError::new(by, "unknown", cause)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if self.ready.is_some() {
            let reason = Reason { by: current::path(), why: Why::Dropped };
            self.core.cancel_actor(self.id, reason);
        }
    }
}

fn pair(kind: Kind) -> std::io::Result<(Arc<Socket>, std::os::fd::OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    if kind == Kind::Process {
        // So that a copy of the actor can't speak in its name.
        setsockopt(&ours, sockopt::PassCred, &true)?;
    }
    Ok((Arc::new(Socket::new(ours)?), theirs.into()))
}

fn system(name: &str, call: &'static str) -> impl FnOnce(std::io::Error) -> SpawnError {
    let (name, call) = (name.to_owned(), call.to_owned());
    move |cause| SpawnError::Call { name, call, cause }
}
