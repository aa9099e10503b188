//! What hatchery costs, beside floors measured in the same run and on the same core.
//!
//! `cargo run --release -p hatchery-bench` prints the table; `--smoke` runs small sizes.
#![forbid(unsafe_code)]

mod calls;
mod crowd;
mod errors;
mod pin;
mod starts;
mod table;

use clap::{Parser, Subcommand};
use hatchery_testkit::matrix::{Backend, Case, Trigger};

/// Benchmarks of hatchery.
#[derive(Debug, Parser)]
struct Cli {
    /// Small sizes, to see that nothing has rotted.
    #[arg(long)]
    smoke: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// Parts that need a process of their own.
#[derive(Debug, Subcommand)]
#[command(hide = true)]
enum Part {
    /// Bare forks in a small single-threaded process.
    ForkFloor { count: usize },
    /// Answers on the socket that is its stdin.
    Pong,
    /// One case of the matrix.
    Case { backend: Backend, depth: u32, breadth: u32, trigger: Trigger },
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Cli { smoke, part } = Cli::parse();
    match part {
        Some(Part::ForkFloor { count }) => return starts::fork_floor(count),
        Some(Part::Pong) => return calls::pong(),
        Some(Part::Case { backend, depth, breadth, trigger }) => {
            let case = Case { backend, depth, breadth, trigger };
            std::process::exit(hatchery_testkit::matrix::inside(&case));
        }
        None => {}
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load {}", load.trim());
    let mut table = table::Table::new();
    starts::measure(&mut table, if smoke { 50 } else { 1000 })?;
    calls::measure(&mut table, if smoke { 500 } else { 20_000 })?;
    errors::measure(&mut table, if smoke { 3 } else { 30 })?;
    table.print();
    crowd::measure(if smoke { &[10, 100] } else { &[10, 100, 1000, 5000] })?;
    Ok(())
}
