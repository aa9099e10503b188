//! What hatchery's actors say to each other, and every decision about their lives, as pure values.
//!
//! No clock, no operating system, no runtime: a machine is told an event and the time, and gives
//! back actions. `hatchery` carries them out.
//!
//! | machine | decides | driven by |
//! | --- | --- | --- |
//! | [`handshake::Handshake`] | whether a new actor is one of ours, and how long to wait | `hatchery`'s `drive/scope/handshake.rs` |
//! | [`call::Calls`] | who gets which answer, exactly once | `drive/link.rs` |
//! | [`serve::Served`] | whether a call that came is run, and which one a cancel is for | `serve.rs` |
//! | [`context::Context`] | one side of two linked tasks: started, cancelled, over | `drive/pipe.rs` |
//! | [`stream::Outgoing`], [`stream::Incoming`] | credit and the ends of a stream's halves | [`context::Context`] |
//! | [`peer::Door`] | which peers may come in, and how long a leaving actor waits for them | `drive/door.rs` |
//! | [`teardown::Teardown`] | one actor's way down: asked, terminated, killed, settled | [`scope::Scope`] |
//! | [`signals::Signals`] | what a signal does to the trees of a process | `signal.rs` |
//! | [`scope::Scope`] | a nursery: who is admitted, the first error, when all have settled | `drive/scope.rs` |
//!
//! The promises C1 to C21 and the hang classes H1 to H29 that comments name stand in the
//! project's `docs/contract.md` and `ai/conc-anal/`.
#![forbid(unsafe_code)]

mod blob;
pub mod board;
pub mod budget;
pub mod call;
mod config;
pub mod context;
pub mod culprit;
mod encoded;
mod error;
pub mod frame;
pub mod handshake;
mod id;
mod lane;
mod message;
mod moved;
mod part;
pub mod peer;
mod report;
pub mod scope;
pub mod serve;
mod shared;
pub mod signals;
pub mod stream;
pub mod teardown;
mod time;
pub mod value;
mod wakers;

pub use blob::Blob;
pub use config::{Config, ConfigError};
pub use encoded::Encoded;
pub use error::{ExitStatus, Fault, FaultKind, Payload, signal_name};
pub use frame::{Decoder, FrameError};
pub use handshake::HandshakeError;
pub use id::{ActorId, ActorName, ActorPath, BadName, CallId};
pub use lane::Lane;
pub use message::{
    DefaultBackend, DefaultStdio, Ended, Hello, PROTOCOL_VERSION, Ready, Reason, ToChild, ToParent,
    Why,
};
pub use moved::on_their_way;
pub use part::{Handed, Part, Parts, Sealed, Way};
pub use report::{ActorReport, Forced, Past, Report, Step, StepTaken};
pub use shared::Shared;
pub use time::Time;
pub use wakers::Wakers;
