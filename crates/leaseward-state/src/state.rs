//! The replicated state: one value, cheap to clone, so that readers keep the moment they looked at.
//!
//! Must stay true: only [`State::apply`] changes it. Maps are persistent (`imbl`), so a clone shares everything and
//! costs a few pointer counts; their values are shared too, so that a change next to them copies pointers only. Left out on purpose: deadlines, connections, file contents.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;

use crate::access::Access;
use crate::command::{Entry, Reply};
use crate::config::program::ProgramSync;
use crate::config::rollout::{Pin, Rollout};
use crate::config::spec::SetSpec;
use crate::config::{MemberSync, Version};
use crate::event::{Event, Recorded};
use crate::lease::Lease;
use crate::limits::LEDGER_MAX;
use crate::machine::Machine;
use crate::name::{LeaseName, MachineName, ServerName, SetName};
use crate::policy::{Pause, Policy};
use crate::record::{Answer, RecordKey};
use crate::server::Server;
use crate::session::Session;
use crate::token::{ClusterMillis, FencingToken, Generation, RequestKey, Revision, SessionId, UnixMillis};

/// What an entry did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The entry that made the answer: this one, or the one that this one repeats.
    pub revision: Revision,
    /// The answer to its proposer.
    pub reply: Reply,
    /// What happened, for logs and watchers.
    pub events: Vec<Event>,
}

/// A config set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigSet {
    /// The entry that made it.
    pub created: Revision,
    /// The entry that changed it last.
    pub modified: Revision,
    /// The number of its newest version; 0 while it has none.
    pub head: u64,
    /// Its versions that are kept, by number.
    pub versions: OrdMap<u64, Arc<Version>>,
    /// How it is kept on its members.
    pub spec: Arc<SetSpec>,
    /// Counts the specifications, from 1; 0 while nobody gave one.
    pub spec_version: u64,
    /// The newest version on its way to the members, if it goes in steps.
    pub rollout: Option<Arc<Rollout>>,
    /// Members that an operator keeps at a version; `None`: all of them.
    pub pins: BTreeMap<Option<MachineName>, Pin>,
    /// How often an operator asked members to begin anew.
    pub resync: BTreeMap<MachineName, u64>,
    /// Versions that failed on their way, and why.
    pub bad: BTreeMap<u64, String>,
}

impl ConfigSet {
    /// Returns a set without a version, made by this entry.
    #[must_use]
    pub(crate) fn new(created: Revision) -> Self {
        Self {
            created,
            modified: created,
            head: 0,
            versions: OrdMap::new(),
            spec: Arc::default(),
            spec_version: 0,
            rollout: None,
            pins: BTreeMap::new(),
            resync: BTreeMap::new(),
            bad: BTreeMap::new(),
        }
    }

    /// Returns the bytes of its kept versions together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.versions.values().map(|version| version.bytes).sum()
    }

    /// Returns the newest version, if it has one.
    #[must_use]
    pub fn newest(&self) -> Option<&Version> {
        self.versions.get(&self.head).map(|version| &**version)
    }
}

/// Everything the cluster agreed on.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub(crate) revision: Revision,
    pub(crate) now: UnixMillis,
    pub(crate) elapsed: ClusterMillis,
    pub(crate) generation: Generation,
    pub(crate) feature_level: u32,
    pub(crate) compacted: Revision,
    pub(crate) machines: OrdMap<MachineName, Arc<Machine>>,
    pub(crate) sessions: OrdMap<SessionId, Arc<Session>>,
    pub(crate) leases: OrdMap<LeaseName, Arc<Lease>>,
    pub(crate) servers: OrdMap<ServerName, Arc<Server>>,
    pub(crate) sets: OrdMap<SetName, ConfigSet>,
    /// Bytes of all kept versions of all sets, each counted whole. Not stored: it follows from the versions.
    pub(crate) config_bytes: u64,
    pub(crate) syncs: OrdMap<(SetName, MachineName), Arc<MemberSync>>,
    pub(crate) programs: OrdMap<SessionId, Arc<ProgramSync>>,
    pub(crate) answers: OrdMap<RequestKey, Arc<Answer>>,
    pub(crate) answers_by_expiry: OrdMap<(ClusterMillis, RequestKey), ()>,
    pub(crate) answers_by_age: OrdMap<Revision, RequestKey>,
    pub(crate) ledger: OrdMap<(Revision, u32), Arc<Recorded>>,
    pub(crate) policy: Arc<Policy>,
    pub(crate) access: Arc<Access>,
    pub(crate) touched: BTreeSet<RecordKey>,
}

impl State {
    /// Returns the state of a cluster that was restored `generation` times, before its first entry.
    #[must_use]
    pub fn new(generation: Generation) -> Self {
        Self { generation, ..Self::default() }
    }

    /// Applies one entry. A refusal is a reply; there is no failure.
    ///
    /// # Panics
    /// If the entry is not the next one: then this member's history has a hole, and going on would make it differ.
    pub fn apply(&mut self, entry: &Entry) -> Applied {
        assert_eq!(entry.revision, self.revision.next(), "entries are applied in order, each once");
        self.revision = entry.revision;
        self.now = self.now.max(entry.at);
        self.elapsed = self.elapsed.max(entry.elapsed);
        self.touched.insert(RecordKey::Meta);
        self.forget_old_answers();

        if let Some(key) = entry.request.key
            && let Some(answer) = self.answers.get(&key)
        {
            return Applied { revision: answer.revision, reply: answer.reply.clone(), events: Vec::new() };
        }
        let mut events = Vec::new();
        let reply = self.execute(&entry.request.command, entry.term, &mut events);
        if let Some(key) = entry.request.key {
            self.remember_answer(key, entry.request.named, &reply);
        }
        self.record_events(&events);
        Applied { revision: entry.revision, reply, events }
    }

