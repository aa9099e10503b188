//! A program whose library begins a thread before `main`, as some profilers and BLAS do: programs and
//! exec'd mains start all the same, and a fork is refused with the thread's name.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{answer, block_on, isolated, spawn, tell};
use hatchery_spawn::{Birth, Bounds, Command, Exit, Forkserver, Main, SpawnError, Spec, inventory};

inventory::submit! { Main { name: "quit", run: |_| 3 } }
inventory::submit! { Main { name: "threads", run: threads } }

fn threads(mut birth: Birth) -> i32 {
    let count = hatchery_spawn::thread_count().unwrap();
    tell(birth.channel.as_mut().unwrap(), count);
    0
}

#[used]
#[allow(unsafe_code, reason = "only the linker has a constructor run")]
// SAFETY: the section holds pointers to functions of this type, which are called once.
#[unsafe(link_section = ".init_array.00100")]
static EARLY: extern "C" fn() = early;

extern "C" fn early() {
    let thread = std::thread::Builder::new().name("early-bird".to_owned());
    let begun = thread.spawn(|| {
        loop {
            std::thread::park();
        }
    });
    assert!(begun.is_ok(), "a thread before main");
}

/// C9: with a thread from before `main`, programs and exec'd mains start, and each status comes: no
/// SIGCHLD is lost to that thread.
#[test]
fn what_is_executed_starts_beside_a_thread_from_before_main() {
    isolated("what_is_executed_starts_beside_a_thread_from_before_main", || {
        let server = Forkserver::start(Bounds::default()).unwrap();
        for _ in 0..50 {
            let (child, _channel) = spawn(&server.exec(), Spec::main("quit")).unwrap();
            assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(3));
        }
        // A fresh image has the thread again, and its own.
        assert_eq!(answer(&server.exec(), Spec::main("threads")).trim(), "2");
        let output = block_on(Command::new("echo").arg("hello").output()).unwrap();
        assert_eq!(output.stdout, b"hello\n");
        server.close();
    });
}

/// H17, C4: a fork without an exec is refused before it is made, and the error names the thread, whose
/// it is, and what works.
#[test]
fn a_fork_beside_a_thread_from_before_main_is_refused_by_its_name() {
    isolated("a_fork_beside_a_thread_from_before_main_is_refused_by_its_name", || {
        let server = Forkserver::start(Bounds::default()).unwrap();
        for _ in 0..2 {
            let error = spawn(&server.fork(), Spec::main("quit")).unwrap_err();
            let SpawnError::Threaded { threads, .. } = &error else { panic!("{error:?}") };
            let here = std::env::current_exe().unwrap();
            assert!(threads.contains("early-bird"), "{threads}");
            assert!(threads.ends_with(here.to_str().unwrap()), "{threads}");
            assert!(error.to_string().contains("by exec"), "{error}");
        }
        server.close();
    });
}
