//! What a child has started by itself ends with it: a wait for the child is a wait for that too (C1).
#![allow(clippy::unwrap_used, reason = "a test fails by it")]
#![allow(clippy::zombie_processes, reason = "left behind on purpose")]

mod common;

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Command as StdCommand;
use std::process::Stdio as StdStdio;

use common::{block_on, isolated, line, spawn};
use hatchery_spawn::{Birth, Bounds, Command, Forkserver, Main, Spec, Stdio};

hatchery_spawn::inventory::submit! { Main { name: "leaver", run: leaver } }

/// Ways to leave a program running: in one's group, in a session of its own, let go by its parent, let
/// go by one that was let go, and that with a parent that would wait for it. Each keeps its stdin open.
const WAYS: [&[&str]; 5] = [
    &["sleep", "1000"],
    &["setsid", "sleep", "1000"],
    &["sh", "-c", "exec 3<&0; setsid sleep 1000 >&- 2>&- &"],
    &["sh", "-c", "exec 3<&0; setsid sh -c 'setsid sleep 1000 & exit' >&- 2>&- & wait"],
    &["setsid", "sh", "-c", "exec 3<&0; setsid sh -c 'sleep 1000 & sleep 1000' >&- 2>&- & wait"],
];

/// Starts a server that way, says on which port, and goes; or waits for its SIGKILL.
fn leaver(birth: Birth) -> i32 {
    let [way, kind, ref host @ ..] = birth.payload[..] else { return 1 };
    let host = Ipv4Addr::from(<[u8; 4]>::try_from(host).unwrap());
    let mut channel = birth.channel.as_ref().expect("a channel").try_clone().unwrap();
    let words = WAYS[usize::from(way)];
    let port = TcpListener::bind((host, 0)).unwrap();
    let number = port.local_addr().unwrap().port();
    let mut server = StdCommand::new(words[0]);
    server.args(&words[1..]).stdin(StdStdio::from(OwnedFd::from(port)));
    let mut server = server.stdout(StdStdio::null()).stderr(StdStdio::null()).spawn().unwrap();
    if way == 2 {
        // The shell is gone, and its server was let go while its actor lives.
        server.wait().unwrap();
    }
    common::tell(&mut channel, number);
    if kind == KILLED {
        common::park();
    }
    0
}

const LEAVES: u8 = 0;
const KILLED: u8 = 1;

/// C1: a port that anything of a child's has held is free when the child is known to have ended, however
/// it was started, and however the child came to its end.
#[test]
fn a_port_that_a_stray_has_held_is_free_at_the_return() {
    isolated("a_port_that_a_stray_has_held_is_free_at_the_return", || {
        let server = Forkserver::start(Bounds::default()).unwrap();
        for round in 0..40 {
            for way in 0..u8::try_from(WAYS.len()).unwrap() {
                for kind in [LEAVES, KILLED] {
                    let payload = [&[way, kind][..], &host().octets()].concat();
                    let spec = Spec::main("leaver").payload(payload);
                    let (child, mut channel) = spawn(&server.fork(), spec).unwrap();
                    let port: u16 = line(&mut channel).parse().unwrap();
                    if kind == KILLED {
                        child.kill().unwrap();
                    }
                    block_on(child.wait()).unwrap();
                    let free = TcpListener::bind((host(), port));
                    assert!(free.is_ok(), "round {round}, way {way}, kind {kind}: {free:?}");
                    assert!(child.handle().left_behind().is_empty());
                }
            }
        }
        server.close();
    });
}

/// C1: the same of programs.
#[test]
fn what_a_program_leaves_is_gone_when_its_output_is_there() {
    isolated("what_a_program_leaves_is_gone_when_its_output_is_there", || {
        block_on(async {
            for round in 0..40 {
                for (way, words) in WAYS.iter().enumerate() {
                    let port = TcpListener::bind((host(), 0)).unwrap();
                    let number = port.local_addr().unwrap().port();
                    // It leaves one and says nothing more.
                    let script = format!("{} >/dev/null 2>&1 <&4 & echo hi", quoted(words));
                    let command = Command::new("sh").args(["-c", &format!("exec 4<&0; {script}")]);
                    let command = command.stdin(Stdio::Fd(port.into()));
                    if round % 2 == 0 {
                        let output = command.output().await.unwrap();
                        assert_eq!(output.stdout, b"hi\n");
                    } else {
                        command.stdout(Stdio::Null).status().await.unwrap();
                    }
                    let free = TcpListener::bind((host(), number));
                    assert!(free.is_ok(), "round {round}, way {way}: {free:?}");
                }
            }
        });
    });
}

/// A loopback address of this process alone: nobody else takes a port there that is free again.
fn host() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high | 0x80, middle, low)
}

fn quoted(words: &[&str]) -> String {
    let quoted = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''")));
    quoted.collect::<Vec<_>>().join(" ")
}
