//! The thread backend: threads that truly end, and those that were given up on (C5, H9).
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::cell::Cell;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{block_on, isolated, spawn};
use hatchery_spawn::{
    Backend as _, Birth, Exit, Main, SignalError, SpawnError, Spec, Threads, inventory,
    thread_count,
};

inventory::submit! { Main { name: "echo", run: echo } }
inventory::submit! { Main { name: "cling", run: cling } }
inventory::submit! { Main { name: "panic", run: panic } }

/// With a text that is known when it is compiled, or with one that is made of the payload.
fn panic(birth: Birth) -> i32 {
    match birth.payload.first() {
        Some(number) => panic!("on purpose: {number}"),
        None => panic!("on purpose"),
    }
}

/// Builds a runtime of its own, says one byte, and ends when its channel does.
fn echo(birth: Birth) -> i32 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(tokio::task::yield_now());
    SLOW.with(|_| {});
    let mut channel = birth.channel.unwrap();
    channel.write_all(b"x").unwrap();
    drop(channel.read(&mut [0]));
    256 + 9
}

/// Dropped after the main has returned: a thread that is slow to end.
struct Slow;

impl Drop for Slow {
    fn drop(&mut self) {
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

thread_local! { static SLOW: Slow = const { Slow }; }

/// H9, C10: a thousand threads up and down; the counts are exact, at once.
#[test]
fn a_thousand_threads_up_and_down_leave_nothing() {
    isolated("a_thousand_threads_up_and_down_leave_nothing", || {
        let backend = Threads::new();
        let counts = || {
            let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
            (thread_count().unwrap(), fds)
        };
        let before = counts();
        for _ in 0..10 {
            let mut all = Vec::new();
            for _ in 0..100 {
                let (child, mut channel) = spawn(&backend, Spec::main("echo")).unwrap();
                channel.read_exact(&mut [0]).unwrap();
                all.push((child, channel));
            }
            assert_eq!(thread_count().unwrap(), before.0 + 100);
            for (child, channel) in all {
                drop(channel);
                assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(9));
            }
            assert_eq!(counts(), before);
        }
        assert!(backend.ledger().list().is_empty());
    });
}

/// C4: a panic is a status of its own and carries its message; every waiter gets it.
#[test]
fn a_panic_carries_its_message() {
    for (payload, message) in [(vec![], "on purpose"), (vec![7], "on purpose: 7")] {
        let spec = Spec::main("panic").payload(payload);
        let child = block_on(Threads::new().spawn(spec)).unwrap();
        let expected = Exit::Panicked(message.to_owned());
        let handle = child.handle();
        assert_eq!(block_on(child.wait()).unwrap(), expected);
        assert_eq!(block_on(handle.wait()).unwrap(), expected);
    }
}

/// C5: a thread that was given up on is in the ledger until it ends, and nobody waits for it.
#[test]
fn an_abandoned_thread_is_in_the_ledger_until_it_ends() {
    isolated("an_abandoned_thread_is_in_the_ledger_until_it_ends", || {
        let backend = Threads::new();
        for given_up in [true, false] {
            let spec = Spec::main("echo").name("stuck");
            let (child, mut channel) = spawn(&backend, spec).unwrap();
            channel.read_exact(&mut [0]).unwrap();
            let handle = child.handle();
            if given_up {
                child.abandon("reading");
            }
            drop(child);
            let entries = backend.ledger().list();
            let [entry] = &entries[..] else { panic!("{entries:?}") };
            let state = if given_up { "reading" } else { "its child was dropped" };
            assert_eq!(entry.name, "stuck");
            // What it does is the kernel's to say: that it runs, or where it sleeps.
            assert!(entry.last_state.starts_with(&format!("{state}; it ")), "{entry:?}");
            drop(channel);
            assert_eq!(block_on(handle.wait()).unwrap(), Exit::Code(9));
            while !backend.ledger().list().is_empty() {
                std::thread::yield_now();
            }
        }
    });
}

/// Ends, but for a thread-local whose destructor waits for the gate.
fn cling(birth: Birth) -> i32 {
    CLINGS.set(Some(Clings(birth.channel)));
    9
}

struct Clings(Option<UnixStream>);

impl Drop for Clings {
    fn drop(&mut self) {
        if let Some(channel) = &mut self.0 {
            drop(channel.read(&mut [0]));
        }
    }
}

thread_local! { static CLINGS: Cell<Option<Clings>> = const { Cell::new(None) }; }

/// C5, C9: a thread whose main has returned, but which can't end, costs its waiter a bound; then
/// it is in the ledger until it is gone.
#[test]
fn a_thread_that_can_not_end_is_not_waited_for() {
    isolated("a_thread_that_can_not_end_is_not_waited_for", || {
        let backend = Threads::new();
        let (child, channel) = spawn(&backend, Spec::main("cling")).unwrap();
        assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(9));
        assert_eq!(backend.ledger().list().len(), 1);
        drop(channel);
        while !backend.ledger().list().is_empty() {
            std::thread::yield_now();
        }
    });
}

/// What a thread can't do is said at the door; and it takes no signals.
#[test]
fn what_a_thread_can_not_do_is_a_typed_error() {
    let backend = Threads::new();
    let specs = [
        Spec::program("true"),
        Spec::main("nobody"),
        Spec::main("echo").env("A", "b"),
        Spec::main("echo").current_dir("/"),
    ];
    for spec in specs {
        let error = block_on(backend.spawn(spec)).unwrap_err();
        assert!(matches!(error, SpawnError::Unsupported { backend: "thread", .. }), "{error:?}");
    }
    let (child, _channel) = spawn(&backend, Spec::main("echo")).unwrap();
    assert!(matches!(child.kill(), Err(SignalError::Thread { .. })));
}
