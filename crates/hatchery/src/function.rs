//! The functions an actor answers to: found by name, types checked, run in place or dispatched.
//!
//! `#[hatchery::function]` turns an async function into a constructor of a [`Call`] and submits a
//! [`Function`] to a table that every process of the tree shares, because they are all the same
//! image. Nobody keeps a list by hand.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;

use hatchery_proto::{Encoded, Fault, FaultKind, FrameError, Payload, value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::RawCallee;
use crate::current;
use crate::panics::catching;

pub(crate) mod context;
pub(crate) mod name;

pub use name::Name;
use name::{Table, Twins};

/// A call that has not been made yet: a function and its arguments.
///
/// It is what a function under `#[hatchery::function]` returns. Hand it to [`Portal::call`] or
/// [`Nursery::run`], or run it where you are with [`Call::here`]. Nothing happens before that.
///
/// [`Portal::call`]: crate::Portal::call
/// [`Nursery::run`]: crate::Nursery::run
#[must_use = "a call does nothing until an actor is asked to run it"]
pub struct Call<T, E = NoError> {
    name: Name,
    body: Box<dyn Body<T, E>>,
}

impl<T, E> fmt::Debug for Call<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<T, E> Call<T, E> {
    /// The function's path, of modules, `impl` blocks and functions around it. It is for people: two
    /// functions may share it, and are told apart by their place in the source.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name.path()
    }

    pub(crate) fn full_name(&self) -> Name {
        self.name
    }

    /// Runs the function in the calling task, without an actor and without encoding anything.
    ///
    /// # Errors
    /// What the function itself returns.
    ///
    /// # Cancel safety
    /// That of the function's own future.
    pub async fn here(self) -> Result<T, E> {
        self.body.run().await
    }

    /// The arguments as MessagePack; as they are, if they move and have that many bytes.
    pub(crate) fn encode(self, moves_from: Option<usize>) -> Result<Encoded, Box<Fault>> {
        let name = self.name;
        self.body.encode(moves_from).map_err(|cause| {
            let message = format!("encoding the arguments of `{name}`");
            Box::new(current::fault(FaultKind::BadArgument, message).because(cause.to_string()))
        })
    }
}

/// The error of a function that can't fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoError {}

impl fmt::Display for NoError {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

impl std::error::Error for NoError {}

/// An error that a remote function may return: it travels as a fault and comes back as itself.
///
/// Implemented for every serde error type and for [`crate::Error`], which is a fault already.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't travel as the error of a function that actors run",
    label = "this error can't travel",
    note = "return `hatchery::Error`, or an error type of your own that derives `serde::Serialize` and \
            `serde::Deserialize` and implements `std::error::Error`"
)]
pub trait RemoteError: Sized {
    /// The error as a fault.
    fn to_fault(&self) -> Fault;
    /// The error out of a fault, if this type is what the other side sent.
    fn from_fault(fault: &Fault) -> Option<Self>;
}

impl<E: Serialize + DeserializeOwned + std::error::Error + 'static> RemoteError for E {
    fn to_fault(&self) -> Fault {
        let mut fault = crate::error::fault_of(self);
        if let Ok(bytes) = value::to_bytes(self) {
            let type_name = std::any::type_name::<E>().to_owned();
            fault.payload = Some(Payload { type_name, bytes });
        }
        fault
    }

    fn from_fault(fault: &Fault) -> Option<Self> {
        fault.payload.as_ref().and_then(|payload| value::from_bytes(&payload.bytes).ok())
    }
}

impl RemoteError for crate::Error {
    fn to_fault(&self) -> Fault {
        self.fault().clone()
    }

    fn from_fault(fault: &Fault) -> Option<Self> {
        Some(Self::from_remote(fault.clone()))
    }
}

impl Serialize for NoError {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        match *self {}
    }
}

impl<'de> serde::Deserialize<'de> for NoError {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("a function without an error type sent an error"))
    }
}

/// `Result`, seen as a type with two parts. The attribute uses it to look through aliases.
pub trait IsResult {
    /// The value.
    type Ok;
    /// The error.
    type Err;
    /// The thing itself.
    ///
    /// # Errors
    /// Its own.
    fn into_result(self) -> Result<Self::Ok, Self::Err>;
}

