//! Handlers that count a signal for all who listen, and pass it on to the handler that was there
//! before. See sigaction(2), signal-safety(7).
//!
//! Somebody else may install a handler over ours and keep ours as the one to pass on to, for ever, as
//! tokio's does. So ours can't always be taken off, and a second one over that handler must not be the
//! same function: the two would call each other without end. There are a few, [`LAYERS`] for each
//! signal. If others lie over all of them, one is used again, and notes which threads are in it, so that
//! it isn't called by what it has called. Only the one that was installed last counts, and one that the
//! kernel calls, as what lay over it was taken off again; one that nobody listens to does what would have
//! been done without it.
//!
//! A copy of the process (fork(2)) has the handlers too, but nobody listens there: it does what would
//! have been done without them.

use std::ffi::{c_int, c_void};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nix::errno::Errno;
use nix::libc;

use crate::sys::owner::is_copy;

/// Where one listener's signals are counted. Never freed, as a handler may look at it at any time;
/// given to the next one when its listener has gone.
#[derive(Debug)]
pub(crate) struct Listener {
    is_taken: AtomicBool,
    /// Which signals it wants, as bits by number.
    wanted: AtomicU64,
    counted: AtomicU64,
    /// The eventfd that wakes it; -1 for none.
    wake: AtomicI32,
    next: OnceLock<Box<Self>>,
}

impl Listener {
    const fn new() -> Self {
        Self {
            is_taken: AtomicBool::new(false),
            wanted: AtomicU64::new(0),
            counted: AtomicU64::new(0),
            wake: AtomicI32::new(-1),
            next: OnceLock::new(),
        }
    }

    /// A place that nobody has.
    pub(crate) fn claim(wake: RawFd) -> &'static Self {
        let mut at = &FIRST;
        while at.is_taken.swap(true, Ordering::SeqCst) {
            at = at.next.get_or_init(|| Box::new(Self::new()));
        }
        at.counted.store(0, Ordering::SeqCst);
        at.wake.store(wake, Ordering::SeqCst);
        at
    }

    /// The signals counted since the last call.
    pub(crate) fn take(&self) -> u64 {
        self.counted.swap(0, Ordering::SeqCst)
    }

    /// Counts that signal from now on, and is the first to get it. May be said again: then it is on
    /// top of whatever was installed since.
    pub(crate) fn hold(&self, signal: c_int) -> Result<(), Errno> {
        let mut all = states();
        let state = state_of(&mut all, signal)?;
        state.install(signal)?;
        if self.wanted.fetch_or(bit(signal), Ordering::SeqCst) & bit(signal) == 0 {
            state.listeners += 1;
        }
        Ok(())
    }

    /// Listens no more. Where nobody else does, each signal gets back what was in force before, if what
    /// is in force is still ours. When this returns, no handler writes to the eventfd any more.
    pub(crate) fn release(&self) {
        let mut all = states();
        let wanted = self.wanted.swap(0, Ordering::SeqCst);
        for signal in (1..64).filter(|signal| wanted & bit(*signal) != 0) {
            let Ok(state) = state_of(&mut all, signal) else { continue };
            state.listeners -= 1;
            if state.listeners == 0 {
                state.uninstall(signal);
            }
        }
        drop(all);
        self.wake.store(-1, Ordering::SeqCst);
        // A handler makes one write between these counts; only a copy made in that moment has one that
        // never ends.
        for _ in 0..MOST_LOOKS {
            if COUNTING.load(Ordering::SeqCst) == 0 {
                break;
            }
            std::thread::yield_now();
        }
        self.is_taken.store(false, Ordering::SeqCst);
    }

    /// Async-signal-safe.
    fn count(&self, signal: c_int) {
        if self.wanted.load(Ordering::SeqCst) & bit(signal) == 0 {
            return;
        }
        self.counted.fetch_or(bit(signal), Ordering::SeqCst);
        let fd = self.wake.load(Ordering::SeqCst);
        if fd >= 0 {
            let one = 1_u64;
            // SAFETY: async-signal-safe. A full eventfd is fine: the bit is set, the reader awake. The
            // number is the listener's: it waits for `COUNTING` before it closes it.
            unsafe { libc::write(fd, (&raw const one).cast(), size_of::<u64>()) };
        }
    }
}

