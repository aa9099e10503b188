//! Fds at the numbers that a program asked for, with gaps between them that hold nothing.

use std::os::fd::RawFd;

use nix::errno::Errno;

use super::Slots;
use crate::forkserver::wire::{Request, Run};
use crate::sys::{close_range, fds};

/// Stdio to 0, 1, 2; then the channel and the fds without a number, from 3 on; the last ones to theirs;
/// the birth pipe to the lowest number that nobody asked for.
pub(super) fn place(
    request: &Request,
    received: &[RawFd],
    birth: &mut RawFd,
) -> Result<Slots, Errno> {
    let (pipe, rest) = received.split_first().ok_or(Errno::EINVAL)?;
    let targets = targets(request, rest.len())?;
    let birth_slot = lowest_free(&targets);
    let mut moves: Vec<(RawFd, RawFd)> = rest.iter().copied().zip(targets.clone()).collect();
    moves.push((*pipe, birth_slot));
    let is_target = |fd: RawFd| fd == birth_slot || targets.contains(&fd);
    for (from, _) in &mut moves {
        // Out of the way, so that nothing is overwritten before it was copied.
        while is_target(*from) {
            *from = fds::lift(*from, from.checked_add(1).ok_or(Errno::EBADF)?)?;
        }
    }
    for (from, to) in moves {
        fds::place(from, to, to == birth_slot)?;
    }
    *birth = birth_slot;
    let count = request.manner.places.len();
    let first = 3 + RawFd::from(request.has_channel);
    let unnumbered = rest.len() - usize::try_from(first).map_err(|_| Errno::EINVAL)? - count;
    Ok(Slots {
        channel: request.has_channel.then_some(3),
        shared: None,
        first,
        count: RawFd::try_from(unnumbered).map_err(|_| Errno::EINVAL)?,
        birth: birth_slot,
        image: None,
    })
}

/// Closes all that nobody asked for.
pub(super) fn scrub(request: &Request, slots: &Slots) -> Result<(), Errno> {
    let mut kept: Vec<RawFd> = (0..slots.first + slots.count).collect();
    kept.extend(&request.manner.places);
    kept.push(slots.birth);
    kept.sort_unstable();
    let mut next = 0;
    for fd in kept {
        if fd > next {
            close_range::close_between(next.cast_unsigned(), fd.cast_unsigned() - 1)?;
        }
        next = fd + 1;
    }
    close_range::close_from(next.cast_unsigned())
}

/// Where each goes but the birth pipe, in the order in which they came. `EINVAL`: two to one number, or
/// an image of our own, which finds its fds another way.
fn targets(request: &Request, count: usize) -> Result<Vec<RawFd>, Errno> {
    let places = &request.manner.places;
    let unnumbered = count.checked_sub(places.len()).ok_or(Errno::EINVAL)?;
    let unnumbered = RawFd::try_from(unnumbered).map_err(|_| Errno::EINVAL)?;
    let is_taken = places.iter().any(|place| *place < unnumbered || *place == RawFd::MAX);
    if is_taken || unnumbered < 3 || request.run != Run::Program {
        return Err(Errno::EINVAL);
    }
    Ok((0..unnumbered).chain(places.iter().copied()).collect())
}

fn lowest_free(taken: &[RawFd]) -> RawFd {
    (3..).find(|fd| !taken.contains(fd)).unwrap_or(RawFd::MAX)
}
