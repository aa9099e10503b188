//! Messages with fds over SEQPACKET sockets. See unix(7), cmsg(3).

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, recvmsg, sendmsg,
};

/// One received message.
#[derive(Debug)]
pub(crate) struct Received {
    /// How much of the buffer it filled; 0 means that the other side has closed.
    pub(crate) length: usize,
    pub(crate) fds: Vec<OwnedFd>,
    /// The sender's process, where the socket asks for credentials.
    pub(crate) sender: Option<i32>,
    /// Bytes or fds were cut off: such a message must be refused.
    pub(crate) truncated: bool,
}

/// Sends one message, whole or not at all, without waiting.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control: &[ControlMessage<'_>] = if numbers.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let data = [IoSlice::new(bytes)];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &data, control, flags, None).map(drop)
}

/// Receives one message without waiting. All fds of it are owned by the result, close-on-exec.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received, Errno> {
    let mut control = cmsg_space!([RawFd; MAX_FDS], UnixCredentials);
    let mut data = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut data, Some(&mut control), flags)?;
    let truncated = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    let length = message.bytes;
    let mut received = Received { length, fds: Vec::new(), sender: None, truncated };
    // A control message that was cut off can't be parsed to its end; the fds that came are in
    // the part that can.
    if let Ok(parts) = message.cmsgs() {
        for part in parts {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                // SAFETY: the kernel has just made these for us and nobody else has seen them.
                let owned = numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                received.fds.extend(owned);
            } else if let ControlMessageOwned::ScmCredentials(credentials) = part {
                received.sender = Some(credentials.pid());
            }
        }
    }
    Ok(received)
}

/// The most fds of one message.
pub(crate) const MAX_FDS: usize = 64;
