//! Attributes of hatchery.
#![forbid(unsafe_code)]

mod argument;
mod context;
mod entry;
mod function;

/// Makes an async function one that actors can be asked to run.
///
/// `async fn square(x: u64) -> u64` becomes `fn square(x: u64) -> Call<u64>`: a value to hand to
/// `Portal::call` or `Nursery::run`, or to run in place with `Call::here`. A function whose return
/// type is a `Result` gives `Call<T, E>`; `E` must be `hatchery::Error`, or a serde type that
/// implements `std::error::Error`.
///
/// A plain function that returns `impl Stream<Item = T> + Send` gives a `StreamCall<T>` for
/// `Portal::stream`.
///
/// Arguments are owned serde types bound to plain names, which may be `mut`. The function is registered under its
/// path and its place in the source; nobody keeps a list, and no two share a name.
#[proc_macro_attribute]
pub fn function(
    args: proc_macro::TokenStream,
    item: proc_macro::TokenStream,
) -> proc_macro::TokenStream {
    function::expand(args.into(), item.into())
        .unwrap_or_else(|error| error.to_compile_error())
        .into()
}

/// Turns an async function whose first argument is a `hatchery::Callee` into one side of a context.
///
/// The function under the attribute takes the other arguments and returns a `ContextCall` for
/// `Portal::open_context`. It says `callee.started(value)` first, then works and talks over the
/// stream that this gives, then returns. It is dropped at its next await when the opener cancels
/// or leaves.
#[proc_macro_attribute]
pub fn context(
    args: proc_macro::TokenStream,
    item: proc_macro::TokenStream,
) -> proc_macro::TokenStream {
    context::expand(args.into(), item.into())
        .unwrap_or_else(|error| error.to_compile_error())
        .into()
}

/// Makes an async function a program's `main`: runs it on tokio, as `#[tokio::main]` does, and bounds
/// the end of the process.
///
/// When it has returned, nurseries that are still open are cancelled and the watchdog is armed with the
/// status that it returned, or with 101 if it has panicked, as by `hatchery::arm_watchdog`: whatever the
/// process waits for after that (tokio's pool, half a line that nobody reads, hooks), it ends when the
/// longest budget of its runtimes and the watchdog's bound are over, with that status.
///
/// It may return `()`, [`ExitCode`](std::process::ExitCode), or a `Result` of these whose error is
/// `Debug`. `flavor = "current_thread"` runs it on its own thread alone. With `reap` a process 1, as the
/// program of a container is, stays behind and reaps orphans, and what is run is its child: see
/// `hatchery::reap_orphans`; any other process is not changed by it.
///
/// # Panics
/// If there is no tokio runtime to be had: no thread, no fd. With `reap`, if process 1 can't stay behind.
#[proc_macro_attribute]
pub fn main(
    args: proc_macro::TokenStream,
    item: proc_macro::TokenStream,
) -> proc_macro::TokenStream {
    entry::expand(args.into(), item.into()).unwrap_or_else(|error| entry::refused(&error)).into()
}
