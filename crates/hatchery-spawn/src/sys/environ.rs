//! The list of variables that libc and std read: put in place as a whole, where only one thread
//! exists. See environ(7).

use std::ffi::{CStr, c_char};
use std::ops::Range;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// A list of C strings in the form that exec takes, with one place more for a last entry.
#[derive(Debug)]
pub(crate) struct Entries {
    /// The strings, each with its null. Never changed: the pointers lead into it.
    texts: Box<[u8]>,
    /// The last two are null: a place, and the end.
    pointers: Vec<*const c_char>,
}

impl Entries {
    /// `texts` holds entries that end with a null each; what comes after the last null is left out.
    pub(crate) fn new(texts: Vec<u8>) -> Self {
        let texts = texts.into_boxed_slice();
        let mut pointers: Vec<*const c_char> =
            split(&texts).map(|range| texts[range].as_ptr().cast()).collect();
        pointers.extend([std::ptr::null(); 2]);
        Self { texts, pointers }
    }

    /// All entries, each with its null.
    pub(crate) fn texts(&self) -> &[u8] {
        &self.texts
    }

    /// Makes `last`, if there is one, the last entry, and all of it what libc, std and exec see from
    /// here on. Only between fork and main, once: it stays for the life of the process.
    pub(crate) fn enact(&self, last: Option<&'static CStr>) {
        let mut pointers = self.pointers.clone();
        let place = pointers.len() - 2;
        pointers[place] = last.map_or(std::ptr::null(), CStr::as_ptr);
        let pointers = pointers.leak().as_mut_ptr();
        // SAFETY: the caller's process has a single thread, so nobody reads meanwhile. The list ends
        // with null and is leaked; the texts live as long as the forkserver, whose copy this process
        // is, and it drops nothing of that one's.
        unsafe { environ = pointers };
        remember(pointers);
    }
}

/// Remembers the list that this process begins with: it, and what it leads to, is never freed. Called
/// where only one thread exists.
pub(crate) fn remember(list: *mut *const c_char) {
    LIST.store(list, Ordering::Relaxed);
    let (mut low, mut high) = (usize::MAX, 0);
    for entry in entries(list).map(<*const c_char>::addr) {
        (low, high) = (low.min(entry), high.max(entry));
    }
    LOW.store(low, Ordering::Relaxed);
    HIGH.store(high, Ordering::Relaxed);
}

/// Where the entries are, if the list is the one that this process began with and all in it was there
/// then: nobody writes to such entries, so where they are tells what they are. `None` once a variable was
/// set; who has removed some has fewer. For any thread.
pub(crate) fn as_begun() -> Option<Vec<usize>> {
    let list = &raw mut environ;
    // SAFETY: it lies there for ever; other threads may write it meanwhile.
    let list = unsafe { AtomicPtr::from_ptr(list) }.load(Ordering::Relaxed);
    if list.is_null() || list != LIST.load(Ordering::Relaxed) {
        return None;
    }
    let known = LOW.load(Ordering::Relaxed)..=HIGH.load(Ordering::Relaxed);
    entries(list).map(<*const c_char>::addr).map(|at| known.contains(&at).then_some(at)).collect()
}

/// The entries of a list that was remembered.
fn entries(list: *mut *const c_char) -> impl Iterator<Item = *const c_char> {
    (0..).map_while(move |at| {
        // SAFETY: the list is never freed and ends with null, which is not passed.
        let place = unsafe { list.add(at) };
        // SAFETY: as above; other threads may change entries meanwhile, but not the end.
        let entry = unsafe { AtomicPtr::from_ptr(place.cast::<*mut c_char>()) };
        let entry = entry.load(Ordering::Relaxed);
        (!entry.is_null()).then_some(entry.cast_const())
    })
}

static LIST: AtomicPtr<*const c_char> = AtomicPtr::new(std::ptr::null_mut());
static LOW: AtomicUsize = AtomicUsize::new(0);
static HIGH: AtomicUsize = AtomicUsize::new(0);

/// Where each entry is, with its null.
fn split(texts: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut from = 0;
    texts.iter().enumerate().filter(|(_, byte)| **byte == 0).map(move |(at, _)| {
        let range = from..at + 1;
        from = at + 1;
        range
    })
}

/// The list as it is now, for an exec.
pub(crate) fn pointers() -> Vec<*const c_char> {
    let mut all = Vec::new();
    // SAFETY: only single-threaded processes of ours call this.
    let mut at = unsafe { environ }.cast_const();
    // SAFETY: the list ends with null, which is not passed.
    while let Some(&entry) = unsafe { at.as_ref() }.filter(|entry| !entry.is_null()) {
        all.push(entry);
        // SAFETY: as above.
        at = unsafe { at.add(1) };
    }
    all
}

unsafe extern "C" {
    static mut environ: *mut *const c_char;
}
