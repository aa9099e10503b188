//! The one way out of a connection: frames go in whole, bytes go out in order.
//!
//! A frame is written at once when nothing is queued, by whoever pushes it and without waiting;
//! what the socket doesn't take is left to the writer task. So a user's future never holds half a
//! frame: a push is not an await point and can't be dropped in the middle (H23). Control frames
//! overtake queued data at the next frame border (H22). Messages of streams are gathered and
//! written together.
//!
//! Lock order: `state` is the innermost lock of this crate; nothing is called while it is held, least
//! of all code of whoever sends.
//!
//! Who pushes, and how a message comes into the queue: `push.rs`; what the queue holds, in which
//! order, and how it goes out: `queue.rs`.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hatchery_proto::stream::Denied;
use hatchery_proto::{Config, FrameError, Lane, Way};
use nix::errno::Errno;
use tokio::sync::{Notify, Semaphore};

use super::framed::Framed;
use super::home::Home;
use super::queue::Queue;
use super::socket::{Second, Socket};
use crate::copied::is_copy;
use crate::lock::lock;

/// Which queue a frame joins when it can't be written at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Cancels, acknowledgements, endings: before any queued data.
    Control,
    /// Calls, replies, and all that must keep its place among a stream's messages.
    Data,
}

/// Why a frame was not taken. Nothing of it was written.
#[derive(Debug)]
pub(crate) enum PushError {
    /// It can't be encoded or is over the limit; the connection lives.
    Frame(FrameError),
    /// The connection is gone.
    Closed,
}

/// Why a stream's message was not taken.
#[derive(Debug)]
pub(crate) enum ItemError {
    /// As for any frame.
    Push(PushError),
    /// The stream has no room for it; here it is, encoded.
    Denied(Denied, Framed),
}

/// The sending half of one connection.
#[derive(Debug)]
pub(crate) struct Outbox {
    pub(super) state: Mutex<Queue>,
    /// Rung when something is queued; the writer task waits on it.
    pub(super) work: Notify,
    /// Rung when nobody will push any more.
    left: Notify,
    /// Who waits for room, but for streams: each has one waiter at the most.
    turn: Semaphore,
    pub(super) max_frame: usize,
    limit: usize,
    /// Where the other end is.
    pub(super) way: Way,
    /// From which length on bytes for another process are put into a file.
    pub(super) files_from: usize,
    /// From which length on values move as they are, where they can.
    moves_from: Option<usize>,
    /// Where the connection's tasks run, if that is a runtime of a user's.
    home: Option<Arc<Home>>,
}

impl Outbox {
    pub(crate) fn new(socket: Arc<Socket>, config: &Config) -> Self {
        let state = Mutex::new(Queue::new(socket));
        let (work, left) = (Notify::new(), Notify::new());
        let (max_frame, limit) = (config.max_frame_bytes, config.outbox_bytes);
        let files_from = config.memfd_from_bytes.unwrap_or(usize::MAX);
        let moves_from = config.move_from_bytes;
        let (turn, way) = (Semaphore::new(1), Way::Across);
        let home = None;
        Self { state, work, left, turn, max_frame, limit, way, files_from, moves_from, home }
    }

    /// The same for a connection whose tasks run there.
    pub(crate) fn with_home(mut self, home: Arc<Home>) -> Self {
        self.home = Some(home);
        self
    }

    /// A home for a task that reads from this connection; the actor's own side has none.
    pub(crate) fn home_beside(&self) -> Option<Arc<Home>> {
        self.home.as_ref().map(|home| home.beside())
    }

    /// Somebody waits for something of this connection: see [`Home::visited`].
    pub(crate) fn visited(&self) {
        if let Some(home) = &self.home {
            home.visited();
        }
    }

    /// The same for a connection inside this process, which has a lane beside its socket.
    pub(crate) fn with_lane(mut self, lane: Option<Arc<Lane>>) -> Self {
        self.way = if lane.is_some() { Way::Inside } else { Way::Across };
        lock(&self.state).lane = lane;
        self
    }

    /// From which length on values move to the other end as they are; `None`: all are encoded.
    pub(crate) fn moves_from(&self) -> Option<usize> {
        self.moves_from.filter(|_| self.way == Way::Inside)
    }

    /// Sees to it that what is queued goes out: now, unless something was written a moment ago;
    /// then the writer task takes it together with what the caller adds before it next waits.
    pub(crate) fn flush_soon(&self) {
        if is_copy() {
            return;
        }
        let mut queue = lock(&self.state);
        if queue.queued == 0 {
            return;
        }
        let written = if queue.is_busy() { Ok(0) } else { queue.write_once() };
        // A closed connection is told to everybody by its reader.
        let _closed = self.after(queue, written);
    }

    /// Wakes the writer task if something is left.
    pub(super) fn after(
        &self,
        mut queue: MutexGuard<'_, Queue>,
        written: Result<usize, Errno>,
    ) -> Result<(), PushError> {
        let left = queue.queued > 0;
        let waiting = queue.released(self.limit);
        drop(queue);
        waiting.into_iter().for_each(Waker::wake);
        if left {
            self.work.notify_one();
        }
        written.map(drop).map_err(|_| PushError::Closed)
    }

