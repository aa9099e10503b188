//! Confinement: each bound holds on both process backends and for foreign programs, for what a
//! confined actor starts too, and one that can't be had fails the start by the name of its step.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use common::{
    BOUND, Delegated, answer, block_on, has_landlock, isolated, line, park, process, rooted, say,
    spawn, tell,
};
use hatchery_spawn::{
    Access, Backend, Birth, Bounds, Cgroup, Confinement, Exit, Forkserver, Instruction, Main,
    Pidfd, Resource, Right, SpawnError, Spec, Stdio, Step, SyscallFilter, Threads, inventory,
};
use nix::sys::resource::{Resource as Limit, getrlimit};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::{Gid, Uid, getegid, geteuid, getgid, getgroups, getuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

inventory::submit! { Main { name: "quit", run: |_| 3 } }
inventory::submit! { Main { name: "hang", run: hang } }
inventory::submit! { Main { name: "look", run: look } }
inventory::submit! { Main { name: "hog", run: hog } }
inventory::submit! { Main { name: "try", run: tries } }
inventory::submit! { Main { name: "calls", run: calls } }
inventory::submit! { Main { name: "spawns", run: spawns } }
inventory::submit! { Main { name: "joins", run: joins } }
inventory::submit! { Main { name: "stray", run: stray } }

fn hang(birth: Birth) -> i32 {
    tell(&mut birth.channel.unwrap(), "up");
    park()
}

/// Takes 64 MiB when it is told to.
fn hog(birth: Birth) -> i32 {
    let mut channel = birth.channel.unwrap();
    tell(&mut channel, "up");
    if line(&mut channel) == "take" {
        let taken: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 1 << 20]).collect();
        tell(&mut channel, format!("has {}", std::hint::black_box(taken).len()));
    }
    park()
}

/// Who and what this process is.
fn seen() -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().trim().to_owned()
    };
    let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
    // Field 19, the 17th after the name.
    let nice = stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap().to_owned();
    let (privs, filters) = (of("NoNewPrivs:"), of("Seccomp:"));
    let ids = format!("{} {} {} {}", getuid(), geteuid(), getgid(), getegid());
    let groups: Vec<u32> = getgroups().unwrap().into_iter().map(Gid::as_raw).collect();
    let (soft, hard) = getrlimit(Limit::RLIMIT_FSIZE).unwrap();
    format!(
        "nice {nice} cpus {} privs {privs} filters {filters} ids {ids} groups {groups:?} \
         limit {soft} {hard}",
        of("Cpus_allowed_list:")
    )
}

fn look(birth: Birth) -> i32 {
    birth.channel.unwrap().write_all(seen().as_bytes()).map_or(1, |()| 0)
}

/// Does what each line of its payload says and tells how it went.
fn tries(birth: Birth) -> i32 {
    let text = String::from_utf8(birth.payload).unwrap();
    let mut said = Vec::new();
    for line in text.lines() {
        let (deed, path) = line.split_once(' ').unwrap();
        let done = match deed {
            "read" => fs::read(path).map(drop),
            "list" => fs::read_dir(path).map(drop),
            "write" => fs::File::options().append(true).open(path).map(drop),
            "cut" => nix::unistd::truncate(path, 1).map_err(Into::into),
            "make" => fs::write(path, "new"),
            "remove" => fs::remove_file(path),
            "run" => std::process::Command::new(path).status().map(drop),
            _ => panic!("{deed}"),
        };
        said.push(done.map_or_else(|error| error.raw_os_error().unwrap(), |()| 0).to_string());
    }
    birth.channel.unwrap().write_all(said.join(" ").as_bytes()).map_or(1, |()| 0)
}

/// Says what a forbidden call says, if it may go on.
fn calls(birth: Birth) -> i32 {
    let said = nix::unistd::chdir("/").map_or_else(|errno| errno as i32, |()| 0);
    birth.channel.unwrap().write_all(said.to_string().as_bytes()).map_or(1, |()| 0)
}

