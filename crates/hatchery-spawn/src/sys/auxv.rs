//! What the kernel tells a program at its start. See getauxval(3).

use nix::libc;

/// Where the main program's headers are mapped: an address in its file. The loader corrects it where
/// it was executed itself.
pub(crate) fn program_headers() -> usize {
    // SAFETY: it only reads what was put on the stack before the program began.
    let address = unsafe { libc::getauxval(libc::AT_PHDR) };
    usize::try_from(address).unwrap_or(0)
}
