//! The judge: knows true time, looks at everything after each step, and says what must never be.
//!
//! Must stay true: nothing here is seen by what is judged. A lease is believed in at an instant if its holder's own
//! check says so then, also while the holder stands still; a server executes from its start until it is killed or its
//! kernel timer has fired, which may be late by as much as the grace of its fence allows.

mod believers;
mod executions;
mod registers;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use leaseward::{FencingToken, LeaseName, ServerName, SetName};
use leaseward_state::Term;

use crate::clocks::At;
use crate::trace::Trace;

pub use believers::{Hold, Write};
pub use executions::Shim;

/// Sees and judges. Clones are the same judge.
#[derive(Clone)]
pub struct Judge {
    inner: Arc<Mutex<Inner>>,
    trace: Trace,
}

#[derive(Default)]
struct Inner {
    violation: Option<String>,
    counts: BTreeMap<&'static str, u64>,
    stopped: bool,
    hurried: bool,
    keep_sessions: bool,
    blind_receiver: bool,
    clocks_broken: bool,
    excuses_nothing: bool,
    granted: BTreeMap<(LeaseName, FencingToken), usize>,
    next: u64,
    holds: BTreeMap<u64, Hold>,
    holder: Option<usize>,
    runner: Option<usize>,
    believed: BTreeMap<LeaseName, FencingToken>,
    writes: Vec<Write>,
    accepted: BTreeMap<LeaseName, FencingToken>,
    guarded: BTreeMap<LeaseName, (u64, FencingToken)>,
    shims: BTreeMap<u64, Shim>,
    started: BTreeMap<ServerName, (FencingToken, usize)>,
    registers: BTreeMap<SetName, registers::Register>,
    members: BTreeMap<(usize, SetName), u64>,
    reigns: BTreeMap<Term, usize>,
    agents: BTreeMap<usize, (u64, u64)>,
    asked: BTreeMap<usize, u64>,
    retired: BTreeMap<(usize, u64, ServerName), FencingToken>,
}

impl Judge {
    /// Returns a judge who has seen nothing.
    #[must_use]
    pub fn new(trace: Trace) -> Self {
        Self { inner: Arc::default(), trace }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of this lock panics")
    }

    /// Notes what must never be. The first one counts.
    pub fn violated(&self, now: At, what: &str) {
        self.trace.line(now, &format!("VIOLATED: {what}"));
        self.lock().violation.get_or_insert_with(|| what.to_owned());
    }

    /// Returns what must never have been.
    #[must_use]
    pub fn violation(&self) -> Option<String> {
        self.lock().violation.clone()
    }

    /// Counts something that went well, so that a run in which nothing happened is seen.
    pub fn count(&self, what: &'static str) {
        *self.lock().counts.entry(what).or_default() += 1;
    }

    /// Returns what was counted.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.lock().counts.clone()
    }

    /// Returns how often something was counted.
    #[must_use]
    pub fn counted(&self, what: &str) -> u64 {
        self.lock().counts.get(what).copied().unwrap_or_default()
    }

    /// Asks whoever has a lease to give it back soon.
    pub fn hurry(&self) {
        self.lock().hurried = true;
    }

    /// Returns whether leases should be given back soon.
    #[must_use]
    pub fn is_hurried(&self) -> bool {
        self.lock().hurried
    }

    /// Asks the clients to come to an end.
    pub fn stop(&self) {
        self.lock().stopped = true;
    }

    /// Returns whether clients should come to an end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// From now on, no session of whoever lives may end: there is no fault that would excuse it.
    pub fn keep_sessions(&self, keep: bool) {
        self.lock().keep_sessions = keep;
    }

    /// Whatever depends on clocks is judged, however they run.
    pub fn excuse_nothing(&self) {
        self.lock().excuses_nothing = true;
    }

    /// From now on clocks are not what is assumed of them, or are again. What depends on them is not judged meanwhile: that
    /// one at a time believes in a lease, and that a server executes once.
    pub fn break_clocks(&self, broken: bool) {
        let mut inner = self.lock();
        inner.clocks_broken = broken && !inner.excuses_nothing;
    }

    /// Returns whether clocks are not what is assumed of them.
    #[must_use]
    pub fn are_clocks_broken(&self) -> bool {
        self.lock().clocks_broken
    }

    /// Learns of something that must never be as long as clocks are what is assumed of them.
    fn violated_unless_clocks_are_broken(&self, now: At, what: &str) {
        if self.are_clocks_broken() {
            self.count("beliefs that clocks broke");
        } else {
            self.violated(now, what);
        }
    }

    /// Learns that a session is over although its owner lives.
    pub fn session_over(&self, now: At, whose: &str) {
        self.count("sessions lost");
        if self.lock().keep_sessions {
            self.violated(now, &format!("a session of {whose} was ended although it renewed as well as it could"));
        }
    }

    /// Learns who leads in a term.
    pub fn reigns(&self, now: At, term: Term, host: usize) {
        let other = *self.lock().reigns.entry(term).or_insert(host);
        if other != host {
            self.violated(now, &format!("hosts {other} and {host} both lead in term {term}"));
        }
    }

    /// Learns which version of a config set is live on a member.
    pub fn member_has(&self, now: At, member: usize, set: &SetName, version: u64) {
        let before = self.lock().members.insert((member, set.clone()), version);
        if before.is_some_and(|before| before > version) {
            self.violated(now, &format!("member {member} went from version {before:?} of {set} back to {version}"));
        }
        if before != Some(version) {
            self.count("versions applied");
        }
    }

    /// Returns what the agent of a host kept on its disk in this boot: its session.
    #[must_use]
    pub fn remembered(&self, host: usize, boot: u64) -> Option<u64> {
        self.lock().agents.get(&host).filter(|(of, _)| *of == boot).map(|(_, session)| *session)
    }

    /// Keeps on a host's disk which session its agent has.
    pub fn remember(&self, host: usize, boot: u64, session: u64) {
        self.lock().agents.insert(host, (boot, session));
    }

    /// Counts, on a host's disk, the sessions that its agent asked for.
    #[must_use]
    pub fn next_instance(&self, host: usize) -> u128 {
        let mut inner = self.lock();
        let count = inner.asked.entry(host).or_default();
        *count += 1;
        u128::from(*count)
    }

    /// Keeps in a host's run directory that nothing is started under this token, or a smaller one, in this boot.
    pub fn retire(&self, host: usize, boot: u64, server: &ServerName, token: FencingToken) {
        let mut inner = self.lock();
        let retired = inner.retired.entry((host, boot, server.clone())).or_insert(token);
        *retired = token.max(*retired);
    }

    /// Returns the greatest token under which nothing is started.
    #[must_use]
    pub fn retired(&self, host: usize, boot: u64, server: &ServerName) -> Option<FencingToken> {
        self.lock().retired.get(&(host, boot, server.clone())).copied()
    }
}
