//! Request and reply over a two-way stream: a till that remembers, between two messages, what was
//! said before. A call could not: it is one question and one answer.

use hatchery::{Callee, Error, nursery};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Put(u64),
    Take(u64),
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Holds(u64),
    TooLittle { there: u64 },
}

/// Serves until its opener has nothing more to say; returns what is left.
#[hatchery::context]
async fn till(callee: Callee<Request, Reply>, coins: u64) -> Result<u64, Error> {
    let mut holds = coins;
    let mut stream = callee.started(())?;
    while let Some(request) = stream.recv().await? {
        let reply = match request {
            Request::Put(coins) => {
                holds += coins;
                Reply::Holds(holds)
            }
            Request::Take(coins) if coins > holds => Reply::TooLittle { there: holds },
            Request::Take(coins) => {
                holds -= coins;
                Reply::Holds(holds)
            }
        };
        stream.send(reply).await?;
    }
    Ok(holds)
}

#[hatchery::main(flavor = "current_thread")]
async fn main() -> Result<(), hatchery::ScopeError> {
    nursery(async |n| {
        let shop = n.start("shop").await?;
        let left = shop
            .open_context(till(10), async |mut cx| {
                for request in [Request::Put(5), Request::Take(40), Request::Take(12)] {
                    print!("{request:?}: ");
                    cx.send(request).await?;
                    println!("{:?}", cx.recv().await?);
                }
                // Our half is closed: the till sees the end and returns.
                cx.close().await?;
                Ok(cx.result().await?)
            })
            .await?;
        println!("{left} coins are left");
        Ok(())
    })
    .await
}
