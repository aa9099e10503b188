//! Variables: those of this process as they are now, and those of a child that are made of them.
//!
//! As text they are entries that end with a null each, in their order, whatever is in them.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use crate::prelude::MARK;
use crate::spec::Spec;
use crate::sys::environ::{self, Entries};

/// The variables of this process but for its mark, which is its own.
///
/// As long as nobody has set one they are gathered once: with thousands of them that takes as long as the
/// start.
pub(crate) fn own() -> Arc<[u8]> {
    /// Where they were, and what they are.
    type Seen = (Vec<usize>, Arc<[u8]>);
    static SEEN: Mutex<Option<Seen>> = Mutex::new(None);
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let before = environ::as_begun();
    if let (Some(before), Some((at, texts))) = (&before, &*seen)
        && before == at
    {
        return texts.clone();
    }
    let texts: Arc<[u8]> = gather().into();
    *seen = environ::as_begun()
        .filter(|after| Some(after) == before.as_ref())
        .map(|at| (at, texts.clone()));
    texts
}

/// Read by std's functions, so under the lock that its writers take.
fn gather() -> Vec<u8> {
    let mut odd = odd_ones().clone().into_iter().peekable();
    let mut texts = Vec::with_capacity(4096);
    for (at, (key, value)) in std::env::vars_os().enumerate() {
        while let Some(entry) = odd.next_if(|entry| entry.at <= at) {
            texts.extend(entry.text);
        }
        if key.as_bytes() != MARK.as_bytes() {
            for part in [key.as_bytes(), b"=", value.as_bytes(), b"\0"] {
                texts.extend(part);
            }
        }
    }
    texts.extend(odd.flat_map(|entry| entry.text));
    texts
}

/// An entry that no function of std or libc reads, sets or removes: it has no name and value.
#[derive(Debug, Clone)]
struct Odd {
    /// How many others come before it.
    at: usize,
    /// With its null.
    text: Vec<u8>,
}

/// Remembers which entries of what this process begins with are odd. Called before anybody asks.
pub(crate) fn remember_odd<'a>(entries: impl Iterator<Item = &'a [u8]>) {
    let mut odd = Vec::new();
    let mut at = 0;
    for entry in entries {
        // A name may begin with `=`.
        if entry.get(1..).is_some_and(|rest| rest.contains(&b'=')) {
            at += 1;
        } else {
            odd.push(Odd { at, text: [entry, b"\0"].concat() });
        }
    }
    *odd_ones() = odd;
}

fn odd_ones() -> std::sync::MutexGuard<'static, Vec<Odd>> {
    static ODD: Mutex<Vec<Odd>> = Mutex::new(Vec::new());
    ODD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One change: sets a variable, or removes it.
pub(crate) type Change = (Vec<u8>, Option<Vec<u8>>);

/// What becomes of variables by these changes: what is set stands where it stood before, or at the end
/// in the order of the changes; the last change of a name counts.
pub(crate) fn changed(texts: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut last: BTreeMap<&[u8], (usize, Option<&[u8]>)> = BTreeMap::new();
    for (at, (key, value)) in changes.iter().enumerate() {
        last.insert(key, (at, value.as_deref()));
    }
    let mut out = Vec::with_capacity(texts.len());
    for entry in texts.split_inclusive(|byte| *byte == 0) {
        match name_of(entry).and_then(|name| last.get_mut(name).map(|change| (name, change))) {
            None => out.extend(entry),
            // At its first place, if it is there more than once.
            Some((name, (_, value))) => {
                if let Some(value) = value.take() {
                    push(&mut out, name, value);
                }
            }
        }
    }
    let mut new: Vec<_> =
        last.into_iter().filter_map(|(key, (at, value))| Some((at, key, value?))).collect();
    new.sort_unstable_by_key(|(at, ..)| *at);
    for (_, key, value) in new {
        push(&mut out, key, value);
    }
    out
}

fn push(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    for part in [key, b"=", value, b"\0"] {
        out.extend(part);
    }
}

/// The name in an entry, as std and libc see it; one that has none is nobody's to change.
fn name_of(entry: &[u8]) -> Option<&[u8]> {
    let end = entry.iter().skip(1).position(|byte| *byte == b'=')?;
    Some(&entry[..=end])
}

/// Puts the variables of a child in place: its spawner's, which may be none, with these changes and
/// the mark. Only between fork and main.
pub(crate) fn enact(base: Option<&Entries>, changes: &[Change], mark: Option<(&str, &str)>) {
    let mark = mark.and_then(|(name, mark)| {
        let text = std::ffi::CString::new(format!("{name}={mark}")).ok()?;
        let text: &'static std::ffi::CStr = Box::leak(text.into_boxed_c_str());
        Some(text)
    });
    let changes: Vec<Change> = match mark {
        // It has the last word.
        Some(_) => changes.iter().filter(|(key, _)| key != MARK.as_bytes()).cloned().collect(),
        None => changes.to_vec(),
    };
    let entries = match base {
        Some(base) if changes.is_empty() => base,
        base => {
            let texts = base.map_or(&[][..], Entries::texts);
            // They are in use for as long as this process lives.
            Box::leak(Box::new(Entries::new(changed(texts, &changes))))
        }
    };
    remember_odd(entries.texts().split_inclusive(|byte| *byte == 0).map(without_null));
    entries.enact(mark);
}

fn without_null(entry: &[u8]) -> &[u8] {
    entry.strip_suffix(b"\0").unwrap_or(entry)
}

/// Whether a program's arguments and variables are more than any kernel takes: three quarters of the
/// 8 MiB that a stack has by default. What is less is for the kernel to judge.
pub(crate) fn exceeds(spec: &Spec, environment: Option<&[u8]>) -> bool {
    let args = spec.args.iter().chain(&spec.arg0).map(|arg| arg.len() + 1);
    let set =
        spec.env.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, |it| it.len()));
    let all: usize = args.chain(set).chain(environment.map(<[u8]>::len)).sum();
    all > MOST
}

const MOST: usize = 6 * 1024 * 1024;
/// The most that a process's variables may be, in bytes: more than the kernel takes in an exec.
pub(crate) const MAX_ENVIRONMENT: usize = 8 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &str, value: Option<&str>) -> Change {
        (key.into(), value.map(Into::into))
    }

    /// C18: order and odd entries stay; a change is made where the variable stood.
    #[test]
    fn changes_keep_the_order_and_what_nobody_named() {
        let texts = b"B=1\0odd\0=A=b\0\0A=2\0B=3\0C==\0".to_vec();
        assert_eq!(changed(&texts, &[]), texts);
        let changes = [
            change("Z", Some("0")),
            change("B", None),
            change("B", Some("x")),
            change("C", None),
            change("Y", Some("=")),
            change("none", None),
        ];
        assert_eq!(changed(&texts, &changes), b"B=x\0odd\0=A=b\0\0A=2\0Z=0\0Y==\0");
        assert_eq!(changed(b"", &changes), b"Z=0\0B=x\0Y==\0");
    }

    #[test]
    fn an_odd_entry_has_no_name() {
        assert_eq!(name_of(b"=A=b\0"), Some(&b"=A"[..]));
        assert_eq!(name_of(b"A=\0"), Some(&b"A"[..]));
        for odd in [&b"odd\0"[..], b"=\0", b"=A\0", b"\0"] {
            assert_eq!(name_of(odd), None);
        }
    }
}
