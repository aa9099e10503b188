//! Fault 29 of `docs/faults.md`, by the number: how often a fork is tried that the kernel refuses.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;
#[allow(dead_code, reason = "others use the rest of it")]
mod filters;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use common::{BOUND, block_on, isolated, spawn};
use filters::{filtered, supervise};
use hatchery_spawn::{Bounds, Exit, Forkserver, Main, SpawnError, Spec, inventory};
use nix::libc;

inventory::submit! { Main { name: "quit", run: |_| 3 } }

/// EAGAIN is tried three times more and no oftener, for a child that lives by fork as for one that
/// executes; and when there is room again, the next one lives.
#[test]
fn a_refused_fork_is_tried_three_times_more() {
    isolated("a_refused_fork_is_tried_three_times_more", || {
        filtered(|| {
            let (is_full, tries) =
                (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
            let judge = {
                let (is_full, tries) = (is_full.clone(), tries.clone());
                move |_, _, _: [u64; 6]| {
                    if !is_full.load(SeqCst) {
                        return None;
                    }
                    tries.fetch_add(1, SeqCst);
                    Some(libc::EAGAIN)
                }
            };
            supervise(&[libc::SYS_clone, libc::SYS_clone3], Arc::new(judge));
            let server = Forkserver::start(Bounds::default()).unwrap();
            for backend in [&server.fork() as &dyn hatchery_spawn::Backend, &server.exec()] {
                is_full.store(true, SeqCst);
                let error = spawn(backend, Spec::main("quit")).map(drop).unwrap_err();
                let SpawnError::Call { call, cause, .. } = &error else { panic!("{error:?}") };
                assert_eq!((call.as_str(), cause.raw_os_error()), ("fork", Some(libc::EAGAIN)));
                assert_eq!(tries.swap(0, SeqCst), 4);
                is_full.store(false, SeqCst);
                let (child, _channel) = spawn(backend, Spec::main("quit")).unwrap();
                let exit = async { child.wait().await.unwrap() };
                assert_eq!(block_on(exit), Exit::Code(3), "within {BOUND:?}");
            }
            server.close();
        });
    });
}
