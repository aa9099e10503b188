//! Dropping a future at each of its await points, one after the other (H23, H24).

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Makes a future again and again and drops it at its first, second, third … await point, until
/// one came to its end. Returns how many points there were.
///
/// An await point is a poll that returned `Pending`. `after` runs after each drop and checks that
/// nothing was left; it is given the number of the point.
///
/// # Panics
/// After `MAX_POINTS` rounds: such a future would never end.
///
/// # Cancel safety
/// Dropping it drops the future that is under way.
pub async fn drop_at_each<F: Future>(
    mut make: impl FnMut() -> F,
    mut after: impl AsyncFnMut(usize),
) -> usize {
    for point in 1..=MAX_POINTS {
        let reached = StopAt { future: Box::pin(make()), left: point };
        let ended = reached.await.is_some();
        if ended {
            return point - 1;
        }
        after(point).await;
    }
    panic!("the future has more than {MAX_POINTS} await points");
}

/// Runs a future until it has been pending `left` times.
struct StopAt<F> {
    future: Pin<Box<F>>,
    left: usize,
}

impl<F: Future> Future for StopAt<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending => {
                self.left -= 1;
                if self.left == 0 { Poll::Ready(None) } else { Poll::Pending }
            }
        }
    }
}

/// More than any operation of ours has, with a wide margin.
pub const MAX_POINTS: usize = 10_000;

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::isolate::block_on;

    #[test]
    fn a_future_is_dropped_once_at_each_of_its_await_points() {
        let (begun, ended) = (Cell::new(0), Cell::new(0));
        let points = block_on(drop_at_each(
            || async {
                begun.set(begun.get() + 1);
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                ended.set(ended.get() + 1);
            },
            async |_| {},
        ));
        assert_eq!((points, begun.get(), ended.get()), (3, 4, 1));
    }
}
