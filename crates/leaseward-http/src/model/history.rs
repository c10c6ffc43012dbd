//! What became of servers: interruptions that were, and moves that would be.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, Time, Wide};

/// A server's interruptions, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct History {
    /// The server.
    pub server: String,
    /// The revision that this reflects.
    pub revision: Wide,
    /// Those that the ledger remembers.
    pub items: Vec<Incident>,
}

/// One interruption of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Incident {
    /// The entry that began it.
    pub revision: Wide,
    /// Why: as in the events, such as `machine_lost`.
    pub cause: String,
    /// Where it ran.
    pub from: Option<String>,
    /// Where it ran then.
    pub to: Option<String>,
    /// When it was out of service at the earliest.
    pub began: Time,
    /// When it worked again.
    pub ended: Option<Time>,
    /// From the one to the other.
    pub out_of_service: Option<Duration>,
    /// From the last sign of life until another machine may start it, at most, by the rules.
    pub bound: Option<Duration>,
    /// The same, as it was.
    pub took: Option<Duration>,
    /// The whole in words.
    pub sentence: String,
    /// Step by step.
    pub phases: Vec<Phase>,
}

/// One step of an interruption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Phase {
    /// `last_renewal`, `suspect`, `asked`, `crashed`, `unhealthy`, `stopping`, `stopped`, `expired`, `fenced`, `decided`,
    /// a step of preparation such as `mount` or `address`, `exec`, `ready`, `failed`.
    pub name: String,
    /// When.
    pub at: Time,
    /// Since the beginning.
    pub after: Duration,
    /// What, in words.
    pub text: String,
}

/// What would come of something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Prediction {
    /// The state that it was tried on.
    pub revision: Wide,
    /// What was tried.
    pub event: String,
    /// The whole in words.
    pub sentence: String,
    /// Every server that would not stay as it is.
    pub servers: Vec<Predicted>,
}

/// What would become of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Predicted {
    /// The server.
    pub server: String,
    /// Where it is.
    pub from: Option<String>,
    /// Where it would be.
    pub to: Option<String>,
    /// From its first moment out of service until the next copy may be started, at most. Not given if only a person
    /// could end the wait.
    pub wait: Option<Duration>,
    /// How long it would take to start, as it did the last time; not given if it never did.
    pub start: Option<Duration>,
    /// Why it would not run.
    pub why_not: Option<String>,
    /// The whole in words.
    pub sentence: String,
}
