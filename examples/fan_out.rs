//! One stream, several readers: each gets every message; one that is too slow is told how many it
//! has missed, and neither the others nor the sender wait for it.

use std::time::Duration;

use hatchery::{Callee, Error, StreamError, Subscriber, nursery};

/// Counts up, and rests now and then as a thermometer would.
#[hatchery::context]
async fn measure(callee: Callee<hatchery::Nothing, u64>, times: u64) -> Result<(), Error> {
    let mut stream = callee.started(())?;
    for at in 0..times {
        stream.send(at).await?;
        if at % 10 == 9 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    Ok(())
}

/// Reads to the end; says how many messages came and how many were missed.
async fn read(mut readings: Subscriber<u64>, pause: Duration) -> Result<(u64, u64), StreamError> {
    let (mut came, mut missed) = (0, 0);
    loop {
        match readings.recv().await {
            Ok(Some(_)) => came += 1,
            Ok(None) => return Ok((came, missed)),
            Err(StreamError::Lagged(some)) => missed += some,
            Err(error) => return Err(error),
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

#[hatchery::main(flavor = "current_thread")]
async fn main() -> Result<(), hatchery::ScopeError> {
    nursery(async |n| {
        let sensor = n.start("sensor").await?;
        sensor
            .open_context(measure(500), async |mut cx| {
                let (_sender, receiver) = cx.split();
                let readings = receiver.broadcast(64);
                let (quick, slow) = (readings.subscribe(), readings.subscribe());
                let quick = read(quick, Duration::ZERO);
                let slow = read(slow, Duration::from_millis(3));
                let (quick, slow) = tokio::try_join!(quick, slow)?;
                println!("the quick one read {} and missed {}", quick.0, quick.1);
                println!("the slow one read {} and missed {}", slow.0, slow.1);
                Ok(())
            })
            .await?;
        Ok(())
    })
    .await
}
