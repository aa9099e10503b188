//! Children of every kind: exact statuses, stated drops, typed errors.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hatchery_spawn::{
    Backend, Birth, Bounds, ChildId, Command, Exit, Forkserver, Main, Pidfd, SpawnError, Spec,
    Stdio, Step, Threads, inventory,
};

inventory::submit! { Main { name: "code", run: |birth| i32::from(birth.payload[0]) } }
inventory::submit! { Main { name: "echo", run: echo } }
inventory::submit! { Main { name: "wait", run: wait } }
inventory::submit! { Main { name: "abort", run: |_| std::process::abort() } }
inventory::submit! { Main { name: "overflow", run: |_| overflow(1) } }
inventory::submit! { Main { name: "hash", run: hash } }

fn echo(birth: Birth) -> i32 {
    let mut channel = birth.channel.expect("a channel");
    let mut byte = [0];
    while channel.read_exact(&mut byte).is_ok() {
        if channel.write_all(&byte).is_err() {
            return 1;
        }
    }
    0
}

fn wait(birth: Birth) -> i32 {
    let mut rest = Vec::new();
    birth.channel.expect("a channel").read_to_end(&mut rest).map_or(1, |_| 0)
}

#[allow(unconditional_recursion, reason = "that is the point")]
fn overflow(depth: u64) -> i32 {
    let page = std::hint::black_box([depth; 512]);
    overflow(depth + 1) + i32::try_from(page[3]).unwrap_or(0)
}

fn hash(birth: Birth) -> i32 {
    use std::hash::BuildHasher as _;
    let hash = std::hash::RandomState::new().hash_one(1);
    birth.channel.expect("a channel").write_all(&hash.to_le_bytes()).map_or(1, |()| 0)
}

fn backends() -> (Forkserver, Vec<Box<dyn Backend>>) {
    let server = Forkserver::start(Bounds::default()).unwrap();
    let all: Vec<Box<dyn Backend>> =
        vec![Box::new(server.fork()), Box::new(server.exec()), Box::new(Threads::new())];
    (server, all)
}

/// C9, C14: on every backend the exact code comes back, to every waiter.
#[tokio::test]
async fn the_exact_code_reaches_every_waiter() {
    let (_server, backends) = backends();
    for backend in backends {
        for code in [0_u8, 1, 7, 255] {
            let child = backend.spawn(Spec::main("code").payload(vec![code])).await.unwrap();
            let (one, two) = (child.handle(), child.handle());
            let expected = Exit::Code(i32::from(code));
            assert_eq!(one.wait().await.unwrap(), expected, "{}", backend.name());
            assert_eq!(two.wait().await.unwrap(), expected, "{}", backend.name());
        }
    }
}

/// The channel works both ways, and its closing ends the child.
#[tokio::test]
async fn a_child_answers_on_its_channel() {
    let (_server, backends) = backends();
    for backend in backends {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let child = backend.spawn(Spec::main("echo").channel(theirs.into())).await.unwrap();
        ours.write_all(b"x").unwrap();
        let mut byte = [0];
        ours.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        drop(ours);
        assert_eq!(child.wait().await.unwrap(), Exit::Code(0), "{}", backend.name());
    }
}

/// H28: a death by signal names the signal and is never a code.
#[tokio::test]
async fn a_death_by_signal_names_the_signal() {
    let server = Forkserver::start(Bounds::default()).unwrap();
    let child = server.fork().spawn(Spec::main("abort")).await.unwrap();
    assert_eq!(child.wait().await.unwrap().signal(), Some(6));
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let child = server.fork().spawn(Spec::main("wait").channel(theirs.into())).await.unwrap();
    child.kill().unwrap();
    assert_eq!(child.wait().await.unwrap().signal(), Some(9));
    child.kill().unwrap();
}

/// C7: a stack overflow says so and aborts, as in any Rust program.
#[tokio::test]
async fn a_stack_overflow_says_so() {
    let server = Forkserver::start(Bounds::default()).unwrap();
    for backend in [&server.fork() as &dyn Backend, &server.exec()] {
        let mut child = backend.spawn(Spec::main("overflow").stderr(Stdio::Piped)).await.unwrap();
        let mut stderr = std::fs::File::from(child.take_stderr().unwrap());
        assert_eq!(child.wait().await.unwrap().signal(), Some(6));
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        assert!(text.contains("has overflowed its stack"), "{text:?}");
    }
}

