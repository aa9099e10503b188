//! Our own stdout or stderr as a place for whole lines, which never blocks who writes to it.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};

use crate::sys::{fds, nowait, sigpipe};

/// What waits to be written to one of our own outputs.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) output: BorrowedFd<'static>,
    kind: Kind,
    queue: Vec<u8>,
    /// How much of the queue is written.
    written: usize,
    dropped: u64,
}

/// How to write without waiting. The output is shared with whoever started us and with our
/// children, so it can't simply be made non-blocking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// RWF_NOWAIT: another writer may have taken the room that poll saw.
    Pipe,
    /// Where that isn't known or is forbidden: an open file of our own for each write.
    OldPipe,
    /// MSG_DONTWAIT.
    Socket,
    /// A file never waits for a reader; a terminal that polls writable has room.
    Other,
}

impl Sink {
    pub(super) fn new(output: BorrowedFd<'static>) -> Self {
        let mode = fstat(output)
            .map_or(SFlag::empty(), |stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT);
        let kind = match mode {
            SFlag::S_IFIFO => Kind::Pipe,
            SFlag::S_IFSOCK => Kind::Socket,
            _ => Kind::Other,
        };
        Self { output, kind, queue: Vec::new(), written: 0, dropped: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// A whole line, with `[prefix] ` before it if there is one; dropped if there is no room.
    pub(super) fn push(&mut self, prefix: &str, line: &[u8]) {
        let waiting = self.queue.len() - self.written;
        if waiting + prefix.len() + line.len() > MAX_QUEUE {
            self.dropped += 1;
            return;
        }
        self.note_dropped();
        if !prefix.is_empty() {
            self.queue.extend_from_slice(b"[");
            self.queue.extend_from_slice(prefix.as_bytes());
            self.queue.extend_from_slice(b"] ");
        }
        self.queue.extend_from_slice(line);
        self.queue.push(b'\n');
    }

    fn note_dropped(&mut self) {
        if self.dropped > 0 {
            let note = format!("[hatchery] {} lines were dropped\n", self.dropped);
            self.queue.extend_from_slice(note.as_bytes());
            self.dropped = 0;
        }
    }

    /// Writes what our output takes without waiting.
    pub(super) fn write(&mut self) {
        while self.written < self.queue.len() {
            let mut fds = [PollFd::new(self.output, PollFlags::POLLOUT)];
            if !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..)) {
                break;
            }
            match self.write_once() {
                Ok(written) => self.written += written,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => {
                    // Our reader is gone: nobody misses the rest.
                    self.written = self.queue.len();
                    self.dropped = 0;
                }
            }
            if self.written == self.queue.len() {
                self.queue.clear();
                self.written = 0;
                self.note_dropped();
            }
        }
        if self.written > MAX_QUEUE / 2 {
            self.queue.drain(..self.written);
            self.written = 0;
        }
    }

    /// Writes all; says whether it came to that before `until`.
    fn drain(&mut self, until: Instant) -> bool {
        loop {
            self.write();
            let left = until.saturating_duration_since(Instant::now());
            if self.is_empty() || left.is_zero() {
                return self.is_empty();
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.output, PollFlags::POLLOUT)];
            let _ready = poll(&mut fds, timeout);
        }
    }

    fn write_once(&mut self) -> Result<usize, Errno> {
        let rest = &self.queue[self.written..];
        let most = &rest[..rest.len().min(PIPE_BUF)];
        // Whole lines where that is possible: others write here too, and what is at most PIPE_BUF
        // long is not torn apart by them.
        let piece = most.iter().rposition(|byte| *byte == b'\n').map_or(most, |end| &most[..=end]);
        match self.kind {
            Kind::Pipe => match nowait::write(self.output, piece) {
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPERM) => {
                    self.kind = Kind::OldPipe;
                    self.write_once()
                }
                result => result,
            },
            Kind::OldPipe => match nowait::reopen(self.output) {
                Ok(own) => nix::unistd::write(own, piece),
                // Another user's, or no room for an fd: between poll and this write another writer
                // may be faster.
                Err(_) => nix::unistd::write(self.output, piece),
            },
            Kind::Socket => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                send(std::os::fd::AsRawFd::as_raw_fd(&self.output), piece, flags)
            }
            Kind::Other => nix::unistd::write(self.output, piece),
        }
    }
}