/// Starts a child that wants more than this one may have, and says what that is.
fn spawns(birth: Birth) -> i32 {
    let server = Forkserver::inherited().unwrap().unwrap();
    let mut channel = birth.channel.unwrap();
    let spec = match &birth.payload[..] {
        b"nicer" => Spec::main("look").confine(Confinement::new().nice(18)),
        b"root" => Spec::main("look").confine(Confinement::new().user(0, 0)),
        b"cgroup" => Spec::main("look").confine(Confinement::new().cgroup(Cgroup::under("/"))),
        _ => Spec::main("look"),
    };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let said = match block_on(server.fork().spawn(spec.stdout(Stdio::Null).channel(theirs.into())))
    {
        Ok(child) => {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut { ours }, &mut text).unwrap();
            // A plain fork's birth is told by the child.
            match (text.as_str(), child.handle().birth_failure()) {
                ("", Some(failure)) => {
                    format!("{}: {}", failure.step.name(), failure.errno.unwrap())
                }
                _ => text,
            }
        }
        Err(error) => {
            let errno = error.io_error().and_then(|it| it.raw_os_error());
            errno.map_or_else(|| error.to_string(), |errno| format!("{error}: {errno}"))
        }
    };
    channel.write_all(said.as_bytes()).map_or(1, |()| 0)
}

/// Starts a program in that group, in its own, and in that of another program of its own.
fn joins(birth: Birth) -> i32 {
    use hatchery_spawn::process::Command;
    let given = std::str::from_utf8(&birth.payload).unwrap().parse().unwrap();
    let mut program = Command::new("cat");
    let mut join = |group: i32| {
        let piped = Stdio::piped();
        let started = program.stdin(piped).stdout(Stdio::null()).process_group(group).spawn();
        started.map_err(|error| error.raw_os_error().unwrap())
    };
    let own = join(nix::unistd::getpid().as_raw()).map(drop);
    let leader = join(0).unwrap();
    let of_own = join(leader.id().unwrap().cast_signed()).map(drop);
    let said = format!("{:?} {own:?} {of_own:?}", join(given).map(drop));
    birth.channel.unwrap().write_all(said.as_bytes()).map_or(1, |()| 0)
}

/// Leaves behind what no group, no parent and no environment leads to.
fn stray(birth: Birth) -> i32 {
    let mut channel = birth.channel.unwrap();
    let script = "setsid env -i sh -c 'echo $$ >&3; exec sleep 1000' & wait";
    let spec = Spec::program("sh").args(["-c", script]);
    let server = Forkserver::inherited().unwrap().unwrap();
    let spec = spec.fd(channel.try_clone().unwrap().into()).stdout(Stdio::Null);
    let child = block_on(server.fork().spawn(spec)).unwrap();
    // So that this one's end is not the end of what it started.
    let _wanted = std::mem::ManuallyDrop::new(child);
    tell(&mut channel, "started");
    park()
}

fn start() -> Forkserver {
    Forkserver::start(Bounds::default()).unwrap()
}

fn is_root() -> bool {
    Uid::effective().is_root()
}

fn both(server: &Forkserver) -> [Box<dyn Backend>; 2] {
    [Box::new(server.fork()), Box::new(server.exec())]
}

/// The step that failed, with its errno; of a plain fork too, as it is confined.
fn failed_step(backend: &dyn Backend, confinement: Confinement) -> (Step, i32) {
    let error = spawn(backend, Spec::main("quit").confine(confinement)).map(drop).unwrap_err();
    let SpawnError::Step { step, cause, .. } = error else { panic!("{error:?}") };
    (step, cause.raw_os_error().unwrap())
}

