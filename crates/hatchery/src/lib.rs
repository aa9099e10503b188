//! Actor trees whose every actor can be killed, cancelled or crash without anything being left
//! behind.
//!
//! An actor is a process, forked in a fraction of a millisecond, or a thread. It belongs to a
//! [`nursery`](nursery()), runs functions when it is called through its [`Portal`], and is gone,
//! with all that it started, when its nursery returns. The promises C1 to C16 that the docs name
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
pub use runtime::{Builder, Runtime, abandoned};
pub use start::{Backend, Stdio};
pub use stream::{Duplex, Receiver, Sender};
pub use watchdog::arm_watchdog;

/// What the expansion of `#[hatchery::function]` needs. Not for people.
#[doc(hidden)]
pub mod __private {
    pub use crate::context::{IsCallee, RawCallee};
    pub use crate::entry::{Ending, run_main};
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