/// One of our handlers for one signal.
#[derive(Clone, Copy)]
enum Layer {
    Free,
    /// In force, with what was before.
    Installed(libc::sigaction),
    /// Somebody else's is in force, who may call ours.
    Buried(libc::sigaction),
}

/// What stands for one signal.
#[derive(Clone, Copy)]
struct State {
    listeners: usize,
    layers: [Layer; LAYERS],
    /// Which was used again last, when none was free.
    oldest: usize,
}

impl State {
    const NONE: Self = Self { listeners: 0, layers: [Layer::Free; LAYERS], oldest: LAYERS - 1 };

    fn install(&mut self, signal: c_int) -> Result<(), Errno> {
        let now = in_force(signal)?;
        if let Some(layer) = layer_of(&now) {
            self.layers[layer] = match self.layers[layer] {
                // It may have been uncovered.
                Layer::Installed(before) | Layer::Buried(before) => Layer::Installed(before),
                // Somebody has put it there who had seen it in force.
                Layer::Free => {
                    CHAINS[index(signal)][layer].pass_to(&default());
                    Layer::Installed(default())
                }
            };
            TOP[index(signal)].store(number(layer), Ordering::SeqCst);
            return Ok(());
        }
        let layer = self.unused();
        if !matches!(self.layers[layer], Layer::Free) {
            CHAINS[index(signal)][layer].is_reused.store(true, Ordering::SeqCst);
        }
        let chain = &CHAINS[index(signal)][layer];
        chain.pass_to(&now);
        let before = set(signal, &ours(layer, &now))?;
        // Another one may have come in between.
        chain.pass_to(&before);
        for other in &mut self.layers {
            if let Layer::Installed(before) = *other {
                *other = Layer::Buried(before);
            }
        }
        self.layers[layer] = Layer::Installed(before);
        TOP[index(signal)].store(number(layer), Ordering::SeqCst);
        Ok(())
    }

    /// A layer that is free; or the one that was buried first of all, if others lie over each.
    fn unused(&mut self) -> usize {
        let is_free = |layer: &Layer| matches!(layer, Layer::Free);
        self.layers.iter().position(is_free).unwrap_or_else(|| {
            self.oldest = (self.oldest + 1) % LAYERS;
            self.oldest
        })
    }

    fn uninstall(&mut self, signal: c_int) {
        TOP[index(signal)].store(NOBODY, Ordering::SeqCst);
        for (layer, state) in self.layers.iter_mut().enumerate() {
            let (Layer::Installed(before) | Layer::Buried(before)) = *state else { continue };
            if !is_in_force(signal, layer) {
                *state = Layer::Buried(before);
                continue;
            }
            let before = CHAINS[index(signal)][layer].left_of(before);
            match set(signal, &before) {
                Ok(replaced) if layer_of(&replaced) == Some(layer) => *state = Layer::Free,
                // Somebody came in between, and stays.
                Ok(replaced) => {
                    let _stays = set(signal, &replaced);
                    *state = Layer::Buried(before);
                }
                Err(_) => *state = Layer::Buried(before),
            }
        }
    }
}

/// What a layer passes a signal on to. Read by handlers, so every combination of old and new values
/// must be sound: a pointer is only ever in the place of its own kind.
struct Chain {
    kind: AtomicU8,
    /// A handler of one argument.
    plain: AtomicUsize,
    /// A handler of three (`SA_SIGINFO`).
    informed: AtomicUsize,
    /// `SA_RESETHAND`: it wants to be called once.
    once: AtomicBool,
    /// It was buried and is used again: what it calls may call it, and `inside` tells.
    is_reused: AtomicBool,
    /// The threads that are in this handler, if it is one that is used again.
    inside: [AtomicI32; MOST_INSIDE],
}

impl Chain {
    const fn new() -> Self {
        Self {
            kind: AtomicU8::new(DEFAULT),
            plain: AtomicUsize::new(0),
            informed: AtomicUsize::new(0),
            once: AtomicBool::new(false),
            is_reused: AtomicBool::new(false),
            inside: [const { AtomicI32::new(0) }; MOST_INSIDE],
        }
    }

