//! Leases and the sessions that they live with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, Time, Wide};

/// A lease that is held, delayed or waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lease {
    /// Its name.
    #[schema(example = "batch/nightly")]
    pub name: String,
    /// Whether somebody holds it.
    pub state: LeaseState,
    /// Who holds it.
    pub holder: Option<String>,
    /// The session that it lives and dies with.
    pub session: Option<Wide>,
    /// The fencing token: of the holder, or of the grant whose delay runs.
    pub token: Wide,
    /// The time to live of the session.
    pub ttl: Option<Duration>,
    /// What the leader would wait before it ends the session. Only the leader knows; what a holder may believe is
    /// its own business.
    pub remaining: Option<Duration>,
    /// When it was granted.
    pub held_since: Option<Time>,
    /// The holder's own notes.
    pub meta: BTreeMap<String, String>,
    /// Who waits, next one first.
    pub waiting: Vec<Waiter>,
    /// Its version, as in its `ETag`: the entry that changed it last.
    #[serde(default)]
    pub version: u64,
    /// The entry that made it.
    pub created: Wide,
    /// The entry that changed it last.
    pub modified: Wide,
}

/// Whether somebody holds a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// Somebody holds it.
    Held,
    /// Its last holder expired or was revoked, and nobody may have it yet.
    Delayed,
}

/// Somebody who waits for a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Waiter {
    /// Who.
    pub holder: String,
    /// The session it would live with.
    pub session: Wide,
    /// Higher goes first.
    pub priority: i32,
    /// The entry that queued it.
    pub since: Wide,
}

/// Leases by ascending names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseList {
    /// The revision to watch from.
    pub revision: Wide,
    /// The leases.
    pub items: Vec<Lease>,
    /// Ask for this page next, if there is one.
    pub next_page: Option<String>,
}

/// Takes a lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcquireLease {
    /// The session it lives and dies with. Without one, one is opened for the holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Wide>,
    /// Who takes it; two holders of one session exclude each other, too.
    pub holder: String,
    /// The time to live of the session that is opened. 3 s if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
    /// How long to wait for it. Without it, a lease that is held is refused at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<Duration>,
    /// Higher goes first in the queue.
    #[serde(default)]
    pub priority: i32,
    /// After an expiry nobody gets it for so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock_delay: Option<Duration>,
    /// The holder's own notes.
    #[serde(default)]
    pub meta: BTreeMap<String, String>,
}

/// Takes a lease away from its holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    /// The lease.
    pub name: String,
    /// Only this grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Wide>,
}

/// An open session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// Its id.
    pub id: Wide,
    /// What its owner calls itself.
    pub name: String,
    /// Whose it is.
    pub owner: SessionOwner,
    /// Its time to live after a renewal was sent.
    pub ttl: Duration,
    /// What the leader would wait before it ends the session. Only the leader knows.
    pub remaining: Option<Duration>,
    /// When it was opened.
    pub opened: Time,
    /// The leases it holds.
    pub leases: Vec<HeldLease>,
    /// Its version, as in its `ETag`: the entry that changed its leases last.
    #[serde(default)]
    pub version: u64,
    /// The entry that changed its leases last; what a renewal calls `known`.
    pub leases_revision: Wide,
}

/// Whose session it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionOwner {
    /// A machine's agent.
    Machine,
    /// A client program.
    Client,
}

/// A lease that a session holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeldLease {
    /// The lease.
    pub name: String,
    /// The fencing token.
    pub token: Wide,
}

/// Sessions by ascending ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionList {
    /// The revision to watch from.
    pub revision: Wide,
    /// The sessions.
    pub items: Vec<Session>,
    /// Ask for this page next, if there is one.
    pub next_page: Option<String>,
}

/// Opens a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenSession {
    /// What the client calls itself.
    pub name: String,
    /// The time to live. 3 s if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
}

/// Renews sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Renew {
    /// The sessions.
    pub sessions: Vec<RenewOne>,
}

/// A renewal of one session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewOne {
    /// The session.
    pub session: Wide,
    /// The revision of its leases that the holder knows; the leases come back only if they changed since.
    #[serde(default)]
    pub known: Wide,
}

/// The answers to renewals, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Renewed {
    /// One for each renewal.
    pub sessions: Vec<RenewedOne>,
}

/// The answer to one renewal. A holder counts its time to live from the moment it *sent* the renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RenewedOne {
    /// The session.
    pub session: Wide,
    /// Whether it lives for another whole time to live. If not, it is over or will be within moments.
    pub alive: bool,
    /// Its leases, if they changed since `known`.
    pub leases: Option<Vec<HeldLease>>,
    /// The entry that changed its leases last, if they changed since `known`.
    pub leases_revision: Option<Wide>,
}
