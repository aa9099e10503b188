//! What `#[hatchery::context]`, and `#[hatchery::function]` for streams, expand to.

use std::future::Future;
use std::pin::pin;

use futures_core::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Asked, IsResult, Name, NoError, RemoteError, Served, decode, encode_reply};
use crate::context::{Callee, ContextCall, IsCallee, RawCallee};
use crate::error::StreamError;
use crate::items::StreamCall;

/// Serves a context function that can't fail.
pub fn serve_context_plain<C, A, R, F, Fut>(asked: &Asked, raw: RawCallee, body: F) -> Served
where
    C: IsCallee,
    A: DeserializeOwned + 'static,
    R: Serialize + Send + 'static,
    F: FnOnce(C, A) -> Fut,
    Fut: Future<Output = R> + Send + 'static,
{
    let moves_from = asked.moves_from;
    match decode(asked) {
        Ok(args) => {
            let running = body(C::from_raw(raw), args);
            Box::pin(async move { encode_reply(running.await, moves_from) })
        }
        Err(fault) => Box::pin(std::future::ready(Err(fault))),
    }
}

/// Serves a context function that returns a `Result`.
pub fn serve_context_result<C, A, R, F, Fut>(asked: &Asked, raw: RawCallee, body: F) -> Served
where
    C: IsCallee,
    A: DeserializeOwned + 'static,
    R: IsResult,
    R::Ok: Serialize + Send + 'static,
    R::Err: RemoteError,
    F: FnOnce(C, A) -> Fut,
    Fut: Future<Output = R> + Send + 'static,
{
    let moves_from = asked.moves_from;
    match decode(asked) {
        Ok(args) => {
            let running = body(C::from_raw(raw), args);
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

/// Serves a function that returns a stream.
pub fn serve_stream<A, R, F>(asked: &Asked, raw: RawCallee, body: F) -> Served
where
    A: DeserializeOwned + 'static,
    R: Stream + Send + 'static,
    R::Item: Serialize + Send + 'static,
    F: FnOnce(A) -> R,
{
    let moves_from = asked.moves_from;
    match decode::<A>(asked) {
        Ok(args) => {
            let items = body(args);
            Box::pin(async move {
                match pump(items, Callee::from_raw(raw)).await {
                    // Nobody reads any more: that is how the reader of a stream stops it.
                    Ok(()) | Err(StreamError::Closed) => encode_reply((), moves_from),
                    Err(error) => Err(Box::new(crate::error::fault_of(&error))),
                }
            })
        }
        Err(fault) => Box::pin(std::future::ready(Err(fault))),
    }
}

async fn pump<R>(items: R, callee: Callee<crate::Nothing, R::Item, ()>) -> Result<(), StreamError>
where
    R: Stream,
    R::Item: Serialize + Send + 'static,
{
    let (mut sender, _nothing_comes) = callee.started(())?.split();
    let mut items = pin!(items);
    // No `close` at the end: that the function has ended well is told by its last word alone, so that
    // nothing else can be taken for it (C20).
    while let Some(item) = std::future::poll_fn(|cx| items.as_mut().poll_next(cx)).await {
        sender.send(item).await?;
    }
    Ok(())
}

/// Makes the [`ContextCall`] of a function that can't fail.
pub fn context_plain<C: IsCallee, A: Serialize + Send + 'static, R>(
    name: Name,
    args: A,
) -> ContextCall<C::In, C::Out, C::Started, R, NoError> {
    ContextCall::new(name, args)
}

/// Makes the [`ContextCall`] of a function that returns a `Result`.
#[allow(
    clippy::type_complexity,
    reason = "five types name a context, and here all are projections"
)]
pub fn context_result<C: IsCallee, A: Serialize + Send + 'static, R: IsResult>(
    name: Name,
    args: A,
) -> ContextCall<C::In, C::Out, C::Started, R::Ok, R::Err> {
    ContextCall::new(name, args)
}

/// Makes the [`StreamCall`] of a function that returns a stream.
pub fn stream_call<A: Serialize + Send + 'static, I>(name: Name, args: A) -> StreamCall<I> {
    StreamCall { context: ContextCall::new(name, args) }
}
