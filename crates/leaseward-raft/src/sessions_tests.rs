//! The rules of the timekeeper, each with a test, and each test shown to fail when its rule is switched off.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use leaseward_state::command::OpenMachine;
use leaseward_state::machine::MachineProfile;
use leaseward_state::propose::{Committed, NotCommitted};
use leaseward_state::session::Incarnation;
use leaseward_state::{ClusterMillis, Entry, UnixMillis};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{self, timeout};

use super::*;
use crate::confirm::Waiter;
use crate::last_word::LastWord;
use crate::net::wire::HeardAgo;
use crate::rules::break_rule;

/// The story holds, and fails without the rule: so it is the rule that it tests.
fn needs(rule: Rule, story: impl Fn()) {
    story();
    break_rule(Some(rule));
    let caught = catch_unwind(AssertUnwindSafe(&story)).is_err();
    break_rule(None);
    assert!(caught, "nobody noticed that {rule:?} is broken");
}

/// As [`needs`], for a story on a paused clock.
fn needs_paused<F: Future<Output = ()>>(rule: Rule, story: impl Fn() -> F) {
    needs(rule, || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(story());
    });
}

const TTL: u64 = 1_000;
const ONE: SessionId = SessionId(1);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn at(millis: u64) -> Reading {
    Reading { raw: ms(millis), monotonic: ms(millis) }
}

/// A state in which the sessions 1, 2, … are open.
fn opened(count: u64) -> Arc<State> {
    let mut state = State::default();
    for revision in 1..=count {
        let request = Command::OpenSession { name: "c".into(), ttl_ms: TTL }.into();
        state.apply(&Entry {
            revision: Revision(revision),
            term: Term(1),
            at: UnixMillis(0),
            elapsed: ClusterMillis(0),
            request,
        });
    }
    Arc::new(state)
}

fn closed(state: &Arc<State>, session: SessionId) -> Arc<State> {
    let mut state = State::clone(state);
    let request = Command::EndSession { session }.into();
    state.apply(&Entry {
        revision: state.revision().next(),
        term: Term(1),
        at: UnixMillis(0),
        elapsed: ClusterMillis(0),
        request,
    });
    Arc::new(state)
}

fn reigning(state: &Arc<State>, now: Reading) -> Table {
    let mut table = Table::default();
    table.begin_reign(Some(Term(1)), None, now);
    table.follow(state, now);
    table
}

fn renew(table: &mut Table, state: &State, now: Reading) -> Renewed {
    renew_one(table, state, now, &Renewal { session: ONE, known: Revision(1) })
}

fn is_alive(renewed: &Renewed) -> bool {
    matches!(renewed, Renewed::Alive { .. })
}

#[test]
fn r3_a_renewal_gives_a_whole_time_to_live_from_its_reading() {
    needs(Rule::R3, || {
        let state = opened(1);
        let mut table = reigning(&state, at(0));
        assert!(is_alive(&renew(&mut table, &state, at(900))));
        assert_eq!(table.take_due(at(1_899)), (vec![], vec![]), "it has until 1,900");
        assert_eq!(table.next(at(1_899)), Some(ms(1)), "exactly");
        assert_eq!(table.take_due(at(1_900)).0, [ONE]);
    });
}

#[test]
fn r4_a_new_reign_gives_everybody_a_whole_time_to_live() {
    needs(Rule::R4, || {
        let state = opened(3);
        let mut table = reigning(&state, at(0));
        table.begin_reign(None, None, at(980));
        table.begin_reign(Some(Term(2)), None, at(990));
        table.follow(&state, at(990));
        assert_eq!(table.take_due(at(1_989)).0, []);
        assert_eq!(table.take_due(at(1_990)).0.len(), 3, "all in one entry");
    });
}

/// Returns the second reign of three sessions, begun at 990; the last one was opened in it already.
fn second_reign(word: Option<u64>) -> Table {
    let state = opened(3);
    let mut table = reigning(&state, at(0));
    table.begin_reign(None, None, at(980));
    let earlier = word.map(|word| Earlier { words: Words::at(at(word)), upto: Revision(2) });
    table.begin_reign(Some(Term(2)), earlier, at(990));
    table.follow(&state, at(990));
    table
}

#[test]
fn r4_no_right_is_newer_than_the_voters_last_word() {
    needs(Rule::R4, || {
        let mut table = second_reign(Some(700));
        assert_eq!(table.take_due(at(1_700)).0, [ONE, SessionId(2)], "as if their leader had lived on");
    });
    needs(Rule::R4Word, || {
        let mut table = second_reign(Some(700));
        assert_eq!(table.take_due(at(1_699)).0, [], "one may have been renewed at 700");
    });
}

