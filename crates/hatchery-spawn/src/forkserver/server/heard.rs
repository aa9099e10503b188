//! When a client gives up on what it has asked for. Pure.

/// What a client has heard, and how long it waits for more. It is reckoned here as the client itself
/// does, so that nothing is forked for nobody, and nothing refused for which somebody still waits,
/// behind others of its requests (H26). All times are nanoseconds of CLOCK_MONOTONIC.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// When something was last said to it.
    said: u64,
    /// How long it waits for the next word.
    patience: u64,
    /// When a word came too late: it had given up on all that was due before.
    late: u64,
}

impl Heard {
    /// A client that was told then that it may ask.
    pub(super) fn greeted(said: u64) -> Self {
        Self { said, ..Self::default() }
    }

    /// Whether it has given up on a request. `deadline` is a patience after it was sent.
    pub(super) fn has_given_up(&mut self, deadline: u64, patience: u64, now: u64) -> bool {
        self.patience = patience;
        let due = deadline.max(self.said.saturating_add(patience));
        deadline < self.late || due < now
    }

    /// When it must hear something, that it may wait on for what it has asked for: long before it gives
    /// up.
    pub(super) fn next_word(&self, deadline: u64, patience: u64) -> u64 {
        let since = self.said.max(deadline.saturating_sub(patience));
        since.saturating_add((patience / 4).max(LEAST_PAUSE))
    }

    /// Something was said to it.
    pub(super) fn told(&mut self, now: u64) {
        if self.said.saturating_add(self.patience) < now {
            self.late = now;
        }
        self.said = now;
    }
}

/// Nobody is told more often that he has to wait: a tenth of a second, in nanoseconds.
const LEAST_PAUSE: u64 = 100_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// H26: of a hundred requests that were sent at once the last is still waited for, though each of
    /// them takes most of a patience.
    #[test]
    fn who_is_told_of_others_waits_on() {
        let mut heard = Heard::default();
        let (sent, patience) = (1_000, 10);
        let mut now = sent;
        for _ in 0..100 {
            now += 8;
            assert!(!heard.has_given_up(sent + patience, patience, now));
            heard.told(now);
        }
        // Nothing is said any more.
        assert!(!heard.has_given_up(sent + patience, patience, now + patience));
        assert!(heard.has_given_up(sent + patience, patience, now + patience + 1));
    }

    /// Who has to wait for its turn, and is told so in time, waits for as long as it takes.
    #[test]
    fn who_is_told_in_time_never_gives_up() {
        let mut heard = Heard::default();
        let (patience, sent) = (5_000_000_000, 100_000_000_000);
        let (deadline, mut now) = (sent + patience, sent);
        while now < sent + 20 * patience {
            assert!(!heard.has_given_up(deadline, patience, now));
            let next = heard.next_word(deadline, patience);
            assert!(now < next && next <= now + patience / 2, "{next} at {now}");
            now = next;
            heard.told(now);
        }
        assert_eq!(heard.next_word(0, 0), now + LEAST_PAUSE);
    }

    /// H26: after a silence nothing of what was asked for before it is forked, whatever is said then;
    /// what is asked for later is.
    #[test]
    fn a_word_that_comes_too_late_brings_nothing_back() {
        let mut heard = Heard::default();
        let patience = 10;
        assert!(!heard.has_given_up(1_000 + patience, patience, 1_001));
        heard.told(1_001);
        // Stopped; sixty-four requests come, and a second later it goes on.
        let now = 2_000;
        for _ in 0..64 {
            assert!(heard.has_given_up(1_005 + patience, patience, now));
            heard.told(now);
        }
        assert!(!heard.has_given_up(1_995 + patience, patience, now));
    }
}
