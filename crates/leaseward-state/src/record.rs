//! The state as records: what a store keeps and a snapshot carries, one object at a time.
//!
//! Must stay true: `State::restore(state.records())` is the same state, and a store that writes
//! [`State::take_touched`] after each entry holds the same records.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use crate::access::Access;
use crate::apply::feature::OLDEST_ANSWERS_GO;
use crate::command::Reply;
use crate::config::program::ProgramSync;
use crate::config::rollout::{Pin, Rollout};
use crate::config::spec::SetSpec;
use crate::config::{MemberSync, Version};
use crate::event::Recorded;
use crate::lease::Lease;
use crate::limits::{ANSWER_KEPT_MS, ANSWERS_KEPT_MAX, NAMED_ANSWER_KEPT_MS};
use crate::machine::Machine;
use crate::name::{LeaseName, MachineName, ServerName, SetName};
use crate::policy::Policy;
use crate::server::Server;
use crate::session::{Owner, Session};
use crate::state::{ConfigSet, State};
use crate::token::{ClusterMillis, Generation, RequestKey, Revision, SessionId, UnixMillis};

/// The name of a record. Grows at the end only: it is stored by position.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RecordKey {
    /// The numbers of the whole state.
    Meta,
    /// A machine.
    Machine(MachineName),
    /// A session.
    Session(SessionId),
    /// A lease.
    Lease(LeaseName),
    /// A server.
    Server(ServerName),
    /// A config set.
    Set(SetName),
    /// A version of a set.
    Version(SetName, u64),
    /// How far a member is with a set.
    Sync(SetName, MachineName),
    /// An answer kept for retries.
    Answer(RequestKey),
    /// An event.
    Ledger(Revision, u32),
    /// The policy of the cluster.
    Policy,
    /// How far a program is with a file.
    Program(SessionId),
    /// Who may ask what.
    Access,
}

/// A record. Grows at the end only: it is stored by position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The numbers of the whole state.
    Meta(Meta),
    /// A machine.
    Machine(Arc<Machine>),
    /// A session.
    Session(SessionRecord),
    /// A lease.
    Lease(Arc<Lease>),
    /// A server.
    Server(Arc<Server>),
    /// A config set, without its versions.
    Set(SetRecord),
    /// A version of a set.
    Version(Arc<Version>),
    /// How far a member is with a set.
    Sync(Arc<MemberSync>),
    /// An answer kept for retries.
    Answer(Arc<Answer>),
    /// An event.
    Ledger(Arc<Recorded>),
    /// The policy of the cluster.
    Policy(Arc<Policy>),
    /// How far a program is with a file.
    Program(Arc<ProgramSync>),
    /// Who may ask what.
    Access(Arc<Access>),
}

/// The numbers of the whole state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The last applied entry.
    pub revision: Revision,
    /// The newest wall-clock stamp.
    pub now: UnixMillis,
    /// How often the cluster was restored.
    pub generation: Generation,
    /// What every voter can read.
    pub feature_level: u32,
    /// The newest revision whose events are no longer all kept.
    pub compacted: Revision,
    /// The newest cluster time.
    pub elapsed: ClusterMillis,
}

/// A session as it is stored. Its leases are not: they know their session, and a session may hold thousands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Whose it is.
    pub owner: Owner,
    /// Time to live, in milliseconds.
    pub ttl_ms: u64,
    /// When it was opened.
    pub opened_at: UnixMillis,
    /// The entry that changed its leases last.
    pub leases_revision: Revision,
}

/// A config set as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetRecord {
    /// The entry that made it.
    pub created: Revision,
    /// The entry that changed it last.
    pub modified: Revision,
    /// The number of its newest version.
    pub head: u64,
    /// How it is kept on its members.
    pub spec: Arc<SetSpec>,
    /// Counts the specifications.
    pub spec_version: u64,
    /// The newest version on its way.
    pub rollout: Option<Arc<Rollout>>,
    /// Members that an operator keeps at a version.
    pub pins: BTreeMap<Option<MachineName>, Pin>,
    /// How often members were asked to begin anew.
    pub resync: BTreeMap<MachineName, u64>,
    /// Versions that failed on their way.
    pub bad: BTreeMap<u64, String>,
}

/// An answer kept for a retry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The answer.
    pub reply: Reply,
    /// The entry that made it.
    pub revision: Revision,
    /// Until when it is kept.
    pub until: ClusterMillis,
}

/// The records do not make a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the stored state is not whole: {0}")]
pub struct NotWhole(pub String);

