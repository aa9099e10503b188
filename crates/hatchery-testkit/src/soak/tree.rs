//! The actors of the soak: T(3,3), each busy with calls and a stream to each of its children.

use std::time::Duration;

use futures_core::Stream;
use hatchery::{Error, Nursery, Portal, nursery};
use tokio::task::JoinSet;

/// Grows what is below this actor and keeps it busy until it is cancelled.
#[hatchery::function]
async fn tend_below(name: String, levels: u32) -> Result<(), Error> {
    Ok(nursery(async |n| tend(&n, &name, levels).await).await?)
}

#[hatchery::function]
pub(super) async fn work(x: u64) -> u64 {
    x + 1
}

/// Counts for ever.
#[hatchery::function]
fn count() -> impl Stream<Item = u64> + Send {
    Counting(0)
}

struct Counting(u64);

impl Stream for Counting {
    type Item = u64;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<u64>> {
        self.0 += 1;
        std::task::Poll::Ready(Some(self.0))
    }
}

/// Starts three children, with `levels - 1` levels below each, and keeps them busy.
pub(super) async fn tend(n: &Nursery, name: &str, levels: u32) -> hatchery::Result<()> {
    let mut children = JoinSet::new();
    for i in 0..3 {
        let (n, name) = (n.clone(), format!("{name}{i}"));
        children.spawn(async move {
            let child = n.start(&name).await?;
            if levels > 1 {
                tokio::select! {
                    ended = child.call(tend_below(name, levels - 1)) => Ok(ended?),
                    ended = busy(&child) => ended,
                }
            } else {
                busy(&child).await
            }
        });
    }
    while let Some(ended) = children.join_next().await {
        ended??;
    }
    Ok(())
}

async fn busy(child: &Portal) -> hatchery::Result<()> {
    let mut numbers = child.stream(count()).await?;
    for x in 0.. {
        child.call(work(x)).await?;
        numbers.next().await?;
        // A load, not a flood: 39 actors share the machine with what they are tested for.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
