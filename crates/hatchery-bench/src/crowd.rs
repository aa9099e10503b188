//! Many actors up, called, down; the cost of one as their number grows, flat and nested.

use std::error::Error;
use std::time::{Duration, Instant};

use comfy_table::{Table, presets};
use hatchery::{Nursery, Portal, Runtime, Stdio};
use tokio::task::JoinSet;

#[hatchery::function]
async fn touch(x: u64) -> u64 {
    x
}

/// Starts `breadth` actors below this one, calls each, and takes them down again. Says how long
/// up and down took, in nanoseconds.
#[hatchery::function]
async fn branch(breadth: u32) -> Result<(u64, u64), hatchery::Error> {
    let began = Instant::now();
    let mut up = Duration::ZERO;
    hatchery::nursery(async |n| {
        crowd(&n, breadth).await?;
        up = began.elapsed();
        Ok(())
    })
    .await?;
    let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    Ok((nanos(up), nanos(began.elapsed() - up)))
}

pub(crate) fn measure(sizes: &[u32]) -> Result<(), Box<dyn Error>> {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "actors",
        "flat up",
        "flat down",
        "flat an actor",
        "private an actor",
        "nested",
        "nested up + down",
        "nested an actor",
    ]);
    for &size in sizes {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (up, down, private) = tokio.block_on(flat(size))?;
        let breadth = (1..).find(|b| b * b + b >= size).unwrap_or(1);
        let nested = breadth * breadth + breadth;
        let all = tokio.block_on(two_levels(breadth))?;
        table.add_row([
            size.to_string(),
            format!("{up:.1?}"),
            format!("{down:.1?}"),
            format!("{:.1?}", (up + down) / size),
            format!("{private} KiB"),
            nested.to_string(),
            format!("{all:.1?}"),
            format!("{:.1?}", all / nested),
        ]);
    }
    println!("{table}");
    Ok(())
}

async fn flat(size: u32) -> Result<(Duration, Duration, u64), Box<dyn Error>> {
    let runtime = Runtime::builder().stdio(Stdio::Null).signals(false).open()?;
    let mut up = Duration::ZERO;
    let mut private = 0;
    let mut down = Instant::now();
    let began = Instant::now();
    runtime
        .nursery(async |n| {
            let actors = crowd(&n, size).await?;
            up = began.elapsed();
            private = private_kib(&actors);
            down = Instant::now();
            Ok(())
        })
        .await?;
    let down = down.elapsed();
    runtime.close().await;
    Ok((up, down, private))
}

async fn two_levels(breadth: u32) -> Result<Duration, Box<dyn Error>> {
    let runtime = Runtime::builder().stdio(Stdio::Null).signals(false).open()?;
    let began = Instant::now();
    runtime
        .nursery(async |n| {
            let actors = crowd(&n, breadth).await?;
            let mut branches = JoinSet::new();
            for actor in actors {
                branches.spawn(async move { actor.call(branch(breadth)).await });
            }
            while let Some(done) = branches.join_next().await {
                done??;
            }
            Ok(())
        })
        .await?;
    let all = began.elapsed();
    runtime.close().await;
    Ok(all)
}

/// Starts actors side by side and calls each once.
async fn crowd(n: &Nursery, size: u32) -> hatchery::Result<Vec<Portal>> {
    let mut starts = JoinSet::new();
    for i in 0..size {
        let n = n.clone();
        starts.spawn(async move {
            let actor = n.start(&format!("a{i}")).await?;
            actor.call(touch(u64::from(i))).await?;
            Ok::<_, hatchery::Error>(actor)
        });
    }
    let mut actors = Vec::new();
    while let Some(started) = starts.join_next().await {
        actors.push(started??);
    }
    Ok(actors)
}

/// The private memory of an actor in KiB, the mean of up to fifty.
fn private_kib(actors: &[Portal]) -> u64 {
    let of = |pid: u32| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let lines = text.lines().filter(|line| line.starts_with("Private_"));
        Some(lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum())
    };
    let some: Vec<u64> = actors.iter().take(50).filter_map(|actor| of(actor.pid()?)).collect();
    some.iter().sum::<u64>() / (some.len() as u64).max(1)
}
