//! Actor trees whose every actor can be killed, cancelled or crash without anything being left
//! behind.
//!
//! An actor is a process, forked in a fraction of a millisecond, or a thread. It belongs to a
//! [`nursery`](nursery()), runs functions when it is called through its [`Portal`], and is gone,
//! with all that it started, when its nursery returns. The promises C1 to C21 that the docs name
//! stand in the project's `docs/contract.md`.
//!
//! ```no_run
//! #[hatchery::function]
//! async fn square(x: u64) -> u64 {
//!     x * x
//! }
//!
//! #[hatchery::main]
//! async fn main() -> Result<(), hatchery::ScopeError> {
//!     let answer = hatchery::nursery(async |n| {
//!         let worker = n.start("worker").await?;
//!         Ok(worker.call(square(7)).await?)
//!     })
//!     .await?;
//!     println!("{answer}");
//!     Ok(())
//! }
//! ```
#![forbid(unsafe_code)]

mod actor;
mod blob;
mod board;
mod broadcast;
mod clock;
mod context;
mod copied;
mod current;
mod drive;
pub mod dump;
mod entry;
mod error;
mod function;
mod items;
mod lock;
mod nursery;
mod panics;
mod peer;
mod portal;
mod root;
mod runtime;
mod serve;
mod signal;
mod start;
mod stream;
mod supervisor;
mod watchdog;

pub use blob::{BlobBuffer, BlobError};
pub use broadcast::{Broadcast, Subscriber};
pub use context::{Callee, Context, ContextCall, Nothing, Opening, Watch};
pub use current::{cancel_parent, cancel_self, cancelled, path, shield};
pub use drive::pipe::StreamStats;
pub use error::{
    CallError, ContextError, Error, OpenError, PeerError, Result, ScopeError, StartCause,
    StartError, StreamError,
};
pub use function::{Call, NoError, RemoteError};
pub use hatchery_macros::{context, function, main};
pub use hatchery_proto::stream::Policy;
pub use hatchery_proto::{
    ActorPath, ActorReport, Blob, Config, ConfigError, ExitStatus, Fault, FaultKind, Forced,
    HandshakeError, Reason, Report, Shared, Step, StepTaken, Why, signal_name,
};
pub use hatchery_spawn::{
    Abandoned, Access, Cgroup, Confinement, Instruction, Resource, SyscallFilter, guard_stack,
};
pub use items::{Items, StreamCall};
pub use nursery::{ActorBuilder, Nursery, OneShot, OneShotFuture, nursery, nursery_with_report};
pub use peer::{Peer, PeerPortal, here};
pub use portal::{Calling, Portal};
pub use root::{Drained, Runtime};
pub use runtime::{Builder, abandoned};
pub use signal::{Interrupted, Signals};
pub use start::{Backend, Stdio};
pub use stream::{Duplex, Receiver, Sender};
pub use watchdog::arm_watchdog;

/// Whether this process is a copy, made by `fork`, of the one that hatchery serves.
///
/// A host may fork, or a library of its, while a tree is up. Then the tree is its maker's: in the copy
/// every request is a typed error (`FaultKind::Copied`, `OpenError::Copied`, `SpawnError::Copied`), every
/// drop, exit hook and signal handler of hatchery does nothing, or what the signal does by default, and
/// the tree notices nothing. A copy of a function that an actor runs ends with that function, with 0 for
/// a value, 1 for an error, 101 for a panic, and 70 if it would wait. A copy stays one; a program that it
/// executes is none. It must not await anything of tokio's in the runtime that it was copied with: tokio
/// can't tell the two apart, and the one's epoll is the other's.
pub use hatchery_spawn::is_copy;

/// Has process 1 of a container reap its orphans: `#[hatchery::main(reap)]` calls it.
pub use hatchery_spawn::{Reaper, ReaperError, reap_orphans};

/// What the expansion of `#[hatchery::function]` needs. Not for people.
#[doc(hidden)]
pub mod __private {
    pub use crate::context::{IsCallee, RawCallee};
    pub use crate::entry::{Ending, reap_first, run_main};
    pub use crate::function::context::{
        context_plain, context_result, serve_context_plain, serve_context_result, serve_stream,
        stream_call,
    };
    pub use crate::function::{
        Asked, ContextFunction, Function, IsResult, Name, call_plain, call_result, serve_plain,
        serve_result,
    };
    pub use inventory::submit;
}
