//! What voters heard of leaders, and what a new leader learns of it: no right of an earlier reign is newer (rule R4).
//!
//! Must stay true:
//! - a voter notes the moment before its word can count for a leader: before it says yes to a confirmation round,
//!   before an entry that it takes is acknowledged. It notes nothing of a leader whose term it may not confirm any more;
//! - a voter says how long ago that was only after it has promised its vote, so that nothing older can follow;
//! - a candidate counts the newest of what the voters said and of its own; whoever does not remember heard it just now;
//! - what was counted for a term is used once: a second reign in the same term has rights of the first.
//!
//! The argument is in `docs/notes/0012-what-voters-heard.md`. Left out on purpose: deadlines (`sessions.rs`).

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use leaseward_state::Term;

use crate::clock::{GrantClock, KernelClock, Reading};

/// When this process last gave its word to a leader, itself included. Clones share it.
#[derive(Debug, Clone)]
pub struct LastWord {
    clock: Arc<dyn GrantClock>,
    at: Arc<Mutex<Option<Reading>>>,
}

impl Default for LastWord {
    fn default() -> Self {
        Self::on(Arc::new(KernelClock))
    }
}

impl LastWord {
    /// Returns that no word was given yet; `clock` says when one is.
    #[must_use]
    pub fn on(clock: Arc<dyn GrantClock>) -> Self {
        Self { clock, at: Arc::default() }
    }

    /// Notes that the word is given now.
    pub fn give(&self) {
        let mut at = self.lock();
        let now = self.clock.now();
        *at = Some(at.map_or(now, |before| before.max(now)));
    }

    /// Returns how long ago it was given, rather less; `None` if this process never gave it: one before it may have.
    #[must_use]
    pub fn ago(&self) -> Option<Duration> {
        let at = self.lock();
        at.map(|at| self.clock.now().since(at))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Reading>> {
        self.at.lock().expect("no holder of this lock panics")
    }
}

/// What the voters said to this candidate. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Ballots {
    own: LastWord,
    counted: Arc<Mutex<Counted>>,
}

#[derive(Debug, Default)]
struct Counted {
    /// The newest term with a vote, and the newest word that its voters gave to an earlier leader.
    newest: Option<(Term, Reading)>,
    /// Of this term and those before nothing is counted any more.
    used: Term,
}

impl Ballots {
    /// Returns that nobody has voted yet. `own` is what this node itself says.
    #[must_use]
    pub fn of(own: LastWord) -> Self {
        Self { own, counted: Arc::default() }
    }

    /// Counts a vote for this node that has just come. `ago` is what its voter said: on the way it only got older, which
    /// makes it newer here. Must be called after this node has promised its own vote.
    pub fn count(&self, term: Term, ago: Option<Duration>) {
        let mut counted = self.lock();
        if term <= counted.used {
            return;
        }
        let now = self.own.clock.now();
        let said = now.before(ago.unwrap_or_default());
        let own = self.own.lock().unwrap_or(now);
        let newest = match counted.newest {
            Some((of, newest)) if of > term => (of, newest),
            Some((of, newest)) if of == term => (of, newest.max(said).max(own)),
            _ => (term, said.max(own)),
        };
        counted.newest = Some(newest);
    }

    /// Returns the newest word that a voter of this term gave before it voted: no right of an earlier reign was asked
    /// for after it. `None` if that is not known, or was used already.
    #[must_use]
    pub fn take(&self, term: Term) -> Option<Reading> {
        let mut counted = self.lock();
        let newest = counted.newest.take_if(|(of, _)| *of <= term);
        let unused = term > counted.used;
        counted.used = counted.used.max(term);
        newest.filter(|(of, _)| *of == term && unused).map(|(_, newest)| newest)
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct HandClock(Arc<AtomicU64>);

    impl GrantClock for HandClock {
        fn now(&self) -> Reading {
            at(self.0.load(Ordering::SeqCst))
        }
    }

    impl HandClock {
        fn set(&self, millis: u64) {
            self.0.store(millis, Ordering::SeqCst);
        }
    }

    fn at(millis: u64) -> Reading {
        Reading { raw: ms(millis), monotonic: ms(millis) }
    }

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A candidate that gave its own word at `own`, and its clock.
    fn candidate(own: Option<u64>) -> (HandClock, Ballots) {
        let clock = HandClock::default();
        let word = LastWord::on(Arc::new(clock.clone()));
        if let Some(own) = own {
            clock.set(own);
            word.give();
        }
        (clock, Ballots::of(word))
    }

    #[test]
    fn the_newest_word_of_all_voters_counts_whoever_gave_it() {
        // The candidate's own, the first voter's, the second one's; each is the newest once.
        for (own, first, second, newest) in [(900, 500, 400, 900), (100, 800, 400, 800), (100, 500, 850, 850)] {
            let (clock, ballots) = candidate(Some(own));
            clock.set(1_000);
            ballots.count(Term(2), Some(ms(1_000 - first)));
            ballots.count(Term(2), Some(ms(1_000 - second)));
            assert_eq!(ballots.take(Term(2)), Some(at(newest)), "{own}, {first}, {second}");
        }
    }

    #[test]
    fn whoever_does_not_remember_heard_it_just_now() {
        let (clock, ballots) = candidate(Some(100));
        clock.set(1_000);
        ballots.count(Term(2), None);
        assert_eq!(ballots.take(Term(2)), Some(at(1_000)), "a voter that was started again");
        let (clock, ballots) = candidate(None);
        clock.set(1_000);
        ballots.count(Term(2), Some(ms(500)));
        assert_eq!(ballots.take(Term(2)), Some(at(1_000)), "a candidate that was started again");
    }

    #[test]
    fn what_was_said_for_a_term_counts_for_it_alone_and_once() {
        let (clock, ballots) = candidate(Some(100));
        clock.set(1_000);
        ballots.count(Term(2), Some(ms(300)));
        ballots.count(Term(3), Some(ms(500)));
        ballots.count(Term(2), Some(ms(0)));
        assert_eq!(ballots.take(Term(3)), Some(at(500)), "a late vote of another term is no vote of this one");
        ballots.count(Term(3), Some(ms(500)));
        assert_eq!(ballots.take(Term(3)), None, "its own renewals are newer by now");
        ballots.count(Term(4), Some(ms(500)));
        assert_eq!(ballots.take(Term(5)), None, "led without being asked for");
        assert_eq!(ballots.take(Term(4)), None);
    }

    #[test]
    fn a_word_is_never_older_than_it_was() {
        let clock = HandClock::default();
        let word = LastWord::on(Arc::new(clock.clone()));
        assert_eq!(word.ago(), None);
        clock.set(500);
        word.give();
        clock.set(800);
        assert_eq!(word.ago(), Some(ms(300)));
    }
}
