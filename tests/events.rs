//! What the crates say through `tracing`, kept for a test to look at.

use std::fmt::{self, Debug, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// All events of this process from its making on, as `LEVEL message field=value …`.
#[derive(Debug, Clone, Default)]
pub struct Events {
    lines: Arc<Mutex<Vec<String>>>,
}

impl Events {
    /// Begins to listen, for the rest of the process's life.
    ///
    /// # Panics
    /// If somebody listens already: a scenario has a process of its own.
    #[must_use]
    pub fn capture() -> Self {
        let events = Self::default();
        let listener = Listener(events.clone());
        tracing::subscriber::set_global_default(listener).expect("nobody else listens");
        events
    }

    /// Those that hold `text`.
    #[must_use]
    pub fn with(&self, text: &str) -> Vec<String> {
        // Said by a thread that nobody waits for.
        hatchery_spawn::notice::flush(std::time::Duration::from_secs(10));
        self.lock().iter().filter(|line| line.contains(text)).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Listener(Events);

impl Subscriber for Listener {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().push(line.0);
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let written: fmt::Result = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
        written.expect("a string takes all");
    }
}
