//! What those who supervise have to say through `tracing`, said by a thread that nobody waits for.
//!
//! A subscriber is code of the user's: it may take locks that a stuck actor holds, or write to a
//! pipe that nobody reads. No cancel, no budget and no signal waits for that (H6). The thread is
//! there while there is something to say, so a process that is well has none.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::Dispatch;
use tracing::dispatcher::{get_default, with_default};

use crate::sys::owner::is_copy;

type Notice = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Board {
    /// With whom each is said to: the subscriber of the thread that posted it.
    waiting: VecDeque<(Dispatch, Notice)>,
    /// How many found no room, or no thread.
    lost: usize,
    speaking: bool,
    thread: Option<JoinHandle<()>>,
}

static BOARD: Mutex<Board> =
    Mutex::new(Board { waiting: VecDeque::new(), lost: 0, speaking: false, thread: None });
static SILENCE: Condvar = Condvar::new();

/// Has `notice` run soon, in order, on a thread of its own. It waits for nothing, and holds no lock
/// while code of others runs. While many wait, more are dropped and counted.
pub fn post(notice: impl FnOnce() + Send + 'static) {
    if is_copy() {
        return;
    }
    let to = get_default(Dispatch::clone);
    let mut board = board();
    if board.waiting.len() >= MOST {
        board.lost += 1;
        return;
    }
    board.waiting.push_back((to, Box::new(notice)));
    if board.speaking {
        return;
    }
    // It has nothing more to do, or it would be speaking; but it may not be gone yet.
    let before = board.thread.take();
    let thread = std::thread::Builder::new().name("hatchery-notice".to_owned()).spawn(move || {
        speak();
        if let Some(before) = before {
            let _panicked = before.join();
        }
    });
    match thread {
        Ok(thread) => {
            board.speaking = true;
            board.thread = Some(thread);
        }
        Err(_) => {
            board.lost += board.waiting.len();
            board.waiting.clear();
        }
    }
}

/// Waits until all that was posted has been said, at most `bound`, and then until the thread is gone,
/// which has nothing left to do but its destructors.
pub fn flush(bound: Duration) {
    if is_copy() {
        return;
    }
    let (mut board, _) = SILENCE
        .wait_timeout_while(board(), bound, |board| board.speaking)
        .unwrap_or_else(PoisonError::into_inner);
    let thread = if board.speaking { None } else { board.thread.take() };
    drop(board);
    if let Some(thread) = thread {
        // It has said everything. A subscriber that panicked has printed so.
        let _panicked = thread.join();
    }
}

fn speak() {
    while let Some(((to, notice), lost)) = next() {
        let say = || {
            if lost > 0 {
                tracing::warn!(lost, "events were dropped: the subscriber is too slow");
            }
            notice();
        };
        // A subscriber that panics has said so, and may do better with the next one.
        let _panicked = catch_unwind(AssertUnwindSafe(|| with_default(&to, say)));
    }
    SILENCE.notify_all();
}

/// What to say next, and how much was lost before it.
fn next() -> Option<((Dispatch, Notice), usize)> {
    let mut board = board();
    let Some(next) = board.waiting.pop_front() else {
        // In the same breath: who posts from now on starts another thread.
        board.speaking = false;
        return None;
    };
    Some((next, std::mem::take(&mut board.lost)))
}

fn board() -> MutexGuard<'static, Board> {
    BOARD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many notices wait at most.
const MOST: usize = 1024;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    /// There is one board, and the tests of this process run side by side.
    static TURN: Mutex<()> = Mutex::new(());

    /// H6: who posts never waits. What finds no room is counted, and the count is told; the rest is
    /// said in order, also after one that panics, and then there is no thread any more.
    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let _turn = TURN.lock();
        let (go_on, wait) = channel::<()>();
        let (say, said) = channel();
        let lost = || board().lost;
        let (begin, begun) = channel();
        post(move || {
            begin.send(()).unwrap();
            wait.recv().unwrap();
        });
        // Taken in the middle of the others, it would be told what was lost before it.
        begun.recv().unwrap();
        let all = 2 * MOST;
        for number in 0..all {
            let say = say.clone();
            post(move || {
                say.send(number).unwrap();
                assert_ne!(number, 3, "a subscriber that panics");
            });
        }
        let dropped = lost();
        assert_eq!(dropped, MOST);
        flush(Duration::ZERO);
        go_on.send(()).unwrap();
        flush(Duration::from_secs(60));
        let heard: Vec<_> = said.try_iter().collect();
        assert_eq!(heard, (0..all - dropped).collect::<Vec<_>>());
        assert_eq!(lost(), 0);
        assert!(board().thread.is_none());
        let (say, said) = channel();
        post(move || say.send(()).unwrap());
        said.recv().unwrap();
        flush(Duration::from_secs(60));
    }

    /// C10: however often one ends and the next begins, none is there after a flush.
    #[test]
    fn every_thread_that_spoke_is_gone() {
        let _turn = TURN.lock();
        static LIVING: AtomicUsize = AtomicUsize::new(0);
        struct Life;
        impl Drop for Life {
            fn drop(&mut self) {
                // Long after it was told that there is nothing more to say.
                (0..100).for_each(|_| std::thread::yield_now());
                LIVING.fetch_sub(1, Ordering::SeqCst);
            }
        }
        thread_local!(static LIFE: Life = {
            LIVING.fetch_add(1, Ordering::SeqCst);
            Life
        });
        for _ in 0..1000 {
            let (say, said) = channel();
            post(move || {
                LIFE.with(|_| ());
                say.send(()).unwrap();
            });
            said.recv().unwrap();
        }
        flush(Duration::from_secs(60));
        assert_eq!(LIVING.load(Ordering::SeqCst), 0);
    }
}