/// C7: siblings don't share their hash keys.
#[tokio::test]
async fn siblings_do_not_share_hash_keys() {
    let server = Forkserver::start(Bounds::default()).unwrap();
    let mut hashes = Vec::new();
    for _ in 0..4 {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let child = server.fork().spawn(Spec::main("hash").channel(theirs.into())).await.unwrap();
        let mut hash = [0; 8];
        ours.read_exact(&mut hash).unwrap();
        hashes.push(hash);
        child.wait().await.unwrap();
    }
    hashes.dedup();
    assert_eq!(hashes.len(), 4, "{hashes:?}");
}

/// Dropping a child kills it.
#[tokio::test]
async fn a_dropped_child_is_killed() {
    let server = Forkserver::start(Bounds::default()).unwrap();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let child = server.fork().spawn(Spec::main("wait").channel(theirs.into())).await.unwrap();
    let handle = child.handle();
    drop(child);
    assert_eq!(handle.wait().await.unwrap().signal(), Some(9));
}

/// A program that isn't there is a typed error of the step that failed.
#[tokio::test]
async fn a_program_that_is_not_there_is_a_typed_error() {
    let error = Command::new("/no/such/program").spawn().await.unwrap_err();
    let SpawnError::Step { step, cause, .. } = error else { panic!("{error:?}") };
    assert_eq!(step, Step::Exec);
    assert_eq!(cause.kind(), std::io::ErrorKind::NotFound);
    let error = Command::new("true").current_dir("/no/such/place").spawn().await.unwrap_err();
    let SpawnError::Step { step, .. } = error else { panic!("{error:?}") };
    assert_eq!(step, Step::WorkingDirectory);
}

/// A program runs, writes and ends like under any other API.
#[tokio::test]
async fn a_program_runs_and_its_output_comes_back() {
    let script = "echo out; echo err >&2; exit 3";
    let output = Command::new("sh").args(["-c", script]).output().await.unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(output.status, Exit::Code(3));
}

/// C7: a child holds exactly the fds it was given, whatever the spawner holds.
#[tokio::test]
async fn a_program_holds_exactly_its_fds() {
    let decoys: Vec<_> = (0..500).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    let output = Command::new("ls").args(["-1", "/proc/self/fd"]).output().await.unwrap();
    // 3 is the directory that ls itself has opened.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n1\n2\n3\n");
    drop(decoys);
}

/// H11: a child doesn't die with the thread that asked for it, nor with the one that started the
/// forkserver.
#[tokio::test]
async fn a_child_outlives_the_thread_that_asked_for_it() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let asked = std::thread::spawn(move || {
        let server = Forkserver::start(Bounds::default()).unwrap();
        let asked = server.fork().spawn(Spec::main("echo").channel(theirs.into()));
        (server, asked)
    });
    let (_server, asked) = asked.join().unwrap();
    let child = asked.await.unwrap();
    ours.write_all(b"x").unwrap();
    ours.read_exact(&mut [0]).unwrap();
    drop(ours);
    assert_eq!(child.wait().await.unwrap(), Exit::Code(0));
}

/// C3: the death of the forkserver is the death of all children, told to every waiter; the next
/// forkserver works.
#[tokio::test]
async fn the_death_of_the_forkserver_is_told_to_every_waiter() {
    let server = Forkserver::start(Bounds::default()).unwrap();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let child = server.fork().spawn(Spec::main("wait").channel(theirs.into())).await.unwrap();
    let ChildId::Process(pid) = child.id() else { panic!("a process") };
    let watched = Pidfd::open(pid).unwrap();
    Pidfd::open(server.pid()).unwrap().send_signal(9).unwrap();
    child.wait().await.unwrap_err();
    assert!(watched.wait_dead(Duration::from_secs(5)));
    server.lost().await;
    let late = server.fork().spawn(Spec::main("abort")).await;
    assert!(matches!(late, Err(SpawnError::ServerGone { .. })), "{late:?}");
    let next = Forkserver::start(Bounds::default()).unwrap();
    let child = next.fork().spawn(Spec::main("code").payload(vec![5])).await.unwrap();
    assert_eq!(child.wait().await.unwrap(), Exit::Code(5));
}
