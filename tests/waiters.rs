//! C2: what a crowd that waits costs grows with its number, and not with its square. Each of those who
//! wait is looked at when its own time has come.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hatchery::{Config, Portal};
use hatchery_tests::{BACKENDS, ROOMY, each, here};
use tokio::task::JoinSet;

/// The same future, which counts how often it is looked at.
async fn counted<T>(looks: &AtomicUsize, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    poll_fn(|cx| {
        looks.fetch_add(1, Ordering::Relaxed);
        future.as_mut().poll(cx)
    })
    .await
}

async fn settled(looks: Arc<AtomicUsize>, actor: Portal) {
    counted(&looks, actor.settled()).await;
}

/// C2: actors end one after the other, and who waits for another one's end is left alone. A start that
/// waits for its turn is as well.
#[test]
fn who_waits_for_the_end_of_an_actor_is_woken_by_that_end_alone() {
    each(BOUND, here!(), &BACKENDS, &Config::with_budget(ROOMY), async |runtime| {
        let count = 100;
        let ended = runtime.nursery(async |n| {
            let (looks, mut waiting) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
            let mut actors = Vec::new();
            for i in 0..count {
                let actor = n.start(&format!("a{i}")).await?;
                waiting.spawn(settled(looks.clone(), actor.clone()));
                actors.push(actor);
            }
            for actor in actors {
                actor.cancel();
                waiting.join_next().await.unwrap().unwrap();
            }
            Ok(looks.load(Ordering::Relaxed))
        });
        // Once at the beginning, once at the end; and the nursery says that something has changed.
        let looks = ended.await.unwrap_or_else(|error| panic!("{}", error.render()));
        assert!(looks <= 3 * count, "{looks} looks of {count}");
        runtime.close().await;
    });
}

/// Catches hangs.
const BOUND: Duration = Duration::from_secs(120);
