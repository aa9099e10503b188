//! A first actor and a first call: a process that squares a number.

#[hatchery::function]
async fn square(x: u64) -> u64 {
    println!("squaring {x} in process {}", std::process::id());
    x * x
}

#[hatchery::main(flavor = "current_thread")]
async fn main() -> Result<(), hatchery::ScopeError> {
    let answer = hatchery::nursery(async |n| {
        let worker = n.start("worker").await?;
        Ok(worker.call(square(7)).await?)
    })
    .await?;
    println!("root, process {}, got {answer}", std::process::id());
    Ok(())
}
