//! How something is, and why.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{EventRecord, Wide};

/// How something is, why, and what can be done. Only what the state, its events or the nodes' answers show.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The object, such as `server/pay-1`.
    #[schema(example = "server/pay-1")]
    pub name: String,
    /// The revision that this reflects.
    pub revision: Wide,
    /// How it is, in a sentence.
    pub sentence: String,
    /// Why it is so.
    pub because: Vec<String>,
    /// What there is to say of others: machines, waiters, members.
    pub facts: Vec<Fact>,
    /// What can be done about it.
    #[serde(rename = "do")]
    pub hints: Vec<Hint>,
    /// What happened to it last, oldest first.
    pub events: Vec<EventRecord>,
}

/// Something that is so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fact {
    /// Of whom.
    pub subject: String,
    /// What.
    pub text: String,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hint {
    /// What to type.
    pub command: String,
    /// What it is good for.
    pub why: String,
}
