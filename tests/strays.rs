//! What an actor has started by itself is gone when its nursery returns (C1).
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]
#![allow(clippy::zombie_processes, reason = "left behind on purpose")]

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio as StdStdio};

use hatchery::Config;
use hatchery_testkit::fault::{Fault, Tree};
use hatchery_tests::{PROCESSES, ROOMY, came_down, for_each_with, here};

/// Ways to leave a server: in the actor's group, in a session of its own, let go by its parent, and
/// let go by one that was let go.
const WAYS: [&[&str]; 4] = [
    &["sleep", "1000"],
    &["setsid", "sleep", "1000"],
    &["sh", "-c", "exec 3<&0; setsid sleep 1000 >&- 2>&- &"],
    &["sh", "-c", "exec 3<&0; setsid sh -c 'setsid sleep 1000 & exit' >&- 2>&- & wait"],
];

/// Starts a server that has a port, and says which.
#[hatchery::function]
async fn serve(way: usize, host: Ipv4Addr) -> u16 {
    let port = TcpListener::bind((host, 0)).unwrap();
    let number = port.local_addr().unwrap().port();
    let (program, args) = WAYS[way].split_first().unwrap();
    let mut server = Command::new(program);
    server.args(args).stdin(StdStdio::from(OwnedFd::from(port))).stdout(StdStdio::null());
    let _left = server.stderr(StdStdio::null()).spawn().unwrap();
    number
}

/// A loopback address of this process alone: nobody else takes a port there that is free again.
fn host() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high | 0x80, middle, low)
}

/// C1: the port of a server that an actor has left is free when the nursery has returned: after a run,
/// after a cancel, after a SIGKILL.
#[test]
fn the_port_of_a_server_that_an_actor_left_is_free_when_its_nursery_returns() {
    let roomy = Config::with_budget(ROOMY);
    for_each_with(&roomy, here!(), &PROCESSES, async |runtime| {
        for round in 0..8 {
            for way in 0..WAYS.len() {
                let mut port = 0;
                match round % 3 {
                    0 => {
                        let ran = runtime
                            .nursery(async |n| Ok(n.run("once", serve(way, host())).await?));
                        port = ran.await.unwrap();
                    }
                    1 => {
                        let ran = runtime.nursery(async |n| {
                            let child = n.start("child").await?;
                            Ok(child.call(serve(way, host())).await?)
                        });
                        port = ran.await.unwrap();
                    }
                    _ => {
                        let down: Result<(), _> = runtime
                            .nursery(async |n| {
                                let child = n.start("child").await?;
                                port = child.call(serve(way, host())).await?;
                                Tree::mine().hit("root/child", Fault::Kill).unwrap();
                                child.settled().await;
                                Ok(())
                            })
                            .await;
                        let error = came_down(down);
                        assert_eq!(error.faults().len(), 1, "{}", error.render());
                    }
                }
                let free = TcpListener::bind((host(), port));
                assert!(free.is_ok(), "round {round}, way {way}: {free:?}");
            }
        }
        runtime.close().await;
    });
}
