//! A thread that truly ends: joined, and gone from the process's count (H9, C10).

use std::io;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::sys::overflow;

/// A dedicated OS thread.
#[derive(Debug)]
pub struct OwnThread {
    handle: JoinHandle<()>,
    task: Option<PathBuf>,
}

impl OwnThread {
    /// Starts a thread. It ends when `run` returns; whoever starts it says who makes it return.
    ///
    /// # Errors
    /// `EAGAIN`: a limit of threads is reached.
    pub fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        Self::with_stack(name, None, run)
    }

    pub(crate) fn with_stack(
        name: &str,
        stack: Option<usize>,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (tell, told) = mpsc::sync_channel(1);
        let mut builder = Builder::new().name(name.to_owned());
        if let Some(bytes) = stack {
            builder = builder.stack_size(bytes);
        }
        let handle = builder.spawn(move || {
            // The starter waits for this; it can't be gone.
            let _told = tell.send(nix::unistd::gettid());
            overflow::guard_stack();
            run();
        })?;
        let task = told.recv().ok().map(|tid| PathBuf::from(format!("/proc/self/task/{tid}")));
        Ok(Self { handle, task })
    }

    /// Whether it runs right now, or where it sleeps; for people.
    pub(crate) fn state(&self) -> String {
        let read = |what| {
            let file = self.task.as_ref().map(|task| task.join(what));
            file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default()
        };
        let stat = read("stat");
        let letter = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        match (letter, read("wchan").trim()) {
            (None, _) => "its end is near".to_owned(),
            (Some('R'), _) => "it runs".to_owned(),
            (Some(letter), "" | "0") => format!("state {letter}"),
            (Some(_), place) => format!("it sleeps in {place}"),
        }
    }

    /// Waits until the thread is gone, at most `bound`; gives back its task's directory if it
    /// isn't. For a thread whose main has returned: what may still run is destructors.
    pub(crate) fn join_within(self, bound: Duration) -> Result<(), PathBuf> {
        let until = Instant::now() + bound;
        if let Some(task) = &self.task {
            while task.exists() {
                if Instant::now() >= until {
                    return Err(task.clone());
                }
                std::thread::yield_now();
            }
        }
        self.join();
        Ok(())
    }

    /// Waits until the thread is gone. Blocks for as long as it runs.
    pub fn join(self) {
        // Its panic has been reported by the hook; there is no value to lose.
        let _panicked = self.handle.join();
        // join returns a moment before the kernel takes the thread off the count.
        let until = Instant::now() + OFF_THE_COUNT;
        while self.task.as_ref().is_some_and(|task| task.exists()) && Instant::now() < until {
            std::thread::yield_now();
        }
    }
}

const OFF_THE_COUNT: Duration = Duration::from_millis(50);