/// A place of its own, which everybody may enter.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hatchery-{name}-{}", std::process::id()));
        fs::create_dir_all(path.join("inside")).unwrap();
        fs::write(path.join("inside/file"), "inside").unwrap();
        fs::write(path.join("outside"), "outside").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    fn at(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Nice value, processors and rights are those that were asked for, by fork, by exec, and for a
/// program; what was not asked for is as ever.
#[test]
fn nice_processors_and_rights_are_as_asked_for() {
    isolated("nice_processors_and_rights_are_as_asked_for", || {
        let server = start();
        let bounds = || Confinement::new().nice(19).cpus([0]).no_new_privs();
        for backend in both(&server) {
            let plain = answer(&*backend, Spec::main("look"));
            assert!(plain.contains("privs 0") && !plain.contains("nice 19"), "{plain}");
            let found = answer(&*backend, Spec::main("look").confine(bounds()));
            assert!(found.starts_with("nice 19 cpus 0 privs 1"), "{} {found}", backend.name());
        }
        let script = "nice; grep -E 'Cpus_allowed_list|NoNewPrivs' /proc/self/status";
        let spec = Spec::program("sh").args(["-c", script]).confine(bounds());
        let found = output(&server, spec);
        let words: Vec<&str> = found.split_whitespace().collect();
        assert_eq!(words, ["19", "NoNewPrivs:", "1", "Cpus_allowed_list:", "0"]);
    });
}

/// What a program wrote.
fn output(server: &Forkserver, spec: Spec) -> String {
    let mut child = block_on(server.exec().spawn(spec.stdout(Stdio::Piped))).unwrap();
    let mut text = String::new();
    let mut stdout = fs::File::from(child.take_stdout().unwrap());
    std::io::Read::read_to_string(&mut stdout, &mut text).unwrap();
    block_on(child.wait()).unwrap();
    text
}

/// What can't be set is refused: no such processor, no such path, a nice value that the kernel
/// would bend, a filter that is none.
#[test]
fn what_makes_no_sense_is_refused_by_name() {
    isolated("what_makes_no_sense_is_refused_by_name", || {
        let server = start();
        let none = SyscallFilter::program([]);
        let wild = SyscallFilter::program([Instruction { code: 0x15, jt: 9, jf: 9, k: 0 }]);
        let mut cases = vec![
            (Confinement::new().cpus([1023]), Step::CpuAffinity, libc::EINVAL),
            (Confinement::new().cpus([9999]), Step::CpuAffinity, libc::EINVAL),
            (Confinement::new().cpus([]), Step::CpuAffinity, libc::EINVAL),
            (Confinement::new().syscalls(none), Step::Seccomp, libc::EINVAL),
            (Confinement::new().syscalls(wild), Step::Seccomp, libc::EINVAL),
        ];
        if has_landlock(&server) {
            let nowhere = Confinement::new().files([("/no/where", Access::Read)]);
            cases.push((nowhere, Step::Landlock, libc::ENOENT));
        }
        for backend in both(&server) {
            for (confinement, step, errno) in &cases {
                let found = failed_step(&*backend, confinement.clone());
                assert_eq!(found, (*step, *errno), "{confinement:?}");
            }
            for bent in [Confinement::new().nice(20), Confinement::new().user(u32::MAX, 0)] {
                let spec = Spec::main("quit").confine(bent);
                let error = spawn(&*backend, spec).map(drop).unwrap_err();
                assert!(matches!(error, SpawnError::Call { .. }), "{error:?}");
            }
            let (child, _channel) = spawn(&*backend, Spec::main("quit")).unwrap();
            assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(3));
        }
    });
}

/// A thread shares its process's bounds: asked for its own, it is not started.
#[test]
fn a_thread_can_not_be_confined() {
    let spec = Spec::main("quit").confine(Confinement::new().no_new_privs());
    let error = block_on(Threads::new().spawn(spec)).unwrap_err();
    assert!(
        matches!(error, SpawnError::Unsupported { backend: "thread", what: "confinement", .. }),
        "{error:?}"
    );
}

/// Only the listed paths, and each only in the listed way.
#[test]
fn files_outside_of_the_list_are_closed_to_it() {
    isolated("files_outside_of_the_list_are_closed_to_it", || {
        let place = Place::new("files");
        let (inside, outside) = (place.at("inside"), place.at("outside"));
        let deeds = |file: &str, dir: &str| {
            format!(
                "read {file}\nlist {dir}\nwrite {file}\ncut {file}\nmake {dir}/new\n\
                     remove {dir}/new\nrun /usr/bin/true"
            )
        };
        let (e, n) = (libc::EACCES, libc::ENOENT);
        let server = start();
        if !has_landlock(&server) {
            return;
        }
        for backend in both(&server) {
            let of = |rules: &[(&str, Access)], deeds: String| {
                // The exec'd image needs its libraries.
                let mut rules = rules.to_vec();
                rules.extend(["/usr", "/lib", "/lib64"].map(|path| (path, Access::Execute)));
                rules.retain(|(path, _)| Path::new(path).exists());
                let confinement = Confinement::new().files(rules);
                let spec = Spec::main("try").payload(deeds.into_bytes()).confine(confinement);
                answer(&*backend, spec)
            };
            let file = format!("{inside}/file");
            let read = of(&[(&inside, Access::Read)], deeds(&file, &inside));
            assert_eq!(read, format!("0 0 {e} {e} {e} {n} 0"), "{}", backend.name());
            let write = of(&[(&inside, Access::Write)], deeds(&file, &inside));
            assert_eq!(write, "0 0 0 0 0 0 0");
            let other = of(&[(&inside, Access::Write)], deeds(&outside, &place.at("")));
            assert_eq!(other, format!("{e} {e} {e} {e} {e} {n} 0"));
            let one = of(&[(&outside, Access::Read)], format!("read {outside}\nread {file}"));
            assert_eq!(one, format!("0 {e}"));
        }
        let closed = Confinement::new().files([(&inside, Access::Write)]);
        let spec = Spec::main("try").payload(b"run /usr/bin/true".to_vec()).confine(closed);
        assert_eq!(answer(&server.fork(), spec), e.to_string(), "what may be written is not run");
        let libraries = ["/usr", "/lib", "/lib64"].map(|path| (path, Access::Execute));
        let libraries = libraries.into_iter().filter(|(path, _)| Path::new(path).exists());
        let script = format!("cat {outside} || echo closed");
        let spec = Spec::program("sh").args(["-c", &script]).stderr(Stdio::Null);
        let found = output(&server, spec.confine(Confinement::new().files(libraries)));
        assert_eq!(found, "closed\n");
    });
}

