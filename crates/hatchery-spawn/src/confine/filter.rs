//! Filters of system calls, as the kernel reads them: classic BPF over `seccomp_data`. Pure.

use nix::libc;

/// A seccomp filter: a program that says of each system call what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyscallFilter {
    pub(crate) program: Vec<Instruction>,
}

/// One instruction, as in `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// How many to skip if it is true.
    pub jt: u8,
    /// How many to skip if it is false.
    pub jf: u8,
    /// Its operand.
    pub k: u32,
}

impl SyscallFilter {
    /// All calls but these, by number (`libc::SYS_…`), which fail with this errno. A call of
    /// another architecture's kind ends the process with SIGSYS.
    #[must_use]
    pub fn deny(calls: impl IntoIterator<Item = i64>, errno: i32) -> Self {
        let failed = libc::SECCOMP_RET_ERRNO | (errno.cast_unsigned() & libc::SECCOMP_RET_DATA);
        Self::table(calls, failed, libc::SECCOMP_RET_ALLOW)
    }

    /// Only these calls. Any other ends the process with SIGSYS. Its end needs `exit_group`.
    #[must_use]
    pub fn allow(calls: impl IntoIterator<Item = i64>) -> Self {
        Self::table(calls, libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_KILL_PROCESS)
    }

    /// Any program, for instance one of the crate `seccompiler`, field by field. The kernel
    /// refuses a wrong one with EINVAL.
    #[must_use]
    pub fn program(instructions: impl IntoIterator<Item = Instruction>) -> Self {
        Self { program: instructions.into_iter().collect() }
    }

    fn table(calls: impl IntoIterator<Item = i64>, listed: u32, others: u32) -> Self {
        let load = |offset| Instruction { code: LOAD, jt: 0, jf: 0, k: offset };
        let answer = |k| Instruction { code: RETURN, jt: 0, jf: 0, k };
        let killed = answer(libc::SECCOMP_RET_KILL_PROCESS);
        let mut program = vec![
            load(ARCH_OFFSET),
            Instruction { code: IF_EQUAL, jt: 1, jf: 0, k: ARCH },
            killed,
            load(NUMBER_OFFSET),
            // x32's calls have the same architecture and other numbers.
            Instruction { code: IF_AT_LEAST, jt: 0, jf: 1, k: X32 },
            killed,
        ];
        for call in calls {
            // No kernel has so many calls; nobody can call what doesn't fit.
            let Ok(number) = u32::try_from(call) else { continue };
            // The answer follows each, as a jump reaches 255 instructions and no further.
            program.push(Instruction { code: IF_EQUAL, jt: 0, jf: 1, k: number });
            program.push(answer(listed));
        }
        program.push(answer(others));
        Self { program }
    }
}

/// `BPF_LD | BPF_W | BPF_ABS`.
const LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
const IF_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGE | BPF_K`.
const IF_AT_LEAST: u16 = 0x35;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;
const NUMBER_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;
const X32: u32 = 0x4000_0000;
/// `AUDIT_ARCH_X86_64`.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
/// `AUDIT_ARCH_AARCH64`.
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
/// None: on other machines a table kills whoever is filtered, rather than let it pass.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCH: u32 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer.
    fn run(filter: &SyscallFilter, arch: u32, number: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = filter.program[at];
            at += 1;
            let skip = |is: bool| usize::from(if is { jt } else { jf });
            match code {
                LOAD => value = if k == ARCH_OFFSET { arch } else { number },
                IF_EQUAL => at += skip(value == k),
                IF_AT_LEAST => at += skip(value >= k),
                _ => return k,
            }
        }
    }

    #[test]
    fn a_table_says_what_it_was_told() {
        let many: Vec<i64> = (0..300).map(|number| number * 2).collect();
        let deny = SyscallFilter::deny(many.clone(), 38);
        let allow = SyscallFilter::allow(many);
        for number in 0..600 {
            let listed = number % 2 == 0;
            let (denied, allowed) = (run(&deny, ARCH, number), run(&allow, ARCH, number));
            assert_eq!(denied == libc::SECCOMP_RET_ALLOW, !listed, "{number}");
            assert_eq!(allowed == libc::SECCOMP_RET_ALLOW, listed, "{number}");
        }
        assert_eq!(run(&deny, ARCH, 2), libc::SECCOMP_RET_ERRNO | 38);
        for (arch, number) in [(ARCH ^ 1, 1), (ARCH, X32 | 1)] {
            assert_eq!(run(&deny, arch, number), libc::SECCOMP_RET_KILL_PROCESS);
        }
    }
}
