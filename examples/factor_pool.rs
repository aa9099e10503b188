//! A pool of actors, one a core, that factors numbers; answers come in the order of the numbers.

use hatchery::{Portal, nursery};

#[hatchery::function]
async fn factor(number: u64) -> Vec<u64> {
    let (mut n, mut factors, mut d) = (number, Vec::new(), 2);
    while d * d <= n {
        while n % d == 0 {
            factors.push(d);
            n /= d;
        }
        d += 1;
    }
    if n > 1 {
        factors.push(n);
    }
    factors
}

#[hatchery::main(flavor = "current_thread")]
async fn main() -> Result<(), hatchery::ScopeError> {
    let numbers: Vec<u64> = (0..12).map(|i| 1_000_000_007 * (998_244_353 + 2 * i)).collect();
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    nursery(async |n| {
        let mut pool = Vec::new();
        for i in 0..cores {
            pool.push(n.start(&format!("worker-{i}")).await?);
        }
        let calls = numbers.iter().zip(pool.iter().cycle()).map(|(&number, worker)| {
            let (worker, number): (Portal, u64) = (worker.clone(), number);
            (number, tokio::spawn(async move { worker.call(factor(number)).await }))
        });
        for (number, answer) in calls.collect::<Vec<_>>() {
            println!("{number} = {:?}", answer.await??);
        }
        Ok(())
    })
    .await
}