/// A layer more only takes away.
#[test]
fn a_second_list_of_files_only_takes_away() {
    isolated("a_second_list_of_files_only_takes_away", || {
        let server = start();
        if !has_landlock(&server) {
            return;
        }
        let place = Place::new("layers");
        let confinement = Confinement::new()
            .files([(place.at("inside"), Access::Read), (place.at("outside"), Access::Read)])
            .files([(place.at(""), Access::Write)])
            .files([(place.at("inside"), Access::Write)]);
        let (inside, outside) = (place.at("inside/file"), place.at("outside"));
        let deeds = format!("read {inside}\nread {outside}\nwrite {inside}");
        let spec = Spec::main("try").payload(deeds.into_bytes()).confine(confinement);
        let e = libc::EACCES;
        assert_eq!(answer(&server.fork(), spec), format!("0 {e} {e}"));
    });
}

/// A call that is denied fails as it was told to; one that is not allowed ends the process.
#[test]
fn a_filtered_call_fails_or_ends_the_process() {
    isolated("a_filtered_call_fails_or_ends_the_process", || {
        let server = start();
        for backend in both(&server) {
            let denied = SyscallFilter::deny([libc::SYS_chdir], libc::ENETDOWN);
            let spec = Spec::main("calls").confine(Confinement::new().syscalls(denied));
            assert_eq!(answer(&*backend, spec), libc::ENETDOWN.to_string(), "{}", backend.name());
            let all = (0..1000).filter(|call| *call != libc::SYS_chdir);
            let allowed = SyscallFilter::allow(all);
            let spec = Spec::main("calls").confine(Confinement::new().syscalls(allowed));
            let (child, _channel) = spawn(&*backend, spec).unwrap();
            let exit = block_on(child.wait()).unwrap();
            assert_eq!(exit.signal(), Some(libc::SIGSYS), "{exit:?}");
        }
        // The exec itself is under the filter.
        let no_exec = SyscallFilter::deny([libc::SYS_execve], libc::EPERM);
        let spec = Spec::program("true").confine(Confinement::new().syscalls(no_exec));
        let error = block_on(server.exec().spawn(spec)).unwrap_err();
        let SpawnError::Step { step, cause, .. } = error else { panic!("{error:?}") };
        assert_eq!((step, cause.raw_os_error()), (Step::Exec, Some(libc::EPERM)));
    });
}

