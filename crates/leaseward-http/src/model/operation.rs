//! Work that somebody asked for and that takes a while.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, Time, Wide};

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationPhase {
    /// It goes on.
    Running,
    /// What was asked for is so.
    Done,
    /// It will not become so by itself.
    Failed,
    /// Somebody asked for something else before it was done.
    Superseded,
}

impl OperationPhase {
    /// Returns it as JSON has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Superseded => "superseded",
        }
    }
}

/// Something that was asked for and takes a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// The revision of the entry that asked for it.
    pub id: Wide,
    /// What was asked for: `start`, `stop`, `restart`, `move`, `drain`.
    pub verb: String,
    /// Of what.
    #[schema(example = "server/pay-1")]
    pub subject: String,
    /// The machine that it should go to, if one was named.
    pub to: Option<String>,
    /// How far it is.
    pub phase: OperationPhase,
    /// How it stands, in words.
    pub sentence: String,
    /// When it was asked for.
    pub asked: Time,
    /// When it ended.
    pub ended: Option<Time>,
    /// From when a server began to stop until it worked again, if it did both in this operation.
    pub out_of_service: Option<Duration>,
    /// What happened on the way, oldest first.
    pub steps: Vec<OperationStep>,
}

/// Something that happened on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationStep {
    /// The entry that told of it.
    pub revision: Wide,
    /// When.
    pub at: Time,
    /// What, in words.
    pub text: String,
}

/// Operations, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationList {
    /// The revision to watch from.
    pub revision: Wide,
    /// The operations that the ledger still remembers.
    pub items: Vec<Operation>,
    /// Ask for this page next, if there is one.
    pub next_page: Option<String>,
}