    /// Notes that this thread is inside, until its place is 0 again; `None` if it was already, or if there
    /// is no room to note it.
    fn enter(&self) -> Option<&AtomicI32> {
        let thread = this_thread();
        if self.inside.iter().any(|one| one.load(Ordering::SeqCst) == thread) {
            return None;
        }
        let take = |one: &&AtomicI32| {
            one.compare_exchange(0, thread, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        };
        self.inside.iter().find(take)
    }

    fn pass_to(&self, before: &libc::sigaction) {
        let handler = before.sa_sigaction;
        let (kind, plain, informed) = match handler {
            libc::SIG_DFL => (DEFAULT, 0, 0),
            libc::SIG_IGN => (IGNORED, 0, 0),
            handler if before.sa_flags & libc::SA_SIGINFO != 0 => (HANDLED, 0, handler),
            handler => (HANDLED, handler, 0),
        };
        self.once.store(before.sa_flags & libc::SA_RESETHAND != 0, Ordering::SeqCst);
        self.plain.store(plain, Ordering::SeqCst);
        self.informed.store(informed, Ordering::SeqCst);
        self.kind.store(kind, Ordering::SeqCst);
    }

    /// What is to be given back: one that was called for its only time has left the default.
    fn left_of(&self, before: libc::sigaction) -> libc::sigaction {
        let is_spent = before.sa_flags & libc::SA_RESETHAND != 0
            && self.kind.load(Ordering::SeqCst) == DEFAULT
            && before.sa_sigaction != libc::SIG_DFL;
        if is_spent { default() } else { before }
    }

    /// Calls it, if it is a handler. Async-signal-safe as far as that is.
    fn pass_on(&self, signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
        let (plain, informed) = if self.once.load(Ordering::SeqCst) {
            self.kind.store(DEFAULT, Ordering::SeqCst);
            (self.plain.swap(0, Ordering::SeqCst), self.informed.swap(0, Ordering::SeqCst))
        } else {
            (self.plain.load(Ordering::SeqCst), self.informed.load(Ordering::SeqCst))
        };
        if informed != 0 {
            // SAFETY: the kernel held it as this signal's handler with `SA_SIGINFO`: it is of this type.
            let handler = unsafe { std::mem::transmute::<usize, Informed>(informed) };
            handler(signal, info, context);
        } else if plain != 0 {
            // SAFETY: the same without `SA_SIGINFO`.
            let handler = unsafe { std::mem::transmute::<usize, Plain>(plain) };
            handler(signal);
        }
    }
}

type Plain = extern "C" fn(c_int);
type Informed = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// The handlers themselves. Async-signal-safe.
extern "C" fn counting<const LAYER: usize>(
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
) {
    let errno = Errno::last_raw();
    let chain = &CHAINS[index(signal)][LAYER];
    let is_reused = chain.is_reused.load(Ordering::SeqCst);
    let inside = is_reused.then(|| chain.enter());
    if matches!(inside, Some(None)) {
        // Called by what it has called itself.
        return Errno::set_raw(errno);
    }
    let top = TOP[index(signal)].load(Ordering::SeqCst);
    if is_copy() || top == NOBODY {
        if chain.kind.load(Ordering::SeqCst) == DEFAULT {
            as_default(signal, LAYER);
        }
    } else if top == number(LAYER) || is_in_force(signal, LAYER) {
        count(signal);
    }
    Errno::set_raw(errno);
    chain.pass_on(signal, info, context);
    if let Some(Some(place)) = inside {
        place.store(0, Ordering::SeqCst);
    }
}

/// Counts it for all who want it. Async-signal-safe.
fn count(signal: c_int) {
    COUNTING.fetch_add(1, Ordering::SeqCst);
    let mut at = Some(&FIRST);
    while let Some(listener) = at {
        listener.count(signal);
        at = listener.next.get().map(|next| &**next);
    }
    COUNTING.fetch_sub(1, Ordering::SeqCst);
}

fn this_thread() -> i32 {
    // SAFETY: it can't fail.
    unsafe { libc::gettid() }
}

/// Nobody listens, and without us the signal would do what it does by default. Called by a handler
/// that lies over ours it does nothing: without us that one would have had nobody to call.
fn as_default(signal: c_int, layer: usize) {
    if is_in_force(signal, layer) {
        let _set = set(signal, &default());
        // SAFETY: async-signal-safe. It is blocked until the handler returns.
        unsafe { libc::raise(signal) };
    }
}

/// In one place of memory, so that each has one address to be known by.
static HANDLERS: [Informed; LAYERS] = [counting::<0>, counting::<1>, counting::<2>, counting::<3>];

/// Which of ours it is.
fn layer_of(action: &libc::sigaction) -> Option<usize> {
    HANDLERS.iter().position(|handler| *handler as usize == action.sa_sigaction)
}

/// Our own, which interrupts and blocks as that one does which it calls. Alone it takes the stack that a
/// thread has for signals: a thread of the host's may have little room on its own, as Go's have.
fn ours(layer: usize, before: &libc::sigaction) -> libc::sigaction {
    let mut action = default();
    action.sa_sigaction = HANDLERS[layer] as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    // One at a time: that stack may be of the least size, and one frame with all registers of a modern
    // processor fills it.
    // SAFETY: fills the set that it is given.
    unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    if !matches!(before.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) {
        let kept = libc::SA_RESTART | libc::SA_ONSTACK | libc::SA_NODEFER;
        action.sa_flags = libc::SA_SIGINFO | (before.sa_flags & kept);
        action.sa_mask = before.sa_mask;
    }
    action
}

/// The default of any signal.
fn default() -> libc::sigaction {
    // SAFETY: all-zero is a valid sigaction: the default, an empty mask, no flags.
    unsafe { std::mem::zeroed() }
}

fn in_force(signal: c_int) -> Result<libc::sigaction, Errno> {
    let mut now = default();
    // SAFETY: nothing is set, and `now` is ours to be written to.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut now) };
    Errno::result(asked).map(|_| now)
}

/// Whether that one of ours is what the kernel calls: also one that lay below others, which were taken
/// off again. Async-signal-safe.
fn is_in_force(signal: c_int, layer: usize) -> bool {
    in_force(signal).is_ok_and(|now| layer_of(&now) == Some(layer))
}

/// Gives back what was in force before.
fn set(signal: c_int, action: &libc::sigaction) -> Result<libc::sigaction, Errno> {
    let mut before = default();
    // SAFETY: `action` came from the kernel for this very signal, is the default, or is one of the
    // handlers above, which make async-signal-safe calls only.
    let result = unsafe { libc::sigaction(signal, std::ptr::from_ref(action), &raw mut before) };
    Errno::result(result).map(|_| before)
}

fn states() -> MutexGuard<'static, [State; SIGNALS]> {
    STATES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn state_of(all: &mut [State; SIGNALS], signal: c_int) -> Result<&mut State, Errno> {
    let number = usize::try_from(signal).map_err(|_| Errno::EINVAL)?;
    all.get_mut(number).filter(|_| signal > 0).ok_or(Errno::EINVAL)
}

/// A signal that the kernel gave, or that `state_of` let through, has its place.
fn index(signal: c_int) -> usize {
    usize::try_from(signal).unwrap_or(0) % SIGNALS
}

fn bit(signal: c_int) -> u64 {
    1 << index(signal)
}

#[allow(clippy::cast_possible_truncation, reason = "there are four")]
const fn number(layer: usize) -> u8 {
    layer as u8
}

/// Those below 64; real-time signal 64 has no bit.
const SIGNALS: usize = 64;
/// How many of ours there are for a signal: one, and one for each handler of somebody else's that was
/// installed over ours and never taken off.
const LAYERS: usize = 4;
/// In `TOP`: none of ours counts.
const NOBODY: u8 = u8::MAX;
/// In `Chain::kind`: what was in force before.
const DEFAULT: u8 = 0;
const IGNORED: u8 = 1;
const HANDLED: u8 = 2;
/// How many threads may be in a handler that is used again, beside each other.
const MOST_INSIDE: usize = 8;
/// How often one looks whether the handlers that run have made their write.
const MOST_LOOKS: u32 = 100_000;

static FIRST: Listener = Listener::new();
static STATES: Mutex<[State; SIGNALS]> = Mutex::new([State::NONE; SIGNALS]);
static CHAINS: [[Chain; LAYERS]; SIGNALS] = [const { [const { Chain::new() }; LAYERS] }; SIGNALS];
/// Which layer of a signal counts.
static TOP: [AtomicU8; SIGNALS] = [const { AtomicU8::new(NOBODY) }; SIGNALS];
/// How many handlers are at their counting.
static COUNTING: AtomicUsize = AtomicUsize::new(0);
