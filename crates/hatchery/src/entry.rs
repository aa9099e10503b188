//! A program's `main` under `#[hatchery::main]`: run on tokio, and ended in time (H8).

use std::fmt::Debug;
use std::process::{ExitCode, Termination};

use crate::arm_watchdog;
use crate::copied::is_copy;

/// What a `main` may return: its exit status is known before anybody tells the system.
#[diagnostic::on_unimplemented(
    message = "a `main` can't return `{Self}` here",
    note = "`#[hatchery::main]` knows the exit status of `()`, `ExitCode`, and `Result` of these"
)]
pub trait Ending: Termination {
    /// The status that the process ends with.
    fn status(&self) -> i32;
}

impl Ending for () {
    fn status(&self) -> i32 {
        0
    }
}

impl Ending for ExitCode {
    fn status(&self) -> i32 {
        (0..=u8::MAX).find(|code| *self == Self::from(*code)).map_or(0, i32::from)
    }
}

impl<T: Ending, E: Debug> Ending for Result<T, E> {
    fn status(&self) -> i32 {
        self.as_ref().map_or(1, Ending::status)
    }
}

/// What `#[hatchery::main]` becomes. `threaded`: tokio has its workers, and not this thread alone.
///
/// # Panics
/// If there is no tokio runtime to be had.
pub fn run_main<F: Future<Output: Ending>>(threaded: bool, main: F) -> F::Output {
    let mut tokio = if threaded {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let tokio = tokio.enable_all().build().expect("building a tokio runtime for `main`");
    // Dropped before tokio, also by a panic.
    let mut end = End { status: PANICKED };
    let ended = tokio.block_on(main);
    end.status = ended.status();
    drop(end);
    if is_copy() {
        // It would wait for threads that a copy has not, and take the other's sockets out of its epoll.
        std::mem::forget(tokio);
    } else {
        drop(tokio);
    }
    ended
}

/// What `#[hatchery::main(reap)]` begins with.
///
/// # Panics
/// If this is process 1 and can't stay behind.
pub fn reap_first() {
    if let Err(error) = hatchery_spawn::reap_orphans() {
        panic!("{error}");
    }
}

/// From its drop on nothing is needed any more, and all that follows may block: tokio's end waits for
/// its pool, std writes out what is left, hooks do what they like.
struct End {
    status: i32,
}

impl Drop for End {
    fn drop(&mut self) {
        arm_watchdog(self.status);
    }
}

/// What std ends a process with whose `main` has panicked.
const PANICKED: i32 = 101;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_what_the_system_would_be_told() {
        assert_eq!(().status(), 0);
        for code in [0, 1, 101, 255] {
            assert_eq!(ExitCode::from(code).status(), i32::from(code));
        }
        assert_eq!(Ok::<_, String>(()).status(), 0);
        assert_eq!(Ok::<_, String>(ExitCode::from(7)).status(), 7);
        assert_eq!(Err::<(), _>("no").status(), 1);
    }
}
