//! One command: parts run one after another, each in a process of its own.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::{Parser, Subcommand, ValueEnum};
use hatchery_testkit::matrix::{Backend, Case, Load, Trigger};

use crate::report::{Row, shown};
use crate::{Outcome, pin, plot};

/// What hatchery costs, beside floors measured in the same run, in turn and on the same cores.
#[derive(Debug, Parser)]
struct Cli {
    /// Small sizes, to see that nothing has rotted.
    #[arg(long)]
    smoke: bool,
    /// Only these parts; those that take seconds if none is named.
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
    /// Streams of messages of this many bytes alone: for profiles.
    #[arg(long, value_name = "BYTES", hide = true)]
    size: Option<usize>,
    /// Writes all rows there, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Shows and draws the rows of an earlier run, that `--json` wrote, and measures nothing.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "json", "smoke"])]
    from: Option<PathBuf>,
    /// Draws cost against size there.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(subcommand)]
    inside: Option<Inside>,
}

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One-way streams, messages and bytes a second.
    Streams,
    /// Large messages that are passed on rather than copied.
    Large,
    /// Opening, closing and cancelling of contexts.
    Contexts,
    /// Memory of streams that nobody reads.
    Stalled,
    /// From the start of an actor to its first reply.
    Starts,
    /// Latency and rate of calls.
    Calls,
    /// Trees that fail.
    Errors,
    /// Many actors up, called, down.
    Crowd,
    /// Starts while the root is heavy.
    Heavy,
    /// Actors that don't answer any more.
    Stuck,
    /// What a tree burns that does nothing.
    Idle,
    /// What people would use instead; the registry's crates with `--features peers`.
    Peers,
    /// Instructions of the hot paths, beside those that were accepted.
    Instructions,
    /// System calls of a start, a call and a message, by strace.
    Syscalls,
    /// Time and size of builds; takes minutes.
    Builds,
    /// A thousand trees killed, interrupted, stuck; takes many minutes.
    Deaths,
}

impl Part {
    /// Only run when it is named.
    fn is_long(self) -> bool {
        matches!(self, Self::Builds | Self::Deaths | Self::Syscalls)
    }
}

/// Processes of the benchmark's own.
#[derive(Debug, Subcommand)]
#[command(hide = true)]
enum Inside {
    /// One part.
    Part { part: Part },
    /// The hot paths, for valgrind.
    Hot,
    /// So many of that, for strace.
    Syscalls { work: crate::syscalls::Work, count: u64 },
    /// A T(3,3) that only stands there.
    Hold {
        /// So many actors of the root's own in its place.
        #[arg(long)]
        flat: Option<usize>,
        /// Its leaves can't be brought down but by force.
        #[arg(long)]
        stuck: bool,
    },
    /// The other side of a channel of `ipc-channel`.
    #[cfg(feature = "peers")]
    IpcEcho { server: String },
    /// 25 stuck actors.
    Stuck { backend: Backend },
    /// One case of the matrix.
    Case { backend: Backend, depth: u32, breadth: u32, trigger: Trigger },
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) smoke: bool,
    /// One size alone, where there are several.
    pub(crate) size: Option<usize>,
}

impl Extent {
    /// One of two sizes.
    pub(crate) fn pick<T>(self, smoke: T, full: T) -> T {
        if self.smoke { smoke } else { full }
    }
}

pub(crate) fn run() -> Outcome {
    let cli = Cli::parse();
    let extent = Extent { smoke: cli.smoke, size: cli.size };
    match cli.inside {
        Some(Inside::Part { part }) => measure(part, extent),
        Some(Inside::Hot) => crate::hot::run(),
        Some(Inside::Syscalls { work, count }) => crate::syscalls::run(work, count),
        #[cfg(feature = "peers")]
        Some(Inside::IpcEcho { server }) => crate::peers::ipc_channel::echo(server),
        Some(Inside::Hold { flat, stuck }) => crate::deaths::hold(flat, stuck),
        Some(Inside::Stuck { backend }) => crate::deaths::stuck_root(backend.name()),
        Some(Inside::Case { backend, depth, breadth, trigger }) => {
            let case = Case { backend, depth, breadth, trigger, load: Load::Idle };
            std::process::exit(hatchery_testkit::matrix::inside(&case));
        }
        None => all(&cli),
    }
}

fn measure(part: Part, extent: Extent) -> Outcome {
    match part {
        Part::Streams => crate::streams::measure(extent),
        Part::Large => crate::large::measure(extent),
        Part::Contexts => crate::contexts::measure(extent),
        Part::Stalled => crate::stalled::measure(extent),
        Part::Starts => crate::starts::measure(extent),
        Part::Calls => crate::calls::measure(extent),
        Part::Errors => crate::errors::measure(extent),
        Part::Crowd => crate::crowd::measure(extent),
        Part::Heavy => crate::heavy::measure(extent),
        Part::Stuck => crate::stuck::measure(extent),
        Part::Idle => crate::idle::measure(extent),
        Part::Peers => crate::peers::measure(extent),
        Part::Instructions => crate::instructions::measure(extent),
        Part::Syscalls => crate::syscalls::measure(),
        Part::Builds => crate::builds::measure(),
        Part::Deaths => crate::deaths::measure(extent),
    }
}

fn all(cli: &Cli) -> Outcome {
    if let Some(file) = &cli.from {
        let rows: Vec<Row> = serde_json::from_slice(&std::fs::read(file)?)?;
        println!("{}", shown(&rows));
        return cli.svg.as_ref().map_or(Ok(()), |svg| plot::draw(&rows, svg));
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load {}", load.trim());
    let mut parts = cli.only.clone();
    if parts.is_empty() {
        parts.extend(Part::value_variants().iter().filter(|part| !part.is_long()));
    }
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for part in parts {
        let (mut told, well) = one(part, cli)?;
        println!("{}", shown(&told));
        rows.append(&mut told);
        if !well {
            failed.push(name(part));
        }
    }
    if let Some(file) = &cli.json {
        std::fs::write(file, serde_json::to_string_pretty(&rows)?)?;
    }
    if let Some(file) = &cli.svg {
        plot::draw(&rows, file)?;
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", ")).into()) }
}

/// Runs one part in a process of its own; says what it told and whether it ended well.
fn one(part: Part, cli: &Cli) -> Outcome<(Vec<Row>, bool)> {
    let (variable, cores) = pin::told();
    let mut command = Command::new("/proc/self/exe");
    command.args(cli.smoke.then_some("--smoke"));
    command.args(cli.size.map(|size| format!("--size={size}")));
    command.arg("part").arg(name(part)).env(variable, cores);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut rows = Vec::new();
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out).lines() {
            rows.push(serde_json::from_str(&line?)?);
        }
    }
    Ok((rows, child.wait()?.success()))
}

fn name(part: Part) -> String {
    part.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