/// Another user is another user in all respects; without the right to it, that is said.
#[test]
fn a_child_is_the_user_that_was_asked_for() {
    isolated("a_child_is_the_user_that_was_asked_for", || {
        let server = start();
        for backend in both(&server) {
            let other = Confinement::new().user(65534, 65533);
            if !is_root() {
                let refused = spawn(&*backend, Spec::main("look").confine(other)).unwrap_err();
                assert!(
                    matches!(refused, SpawnError::Rights { right: Right::Become, .. }),
                    "{refused:?}"
                );
                continue;
            }
            let found = answer(&*backend, Spec::main("look").confine(other));
            let ids = "ids 65534 65534 65533 65533 groups [] ";
            assert!(found.contains(ids), "{found}");
            let grouped = Confinement::new().user_with_groups(65534, 65533, [7, 9]);
            let found = answer(&*backend, Spec::main("look").confine(grouped));
            assert!(found.contains(" groups [7, 9] "), "{found}");
            let back = Confinement::new().user(65534, 65533).cpus([0]).nice(19);
            let found = answer(&*backend, Spec::main("look").confine(back));
            assert!(found.starts_with("nice 19 cpus 0 "), "{found}");
        }
        if is_root() {
            let spec = Spec::program("id").arg("-u").confine(Confinement::new().user(65534, 65533));
            assert_eq!(output(&server, spec), "65534\n");
        }
    });
}

/// C3: the kernel forgets the parent-death signal when the user changes; the child still dies with
/// the forkserver.
#[test]
fn a_child_of_another_user_dies_with_the_forkserver() {
    let test = "a_child_of_another_user_dies_with_the_forkserver";
    rooted(
        test,
        || {
            let server = start();
            say(server.pid());
            let user = if is_root() { Confinement::new().user(65534, 65534) } else { nothing() };
            // By a plain fork: a fresh image would be found by its environment.
            let spec = Spec::main("hang").confine(user);
            let (child, mut channel) = spawn(&server.fork(), spec).unwrap();
            assert_eq!(line(&mut channel), "up");
            let hatchery_spawn::ChildId::Process(pid) = child.id() else { panic!() };
            say(pid);
            park()
        },
        |root| {
            let (server, child) = (root.pid(), root.pid());
            // Nobody is left who could look for it.
            root.pidfd.send_signal(libc::SIGSTOP).unwrap();
            server.send_signal(libc::SIGKILL).unwrap();
            assert!(child.wait_dead(BOUND), "it outlived the forkserver");
            root.pidfd.send_signal(libc::SIGKILL).unwrap();
        },
    );
}

fn nothing() -> Confinement {
    Confinement::new().no_new_privs()
}

/// C15: the forkserver has rights that a confined actor has lost; by asking for a child it gets
/// none of them back.
#[test]
fn what_a_confined_actor_starts_is_confined_as_it_is() {
    isolated("what_a_confined_actor_starts_is_confined_as_it_is", || {
        let server = start();
        let cpu = Confinement::new().nice(19).cpus([0]).no_new_privs();
        let filter = SyscallFilter::deny([libc::SYS_getpriority], libc::EPERM);
        for backend in both(&server) {
            let of = |confinement: &Confinement, wish: &str| {
                let spec = Spec::main("spawns").payload(wish.as_bytes().to_vec());
                answer(&*backend, spec.confine(confinement.clone()))
            };
            let own = of(&cpu, "");
            assert!(own.starts_with("nice 19 cpus 0 privs 1 filters 0"), "{own}");
            let nicer = of(&cpu, "nicer");
            assert!(nicer.starts_with("nice 19 "), "{nicer}");
            let filtered = of(&Confinement::new().syscalls(filter.clone()), "");
            assert!(filtered.contains("privs 1 filters 2"), "{filtered}");
            if !is_root() {
                continue;
            }
            let nobody = Confinement::new().user(65534, 65534);
            let found = of(&nobody, "");
            assert!(found.contains("ids 65534 65534 65534 65534"), "{found}");
            let found = of(&nobody, "root");
            assert!(found.starts_with(&format!("spawning `actor`: {}", Right::Become)), "{found}");
        }
        // A limit too.
        let spec = Spec::main("spawns").limit(Resource::FileSize, 77, 99);
        let found = answer(&server.fork(), spec);
        assert!(found.ends_with("limit 77 99"), "{found}");
        let plain = answer(&server.fork(), Spec::main("spawns"));
        assert!(!plain.ends_with("limit 77 99"), "{plain}");
    });
}

