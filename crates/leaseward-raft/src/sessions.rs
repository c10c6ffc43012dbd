//! Session timekeeping on the leader: renewals, deadlines, expiry (rules R2 to R6).
//!
//! Must stay true:
//! - R2: a renewal is answered only after a confirmation round that started after it arrived, and only in a reign,
//!   which begins when everything that was in the log at its start is applied.
//! - R3: a renewal sets the deadline to a whole time to live after a reading taken after it arrived.
//! - R4: a new reign gives every session of an earlier term a whole time to live after the newest word that its voters
//!   gave for it to an earlier leader, and half of one after it began (a quarter of a second at least); if that word is not known, or for anything else, a
//!   whole time after a reading taken after it began.
//! - R5: a session is marked closing before its end is proposed; from then on it is never answered again. The
//!   proposal counts only in the term in which it was made.
//! - R6: a leader that was itself deaf shifts all deadlines by the gap before it judges anybody.
//!
//! Left out on purpose: what a session holds, and what follows its end (`leaseward-state`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use leaseward_state::propose::Propose;
use leaseward_state::session::Owner;
use leaseward_state::{Command, FencingToken, LeaseName, MachineName, Request, Revision, SessionId, State, Term};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use crate::clock::{GrantClock, Reading};
use crate::confirm::Confirmer;
use crate::last_word::{Ballots, Words};
use crate::limits::DEAF_AFTER;
use crate::machine::Published;
use crate::net::wire::{Held, Renewal, Renewed};
use crate::rules::{Rule, broken};

/// How often the timekeeper notes that it is awake: fine enough to see deafness, too coarse to cost anything.
const AWAKE_TICK: Duration = Duration::from_millis(25);

/// After a failed proposal to close sessions, the next attempt waits this long.
const CLOSE_RETRY: Duration = Duration::from_millis(50);

/// In a new reign nobody is ended, whatever the voters heard, before this part of its time to live: who lives renews
/// twice in it.
const LISTEN_SHARE: u32 = 2;

/// And not before this, however short its time to live is: who has to find the leader first may meet two nodes without power
/// on the way, each of which costs a client a tenth of a second.
const LISTEN_MIN: Duration = Duration::from_millis(250);

/// A machine is suspected after so many eighths of its time to live: it renews after each quarter, so two renewals are
/// missing, and have had an eighth to arrive.
const SUSPECT_EIGHTHS: u32 = 5;

/// A lease's delay: which one, under which token.
type Delay = (LeaseName, FencingToken);

/// Renews sessions on the leader and ends them when nobody renews them.
#[derive(Clone)]
pub struct Sessions {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Box<dyn GrantClock>,
    confirmer: Confirmer,
    ballots: Ballots,
    published: watch::Receiver<Published>,
    reign: watch::Receiver<Option<Term>>,
    table: Mutex<Table>,
    changed: Notify,
    /// How often somebody asked for the table.
    #[cfg(test)]
    asked: std::sync::atomic::AtomicU64,
}

#[derive(Default)]
struct Table {
    /// The reign in which everything below was set.
    term: Option<Term>,
    began: Option<Reading>,
    earlier: Option<Earlier>,
    /// The state that the timers follow.
    seen: Arc<State>,
    sessions: BTreeMap<SessionId, (Reading, Duration)>,
    delays: BTreeMap<Delay, Reading>,
    /// By the raw clock; the other clock is looked at when the turn comes.
    due: BTreeSet<(Duration, Due)>,
    closing: BTreeSet<SessionId>,
    /// Those that were renewed in this reign.
    heard: BTreeSet<SessionId>,
    /// Those whose suspicion, or its end, is being proposed.
    judging: BTreeSet<SessionId>,
}

/// What is known of the rights of earlier reigns.
#[derive(Debug, Clone)]
struct Earlier {
    /// None of them was asked for after this.
    words: Words,
    /// Sessions up to this revision are of earlier terms.
    upto: Revision,
}

/// What is thought of a machine from now on.
struct Suspicion {
    machine: MachineName,
    session: SessionId,
    suspected: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Session(SessionId),
    Delay(Delay),
}

impl Sessions {
    /// Starts the timekeeper. It ends when the state is no longer published.
    pub fn start(
        clock: Box<dyn GrantClock>,
        confirmer: Confirmer,
        ballots: Ballots,
        published: watch::Receiver<Published>,
        reign: watch::Receiver<Option<Term>>,
        propose: impl Propose,
    ) -> Self {
        let (table, changed) = (Mutex::default(), Notify::new());
        let shared = Arc::new(Shared {
            clock,
            confirmer,
            ballots,
            published,
            reign,
            table,
            changed,
            #[cfg(test)]
            asked: Default::default(),
        });
        tokio::spawn(keep_time(Arc::clone(&shared), propose));
        Self { shared }
    }

