//! Rules for the file system that a process sets for itself. See landlock(7), Linux 5.13.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

/// A set of rules that isn't in force yet.
#[derive(Debug)]
pub(crate) struct Ruleset(OwnedFd);

#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
}

#[repr(C, packed)]
struct PathBeneathAttr {
    allowed_access: u64,
    parent_fd: i32,
}

/// Which version of landlock this kernel has. `ENOSYS`, `EOPNOTSUPP`: none.
pub(crate) fn version() -> Result<i64, Errno> {
    let (none, no_size) = (std::ptr::null::<RulesetAttr>(), 0_usize);
    // SAFETY: no memory is passed; the flag only asks for a number.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, none, no_size, ASK_VERSION)
    })
}

impl Ruleset {
    /// Rules about these kinds of access: what no rule allows is refused.
    pub(crate) fn new(handled: u64) -> Result<Self, Errno> {
        let attr = RulesetAttr { handled_access_fs: handled };
        // SAFETY: the struct is as long as the size says and outlives the call.
        let fd = Errno::result(unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &raw const attr,
                size_of::<RulesetAttr>(),
                0,
            )
        })?;
        let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
        // SAFETY: the kernel has just made it for us, close-on-exec.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Allows that access to a file, or to a directory and all below it.
    pub(crate) fn allow(&self, path: BorrowedFd<'_>, access: u64) -> Result<(), Errno> {
        let attr = PathBeneathAttr { allowed_access: access, parent_fd: path.as_raw_fd() };
        // SAFETY: the struct is of the kind that the rule type says and outlives the call.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.0.as_raw_fd(),
                PATH_BENEATH,
                &raw const attr,
                0,
            )
        })
        .map(drop)
    }

    /// Puts it in force for this thread and all that it starts, for ever.
    pub(crate) fn enforce(self) -> Result<(), Errno> {
        // SAFETY: only numbers are passed.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0)
        })
        .map(drop)
    }
}

pub(crate) const EXECUTE: u64 = 1 << 0;
pub(crate) const WRITE_FILE: u64 = 1 << 1;
pub(crate) const READ_FILE: u64 = 1 << 2;
pub(crate) const READ_DIR: u64 = 1 << 3;
pub(crate) const TRUNCATE: u64 = 1 << 14;
/// All of version 3: also removing, making of seven kinds, and renaming into other directories.
pub(crate) const ALL: u64 = (1 << 15) - 1;
/// What can be said of a file.
pub(crate) const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE;

const ASK_VERSION: u32 = 1;
const PATH_BENEATH: i32 = 1;
