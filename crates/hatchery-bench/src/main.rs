//! What hatchery costs, beside floors and peers measured in the same run, in turn and on the same
//! cores.
//!
//! `cargo run --release -p hatchery-bench` runs all that takes seconds; `--help` says what else
//! there is. Each part runs in a process of its own: what it pins, allocates and opens is its own.
#![forbid(unsafe_code)]

mod builds;
mod calls;
mod cli;
mod contexts;
mod crowd;
mod cuts;
mod deaths;
mod errors;
mod figures;
mod floors;
mod heavy;
mod hot;
mod idle;
mod inside;
mod instructions;
mod large;
mod payload;
mod peers;
mod pin;
mod plot;
mod proc;
mod report;
mod sockets;
mod stalled;
mod starts;
mod streams;
mod stuck;
mod syscalls;
mod tree;
mod way;
mod worker;

/// What a measurement may go wrong with.
type Failure = Box<dyn std::error::Error + Send + Sync>;
/// What measurements return.
type Outcome<T = ()> = Result<T, Failure>;

fn main() -> Outcome {
    if let Some((mode, place)) = worker::Mode::told() {
        return mode.run(place);
    }
    // It runs its children from here.
    #[cfg(feature = "peers")]
    procspawn::init();
    cli::run()
}