/// Writes whole lines to our own stderr, and gives up after `bound` if its reader doesn't read.
/// Says whether all was written, or nobody is there to read it. Any thread, whatever the program
/// makes of SIGPIPE: none comes of this.
pub fn write_stderr(text: &str, bound: Duration) -> bool {
    sigpipe::without(|| write_lines(text, bound))
}

fn write_lines(text: &str, bound: Duration) -> bool {
    let (mut sink, until) = (Sink::new(fds::stdio(2)), Instant::now() + bound);
    for line in text.lines() {
        sink.push("", line.as_bytes());
        if sink.queue.len() >= PIPE_BUF && !sink.drain(until) {
            return false;
        }
    }
    sink.drain(until)
}

/// What a pipe takes as a whole, and has room for if it polls writable.
const PIPE_BUF: usize = 4096;
/// What waits for a reader of ours at most.
const MAX_QUEUE: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::fd::AsFd as _;
    use std::sync::mpsc;

    use super::*;

    /// A sink into a pipe, for the rest of the test process.
    fn sink() -> (std::io::PipeReader, Sink) {
        let (read, write) = std::io::pipe().unwrap();
        let write: &'static std::io::PipeWriter = Box::leak(Box::new(write));
        (read, Sink::new(write.as_fd()))
    }

    /// C8: what others took of the room that poll saw is no reason to wait.
    #[test]
    fn a_write_to_a_full_pipe_does_not_wait() {
        let (_read, mut sink) = sink();
        sink.push("", &[b'x'; 200_000]);
        sink.write();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || tell.send(sink.write_once()));
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(Err(Errno::EAGAIN)));
    }

    /// The same where RWF_NOWAIT isn't known to pipes (Linux 6.1), or the call not to the filter.
    #[test]
    fn a_write_to_a_full_pipe_does_not_wait_on_older_kernels() {
        for errno in [Errno::EOPNOTSUPP, Errno::ENOSYS, Errno::EPERM] {
            let (tell, told) = mpsc::channel();
            // The filter is for ever, and for this thread alone.
            std::thread::spawn(move || {
                forbid(libc::SYS_pwritev2, errno);
                let (read, mut sink) = sink();
                sink.push("", &[b'x'; 200_000]);
                sink.write();
                let full = sink.write_once();
                // All that is left comes when there is room.
                let reader = std::thread::spawn(move || {
                    let mut line = String::new();
                    BufReader::new(read).read_line(&mut line).map(|_length| line.len())
                });
                let done = sink.drain(Instant::now() + Duration::from_secs(10));
                tell.send((full, done, reader.join().unwrap().unwrap())).unwrap();
            });
            let said = told.recv_timeout(Duration::from_secs(20));
            assert_eq!(said, Ok((Err(Errno::EAGAIN), true, 200_001)), "{errno}");
        }
    }

    fn forbid(call: i64, errno: Errno) {
        use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
        let filter = SeccompFilter::new(
            [(call, vec![])].into_iter().collect(),
            SeccompAction::Allow,
            SeccompAction::Errno((errno as i32).cast_unsigned()),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
    }

    /// Every line comes out, or is counted in a note.
    #[test]
    fn every_line_is_written_or_counted() {
        let (read, mut sink) = sink();
        let all = 500_000;
        for _ in 0..all {
            sink.push("a", b"line");
            sink.write();
        }
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(read).lines().map_while(Result::ok);
            lines.take_while(|line| line != "end").collect::<Vec<_>>()
        });
        for last in [None, Some(b"end")] {
            if let Some(last) = last {
                sink.push("", last);
            }
            while !sink.is_empty() {
                let mut fds = [PollFd::new(sink.output, PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::NONE).unwrap();
                sink.write();
            }
        }
        let count = |line: &String| match line.strip_prefix("[hatchery] ") {
            Some(rest) => rest.strip_suffix(" lines were dropped").unwrap().parse().unwrap(),
            None => 1,
        };
        let lines = reader.join().unwrap();
        assert!(lines.len() < 400_000, "nothing was dropped");
        assert_eq!(lines.iter().map(count).sum::<u64>(), all);
    }
}