impl<T, E> IsResult for Result<T, E> {
    type Ok = T;
    type Err = E;
    fn into_result(self) -> Self {
        self
    }
}

/// One function that actors answer to. Made by `#[hatchery::function]`.
pub struct Function {
    name: fn() -> Name,
    serve: fn(&Asked) -> Served,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").field("name", &(self.name)()).finish_non_exhaustive()
    }
}

/// What a dispatched function comes to.
pub(crate) type Served = Pin<Box<dyn Future<Output = Result<Encoded, Box<Fault>>> + Send>>;

impl Function {
    /// A table entry.
    #[must_use]
    pub const fn new(name: fn() -> Name, serve: fn(&Asked) -> Served) -> Self {
        Self { name, serve }
    }
}

inventory::collect!(Function);

/// Finds a function by name and starts it on encoded arguments.
pub(crate) fn dispatch(name: &str, asked: &Asked) -> Result<Served, Box<Fault>> {
    match functions().find(name, "function") {
        Ok(function) => Ok(serving(|| (function.serve)(asked))),
        Err(why) => Err(Box::new(current::fault(FaultKind::UnknownFunction, why))),
    }
}

fn functions() -> &'static Table<Function> {
    static TABLE: OnceLock<Table<Function>> = OnceLock::new();
    TABLE
        .get_or_init(|| Table::of(inventory::iter::<Function>.into_iter().map(|f| ((f.name)(), f))))
}

fn context_functions() -> &'static Table<ContextFunction> {
    static TABLE: OnceLock<Table<ContextFunction>> = OnceLock::new();
    let all = inventory::iter::<ContextFunction>;
    TABLE.get_or_init(|| Table::of(all.into_iter().map(|f| ((f.name)(), f))))
}

/// Two functions of this image that share a name: whoever was called, the other one might run. Looked
/// for once a process.
pub(crate) fn twins() -> Option<&'static Twins> {
    functions().twins().or_else(|| context_functions().twins())
}

/// One function that converses. Made by `#[hatchery::context]`.
pub struct ContextFunction {
    name: fn() -> Name,
    serve: fn(&Asked, RawCallee) -> Served,
}

impl fmt::Debug for ContextFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContextFunction").field("name", &(self.name)()).finish_non_exhaustive()
    }
}

impl ContextFunction {
    /// A table entry.
    #[must_use]
    pub const fn new(name: fn() -> Name, serve: fn(&Asked, RawCallee) -> Served) -> Self {
        Self { name, serve }
    }
}

inventory::collect!(ContextFunction);

/// Finds a function that converses by name and starts it on encoded arguments.
pub(crate) fn dispatch_context(
    name: &str,
    asked: &Asked,
    callee: RawCallee,
) -> Result<Served, Box<Fault>> {
    match context_functions().find(name, "context function") {
        Ok(function) => Ok(serving(|| (function.serve)(asked, callee))),
        Err(why) => Err(Box::new(current::fault(FaultKind::UnknownFunction, why))),
    }
}

/// Arguments are read and streams are made by code of a user's, on the connection's own reader: a panic in it
/// is that of the call, and nobody else's.
fn serving(serve: impl FnOnce() -> Served) -> Served {
    catching(serve).unwrap_or_else(|fault| Box::pin(std::future::ready(Err(fault))))
}

/// Serves a function that can't fail. For the attribute's expansion.
pub fn serve_plain<A, R, F, Fut>(asked: &Asked, body: F) -> Served
where
    A: DeserializeOwned + 'static,
    R: Serialize + Send + 'static,
    F: FnOnce(A) -> Fut,
    Fut: Future<Output = R> + Send + 'static,
{
    let moves_from = asked.moves_from;
    match decode(asked) {
        Ok(args) => {
            let running = body(args);
            Box::pin(async move { encode_reply(running.await, moves_from) })
        }
        Err(fault) => Box::pin(std::future::ready(Err(fault))),
    }
}

