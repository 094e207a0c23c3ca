//! A mirror's vital signs: when it was last heard, and what it has been asked since then.
//!
//! A mirror is silent if nothing at all comes from it while something is sent to it that wants an answer.
//! Each aggregate knows that of its own packets only. Where several are of one mirror, what one has
//! heard answers what the others have sent before ([`Vitals::settle`]).

/// What the packets of some connections show of their mirror. Moments are in nanoseconds on the engine's
/// clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vitals {
    heard: Option<u64>,
    unanswered: u64,
    /// When the first of those that are unanswered was sent.
    first: u64,
    /// When the last of them was.
    last: u64,
}

impl Vitals {
    /// Something came from the mirror.
    pub fn hear(&mut self, now: u64) {
        self.heard = Some(now);
        self.unanswered = 0;
    }

    /// Something was sent to it that wants an answer.
    pub fn ask(&mut self, now: u64) {
        if self.unanswered == 0 {
            self.first = now;
        }
        self.unanswered += 1;
        self.last = now;
    }

    /// When something last came from it.
    pub fn heard(&self) -> Option<u64> {
        self.heard
    }

    /// How many were sent to it that want an answer, since something came from it.
    pub fn unanswered(&self) -> u64 {
        self.unanswered
    }

    /// When the first of these was sent.
    pub fn waiting_since(&self) -> Option<u64> {
        (self.unanswered > 0).then_some(self.first)
    }

    /// Takes note that others have heard the mirror at this moment, so that what was sent before needs no
    /// answer any more. How many were sent since isn't known, but that there was one is.
    pub fn settle(&mut self, heard: u64) {
        if self.unanswered == 0 || self.first >= heard {
            return;
        }
        self.unanswered = u64::from(self.last >= heard);
        self.first = self.last;
    }

    /// These and others of the same mirror together, after both have been settled.
    pub fn add(&mut self, other: &Self) {
        self.heard = self.heard.max(other.heard);
        if other.unanswered == 0 {
            return;
        }
        if self.unanswered == 0 {
            (self.first, self.last) = (other.first, other.last);
        }
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.unanswered += other.unanswered;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vitals(heard: Option<u64>, asked: &[u64]) -> Vitals {
        let mut vitals = Vitals::default();
        if let Some(heard) = heard {
            vitals.hear(heard);
        }
        asked.iter().for_each(|at| vitals.ask(*at));
        vitals
    }

    #[test]
    fn what_is_heard_answers_what_was_sent_before() {
        let mut silent = vitals(Some(10), &[20, 30]);
        assert_eq!((silent.unanswered(), silent.waiting_since()), (2, Some(20)));
        silent.hear(40);
        assert_eq!((silent.unanswered(), silent.waiting_since()), (0, None));
        assert_eq!(silent.heard(), Some(40));
    }

    #[test]
    fn what_others_have_heard_answers_it_too() {
        for (asked, heard, unanswered, since) in [
            // All before, all after, some of either.
            (&[20, 30][..], 35, 0, None),
            (&[20, 30], 15, 2, Some(20)),
            (&[20, 30, 40], 35, 1, Some(40)),
            // At the same moment: which was first isn't known, and it can't be said that it was answered.
            (&[20, 35], 35, 1, Some(35)),
            (&[], 35, 0, None),
        ] {
            let mut settled = vitals(None, asked);
            settled.settle(heard);
            assert_eq!(settled.unanswered(), unanswered, "{asked:?}, {heard}");
            assert_eq!(settled.waiting_since(), since, "{asked:?}, {heard}");
        }
    }

    #[test]
    fn what_was_sent_after_settling_counts_from_there() {
        let mut settled = vitals(None, &[20, 40]);
        settled.settle(35);
        settled.ask(50);
        settled.settle(35);
        assert_eq!(
            (settled.unanswered(), settled.waiting_since()),
            (2, Some(40))
        );
    }

    #[test]
    fn several_are_added_up() {
        let mut sum = Vitals::default();
        for other in [
            vitals(Some(10), &[30, 50]),
            vitals(Some(25), &[]),
            vitals(None, &[28]),
        ] {
            sum.add(&other);
        }
        assert_eq!(sum.heard(), Some(25));
        assert_eq!((sum.unanswered(), sum.waiting_since()), (3, Some(28)));
    }
}
