//! `hatchery dump`: what a tree is doing, and who holds it up.

use std::io::Write as _;

use hatchery_testkit::dump::Dump;

/// What to look at, and how it is shown.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Any process of the tree: its root, its forkserver, or an actor.
    pid: u32,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Only this process and what is below it in the kernel's own tree.
    #[arg(long)]
    alone: bool,
}

/// Shows the dump; gives back the exit status.
pub(crate) fn run(args: &Args) -> u8 {
    let dump = if args.alone { Dump::of(args.pid) } else { Dump::of_tree(args.pid) };
    let Some(dump) = dump else {
        eprintln!("no process {}, or none that may be looked at", args.pid);
        return NO_PROCESS;
    };
    let mut out = std::io::stdout().lock();
    let written = if args.json {
        let json = serde_json::to_writer_pretty(&mut out, &dump).map_err(std::io::Error::from);
        json.and_then(|()| writeln!(out))
    } else {
        write!(out, "{dump}")
    };
    // Whoever closed the pipe has seen enough.
    u8::from(written.and_then(|()| out.flush()).is_err())
}

const NO_PROCESS: u8 = 1;