/// What this machine can't do is told by the step that needs it, never left out.
#[test]
fn what_is_not_available_is_a_typed_error() {
    isolated("what_is_not_available_is_a_typed_error", || {
        let is = |at, value: i32| {
            let value = u64::from(value.cast_unsigned());
            vec![
                SeccompCondition::new(at, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
                    .unwrap(),
            ]
        };
        let files = || Confinement::new().files([("/usr", Access::Execute)]);
        let filter = || Confinement::new().syscalls(SyscallFilter::deny([libc::SYS_sync], 1));
        let cases = [
            (libc::SYS_landlock_create_ruleset, vec![], Step::Landlock, files()),
            (libc::SYS_landlock_restrict_self, vec![], Step::Landlock, files()),
            (libc::SYS_seccomp, vec![], Step::Seccomp, filter()),
            (libc::SYS_setpriority, vec![], Step::Nice, Confinement::new().nice(3)),
            (libc::SYS_sched_setaffinity, vec![], Step::CpuAffinity, Confinement::new().cpus([0])),
            (libc::SYS_setgroups, vec![], Step::User, Confinement::new().user(1, 1)),
            (libc::SYS_prctl, is(0, libc::PR_SET_NO_NEW_PRIVS), Step::NoNewPrivileges, nothing()),
        ];
        for (call, condition, step, confinement) in cases {
            let server = without(call, condition, libc::ENOSYS);
            for backend in both(&server) {
                let found = failed_step(&*backend, confinement.clone());
                // A kernel that has landlock and was booted without it says so itself.
                let off = found == (Step::Landlock, libc::EOPNOTSUPP);
                assert!(found == (step, libc::ENOSYS) || off, "{}: {found:?}", backend.name());
                let (child, _channel) = spawn(&*backend, Spec::main("quit")).unwrap();
                assert_eq!(block_on(child.wait()).unwrap(), Exit::Code(3));
            }
        }
    });
}

/// A forkserver on a machine without a call. The filter is of a thread that ends.
fn without(call: i64, condition: Vec<SeccompCondition>, errno: i32) -> Forkserver {
    std::thread::spawn(move || {
        let rules = if condition.is_empty() {
            Vec::new()
        } else {
            vec![SeccompRule::new(condition).unwrap()]
        };
        let filter = SeccompFilter::new(
            [(call, rules)].into_iter().collect(),
            SeccompAction::Allow,
            SeccompAction::Errno(errno.cast_unsigned()),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        // By prctl, as the call itself may be the one.
        seccompiler::apply_filter(&program).unwrap();
        start()
    })
    .join()
    .unwrap()
}

/// A cgroup lives as long as its actors, and takes with it what nothing else would find.
#[test]
fn a_cgroup_takes_with_it_what_nothing_else_finds() {
    let test = "a_cgroup_takes_with_it_what_nothing_else_finds";
    isolated(test, || {
        let Some(place) = Delegated::new("strays") else { return };
        let server = start();
        for backend in both(&server) {
            let confinement = Confinement::new().cgroup(Cgroup::under(&place.0));
            let spec = Spec::main("stray").confine(confinement.clone());
            let (child, mut channel) = spawn(&*backend, spec).unwrap();
            let first = line(&mut channel);
            let second = line(&mut channel);
            let pid = if first == "started" { second } else { first };
            let stray = Pidfd::open(pid.parse().unwrap()).unwrap();
            let inside = place.inside();
            assert_eq!(inside.len(), 1, "{inside:?}");
            let members = fs::read_to_string(inside[0].join("cgroup.procs")).unwrap();
            assert!(members.lines().any(|member| member == pid), "{members}");
            let own = process(&child);
            child.kill().unwrap();
            assert!(own.wait_dead(BOUND) && stray.wait_dead(BOUND));
            place.is_empty_soon();
        }
        // At the forkserver's own end too.
        let spec = Spec::main("hang").confine(Confinement::new().cgroup(Cgroup::under(&place.0)));
        let (_child, mut channel) = spawn(&server.fork(), spec).unwrap();
        assert_eq!(line(&mut channel), "up");
        assert_eq!(place.inside().len(), 1);
        server.close();
        assert!(place.inside().is_empty(), "{:?}", place.inside());
    });
}

/// C3: a forkserver that was killed leaves no cgroup that the root knows of.
#[test]
fn the_root_removes_the_cgroups_of_a_forkserver_that_was_killed() {
    isolated("the_root_removes_the_cgroups_of_a_forkserver_that_was_killed", || {
        let Some(place) = Delegated::new("killed") else { return };
        let server = start();
        let spec = Spec::main("hang").confine(Confinement::new().cgroup(Cgroup::under(&place.0)));
        let (child, mut channel) = spawn(&server.fork(), spec).unwrap();
        assert_eq!(line(&mut channel), "up");
        let forkserver = Pidfd::open(server.pid()).unwrap();
        forkserver.send_signal(libc::SIGKILL).unwrap();
        // Told when the root has swept.
        block_on(child.wait()).unwrap_err();
        assert!(place.inside().is_empty(), "{:?}", place.inside());
    });
}

/// A cgroup that can't be had is named, and none is left; one in one is refused.
#[test]
fn a_cgroup_that_can_not_be_had_is_a_typed_error() {
    isolated("a_cgroup_that_can_not_be_had_is_a_typed_error", || {
        let server = start();
        let refused = |cgroup: Cgroup| {
            let spec = Spec::main("quit").confine(Confinement::new().cgroup(cgroup));
            let error = spawn(&server.fork(), spec).map(drop).unwrap_err();
            let SpawnError::Call { call, cause, .. } = error else { panic!("{error:?}") };
            (call, cause.raw_os_error().unwrap())
        };
        for other in ["/tmp", "/no/where"] {
            let found = refused(Cgroup::under(other));
            assert_eq!(found.1, libc::EOPNOTSUPP, "{found:?}");
        }
        let Some(place) = Delegated::new("refused") else { return };
        assert_eq!(statfs(&place.0).unwrap().filesystem_type(), CGROUP2_SUPER_MAGIC);
        // Nobody has enabled anything below that, so there is no controller in here.
        let bare = place.0.join("bare");
        fs::create_dir(&bare).unwrap();
        for (controller, cgroup) in [
            ("memory", Cgroup::under(&bare).memory(64 << 20)),
            ("pids", Cgroup::under(&bare).pids(10)),
        ] {
            let call = format!("write(cgroup.subtree_control, +{controller})");
            assert_eq!(refused(cgroup), (call, libc::ENOENT));
        }
        // Nor is anything left in there.
        fs::remove_dir(&bare).unwrap();
        let own = Confinement::new().cgroup(Cgroup::under(&place.0));
        let spec = Spec::main("spawns").payload(b"cgroup".to_vec()).confine(own);
        let found = answer(&server.fork(), spec);
        assert!(found.starts_with("spawning `actor`: a cgroup in a cgroup: "), "{found}");
        assert!(found.ends_with(&format!("(os error {0}): {0}", libc::EPERM)), "{found}");
        place.is_empty_soon();
    });
}

fn mount(words: &[&str]) {
    let done = std::process::Command::new("mount").args(words).status();
    assert!(done.unwrap().success(), "mount {words:?}");
}

fn unmount(path: &Path) {
    assert!(std::process::Command::new("umount").arg(path).status().unwrap().success());
}

/// Mounts that nobody else sees, nor has to take down.
fn own_mounts() -> bool {
    let own = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS);
    if let Err(errno) = own {
        eprintln!("not tested: unshare(CLONE_NEWNS): {errno}");
        return false;
    }
    mount(&["--make-rprivate", "/"]);
    true
}

fn killed(out_of_memory: bool) -> Exit {
    Exit::Signal { signal: libc::SIGKILL, core_dumped: false, out_of_memory }
}

/// Fault 17: a SIGKILL for which the cgroup of its victim counts one more is told as such, and no
/// other. The cgroup's count is one that is written here.
#[test]
fn a_kill_that_its_cgroup_counts_is_told_as_one() {
    isolated("a_kill_that_its_cgroup_counts_is_told_as_one", || {
        let Some(place) = Delegated::new("oom").filter(|_| own_mounts()) else { return };
        let server = start();
        let confined = || Confinement::new().cgroup(Cgroup::under(&place.0));
        for backend in both(&server) {
            for kills in [0, 1, 7] {
                let spec = Spec::main("hog").confine(confined());
                let (child, mut channel) = spawn(&*backend, spec).unwrap();
                assert_eq!(line(&mut channel), "up");
                let inside = place.inside().remove(0);
                mount(&["-t", "tmpfs", "none", inside.to_str().unwrap()]);
                let events = format!("oom 1\noom_kill {kills}\noom_group_kill 1\n");
                fs::write(inside.join("memory.events"), events).unwrap();
                child.kill().unwrap();
                let exit = block_on(child.wait()).unwrap();
                assert_eq!(exit, killed(kills > 0));
                let text = exit.to_string();
                assert_eq!(text.contains("out of memory in its cgroup"), kills > 0, "{text}");
                unmount(&inside);
                place.is_empty_soon();
            }
        }
    });
}

/// A cgroup of version 1 with a limit of 16 MiB, removed at the end. `None` says why not.
struct Limited(PathBuf);

impl Limited {
    fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let is_memory = |line: &&str| line.contains(" cgroup ") && line.contains(",memory");
        let Some(mount) = mounts.lines().find(is_memory).and_then(|line| line.split(' ').nth(1))
        else {
            eprintln!("not tested: no memory controller, of version 1 or 2");
            return None;
        };
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.split_once(":memory:/")).map_or("", |it| it.1);
        let path = Path::new(mount).join(own).join(format!("test-oom-{}", std::process::id()));
        let made = fs::create_dir(&path)
            .and_then(|()| fs::write(path.join("memory.limit_in_bytes"), "16M"));
        match made {
            Ok(()) => Some(Self(path)),
            Err(error) => {
                eprintln!("not tested: {}: {error}", path.display());
                None
            }
        }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(2);
        while fs::remove_dir(&self.0).is_err() && std::time::Instant::now() < until {
            std::thread::yield_now();
        }
    }
}

