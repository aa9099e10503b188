//! The queues of all Unix sockets of this network namespace, asked of the kernel: see
//! sock_diag(7). A kernel without it tells nothing, and then nothing is shown.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use super::process::Socket;

/// By inode.
pub(super) type Queues = BTreeMap<u32, Socket>;

/// Asks for all of them; bounded, and empty if the kernel doesn't tell.
pub(super) fn queues() -> Queues {
    ask().unwrap_or_default()
}

fn ask() -> nix::Result<Queues> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkSockDiag;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    sendto(socket.as_raw_fd(), &request(), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let (mut found, mut buffer) = (Queues::new(), vec![0; 64 * 1024]);
    let until = Instant::now() + BOUND;
    loop {
        // The kernel answers while it is asked; EAGAIN means that it has nothing to say.
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if take(&buffer[..length], &mut found) || Instant::now() > until {
            return Ok(found);
        }
    }
}

/// `struct nlmsghdr` and `struct unix_diag_req`: all states; peers and queues, please.
fn request() -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(40_u32.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([AF_UNIX, 0, 0, 0]);
    for word in [u32::MAX, 0, UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN, u32::MAX, u32::MAX] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

/// Reads a datagram of answers; says whether it was the last one.
fn take(mut bytes: &[u8], found: &mut Queues) -> bool {
    while let (Some(length), Some(kind)) = (word(bytes, 0), half(bytes, 4)) {
        let length = usize::try_from(length).unwrap_or(0);
        if kind != SOCK_DIAG_BY_FAMILY || length < 16 || length > bytes.len() {
            return true;
        }
        // The header, then `struct unix_diag_msg`: four bytes, the inode, a cookie.
        let (message, rest) =
            (&bytes[16..length], &bytes[length.next_multiple_of(4).min(bytes.len())..]);
        if let Some(inode) = word(message, 4) {
            found.insert(inode, attributes(message.get(16..).unwrap_or_default()));
        }
        bytes = rest;
    }
    false
}

fn attributes(mut bytes: &[u8]) -> Socket {
    let mut socket = Socket::default();
    while let (Some(length), Some(kind)) = (half(bytes, 0), half(bytes, 2)) {
        let length = usize::from(length);
        if length < 4 || length > bytes.len() {
            break;
        }
        let value = &bytes[4..length];
        match kind {
            UNIX_DIAG_PEER => socket.peer = word(value, 0).unwrap_or(0),
            UNIX_DIAG_RQLEN => {
                socket.unread = word(value, 0).unwrap_or(0);
                socket.unsent = word(value, 4).unwrap_or(0);
            }
            _ => {}
        }
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    socket
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

// linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_UNIX: u8 = 1;
const UDIAG_SHOW_PEER: u32 = 0x4;
const UDIAG_SHOW_RQLEN: u32 = 0x10;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_RQLEN: u16 = 4;
/// Ten thousands of sockets are told in milliseconds.
const BOUND: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_was_not_read_is_seen_at_both_ends() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[7; 100]).unwrap();
        let inode = |socket: &UnixStream| {
            let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
            let text = link.to_str().unwrap().to_owned();
            text["socket:[".len()..text.len() - 1].parse::<u32>().unwrap()
        };
        let queues = super::queues();
        let (Some(sent), Some(got)) = (queues.get(&inode(&ours)), queues.get(&inode(&theirs)))
        else {
            // A kernel without unix_diag tells about nobody.
            return assert!(queues.is_empty());
        };
        assert_eq!((got.unread, got.peer), (100, inode(&ours)));
        assert!(sent.unsent >= 100 && sent.unread == 0, "{sent:?}");
    }
}
