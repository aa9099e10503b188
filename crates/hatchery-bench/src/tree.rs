//! One runtime, one actor, on the cores where they belong.

use hatchery::{Builder, Error, Portal, Runtime, Stdio};

use crate::pin::Place;
use crate::{Failure, Outcome};

/// Runs `body` on a tokio runtime in this thread.
pub(crate) fn on_tokio<T>(body: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(body)
}

/// Runs `body` with one actor, which stands where `place` says.
pub(crate) async fn with_actor<T>(
    place: Place,
    body: impl AsyncFnOnce(Portal) -> Outcome<T>,
) -> Outcome<T> {
    with_actor_in(Runtime::builder().stdio(Stdio::Null).signals(false), place, body).await
}

/// The same in such a runtime.
pub(crate) async fn with_actor_in<T>(
    runtime: Builder,
    place: Place,
    body: impl AsyncFnOnce(Portal) -> Outcome<T>,
) -> Outcome<T> {
    let runtime = runtime.open()?;
    let done = runtime
        .nursery(async |n| {
            let actor = n.start("a").await?;
            actor.call(stand(place)).await?;
            body(actor).await.map_err(told)
        })
        .await;
    runtime.close().await;
    Ok(done?)
}

/// A failure as a nursery takes it.
#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
pub(crate) fn told(failure: Failure) -> Error {
    Error::msg(failure.to_string())
}

/// Puts the actor in its place.
#[hatchery::function]
pub(crate) async fn stand(place: Place) -> Result<(), Error> {
    Ok(place.there()?)
}