/// Fault 17, with the kernel's own hand: an actor that uses up the memory of its cgroup is killed, and
/// that is told. Where only version 1 has a memory controller, its count stands in for the other's.
#[test]
fn an_actor_that_uses_up_its_memory_says_so() {
    isolated("an_actor_that_uses_up_its_memory_says_so", || {
        let Some(place) = Delegated::new("memory") else { return };
        let server = start();
        let cgroup = Cgroup::under(&place.0);
        let limited = Confinement::new().cgroup(cgroup.clone().memory(16 << 20));
        match spawn(&server.fork(), Spec::main("hog").confine(limited)) {
            Ok((child, channel)) => takes_too_much(&child, channel),
            Err(_no_controller) => {
                drop(server);
                let Some(memory) = Limited::new().filter(|_| own_mounts()) else { return };
                let server = start();
                for backend in both(&server) {
                    let spec = Spec::main("hog").confine(Confinement::new().cgroup(cgroup.clone()));
                    let (child, channel) = spawn(&*backend, spec).unwrap();
                    let inside = place.inside().remove(0);
                    mount(&["-t", "tmpfs", "none", inside.to_str().unwrap()]);
                    // With what this machine has counted so far: nothing, in a cgroup of its own.
                    let (events, counted) =
                        (inside.join("memory.events"), memory.0.join("memory.oom_control"));
                    fs::write(&events, "").unwrap();
                    mount(&["--bind", counted.to_str().unwrap(), events.to_str().unwrap()]);
                    let hatchery_spawn::ChildId::Process(pid) = child.id() else {
                        panic!("a thread")
                    };
                    fs::write(memory.0.join("cgroup.procs"), pid.to_string()).unwrap();
                    takes_too_much(&child, channel);
                    unmount(&events);
                    unmount(&inside);
                    place.is_empty_soon();
                }
            }
        }
    });
}

