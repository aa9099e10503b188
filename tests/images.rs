//! How a program was started: through the dynamic loader, under valgrind, or as a library in somebody
//! else's program. An actor starts all the same, or a typed error says what to do; nobody's `main`
//! runs twice.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use hatchery::{Backend, Runtime};
use hatchery_testkit::isolate;
use hatchery_tests::{PROCESSES, here};

#[hatchery::function]
async fn square(x: u64) -> u64 {
    x * x
}

/// What the program below does when it is started by another one.
fn call_actors() {
    isolate::block_on(async {
        for backend in PROCESSES {
            let runtime = Runtime::builder().backend(backend).open().unwrap();
            let squared = runtime.nursery(async |n| Ok(n.run("it", square(12)).await?)).await;
            assert_eq!(squared.unwrap(), 144);
            runtime.close().await;
        }
    });
}

/// The same test of this file, started by `starter`, which says that it is the inner one.
fn started_by(starter: &[&str], test: &str) -> Output {
    let mut words = starter.iter().map(|word| (*word).to_owned());
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(INNER, "1").output().unwrap()
}

fn is_inner() -> bool {
    std::env::var_os(INNER).is_some()
}

const INNER: &str = "HATCHERY_TEST_INNER";

fn went_well(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
    // Its test ran once: no forkserver took itself for the program.
    assert_eq!(text.matches("running 1 test").count(), 1, "{text}");
}

/// The dynamic loader of this program.
fn loader() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let files = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    files.map(PathBuf::from).find(|file| {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("ld-")
    })
}

/// A program that was started as an argument of the dynamic loader has actors as any other.
#[test]
fn a_program_that_was_started_by_the_loader_has_actors() {
    if is_inner() {
        return call_actors();
    }
    isolate::run_test(here!(), Duration::from_secs(60), || {
        let Some(loader) = loader() else { return eprintln!("not tested: no dynamic loader here") };
        let test = "a_program_that_was_started_by_the_loader_has_actors";
        went_well(&started_by(&[loader.to_str().unwrap()], test));
    });
}

/// A program under valgrind has actors; they run on the machine itself.
#[test]
fn a_program_under_valgrind_has_actors() {
    if is_inner() {
        return call_actors();
    }
    isolate::run_test(here!(), Duration::from_secs(120), || {
        if Command::new("valgrind").arg("--version").output().is_err() {
            return eprintln!("not tested: no valgrind here");
        }
        let test = "a_program_under_valgrind_has_actors";
        went_well(&started_by(&["valgrind", "--tool=none", "-q"], test));
    });
}

/// A program under the user-mode emulator of qemu has actors; they run on the machine itself.
#[test]
fn a_program_under_qemu_has_actors() {
    if is_inner() {
        return call_actors();
    }
    isolate::run_test(here!(), Duration::from_secs(120), || {
        let qemu = format!("qemu-{}", std::env::consts::ARCH);
        if Command::new(&qemu).arg("--version").output().is_err() {
            return eprintln!("not tested: no {qemu} here");
        }
        went_well(&started_by(&[&qemu], "a_program_under_qemu_has_actors"));
    });
}

/// A library in a program of C: without a program of its own a typed error at once, with one actors,
/// with a program that is none of ours a refusal; and the host's `main` runs once.
#[test]
fn a_library_in_another_program_starts_actors_from_the_program_that_it_names() {
    isolate::run_test(here!(), Duration::from_secs(60), || {
        let Some(host) = host() else { return eprintln!("not tested: no C compiler here") };
        let guest = std::env::current_exe().unwrap().with_file_name("libhatchery_guest.so");
        let program = std::env::current_exe().unwrap();
        let run = |image: Option<&Path>, exec: &str| {
            let output = Command::new(&host).arg(&guest).arg(exec).args(image).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(text.matches("main of the host").count(), 1, "{text}");
            output.status.code()
        };
        for exec in ["0", "1"] {
            assert_eq!(run(None, exec), Some(1));
            assert_eq!(run(Some(&program), exec), Some(0));
            assert_eq!(run(Some(Path::new("/bin/echo")), exec), Some(2));
        }
        std::fs::remove_file(host).unwrap();
    });
}

/// So that the functions of the library are in this program too, which it names.
#[test]
fn the_functions_of_the_library_are_this_programs_too() {
    isolate::run_test(here!(), Duration::from_secs(60), || {
        isolate::block_on(async {
            let runtime = Runtime::builder().backend(Backend::Forkserver).open().unwrap();
            let doubled =
                runtime.nursery(async |n| Ok(n.run("it", hatchery_guest::double(4)).await?)).await;
            assert_eq!(doubled.unwrap(), 8);
            runtime.close().await;
        });
    });
}

/// A program of C that loads a library and calls it; built here.
fn host() -> Option<PathBuf> {
    let place = std::env::temp_dir().join(format!("hatchery-host-{}", std::process::id()));
    let source = place.with_extension("c");
    std::fs::write(&source, HOST).unwrap();
    let built = Command::new("cc").arg("-o").arg(&place).arg(&source).arg("-ldl").output();
    std::fs::remove_file(source).unwrap();
    let built = built.ok()?;
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Some(place)
}

const HOST: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
    puts("main of the host");
    fflush(stdout);
    void *guest = dlopen(argv[1], RTLD_NOW);
    if (!guest) { puts(dlerror()); return 9; }
    int (*start)(const char *, int) = (int (*)(const char *, int))dlsym(guest, "guest_start");
    return start(argc > 3 ? argv[3] : NULL, argv[2][0] == '1');
}
"#;