#[test]
fn r4_each_session_has_the_time_that_its_own_word_gives_it() {
    needs(Rule::R4Word, || {
        let state = opened(2);
        let mut table = reigning(&state, at(0));
        table.begin_reign(None, None, at(980));
        let mut words = Words::at(at(0));
        words.give(&[ONE], at(600));
        words.give(&[SessionId(2)], at(900));
        table.begin_reign(Some(Term(2)), Some(Earlier { words, upto: Revision(2) }), at(990));
        table.follow(&state, at(990));
        assert_eq!(table.take_due(at(1_599)).0, []);
        assert_eq!(table.take_due(at(1_600)).0, [ONE], "that others were heard later is nothing to it");
        assert_eq!(table.take_due(at(1_899)).0, []);
        assert_eq!(table.take_due(at(1_900)).0, [SessionId(2)]);
    });
}

#[test]
fn r4_what_was_opened_in_the_new_term_has_its_whole_time() {
    needs(Rule::R4Own, || {
        let mut table = second_reign(Some(700));
        assert_eq!(table.take_due(at(1_989)).0, [ONE, SessionId(2)]);
        assert_eq!(table.take_due(at(1_990)).0, [SessionId(3)]);
    });
}

#[test]
fn r4_after_a_long_election_whoever_lives_is_heard_first() {
    needs(Rule::R4Listen, || {
        let mut table = second_reign(Some(0));
        assert_eq!(table.take_due(at(1_489)).0, []);
        assert_eq!(table.take_due(at(1_490)).0, [ONE, SessionId(2)], "half of its time");
    });
}

#[test]
fn r4_who_has_little_time_is_listened_for_all_the_same() {
    needs(Rule::R4Listen, || {
        let mut table = Table::default();
        let earlier = Earlier { words: Words::at(at(0)), upto: Revision(1) };
        table.begin_reign(Some(Term(2)), Some(earlier), at(990));
        assert_eq!(table.first_deadline(ONE, at(990), ms(200)), at(990 + 250));
    });
}

#[test]
fn r5_a_session_that_is_closing_is_never_answered_again() {
    needs(Rule::R5, || {
        let state = opened(1);
        let mut table = reigning(&state, at(0));
        assert_eq!(table.take_due(at(1_000)).0, [ONE]);
        // Its end is proposed and not yet committed: the state still shows it.
        assert!(state.session(ONE).is_some());
        assert_eq!(renew(&mut table, &state, at(1_000)), Renewed::Over);
        assert_eq!(table.take_due(at(9_000)).0, [], "and it is proposed once");
        let state = closed(&state, ONE);
        table.follow(&state, at(1_100));
        assert_eq!(renew(&mut table, &state, at(1_100)), Renewed::Over);
        assert!(table.closing.is_empty() && table.sessions.is_empty() && table.due.is_empty(), "nothing is left of it");
    });
}

#[test]
fn r6_a_deaf_leader_blames_nobody() {
    needs(Rule::R6, || {
        let state = opened(2);
        let mut table = reigning(&state, at(0));
        table.set_delay((LeaseName::new("a").expect("a name"), FencingToken(1)), at(500));
        // Nothing was heard from 100 to 5,100.
        table.shift(ms(5_000));
        assert_eq!(table.take_due(at(5_100)), (vec![], vec![]));
        assert_eq!(table.take_due(at(5_500)).1.len(), 1);
        assert_eq!(table.take_due(at(5_999)).0, []);
        assert_eq!(table.take_due(at(6_000)).0.len(), 2);
    });
}

#[test]
fn a_deadline_has_passed_only_when_both_clocks_say_so() {
    let state = opened(1);
    for (raw, monotonic) in [(2_000, 900), (900, 2_000)] {
        let mut table = reigning(&state, at(0));
        let now = Reading { raw: ms(raw), monotonic: ms(monotonic) };
        assert_eq!(table.take_due(now).0, [], "{raw} on one clock, {monotonic} on the other");
        assert_eq!(table.next(now), Some(ms(100)), "the slower clock decides when to look again");
        assert_eq!(table.take_due(Reading { raw: ms(2_000), monotonic: ms(1_000) }).0, [ONE]);
    }
    let gap = Reading { raw: ms(500), monotonic: ms(90) }.since(at(0));
    assert_eq!(gap, ms(90), "only what is certainly over");
}

