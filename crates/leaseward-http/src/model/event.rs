//! What happened.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Time, Wide};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventRecord {
    /// The entry that made it.
    pub revision: Wide,
    /// Its place among that entry's events, from 0.
    pub part: u32,
    /// When, by the proposer's clock.
    pub at: Time,
    /// The kind of the object: `session`, `lease`, `machine`, `server`, `config`, `token`, `cluster`.
    pub kind: String,
    /// The object.
    pub subject: String,
    /// What happened, in words.
    pub text: String,
    /// The same for programs; `event` names it.
    #[schema(value_type = Object)]
    pub data: serde_json::Value,
}

/// Events, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventList {
    /// Everything up to here was looked at: the `after` of the next question.
    pub revision: Wide,
    /// The newest revision whose events are no longer all kept.
    pub compacted: Wide,
    /// The events.
    pub items: Vec<EventRecord>,
}

/// The data of `event: snapshot`: changes follow from here; and of `event: revision`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// List now, at this revision or later, and nothing is missed.
    pub revision: Wide,
}

/// The data of `event: compacted`: some events after yours are gone; a snapshot follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Compacted {
    /// Where you were.
    pub after: Wide,
    /// The newest revision whose events are no longer all kept.
    pub compacted: Wide,
}
