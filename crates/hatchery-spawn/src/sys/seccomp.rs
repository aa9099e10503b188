//! Filters of system calls. See seccomp(2).

use nix::errno::Errno;
use nix::libc;

use crate::confine::Instruction;

/// Puts a filter in force for this thread and all that it starts, for ever.
pub(crate) fn install(program: &[Instruction]) -> Result<(), Errno> {
    let program: Vec<libc::sock_filter> = program
        .iter()
        .map(|&Instruction { code, jt, jf, k }| libc::sock_filter { code, jt, jf, k })
        .collect();
    let length = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the instructions are as many as the length says, are only read, and outlive the call.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    })
    .map(drop)
}
