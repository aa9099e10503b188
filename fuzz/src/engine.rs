//! Spoils inputs, keeps the interesting ones, and reports the one that broke something.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::targets::Target;

/// Numbers that a seed reproduces: `SplitMix64`.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// Kept inputs of a target, one file each.
#[derive(Debug)]
pub struct Corpus {
    directory: PathBuf,
}

impl Corpus {
    /// The one that the repository keeps.
    #[must_use]
    pub fn of(target: &Target) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self { directory: root.join("corpus").join(target.name) }
    }

    /// All of it, in the order of names. A missing directory is an empty corpus.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn read(&self) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut paths: Vec<PathBuf> =
            entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        paths.sort();
        paths.into_iter().map(|path| Ok((path.clone(), fs::read(path)?))).collect()
    }

    /// Keeps one more, under a name that its bytes give it.
    ///
    /// # Errors
    /// It can't be written.
    pub fn keep(&self, kind: &str, input: &[u8]) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.directory)?;
        let hash = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let path = self.directory.join(format!("{kind}-{hash:016x}"));
        fs::write(&path, input)?;
        Ok(path)
    }
}

/// An input that broke something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The input.
    pub input: Vec<u8>,
    /// What the target said as it panicked.
    pub message: String,
}

/// One target under attack.
#[derive(Debug)]
pub struct Fuzzer {
    target: Target,
    rng: Rng,
    /// What inputs are made from.
    pool: Vec<Vec<u8>>,
    shapes: BTreeSet<u64>,
    next: Vec<u8>,
}

impl Fuzzer {
    /// Begins with the target's own good inputs and with `kept` ones.
    ///
    /// # Errors
    /// One of those breaks something.
    pub fn new(target: Target, kept: Vec<Vec<u8>>, seed: u64) -> Result<Self, Found> {
        let mut fuzzer = Self {
            target,
            rng: Rng::new(seed),
            pool: Vec::new(),
            shapes: BTreeSet::new(),
            next: Vec::new(),
        };
        for input in (target.seeds)().into_iter().chain(kept) {
            fuzzer.try_input(&input)?;
            fuzzer.pool.push(input);
        }
        Ok(fuzzer)
    }

    /// Makes the next input.
    pub fn prepare(&mut self) -> &[u8] {
        let mut input = std::mem::take(&mut self.next);
        input.clear();
        if !self.pool.is_empty() {
            input.extend(&self.pool[self.rng.below(self.pool.len())]);
        }
        for _ in 0..=self.rng.below(5) {
            self.spoil(&mut input);
        }
        input.truncate(LONGEST);
        self.next = input;
        &self.next
    }

    /// Tries what was prepared. If it was taken for something new it is given back, and kept.
    ///
    /// # Errors
    /// What it broke.
    pub fn run(&mut self) -> Result<Option<&[u8]>, Found> {
        let input = std::mem::take(&mut self.next);
        let is_new = self.try_input(&input)?;
        if !is_new {
            self.next = input;
            return Ok(None);
        }
        self.pool.push(input);
        Ok(self.pool.last().map(Vec::as_slice))
    }

    /// How many inputs it makes others from.
    #[must_use]
    pub fn pool_size(&self) -> usize {
        self.pool.len()
    }

    fn try_input(&mut self, input: &[u8]) -> Result<bool, Found> {
        let run = self.target.run;
        // A target keeps nothing from one call to the next.
        match catch_unwind(AssertUnwindSafe(|| run(input))) {
            Ok(shape) => Ok(self.shapes.insert(shape)),
            Err(panic) => {
                let message = panic.downcast_ref::<String>().cloned();
                let message =
                    message.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                Err(Found { input: input.to_vec(), message: message.unwrap_or_default() })
            }
        }
    }

    fn spoil(&mut self, input: &mut Vec<u8>) {
        let rng = &mut self.rng;
        if input.is_empty() {
            input.push(rng.byte());
            return;
        }
        let at = rng.below(input.len());
        match rng.below(10) {
            0 => input[at] ^= 1 << rng.below(8),
            1 => input[at] = rng.byte(),
            2 => input[at] = TELLING[rng.below(TELLING.len())],
            3 => input.insert(at, rng.byte()),
            4 => {
                let length = rng.below(16.min(input.len() - at)) + 1;
                drop(input.drain(at..at + length));
            }
            5 => {
                let length = rng.below(64.min(input.len() - at)) + 1;
                let copy = input[at..at + length].to_vec();
                drop(input.splice(at..at, copy));
            }
            6 => input.truncate(at),
            7 | 8 => self.overwrite(input, at),
            _ => {
                let other = &self.pool[rng.below(self.pool.len())];
                let from = rng.below(other.len() + 1);
                input.truncate(at);
                input.extend(&other[from..]);
            }
        }
    }

    /// A length or a number becomes one that code tends to forget.
    fn overwrite(&mut self, input: &mut [u8], at: usize) {
        let number = NUMBERS[self.rng.below(NUMBERS.len())];
        let width = [2, 4, 8][self.rng.below(3)];
        let bytes = if self.rng.below(2) == 0 {
            number.to_le_bytes()[..width].to_vec()
        } else {
            number.to_be_bytes()[8 - width..].to_vec()
        };
        for (place, byte) in input[at..].iter_mut().zip(bytes) {
            *place = byte;
        }
    }
}

/// No input is longer; a request is at most 160 KiB, and long ones go the same way as short ones.
const LONGEST: usize = 16 * 1024;
/// First bytes of `MessagePack`'s kinds, and what separates numbers.
const TELLING: [u8; 22] = [
    0x00, 0x01, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xc4, 0xc6, 0xcf, 0xd9,
    0xdb, 0xdc, 0xdd, 0xdf, 0xe0, 0xff,
];
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ffff,
];