    /// Renews sessions. Returns the answers in the order of the renewals, or `None` if this node does not lead or
    /// cannot prove it now. Cancel safe: a renewal whose answer is dropped may count all the same.
    pub async fn renew(&self, renewals: &[Renewal]) -> Option<Vec<Renewed>> {
        // R2: the round starts after the renewals arrived.
        let confirmed = if broken(Rule::R2) {
            (*self.shared.reign.borrow())?
        } else {
            // R4: a quorum remembers them by name.
            let named = if broken(Rule::R4Names) { &[] } else { renewals };
            self.shared.confirmer.confirm_for(named.iter().map(|renewal| renewal.session).collect()).await?
        };
        if *self.shared.reign.borrow() != Some(confirmed) {
            return None;
        }
        // R5: under the lock. An older state may show a session whose end the timekeeper has seen since, and forgotten with its mark.
        let older = broken(Rule::R5Seen).then(|| self.shared.state());
        let mut table = self.shared.lock();
        let state = older.unwrap_or_else(|| self.shared.state());
        if table.term != Some(confirmed) {
            return None;
        }
        // R3: read after they arrived.
        let now = self.shared.clock.now();
        Some(renewals.iter().map(|renewal| renew_one(&mut table, &state, now, renewal)).collect())
    }

    /// Returns how long each session has left on this leader's clock; empty if this node does not lead. For people:
    /// what a holder may believe is its own business.
    #[must_use]
    pub fn remaining(&self) -> BTreeMap<SessionId, Duration> {
        let table = self.shared.lock();
        let now = self.shared.clock.now();
        table.sessions.iter().map(|(id, (deadline, _))| (*id, now.until(*deadline))).collect()
    }
}

fn renew_one(table: &mut Table, state: &State, now: Reading, renewal: &Renewal) -> Renewed {
    let id = renewal.session;
    let Some(session) = state.session(id).filter(|_| !table.closing.contains(&id)) else { return Renewed::Over };
    if !broken(Rule::R3) {
        table.set_session(id, now, Duration::from_millis(session.ttl_ms));
    }
    table.heard.insert(id);
    let leases = (session.leases_revision != renewal.known)
        .then(|| Held { revision: session.leases_revision, leases: state.held(session) });
    let orders = match &session.owner {
        Owner::Machine(name) => state.machine(name).map_or(Revision(0), |machine| machine.orders_revision),
        Owner::Client(_) => Revision(0),
    };
    Renewed::Alive { leases, orders }
}

impl Shared {
    fn state(&self) -> Arc<State> {
        Arc::clone(&self.published.borrow().state)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        #[cfg(test)]
        self.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.table.lock().expect("no holder of this lock panics")
    }
}

impl Table {
    fn set_session(&mut self, id: SessionId, now: Reading, ttl: Duration) {
        self.set_deadline(id, now.after(ttl), ttl);
    }

    /// R4: a session of this term may have been answered after any word of the earlier ones.
    fn first_deadline(&self, id: SessionId, now: Reading, ttl: Duration) -> Reading {
        match &self.earlier {
            Some(earlier) if self.is_earlier(id, earlier) || broken(Rule::R4Own) => {
                let word = if broken(Rule::R4Word) { Reading::default() } else { earlier.words.of(id) };
                let listen = if broken(Rule::R4Listen) { Duration::ZERO } else { (ttl / LISTEN_SHARE).max(LISTEN_MIN) };
                word.after(ttl).max(now.after(listen))
            }
            _ => now.after(ttl),
        }
    }

    /// Returns whether a session is of an earlier term, and seen for the first time in this reign.
    fn is_earlier(&self, id: SessionId, earlier: &Earlier) -> bool {
        id.0 <= earlier.upto.0 && !self.sessions.contains_key(&id)
    }

    fn set_deadline(&mut self, id: SessionId, deadline: Reading, ttl: Duration) {
        if let Some((old, _)) = self.sessions.insert(id, (deadline, ttl)) {
            self.due.remove(&(old.raw, Due::Session(id)));
        }
        self.due.insert((deadline.raw, Due::Session(id)));
    }

    fn forget_session(&mut self, id: SessionId) {
        if let Some((deadline, _)) = self.sessions.remove(&id) {
            self.due.remove(&(deadline.raw, Due::Session(id)));
        }
        self.closing.remove(&id);
        self.heard.remove(&id);
        self.judging.remove(&id);
    }

