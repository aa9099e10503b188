//! Runs the targets: for a number of seconds or runs each, from a seed.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use hatchery_fuzz::{Corpus, Fuzzer, TARGETS, Target};

/// Hostile input for every decoder.
#[derive(Debug, Parser)]
#[command(name = "hatchery-fuzz")]
struct Args {
    /// Only these targets.
    #[arg(long)]
    target: Vec<String>,
    /// How long each target is attacked.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// At most so many runs of each target.
    #[arg(long)]
    runs: Option<u64>,
    /// The same seed and number of runs give the same inputs, from the same corpus.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keeps inputs that were taken for something new, while the target's corpus has fewer than 64.
    #[arg(long)]
    keep: bool,
    /// Tries only the inputs of these files, on the targets that were named.
    #[arg(long)]
    input: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let wanted = |target: &&Target| {
        args.target.is_empty() || args.target.iter().any(|name| name == target.name)
    };
    let targets: Vec<&Target> = TARGETS.iter().filter(wanted).collect();
    if targets.is_empty() {
        let names = TARGETS.map(|target| target.name).join(", ");
        eprintln!("there is no such target; there are {names}");
        return ExitCode::from(2);
    }
    for target in targets {
        match attack(target, &args) {
            Ok(true) => {}
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => {
                eprintln!("{}: {error}", target.name);
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// Says whether the target has withstood.
fn attack(target: &Target, args: &Args) -> io::Result<bool> {
    let corpus = Corpus::of(target);
    let kept: Vec<Vec<u8>> = if args.input.is_empty() {
        corpus.read()?.into_iter().map(|(_, input)| input).collect()
    } else {
        args.input.iter().map(std::fs::read).collect::<io::Result<_>>()?
    };
    let mut room = if args.keep { MOST_KEPT.saturating_sub(kept.len()) } else { 0 };
    let watch = Watch::over(*target);
    let since = Instant::now();
    let found = match Fuzzer::new(*target, kept, args.seed) {
        Ok(_) if !args.input.is_empty() => return Ok(true),
        Ok(mut fuzzer) => {
            let mut runs = 0;
            loop {
                let is_over = args.runs.is_some_and(|most| runs >= most);
                if is_over || since.elapsed() >= Duration::from_secs(args.seconds) {
                    let (name, size) = (target.name, fuzzer.pool_size());
                    println!("{name}: {runs} runs in {:?}, {size} inputs", since.elapsed());
                    return Ok(true);
                }
                watch.begins(fuzzer.prepare());
                runs += 1;
                match fuzzer.run() {
                    Ok(Some(input)) if room > 0 => {
                        corpus.keep("kept", input)?;
                        room -= 1;
                    }
                    Ok(_) => {}
                    Err(found) => break found,
                }
            }
        }
        Err(found) => found,
    };
    let path = corpus.keep("found", &found.input)?;
    println!("{}: {} by {}", target.name, found.message, path.display());
    Ok(false)
}

/// Ends the process over an input that takes too long, and keeps that input.
struct Watch {
    input: Arc<Mutex<(u64, Vec<u8>)>>,
    /// Its drop ends the thread.
    _alive: Sender<()>,
}

impl Watch {
    fn over(target: Target) -> Self {
        let input = Arc::new(Mutex::new((0, Vec::new())));
        let (alive, ended) = channel();
        let watched = input.clone();
        std::thread::spawn(move || {
            let mut last = None;
            while ended.recv_timeout(LONGEST) == Err(RecvTimeoutError::Timeout) {
                let (number, input) = &*watched.lock().unwrap_or_else(PoisonError::into_inner);
                if last.replace(*number) == Some(*number) {
                    let path = Corpus::of(&target).keep("hang", input);
                    println!("{}: over {LONGEST:?} by {path:?}", target.name);
                    std::process::exit(1);
                }
            }
        });
        Self { input, _alive: alive }
    }

    fn begins(&self, input: &[u8]) {
        let mut current = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        current.0 += 1;
        current.1.clear();
        current.1.extend(input);
    }
}

/// A corpus is read by people too.
const MOST_KEPT: usize = 64;
/// An input takes microseconds; a machine may sleep for a while.
const LONGEST: Duration = Duration::from_secs(10);
