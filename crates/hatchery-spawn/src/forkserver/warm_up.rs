//! The program's preloads: run once in the forkserver, one after the other, on a thread that has
//! ended before the first fork.
//!
//! The root bounds them (`Bounds::warm_up`) and may die or give up meanwhile: the forkserver's own
//! thread watches for both, so that no preload keeps it alive (C3).

use std::os::fd::{AsFd as _, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::threads;
use super::wire::Answer;
use crate::error::PreloadFailure;
use crate::image::Preload;
use crate::sys::{exit, scm_rights};

/// Why no child can be forked.
pub(super) enum Unfit {
    /// A call failed.
    Call(&'static str, Errno),
    /// A preload did not end well.
    Preload { preload: String, failure: PreloadFailure },
}

impl From<(&'static str, Errno)> for Unfit {
    fn from((call, errno): (&'static str, Errno)) -> Self {
        Self::Call(call, errno)
    }
}

/// Runs all preloads, and says at `client` which one is under way: a sign of life. Ended by their
/// end; the whole process ends if the client closes or `root` dies.
pub(super) fn run(client: BorrowedFd<'_>, root: Option<BorrowedFd<'_>>) -> Result<(), Unfit> {
    if inventory::iter::<Preload>.into_iter().next().is_none() {
        return Ok(());
    }
    let (done, doing) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| ("pipe2", errno))?;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, move || {
            // Closed when this ends, however it ends.
            let _doing = doing;
            inventory::iter::<Preload>.into_iter().try_for_each(|preload| one(preload, client))
        });
        let thread = thread.map_err(|_| ("pthread_create", Errno::EAGAIN))?;
        watch(done.as_fd(), client, root);
        thread.join().map_err(|_| ("pthread_join", Errno::ECANCELED))?
    })
}

fn one(preload: &Preload, client: BorrowedFd<'_>) -> Result<(), Unfit> {
    let name = preload.name.to_owned();
    let before = threads::others();
    let told = Answer::WarmingUp { preload: name.clone() };
    scm_rights::send(client, &told.encode(), &[]).map_err(|errno| ("sendmsg", errno))?;
    let failed = |failure| Unfit::Preload { preload: preload.name.to_owned(), failure };
    catch_unwind(AssertUnwindSafe(preload.run)).map_err(|payload| {
        let text = payload.downcast_ref::<&'static str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        // It has to fit a message.
        let message = text.chars().take(MESSAGE_CHARS).collect();
        failed(PreloadFailure::Panicked { message })
    })?;
    let Some(thread) = left_thread(&before) else { return Ok(()) };
    Err(failed(PreloadFailure::LeftThread { thread: threads::describe(thread) }))
}

/// A thread that was not there before and stays. One that was joined may be there for a moment.
fn left_thread(before: &[i32]) -> Option<i32> {
    let until = Instant::now() + threads::OFF_THE_COUNT;
    loop {
        let left = threads::others().into_iter().find(|thread| !before.contains(thread));
        if left.is_none() || Instant::now() > until {
            return left;
        }
        std::thread::yield_now();
    }
}

/// Waits for the end of the preloads; ends the process with the root's interest in it.
fn watch(done: BorrowedFd<'_>, client: BorrowedFd<'_>, root: Option<BorrowedFd<'_>>) {
    loop {
        let mut fds = vec![
            PollFd::new(done, PollFlags::POLLIN),
            // Requests wait there: only its end is of interest now.
            PollFd::new(client, PollFlags::empty()),
        ];
        fds.extend(root.map(|root| PollFd::new(root, PollFlags::POLLIN)));
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            continue;
        }
        let is_set = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        if is_set(&fds[0]) {
            return;
        }
        if fds[1..].iter().any(is_set) {
            exit::exit_now(0);
        }
    }
}

/// How much of a panic's message is told.
const MESSAGE_CHARS: usize = 1024;