    /// Ready when data may be pushed without growing the queue over its limit, or the connection
    /// is closed. Ended by the writer task, or by the closing of the connection.
    pub(crate) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        if is_copy() {
            // A push says the rest.
            return Poll::Ready(());
        }
        if lock(&self.state).poll_room(self.limit, cx).is_ready() {
            return Poll::Ready(());
        }
        self.work.notify_one();
        Poll::Pending
    }

    /// Waits for that. Cancel safe: nothing is queued here.
    ///
    /// In the order of coming, and one at a time: whoever waits is woken when it is its turn, and not
    /// with all others each time that some of them may go on.
    pub(crate) async fn room(&self) {
        if is_copy() || lock(&self.state).has_room(self.limit) {
            return;
        }
        // Nobody closes it.
        let _turn = self.turn.acquire().await;
        std::future::poll_fn(|cx| self.poll_room(cx)).await;
    }

    /// Waits until everything is written, at most `bound`; says whether it was.
    pub(crate) async fn flush(&self, bound: Duration) -> bool {
        tokio::time::timeout(bound, self.write_all()).await.is_ok()
    }

    /// Nobody will push any more: who owns the connection writes what is left and ends it.
    pub(crate) fn leave(&self) {
        if is_copy() {
            return;
        }
        self.left.notify_one();
    }

    /// Waits until everybody has left. Cancel safe.
    pub(crate) async fn all_left(&self) {
        self.left.notified().await;
    }

    /// The writer task: writes what pushes had to leave behind, until the connection closes.
    pub(crate) async fn write_out(self: Arc<Self>) {
        loop {
            self.work.notified().await;
            if self.write_all().await.is_err() {
                return;
            }
        }
    }

    /// Ends the connection in both directions; what was received can still be read (C12).
    pub(crate) fn break_channel(&self) {
        if is_copy() {
            return;
        }
        let mut queue = lock(&self.state);
        queue.close();
        if let Some(socket) = &queue.socket {
            socket.shut();
        }
        let _told = self.after(queue, Ok(0));
        self.work.notify_one();
    }

    /// The same, and our half of the fd is closed: the other side has settled. What is still to be
    /// read is the reader's, with its own half.
    pub(crate) fn release(&self) {
        if is_copy() {
            return;
        }
        self.break_channel();
        let mut queue = lock(&self.state);
        let gone = (queue.socket.take(), queue.lane.take());
        drop(queue);
        drop(gone);
    }

    /// Whether something has come that our reader has had no time for.
    pub(crate) fn is_unread(&self) -> bool {
        let socket = lock(&self.state).socket.clone();
        socket.is_some_and(|socket| socket.is_unread())
    }

    async fn write_all(&self) -> io::Result<()> {
        let mut second = Second::default();
        loop {
            match self.write_some() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let socket = lock(&self.state).socket.clone();
                    socket.ok_or(io::ErrorKind::BrokenPipe)?.room(&mut second).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes once; `Ok(true)` when nothing is left.
    fn write_some(&self) -> io::Result<bool> {
        if is_copy() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut queue = lock(&self.state);
        if queue.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if queue.queued == 0 {
            return Ok(true);
        }
        let written = queue.write_once();
        let done = queue.queued == 0;
        let waiting = queue.released(self.limit);
        drop(queue);
        waiting.into_iter().for_each(Waker::wake);
        match written? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use nix::sys::socket::{setsockopt, sockopt};
    use tokio::task::JoinSet;

    use super::*;

    /// C2: who waits for room is looked at a few times, however many others do: what a crowd of calls
    /// costs grows with their number, and not with its square.
    #[test]
    fn who_waits_for_room_is_woken_when_it_is_its_turn() {
        const COUNT: usize = 2_000;
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            // So that little goes at a time.
            setsockopt(&ours, sockopt::SndBuf, &4096).unwrap();
            let config = Config { outbox_bytes: 4 << 10, ..Config::default() };
            let outbox = Outbox::new(Arc::new(Socket::new(ours).unwrap()), &config);
            let outbox = Arc::new(outbox);
            let (looks, message) = (Arc::new(AtomicUsize::new(0)), [7_u8; 500]);
            let writing = tokio::spawn(outbox.clone().write_out());
            let mut waiting = JoinSet::new();
            for _ in 0..COUNT {
                let (outbox, looks) = (outbox.clone(), looks.clone());
                waiting.spawn(async move {
                    let mut room = Box::pin(outbox.room());
                    std::future::poll_fn(|cx| {
                        looks.fetch_add(1, Ordering::Relaxed);
                        room.as_mut().poll(cx)
                    })
                    .await;
                    outbox.push(Priority::Data, &message.as_slice()).unwrap();
                });
            }
            // Little at a time, and after all others had their turn.
            theirs.set_nonblocking(true).unwrap();
            let reading = tokio::spawn(async move {
                let mut buffer = vec![0; 2_000];
                while !matches!(theirs.read(&mut buffer), Ok(0)) {
                    tokio::task::yield_now().await;
                }
            });
            while let Some(pushed) = waiting.join_next().await {
                pushed.unwrap();
            }
            assert!(outbox.flush(Duration::from_secs(60)).await);
            outbox.break_channel();
            writing.await.unwrap();
            reading.await.unwrap();
            let looks = looks.load(Ordering::Relaxed);
            assert!(looks <= 4 * COUNT, "{looks} looks of {COUNT}");
        });
    }
}
