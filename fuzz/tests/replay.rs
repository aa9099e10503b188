//! C15, briefly, with every test run: the corpus, and spoiled input from a fixed seed.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use hatchery_fuzz::{Corpus, Fuzzer, TARGETS, Target};

/// Everything that was ever found, and all that was kept, is survived by every target: what breaks
/// one decoder is worth trying on another.
#[test]
fn the_corpus_is_survived_by_every_target() {
    let all: Vec<_> =
        TARGETS.iter().flat_map(|target| Corpus::of(target).read().unwrap()).collect();
    assert!(all.len() > 50, "the corpus is there");
    for target in &TARGETS {
        for (path, input) in &all {
            let survived = Fuzzer::new(*target, vec![input.clone()], 0);
            assert!(survived.is_ok(), "{}: {}: {survived:?}", target.name, path.display());
        }
    }
}

#[test]
fn spoiled_input_is_survived() {
    for target in TARGETS {
        let kept = Corpus::of(&target).read().unwrap().into_iter().map(|(_, input)| input);
        let mut fuzzer = Fuzzer::new(target, kept.collect(), 7).unwrap();
        for _ in 0..20_000 {
            fuzzer.prepare();
            if let Err(found) = fuzzer.run() {
                panic!("{}: {found:?}", target.name);
            }
        }
    }
}

/// The engine finds what hides three steps deep, and finds it again from its seed.
#[test]
fn what_is_broken_is_found_again_from_its_seed() {
    fn broken(input: &[u8]) -> u64 {
        match input {
            [b'h', 0xdd, 0xff, ..] => panic!("found"),
            [b'h', 0xdd, ..] => 2,
            [b'h', ..] => 1,
            _ => 0,
        }
    }
    let target = Target { name: "broken", run: broken, seeds: || vec![b"good".to_vec()] };
    let find = || {
        let mut fuzzer = Fuzzer::new(target, Vec::new(), 3).unwrap();
        (0..1_000_000).find_map(|run| {
            fuzzer.prepare();
            fuzzer.run().err().map(|found| (run, found))
        })
    };
    let first = find().expect("it is found");
    assert_eq!(first.1.message, "found");
    assert_eq!(find(), Some(first));
}