impl State {
    /// Returns the record of that name as it is now; `None` if the object is gone.
    #[must_use]
    pub fn record(&self, key: &RecordKey) -> Option<Record> {
        Some(match key {
            RecordKey::Meta => Record::Meta(Meta {
                revision: self.revision,
                now: self.now,
                generation: self.generation,
                feature_level: self.feature_level,
                compacted: self.compacted,
                elapsed: self.elapsed,
            }),
            RecordKey::Machine(name) => Record::Machine(self.machines.get(name)?.clone()),
            RecordKey::Session(id) => {
                let session = self.sessions.get(id)?;
                Record::Session(SessionRecord {
                    owner: session.owner.clone(),
                    ttl_ms: session.ttl_ms,
                    opened_at: session.opened_at,
                    leases_revision: session.leases_revision,
                })
            }
            RecordKey::Lease(name) => Record::Lease(self.leases.get(name)?.clone()),
            RecordKey::Server(name) => Record::Server(self.servers.get(name)?.clone()),
            RecordKey::Set(name) => {
                let set = self.sets.get(name)?;
                Record::Set(SetRecord {
                    created: set.created,
                    modified: set.modified,
                    head: set.head,
                    spec: Arc::clone(&set.spec),
                    spec_version: set.spec_version,
                    rollout: set.rollout.clone(),
                    pins: set.pins.clone(),
                    resync: set.resync.clone(),
                    bad: set.bad.clone(),
                })
            }
            RecordKey::Version(name, number) => Record::Version(self.sets.get(name)?.versions.get(number)?.clone()),
            RecordKey::Sync(set, machine) => Record::Sync(self.syncs.get(&(set.clone(), machine.clone()))?.clone()),
            RecordKey::Answer(key) => Record::Answer(self.answers.get(key)?.clone()),
            RecordKey::Ledger(revision, part) => Record::Ledger(self.ledger.get(&(*revision, *part))?.clone()),
            RecordKey::Policy => Record::Policy(self.policy.clone()),
            RecordKey::Program(session) => Record::Program(self.programs.get(session)?.clone()),
            RecordKey::Access => self.access.is_on().then(|| Record::Access(self.access.clone()))?,
        })
    }

