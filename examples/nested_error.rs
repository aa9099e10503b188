//! A tree of depth 3 whose one leaf errs: the error comes up with its path and its causes, and
//! everybody else is taken down.

use hatchery::{Error, nursery};

#[derive(Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("tank {tank} is empty")]
struct Empty {
    tank: u32,
}

#[hatchery::function]
async fn leaf(tank: u32) -> Result<u32, Empty> {
    if tank == 3 { Err(Empty { tank }) } else { Ok(std::future::pending().await) }
}

#[hatchery::function]
async fn node(depth: u32, tank: u32) -> Result<u32, Error> {
    let full = nursery(async |n| {
        let mut below = Vec::new();
        for name in ["left", "right"] {
            let tank = tank * 2 + u32::from(name == "right");
            below.push(match depth {
                0 => n.run(name, leaf_or_error(tank)),
                depth => n.run(name, node(depth - 1, tank)),
            });
        }
        let mut sum = 0;
        for actor in below {
            sum += actor.await?;
        }
        Ok(sum)
    })
    .await?;
    Ok(full)
}

#[hatchery::function]
async fn leaf_or_error(tank: u32) -> Result<u32, Error> {
    Ok(leaf(tank).here().await?)
}

#[hatchery::main(flavor = "current_thread")]
async fn main() {
    let result = nursery(async |n| Ok(n.run("plant", node(1, 0)).await?)).await;
    if let Err(error) = result {
        println!("{}", error.render());
    }
}
