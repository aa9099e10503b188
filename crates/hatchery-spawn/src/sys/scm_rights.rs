//! Messages with fds over SEQPACKET sockets, and bytes with an fd over STREAM sockets. See unix(7),
//! cmsg(3).

use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use bytes::{BufMut as _, BytesMut};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, MsgFlags, UnixAddr, UnixCredentials, sendmsg, setsockopt, sockopt,
};

/// One received message.
#[derive(Debug)]
pub(crate) struct Received {
    /// How much of the buffer it filled; 0 means that the other side has closed.
    pub(crate) length: usize,
    pub(crate) fds: Vec<OwnedFd>,
    /// The sender's process, where the socket asks for credentials.
    pub(crate) sender: Option<i32>,
    /// Its user and group, likewise: the real ones, or others that it could have had then.
    pub(crate) ids: Option<(u32, u32)>,
    /// Bytes or fds were cut off: such a message must be refused.
    pub(crate) truncated: bool,
}

/// Sends one message, whole or not at all, without waiting.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    send_as(socket, bytes, fds, None)
}

/// The same as another user than this process's real one. `EPERM`: it can't become that one.
pub(crate) fn send_as(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    user: Option<u32>,
) -> Result<(), Errno> {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let credentials = user.map(|uid| {
        let gid = nix::unistd::getgid().as_raw();
        UnixCredentials::from(libc::ucred { pid: std::process::id().cast_signed(), uid, gid })
    });
    let rights = (!numbers.is_empty()).then_some(ControlMessage::ScmRights(&numbers));
    let sender = credentials.as_ref().map(ControlMessage::ScmCredentials);
    let control: Vec<ControlMessage<'_>> = rights.into_iter().chain(sender).collect();
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let data = [IoSlice::new(bytes)];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &data, &control, flags, None).map(drop)
}

/// Sends some of several pieces, one after the other, without waiting; says how much. The fd goes
/// with the first byte.
///
/// # Errors
/// What sendmsg(2) says; nothing was sent.
pub fn send_with(
    socket: BorrowedFd<'_>,
    pieces: &[IoSlice<'_>],
    fd: BorrowedFd<'_>,
) -> Result<usize, Errno> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), pieces, &rights, flags, None)
}

/// Receives one message without waiting. All fds of it are owned by the result, close-on-exec, also
/// those of a message that was cut off (nix gives none of these, and they would stay open).
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received, Errno> {
    let data = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the buffer is borrowed mutably, as long as that says, and outlives the call.
    unsafe { receive_to::<CONTROL_WORDS>(socket, data) }
}

/// What has come over a STREAM socket.
#[derive(Debug)]
pub struct Incoming {
    /// How many bytes; 0 at the end.
    pub bytes: usize,
    /// What came with the last of them, if anything did.
    pub fds: Vec<OwnedFd>,
    /// An fd came that this process has no room for; it is gone.
    pub lost: bool,
    /// The process that wrote them, where the socket asks for credentials and they were known: a
    /// read never goes past another writer's.
    pub sender: Option<i32>,
}

/// Appends to `buffer` what has come, at most as much as it has spare room for, and not past bytes
/// that an fd came with. Never blocks: `EAGAIN` if nothing has come.
///
/// # Errors
/// What recvmsg(2) says; the buffer is as it was.
pub fn receive_into(socket: BorrowedFd<'_>, buffer: &mut BytesMut) -> Result<Incoming, Errno> {
    let spare = buffer.spare_capacity_mut();
    let (iov_base, iov_len) = (spare.as_mut_ptr().cast(), spare.len());
    loop {
        // SAFETY: the kernel only writes to it: spare room, borrowed mutably, maybe uninitialised.
        let received =
            unsafe { receive_to::<FEW_WORDS>(socket, libc::iovec { iov_base, iov_len }) };
        match received {
            Ok(Received { length: bytes, fds, truncated: lost, sender, .. }) => {
                never_linger(&fds);
                // SAFETY: the kernel has initialised that many bytes of the spare room.
                unsafe { buffer.advance_mut(bytes) };
                return Ok(Incoming { bytes, fds, lost, sender: sender.filter(|pid| *pid > 0) });
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Receives to some place, with `WORDS` words of room for control messages.
///
/// # Safety
/// `data` must lead to memory that may be written to.
unsafe fn receive_to<const WORDS: usize>(
    socket: BorrowedFd<'_>,
    mut data: libc::iovec,
) -> Result<Received, Errno> {
    // Of words, because control messages are aligned to them.
    let mut control = [0_usize; WORDS];
    // SAFETY: all-zero is a valid msghdr: no name, no data, no control buffer.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut data;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the control buffer is ours and as long as the header says; so is, says the caller, the
    // data. Both outlive the call.
    let length =
        Errno::result(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) })?;
    let length = usize::try_from(length).map_err(|_| Errno::EIO)?;
    let truncated = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    let mut received = Received { length, fds: Vec::new(), sender: None, ids: None, truncated };
    // SAFETY: the header is as recvmsg left it, and its control buffer is still there.
    let mut part = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !part.is_null() {
        received.take(part);
        // SAFETY: as above; `part` came from the same header.
        part = unsafe { libc::CMSG_NXTHDR(&raw const header, part) };
    }
    Ok(received)
}

/// Makes sure that closing these never waits: a socket may have been told to linger over what it
/// has not sent, by whoever gave it to us.
pub(crate) fn never_linger(fds: &[OwnedFd]) {
    let off = libc::linger { l_onoff: 0, l_linger: 0 };
    for fd in fds {
        // Anything but a socket refuses this, and has nothing to linger over.
        let _no_socket = setsockopt(fd, sockopt::Linger, &off);
    }
}

impl Received {
    /// Takes over what one control message holds.
    fn take(&mut self, part: *const libc::cmsghdr) {
        // SAFETY: the caller got it from CMSG_FIRSTHDR or CMSG_NXTHDR, not null.
        let head = unsafe { *part };
        // SAFETY: as above; the data follows the head.
        let data = unsafe { libc::CMSG_DATA(part) };
        // SAFETY: plain arithmetic: how long a head without data is.
        let empty = unsafe { libc::CMSG_LEN(0) } as usize;
        let length = head.cmsg_len.saturating_sub(empty);
        match (head.cmsg_level, head.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                // A message that was cut off says how many have really come.
                for at in 0..length / size_of::<RawFd>() {
                    // SAFETY: `at` is inside the data.
                    let place = unsafe { data.cast::<RawFd>().add(at) };
                    // SAFETY: as above; aligned or not doesn't matter to this read.
                    let fd = unsafe { place.read_unaligned() };
                    // SAFETY: the kernel has just made it for us and nobody else has seen it.
                    self.fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if length >= size_of::<libc::ucred>() => {
                // SAFETY: the data is long enough for it, and any bytes are a valid one.
                let credentials = unsafe { data.cast::<libc::ucred>().read_unaligned() };
                self.sender = Some(credentials.pid);
                self.ids = (credentials.pid > 0).then_some((credentials.uid, credentials.gid));
            }
            (_, _) => {}
        }
    }
}

/// The most fds of one message.
pub(crate) const MAX_FDS: usize = 64;
/// Room for those and for credentials, with their heads: 272 + 32 bytes and some to spare.
const CONTROL_WORDS: usize = 40 + MAX_FDS / 2;
/// Room for credentials and one fd, with their heads.
const FEW_WORDS: usize = 7;