    pub(crate) fn record_events(&mut self, events: &[Event]) {
        for (part, event) in (0..).zip(events) {
            let key = (self.revision, part);
            let recorded = Recorded { revision: self.revision, part, at: self.now, event: event.clone() };
            self.ledger.insert(key, Arc::new(recorded));
            self.touched.insert(RecordKey::Ledger(self.revision, part));
        }
        while self.ledger.len() > LEDGER_MAX {
            let Some((revision, part)) = self.ledger.get_min().map(|(place, _)| *place) else { break };
            self.ledger.remove(&(revision, part));
            self.touched.insert(RecordKey::Ledger(revision, part));
            self.compacted = self.compacted.max(revision);
        }
    }

    /// Returns the records that changed since the last call, and forgets them.
    pub fn take_touched(&mut self) -> BTreeSet<RecordKey> {
        std::mem::take(&mut self.touched)
    }

    /// Returns the revision of the last applied entry.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Returns the newest wall-clock stamp of any applied entry: never runs backwards, and is not a clock.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        self.now
    }

    /// Returns the newest cluster time of any applied entry.
    #[must_use]
    pub fn elapsed(&self) -> ClusterMillis {
        self.elapsed
    }

    /// Returns how often this cluster was restored from a backup.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns the feature level that every voter can read.
    #[must_use]
    pub fn feature_level(&self) -> u32 {
        self.feature_level
    }

    /// Returns the newest revision whose events are no longer all kept; 0 if all are.
    #[must_use]
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Returns what a request was answered, if that is still kept for retries that arrive late.
    #[must_use]
    pub fn answer(&self, key: RequestKey) -> Option<&Answer> {
        self.answers.get(&key).map(Arc::as_ref)
    }

    /// Returns how many answers are kept for retries that arrive late.
    #[must_use]
    pub fn answers_kept(&self) -> usize {
        self.answers.len()
    }

    /// Returns how many entries of the ledger are kept.
    #[must_use]
    pub fn events_kept(&self) -> usize {
        self.ledger.len()
    }

    /// Returns the policy of the cluster.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns why a server is neither restarted nor moved now, if so: it is paused, or the whole cluster is.
    #[must_use]
    pub fn pause_of<'a>(&'a self, server: &'a Server) -> Option<&'a Pause> {
        server.paused.as_ref().or(self.policy.maintenance.as_ref())
    }

    /// Returns the machines by ascending names.
    pub fn machines(&self) -> impl Iterator<Item = (&MachineName, &Machine)> {
        self.machines.iter().map(|(name, found)| (name, &**found))
    }

    /// Returns a machine.
    #[must_use]
    pub fn machine(&self, name: &MachineName) -> Option<&Machine> {
        self.machines.get(name).map(|found| &**found)
    }

    /// Returns the open sessions by ascending ids.
    pub fn sessions(&self) -> impl Iterator<Item = (&SessionId, &Session)> {
        self.sessions.iter().map(|(name, found)| (name, &**found))
    }

    /// Returns an open session.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id).map(|found| &**found)
    }

    /// Returns the leases by ascending names.
    pub fn leases(&self) -> impl Iterator<Item = (&LeaseName, &Lease)> {
        self.leases.iter().map(|(name, found)| (name, &**found))
    }

    /// Returns a lease that is held, delayed or waited for.
    #[must_use]
    pub fn lease(&self, name: &LeaseName) -> Option<&Lease> {
        self.leases.get(name).map(|found| &**found)
    }

    /// Returns the token under which a lease is held now.
    #[must_use]
    pub fn token(&self, lease: &LeaseName) -> Option<FencingToken> {
        Some(self.leases.get(lease)?.grant()?.token)
    }

    /// Returns the servers by ascending names.
    pub fn servers(&self) -> impl Iterator<Item = (&ServerName, &Server)> {
        self.servers.iter().map(|(name, found)| (name, &**found))
    }

    /// Returns a server.
    #[must_use]
    pub fn server(&self, name: &ServerName) -> Option<&Server> {
        self.servers.get(name).map(|found| &**found)
    }

    /// Returns the config sets by ascending names.
    pub fn sets(&self) -> impl Iterator<Item = (&SetName, &ConfigSet)> {
        self.sets.iter()
    }

    /// Returns a config set.
    #[must_use]
    pub fn set(&self, name: &SetName) -> Option<&ConfigSet> {
        self.sets.get(name)
    }

    /// Returns the bytes of all kept versions of all config sets together, each version counted whole.
    #[must_use]
    pub fn config_bytes(&self) -> u64 {
        self.config_bytes
    }

    /// Returns how far each member is with each set, by ascending names.
    pub fn syncs(&self) -> impl Iterator<Item = (&(SetName, MachineName), &MemberSync)> {
        self.syncs.iter().map(|(name, found)| (name, &**found))
    }

    /// Returns how far a member is with a set, if it ever said so.
    #[must_use]
    pub fn sync(&self, set: &SetName, machine: &MachineName) -> Option<&MemberSync> {
        self.syncs.get(&(set.clone(), machine.clone())).map(|found| &**found)
    }

    /// Returns the kept events after `revision`, oldest first, or `None` if some of them are no longer kept.
    #[must_use]
    pub fn events_after(&self, revision: Revision) -> Option<impl Iterator<Item = &Recorded>> {
        if revision < self.compacted {
            return None;
        }
        Some(self.ledger.range((revision.next(), 0)..).map(|(_, recorded)| &**recorded))
    }

    /// Returns all kept events, oldest first.
    pub fn ledger(&self) -> impl DoubleEndedIterator<Item = &Recorded> {
        self.ledger.iter().map(|(_, recorded)| &**recorded)
    }
}
