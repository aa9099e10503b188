//! A pipeline of three actors with backpressure: the last one is slow, so the one before it waits,
//! so the first one waits; nobody stores more than the credit of one stream.
//!
//! Each stage was introduced to the one before it and opens a context with it directly.

use std::time::Duration;

use hatchery::{Callee, Error, Nothing, Peer, nursery};

const CREDIT: u64 = 4096;

/// The first stage. Returns how often it had to wait for the second.
#[hatchery::context]
async fn count(callee: Callee<Nothing, u64>, to: u64) -> Result<u64, Error> {
    let mut stream = callee.started(())?;
    for number in 1..=to {
        stream.send(number).await?;
    }
    Ok(stream.stats().waited)
}

/// The second stage: squares what the first one counts.
#[hatchery::context]
async fn square(callee: Callee<Nothing, u64>, counter: Peer, to: u64) -> Result<(), Error> {
    let counter = counter.connect().await?;
    let mut squares = callee.started(())?;
    let waited = counter.context(count(to)).credit(CREDIT).run(async |mut cx| {
        while let Some(number) = cx.recv().await? {
            squares.send(number * number).await?;
        }
        Ok(cx.result().await?)
    });
    println!("the counter had to wait {} times", waited.await?);
    println!("the squarer had to wait {} times", squares.stats().waited);
    Ok(())
}

/// The last stage: adds up, slowly.
#[hatchery::function]
async fn sum(squarer: Peer, counter: Peer, to: u64) -> Result<u64, Error> {
    let squarer = squarer.connect().await?;
    let sum = squarer.context(square(counter, to)).credit(CREDIT).run(async |mut cx| {
        let (mut sum, mut most) = (0, 0);
        while let Some(square) = cx.recv().await? {
            sum += square;
            if square % 100 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            most = most.max(cx.stats().held);
        }
        println!("the adder never held more than {most} of {CREDIT} bytes unread");
        Ok(sum)
    });
    Ok(sum.await?)
}

#[hatchery::main(flavor = "current_thread")]
async fn main() -> Result<(), hatchery::ScopeError> {
    nursery(async |n| {
        let counter = n.start("counter").await?.peer().await?;
        let squarer = n.start("squarer").await?.peer().await?;
        let adder = n.start("adder").await?;
        println!("the sum is {}", adder.call(sum(squarer, counter, 2_000)).await?);
        Ok(())
    })
    .await
}