    fn set_delay(&mut self, delay: Delay, deadline: Reading) {
        self.forget_delays(&delay.0);
        self.due.insert((deadline.raw, Due::Delay(delay.clone())));
        self.delays.insert(delay, deadline);
    }

    fn forget_delays(&mut self, lease: &LeaseName) {
        let known: Vec<Delay> = self.delays.keys().filter(|(name, _)| name == lease).cloned().collect();
        for delay in known {
            if let Some(deadline) = self.delays.remove(&delay) {
                self.due.remove(&(deadline.raw, Due::Delay(delay)));
            }
        }
    }

    /// R4: forgets everything of the reign before; deadlines are set anew by [`Table::follow`].
    fn begin_reign(&mut self, term: Option<Term>, earlier: Option<Earlier>, now: Reading) {
        if broken(Rule::R4) {
            self.term = term;
            return;
        }
        *self = Self { term, began: Some(now), earlier, ..Self::default() };
    }

    /// Brings the timers up to the state. New ones are set after the state was seen, so after the entry was applied.
    fn follow(&mut self, state: &Arc<State>, now: Reading) {
        let changes = self.seen.timed_changes(state);
        for (id, ttl_ms) in changes.opened {
            let ttl = Duration::from_millis(ttl_ms);
            self.set_deadline(id, self.first_deadline(id, now, ttl), ttl);
        }
        for id in changes.ended {
            self.forget_session(id);
        }
        for lease in changes.resumed {
            self.forget_delays(&lease);
        }
        for (lease, token, delay_ms) in changes.delayed {
            self.set_delay((lease, token), now.after(Duration::from_millis(delay_ms)));
        }
        self.seen = Arc::clone(state);
    }

    /// R6: nobody could be heard for so long, so nobody is to blame for it.
    fn shift(&mut self, gap: Duration) {
        if broken(Rule::R6) {
            return;
        }
        self.due.clear();
        for (id, (deadline, _)) in &mut self.sessions {
            *deadline = deadline.after(gap);
            self.due.insert((deadline.raw, Due::Session(*id)));
        }
        for (delay, deadline) in &mut self.delays {
            *deadline = deadline.after(gap);
            self.due.insert((deadline.raw, Due::Delay(delay.clone())));
        }
    }

    /// Takes what is due. Sessions are marked closing here, before anybody hears of it (R5).
    fn take_due(&mut self, now: Reading) -> (Vec<SessionId>, Vec<Delay>) {
        let (mut sessions, mut delays) = (Vec::new(), Vec::new());
        let reached: Vec<Due> =
            self.due.iter().take_while(|(raw, _)| *raw <= now.raw).map(|(_, due)| due.clone()).collect();
        for due in reached {
            match due {
                Due::Session(id) => {
                    let Some((deadline, _)) = self.sessions.get(&id).copied() else { continue };
                    if now.until(deadline).is_zero() {
                        self.due.remove(&(deadline.raw, Due::Session(id)));
                        if !broken(Rule::R5) {
                            self.closing.insert(id);
                        }
                        sessions.push(id);
                    }
                }
                Due::Delay(delay) => {
                    let Some(deadline) = self.delays.get(&delay).copied() else { continue };
                    if now.until(deadline).is_zero() {
                        self.due.remove(&(deadline.raw, Due::Delay(delay.clone())));
                        delays.push(delay);
                    }
                }
            }
        }
        (sessions, delays)
    }

    /// Returns the machines that were not heard for two renewals, and those that are heard again, each once. Nobody's
    /// rights depend on it.
    fn judge(&mut self, now: Reading) -> Vec<Suspicion> {
        let mut changed = Vec::new();
        for (name, machine) in self.seen.machines() {
            let Some(session) = machine.session.filter(|id| !self.closing.contains(id)) else { continue };
            let Some((deadline, ttl)) = self.sessions.get(&session) else { continue };
            let silent = ttl.saturating_sub(now.until(*deadline));
            // A new leader has not missed what was sent to nobody: a renewal must have had its time here.
            let missed = self.heard.contains(&session)
                || self.began.is_none_or(|began| now.since(began) >= *ttl * (SUSPECT_EIGHTHS - 2) / 8);
            let suspected = match machine.suspected {
                None => missed && silent >= *ttl * SUSPECT_EIGHTHS / 8,
                Some(_) => !(self.heard.contains(&session) && silent < *ttl / 2),
            };
            if suspected != machine.suspected.is_some() && self.judging.insert(session) {
                changed.push(Suspicion { machine: name.clone(), session, suspected });
            }
        }
        changed
    }

