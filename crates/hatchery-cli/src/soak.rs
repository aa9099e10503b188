//! `hatchery soak`: random faults on T(3,3) under load, with a seed that reproduces the run.

use std::time::Duration;

use clap::{Args as ClapArgs, ValueEnum};
use hatchery_testkit::soak::{self, Options};

/// What `hatchery soak` is told.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// What chooses the faults [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// For how long: 90s, 10m, 2h
    #[arg(long = "for", value_name = "TIME", default_value = "1m", value_parser = span)]
    span: Duration,
    /// Ends earlier when so many actors have come and gone
    #[arg(long)]
    actors: Option<u64>,
    /// Begins with this round of the seed, to have one again
    #[arg(long, default_value_t = 0)]
    round: u64,
    /// At most so many rounds
    #[arg(long)]
    rounds: Option<u64>,
    /// Never kills the forkserver of the long root, so that its curve is one
    #[arg(long)]
    keep_forkserver: bool,
    /// Kills no roots beside the long one
    #[arg(long)]
    no_root_kills: bool,
    /// Goes afterwards, on each backend, so often through a nursery with one actor, an actor of one
    /// long nursery, a one-shot actor of it; 0 for not at all
    #[arg(long, default_value_t = 2_000)]
    cycles: u64,
    /// Text for people, or one JSON object on stdout
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Human,
    Json,
}

/// Exit status: 0 if nothing is left and nothing grew, 1 if not.
///
/// Ctrl-C ends this process; the watchers of the others see that and kill them.
pub(crate) fn run(args: &Args) -> u8 {
    let seed = args.seed.unwrap_or_else(|| {
        use std::hash::BuildHasher as _;
        std::hash::RandomState::new().hash_one(std::process::id()) >> 32
    });
    eprintln!("seed {seed}");
    let options = Options {
        seed,
        span: args.span,
        actors: args.actors,
        first: args.round,
        rounds: args.rounds,
        keep_forkserver: args.keep_forkserver,
        kill_roots: !args.no_root_kills,
        dies_after: None,
        cycles: args.cycles,
        is_cycling: false,
    };
    let report = match soak::run(&options, root_args) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: {error}");
            return 1;
        }
    };
    match args.format {
        Format::Human => print!("{report}"),
        Format::Json => println!("{}", serde_json::to_string(&report).unwrap_or_default()),
    }
    u8::from(!report.is_well())
}

/// One root of a soak, in this very process.
pub(crate) fn root(options: &str) -> u8 {
    u8::try_from(soak::inside(options)).unwrap_or(1)
}

fn root_args(options: &str) -> Vec<String> {
    vec!["soak-root".to_owned(), options.to_owned()]
}

fn span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time; 90s, 10m and 2h are");
    let at = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(wrong)
}
