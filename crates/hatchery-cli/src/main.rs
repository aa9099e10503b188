//! The `hatchery` command.
#![forbid(unsafe_code)]

mod matrix;
mod render;

use clap::{Parser, Subcommand};

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
    /// One case of a matrix, in this process.
    #[command(hide = true)]
    Case(matrix::CaseArgs),
}

fn main() -> std::process::ExitCode {
    let code = match Cli::parse().command {
        Command::Matrix(args) => matrix::run(&args),
        Command::Case(args) => matrix::case(&args),
    };
    std::process::ExitCode::from(code)
}