    fn next(&self, now: Reading) -> Option<Duration> {
        let (_, due) = self.due.first()?;
        let deadline = match due {
            Due::Session(id) => self.sessions.get(id)?.0,
            Due::Delay(delay) => *self.delays.get(delay)?,
        };
        Some(now.until(deadline))
    }
}

async fn keep_time(shared: Arc<Shared>, propose: impl Propose) {
    let mut published = shared.published.clone();
    let mut reign = shared.reign.clone();
    let mut awake = shared.clock.now();
    loop {
        let term = *reign.borrow_and_update();
        let (state, began) = {
            let published = published.borrow_and_update();
            (Arc::clone(&published.state), published.began)
        };
        let (wait, sessions, delays, suspicions) = {
            let mut table = shared.lock();
            let now = shared.clock.now();
            if table.term != term {
                let earlier = term.and_then(|term| {
                    let words = shared.ballots.take(term)?;
                    let (_, upto) = began.filter(|(of, _)| *of == term)?;
                    Some(Earlier { words, upto })
                });
                let heard = earlier.as_ref().map(|earlier| now.since(earlier.words.newest()));
                table.begin_reign(term, earlier, now);
                // Nothing was to be heard before.
                awake = now;
                if let Some(term) = term {
                    let heard_ms = heard.map(|heard| heard.as_millis() as u64);
                    info!(%term, sessions = state.sessions().count(), ?heard_ms, "keeping time");
                }
            }
            let gap = now.since(awake);
            if term.is_some() {
                if gap > DEAF_AFTER {
                    warn!(gap_ms = gap.as_millis() as u64, "was deaf: every deadline is shifted by that");
                    table.shift(gap);
                }
                table.follow(&state, now);
            }
            awake = now;
            let (sessions, delays) = if term.is_some() { table.take_due(now) } else { Default::default() };
            let suspicions = if term.is_some() { table.judge(now) } else { Vec::new() };
            (table.next(now), sessions, delays, suspicions)
        };
        if let Some(term) = term {
            close(&shared, &propose, term, sessions);
            end_delays(&shared, &propose, term, delays);
            suspect(&shared, &propose, term, suspicions);
        }
        // Exact timers; the tick only notes that we are awake, and only while there is something to be late for.
        let next = match (term, wait) {
            (Some(_), Some(wait)) => Instant::now() + wait.min(AWAKE_TICK),
            (Some(_), None) => Instant::now() + AWAKE_TICK,
            (None, _) => Instant::now() + Duration::from_secs(3600),
        };
        tokio::select! {
            changed = published.changed() => if changed.is_err() { return },
            changed = reign.changed() => {
                if changed.is_err() {
                    return;
                }
                awake = shared.clock.now();
            }
            () = sleep_until(next) => {}
            () = shared.changed.notified() => {}
        }
    }
}

/// Proposes the end of sessions that are marked closing, all in one entry.
fn close(shared: &Arc<Shared>, propose: &impl Propose, term: Term, sessions: Vec<SessionId>) {
    if sessions.is_empty() {
        return;
    }
    info!(count = sessions.len(), first = %sessions[0], "sessions were not renewed in time");
    let (shared, propose) = (Arc::clone(shared), propose.clone());
    tokio::spawn(async move {
        let command = Command::CloseSessions { sessions, term };
        insist(&shared, &propose, term, command).await;
    });
}

fn end_delays(shared: &Arc<Shared>, propose: &impl Propose, term: Term, delays: Vec<Delay>) {
    for (lease, token) in delays {
        let (shared, propose) = (Arc::clone(shared), propose.clone());
        tokio::spawn(async move {
            insist(&shared, &propose, term, Command::EndDelay { lease, token, term }).await;
        });
    }
}

fn suspect(shared: &Arc<Shared>, propose: &impl Propose, term: Term, suspicions: Vec<Suspicion>) {
    for Suspicion { machine, session, suspected } in suspicions {
        let (shared, propose) = (Arc::clone(shared), propose.clone());
        tokio::spawn(async move {
            insist(&shared, &propose, term, Command::Suspect { machine, session, suspected, term }).await;
            shared.lock().judging.remove(&session);
        });
    }
}

/// Proposes until it is committed or the reign is over. Repeating it is harmless: it names what it ends.
async fn insist(shared: &Shared, propose: &impl Propose, term: Term, command: Command) {
    while *shared.reign.borrow() == Some(term) {
        match propose.propose_internal(Request::from(command.clone())).await {
            Ok(_) => {
                shared.changed.notify_one();
                return;
            }
            Err(error) => {
                warn!(%error, command = command.name(), "not committed yet");
                sleep(CLOSE_RETRY).await;
            }
        }
    }
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