#[test]
fn timers_follow_the_state() {
    let state = opened(2);
    let mut table = reigning(&state, at(0));
    assert_eq!(table.sessions.len(), 2);
    let state = closed(&state, ONE);
    table.follow(&state, at(10));
    assert_eq!(table.sessions.keys().copied().collect::<Vec<_>>(), [SessionId(2)]);
    assert_eq!(table.due.len(), 1, "no timer is left behind");
    let lease = LeaseName::new("a").expect("a name");
    table.set_delay((lease.clone(), FencingToken(1)), at(50));
    table.set_delay((lease.clone(), FencingToken(2)), at(60));
    assert_eq!(table.delays.len(), 1, "a later delay of a lease replaces the earlier one");
    assert_eq!(table.take_due(at(70)).1, [(lease.clone(), FencingToken(2))]);
    table.forget_delays(&lease);
    assert_eq!((table.delays.len(), table.due.len()), (0, 1));
}

/// Returns a state with the session of a machine.
fn with_machine() -> State {
    let mut state = State::default();
    let open = OpenMachine {
        machine: MachineName::new("m1").expect("a name"),
        incarnation: Incarnation { boot_id: "b".into(), instance: 1 },
        profile: MachineProfile::default(),
        swept: false,
        ttl_ms: TTL,
    };
    apply(&mut state, Command::OpenMachine(open));
    state
}

fn apply(state: &mut State, command: Command) {
    let (revision, request) = (state.revision().next(), command.into());
    state.apply(&Entry { revision, term: Term(1), at: UnixMillis(0), elapsed: ClusterMillis(0), request });
}

#[test]
fn a_machine_is_suspected_after_two_renewals_and_trusted_only_once_it_is_heard() {
    let mut state = with_machine();
    let mut table = reigning(&Arc::new(state.clone()), at(0));
    let judged = |table: &mut Table, now| table.judge(at(now)).into_iter().map(|one| one.suspected).collect::<Vec<_>>();
    assert_eq!(judged(&mut table, 624), [], "a renewal may be on its way");
    assert_eq!(judged(&mut table, 625), [true]);
    assert_eq!(judged(&mut table, 900), [], "it is proposed once");
    let suspect = |state: &mut State, suspected| {
        let (machine, session) = (MachineName::new("m1").expect("a name"), ONE);
        apply(state, Command::Suspect { machine, session, suspected, term: Term(1) });
        Arc::new(state.clone())
    };
    let suspected = suspect(&mut state, true);
    table.follow(&suspected, at(900));
    table.judging.clear();
    assert_eq!(judged(&mut table, 910), [], "and known");
    assert!(is_alive(&renew(&mut table, &suspected, at(950))));
    assert_eq!(judged(&mut table, 951), [false]);

    // A new leader gives it its whole time, and has not heard it.
    table.begin_reign(Some(Term(2)), None, at(1_000));
    table.follow(&suspected, at(1_000));
    assert_eq!(judged(&mut table, 1_001), []);
    assert!(is_alive(&renew(&mut table, &suspected, at(1_100))));
    assert_eq!(judged(&mut table, 1_101), [false]);
    let trusted = suspect(&mut state, false);
    table.follow(&trusted, at(1_110));
    table.judging.clear();
    assert_eq!(judged(&mut table, 1_120), []);
    // Whoever is being closed is not judged any more.
    assert_eq!(table.take_due(at(2_100)).0, [ONE]);
    assert_eq!(judged(&mut table, 2_100), []);
}

#[derive(Debug, Clone, Default)]
struct HandClock(Arc<AtomicU64>);

impl HandClock {
    fn set(&self, millis: u64) {
        self.0.store(millis, Ordering::SeqCst);
    }
}

impl GrantClock for HandClock {
    fn now(&self) -> Reading {
        at(self.0.load(Ordering::SeqCst))
    }
}

type Proposal = (Command, oneshot::Sender<Result<Committed, NotCommitted>>);

#[derive(Clone)]
struct HandPropose(mpsc::UnboundedSender<Proposal>);

impl Propose for HandPropose {
    async fn propose(&self, _: Request) -> Result<Committed, NotCommitted> {
        panic!("the timekeeper proposes its own commands only")
    }

    async fn propose_internal(&self, request: Request) -> Result<Committed, NotCommitted> {
        let (done, wait) = oneshot::channel();
        self.0.send((request.command, done)).expect("the test listens");
        wait.await.unwrap_or(Err(NotCommitted::Unknown))
    }

    fn leading(&self) -> Option<Term> {
        None
    }
}

/// A timekeeper whose clock, rounds, state and reign a test moves by hand.
struct Bench {
    sessions: Sessions,
    clock: HandClock,
    ballots: Ballots,
    rounds: mpsc::Receiver<Waiter>,
    published: watch::Sender<Published>,
    reign: watch::Sender<Option<Term>>,
    proposals: mpsc::UnboundedReceiver<Proposal>,
    /// Those that the last round was for.
    renewed: Vec<SessionId>,
}

