//! Several commands under one revision: all of them, or none.
//!
//! Left out on purpose: sessions and moves, which are not part of a transaction in the state either.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, ServerFile, Wanted, Wide};

/// All of these operations, or none, if every condition holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Transaction {
    /// What must be true.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// What is done then, in this order.
    pub operations: Vec<Change>,
}

/// What must be true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "if", rename_all = "snake_case", deny_unknown_fields)]
pub enum Condition {
    /// The lease is held under exactly this token.
    Fence {
        /// The lease.
        lease: String,
        /// The token.
        token: Wide,
    },
    /// Nobody holds, delays or waits for the lease.
    LeaseFree {
        /// The lease.
        lease: String,
    },
    /// The server has this version; 0: it does not exist.
    ServerVersion {
        /// The server.
        server: String,
        /// The version.
        version: u64,
    },
    /// The set has this version; 0: it does not exist.
    ConfigVersion {
        /// The set.
        set: String,
        /// The version.
        version: u64,
    },
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// Defines a server, or replaces its specification.
    PutServer {
        /// The server.
        server: String,
        /// What is asked of it.
        spec: Box<ServerFile>,
        /// The version it must have; 0: it must not exist.
        #[serde(default)]
        if_version: Option<u64>,
    },
    /// Forgets a server that runs nowhere.
    RemoveServer {
        /// The server.
        server: String,
    },
    /// Starts or stops a server.
    SetWanted {
        /// The server.
        server: String,
        /// What is wanted.
        wanted: Wanted,
    },
    /// Takes a lease that is free.
    Acquire {
        /// The lease.
        lease: String,
        /// The session it lives and dies with.
        session: Wide,
        /// Who.
        holder: String,
        /// After an expiry nobody gets it for so long.
        #[serde(default)]
        lock_delay: Option<Duration>,
        /// The holder's own notes.
        #[serde(default)]
        meta: BTreeMap<String, String>,
    },
    /// Gives a lease back.
    Release {
        /// The lease.
        lease: String,
        /// Its token.
        token: Wide,
    },
    /// Publishes a version of a set, whose blobs are here already.
    Publish {
        /// The set.
        set: String,
        /// The version it was made from; 0: the set must not exist.
        #[serde(default)]
        parent: Option<u64>,
        /// The blob with the encoded manifest.
        manifest: String,
        /// Who.
        #[serde(default)]
        author: String,
        /// Why.
        #[serde(default)]
        message: String,
    },
}

/// What a transaction did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TransactionResult {
    /// Its revision.
    pub revision: Wide,
    /// One for each operation.
    pub outcomes: Vec<Outcome>,
}

/// What an operation did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Outcome {
    /// The version the server or set has now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The token under which the lease is held now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Wide>,
}
