//! The pages that name tests: what they name is there, and every hang class has a guard that was
//! seen to fail.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the project begins.
fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(page: &str) -> String {
    fs::read_to_string(home().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"))
}

/// The names of all tests in the sources.
fn tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for room in ["crates", "tests", "fuzz"] {
        sources(&home().join(room), &mut found);
    }
    assert!(found.len() > 300, "{} tests", found.len());
    found
}

fn sources(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "target" {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.extend(tests_of(&fs::read_to_string(path).unwrap()));
        }
    }
}

/// Functions below `#[test]`, and rows of tables from which tests are made.
fn tests_of(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        let function = line.trim_start_matches("pub ").trim_start_matches("async ");
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(name) = function.strip_prefix("fn ") {
            if std::mem::take(&mut is_test) {
                names.push(name.split(['(', '<']).next().unwrap().to_owned());
            }
        } else if let Some(row) = line.strip_prefix("(\"") {
            names.push(row.split('"').next().unwrap().to_owned());
        } else if let Some((row, _)) = line.split_once(": SIG") {
            names.push(row.to_owned());
        }
    }
    names
}

/// What stands between backticks and is a sentence, as all tests are.
fn named(text: &str) -> Vec<&str> {
    let quoted = text.split('`').skip(1).step_by(2).flat_map(str::split_whitespace);
    let is_name = |word: &&str| {
        let mut letters = word.bytes();
        letters.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
            && word.matches('_').count() >= 2
    };
    quoted.filter(is_name).collect()
}

/// The cells of a table's rows, without its head.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// The guards that were seen to fail, and the index of them by class.
fn guards(page: &str) -> (BTreeSet<&str>, Vec<(&str, Vec<&str>)>) {
    let (index, seen) = page.split_once("## Guard by guard").expect("two parts");
    let seen = rows(seen).into_iter().flat_map(|row| named(row[0])).collect();
    let index = rows(index).into_iter().filter(|row| row[0].starts_with('H') && row.len() == 2);
    (seen, index.map(|row| (row[0], named(row[1]))).collect())
}

/// Whatever a page calls a test is one.
#[test]
fn every_test_that_a_page_names_exists() {
    let tests = tests();
    let whole = [
        "docs/scenarios.md",
        "docs/scenarios-contexts.md",
        "docs/scenarios-ends.md",
        "docs/faults.md",
    ];
    for page in whole {
        let text = read(page);
        let named = named(&text);
        assert!(named.len() > 10, "{page}: {named:?}");
        for name in named {
            assert!(tests.contains(name), "{page}: there is no test `{name}`");
        }
    }
    let page = read("docs/guards.md");
    let (seen, _) = guards(&page);
    assert!(seen.len() > 50, "{seen:?}");
    for name in seen {
        assert!(tests.contains(name), "docs/guards.md: there is no test `{name}`");
    }
}

/// Each class has a page, each page names tests, and one of them at least was seen to fail.
#[test]
fn every_hang_class_has_a_guard_that_was_seen_to_fail() {
    let (tests, page) = (tests(), read("docs/guards.md"));
    let (seen, index) = guards(&page);
    for (number, (class, guards)) in (1..).zip(&index) {
        assert_eq!(*class, format!("H{number}"));
        let page = format!("ai/conc-anal/H{number:02}.md");
        let text = read(&page);
        let (_, list) = text.split_once("\ntest: ").unwrap_or_else(|| panic!("{page}: no test"));
        let listed = named(list);
        for name in &listed {
            assert!(tests.contains(*name), "{page}: there is no test `{name}`");
        }
        assert!(!guards.is_empty(), "{class} has no guard");
        for name in guards {
            assert!(seen.contains(name), "{class}: nobody saw `{name}` fail");
            assert!(listed.contains(name), "{page} doesn't name `{name}`");
        }
    }
    let pages = fs::read_dir(home().join("ai/conc-anal")).unwrap().map(Result::unwrap);
    let pages = pages.filter(|page| page.file_name().to_string_lossy().starts_with('H')).count();
    assert_eq!(index.len(), pages, "a row for each page");
}
