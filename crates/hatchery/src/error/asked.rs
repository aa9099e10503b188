//! How the renderer finds the fault in an error whose type it can't name.
//!
//! Our errors say their fault in their own line, so their source is what lies below it: whoever prints
//! the chain prints everything once. We ourselves need the whole fault, and ask for it by the same way.

use std::cell::Cell;
use std::error::Error as StdError;

use hatchery_proto::Fault;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Somebody prints a chain.
    Not,
    /// We want the fault.
    ForFault,
    /// It was one of ours that was asked.
    Answered,
}

thread_local! {
    static ASKED: Cell<Asked> = const { Cell::new(Asked::Not) };
}

/// The fault of one of our errors; `None` of any other.
pub(super) fn fault_in<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Fault> {
    ASKED.set(Asked::ForFault);
    let source = error.source();
    let is_ours = ASKED.replace(Asked::Not) == Asked::Answered;
    source.filter(|_| is_ours)?.downcast_ref()
}

/// The source of an error that has said that fault.
pub(super) fn source_of(fault: &Fault) -> Option<&(dyn StdError + 'static)> {
    if ASKED.get() == Asked::ForFault {
        ASKED.set(Asked::Answered);
        return Some(fault);
    }
    fault.below.first().map(|below| below as &(dyn StdError + 'static))
}
