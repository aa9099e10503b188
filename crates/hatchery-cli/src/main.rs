//! The `hatchery` command.
#![forbid(unsafe_code)]

mod dump;
mod matrix;
mod reap;
mod render;
mod soak;

use clap::{CommandFactory as _, Parser, Subcommand};

/// Actor trees that leave nothing behind.
#[derive(Debug, Parser)]
#[command(name = "hatchery", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a nested-cancel matrix on real trees and checks that nothing is left.
    Matrix(matrix::Args),
    /// Strikes trees at random, as a seed says, and counts what is left.
    Soak(soak::Args),
    /// A root of a soak, in this process.
    #[command(hide = true)]
    SoakRoot { options: String },
    /// Shows what every process of a tree is doing, and who seems to hold the others up.
    Dump(dump::Args),
    /// Finds what is left of trees whose root is gone, and ends it with --yes.
    Reap(reap::Args),
    /// One case of a matrix, in this process.
    #[command(hide = true)]
    Case(matrix::CaseArgs),
}

fn main() -> std::process::ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let code = match cli.command {
        Command::Matrix(args) => matrix::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::SoakRoot { options } => soak::root(&options),
        Command::Dump(args) => dump::run(&args),
        Command::Reap(args) => reap::run(&args),
        Command::Case(args) => matrix::case(&args),
    };
    std::process::ExitCode::from(code)
}

/// Shows help, the version, or what is wrong with the arguments, always with a usage line.
fn refuse(error: &clap::Error) -> std::process::ExitCode {
    // A closed terminal has nobody to tell.
    let _closed = error.print();
    if error.use_stderr() && !error.to_string().contains("Usage:") {
        eprintln!("{}", usage());
    }
    std::process::ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// The usage line of the subcommand that was asked for, or of the whole.
fn usage() -> String {
    let mut cli = Cli::command();
    cli.build();
    let asked = std::env::args().nth(1).unwrap_or_default();
    match cli.find_subcommand_mut(asked) {
        Some(command) => command.render_usage().to_string(),
        None => cli.render_usage().to_string(),
    }
}