/// Serves a function that returns a `Result`. For the attribute's expansion.
pub fn serve_result<A, R, F, Fut>(asked: &Asked, body: F) -> Served
where
    A: DeserializeOwned + 'static,
    R: IsResult,
    R::Ok: Serialize + Send + 'static,
    R::Err: RemoteError,
    F: FnOnce(A) -> Fut,
    Fut: Future<Output = R> + Send + 'static,
{
    let moves_from = asked.moves_from;
    match decode(asked) {
        Ok(args) => {
            let running = body(args);
            Box::pin(async move {
                match running.await.into_result() {
                    Ok(value) => encode_reply(value, moves_from),
                    Err(error) => Err(Box::new(error.to_fault())),
                }
            })
        }
        Err(fault) => Box::pin(std::future::ready(Err(fault))),
    }
}

/// Makes the [`Call`] of a function that can't fail. For the attribute's expansion.
pub fn call_plain<A, R, F, Fut>(name: Name, args: A, body: F) -> Call<R, NoError>
where
    A: Serialize + Send + 'static,
    R: 'static,
    F: FnOnce(A) -> Fut + Send + 'static,
    Fut: Future<Output = R> + Send + 'static,
{
    let run = move |args| -> Running<R, NoError> {
        let running = body(args);
        Box::pin(async move { Ok(running.await) })
    };
    Call { name, body: Box::new(Packed { args, run }) }
}

/// Makes the [`Call`] of a function that returns a `Result`. For the attribute's expansion.
pub fn call_result<A, R, F, Fut>(name: Name, args: A, body: F) -> Call<R::Ok, R::Err>
where
    A: Serialize + Send + 'static,
    R: IsResult + 'static,
    F: FnOnce(A) -> Fut + Send + 'static,
    Fut: Future<Output = R> + Send + 'static,
{
    let run = move |args| -> Running<R::Ok, R::Err> {
        let running = body(args);
        Box::pin(async move { running.await.into_result() })
    };
    Call { name, body: Box::new(Packed { args, run }) }
}

/// What a function is asked with, and how it may answer. For the attribute's expansion.
#[derive(Debug)]
pub struct Asked {
    args: Encoded,
    /// From which length on its reply moves to who asks.
    moves_from: Option<usize>,
}

impl Asked {
    pub(crate) fn new(args: Encoded, moves_from: Option<usize>) -> Self {
        Self { args, moves_from }
    }
}

/// A value on its way: as MessagePack, or as it is, if it moves and has that many bytes.
pub(crate) fn packed<T>(value: T, moves_from: Option<usize>) -> Result<Encoded, FrameError>
where
    T: Serialize + Send + 'static,
{
    match moves_from {
        Some(from) => Encoded::moved(value, from),
        None => Encoded::of(&value),
    }
}

pub(crate) fn decode<A: DeserializeOwned + 'static>(asked: &Asked) -> Result<A, Box<Fault>> {
    asked.args.decode().map_err(|cause| {
        let message = format!("decoding the arguments as `{}`", std::any::type_name::<A>());
        Box::new(current::fault(FaultKind::BadArgument, message).because(cause.to_string()))
    })
}

pub(crate) fn encode_reply<R>(value: R, moves_from: Option<usize>) -> Result<Encoded, Box<Fault>>
where
    R: Serialize + Send + 'static,
{
    packed(value, moves_from).map_err(|cause| {
        let message = format!("encoding the reply as `{}`", std::any::type_name::<R>());
        Box::new(current::fault(FaultKind::BadReply, message).because(cause.to_string()))
    })
}

type Running<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// Arguments and body, with their types forgotten.
trait Body<T, E>: Send {
    fn encode(self: Box<Self>, moves_from: Option<usize>) -> Result<Encoded, FrameError>;
    fn run(self: Box<Self>) -> Running<T, E>;
}

struct Packed<A, F> {
    args: A,
    run: F,
}

impl<T, E, A, F> Body<T, E> for Packed<A, F>
where
    A: Serialize + Send + 'static,
    F: FnOnce(A) -> Running<T, E> + Send,
{
    fn encode(self: Box<Self>, moves_from: Option<usize>) -> Result<Encoded, FrameError> {
        packed(self.args, moves_from)
    }

    fn run(self: Box<Self>) -> Running<T, E> {
        (self.run)(self.args)
    }
}
