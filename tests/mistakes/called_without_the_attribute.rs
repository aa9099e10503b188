async fn square(x: u64) -> u64 {
    x * x
}

fn main() {
    let _ = hatchery::nursery(async |n| {
        let worker = n.start("worker").await?;
        worker.call(square(7)).await?;
        Ok(())
    });
}
