//! Backend: a dedicated OS thread, never a pooled one (H9). Same birth, same channel; no force.

use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{oneshot, watch};

use crate::backend::{Backend, Spawning};
use crate::child::{Child, Core, Status};
use crate::error::SpawnError;
use crate::exit::Exit;
use crate::image::{Birth, BirthKind, Main};
use crate::ledger::Ledger;
use crate::own_thread::OwnThread;
use crate::spec::{Program, Spec};
use crate::sys::owner;

/// Children that are threads of this process.
#[derive(Debug, Clone, Default)]
pub struct Threads {
    ledger: Ledger,
}

impl Threads {
    /// A backend with an empty ledger.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Who was given up on.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn start(&self, spec: Spec) -> Result<Child, SpawnError> {
        let (name, path) = (spec.name, spec.path);
        if !owner::claim() {
            return Err(SpawnError::Copied { name });
        }
        let unsupported =
            |what| SpawnError::Unsupported { name: name.clone(), backend: "thread", what };
        let Program::Main(main) = &spec.program else { return Err(unsupported("other programs")) };
        if !spec.limits.is_empty() {
            return Err(unsupported("limits"));
        }
        if !spec.confine.is_empty() {
            return Err(unsupported("confinement"));
        }
        if spec.current_dir.is_some() || !spec.env.is_empty() || spec.env_clear {
            return Err(unsupported("a directory or an environment of its own"));
        }
        if spec.umask.is_some() || spec.nice.is_some() {
            return Err(unsupported("a umask or a nice value of its own"));
        }
        let found = inventory::iter::<Main>.into_iter().find(|known| known.name == main);
        let Some(run) = found.map(|main| main.run) else { return Err(unsupported("this main")) };
        let (payload, fds) = (spec.payload, spec.fds);
        let channel = spec.channel.map(UnixStream::from);
        let birth = Birth { name: name.clone(), payload, channel, fds, how: BirthKind::Thread };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (status, _) = watch::channel(Status::default());
        let (ledger, latch) = (self.ledger.clone(), status.clone());
        let thread = OwnThread::with_stack(&name, spec.stack_size, move || {
            let exit = match catch_unwind(AssertUnwindSafe(|| run(birth))) {
                Ok(code) => Exit::Code(code & 0xff),
                Err(payload) => Exit::Panicked(message(&*payload)),
            };
            latch.send_modify(|status| status.latch(Ok(exit), true));
            ledger.forget(number);
        });
        let call = "pthread_create".to_owned();
        let thread =
            thread.map_err(|cause| SpawnError::Call { name: name.clone(), call, cause })?;
        let core: Arc<Core> = {
            let path = path.unwrap_or_else(|| name.clone());
            Core::thread(name, number, path, self.ledger.clone(), status, thread)
        };
        Ok(Child::new(core))
    }
}

impl Backend for Threads {
    fn name(&self) -> &'static str {
        "thread"
    }

    fn is_process(&self) -> bool {
        false
    }

    fn spawn(&self, spec: Spec) -> Spawning {
        let name = spec.name.clone();
        let (answer, answered) = oneshot::channel();
        // The receiver is right here.
        drop(answer.send(self.start(spec)));
        Spawning::waiting(name, answered)
    }
}

fn message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&'static str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default()
}

static NEXT: AtomicU64 = AtomicU64::new(1);
