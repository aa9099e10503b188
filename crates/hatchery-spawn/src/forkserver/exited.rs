//! That a child is reaped, as its owner is told.

use super::wire::{Malformed, Reader, Writer};
use crate::exit::Exit;
use crate::prelude::Step;
use crate::usage::Usage;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exited {
    /// That of its request.
    pub(crate) number: u64,
    pub(crate) exit: Exit,
    /// That of its birth in which it died.
    pub(crate) step: Option<Step>,
    pub(crate) usage: Usage,
    /// All that it had started by itself is gone too; else [`Answer::Settled`](super::wire::Answer) follows.
    pub(crate) settled: bool,
}

impl Exited {
    pub(super) fn write(&self, out: &mut Writer) {
        let (code, signal, core_dumped, out_of_memory) = match &self.exit {
            Exit::Code(code) => (*code, 0, false, false),
            Exit::Signal { signal, core_dumped, out_of_memory } => {
                (0, *signal, *core_dumped, *out_of_memory)
            }
            // No process ends by one.
            Exit::Panicked(_) => (0, 0, false, false),
        };
        out.u64(self.number);
        out.i32(code);
        out.i32(signal);
        out.u8(u8::from(core_dumped));
        out.u8(u8::from(out_of_memory));
        out.u8(self.step.map_or(0, |step| step as u8));
        self.usage.words().iter().for_each(|word| out.u64(*word));
        out.u8(u8::from(self.settled));
    }

    pub(super) fn read(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (number, code, signal) = (input.u64()?, input.i32()?, input.i32()?);
        let (core_dumped, out_of_memory) = (input.u8()? != 0, input.u8()? != 0);
        let exit = match signal {
            0 => Exit::Code(code),
            signal => Exit::Signal { signal, core_dumped, out_of_memory },
        };
        let step = Step::from_number(input.u8()?);
        let usage = Usage::of_words([input.u64()?, input.u64()?, input.u64()?]);
        Ok(Self { number, exit, step, usage, settled: input.u8()? != 0 })
    }
}