fn takes_too_much(child: &hatchery_spawn::Child, mut channel: std::os::unix::net::UnixStream) {
    assert_eq!(line(&mut channel), "up");
    tell(&mut channel, "take");
    assert_eq!(line(&mut channel), "", "it was killed");
    assert_eq!(block_on(child.wait()).unwrap(), killed(true));
}

/// C15: an actor puts programs into its own group and those of its own programs, and into nobody else's; a
/// confined one into none.
#[test]
fn an_actor_joins_no_group_of_another() {
    isolated("an_actor_joins_no_group_of_another", || {
        let server = start();
        for backend in both(&server) {
            let (other, mut channel) = spawn(&*backend, Spec::main("hang")).unwrap();
            assert_eq!(line(&mut channel), "up");
            let hatchery_spawn::ChildId::Process(pid) = other.id() else { panic!() };
            let joins = || Spec::main("joins").payload(pid.to_string().into_bytes());
            let refused = format!("Err({})", libc::EPERM);
            let found = answer(&*backend, joins());
            assert_eq!(found, format!("{refused} Ok(()) Ok(())"));
            let found = answer(&*backend, joins().confine(Confinement::new().no_new_privs()));
            assert_eq!(found, format!("{refused} {refused} {refused}"));
            assert_eq!(other.try_wait().unwrap(), None);
        }
    });
}
