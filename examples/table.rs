//! A large table that is written once, into shared memory, and read by four processes: it is passed
//! on and mapped, so no byte of it goes through a socket, however many read it.

use std::error::Error;
use std::ops::Range;

use hatchery::{Blob, BlobBuffer, Config, Runtime};

const ROWS: usize = 4 << 20;

/// The sum of some of the table's rows.
#[hatchery::function]
async fn sum(table: Blob, rows: Range<usize>) -> u64 {
    let bytes = table.get(rows.start * 8..rows.end * 8).unwrap_or_default();
    bytes.as_chunks().0.iter().map(|row| u64::from_le_bytes(*row)).sum()
}

#[hatchery::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut table = BlobBuffer::zeroed(ROWS * 8)?;
    for (row, bytes) in (0_u64..).zip(table.as_chunks_mut().0) {
        *bytes = row.to_le_bytes();
    }
    let table = table.seal()?; // nobody can change it any more

    // A message has a limit of 16 MiB unless it is raised.
    let config = Config { max_frame_bytes: 64 << 20, ..Config::default() };
    let runtime = Runtime::builder().config(config).open()?;
    let summed = runtime.nursery(async |n| {
        let mut quarters = Vec::new();
        for quarter in 0..4 {
            let rows = quarter * ROWS / 4..(quarter + 1) * ROWS / 4;
            quarters.push(n.run(&format!("quarter-{quarter}"), sum(table.clone(), rows)));
        }
        let mut total = 0;
        for quarter in quarters {
            total += quarter.await?;
        }
        Ok(total)
    });
    let total = summed.await?;
    runtime.close().await;
    println!("{ROWS} rows, in all {total}");
    assert_eq!(total, (0..ROWS as u64).sum());
    Ok(())
}