impl Bench {
    async fn new(sessions: u64) -> Self {
        let clock = HandClock::default();
        let (confirmer, rounds) = Confirmer::by_hand();
        let publish = Published { state: opened(sessions), ..Published::default() };
        let (published, states) = watch::channel(publish);
        let (reign, reigns) = watch::channel(Some(Term(1)));
        let (send, proposals) = mpsc::unbounded_channel();
        let own = LastWord::on(Arc::new(clock.clone()));
        let ballots = Ballots::of(own);
        let keeping = (Box::new(clock.clone()), ballots.clone());
        let sessions = Sessions::start(keeping.0, confirmer, keeping.1, states, reigns, HandPropose(send));
        let bench = Self { sessions, clock, ballots, rounds, published, reign, proposals, renewed: Vec::new() };
        bench.settle().await;
        bench
    }

    /// Lets the timekeeper look at the clock: its tick is 25 ms.
    async fn settle(&self) {
        time::advance(ms(30)).await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    /// Moves the clock as time goes by for somebody who is awake.
    async fn pass(&self, from: u64, to: u64) {
        for now in (from..to).step_by(20) {
            self.clock.set(now);
            self.settle().await;
        }
        self.clock.set(to);
        self.settle().await;
    }

    async fn renew(&mut self, confirmed: Option<Term>) -> Option<Vec<Renewed>> {
        let sessions = self.sessions.clone();
        let renewals = [Renewal { session: ONE, known: Revision(1) }];
        let renewing = tokio::spawn(async move { sessions.renew(&renewals).await });
        let round = timeout(ms(1), self.rounds.recv()).await.expect("rule R2: a round is asked for").expect("it runs");
        assert!(!renewing.is_finished(), "rule R2: nobody is answered before the round");
        self.renewed = round.renewed;
        round.done.send(confirmed).expect("somebody waits");
        renewing.await.expect("no panic")
    }
}

#[test]
fn r2_a_renewal_is_answered_only_after_a_round_of_its_own() {
    needs_paused(Rule::R2, || async {
        let mut bench = Bench::new(1).await;
        assert!(is_alive(&bench.renew(Some(Term(1))).await.expect("confirmed")[0]));
        assert_eq!(bench.renew(None).await, None, "no quorum, no answer");
        assert_eq!(bench.renew(Some(Term(2))).await, None, "confirmed for another term than its reign");
        bench.reign.send_replace(None);
        bench.settle().await;
        assert_eq!(bench.renew(Some(Term(1))).await, None, "everything in its log is not applied yet");
    });
}

#[test]
fn r4_the_voters_are_told_who_is_renewed() {
    needs_paused(Rule::R4Names, || async {
        let mut bench = Bench::new(2).await;
        bench.renew(Some(Term(1))).await.expect("confirmed");
        assert_eq!(bench.renewed, [ONE], "a voter remembers whom it gave its word for, and nobody else");
    });
}

#[test]
fn r3_the_reading_is_taken_after_the_renewal_arrived() {
    needs_paused(Rule::R3, || async {
        let mut bench = Bench::new(1).await;
        bench.pass(0, 600).await;
        bench.renew(Some(Term(1))).await.expect("confirmed");
        assert_eq!(bench.sessions.remaining()[&ONE], ms(TTL));
        bench.pass(600, 1_590).await;
        assert!(bench.proposals.try_recv().is_err(), "it lives until 1,600");
        bench.pass(1_590, 1_600).await;
        assert!(bench.proposals.try_recv().is_ok());
    });
}

#[test]
fn r5_the_end_is_proposed_in_its_own_term_until_it_is_committed() {
    needs_paused(Rule::R5, || async {
        let mut bench = Bench::new(1).await;
        bench.pass(0, 1_000).await;
        let (command, answer) = bench.proposals.try_recv().expect("it is due");
        assert_eq!(command, Command::CloseSessions { sessions: vec![ONE], term: Term(1) });
        assert_eq!(bench.renew(Some(Term(1))).await.expect("confirmed"), [Renewed::Over], "proposed, not committed");
        answer.send(Err(NotCommitted::Unknown)).expect("somebody waits");
        bench.settle().await;
        time::advance(CLOSE_RETRY).await;
        bench.settle().await;
        let (again, answer) = bench.proposals.try_recv().expect("it insists");
        assert_eq!(again, command);
        // The reign ends: what this node judged does not count any more, and it stops.
        bench.reign.send_replace(None);
        answer.send(Err(NotCommitted::NoLeader)).expect("somebody waits");
        bench.settle().await;
        time::advance(CLOSE_RETRY).await;
        bench.settle().await;
        assert!(bench.proposals.try_recv().is_err(), "nobody proposes for a reign that is over");
    });
}

#[test]
fn r5_an_end_that_is_seen_while_a_renewal_waits_for_the_table_is_told() {
    needs_paused(Rule::R5Seen, || async {
        let mut bench = Bench::new(1).await;
        let (shared, published) = (Arc::clone(&bench.sessions.shared), bench.published.clone());
        let (held, holds) = std::sync::mpsc::channel();
        let timekeeper = std::thread::spawn(move || {
            let mut table = shared.lock();
            let before = shared.asked.load(Ordering::SeqCst);
            held.send(()).expect("the test waits");
            while shared.asked.load(Ordering::SeqCst) == before {
                std::thread::yield_now();
            }
            let state = closed(&shared.state(), ONE);
            published.send_modify(|published| published.state = Arc::clone(&state));
            table.follow(&state, at(0));
        });
        holds.recv().expect("it holds the table");
        assert_eq!(bench.renew(Some(Term(1))).await.expect("confirmed"), [Renewed::Over]);
        timekeeper.join().expect("no panic");
    });
}

#[test]
fn r6_a_stall_of_the_leader_itself_ends_nobody() {
    needs_paused(Rule::R6, || async {
        let mut bench = Bench::new(1).await;
        bench.pass(0, 200).await;
        // Stopped for nine seconds.
        bench.clock.set(9_200);
        bench.settle().await;
        assert!(bench.proposals.try_recv().is_err(), "it had 800 ms left, and nobody could be heard");
        assert_eq!(bench.sessions.remaining()[&ONE], ms(800));
        bench.pass(9_200, 10_100).await;
        assert!(bench.proposals.try_recv().is_ok(), "after that it is due");
    });
}

#[test]
fn r4_a_new_reign_of_the_same_node_counts_anew() {
    needs_paused(Rule::R4, || async {
        let mut bench = Bench::new(1).await;
        bench.pass(0, 900).await;
        bench.reign.send_replace(None);
        bench.settle().await;
        bench.reign.send_replace(Some(Term(2)));
        bench.settle().await;
        assert_eq!(bench.sessions.remaining()[&ONE], ms(TTL));
        bench.pass(900, 1_880).await;
        assert!(bench.proposals.try_recv().is_err());
        bench.pass(1_880, 1_900).await;
        let (command, _) = bench.proposals.try_recv().expect("it is due");
        assert_eq!(command, Command::CloseSessions { sessions: vec![ONE], term: Term(2) });
    });
}

#[test]
fn r4_the_word_of_the_voters_is_used_for_one_reign() {
    needs_paused(Rule::R4, || async {
        let mut bench = Bench::new(1).await;
        bench.pass(0, 900).await;
        bench.reign.send_replace(None);
        bench.settle().await;
        bench.ballots.count(Term(2), &HeardAgo { others_ms: 200, ..HeardAgo::default() });
        bench.published.send_modify(|now| now.began = Some((Term(2), Revision(1))));
        bench.reign.send_replace(Some(Term(2)));
        bench.settle().await;
        assert_eq!(bench.sessions.remaining()[&ONE], ms(800), "one voter gave its word at 700, this node at 0");
        bench.renew(Some(Term(2))).await.expect("confirmed");
        // It leads again in the same term: its own answers are newer than any word of an earlier leader.
        // In the next term they are not, if a quorum says so; and it listens for half of their time.
        bench.clock.set(1_000);
        for (term, left) in [(Term(2), ms(TTL)), (Term(3), ms(TTL / 2))] {
            bench.reign.send_replace(None);
            bench.settle().await;
            bench.ballots.count(term, &HeardAgo { others_ms: 700, ..HeardAgo::default() });
            bench.published.send_modify(|now| now.began = Some((term, Revision(1))));
            bench.reign.send_replace(Some(term));
            bench.settle().await;
            assert_eq!(bench.sessions.remaining()[&ONE], left, "{term:?}");
        }
    });
}

#[test]
fn a_mass_expiry_is_one_entry() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let mut bench = Bench::new(500).await;
        bench.pass(0, 1_000).await;
        let (command, _) = bench.proposals.try_recv().expect("they are due");
        let Command::CloseSessions { sessions, .. } = command else { panic!("{command:?}") };
        assert_eq!(sessions.len(), 500);
        assert!(bench.proposals.try_recv().is_err());
        drop(bench.published);
    });
}
