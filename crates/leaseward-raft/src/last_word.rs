//! What voters heard of leaders, and what a new leader learns of it: no right of an earlier reign is newer (rule R4).
//!
//! Must stay true:
//! - a voter notes the moment before its word can count for a leader: before it says yes to a confirmation round, for
//!   each session that the round renews; before an entry that opens sessions is acknowledged, for every session that it
//!   has not noted by name; before one that changes the members, for all. It notes nothing of a leader whose term it may
//!   not confirm any more;
//! - a voter says how long ago that was only after it has promised its vote, so that nothing older can follow;
//! - a candidate counts the newest of what the voters said and of its own; a process that was started again gave its
//!   word to everybody when it was;
//! - what was counted for a term is used once: a second reign in the same term has rights of the first.
//!
//! The argument is in `docs/notes/0012-what-voters-heard.md`. Left out on purpose: deadlines (`sessions.rs`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use leaseward_state::{SessionId, Term};

use crate::clock::{GrantClock, KernelClock, Reading};
use crate::limits::WORDS_NAMED_MAX;
use crate::net::wire::HeardAgo;
use crate::stored::{Entry, Payload};

/// Moments, one for each session: of some by name, and one for all others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words {
    others: Reading,
    named: BTreeMap<SessionId, Reading>,
}

impl Words {
    /// Returns that the word was given to everybody at the same time.
    #[must_use]
    pub fn at(others: Reading) -> Self {
        Self { others, named: BTreeMap::new() }
    }

    /// Returns the moment of a session.
    #[must_use]
    pub fn of(&self, session: SessionId) -> Reading {
        self.named.get(&session).copied().unwrap_or(self.others)
    }

    /// Returns the newest moment of all.
    #[must_use]
    pub fn newest(&self) -> Reading {
        self.named.values().copied().fold(self.others, Reading::max)
    }

    pub(crate) fn give(&mut self, renewed: &[SessionId], now: Reading) {
        for session in renewed {
            let at = self.named.entry(*session).or_insert(self.others);
            *at = at.max(now);
        }
        if self.named.len() > WORDS_NAMED_MAX {
            self.forget_older_half();
        }
    }

    /// Sessions without a name count as the others: the newest of those that lose theirs is theirs then.
    fn forget_older_half(&mut self) {
        let mut moments: Vec<Duration> = self.named.values().map(|at| at.raw).collect();
        let half = moments.len() / 2;
        let middle = *moments.select_nth_unstable(half).1;
        let others = &mut self.others;
        self.named.retain(|_, at| {
            let stays = at.raw > middle;
            if !stays {
                *others = others.max(*at);
            }
            stays
        });
    }

    /// Takes the newer moment of each session.
    fn join(&mut self, other: &Self) {
        let only_there = other.named.iter().filter(|(session, _)| !self.named.contains_key(session));
        let both: BTreeMap<_, _> = self
            .named
            .iter()
            .chain(only_there)
            .map(|(session, _)| (*session, self.of(*session).max(other.of(*session))))
            .collect();
        self.named = both;
        self.others = self.others.max(other.others);
    }
}

/// When this process last gave its word to a leader, itself included. Clones share it.
#[derive(Debug, Clone)]
pub struct LastWord {
    clock: Arc<dyn GrantClock>,
    words: Arc<Mutex<Words>>,
}

impl Default for LastWord {
    fn default() -> Self {
        Self::on(Arc::new(KernelClock))
    }
}

impl LastWord {
    /// Returns what a process says that has just begun: the one before it may have given its word until now. `clock`
    /// says when another one is given.
    #[must_use]
    pub fn on(clock: Arc<dyn GrantClock>) -> Self {
        let words = Words::at(clock.now());
        Self { clock, words: Arc::new(Mutex::new(words)) }
    }

    /// Notes that the word is given now, for these sessions; `None`: for more than can be named.
    pub fn give(&self, renewed: Option<&[SessionId]>) {
        let Some(renewed) = renewed else { return self.give_to_all() };
        if renewed.is_empty() {
            return;
        }
        let mut words = self.lock();
        let now = self.clock.now();
        words.give(renewed, now);
    }

    /// Notes what entries give that are about to be acknowledged: whoever opens a session may believe in it, and if the
    /// members change, a leader that others follow from now on counts with what these voters say.
    pub fn give_for(&self, entries: &[Entry]) {
        let opens = |entry: &Entry| match &entry.payload {
            Payload::Commands { requests, .. } => requests.iter().any(|request| request.command.opens_session()),
            Payload::Blank | Payload::Membership(_) => false,
        };
        if entries.iter().any(|entry| matches!(entry.payload, Payload::Membership(_))) {
            self.give_to_all();
        } else if entries.iter().any(opens) {
            self.give_to_new();
        }
    }

    /// Notes that it is given now for sessions that have no name here yet.
    pub fn give_to_new(&self) {
        let mut words = self.lock();
        words.others = words.others.max(self.clock.now());
    }

