//! Who a root is, also to those who look when it is gone: a number alone is given out again.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::held::Held;

/// A tree by its root. All of the tree carry it in their environment, as text without a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity {
    /// Tells the trees of one root apart.
    pub(crate) random: u64,
    pub(crate) pid: u32,
    /// When it started, in clock ticks after the boot: with the number, it is that process alone.
    pub(crate) start: u64,
    /// Which boot, and in which pid and time namespaces the two numbers mean something.
    pub(crate) world: World,
}

/// Where a process number with a start time means one process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct World {
    pub(crate) boot: String,
    pub(crate) space: u64,
}

/// What has become of a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Lives,
    Gone,
    /// It is of another namespace: nobody here can say.
    Unknown,
}

impl World {
    pub(crate) fn own() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot = boot.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        let inode =
            |name: &str| fs::metadata(format!("/proc/self/ns/{name}")).map_or(0, |it| it.ino());
        // Both are small: far below 32 bits each.
        Self { boot, space: inode("pid") | inode("time") << 32 }
    }
}

impl Identity {
    /// A new tree of this process.
    pub(crate) fn new() -> Self {
        use std::hash::BuildHasher as _;
        let pid = std::process::id();
        // Keys from the kernel, counted up at each use in a thread.
        let random = std::hash::RandomState::new().hash_one(pid);
        Self { random, pid, start: start_of(pid).unwrap_or(0), world: World::own() }
    }

    /// Reads what [`fmt::Display`] wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let random = u64::from_str_radix(parts.next()?, 16).ok()?;
        let pid = parts.next()?.parse().ok()?;
        let start = parts.next()?.parse().ok()?;
        let boot = parts.next().filter(|boot| !boot.is_empty())?.to_owned();
        let space = u64::from_str_radix(parts.next()?, 16).ok()?;
        let identity = Self { random, pid, start, world: World { boot, space } };
        parts.next().is_none().then_some(identity)
    }

    /// What has become of it, as seen from `world`.
    pub(crate) fn fate(&self, world: &World) -> Fate {
        if self.world.boot != world.boot {
            return Fate::Gone;
        }
        if self.world.space != world.space {
            return Fate::Unknown;
        }
        // Held first, looked at second. A main thread that has ended is not the end (H11).
        match Held::open(self.pid) {
            Ok(held) if start_of(self.pid) == Some(self.start) && !held.is_dead() => Fate::Lives,
            Ok(_) => Fate::Gone,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Fate::Gone,
            Err(_) => Fate::Unknown,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { random, pid, start, world: World { boot, space } } = self;
        write!(f, "{random:016x}-{pid}-{start}-{boot}-{space:x}")
    }
}

/// When a process started, in clock ticks after the boot.
pub(crate) fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 22; the name, which may hold anything, is the second and ends with the last bracket.
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_back() {
        let own = Identity::new();
        let text = own.to_string();
        assert!(!text.contains('.'), "{text}");
        assert_eq!(Identity::parse(&text), Some(own.clone()));
        assert_ne!(Identity::new(), own);
        for other in ["", "abc", &text[1..text.len() - 20], &format!("{text}-1"), "1-2-3--5"] {
            assert_eq!(Identity::parse(other), None, "{other}");
        }
    }

    /// Only one process is the root: not another one of its number, nor one before a reboot; what
    /// is in another namespace can't be judged.
    #[test]
    fn a_root_is_its_number_its_start_and_its_world() {
        let world = World::own();
        let own = Identity::new();
        assert_eq!(own.fate(&world), Fate::Lives);
        let later = Identity { start: own.start + 1, ..own.clone() };
        assert_eq!(later.fate(&world), Fate::Gone);
        let nobody = Identity { pid: i32::MAX.cast_unsigned(), ..own.clone() };
        assert_eq!(nobody.fate(&world), Fate::Gone);
        let rebooted = World { boot: "0".to_owned(), ..world.clone() };
        assert_eq!(own.fate(&rebooted), Fate::Gone);
        let elsewhere = World { space: world.space ^ 1, ..world };
        assert_eq!(own.fate(&elsewhere), Fate::Unknown);
    }
}
