//! A tree that only stands there, for looking at it from outside with `ps`, `pstree`, `kill`.
//!
//! `hold_tree --backend B --depth D --breadth N` prints a line `actor PATH PID` for each actor,
//! then `READY`, then waits for a signal.

use hatchery::{Backend, Error, Runtime, cancelled, nursery};

/// Starts the levels below, says who they are as soon as all are there, and stays.
#[hatchery::function]
async fn grow(depth: u32, breadth: u32) -> Result<Vec<(String, u32)>, Error> {
    let (tell, told) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let held = nursery(async |n| {
            let actors = plant(&n, depth, breadth).await?;
            // The caller has gone if the tree comes down meanwhile.
            drop(tell.send(actors));
            std::future::pending::<hatchery::Result<()>>().await
        });
        drop(held.await);
    });
    told.await.map_err(|_| Error::msg("the tree came down while it grew"))
}

async fn plant(
    n: &hatchery::Nursery,
    depth: u32,
    breadth: u32,
) -> hatchery::Result<Vec<(String, u32)>> {
    let mut actors = Vec::new();
    for i in 0..breadth {
        let child = n.start(&format!("a{i}")).await?;
        actors.push((child.path().to_string(), child.pid().unwrap_or(std::process::id())));
        if depth > 1 {
            actors.extend(child.call(grow(depth - 1, breadth)).await?);
        }
    }
    Ok(actors)
}

#[hatchery::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut backend, mut depth, mut breadth) = (Backend::default(), 2, 2);
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or("each flag takes a value")?;
        match &*flag {
            "--backend" => backend = Backend::from_name(&value).ok_or("no such backend")?,
            "--depth" => depth = value.parse()?,
            "--breadth" => breadth = value.parse()?,
            _ => return Err("usage: hold_tree --backend B --depth D --breadth N".into()),
        }
    }
    let runtime = Runtime::builder().backend(backend).open()?;
    let held = runtime.nursery(async |n| {
        for (path, pid) in plant(&n, depth, breadth).await? {
            println!("actor {path} {pid}");
        }
        println!("READY");
        cancelled().await;
        Ok(())
    });
    // Ended by a signal, which also gives the exit status.
    drop(held.await);
    runtime.close().await;
    Ok(())
}