    /// Returns the names of all records, the whole state's numbers first, then by kind and ascending names.
    pub fn keys(&self) -> impl Iterator<Item = RecordKey> + '_ {
        let versions = self
            .sets
            .iter()
            .flat_map(|(name, set)| set.versions.keys().map(move |n| RecordKey::Version(name.clone(), *n)));
        std::iter::once(RecordKey::Meta)
            .chain(self.machines.keys().cloned().map(RecordKey::Machine))
            .chain(self.sessions.keys().copied().map(RecordKey::Session))
            .chain(self.leases.keys().cloned().map(RecordKey::Lease))
            .chain(self.servers.keys().cloned().map(RecordKey::Server))
            .chain(self.sets.keys().cloned().map(RecordKey::Set))
            .chain(versions)
            .chain(self.syncs.keys().map(|(set, machine)| RecordKey::Sync(set.clone(), machine.clone())))
            .chain(self.answers.keys().copied().map(RecordKey::Answer))
            .chain(self.ledger.keys().map(|(revision, part)| RecordKey::Ledger(*revision, *part)))
            .chain((self.policy.version > 0).then_some(RecordKey::Policy))
            .chain(self.programs.keys().copied().map(RecordKey::Program))
            .chain(self.access.is_on().then_some(RecordKey::Access))
    }

    /// Returns all records with their names, in the order of [`State::keys`].
    pub fn records(&self) -> impl Iterator<Item = (RecordKey, Record)> + '_ {
        self.keys().map(|key| {
            let record = self.record(&key).expect("a key of this state has a record");
            (key, record)
        })
    }

    /// Returns the state that these records make. Their order does not matter.
    ///
    /// # Errors
    /// [`NotWhole`] if a record stands under another kind's name, a set lacks its newest version, the numbers are
    /// missing, or the objects contradict each other.
    pub fn restore(records: impl IntoIterator<Item = (RecordKey, Record)>) -> Result<Self, NotWhole> {
        let mut state = Self::default();
        let mut found_meta = false;
        let mut versions: Vec<(SetName, u64, Arc<Version>)> = Vec::new();
        for (key, record) in records {
            match (key, record) {
                (RecordKey::Meta, Record::Meta(meta)) => {
                    found_meta = true;
                    state.revision = meta.revision;
                    state.now = meta.now;
                    state.generation = meta.generation;
                    state.feature_level = meta.feature_level;
                    state.compacted = meta.compacted;
                    state.elapsed = meta.elapsed;
                }
                (RecordKey::Machine(name), Record::Machine(machine)) => {
                    state.machines.insert(name, machine);
                }
                (RecordKey::Session(id), Record::Session(record)) => {
                    let session = Session {
                        id,
                        owner: record.owner,
                        ttl_ms: record.ttl_ms,
                        opened_at: record.opened_at,
                        leases: OrdSet::new(),
                        leases_revision: record.leases_revision,
                    };
                    state.sessions.insert(id, Arc::new(session));
                }
                (RecordKey::Lease(name), Record::Lease(lease)) => {
                    state.leases.insert(name, lease);
                }
                (RecordKey::Server(name), Record::Server(server)) => {
                    state.servers.insert(name, server);
                }
                (RecordKey::Set(name), Record::Set(set)) => {
                    let set = ConfigSet {
                        created: set.created,
                        modified: set.modified,
                        head: set.head,
                        versions: OrdMap::new(),
                        spec: set.spec,
                        spec_version: set.spec_version,
                        rollout: set.rollout,
                        pins: set.pins,
                        resync: set.resync,
                        bad: set.bad,
                    };
                    state.sets.insert(name, set);
                }
                (RecordKey::Version(name, number), Record::Version(version)) => {
                    versions.push((name, number, version));
                }
                (RecordKey::Sync(set, machine), Record::Sync(sync)) => {
                    state.syncs.insert((set, machine), sync);
                }
                (RecordKey::Answer(key), Record::Answer(answer)) => {
                    state.answers_by_expiry.insert((answer.until, key), ());
                    state.answers_by_age.insert(answer.revision, key);
                    state.answers.insert(key, answer);
                }
                (RecordKey::Ledger(revision, part), Record::Ledger(recorded)) => {
                    state.ledger.insert((revision, part), recorded);
                }
                (RecordKey::Policy, Record::Policy(policy)) => state.policy = policy,
                (RecordKey::Program(session), Record::Program(program)) => {
                    state.programs.insert(session, program);
                }
                (RecordKey::Access, Record::Access(access)) => state.access = access,
                (key, _) => return Err(NotWhole(format!("{key:?} holds a record of another kind"))),
            }
        }
        if !found_meta {
            return Err(NotWhole("the numbers of the whole state are missing".into()));
        }
        for (name, number, version) in versions {
            let Some(set) = state.sets.get_mut(&name) else {
                return Err(NotWhole(format!("version {number} of {name} has no set")));
            };
            state.config_bytes += version.bytes;
            set.versions.insert(number, version);
        }
        for (name, lease) in &state.leases {
            if let Some(grant) = lease.grant()
                && let Some(session) = state.sessions.get_mut(&grant.session)
            {
                Arc::make_mut(session).leases.insert(name.clone());
            }
        }
        state.check_invariants().map_err(NotWhole)?;
        Ok(state)
    }

    pub(crate) fn remember_answer(&mut self, key: RequestKey, named: bool, reply: &Reply) {
        let kept = if named { NAMED_ANSWER_KEPT_MS } else { ANSWER_KEPT_MS };
        let until = ClusterMillis(self.elapsed.0.saturating_add(kept));
        let answer = Answer { reply: reply.clone(), revision: self.revision, until };
        self.answers.insert(key, Arc::new(answer));
        self.answers_by_expiry.insert((until, key), ());
        self.answers_by_age.insert(self.revision, key);
        self.touched.insert(RecordKey::Answer(key));
    }

    /// Forgets what is kept for long enough, and if there is more than is kept at all, what was answered first.
    pub(crate) fn forget_old_answers(&mut self) {
        let oldest_go = self.feature_level >= OLDEST_ANSWERS_GO;
        while let Some((until, key)) = self.answers_by_expiry.get_min().map(|(place, ())| *place) {
            if until > self.elapsed && (oldest_go || self.answers.len() < ANSWERS_KEPT_MAX) {
                break;
            }
            self.forget_answer(key);
        }
        while oldest_go
            && self.answers.len() >= ANSWERS_KEPT_MAX
            && let Some(key) = self.answers_by_age.get_min().map(|(_, key)| *key)
        {
            self.forget_answer(key);
        }
    }

    fn forget_answer(&mut self, key: RequestKey) {
        if let Some(answer) = self.answers.remove(&key) {
            self.answers_by_expiry.remove(&(answer.until, key));
            self.answers_by_age.remove(&answer.revision);
        }
        self.touched.insert(RecordKey::Answer(key));
    }
}
