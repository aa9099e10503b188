//! `hatchery reap`: shows what trees have left whose root is gone, and ends it when told to.

use std::io::{self, Write};
use std::time::Duration;

use hatchery_spawn::leftovers::{self, Ending, LeftTree};
use serde_json::{Value, json};

/// What to end, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ends what is found: SIGTERM first, SIGKILL for what is still there after the grace.
    #[arg(long)]
    yes: bool,
    /// How long everybody has after the SIGTERM, in seconds.
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    grace: u64,
    /// Only the trees whose root had this process number.
    #[arg(long, value_name = "PID")]
    root: Option<u32>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Shows or ends; gives back the exit status: 0 if nothing is left, 1 if something is.
pub(crate) fn run(args: &Args) -> u8 {
    let mut trees = match leftovers::find() {
        Ok(trees) => trees,
        Err(error) => {
            eprintln!("reading /proc: {error}");
            return LEFT;
        }
    };
    trees.retain(|tree| args.root.is_none_or(|root| tree.root() == root));
    let mut out = io::stdout().lock();
    let is_none = trees.is_empty();
    let (shown, is_left) = if args.yes { end(trees, args.grace) } else { (show(&trees), !is_none) };
    let written = if args.json {
        writeln!(out, "{}", Value::from(shown))
    } else {
        write_text(&mut out, &shown, args.yes)
    };
    // Whoever closed the pipe has seen enough; what was found is found all the same.
    let _closed = written.and_then(|()| out.flush());
    if is_left { LEFT } else { 0 }
}

fn show(trees: &[LeftTree]) -> Vec<Value> {
    let process = |process: &leftovers::LeftProcess| json!({ "pid": process.pid(), "command": process.command() });
    let tree = |tree: &LeftTree| {
        json!({
            "root": tree.root(),
            "processes": tree.processes().iter().map(process).collect::<Vec<_>>(),
            "cgroups": tree.cgroups(),
        })
    };
    trees.iter().map(tree).collect()
}

fn end(trees: Vec<LeftTree>, grace: u64) -> (Vec<Value>, bool) {
    let mut shown = show(&trees);
    let mut is_left = false;
    for (tree, shown) in trees.into_iter().zip(&mut shown) {
        let Ending { terminated, killed, stayed, kept } = tree.end(Duration::from_secs(grace));
        is_left |= !stayed.is_empty() || !kept.is_empty();
        shown["terminated"] = json!(terminated);
        shown["killed"] = json!(killed);
        shown["stayed"] = json!(stayed);
        shown["kept"] = json!(kept);
    }
    (shown, is_left)
}

fn write_text(out: &mut impl Write, trees: &[Value], ended: bool) -> io::Result<()> {
    if trees.is_empty() {
        return writeln!(out, "nothing is left of any tree");
    }
    for tree in trees {
        writeln!(out, "left of the tree of {}, which is gone:", tree["root"])?;
        let has = |list: &str, item: &Value| {
            tree[list].as_array().is_some_and(|list| list.contains(item))
        };
        for process in tree["processes"].as_array().into_iter().flatten() {
            let (pid, command) = (&process["pid"], process["command"].as_str().unwrap_or_default());
            let fate = match () {
                () if has("terminated", pid) => "ended",
                () if has("killed", pid) => "killed",
                () if has("stayed", pid) => "STILL THERE",
                () => "lives",
            };
            writeln!(out, "  {pid:>9}  {fate:<11}  {command}")?;
        }
        for path in tree["cgroups"].as_array().into_iter().flatten() {
            let fate = match () {
                () if !ended => "there",
                () if has("kept", path) => "STILL THERE",
                () => "removed",
            };
            writeln!(out, "  {:>9}  {fate:<11}  {}", "cgroup", path.as_str().unwrap_or_default())?;
        }
    }
    if !ended {
        writeln!(out, "`hatchery reap --yes` ends them")?;
    }
    Ok(())
}

const LEFT: u8 = 1;