    /// Notes that it is given now for every session.
    pub fn give_to_all(&self) {
        let mut words = self.lock();
        *words = Words::at(words.newest().max(self.clock.now()));
    }

    /// Returns how long ago it was given, rather less.
    #[must_use]
    pub fn ago(&self) -> HeardAgo {
        let words = self.lock();
        let now = self.clock.now();
        let ago = |at: Reading| now.since(at).as_millis() as u64;
        HeardAgo {
            others_ms: ago(words.others),
            named_ms: words.named.iter().map(|(session, at)| (*session, ago(*at))).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Words> {
        self.words.lock().expect("no holder of this lock panics")
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
    /// The newest term with a vote, and the newest words that its voters gave to an earlier leader.
    newest: Option<(Term, Words)>,
    /// Of this term and those before nothing is counted any more.
    used: Term,
}

impl Ballots {
    /// Returns that nobody has voted yet. `own` is what this node itself says.
    #[must_use]
    pub fn of(own: LastWord) -> Self {
        Self { own, counted: Arc::default() }
    }

    /// Counts a vote for this node that has just come. `said` is what came with it: on the way it only got older, which
    /// makes it newer here. Must be called after this node has promised its own vote.
    pub fn count(&self, term: Term, said: &HeardAgo) {
        let mut counted = self.lock();
        if term <= counted.used || counted.newest.as_ref().is_some_and(|(of, _)| *of > term) {
            return;
        }
        let now = self.own.clock.now();
        let before = |ago: u64| now.before(Duration::from_millis(ago));
        let said = Words {
            others: before(said.others_ms),
            named: said.named_ms.iter().map(|(session, ago)| (*session, before(*ago))).collect(),
        };
        let mut newest = match counted.newest.take() {
            Some((of, newest)) if of == term => newest,
            _ => Words::default(),
        };
        newest.join(&self.own.lock());
        newest.join(&said);
        counted.newest = Some((term, newest));
    }

    /// Returns the newest words that the voters of this term gave before they voted: no right of an earlier reign was
    /// asked for after them. `None` if that is not known, or was used already.
    #[must_use]
    pub fn take(&self, term: Term) -> Option<Words> {
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

    use leaseward_state::{ClusterMillis, Command, Request, UnixMillis};

    use super::*;
    use crate::stored::{LogPosition, Membership};

    const ONE: SessionId = SessionId(1);
    const TWO: SessionId = SessionId(2);

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
        Reading { raw: Duration::from_millis(millis), monotonic: Duration::from_millis(millis) }
    }

    /// What a voter says that heard of everybody so long ago, and of some sessions at other times.
    fn ago(others_ms: u64, named: &[(SessionId, u64)]) -> HeardAgo {
        HeardAgo { others_ms, named_ms: named.to_vec() }
    }

    /// A process that began at 100.
    fn process() -> (HandClock, LastWord) {
        let clock = HandClock::default();
        clock.set(100);
        let word = LastWord::on(Arc::new(clock.clone()));
        (clock, word)
    }

    /// A candidate that gave its own word at `own`, to everybody.
    fn candidate(own: u64) -> (HandClock, Ballots) {
        let (clock, word) = process();
        clock.set(own);
        word.give_to_all();
        (clock, Ballots::of(word))
    }

    #[test]
    fn the_newest_word_of_all_voters_counts_whoever_gave_it() {
        // The candidate's own, the first voter's, the second one's; each is the newest once.
        for (own, first, second, newest) in [(900, 500, 400, 900), (100, 800, 400, 800), (100, 500, 850, 850)] {
            let (clock, ballots) = candidate(own);
            clock.set(1_000);
            ballots.count(Term(2), &ago(1_000 - first, &[]));
            ballots.count(Term(2), &ago(1_000 - second, &[]));
            assert_eq!(ballots.take(Term(2)), Some(Words::at(at(newest))), "{own}, {first}, {second}");
        }
    }

    #[test]
    fn each_session_has_its_own_newest_word() {
        let (clock, ballots) = candidate(200);
        clock.set(1_000);
        ballots.count(Term(2), &ago(700, &[(ONE, 600), (TWO, 100)]));
        ballots.count(Term(2), &ago(500, &[(ONE, 550)]));
        let words = ballots.take(Term(2)).expect("counted");
        assert_eq!(words.of(ONE), at(450), "the second voter's, though others were heard later");
        assert_eq!(words.of(TWO), at(900), "the second one does not know it by name; the first one does");
        assert_eq!(words.of(SessionId(3)), at(500), "nobody knows it by name: what the second one said of the others");
        assert_eq!(words.newest(), at(900));

        let (clock, ballots) = candidate(200);
        clock.set(1_000);
        ballots.count(Term(2), &ago(700, &[(ONE, 600)]));
        ballots.count(Term(2), &ago(100, &[]));
        let words = ballots.take(Term(2)).expect("counted");
        assert_eq!(words.of(ONE), at(900), "the second voter may have given its word for it");
    }

    #[test]
    fn a_process_that_began_anew_gave_its_word_until_then() {
        let (clock, word) = process();
        clock.set(1_000);
        assert_eq!(word.ago(), ago(900, &[]));
        let ballots = Ballots::of(word);
        ballots.count(Term(2), &ago(950, &[(ONE, 920)]));
        assert_eq!(ballots.take(Term(2)).expect("counted").of(ONE), at(100), "the candidate itself was started at 100");
    }

    #[test]
    fn a_word_is_given_to_those_that_it_is_about() {
        let (clock, word) = process();
        clock.set(300);
        word.give(Some(&[ONE, TWO]));
        clock.set(400);
        word.give(Some(&[TWO]));
        clock.set(500);
        word.give(Some(&[]));
        clock.set(1_000);
        assert_eq!(word.ago(), ago(900, &[(ONE, 700), (TWO, 600)]), "a round for reads is about nobody");

        clock.set(1_100);
        word.give_to_new();
        clock.set(1_200);
        assert_eq!(word.ago(), ago(100, &[(ONE, 900), (TWO, 800)]), "what was opened has no name yet");

        for give_to_all in [LastWord::give_to_all, |word: &LastWord| word.give(None)] {
            give_to_all(&word);
            assert_eq!(word.ago(), ago(0, &[]));
            word.give(Some(&[ONE]));
        }
    }

    #[test]
    fn entries_give_what_can_be_believed_in_because_of_them() {
        let entry = |payload| Entry { position: LogPosition { term: 1, node: 1, index: 1 }, payload };
        let commands = |commands: Vec<Command>| {
            let requests = commands.into_iter().map(Request::from).collect();
            entry(Payload::Commands { at: UnixMillis(0), requests, elapsed: ClusterMillis(0) })
        };
        let open = || Command::OpenSession { name: "a".into(), ttl_ms: 1_000 };
        let end = || Command::EndSession { session: ONE };
        let both = Command::Atomic { conditions: Vec::new(), commands: vec![end(), open()] };
        let members = entry(Payload::Membership(Membership::default()));

        let cases = [
            (vec![entry(Payload::Blank), commands(vec![end()])], ago(900, &[(ONE, 500)]), "nothing"),
            (vec![commands(vec![end(), open()])], ago(0, &[(ONE, 500)]), "the opened one has no name yet"),
            (vec![commands(vec![both])], ago(0, &[(ONE, 500)]), "nor has this one"),
            (vec![commands(vec![open()]), members], ago(0, &[]), "others may confirm from now on"),
        ];
        for (entries, said, why) in cases {
            let (clock, word) = process();
            clock.set(500);
            word.give(Some(&[ONE]));
            clock.set(1_000);
            word.give_for(&entries);
            assert_eq!(word.ago(), said, "{why}");
        }
    }

    #[test]
    fn a_word_is_never_older_than_it_was() {
        let (clock, word) = process();
        clock.set(800);
        word.give(Some(&[ONE]));
        word.give_to_new();
        clock.set(700);
        word.give(Some(&[ONE]));
        word.give_to_new();
        clock.set(1_000);
        assert_eq!(word.ago(), ago(200, &[(ONE, 200)]));
        clock.set(700);
        word.give_to_all();
        clock.set(1_000);
        assert_eq!(word.ago(), ago(200, &[]));
    }

    #[test]
    fn sessions_lose_their_names_before_there_are_too_many_and_no_word_gets_older() {
        let (clock, word) = process();
        let all: Vec<SessionId> = (1..=WORDS_NAMED_MAX as u64 + 1).map(SessionId).collect();
        for session in &all {
            clock.set(1_000 + session.0);
            word.give(Some(&[*session]));
        }
        let words = word.lock().clone();
        assert!(words.named.len() <= WORDS_NAMED_MAX / 2 + 1, "{}", words.named.len());
        for session in &all {
            assert!(words.of(*session).raw >= at(1_000 + session.0).raw, "{session}");
        }
        let newest = all[all.len() - 1];
        assert_eq!(words.of(newest), at(1_000 + newest.0), "those that were heard last keep theirs");
    }

    #[test]
    fn what_was_said_for_a_term_counts_for_it_alone_and_once() {
        let (clock, ballots) = candidate(100);
        clock.set(1_000);
        ballots.count(Term(2), &ago(300, &[]));
        ballots.count(Term(3), &ago(500, &[]));
        ballots.count(Term(2), &ago(0, &[]));
        assert_eq!(
            ballots.take(Term(3)),
            Some(Words::at(at(500))),
            "a late vote of another term is no vote of this one"
        );
        ballots.count(Term(3), &ago(500, &[]));
        assert_eq!(ballots.take(Term(3)), None, "its own renewals are newer by now");
        ballots.count(Term(4), &ago(500, &[]));
        assert_eq!(ballots.take(Term(5)), None, "led without being asked for");
        assert_eq!(ballots.take(Term(4)), None);
    }
}
